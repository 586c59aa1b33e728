//! The loop itself: commands and internal events in, scheduler steps, effects out.

use std::sync::Arc;
use std::time::Duration;

use aihost_plugin_api::MemoryPlan;
use tokio::sync::{mpsc, oneshot, watch};

use super::Ending;
use super::access::told_of;
use super::api::{Command, KeepAlive, Submission, Submitted};
use super::clock::Clock;
use super::devices::Devices;
use super::files::WeightFiles;
use super::internal::{Internal, Stepped};
use super::observe::{EventSummary, Observer};
use super::plugins::{Plugins, Running};
use super::policy::{FoundBudgets, milliseconds, policy};
use super::prepared::Wanted;
use super::quarantine::Quarantine;
use super::records::Records;
use super::relay::{self, Decision, Lost};
use super::replay::{Job, Verdict};
use super::requests::{Departing, Goal, Pending, Requests};
use super::residents::Residents;
use super::swap_log::Swaps;
use crate::config::Config;
use crate::domain::{Device, Failure, FailureKind, InstanceId, Kind, ModelId, ModelState, RequestId};
use crate::plugin::Registry;
use crate::scheduler::{Event, Keep, State, Want};
use crate::store::Verification;
use crate::worker::{Exit, ExitReason, Placement, Started};

/// Internal events that may wait for the loop.
const EVENTS_MAX: usize = 4096;
/// Between two questions to models that nobody uses whether they are well.
pub(super) const HEALTH_EVERY: Duration = Duration::from_secs(60);
/// Between two looks at what serving instances hold.
const PEAK_LOOK_EVERY: Duration = Duration::from_millis(250);

/// Everything that the loop owns, and nobody else touches.
pub(super) struct Loop {
    pub(super) config: Arc<Config>,
    pub(super) plugins: Plugins,
    pub(super) backends: Backends,
    pub(super) state: State,
    pub(super) clock: Clock,
    pub(super) residents: Residents,
    pub(super) requests: Requests,
    pub(super) records: Records,
    pub(super) swaps: Swaps,
    pub(super) devices: Devices,
    pub(super) quarantine: Quarantine,
    pub(super) observer: Observer,
    pub(super) senders: Senders,
}

/// Who does what the loop may not wait for.
pub(super) struct Backends {
    /// Copies and hashes weights.
    pub(super) files: WeightFiles,
    /// Brings instances up.
    pub(super) placement: Arc<dyn Placement>,
}

/// Where the loop and its tasks send to.
pub(super) struct Senders {
    /// What tasks tell the loop.
    pub(super) events: mpsc::Sender<Internal>,
    /// What workers tell the loop.
    pub(super) exits: mpsc::Sender<Exit>,
    /// What everybody may read.
    pub(super) in_force: watch::Sender<Arc<Config>>,
}

/// The other ends of [`Senders`], which the loop reads.
pub(super) struct Inbox {
    events: mpsc::Receiver<Internal>,
    exits: mpsc::Receiver<Exit>,
}

impl Loop {
    pub(super) fn new(
        in_force: watch::Sender<Arc<Config>>,
        plugins: watch::Sender<Arc<Registry>>,
        placement: Arc<dyn Placement>,
    ) -> (Self, Inbox) {
        let config = Arc::clone(&in_force.borrow());
        let (events, event_inbox) = mpsc::channel(EVENTS_MAX);
        let (exits, exit_inbox) = mpsc::channel(EVENTS_MAX);
        let mut found = FoundBudgets::new();
        let registry = Arc::clone(&plugins.borrow());
        let this = Self {
            state: State::new(policy(&config, &registry, &Running::new(), &mut found)),
            devices: Devices::open(&config.paths.state, found),
            observer: Observer::new(&config),
            clock: Clock::start(),
            residents: Residents::default(),
            requests: Requests::default(),
            records: Records::default(),
            swaps: Swaps::default(),
            quarantine: Quarantine::open(&config.paths.state),
            senders: Senders { events, exits, in_force },
            backends: Backends { files: WeightFiles::new(&config.paths), placement },
            plugins: Plugins::new(plugins, &config),
            config,
        };
        (this, Inbox { events: event_inbox, exits: exit_inbox })
    }

    /// The devices of the policy in force, and what each may hold.
    pub(super) fn budgets(&self) -> Vec<(Device, u64)> {
        self.state.policy().devices.iter().map(|(device, policy)| (*device, policy.budget)).collect()
    }

    pub(super) async fn run(
        mut self,
        mut inbox: Inbox,
        mut commands: mpsc::Receiver<Command>,
        mut ending: watch::Receiver<Ending>,
    ) {
        self.recall(self.quarantine.foreign().found(&self.config, &self.plugins.registry()));
        let preload = self.config.models.values().filter(|entry| entry.preload).map(|entry| entry.id.clone());
        self.preload(preload.collect());
        let mut looks = tokio::time::interval(PEAK_LOOK_EVERY);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut rounds = tokio::time::interval_at(tokio::time::Instant::now() + HEALTH_EVERY, HEALTH_EVERY);
        rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // What still waits in the inbox at the end is dropped with it: relays notice, and tell their clients.
        while !self.is_over() {
            tokio::select! {
                Some(command) = commands.recv() => self.command(command),
                Some(event) = inbox.events.recv() => self.internal(event),
                Some(exit) = inbox.exits.recv() => {
                    self.observer.exited(&exit);
                    self.exit(exit);
                }
                () = self.clock.due() => {
                    self.clock.woken();
                    self.measure_for_waiters();
                    self.step(Event::Timer);
                }
                _ = looks.tick(), if self.requests.any_leased() => self.observe_peaks(),
                _ = rounds.tick() => self.ask_idle_health(),
                Ok(()) = ending.changed() => {
                    let how = *ending.borrow();
                    self.end(how);
                }
            }
            self.answer_departing();
        }
    }

    /// Whether a shutdown has nothing left to wait for. Workers that have not said yet what they need hold nothing and
    /// cannot be asked to go: they end with their host.
    fn is_over(&self) -> bool {
        self.state.is_over() || (self.state.is_shutting_down() && self.residents.handles().next().is_none())
    }

    /// Whoever waits with a task of one kind must not reach a model that is of another by now.
    pub(super) fn refuse_wrong_kinds(&mut self) {
        let config = Arc::clone(&self.config);
        for (id, failure) in self.requests.refused(|job| wrong_kind(&config, job)) {
            self.step(Event::Cancel(id));
            self.refuse(id, failure);
        }
    }

    fn end(&mut self, how: Ending) {
        match how {
            Ending::No => {}
            Ending::Drain => self.step(Event::Shutdown),
            // Every worker is killed; its exit ends its leases and the state.
            Ending::Abort => {
                for instance in self.residents.handles() {
                    let instance = Arc::clone(instance);
                    tokio::spawn(async move { instance.stop(Duration::ZERO).await });
                }
            }
        }
    }

    pub(super) fn command(&mut self, command: Command) {
        match command {
            Command::Submit(submission, reply) => self.submit(submission, reply),
            Command::Load(model, access, reply) => {
                access.asks_for(&model);
                let id = self.requests.ids.next();
                self.requests.wait(id, Pending::Load { model: model.clone(), access, reply });
                self.request(id, model, Want::Load, None);
            }
            Command::Unload(model, cut_after, access, reply) => {
                let cut_after_ms = cut_after.map(milliseconds);
                let event = Event::Unload { model: model.clone(), cut_after_ms };
                self.depart(&model, event, Departing::to(Goal::Cold, access, reply));
            }
            Command::Park(model, access, reply) => {
                self.depart(&model, Event::Park(model.clone()), Departing::to(Goal::Parked, access, reply));
            }
            Command::Explain(model, reply) => self.tell_plan(&model, reply),
            Command::Ping(reply) => send(reply, ()),
            Command::Status(model, reply) => {
                send(reply, self.config.models.get(&model).map(|entry| self.model_status(entry)));
            }
            Command::Models(reply) => self.tell_status(reply),
            Command::Overview(reply) => self.tell_overview(reply),
            Command::Pin(pin, reply) => self.pin(pin, reply),
            Command::Devices(reply) => self.tell_devices(reply),
            Command::Metrics(reply) => self.tell_metrics(reply),
            Command::Configure(config, reply) => self.prepare(Wanted::Other(config), None, reply),
            Command::LookAtPlugins(reply) => self.look_at_plugins(reply),
            Command::Logs(model, reply) => send(reply, self.records.log(&model).follow()),
        }
    }

    fn submit(&mut self, submission: Submission, reply: oneshot::Sender<Submitted>) {
        let job = Job::new(submission);
        if let Some(failure) = self.requests.suspects.refusal(&job) {
            self.observer.suspected(&job.model);
            return send(reply, Err(failure));
        }
        let id = self.requests.ids.next();
        let decide = relay::begin(id, reply, self.senders.events.clone(), self.requests.ids.clone());
        self.wait(id, job, decide);
    }

    fn wait(&mut self, id: RequestId, job: Job, decide: oneshot::Sender<Decision>) {
        if let Some(failure) = wrong_kind(&self.config, &job) {
            return send(decide, Decision::Refused(failure));
        }
        let (model, want, keep_alive) = (job.model.clone(), job.want(), job.keep_alive);
        self.requests.wait(id, Pending::Serve { job, decide });
        self.request(id, model, want, keep_alive);
    }

    /// Someone wants a model. What is parked may be woken at once, so the free memory is looked at now; what is cold has to
    /// plan first.
    fn request(&mut self, id: RequestId, model: ModelId, want: Want, keep_alive: Option<KeepAlive>) {
        if self.state.model_state(&model).0 == ModelState::Parked {
            self.measure(&model);
        }
        self.step(Event::Request { id, model, want, keep: keep_alive.map(keep) });
    }

    /// A lease is over. If its worker died under it and the client has seen nothing, it is tried again, on trial.
    fn ended(&mut self, id: RequestId, lost: Option<Lost>) {
        let ended = self.requests.end_lease(id, lost, self.clock.now());
        if let Some((instance, access)) = &ended
            && self.residents.handle(*instance).is_some_and(|handle| handle.is_lost())
        {
            self.records.told.broke(*instance, access.clone());
        }
        self.step(Event::Done(id));
        if let Some((instance, access)) = ended
            && access.facts().is_fault
        {
            self.ask_health(instance, Some(access));
        }
        self.replay();
    }

    /// Tries again what lost its worker, once that worker is known to be gone.
    fn replay(&mut self) {
        let known = self.state.instances();
        for orphan in self.requests.orphans_of_the_gone(|id| known.contains_key(&id)) {
            let access = orphan.job.access.clone();
            let (model, Lost { failure, again, decide }) = (orphan.job.model.clone(), orphan.lost);
            match self.requests.suspects.judge(orphan.job, orphan.lease, failure) {
                Verdict::Again(job) => self.submit_again(again, job, decide),
                Verdict::Refused(failure) => {
                    self.observer.given_up(&model);
                    send(decide, Decision::Refused(failure));
                }
                Verdict::Quarantined(model, failure) => {
                    self.observer.given_up(&model);
                    let request_id = told_of([&access]);
                    tracing::warn!(%model, request_id, "quarantined: {failure}");
                    self.records.told.knows_quarantined(&model);
                    send(decide, Decision::Refused(failure.clone()));
                    self.step(Event::Quarantine(model, failure));
                }
            }
        }
    }

    fn submit_again(&mut self, id: RequestId, job: Job, decide: oneshot::Sender<Decision>) {
        tracing::debug!(model = %job.model, request_id = job.access.id(), "trying a request again whose worker died");
        // Its client may have left before anyone asked for it again.
        let left = decide.is_closed();
        self.wait(id, job, decide);
        if left {
            self.left(id);
        }
    }

    /// The client of a waiting request left.
    fn left(&mut self, id: RequestId) {
        let Some(pending) = self.requests.take_pending(id) else { return };
        self.step(Event::Cancel(id));
        if let Pending::Serve { job, .. } = pending
            && !self.requests.is_wanted(&job.model)
        {
            // Files that nobody waits for are not copied or hashed to their end; what was done is kept.
            let instances = self.state.instances_of(&job.model).into_iter();
            instances.filter_map(|(instance, _)| self.residents.check(instance)).for_each(Verification::stop);
        }
    }

    fn internal(&mut self, event: Internal) {
        match event {
            Internal::Stepped(id, stepped) => {
                self.residents.end_step(id);
                self.stepped(id, stepped);
                if let Some(exit) = self.residents.exit_that_waited(id) {
                    self.exit(exit);
                }
            }
            Internal::Ended(id, lost) => self.ended(id, lost),
            Internal::Left(id) => self.left(id),
            Internal::Health(id, health) => self.health_told(id, health),
            Internal::Prepared(prepared, configuring) => self.put_in_force(*prepared, configuring),
            Internal::Looked(reply) => self.looked(reply),
            Internal::LookedToStart(id) => self.looked_to_start(id),
            Internal::BringUp(id) => self.bring_up(id),
            Internal::Preload(model, reply) => self.preload_one(model, reply),
        }
        // Whether files are hashed is seen between steps.
        self.note_swaps(&None);
    }

    fn stepped(&mut self, id: InstanceId, stepped: Stepped) {
        match stepped {
            Stepped::Started(started) => self.started(id, started),
            Stepped::Loaded(loaded) => self.loaded(id, loaded),
            Stepped::Parked(parked) => {
                if let (Ok(held), Some(instance)) = (&parked, self.residents.handle(id))
                    && let Some(allowance) = self.allowance_parked(id, *held)
                {
                    instance.allow(allowance);
                }
                if let (Ok(_), Some(known)) = (&parked, self.state.instances().get(&id)) {
                    let model = known.model.clone();
                    self.tell_left(id, &model, "parked");
                }
                self.step(
                    parked
                        .map_or_else(|failure| Event::Failed(id, failure), |held| Event::Parked { instance: id, held }),
                );
            }
            Stepped::Unparked(hot) => {
                if let (Ok(()), Some(known)) = (&hot, self.state.instances().get(&id)) {
                    self.records.count_wake(&known.model);
                    self.tell_hot(id, "woken");
                }
                self.step(hot.map_or_else(|failure| Event::Failed(id, failure), |()| Event::Unparked(id)));
            }
        }
    }

    fn started(&mut self, id: InstanceId, started: Started) {
        let known = self.state.instances().get(&id).filter(|known| known.state == ModelState::Starting);
        match (started, known.map(|known| known.model.clone())) {
            (Ok((instance, plan)), Some(model)) => {
                self.doubt(id, &model, &plan);
                self.residents.is_up(id, instance);
                match self.refused_plan(id, &model, &plan) {
                    Some(failure) => self.step(Event::Failed(id, failure)),
                    None => self.planned(id, &model, plan),
                }
            }
            // It was stopped meanwhile; the worker goes with its only handle, and its exit is reported.
            (Ok((instance, _)), None) => drop(instance),
            // The copying or the check of its files was stopped because nobody waited, and someone does by now.
            (Err(failure), Some(model))
                if failure.kind == FailureKind::Cancelled && self.requests.is_wanted(&model) =>
            {
                self.start(id, &model);
            }
            (Err(failure), _) => {
                self.step(Event::Failed(id, failure.clone()));
                // No worker is left.
                self.step(Event::Exited(id, failure));
                self.records.told.forget(id);
            }
        }
    }

    fn planned(&mut self, id: InstanceId, model: &ModelId, plan: MemoryPlan) {
        if let Some(config) = self.config.models.get(model).cloned()
            && !plan.facts.is_unknown()
        {
            let (known, facts) = (Arc::clone(&self.devices.facts), plan.facts.clone());
            tokio::task::spawn_blocking(move || known.learn(&config, facts));
        }
        let (mapped, pinned) = (plan.mapped, plan.pinned);
        let preferred = plan.preferred.saturating_add(plan.workspace_max);
        let required = self.need(id, plan);
        let preferred = self.fixed_memory(id).unwrap_or(preferred.max(required));
        self.measure(model);
        if pinned > 0 {
            self.measure_device(self.state.policy().host_memory);
        }
        let mapped = self.mapped(id, mapped.min(required));
        self.step(Event::Planned { instance: id, required, preferred, mapped });
    }

    fn loaded(&mut self, id: InstanceId, loaded: Result<u64, Failure>) {
        match loaded {
            Ok(held) => {
                if let Some(planned) = self.residents.planned_mut(id) {
                    planned.held = held;
                }
                if let Some(known) = self.state.instances().get(&id) {
                    self.records.count_load(&known.model);
                    self.ask_facts(id, &known.model);
                    self.tell_hot(id, "loaded");
                }
                self.step(Event::Loaded(id));
            }
            Err(failure) => self.step(Event::Failed(id, failure)),
        }
    }

    /// What an engine that answers HTTP itself says of its model, beside what it serves.
    fn ask_facts(&self, id: InstanceId, model: &ModelId) {
        let config = self.config.models.get(model).filter(|config| matches!(config.kind, Kind::Text | Kind::Embedding));
        let (Some(config), Some(instance)) = (config.cloned(), self.residents.handle(id)) else { return };
        let (asked, known) = (instance.facts(config.engine_name().to_owned()), Arc::clone(&self.devices.facts));
        tokio::spawn(async move {
            let Some(facts) = asked.await else { return };
            tokio::task::spawn_blocking(move || known.add(&config, facts));
        });
    }

    fn exit(&mut self, exit: Exit) {
        let Some(Exit { instance: id, reason }) = self.residents.exit_to_hear(exit) else { return };
        // The scheduler may have no such instance any more: its start had failed, and that was its end.
        if let Some(model) = self.state.instances().get(&id).map(|instance| instance.model.clone()) {
            self.exited(id, &model, &reason);
        }
        self.residents.remove(id);
        self.replay();
    }

    fn exited(&mut self, id: InstanceId, model: &ModelId, reason: &ExitReason) {
        self.tell_exit(id, model, reason);
        if *reason != ExitReason::Asked {
            self.records.died(model);
        }
        if matches!(reason, ExitReason::BeyondGrant { .. }) {
            self.unlearn(id);
        }
        let had_pinned = self.residents.planned(id).is_some_and(|planned| planned.plan.pinned > 0);
        self.residents.remove(id);
        if had_pinned {
            self.measure_device(self.state.policy().host_memory);
        }
        let message = format!("the worker of `{model}` {reason}");
        self.step(Event::Exited(id, Failure::new(FailureKind::WorkerDied, message)));
        self.records.told.forget(id);
    }

    pub(super) fn step(&mut self, event: Event) {
        let summary = EventSummary::of(&event);
        let failed = Self::failed_by(&event);
        let effects = self.state.step(self.clock.now(), event);
        self.tell(&failed, &effects);
        self.observer.observe(&summary, &effects, &self.state);
        self.note_swaps(&failed);
        for effect in effects {
            self.carry_out(effect);
        }
    }
}

/// Why a task cannot be given to the model that it names.
fn wrong_kind(config: &Config, job: &Job) -> Option<Failure> {
    let entry = config.models.get(&job.model).filter(|entry| entry.kind != job.kind)?;
    let message = format!(
        "`{}` serves {} by now: this request was made for one that serves {}",
        job.model,
        entry.kind.name(),
        job.kind.name()
    );
    Some(Failure::new(FailureKind::WrongKind, message))
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
