//! The loop itself: commands and internal events in, scheduler steps, effects out.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::task::AbortOnDropHandle;

use super::Ending;
use super::api::{Changes, Command, KeepAlive, Submission, Submitted};
use super::lease::Ended;
use super::memory::Planned;
use super::observe::{Note, Observer};
use super::peaks::Peaks;
use super::policy::{milliseconds, policy};
use super::quarantine::Quarantine;
use super::replay::{Job, Suspects, Verdict};
use super::status::changes;
use crate::config::Config;
use crate::domain::{DeviceId, Failure, FailureKind, InstanceId, Millis, ModelId, ModelState, RequestId, some_names};
use crate::plugin::Registry;
use crate::scheduler::{Event, Keep, State, Want};
use crate::worker::awake::{Instant, sleep_until};
use crate::worker::{Exit, ExitReason, Instance, ModelLog, Output, Placement, Started};

/// Internal events that may wait for the loop.
const EVENTS_MAX: usize = 4096;
/// Between two looks at what serving instances hold.
const PEAK_LOOK_EVERY: Duration = Duration::from_millis(250);

/// What comes back from the tasks the loop started.
pub(super) enum Internal {
    /// A step of an instance is over.
    Stepped(InstanceId, Stepped),
    Ended(RequestId, Ended),
    Cancelled(RequestId),
}

/// What a step of an instance came to.
pub(super) enum Stepped {
    Started(Started),
    /// Bytes on the device by the plugin's own account.
    Loaded(Result<u64, Failure>),
    Parked(Result<u64, Failure>),
    Unparked(Result<(), Failure>),
}

/// Who asked, and with what.
pub(super) enum Pending {
    Serve { job: Job, client: Client },
    Load { model: ModelId, reply: oneshot::Sender<Result<(), Failure>> },
}

/// Where an answer goes.
pub(super) enum Client {
    /// It waits to be granted.
    New(oneshot::Sender<Submitted>),
    /// It was granted, and its worker died before it had anything. Somebody watches whether it leaves, no longer than it waits:
    /// the watcher holds a sender too, and an answer whose senders are not all gone has no end.
    Granted(mpsc::Sender<Output>, AbortOnDropHandle<()>),
}

/// An operator who waits until these instances have left their device.
pub(super) struct Departure {
    instances: Vec<InstanceId>,
    /// Parked suffices.
    park: bool,
    reply: oneshot::Sender<Result<(), Failure>>,
}

pub(super) struct Loop {
    pub(super) config: Arc<Config>,
    pub(super) in_force: watch::Sender<Arc<Config>>,
    pub(super) registry: Arc<Registry>,
    pub(super) placement: Arc<dyn Placement>,
    pub(super) state: State,
    pub(super) begun: Instant,
    pub(super) wake: Option<Instant>,
    pub(super) instances: HashMap<InstanceId, Arc<dyn Instance>>,
    pub(super) plans: HashMap<InstanceId, Planned>,
    /// What devices had that name no budget.
    budgets: BTreeMap<DeviceId, u64>,
    /// How often memory was taken or given on each device.
    pub(super) moves: HashMap<DeviceId, Arc<AtomicU64>>,
    pub(super) peaks: Arc<Peaks>,
    pub(super) quarantine: Quarantine,
    /// Instances with a start, load, park or wake under way.
    pub(super) busy: HashSet<InstanceId>,
    /// Exits of busy instances: the start or load knows the cause better, and is heard first.
    pub(super) early_exits: Vec<Exit>,
    pub(super) pending: HashMap<RequestId, Pending>,
    /// Requests that hold a lease.
    pub(super) leased: HashMap<RequestId, (Job, InstanceId)>,
    /// Requests whose worker died, until its exit is known: before that they would be granted on it again.
    pub(super) bereft: Vec<(InstanceId, Job, mpsc::Sender<Output>, Failure)>,
    pub(super) suspects: Suspects,
    pub(super) departures: Vec<Departure>,
    /// Models whose last worker died by itself.
    pub(super) died: HashSet<ModelId>,
    pub(super) loads: BTreeMap<ModelId, u64>,
    pub(super) wakes: BTreeMap<ModelId, u64>,
    /// What each model's workers logged.
    logs: BTreeMap<ModelId, Arc<ModelLog>>,
    pub(super) observer: Observer,
    pub(super) next_request: u64,
    pub(super) events: mpsc::Sender<Internal>,
    pub(super) inbox: Option<mpsc::Receiver<Internal>>,
    pub(super) exits: mpsc::Sender<Exit>,
    pub(super) exited: Option<mpsc::Receiver<Exit>>,
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
        let mut budgets = BTreeMap::new();
        let state = State::new(policy(&config, &registry, &mut budgets));
        let observer = Observer::new(&config);
        let peaks = Arc::new(Peaks::open(&config.paths.state));
        let quarantine = Quarantine::open(&config.paths.state);
        Self {
            config,
            in_force,
            registry,
            placement,
            state,
            begun: Instant::now(),
            wake: None,
            instances: HashMap::new(),
            plans: HashMap::new(),
            moves: HashMap::new(),
            budgets,
            peaks,
            quarantine,
            busy: HashSet::new(),
            early_exits: Vec::new(),
            pending: HashMap::new(),
            leased: HashMap::new(),
            bereft: Vec::new(),
            suspects: Suspects::default(),
            departures: Vec::new(),
            died: HashSet::new(),
            loads: BTreeMap::new(),
            wakes: BTreeMap::new(),
            logs: BTreeMap::new(),
            observer,
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
        self.recall_quarantine();
        self.preload(config.models.keys());
        let mut looks = tokio::time::interval(PEAK_LOOK_EVERY);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let wake = self.wake;
            tokio::select! {
                Some(command) = commands.recv() => self.command(command),
                Some(event) = inbox.recv() => self.internal(event),
                Some(exit) = exited.recv() => {
                    self.observer.exited(&exit);
                    self.exit(exit);
                }
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {
                    self.wake = None;
                    self.measure_for_waiters();
                    self.step(Event::Timer);
                }
                _ = looks.tick(), if !self.leased.is_empty() => self.observe_peaks(),
                Ok(()) = ending.changed() => {
                    let how = *ending.borrow();
                    self.end(how);
                }
            }
            self.answer_departures();
            if self.is_over() {
                inbox.close();
                while let Some(event) = inbox.recv().await {
                    last_word(event);
                }
                return;
            }
        }
    }

    /// Whether a shutdown has nothing left to wait for. Workers that have not said yet what they need hold nothing and
    /// cannot be asked to go: they end with their host.
    fn is_over(&self) -> bool {
        self.state.is_over() || (self.state.is_shutting_down() && self.instances.is_empty())
    }

    fn preload<'a>(&mut self, models: impl Iterator<Item = &'a ModelId>) {
        for model in models {
            let quarantined = self.quarantine.models().any(|other| other == model.0);
            if !quarantined && self.config.models.get(model).is_some_and(|entry| entry.preload) {
                let (reply, _) = oneshot::channel();
                self.command(Command::Load(model.clone(), reply));
            }
        }
    }

    fn configure(&mut self, config: Arc<Config>) -> Changes {
        let old = std::mem::replace(&mut self.config, Arc::clone(&config));
        self.in_force.send_replace(Arc::clone(&config));
        let changes = changes(&old, &config);
        let named = |models: &[ModelId]| some_names(models.iter().map(|model| model.0.as_str()));
        let (added, removed, changed) = (named(&changes.added), named(&changes.removed), named(&changes.changed));
        tracing::info!(added, removed, changed, "new configuration");
        self.observer.configured(&config);
        self.logs.retain(|model, _| config.models.contains_key(model));
        let policy = policy(&config, &self.registry, &mut self.budgets);
        self.step(Event::Configure(policy));
        for model in &changes.changed {
            self.step(Event::Changed(model.clone()));
        }
        self.recall_quarantine();
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
                self.request(id, model, Want::Load, None);
            }
            Command::Unload(model, cut_after, reply) => {
                let cut_after_ms = cut_after.map(milliseconds);
                self.depart(&model, false, reply, |model| Event::Unload { model, cut_after_ms });
            }
            Command::Park(model, reply) => self.depart(&model, true, reply, Event::Park),
            Command::Explain(model, reply) => send(reply, self.explain(&model)),
            Command::Ping(reply) => send(reply, ()),
            Command::Models(reply) => send(reply, self.status()),
            Command::Metrics(reply) => send(reply, self.scrape()),
            Command::Configure(config, reply) => send(reply, self.configure(config)),
            Command::Logs(model, reply) => {
                send(reply, self.log(&model).follow());
            }
        }
    }

    pub(super) fn log(&mut self, model: &ModelId) -> Arc<ModelLog> {
        Arc::clone(self.logs.entry(model.clone()).or_default())
    }

    fn submit(&mut self, submission: Submission, mut reply: oneshot::Sender<Submitted>) {
        let job = Job::new(submission);
        if let Some(failure) = self.suspects.refusal(&job) {
            self.observer.suspected(&job.model);
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
        let (model, want, keep_alive) = (job.model.clone(), job.want(), job.keep_alive);
        self.pending.insert(id, Pending::Serve { job, client: Client::New(grant) });
        self.request(id, model, want, keep_alive);
    }

    /// Someone wants a model. What is parked may be woken at once, so the room for it is looked at now; what is cold has to
    /// plan first.
    fn request(&mut self, id: RequestId, model: ModelId, want: Want, keep_alive: Option<KeepAlive>) {
        if self.state.model_state(&model).0 == ModelState::Parked {
            self.measure(&model);
        }
        self.step(Event::Request { id, model, want, keep: keep_alive.map(keep) });
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
            let model = job.model.clone();
            match self.suspects.judge(job, failure) {
                Verdict::Again(job) => self.submit_again(job, client),
                Verdict::Refused(failure) => {
                    self.observer.given_up(&model);
                    finish(client, failure);
                }
                Verdict::Quarantined(model, failure) => {
                    self.observer.given_up(&model);
                    finish(client, failure.clone());
                    self.step(Event::Quarantine(model, failure));
                }
            }
        }
    }

    fn submit_again(&mut self, job: Job, client: mpsc::Sender<Output>) {
        let id = self.next_request();
        tracing::warn!(model = %job.model, request = id.0, "trying a request again whose worker died");
        let watch = self.watch(id, client.clone());
        let (model, want, keep_alive) = (job.model.clone(), job.want(), job.keep_alive);
        self.pending.insert(id, Pending::Serve { job, client: Client::Granted(client, watch) });
        self.request(id, model, want, keep_alive);
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
            Internal::Stepped(id, stepped) => {
                self.busy.remove(&id);
                self.stepped(id, stepped);
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

    fn stepped(&mut self, id: InstanceId, stepped: Stepped) {
        match stepped {
            Stepped::Started(started) => self.started(id, started),
            Stepped::Loaded(loaded) => self.loaded(id, loaded),
            Stepped::Parked(parked) => {
                if let (Ok(held), Some(instance)) = (&parked, self.instances.get(&id))
                    && let Some(allowance) = self.allowance_parked(id, *held)
                {
                    instance.allow(allowance);
                }
                self.step_or_fail(id, "parking", parked.map(|held| Event::Parked { instance: id, held }));
            }
            Stepped::Unparked(hot) => {
                if let (Ok(()), Some(known)) = (&hot, self.state.instances().get(&id)) {
                    *self.wakes.entry(known.model.clone()).or_default() += 1;
                }
                self.step_or_fail(id, "waking", hot.map(|()| Event::Unparked(id)));
            }
        }
    }

    fn started(&mut self, id: InstanceId, started: Started) {
        let known = self.state.instances().get(&id).filter(|known| known.state == ModelState::Starting);
        match (started, known.map(|known| known.model.clone())) {
            (Ok((instance, plan)), Some(model)) => {
                self.doubt(&model, plan);
                self.instances.insert(id, instance);
                let required = self.need(id, plan);
                let preferred = plan.preferred.saturating_add(plan.workspace_max).max(required);
                let preferred = self.fixed_memory(id).unwrap_or(preferred);
                self.measure(&model);
                let mapped = self.mapped(id, plan.mapped.min(required));
                self.step(Event::Planned { instance: id, required, preferred, mapped });
            }
            // It was stopped meanwhile; the worker goes with its only handle, and its exit is reported.
            (Ok((instance, _)), None) => drop(instance),
            (Err(failure), _) => {
                self.step(Event::Failed(id, failure.clone()));
                // No worker is left.
                self.step(Event::Exited(id, failure));
            }
        }
    }

    fn loaded(&mut self, id: InstanceId, loaded: Result<u64, Failure>) {
        match loaded {
            Ok(held) => {
                if let Some(planned) = self.plans.get_mut(&id) {
                    planned.held = held;
                }
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

    fn exit(&mut self, exit: Exit) {
        if self.busy.contains(&exit.instance) {
            self.early_exits.push(exit);
            return;
        }
        let model =
            self.state.instances().get(&exit.instance).map(|instance| instance.model.to_string()).unwrap_or_default();
        match exit.reason {
            ExitReason::Asked => tracing::info!(%model, instance = exit.instance.0, "worker ended"),
            ref reason => {
                tracing::warn!(%model, instance = exit.instance.0, "worker {reason}");
                self.died.insert(ModelId(model.clone()));
            }
        }
        if matches!(exit.reason, ExitReason::BeyondGrant { .. }) {
            self.unlearn(exit.instance);
        }
        self.instances.remove(&exit.instance);
        self.plans.remove(&exit.instance);
        let failure = Failure::new(
            FailureKind::WorkerDied,
            format!("the worker of `{model}` {}; see its log with GET /logs/{model}", exit.reason),
        );
        self.step(Event::Exited(exit.instance, failure));
        self.replay();
    }

    pub(super) fn now(&self) -> Millis {
        Millis(milliseconds(self.begun.elapsed()))
    }

    pub(super) fn step(&mut self, event: Event) {
        let note = Note::of(&event);
        let effects = self.state.step(self.now(), event);
        self.observer.observe(&note, &effects, &self.state);
        for effect in effects {
            self.carry_out(effect);
        }
        self.remember_quarantine();
    }

    fn step_or_fail(&mut self, id: InstanceId, doing: &str, event: Result<Event, Failure>) {
        let event = event.unwrap_or_else(|failure| {
            let model = self.state.instances().get(&id).map(|known| known.model.to_string()).unwrap_or_default();
            tracing::warn!(%model, instance = id.0, "{doing} failed: {failure}; its worker is ended");
            Event::Failed(id, failure)
        });
        self.step(event);
    }

    /// Asks that a model leave its device, and lets the operator know when it has.
    fn depart(
        &mut self,
        model: &ModelId,
        park: bool,
        reply: oneshot::Sender<Result<(), Failure>>,
        event: impl FnOnce(ModelId) -> Event,
    ) {
        if !self.config.models.contains_key(model) {
            return send(reply, Err(Failure::new(FailureKind::UnknownModel, format!("there is no model `{model}`"))));
        }
        let instances: Vec<InstanceId> = self.state.instances_of(model).into_iter().map(|(id, _)| id).collect();
        if park && instances.is_empty() {
            let message = format!("`{model}` is not loaded, so there is nothing to park");
            return send(reply, Err(Failure::new(FailureKind::InvalidRequest, message)));
        }
        self.step(event(model.clone()));
        self.departures.push(Departure { instances, park, reply });
    }

    fn answer_departures(&mut self) {
        for departure in std::mem::take(&mut self.departures) {
            let known = departure.instances.iter().filter_map(|id| self.state.instances().get(id));
            let states: Vec<ModelState> = known.map(|instance| instance.state).collect();
            let parked =
                departure.park && !states.is_empty() && states.iter().all(|state| *state == ModelState::Parked);
            let leaving =
                |state: &ModelState| matches!(state, ModelState::Draining | ModelState::Parking | ModelState::Stopping);
            if parked || (states.is_empty() && !departure.park) {
                send(departure.reply, Ok(()));
            } else if departure.park && !states.iter().any(leaving) {
                let message = "it could not be parked: its plugin does not park, did not give its memory back, or the host's memory does not suffice; see GET /logs/MODEL";
                send(departure.reply, Err(Failure::new(FailureKind::NotUsable, message)));
            } else {
                self.departures.push(departure);
            }
        }
    }

    pub(super) fn next_request(&mut self) -> RequestId {
        self.next_request += 1;
        RequestId(self.next_request)
    }
}

fn keep(keep_alive: KeepAlive) -> Keep {
    match keep_alive {
        KeepAlive::For(duration) => Keep::For(milliseconds(duration)),
        KeepAlive::Forever => Keep::Forever,
    }
}

/// Answers someone who may have left.
pub(super) fn send<T>(reply: oneshot::Sender<T>, value: T) {
    let _left = reply.send(value).is_err();
}

/// The last word to a granted client. It takes no more than one output, so it never waits behind itself.
pub(super) fn finish(client: mpsc::Sender<Output>, failure: Failure) {
    tokio::spawn(async move { client.send(Output::Done(Err(failure))).await.is_ok() });
}

/// Nobody tries a request again once the loop has ended: its client learns why.
pub(super) fn last_word(event: Internal) {
    if let Internal::Ended(_, Ended::Lost(client, failure)) = event {
        finish(client, failure);
    }
}

/// Posts to the loop; it is gone only when the host is.
pub(super) async fn post(events: &mpsc::Sender<Internal>, event: Internal) {
    let _over = events.send(event).await.is_err();
}
