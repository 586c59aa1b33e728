//! What the metrics learn of the scheduler: one look after each step, by comparing instances with what they were before.
//! It decides nothing, and nothing that is decided reads it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::access::AccessEntry;
use super::meter::Meter;
use super::survey::DeviceStatus;
use crate::config::Config;
use crate::domain::{Device, EvictionCause, FailureKind, InstanceId, ModelId, ModelState, RequestId};
use crate::scheduler::{Effect, Event, State, Want};
use crate::telemetry::{self, Gauges, Metric, Metrics, Swap, SwapPhase, WorkerExit};
use crate::worker::{Exit, ExitReason};

/// Workers whose exit is awaited, of whatever age: some that never started have none.
const WORKERS_MAX: usize = 1024;

/// Compares the scheduler's state with what it was, and counts what changed.
#[derive(Debug)]
pub(super) struct Observer {
    metrics: Arc<Metrics>,
    /// Instances as they were after the step before.
    seen: BTreeMap<InstanceId, Seen>,
    /// Requests that wait.
    waiting: HashMap<RequestId, Waiting>,
    /// Whose worker it is, until its exit is known.
    workers: BTreeMap<InstanceId, ModelId>,
}

/// What there is to see of the state at one moment: as long as what is loaded and waited for, however many models there are.
#[derive(Debug)]
pub(super) struct Look {
    instances: Vec<InstanceLook>,
    queues: Vec<(ModelId, usize)>,
    /// Models that are not simply cold.
    states: BTreeMap<ModelId, &'static str>,
}

/// What there is to see of an instance.
#[derive(Debug)]
struct InstanceLook {
    model: ModelId,
    device: Device,
    state: ModelState,
    required: u64,
    reserved: u64,
    leases: usize,
    measured: Option<u64>,
}

#[derive(Clone, Debug)]
struct Seen {
    model: ModelId,
    state: ModelState,
    since: Instant,
}

#[derive(Clone, Debug)]
struct Waiting {
    model: ModelId,
    arrived: Instant,
    /// Whether its worker died before.
    again: bool,
    /// How long it waited for its model to be hot; known once it is granted.
    swap: Duration,
    /// How long it waited after that.
    queue: Duration,
}

/// What must be known of an event once the scheduler has taken it.
#[derive(Clone, Debug)]
pub(super) enum EventSummary {
    Request(RequestId, ModelId, Want),
    Cancel(RequestId),
    Done(RequestId),
    Failed(InstanceId),
    Other,
}

impl EventSummary {
    pub(super) fn of(event: &Event) -> Self {
        match event {
            Event::Request { id, model, want, .. } => Self::Request(*id, model.clone(), *want),
            Event::Cancel(id) => Self::Cancel(*id),
            Event::Done(id) => Self::Done(*id),
            Event::Failed(id, _) | Event::Exited(id, _) => Self::Failed(*id),
            Event::Planned { .. }
            | Event::Loaded(_)
            | Event::Parked { .. }
            | Event::Unparked(_)
            | Event::Unload { .. }
            | Event::Park(_)
            | Event::Quarantine(..)
            | Event::Measured(..)
            | Event::Configure { .. }
            | Event::Renew(_)
            | Event::Timer
            | Event::Shutdown => Self::Other,
        }
    }
}

impl Observer {
    pub(super) fn new(config: &Config) -> Self {
        let metrics = Arc::<Metrics>::default();
        metrics.set_models(config.models.keys());
        Self { metrics, seen: BTreeMap::new(), waiting: HashMap::new(), workers: BTreeMap::new() }
    }

    /// These models are in force from now on; those before.
    pub(super) fn put_in_force(&self, models: Arc<BTreeSet<ModelId>>) -> Arc<BTreeSet<ModelId>> {
        self.metrics.put_in_force(models)
    }

    /// What is counted and timed.
    pub(super) fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.metrics)
    }

    /// An instance as it was after the step before.
    pub(super) fn was(&self, id: InstanceId) -> Option<(&ModelId, ModelState)> {
        self.seen.get(&id).map(|seen| (&seen.model, seen.state))
    }

    /// After a step: what the event and its effects did.
    pub(super) fn observe(&mut self, event: &EventSummary, effects: &[Effect], state: &State) {
        match event {
            EventSummary::Request(id, model, want) => self.arrived(*id, model, *want),
            // One that was granted in the same moment has no lease to meter: its client is gone.
            EventSummary::Cancel(id) | EventSummary::Done(id) => {
                if let Some(waiting) = self.waiting.remove(id) {
                    self.metrics.count(Metric::Requests, &waiting.model, FailureKind::Cancelled.name());
                }
            }
            EventSummary::Failed(id) => self.failed(*id),
            _ => {}
        }
        for effect in effects {
            match effect {
                Effect::Grant(id, instance) => self.granted(*id, *instance),
                Effect::Refuse(id, failure) => self.refused(*id, failure.kind),
                Effect::Park(id, cause) | Effect::Stop(id, cause) => self.evicted(*id, *cause),
                _ => {}
            }
        }
        self.compare(state);
    }

    /// What times and counts the outputs of a request that was just granted.
    pub(super) fn meter(&mut self, request: RequestId, access: AccessEntry) -> Option<Meter> {
        let waiting = self.waiting.remove(&request)?;
        access.waited(waiting.queue, waiting.swap);
        Some(Meter::new(Arc::clone(&self.metrics), waiting.model, waiting.arrived, access))
    }

    /// A request that was never queued, or is given up after its worker died.
    pub(super) fn suspected(&self, model: &ModelId) {
        self.metrics.count(Metric::Requests, model, FailureKind::Suspected.name());
    }

    /// A request that is not tried again after its worker died.
    pub(super) fn given_up(&self, model: &ModelId) {
        self.suspected(model);
        self.lost(model);
    }

    /// A granted request that gets no answer.
    pub(super) fn lost(&self, model: &ModelId) {
        self.metrics.count(Metric::Lost, model, "");
    }

    /// A worker is gone.
    pub(super) fn exited(&mut self, exit: &Exit) {
        if let Some(model) = self.workers.remove(&exit.instance) {
            self.metrics.count(Metric::WorkerExits, &model, worker_exit(&exit.reason).name());
        }
    }

    fn arrived(&mut self, id: RequestId, model: &ModelId, want: Want) {
        if want == Want::Load {
            return;
        }
        let again = matches!(want, Want::Again(_));
        if again {
            self.metrics.count(Metric::Replays, model, "");
        }
        self.waiting.insert(
            id,
            Waiting {
                model: model.clone(),
                arrived: Instant::now(),
                again,
                swap: Duration::ZERO,
                queue: Duration::ZERO,
            },
        );
    }

    fn granted(&mut self, id: RequestId, instance: InstanceId) {
        if let Some(waiting) = self.waiting.get_mut(&id) {
            let elapsed = waiting.arrived.elapsed();
            self.metrics.time(Metric::QueueWait, &waiting.model, "", elapsed);
            // If it became hot in this very step, it is not yet seen as such.
            let hot = self.seen.get(&instance).filter(|seen| seen.state == ModelState::Hot);
            waiting.swap = hot.map_or(elapsed, |hot| hot.since.saturating_duration_since(waiting.arrived)).min(elapsed);
            waiting.queue = elapsed - waiting.swap;
        }
    }

    fn refused(&mut self, id: RequestId, kind: FailureKind) {
        if let Some(waiting) = self.waiting.remove(&id) {
            self.metrics.count(Metric::Requests, &waiting.model, kind.name());
            if waiting.again {
                self.lost(&waiting.model);
            }
        }
    }

    fn failed(&self, id: InstanceId) {
        if let Some(seen) = self.seen.get(&id)
            && matches!(seen.state, ModelState::Starting | ModelState::Waiting | ModelState::Loading)
        {
            self.metrics.count(Metric::LoadFailures, &seen.model, "");
        }
    }

    /// What became of each instance since the step before.
    fn compare(&mut self, state: &State) {
        let now = Instant::now();
        for (id, instance) in state.instances() {
            match self.seen.get(id) {
                Some(seen) if seen.state == instance.state => continue,
                Some(seen) => self.moved(&seen.clone(), instance.state),
                None => self.new_worker(*id, &instance.model),
            }
            self.seen.insert(*id, Seen { model: instance.model.clone(), state: instance.state, since: now });
        }
        let gone = self.seen.keys().filter(|id| !state.instances().contains_key(id)).copied().collect::<Vec<_>>();
        for seen in gone.into_iter().filter_map(|id| self.seen.remove(&id)) {
            if seen.state == ModelState::Stopping {
                self.metrics.time(Metric::SwapPhase, &seen.model, SwapPhase::Stop.name(), seen.since.elapsed());
                self.metrics.count(Metric::Swaps, &seen.model, Swap::Stop.name());
            }
        }
    }

    fn new_worker(&mut self, id: InstanceId, model: &ModelId) {
        self.workers.insert(id, model.clone());
        if self.workers.len() > WORKERS_MAX {
            self.workers.pop_first();
        }
    }

    fn moved(&self, was: &Seen, is: ModelState) {
        use ModelState::{Draining, Hot, Loading, Parked, Parking, Starting, Stopping, Unparking, Waiting};
        let model = &was.model;
        // A phase is timed when it came to its end, not when it was broken off.
        let (phase, swap) = match (was.state, is) {
            // Straight to loading where there was memory at once.
            (Starting, Waiting | Loading) => (SwapPhase::Start, None),
            (Waiting, Loading) => (SwapPhase::Memory, None),
            (Loading, Hot) => (SwapPhase::Load, Some(Swap::ColdLoad)),
            (Draining, Stopping | Parking) => (SwapPhase::Drain, None),
            (Parking, Parked) => (SwapPhase::Park, Some(Swap::Park)),
            (Unparking, Hot) => (SwapPhase::Unpark, Some(Swap::Wake)),
            _ => return,
        };
        self.metrics.time(Metric::SwapPhase, model, phase.name(), was.since.elapsed());
        if let Some(swap) = swap {
            self.metrics.count(Metric::Swaps, model, swap.name());
        }
    }

    /// An instance that served leaves its device.
    fn evicted(&self, id: InstanceId, cause: EvictionCause) {
        if let Some(seen) = self.seen.get(&id)
            && matches!(seen.state, ModelState::Hot | ModelState::Draining)
        {
            self.metrics.count(Metric::Evictions, &seen.model, cause.name());
        }
    }
}

impl Look {
    /// Changes nothing.
    pub(super) fn at(state: &State, usage: impl Fn(&InstanceId) -> Option<u64>) -> Self {
        let instances = state.instances().iter().map(|(id, known)| InstanceLook {
            model: known.model.clone(),
            device: known.device,
            state: known.state,
            required: known.required,
            reserved: known.reserved,
            leases: known.leases.len(),
            measured: usage(id),
        });
        let touched: BTreeSet<&ModelId> = state.touched().collect();
        Self {
            instances: instances.collect(),
            queues: state.queues().map(|(model, queued)| (model.clone(), queued)).collect(),
            states: touched.into_iter().map(|model| (model.clone(), model_state(state, model))).collect(),
        }
    }

    /// The gauges of every model of a configuration. Takes longer the more there are.
    pub(super) fn gauges(self, config: &Config, devices: &[DeviceStatus]) -> Gauges {
        let mut gauges = Gauges::default();
        for model in config.models.keys() {
            gauges.add(Metric::Queue, &[model.as_str()], 0);
            gauges.add(Metric::Leases, &[model.as_str()], 0);
        }
        for (model, queued) in self.queues.iter().filter(|(model, _)| config.models.contains_key(model)) {
            gauges.add(Metric::Queue, &[model.as_str()], *queued as u64);
        }
        for look in self.instances.iter().filter(|look| config.models.contains_key(&look.model)) {
            let (model, device) = (look.model.as_str(), look.device.to_string());
            if let Some(bytes) = look.measured {
                gauges.add(Metric::MemoryMeasured, &[model, &device], bytes);
            }
            gauges.add(Metric::Instances, &[model, look.state.name()], 1);
            gauges.add(Metric::Leases, &[model], look.leases as u64);
            gauges.add(Metric::MemoryPlanned, &[model, &device], look.required);
            gauges.add(Metric::MemoryReserved, &[model, &device], look.reserved);
        }
        for state in ModelState::NAMES.iter().chain([&telemetry::QUARANTINED]) {
            gauges.add(Metric::Models, &[state], 0);
        }
        let touched = || self.states.iter().filter(|(model, _)| config.models.contains_key(model.as_str()));
        touched().for_each(|(_, state)| gauges.add(Metric::Models, &[state], 1));
        let cold = config.models.len() - touched().count();
        gauges.add(Metric::Models, &[ModelState::Cold.name()], cold as u64);
        for status in devices {
            let device = status.device.to_string();
            for (metric, bytes) in [
                (Metric::DeviceBudget, Some(status.budget)),
                (Metric::DeviceReserved, Some(status.reserved)),
                (Metric::DeviceTotal, status.total),
                (Metric::DeviceUsed, status.total.zip(status.free).map(|(total, free)| total.saturating_sub(free))),
                (Metric::DeviceFree, status.free),
                (Metric::DeviceOthers, status.others),
            ] {
                if let Some(bytes) = bytes {
                    gauges.add(metric, &[&device], bytes);
                }
            }
        }
        gauges.add(Metric::BuildInfo, &[env!("CARGO_PKG_VERSION")], 1);
        telemetry::look_at_process(&mut gauges);
        gauges.add(Metric::LogLinesLost, &[], telemetry::lines_lost());
        gauges
    }
}

fn model_state(state: &State, model: &ModelId) -> &'static str {
    match state.is_quarantined(model) {
        true => telemetry::QUARANTINED,
        false => state.model_state(model).0.name(),
    }
}

fn worker_exit(reason: &ExitReason) -> WorkerExit {
    match reason {
        ExitReason::Asked => WorkerExit::Asked,
        ExitReason::Exited(_) => WorkerExit::Exited,
        ExitReason::Aborted => WorkerExit::Aborted,
        ExitReason::Crashed(_) => WorkerExit::Crashed,
        ExitReason::OutOfMemory => WorkerExit::OutOfMemory,
        ExitReason::Killed(_) => WorkerExit::Killed,
        ExitReason::Stalled(_) => WorkerExit::Stalled,
        ExitReason::BeyondGrant { .. } => WorkerExit::BeyondGrant,
        ExitReason::Panicked => WorkerExit::Panicked,
        ExitReason::Misbehaved(_) | ExitReason::Unreleased(_) => WorkerExit::Misbehaved,
    }
}
