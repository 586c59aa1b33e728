//! The loop itself: commands and internal events in, scheduler steps, effects out.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use aihost_plugin_api::LoadRequest;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use super::Ending;
use super::api::{Answer, Changes, Command, ModelStatus, Submission, Submitted};
use super::lease::{Ended, LeaseTerms, carry};
use super::policy::{milliseconds, policy};
use super::replay::{Job, Suspects, Verdict};
use crate::config::{Config, ModelConfig};
use crate::domain::{DeviceId, Failure, FailureKind, InstanceId, Millis, ModelId, ModelState, RequestId};
use crate::plugin::Registry;
use crate::scheduler::{Effect, Event, State, Want};
use crate::worker::{Exit, ExitReason, Instance, Output, Placement, StartSpec, Started};
use crate::{device, store};

/// Internal events that may wait for the loop.
const EVENTS_MAX: usize = 4096;
/// Outputs that may wait for one client.
const OUTPUTS_MAX: usize = 64;
/// From spawn to plan.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// From being asked to release to being killed.
const STOP_GRACE: Duration = Duration::from_secs(30);

/// What comes back from the tasks the loop started.
enum Internal {
    Started(InstanceId, Started),
    Loaded(InstanceId, Result<(), Failure>),
    Ended(RequestId, Ended),
    Cancelled(RequestId),
}

/// Who asked, and with what.
enum Pending {
    Serve { job: Job, client: Client },
    Load { model: ModelId, reply: oneshot::Sender<Result<(), Failure>> },
}

/// Where an answer goes.
enum Client {
    /// It waits to be granted.
    New(oneshot::Sender<Submitted>),
    /// It was granted, and its worker died before it had anything. Somebody watches whether it leaves, no longer than it waits:
    /// the watcher holds a sender too, and an answer whose senders are not all gone has no end.
    Granted(mpsc::Sender<Output>, AbortOnDropHandle<()>),
}

pub(super) struct Loop {
    config: Arc<Config>,
    in_force: watch::Sender<Arc<Config>>,
    registry: Arc<Registry>,
    placement: Arc<dyn Placement>,
    state: State,
    begun: Instant,
    wake: Option<Instant>,
    instances: HashMap<InstanceId, Arc<dyn Instance>>,
    /// Instances with a start or a load under way.
    busy: HashSet<InstanceId>,
    /// Exits of busy instances: the start or load knows the cause better, and is heard first.
    early_exits: Vec<Exit>,
    pending: HashMap<RequestId, Pending>,
    /// Requests that hold a lease.
    leased: HashMap<RequestId, (Job, InstanceId)>,
    /// Requests whose worker died, until its exit is known: before that they would be granted on it again.
    bereft: Vec<(InstanceId, Job, mpsc::Sender<Output>, Failure)>,
    suspects: Suspects,
    /// Who waits for an instance to be gone.
    unloads: Vec<(InstanceId, oneshot::Sender<Result<(), Failure>>)>,
    loads: BTreeMap<ModelId, u64>,
    next_request: u64,
    events: mpsc::Sender<Internal>,
    inbox: Option<mpsc::Receiver<Internal>>,
    exits: mpsc::Sender<Exit>,
    exited: Option<mpsc::Receiver<Exit>>,
}

impl Loop {
    pub(super) fn new(
        in_force: watch::Sender<Arc<Config>>,
        registry: Arc<Registry>,
        placement: Arc<dyn Placement>,
    ) -> Self {
        let config = Arc::clone(&in_force.borrow());
        let (events, inbox) = mpsc::channel(EVENTS_MAX);
        let (exits, exited) = mpsc::channel(EVENTS_MAX);
        let state = State::new(policy(&config, &registry));
        Self {
            config,
            in_force,
            registry,
            placement,
            state,
            begun: Instant::now(),
            wake: None,
            instances: HashMap::new(),
            busy: HashSet::new(),
            early_exits: Vec::new(),
            pending: HashMap::new(),
            leased: HashMap::new(),
            bereft: Vec::new(),
            suspects: Suspects::default(),
            unloads: Vec::new(),
            loads: BTreeMap::new(),
            next_request: 0,
            events,
            inbox: Some(inbox),
            exits,
            exited: Some(exited),
        }
    }

    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>, mut ending: watch::Receiver<Ending>) {
        let (Some(mut inbox), Some(mut exited)) = (self.inbox.take(), self.exited.take()) else { return };
        let config = Arc::clone(&self.config);
        self.preload(config.models.keys());
        loop {
            let wake = self.wake;
            tokio::select! {
                Some(command) = commands.recv() => self.command(command),
                Some(event) = inbox.recv() => self.internal(event),
                Some(exit) = exited.recv() => self.exit(exit),
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {
                    self.wake = None;
                    self.step(Event::Timer);
                }
                Ok(()) = ending.changed() => {
                    let how = *ending.borrow();
                    self.end(how);
                }
            }
            self.answer_unloads();
            if self.state.is_over() {
                inbox.close();
                while let Some(event) = inbox.recv().await {
                    last_word(event);
                }
                return;
            }
        }
    }

    fn preload<'a>(&mut self, models: impl Iterator<Item = &'a ModelId>) {
        for model in models {
            if self.config.models.get(model).is_some_and(|entry| entry.preload) {
                let (reply, _) = oneshot::channel();
                self.command(Command::Load(model.clone(), reply));
            }
        }
    }

    fn configure(&mut self, config: Arc<Config>) -> Changes {
        let old = std::mem::replace(&mut self.config, Arc::clone(&config));
        self.in_force.send_replace(Arc::clone(&config));
        let changes = changes(&old, &config);
        tracing::info!(?changes, "new configuration");
        self.step(Event::Configure(policy(&config, &self.registry)));
        for model in &changes.changed {
            self.step(Event::Unload(model.clone()));
        }
        self.preload(changes.added.iter().chain(&changes.changed));
        changes
    }

    fn end(&mut self, how: Ending) {
        match how {
            Ending::No => {}
            Ending::Drain => self.step(Event::Shutdown),
            // Every worker is killed; its exit ends its leases and the state.
            Ending::Cut => {
                for instance in self.instances.values() {
                    let instance = Arc::clone(instance);
                    tokio::spawn(async move { instance.stop(Duration::ZERO).await });
                }
            }
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Submit(submission, reply) => self.submit(submission, reply),
            Command::Load(model, reply) => {
                let id = self.next_request();
                self.pending.insert(id, Pending::Load { model: model.clone(), reply });
                self.step(Event::Request { id, model, want: Want::Load });
            }
            Command::Unload(model, reply) => {
                if self.config.models.contains_key(&model) {
                    // The instance it meets, not the next one: those who ask meanwhile load the model anew.
                    match self.state.instance_of(&model) {
                        Some((id, _)) => self.unloads.push((id, reply)),
                        None => send(reply, Ok(())),
                    }
                    self.step(Event::Unload(model));
                } else {
                    send(reply, Err(Failure::new(FailureKind::UnknownModel, format!("there is no model `{model}`"))));
                }
            }
            Command::Models(reply) => send(reply, self.status()),
            Command::Configure(config, reply) => send(reply, self.configure(config)),
            Command::Logs(model, reply) => {
                let instance = self.state.instance_of(&model).and_then(|(id, _)| self.instances.get(&id));
                send(reply, instance.map(|instance| instance.log_tail()).unwrap_or_default());
            }
        }
    }

    fn submit(&mut self, submission: Submission, mut reply: oneshot::Sender<Submitted>) {
        let job = Job::new(submission);
        if let Some(failure) = self.suspects.refusal(&job) {
            return send(reply, Err(failure));
        }
        let id = self.next_request();
        let (grant, granted) = oneshot::channel();
        let events = self.events.clone();
        tokio::spawn(async move {
            tokio::select! {
                answer = granted => {
                    let gone = || Err(Failure::new(FailureKind::ShuttingDown, "the host is shutting down"));
                    send(reply, answer.unwrap_or_else(|_| gone()));
                }
                () = reply.closed() => post(&events, Internal::Cancelled(id)).await,
            }
        });
        let (model, want) = (job.model.clone(), job.want());
        self.pending.insert(id, Pending::Serve { job, client: Client::New(grant) });
        self.step(Event::Request { id, model, want });
    }

    /// A lease is over. If its worker died under it and the client has seen nothing, it is tried again, alone.
    fn ended(&mut self, id: RequestId, ended: Ended) {
        let leased = self.leased.remove(&id);
        self.step(Event::Done(id));
        if let (Ended::Lost(client, failure), Some((job, instance))) = (ended, leased) {
            self.bereft.push((instance, job, client, failure));
            self.replay();
        }
    }

    /// Tries again what lost its worker, once that worker is known to be gone.
    fn replay(&mut self) {
        let known = self.state.instances();
        let (waiting, ready) =
            std::mem::take(&mut self.bereft).into_iter().partition(|lost| known.contains_key(&lost.0));
        self.bereft = waiting;
        let ready: Vec<_> = ready;
        for (_, job, client, failure) in ready {
            match self.suspects.judge(job, failure) {
                Verdict::Again(job) => self.submit_again(job, client),
                Verdict::Refused(failure) => finish(client, failure),
            }
        }
    }

    fn submit_again(&mut self, job: Job, client: mpsc::Sender<Output>) {
        let id = self.next_request();
        tracing::warn!(model = %job.model, request = id.0, "trying a request again whose worker died");
        let watch = self.watch(id, client.clone());
        let (model, want) = (job.model.clone(), job.want());
        self.pending.insert(id, Pending::Serve { job, client: Client::Granted(client, watch) });
        self.step(Event::Request { id, model, want });
    }

    /// A client that leaves while its request waits to be tried again.
    fn watch(&self, id: RequestId, client: mpsc::Sender<Output>) -> AbortOnDropHandle<()> {
        let events = self.events.clone();
        AbortOnDropHandle::new(tokio::spawn(async move {
            client.closed().await;
            post(&events, Internal::Cancelled(id)).await;
        }))
    }

    fn internal(&mut self, event: Internal) {
        match event {
            Internal::Started(id, started) => {
                self.busy.remove(&id);
                self.started(id, started);
                self.late_exit(id);
            }
            Internal::Loaded(id, loaded) => {
                self.busy.remove(&id);
                self.loaded(id, loaded);
                self.late_exit(id);
            }
            Internal::Ended(id, ended) => self.ended(id, ended),
            Internal::Cancelled(id) => {
                if self.pending.remove(&id).is_some() {
                    self.step(Event::Cancel(id));
                }
            }
        }
    }

    fn started(&mut self, id: InstanceId, started: Started) {
        match started {
            Ok((instance, plan))
                if self.state.instances().get(&id).is_some_and(|known| known.state == ModelState::Starting) =>
            {
                self.instances.insert(id, instance);
                let required = plan.required.saturating_add(plan.workspace_max);
                let preferred = plan.preferred.max(plan.required).saturating_add(plan.workspace_max);
                let (required, preferred) = self.fixed_memory(id).map_or((required, preferred), |fixed| (fixed, fixed));
                self.step(Event::Planned { instance: id, required, preferred });
            }
            // It was stopped meanwhile; the worker goes with its only handle, and its exit is reported.
            Ok((instance, _)) => drop(instance),
            Err(failure) => {
                self.step(Event::Failed(id, failure.clone()));
                // No worker is left.
                self.step(Event::Exited(id, failure));
            }
        }
    }

    fn loaded(&mut self, id: InstanceId, loaded: Result<(), Failure>) {
        match loaded {
            Ok(()) => {
                if let Some(known) = self.state.instances().get(&id) {
                    *self.loads.entry(known.model.clone()).or_default() += 1;
                    tracing::info!(model = %known.model, instance = id.0, "loaded");
                }
                self.step(Event::Loaded(id));
            }
            Err(failure) => self.step(Event::Failed(id, failure)),
        }
    }

    fn late_exit(&mut self, id: InstanceId) {
        if let Some(at) = self.early_exits.iter().position(|exit| exit.instance == id) {
            let exit = self.early_exits.swap_remove(at);
            self.exit(exit);
        }
    }

    /// `memory:` of the entry, which overrides the plugin's plan.
    fn fixed_memory(&self, id: InstanceId) -> Option<u64> {
        let model = &self.state.instances().get(&id)?.model;
        self.config.models.get(model)?.memory.map(|size| size.0)
    }

    fn exit(&mut self, exit: Exit) {
        if self.busy.contains(&exit.instance) {
            self.early_exits.push(exit);
            return;
        }
        let model =
            self.state.instances().get(&exit.instance).map(|instance| instance.model.to_string()).unwrap_or_default();
        match exit.reason {
            ExitReason::Asked => tracing::info!(%model, instance = exit.instance.0, "worker ended"),
            ref reason => tracing::warn!(%model, instance = exit.instance.0, "worker {reason}"),
        }
        self.instances.remove(&exit.instance);
        let failure = Failure::new(
            FailureKind::WorkerDied,
            format!("the worker of `{model}` {}; see its log with GET /logs/{model}", exit.reason),
        );
        self.step(Event::Exited(exit.instance, failure));
        self.replay();
    }

    fn step(&mut self, event: Event) {
        let now = Millis(milliseconds(self.begun.elapsed()));
        for effect in self.state.step(now, event) {
            self.carry_out(effect);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        tracing::debug!(?effect, "scheduler");
        match effect {
            Effect::Start { instance, model, device } => self.start(instance, &model, &device),
            Effect::Load { instance, granted } => self.load(instance, granted),
            Effect::Grant(request, instance) => self.grant(request, instance),
            Effect::Ready(request) => {
                if let Some(Pending::Load { reply, .. }) = self.pending.remove(&request) {
                    send(reply, Ok(()));
                }
            }
            Effect::Refuse(request, failure) => self.refuse(request, failure),
            Effect::Stop(instance) => self.stop(instance),
            // Rounded up: a timer that is a little early would find nothing due.
            Effect::Wake(at) => self.wake = Some(self.begun + Duration::from_millis(at.0.saturating_add(1))),
        }
    }

    fn start(&mut self, id: InstanceId, model: &ModelId, device: &DeviceId) {
        let spec = self
            .config
            .models
            .get(model)
            .ok_or_else(|| Failure::new(FailureKind::UnknownModel, format!("there is no model `{model}`")));
        let spec = spec.and_then(|model| self.start_spec(id, model, device));
        self.busy.insert(id);
        let (placement, events, exits) = (Arc::clone(&self.placement), self.events.clone(), self.exits.clone());
        tokio::spawn(async move {
            let started = match spec {
                Ok(spec) => placement.start(spec, exits).await,
                Err(failure) => Err(failure),
            };
            post(&events, Internal::Started(id, started)).await;
        });
    }

    fn start_spec(&self, instance: InstanceId, model: &ModelConfig, device: &DeviceId) -> Result<StartSpec, Failure> {
        let plugin = self
            .registry
            .find(&model.plugin, model.plugin_version.as_ref())
            .map_err(|e| Failure::new(FailureKind::NotUsable, e.to_string()))?;
        if !plugin.manifest.kinds.iter().any(|kind| kind == model.kind.name()) {
            let message = format!(
                "plugin `{}` serves {}, but `{}` is declared `type: {}`",
                model.plugin,
                plugin.manifest.kinds.join(", "),
                model.id,
                model.kind.name()
            );
            return Err(Failure::new(FailureKind::NotUsable, message));
        }
        let load = LoadRequest {
            files: store::locate(model)?,
            device: device.0.clone(),
            threads: device::cpu_threads(),
            granted: 0,
        };
        Ok(StartSpec {
            instance,
            model: model.id.clone(),
            plugin,
            options: model.options.clone(),
            load,
            start_timeout: START_TIMEOUT,
        })
    }

    fn load(&mut self, id: InstanceId, granted: u64) {
        let Some(instance) = self.instances.get(&id).cloned() else { return };
        let model = self.state.instances().get(&id).and_then(|known| self.config.models.get(&known.model));
        let deadline = model.map_or(START_TIMEOUT, |model| model.load_timeout);
        self.busy.insert(id);
        let events = self.events.clone();
        tokio::spawn(async move {
            let loaded = instance.load(granted, deadline).await.map(|_| ());
            post(&events, Internal::Loaded(id, loaded)).await;
        });
    }

    fn grant(&mut self, request: RequestId, id: InstanceId) {
        let events = self.events.clone();
        let (Some(Pending::Serve { job, client }), Some(instance)) =
            (self.pending.remove(&request), self.instances.get(&id).cloned())
        else {
            // The client left in this very moment, or the worker died: the lease ends at once.
            tokio::spawn(async move { post(&events, Internal::Ended(request, Ended::Answered)).await });
            return;
        };
        let terms = LeaseTerms {
            request_timeout: self.config.limits.request_timeout,
            stall_timeout: self.config.limits.stream_stall_timeout,
            delivery: job.delivery,
        };
        let outputs = instance.generate(request, job.task.clone());
        self.leased.insert(request, (job, id));
        let client = match client {
            Client::New(grant) => {
                let (client, output) = mpsc::channel(OUTPUTS_MAX);
                send(grant, Ok(Answer { request, output }));
                client
            }
            Client::Granted(client, watch) => {
                drop(watch);
                client
            }
        };
        tokio::spawn(async move {
            let ended = carry(request, instance, outputs, client, terms).await;
            if let Err(unheard) = events.send(Internal::Ended(request, ended)).await {
                last_word(unheard.0);
            }
        });
    }

    fn refuse(&mut self, request: RequestId, failure: Failure) {
        match self.pending.remove(&request) {
            Some(Pending::Load { model, reply }) => {
                tracing::warn!(%model, "load failed: {failure}");
                send(reply, Err(failure));
            }
            Some(Pending::Serve { client: Client::New(grant), .. }) => send(grant, Err(failure)),
            Some(Pending::Serve { client: Client::Granted(client, _), .. }) => finish(client, failure),
            None => {}
        }
    }

    fn stop(&self, id: InstanceId) {
        // Without a handle the worker is still starting: it goes when its start returns and finds nobody waiting for it.
        if let Some(instance) = self.instances.get(&id).cloned() {
            tokio::spawn(async move { instance.stop(STOP_GRACE).await });
        }
    }

    fn answer_unloads(&mut self) {
        let known = self.state.instances();
        let (done, open) =
            std::mem::take(&mut self.unloads).into_iter().partition(|(instance, _)| !known.contains_key(instance));
        self.unloads = open;
        let done: Vec<(InstanceId, oneshot::Sender<_>)> = done;
        done.into_iter().for_each(|(_, reply)| send(reply, Ok(())));
    }

    fn status(&self) -> Vec<ModelStatus> {
        let now = Millis(milliseconds(self.begun.elapsed()));
        self.config.models.values().map(|model| self.model_status(model, now)).collect()
    }

    fn model_status(&self, model: &ModelConfig, now: Millis) -> ModelStatus {
        let (state, failure) = self.state.model_state(&model.id);
        let instance = self.state.instance_of(&model.id);
        let handle = instance.and_then(|(id, _)| self.instances.get(&id));
        let idle = instance.filter(|(_, known)| known.state == ModelState::Hot && known.leases.is_empty());
        ModelStatus {
            id: model.id.clone(),
            kind: model.kind,
            plugin: model.plugin.clone(),
            state,
            device: instance.map(|(_, known)| known.device.to_string()),
            memory: instance.map_or(0, |(_, known)| known.reserved),
            active: instance.map_or(0, |(_, known)| u32::try_from(known.leases.len()).unwrap_or(u32::MAX)),
            queued: u32::try_from(self.state.queued(&model.id)).unwrap_or(u32::MAX),
            progress: handle.filter(|_| state == ModelState::Loading).and_then(|handle| handle.progress()),
            loads: self.loads.get(&model.id).copied().unwrap_or(0),
            idle_ms: idle.map(|(_, known)| now.since(known.used)),
            pid: handle.and_then(|handle| handle.pid()),
            error: failure.map(ToString::to_string),
            aliases: model.aliases.clone(),
        }
    }

    fn next_request(&mut self) -> RequestId {
        self.next_request += 1;
        RequestId(self.next_request)
    }
}

/// Which entries differ in what an instance is made of. Names, limits and policy take effect without a reload.
fn changes(old: &Config, new: &Config) -> Changes {
    let differs = |id: &&ModelId| match (old.models.get(*id), new.models.get(*id)) {
        (Some(before), Some(after)) => {
            before.kind != after.kind
                || (&before.plugin, &before.plugin_version) != (&after.plugin, &after.plugin_version)
                || (&before.files, &before.options) != (&after.files, &after.options)
                || (&before.memory, &before.devices) != (&after.memory, &after.devices)
        }
        _ => false,
    };
    Changes {
        added: new.models.keys().filter(|id| !old.models.contains_key(*id)).cloned().collect(),
        removed: old.models.keys().filter(|id| !new.models.contains_key(*id)).cloned().collect(),
        changed: new.models.keys().filter(differs).cloned().collect(),
    }
}

/// Answers someone who may have left.
fn send<T>(reply: oneshot::Sender<T>, value: T) {
    let _left = reply.send(value).is_err();
}

/// The last word to a granted client. It takes no more than one output, so it never waits behind itself.
fn finish(client: mpsc::Sender<Output>, failure: Failure) {
    tokio::spawn(async move { client.send(Output::Done(Err(failure))).await.is_ok() });
}

/// Nobody tries a request again once the loop has ended: its client learns why.
fn last_word(event: Internal) {
    if let Internal::Ended(_, Ended::Lost(client, failure)) = event {
        finish(client, failure);
    }
}

/// Posts to the loop; it is gone only when the host is.
async fn post(events: &mpsc::Sender<Internal>, event: Internal) {
    let _over = events.send(event).await.is_err();
}
