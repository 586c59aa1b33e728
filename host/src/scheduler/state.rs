//! The state, and what each event does to it before it settles.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::effect::Effect;
use super::event::{Event, Want};
use crate::domain::{DeviceId, Failure, FailureKind, InstanceId, Millis, ModelId, ModelState, RequestId};

/// First pause after a failed load, milliseconds; doubles with each failure in a row.
const COOLDOWN_FIRST_MS: u64 = 1_000;
/// Longest pause after failed loads, milliseconds.
const COOLDOWN_MAX_MS: u64 = 60_000;

/// What the scheduler must know of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Policy {
    /// Models by name.
    pub models: BTreeMap<ModelId, ModelPolicy>,
    /// Devices by name.
    pub devices: BTreeMap<DeviceId, DevicePolicy>,
    /// Most waiting requests per model.
    pub queue_max: usize,
    /// A waiter this old closes the gate of the model in its way, milliseconds.
    pub max_wait_ms: u64,
    /// The least time a model serves before it yields, milliseconds.
    pub quantum_ms: u64,
    /// Longest wait for a grant, milliseconds.
    pub hold_ms: u64,
}

/// Policy of one model.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ModelPolicy {
    /// Devices it may use, in order of preference; at least one.
    pub devices: Vec<DeviceId>,
    /// Leases at once; at least 1.
    pub leases_max: usize,
    /// Never evicted.
    pub pin: bool,
    /// Higher is evicted later.
    pub priority: i32,
    /// Idle milliseconds until it is stopped; `None` is never.
    pub keep_alive_ms: Option<u64>,
}

/// Policy of one device.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DevicePolicy {
    /// Bytes that instances may hold together.
    pub budget: u64,
    /// Instances at once.
    pub loaded_max: Option<usize>,
}

/// Whether the host takes work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Phase {
    /// It does.
    #[default]
    Running,
    /// It ends when the leases have ended.
    ShuttingDown,
}

/// The scheduler's whole state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct State {
    pub(super) policy: Policy,
    pub(super) phase: Phase,
    pub(super) now: Millis,
    pub(super) queues: BTreeMap<ModelId, VecDeque<Waiter>>,
    pub(super) instances: BTreeMap<InstanceId, Instance>,
    pub(super) cooldowns: BTreeMap<ModelId, Cooldown>,
    /// Measured time from start of load to hot, milliseconds.
    pub(super) load_cost_ms: BTreeMap<ModelId, u64>,
    next_instance: u64,
}

/// A request that waits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Waiter {
    pub(super) id: RequestId,
    pub(super) want: Want,
    pub(super) since: Millis,
}

/// A model whose last load failed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Cooldown {
    pub(super) until: Millis,
    pub(super) failures: u32,
    pub(super) failure: Failure,
}

/// One instance as the scheduler sees it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Instance {
    /// What it holds or will hold.
    pub model: ModelId,
    /// Where.
    pub device: DeviceId,
    /// Never `Cold` or `Failed`: those are states of models without an instance.
    pub state: ModelState,
    /// Bytes it cannot do without; 0 until planned.
    pub required: u64,
    /// Bytes it would take.
    pub preferred: u64,
    /// Bytes set aside for it on the device.
    pub reserved: u64,
    /// Requests that hold a lease.
    pub leases: BTreeSet<RequestId>,
    /// Whether the one lease suffers no other beside it.
    pub solo: bool,
    /// When its state last changed.
    pub since: Millis,
    /// When its last lease ended, or it became hot.
    pub used: Millis,
}

impl State {
    /// An empty host under this policy.
    pub fn new(policy: Policy) -> Self {
        Self { policy, ..Self::default() }
    }

    /// Takes one event at a time that never goes back, and returns what is to be done about it, in order.
    pub fn step(&mut self, now: Millis, event: Event) -> Vec<Effect> {
        self.now = self.now.max(now);
        let mut effects = Vec::new();
        self.note(event, &mut effects);
        self.settle(&mut effects);
        effects
    }

    /// What is in force.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Whether nothing is left to wait for after a shutdown.
    pub fn is_over(&self) -> bool {
        self.phase == Phase::ShuttingDown && self.instances.is_empty()
    }

    /// The instance of a model, if it has one.
    pub fn instance_of(&self, model: &ModelId) -> Option<(InstanceId, &Instance)> {
        self.instances.iter().find(|(_, instance)| instance.model == *model).map(|(id, instance)| (*id, instance))
    }

    /// All instances.
    pub fn instances(&self) -> &BTreeMap<InstanceId, Instance> {
        &self.instances
    }

    /// Requests waiting for a model.
    pub fn queued(&self, model: &ModelId) -> usize {
        self.queues.get(model).map_or(0, VecDeque::len)
    }

    /// Where a model stands, with the failure that keeps it from loading.
    pub fn model_state(&self, model: &ModelId) -> (ModelState, Option<&Failure>) {
        let failure = self.cooldowns.get(model).map(|cooldown| &cooldown.failure);
        match self.instance_of(model) {
            Some((_, instance)) => (instance.state, failure),
            None if failure.is_some() => (ModelState::Failed, failure),
            None => (ModelState::Cold, None),
        }
    }

    /// What the event changes by itself; consequences are [`Self::settle`]'s.
    fn note(&mut self, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::Request { id, model, want } => self.enqueue(id, model, want, effects),
            Event::Cancel(id) => self.queues.values_mut().for_each(|queue| queue.retain(|waiter| waiter.id != id)),
            Event::Done(id) => self.end_lease(id),
            Event::Planned { instance, required, preferred } => self.planned(instance, required, preferred),
            Event::Loaded(id) => self.loaded(id),
            Event::Failed(id, failure) => {
                if let Some(instance) = self.instances.get_mut(&id)
                    && instance.state != ModelState::Stopping
                {
                    let model = instance.model.clone();
                    self.stop(id, effects);
                    self.fail_model(&model, failure, effects);
                }
            }
            Event::Exited(id, failure) => self.exited(id, failure, effects),
            Event::Unload(model) => self.unload(&model, effects),
            Event::Configure(policy) => self.configure(policy, effects),
            Event::Timer => {}
            Event::Shutdown => self.shut_down(effects),
        }
    }

    fn end_lease(&mut self, id: RequestId) {
        let now = self.now;
        for instance in self.instances.values_mut() {
            if instance.leases.remove(&id) {
                instance.solo = false;
                instance.used = now;
            }
        }
    }

    fn planned(&mut self, id: InstanceId, required: u64, preferred: u64) {
        let now = self.now;
        if let Some(instance) = self.instances.get_mut(&id)
            && instance.state == ModelState::Starting
        {
            instance.required = required;
            instance.preferred = preferred.max(required);
            instance.enter(ModelState::Waiting, now);
        }
    }

    fn loaded(&mut self, id: InstanceId) {
        let now = self.now;
        if let Some(instance) = self.instances.get_mut(&id)
            && instance.state == ModelState::Loading
        {
            self.load_cost_ms.insert(instance.model.clone(), now.since(instance.since));
            self.cooldowns.remove(&instance.model);
            instance.used = now;
            instance.enter(ModelState::Hot, now);
        }
    }

    fn exited(&mut self, id: InstanceId, failure: Failure, effects: &mut Vec<Effect>) {
        let Some(instance) = self.instances.remove(&id) else { return };
        // Leases end by their own Done events; the worker's death has reached each of them as a failure.
        let coming_up = matches!(instance.state, ModelState::Starting | ModelState::Waiting | ModelState::Loading);
        if coming_up {
            self.fail_model(&instance.model, failure, effects);
        }
    }

    fn unload(&mut self, model: &ModelId, effects: &mut Vec<Effect>) {
        let Some((id, instance)) = self.instance_of(model) else { return };
        match instance.state {
            ModelState::Hot if !instance.leases.is_empty() => {
                let now = self.now;
                if let Some(instance) = self.instances.get_mut(&id) {
                    instance.enter(ModelState::Draining, now);
                }
            }
            ModelState::Draining | ModelState::Stopping => {}
            ModelState::Hot => self.stop(id, effects),
            // An operator's word counts more than the waiters': they learn it at once instead of loading it again.
            _ => {
                let failure = Failure::new(
                    FailureKind::ShuttingDown,
                    format!("`{model}` was unloaded while it was loading; send the request again"),
                );
                self.stop(id, effects);
                self.refuse_all(model, &failure, effects);
            }
        }
    }

    fn configure(&mut self, policy: Policy, effects: &mut Vec<Effect>) {
        self.policy = policy;
        let gone: Vec<ModelId> = self
            .queues
            .keys()
            .chain(self.instances.values().map(|instance| &instance.model))
            .filter(|model| !self.policy.models.contains_key(*model))
            .cloned()
            .collect();
        for model in gone {
            self.unload(&model, effects);
            let failure = Failure::new(FailureKind::UnknownModel, format!("`{model}` was removed from models.yaml"));
            self.refuse_all(&model, &failure, effects);
            self.cooldowns.remove(&model);
        }
    }

    fn shut_down(&mut self, effects: &mut Vec<Effect>) {
        self.phase = Phase::ShuttingDown;
        let failure = Failure::new(FailureKind::ShuttingDown, "the host is shutting down");
        for model in self.queues.keys().cloned().collect::<Vec<_>>() {
            self.refuse_all(&model, &failure, effects);
        }
        for model in self.instances.values().map(|instance| instance.model.clone()).collect::<Vec<_>>() {
            self.unload(&model, effects);
        }
    }

    /// Every waiter learns the real cause, and the model pauses before it is tried again.
    pub(super) fn fail_model(&mut self, model: &ModelId, failure: Failure, effects: &mut Vec<Effect>) {
        self.refuse_all(model, &failure, effects);
        // What only a person can mend is looked at anew with each request: a pull or an edit must not wait for a timer.
        if matches!(failure.kind, FailureKind::NotPulled | FailureKind::Cancelled | FailureKind::ShuttingDown) {
            return;
        }
        let failures = self.cooldowns.get(model).map_or(0, |cooldown| cooldown.failures) + 1;
        let pause = COOLDOWN_FIRST_MS.saturating_mul(1 << (failures - 1).min(16)).min(COOLDOWN_MAX_MS);
        self.cooldowns.insert(model.clone(), Cooldown { until: self.now.after(pause), failures, failure });
    }

    /// A new instance's worker starts.
    pub(super) fn start(&mut self, model: &ModelId, device: DeviceId, effects: &mut Vec<Effect>) {
        self.next_instance += 1;
        let id = InstanceId(self.next_instance);
        let instance = Instance {
            model: model.clone(),
            device: device.clone(),
            state: ModelState::Starting,
            required: 0,
            preferred: 0,
            reserved: 0,
            leases: BTreeSet::new(),
            solo: false,
            since: self.now,
            used: self.now,
        };
        self.instances.insert(id, instance);
        effects.push(Effect::Start { instance: id, model: model.clone(), device });
    }

    /// The only place an instance begins to stop. It must hold no lease.
    pub(super) fn stop(&mut self, id: InstanceId, effects: &mut Vec<Effect>) {
        let now = self.now;
        if let Some(instance) = self.instances.get_mut(&id) {
            debug_assert!(instance.leases.is_empty(), "an instance that holds a lease is never stopped");
            instance.enter(ModelState::Stopping, now);
            effects.push(Effect::Stop(id));
        }
    }
}

impl Instance {
    pub(super) fn enter(&mut self, state: ModelState, now: Millis) {
        self.state = state;
        self.since = now;
    }
}
