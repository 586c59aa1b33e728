//! The state, and what each event does to it before it settles.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::effect::Effect;
use super::event::{Event, Want};
use super::policy::{Keep, Mapped, Need, Policy};
use super::trial::Trial;
use crate::domain::{Device, EvictionCause, Failure, FailureKind, InstanceId, Millis, ModelId, ModelState, RequestId};

/// First pause after a failed load, milliseconds; doubles with each failure in a row.
const COOLDOWN_FIRST_MS: u64 = 1_000;
/// Longest pause after failed loads, milliseconds.
const COOLDOWN_MAX_MS: u64 = 60_000;
/// Crashes in a row while coming up after which a model is quarantined.
const LOAD_CRASHES_MAX: u32 = 3;

/// Whether the host takes work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Phase {
    /// New work is taken.
    #[default]
    Running,
    /// It ends when the leases have ended.
    ShuttingDown,
}

/// The scheduler's whole state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub(super) policy: Arc<Policy>,
    pub(super) phase: Phase,
    pub(super) now: Millis,
    pub(super) queues: BTreeMap<ModelId, VecDeque<Waiter>>,
    pub(super) instances: BTreeMap<InstanceId, Instance>,
    pub(super) cooldowns: BTreeMap<ModelId, Cooldown>,
    /// What each model was last seen to need, to cost and to do.
    pub(super) history: BTreeMap<ModelId, LoadHistory>,
    /// Bytes that instances may hold together as measured; less than the budget if others use the device.
    pub(super) measured: BTreeMap<Device, u64>,
    next_instance: u64,
}

/// A request that waits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Waiter {
    pub(super) id: RequestId,
    pub(super) want: Want,
    pub(super) since: Millis,
    pub(super) awaits: Awaits,
    pub(super) keep: Option<Keep>,
}

/// What a waiter waits for now, and since when. An eviction, a crash or a load turns one into the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Awaits {
    /// No instance of its model is hot.
    Load(Millis),
    /// One is, and has no lease for it.
    Slot(Millis),
}

/// A model whose last load failed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Cooldown {
    pub(super) until: Millis,
    failures: u32,
    /// Crashes in a row, among the failures.
    crashes: u32,
    failure: Failure,
}

/// What earlier loads of a model tell of the next.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct LoadHistory {
    /// Milliseconds it last took to become hot, from disk or from host memory.
    pub(super) cost_ms: u64,
    /// What it last planned to need.
    pub(super) need: Need,
    /// Bytes of host memory it held when it was last parked.
    pub(super) held: Option<u64>,
    /// The newest instance whose park or wake failed: of what is made of the same files, none is parked again.
    pub(super) stays_out: Option<InstanceId>,
    /// The first instance that is made of the files that are there now, if others lay there before.
    pub(super) renewed: Option<InstanceId>,
    /// Its last load ran out of memory, and others were evicted for another try.
    pub(super) retried: bool,
    /// When requests were last on trial here whose worker had died.
    pub(super) tried: Millis,
}

/// One instance as the scheduler sees it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Instance {
    /// What it holds or will hold.
    pub model: ModelId,
    /// The device that it is on.
    pub device: Device,
    /// Never `Cold` or `Failed`: those are states of models without an instance.
    pub state: ModelState,
    /// Bytes it cannot do without; 0 until planned.
    pub required: u64,
    /// Bytes it would take.
    pub preferred: u64,
    /// The part of `required` that lies in mapped files.
    pub mapped: Mapped,
    /// Bytes set aside for it on the device.
    pub reserved: u64,
    /// Bytes it was loaded within, and takes again when it is woken; 0 until then.
    pub granted: u64,
    /// Bytes of host memory it holds while it is parked.
    pub held: u64,
    /// Requests that hold a lease.
    pub leases: BTreeSet<RequestId>,
    /// When its state last changed.
    pub since: Millis,
    /// When its last lease ended, or it became hot.
    pub used: Millis,
    /// While those who hold a lease are on trial.
    pub(super) trial: Option<Trial>,
    /// What the last request said of how long it stays.
    pub(super) keep: Option<Keep>,
    /// Once drained: whether it parks instead of stopping.
    pub(super) parks_next: bool,
    /// While draining: why.
    pub(super) cause: EvictionCause,
    /// While draining: when its leases are cut.
    pub(super) cut_at: Option<Millis>,
}

impl State {
    /// An empty host under this policy.
    pub fn new(policy: impl Into<Arc<Policy>>) -> Self {
        Self {
            policy: policy.into(),
            phase: Phase::Running,
            now: Millis::default(),
            queues: BTreeMap::new(),
            instances: BTreeMap::new(),
            cooldowns: BTreeMap::new(),
            history: BTreeMap::new(),
            measured: BTreeMap::new(),
            next_instance: 0,
        }
    }

    /// Takes one event at a time that never goes back, and returns what is to be done about it, in order.
    pub fn step(&mut self, now: Millis, event: Event) -> Vec<Effect> {
        self.now = self.now.max(now);
        let mut effects = Vec::new();
        self.apply(event, &mut effects);
        self.schedule(&mut effects);
        effects
    }

    /// What is in force.
    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// Whether no work is taken any more.
    pub fn is_shutting_down(&self) -> bool {
        self.phase == Phase::ShuttingDown
    }

    /// Whether nothing is left to wait for after a shutdown.
    pub fn is_over(&self) -> bool {
        self.phase == Phase::ShuttingDown && self.instances.is_empty()
    }

    /// A model's instances, the one that is furthest on its way first.
    pub fn instances_of(&self, model: &ModelId) -> Vec<(InstanceId, &Instance)> {
        let mut found: Vec<_> =
            self.instances.iter().filter(|(_, known)| known.model == *model).map(|(id, known)| (*id, known)).collect();
        found.sort_by_key(|(id, known)| (known.state.distance(), *id));
        found
    }

    /// The instance of a model that is furthest on its way, if it has one.
    pub fn instance_of(&self, model: &ModelId) -> Option<(InstanceId, &Instance)> {
        self.instances_of(model).into_iter().next()
    }

    /// Every instance by its number.
    pub fn instances(&self) -> &BTreeMap<InstanceId, Instance> {
        &self.instances
    }

    /// Bytes that instances may hold together on a device, by the configuration.
    pub fn budget(&self, device: Device) -> u64 {
        self.policy.devices.get(&device).map_or(0, |policy| policy.budget)
    }

    /// Requests waiting for a model.
    pub fn queued(&self, model: &ModelId) -> usize {
        self.queues.get(model).map_or(0, VecDeque::len)
    }

    /// Where a model stands, with the failure that keeps it from loading.
    pub fn model_state(&self, model: &ModelId) -> (ModelState, Option<Failure>) {
        let failure = self.cooldowns.get(model).map(|cooldown| cooldown.refusal(model));
        match self.instance_of(model) {
            Some((_, instance)) => (instance.state, failure),
            None if failure.is_some() => (ModelState::Failed, failure),
            None => (ModelState::Cold, None),
        }
    }

    /// Models of which there is more to say than that they are cold; some of them more than once.
    pub fn touched(&self) -> impl Iterator<Item = &ModelId> {
        let of_instances = self.instances.values().map(|instance| &instance.model);
        of_instances.chain(self.queues.keys()).chain(self.cooldowns.keys())
    }

    /// Milliseconds a model needs yet until it is hot, if it is on its way and has been hot before.
    pub fn left_ms(&self, now: Millis, model: &ModelId) -> Option<u64> {
        let (_, instance) = self.instance_of(model)?;
        let cost = self.history.get(model).map(|known| known.cost_ms).filter(|cost| *cost > 0)?;
        let is_coming = matches!(instance.state, ModelState::Loading | ModelState::Unparking);
        is_coming.then(|| cost.saturating_sub(now.since(instance.since)))
    }

    /// Every request that waits: for which model, since when, and whether only for a slot of one that is hot.
    pub fn waiting(&self) -> impl Iterator<Item = (&ModelId, RequestId, Millis, bool)> {
        self.queues.iter().flat_map(|(model, queue)| {
            queue.iter().map(move |waiter| (model, waiter.id, waiter.since, matches!(waiter.awaits, Awaits::Slot(_))))
        })
    }

    /// Milliseconds that whoever came first of those who wait for a model has waited.
    pub fn oldest_wait_ms(&self, now: Millis, model: &ModelId) -> Option<u64> {
        let waits = self.queues.get(model)?.iter().map(|waiter| now.since(waiter.since));
        waits.max()
    }

    /// Requests waiting, by model.
    pub fn queues(&self) -> impl Iterator<Item = (&ModelId, usize)> {
        self.queues.iter().map(|(model, queue)| (model, queue.len()))
    }

    /// Whether nobody may have a model until an operator says so.
    pub fn is_quarantined(&self, model: &ModelId) -> bool {
        self.cooldowns.get(model).is_some_and(Cooldown::is_quarantine)
    }

    /// Models that nobody may have until an operator says so, and what happened to them.
    pub fn quarantined(&self) -> impl Iterator<Item = (&ModelId, &Failure)> {
        let quarantined = self.cooldowns.iter().filter(|(_, cooldown)| cooldown.is_quarantine());
        quarantined.map(|(model, cooldown)| (model, &cooldown.failure))
    }

    /// So much of a device can be had for this host's instances, as measured.
    pub fn measure(&mut self, device: Device, bytes: u64) {
        self.measured.insert(device, bytes);
    }

    /// What was measured last.
    pub fn measured(&self, device: Device) -> Option<u64> {
        self.measured.get(&device).copied()
    }

    /// What the event changes by itself; consequences are [`Self::schedule`]'s.
    fn apply(&mut self, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::Request { id, model, want, keep } => {
                let waiter = Waiter { id, want, since: self.now, awaits: Awaits::Load(self.now), keep };
                self.enqueue(waiter, model, effects);
            }
            Event::Cancel(id) => self.queues.values_mut().for_each(|queue| queue.retain(|waiter| waiter.id != id)),
            Event::Done(id) => self.end_lease(id),
            Event::Planned { instance, required, preferred, mapped } => {
                self.planned(instance, required, preferred, mapped);
            }
            Event::Loaded(id) => self.became_hot(id, ModelState::Loading, effects),
            Event::Unparked(id) => self.became_hot(id, ModelState::Unparking, effects),
            Event::Parked { instance, held } => self.parked(instance, held),
            Event::Failed(id, failure) => self.failed(id, failure, effects),
            Event::Exited(id, failure) => self.exited(id, failure, effects),
            Event::Unload { model, cut_after_ms } => self.unload(&model, cut_after_ms, effects),
            Event::Park(model) => self.park_model(&model),
            Event::Quarantine(model, failure) => self.quarantine(&model, failure, effects),
            Event::Measured(device, bytes) => self.measure(device, bytes),
            Event::Configure { policy, anew } => self.configure(policy, &anew, effects),
            Event::Renew(models) => self.renew(&models, effects),
            Event::Timer => {}
            Event::Shutdown => self.shut_down(effects),
        }
    }

    fn end_lease(&mut self, id: RequestId) {
        let now = self.now;
        for instance in self.instances.values_mut() {
            if instance.leases.remove(&id) {
                instance.used = now;
            }
        }
    }

    fn planned(&mut self, id: InstanceId, required: u64, preferred: u64, mapped: Mapped) {
        let now = self.now;
        if let Some(instance) = self.instances.get_mut(&id)
            && instance.state == ModelState::Starting
        {
            instance.required = required;
            instance.preferred = preferred.max(required);
            instance.mapped = mapped;
            self.history.entry(instance.model.clone()).or_default().need = instance.needs();
            instance.enter(ModelState::Waiting, now);
        }
    }

    fn became_hot(&mut self, id: InstanceId, from: ModelState, effects: &mut Vec<Effect>) {
        let now = self.now;
        if let Some(instance) = self.instances.get_mut(&id)
            && instance.state == from
        {
            let model = instance.model.clone();
            let known = self.history.entry(model.clone()).or_default();
            known.cost_ms = now.since(instance.since);
            known.retried = false;
            instance.held = 0;
            instance.keep = None;
            instance.used = now;
            instance.enter(ModelState::Hot, now);
            self.forgive(&model, effects);
        }
    }

    fn parked(&mut self, id: InstanceId, held: u64) {
        let now = self.now;
        if let Some(instance) = self.instances.get_mut(&id)
            && instance.state == ModelState::Parking
        {
            self.history.entry(instance.model.clone()).or_default().held = Some(held);
            instance.reserved = 0;
            instance.held = held;
            instance.enter(ModelState::Parked, now);
        }
    }

    fn failed(&mut self, id: InstanceId, failure: Failure, effects: &mut Vec<Effect>) {
        let Some((model, state)) = self.instances.get(&id).map(|i| (i.model.clone(), i.state)) else { return };
        match state {
            ModelState::Stopping => {}
            // Whoever waits gets a fresh worker instead.
            ModelState::Parking | ModelState::Parked | ModelState::Unparking => {
                self.history.entry(model).or_default().stays_out(id);
                self.stop(id, EvictionCause::Failed, effects);
            }
            ModelState::Hot | ModelState::Draining => self.drain(id, EvictionCause::Failed, effects),
            ModelState::Loading if failure.kind == FailureKind::OutOfMemory && self.evict_for_retry(id, effects) => {
                self.stop(id, EvictionCause::Failed, effects);
            }
            _ => {
                self.stop(id, EvictionCause::Failed, effects);
                self.fail_model(&model, failure, effects);
            }
        }
    }

    fn exited(&mut self, id: InstanceId, failure: Failure, effects: &mut Vec<Effect>) {
        let Some(instance) = self.instances.remove(&id) else { return };
        if instance.trial.is_some() {
            self.history.entry(instance.model.clone()).or_default().tried = self.now;
        }
        // Leases end by their own Done events; the worker's death has reached each of them as a failure.
        match instance.state {
            ModelState::Starting | ModelState::Waiting | ModelState::Loading => {
                self.fail_model(&instance.model, failure, effects);
            }
            // Whoever waits gets a fresh worker.
            ModelState::Parking | ModelState::Unparking => {
                self.history.entry(instance.model).or_default().stays_out(id);
            }
            _ => {}
        }
    }

    fn unload(&mut self, model: &ModelId, cut_after_ms: Option<u64>, effects: &mut Vec<Effect>) {
        let ids: Vec<InstanceId> = self.instances_of(model).into_iter().map(|(id, _)| id).collect();
        if ids.is_empty() {
            // Nothing to unload but the memory of its failure: its next request tries anew.
            self.forgive(model, effects);
        }
        for id in ids {
            let Some(instance) = self.instances.get_mut(&id) else { continue };
            let coming_up = match instance.state {
                ModelState::Starting | ModelState::Waiting | ModelState::Loading | ModelState::Unparking => true,
                ModelState::Parked => self.queues.contains_key(model),
                _ => false,
            };
            instance.cut_at = cut_after_ms.map(|after| self.now.after(after));
            self.drain(id, EvictionCause::Asked, effects);
            if coming_up {
                // An operator's word counts more than the waiters': they learn it at once instead of loading it again.
                let message = format!("`{model}` was unloaded while it was loading; send the request again");
                self.refuse_all(model, &Failure::new(FailureKind::ShuttingDown, message), effects);
            }
        }
    }

    fn park_model(&mut self, model: &ModelId) {
        let hot = |(id, instance): (InstanceId, &Instance)| {
            // What drains for another reason goes for good.
            let may = instance.state == ModelState::Hot || instance.parks_next;
            may.then_some(id)
        };
        for id in self.instances_of(model).into_iter().filter_map(hot).collect::<Vec<_>>() {
            if !self.parks(id) {
                continue;
            }
            let now = self.now;
            if let Some(instance) = self.instances.get_mut(&id) {
                instance.parks_next = true;
                instance.cause = EvictionCause::Asked;
                instance.enter(ModelState::Draining, now);
            }
        }
    }

    fn quarantine(&mut self, model: &ModelId, failure: Failure, effects: &mut Vec<Effect>) {
        self.drain_all(model, EvictionCause::Failed, effects);
        self.refuse_all(model, &failure, effects);
        self.cool_down(model, Cooldown::quarantine(failure), effects);
    }

    /// Goes through what is held, never through what is configured: there may be a hundred thousand models.
    fn configure(&mut self, policy: Arc<Policy>, anew: &BTreeSet<ModelId>, effects: &mut Vec<Effect>) {
        self.policy = policy;
        let gone = |model: &&ModelId| !self.policy.models.contains_key(*model);
        let gone: Vec<ModelId> = self.queues.keys().filter(gone).cloned().collect();
        for model in gone {
            let failure = Failure::new(FailureKind::UnknownModel, format!("there is no model `{model}` any more"));
            self.refuse_all(&model, &failure, effects);
        }
        let stays = |instance: &Instance| {
            let model = self.policy.models.get(&instance.model).filter(|_| !anew.contains(&instance.model));
            model.is_some_and(|model| model.devices.contains(&instance.device))
                && self.policy.devices.contains_key(&instance.device)
        };
        for id in self.ids_where(|_, instance| !stays(instance)) {
            self.drain(id, EvictionCause::Reload, effects);
        }
        self.leave_overfull(effects);
        self.forget(anew, effects);
    }

    /// Their failures are forgotten, and all that was learned where nothing is up: what is up is as it was.
    fn renew(&mut self, models: &BTreeSet<ModelId>, effects: &mut Vec<Effect>) {
        let is_up = |model: &ModelId| self.instances.values().any(|instance| instance.model == *model);
        let (up, gone): (BTreeSet<ModelId>, BTreeSet<ModelId>) = models.iter().cloned().partition(is_up);
        let next = InstanceId(self.next_instance + 1);
        for model in &up {
            self.forgive(model, effects);
            self.history.entry(model.clone()).or_default().renewed = Some(next);
        }
        self.forget(&gone, effects);
    }

    /// What was learned of these models' old entries is forgotten with them. Takes as long as the shorter list is.
    fn forget(&mut self, models: &BTreeSet<ModelId>, effects: &mut Vec<Effect>) {
        let held = self.cooldowns.len() + self.history.len();
        let learned: Vec<ModelId> = if models.len() <= held {
            models.iter().cloned().collect()
        } else {
            self.cooldowns.keys().chain(self.history.keys()).filter(|model| models.contains(*model)).cloned().collect()
        };
        for model in learned {
            self.forgive(&model, effects);
            self.history.remove(&model);
        }
    }

    fn shut_down(&mut self, effects: &mut Vec<Effect>) {
        self.phase = Phase::ShuttingDown;
        let failure = Failure::new(FailureKind::ShuttingDown, "the host is shutting down");
        for model in self.queues.keys().cloned().collect::<Vec<_>>() {
            self.refuse_all(&model, &failure, effects);
        }
        for id in self.instances.keys().copied().collect::<Vec<_>>() {
            self.drain(id, EvictionCause::Asked, effects);
        }
    }

    /// Every waiter learns the real cause, and the model pauses before it is tried again.
    pub(super) fn fail_model(&mut self, model: &ModelId, failure: Failure, effects: &mut Vec<Effect>) {
        self.refuse_all(model, &failure, effects);
        self.history.entry(model.clone()).or_default().retried = false;
        // What only a person can mend is looked at anew with each request: a pull or an edit must not wait for a timer.
        if matches!(
            failure.kind,
            FailureKind::NotPulled | FailureKind::NoPlugin | FailureKind::Cancelled | FailureKind::ShuttingDown
        ) {
            return;
        }
        let (failures, crashes) = self.cooldowns.get(model).map_or((0, 0), |last| (last.failures, last.crashes));
        let crashes = if failure.kind == FailureKind::WorkerDied { crashes + 1 } else { 0 };
        let pause = COOLDOWN_FIRST_MS.saturating_mul(1 << failures.min(16)).min(COOLDOWN_MAX_MS);
        let cooldown = if crashes < LOAD_CRASHES_MAX {
            Cooldown { until: self.now.after(pause), failures: failures + 1, crashes, failure }
        } else {
            Cooldown::quarantine(failure)
        };
        self.cool_down(model, cooldown, effects);
    }

    /// The only place where a model begins to be refused for its failures.
    fn cool_down(&mut self, model: &ModelId, cooldown: Cooldown, effects: &mut Vec<Effect>) {
        let is_quarantine = cooldown.is_quarantine();
        let before = self.cooldowns.insert(model.clone(), cooldown);
        if before.is_some_and(|before| before.is_quarantine()) != is_quarantine {
            effects.push(Effect::RememberQuarantine);
        }
    }

    /// The only place where its failures are forgotten.
    fn forgive(&mut self, model: &ModelId, effects: &mut Vec<Effect>) {
        if self.cooldowns.remove(model).is_some_and(|before| before.is_quarantine()) {
            effects.push(Effect::RememberQuarantine);
        }
    }

    /// A new instance's worker starts.
    pub(super) fn start(&mut self, model: &ModelId, device: Device, effects: &mut Vec<Effect>) {
        self.next_instance += 1;
        let id = InstanceId(self.next_instance);
        if let Some(known) = self.history.get_mut(model).filter(|known| known.renewed == Some(id)) {
            // What another build held while it was parked is nothing to this one.
            known.held = None;
        }
        let instance = Instance {
            model: model.clone(),
            device,
            state: ModelState::Starting,
            required: 0,
            preferred: 0,
            mapped: Mapped::default(),
            reserved: 0,
            granted: 0,
            held: 0,
            leases: BTreeSet::new(),
            since: self.now,
            used: self.now,
            trial: None,
            keep: None,
            parks_next: false,
            cause: EvictionCause::Asked,
            cut_at: None,
        };
        self.instances.insert(id, instance);
        effects.push(Effect::Start { instance: id, model: model.clone(), device });
    }

    /// The instance is to go: at once if it holds no lease, else once they have ended.
    pub(super) fn drain(&mut self, id: InstanceId, cause: EvictionCause, effects: &mut Vec<Effect>) {
        let now = self.now;
        match self.instances.get_mut(&id) {
            None => {}
            Some(instance) if instance.state == ModelState::Stopping => {}
            Some(instance) if instance.leases.is_empty() => self.stop(id, cause, effects),
            Some(instance) => {
                instance.parks_next = false;
                instance.cause = cause;
                instance.enter(ModelState::Draining, now);
            }
        }
    }

    fn drain_all(&mut self, model: &ModelId, cause: EvictionCause, effects: &mut Vec<Effect>) {
        for id in self.instances_of(model).into_iter().map(|(id, _)| id).collect::<Vec<_>>() {
            self.drain(id, cause, effects);
        }
    }

    /// The only place an instance begins to stop. It must hold no lease.
    pub(super) fn stop(&mut self, id: InstanceId, cause: EvictionCause, effects: &mut Vec<Effect>) {
        let now = self.now;
        if let Some(instance) = self.instances.get_mut(&id) {
            debug_assert!(instance.leases.is_empty(), "an instance that holds a lease is never stopped");
            instance.enter(ModelState::Stopping, now);
            effects.push(Effect::Stop(id, cause));
        }
    }

    /// The only place an instance begins to park. It must hold no lease.
    pub(super) fn park(&mut self, id: InstanceId, cause: EvictionCause, effects: &mut Vec<Effect>) {
        let now = self.now;
        // What it will hold in host memory is set aside now; in host memory itself it holds that already.
        let held = self.instances.get(&id).filter(|instance| instance.device != self.policy.host_memory);
        let held = held.map_or(0, |instance| self.held_parked(instance));
        if let Some(instance) = self.instances.get_mut(&id) {
            debug_assert!(instance.leases.is_empty(), "an instance that holds a lease is never parked");
            instance.held = held;
            instance.enter(ModelState::Parking, now);
            effects.push(Effect::Park(id, cause));
        }
    }
}

impl LoadHistory {
    /// A park or a wake of this instance failed.
    fn stays_out(&mut self, id: InstanceId) {
        self.stays_out = self.stays_out.max(Some(id));
    }

    /// Whether an instance is made of files whose instances cannot park.
    pub(super) fn keeps_out(&self, id: InstanceId) -> bool {
        let is_of_now = |id: InstanceId| self.renewed.is_none_or(|first| id >= first);
        self.stays_out.is_some_and(|failed| is_of_now(failed) || !is_of_now(id))
    }
}

impl Cooldown {
    /// One that only an operator ends. After one more crash it begins anew.
    fn quarantine(failure: Failure) -> Self {
        Self { until: Millis(u64::MAX), failures: 0, crashes: LOAD_CRASHES_MAX, failure }
    }

    pub(super) fn is_quarantine(&self) -> bool {
        self.until == Millis(u64::MAX)
    }

    /// What those are told who want the model meanwhile.
    pub(super) fn refusal(&self, model: &ModelId) -> Failure {
        if !self.is_quarantine() {
            return self.failure.clone();
        }
        let message = format!(
            "{}; `{model}` is quarantined because its workers die: once it is mended, `aihost models load {model}`",
            self.failure
        );
        Failure::new(FailureKind::NotUsable, message)
    }
}

impl Instance {
    /// What it must have to be brought up.
    pub(super) fn needs(&self) -> Need {
        Need { bytes: self.required.max(self.granted), mapped: self.mapped }
    }

    pub(super) fn enter(&mut self, state: ModelState, now: Millis) {
        self.state = state;
        self.since = now;
    }
}
