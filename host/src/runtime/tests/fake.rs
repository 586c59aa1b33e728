//! Workers on paper: how long each step takes and which one fails is the test's choice, and every rule that the runtime
//! owes a placement is checked as it is used. A new effect gets its ways to fail as further calls of [`World::fails`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use aihost_plugin_api::MemoryPlan;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep;

use crate::domain::{Failure, FailureKind, InstanceId, ModelId, RequestId};
use crate::worker::{
    Ask, CancelCause, Exit, ExitReason, InstanceHandle, Loaded, Output, Outputs, Placement, StartSpec, Started, Task,
};

/// Tokens of every answer.
pub(super) const TOKENS: u32 = 4;
/// Bytes every model plans.
pub(super) const NEED: u64 = 100 << 20;
/// How long a cancelled request that hangs is put up with.
const CANCEL_GRACE: Duration = Duration::from_secs(10);
/// How long a park or a wake that hangs is put up with.
const STEP_LIMIT: Duration = Duration::from_secs(30);
/// What a worker takes to give everything back and leave.
const RELEASE: Duration = Duration::from_millis(5);

/// Which ways to fail are taken. They are counted as they are passed, from 1.
#[derive(Clone, Copy, Debug)]
pub(super) enum Faults {
    /// No way to fail is taken.
    Never,
    /// The n-th.
    Once(u32),
    /// The two of these numbers.
    Twice(u32, u32),
    /// The first one of this name.
    First(&'static str),
    /// Each one of this name.
    Always(&'static str),
}

/// What a death reaches first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// The loop hears of the exit before the open calls fail.
    ExitFirst,
    /// The open calls fail before the loop hears of the exit.
    CallsFirst,
}

/// How long steps take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    pub(super) start: Duration,
    pub(super) load: Duration,
    pub(super) token: Duration,
}

/// All workers, and what was done to them.
#[derive(Clone, Debug)]
pub(super) struct World {
    ledger: Arc<Mutex<Ledger>>,
    times: Times,
    faults: Faults,
    order: Order,
    budget: u64,
    /// Bytes that requests may take together beside a loaded model, and that each takes.
    workspace: u64,
    cost: u64,
    /// What models plan that differ from all others.
    plans: BTreeMap<ModelId, MemoryPlan>,
}

#[derive(Debug, Default)]
struct Ledger {
    lives: BTreeMap<InstanceId, Life>,
    passed: u32,
    taken: Vec<&'static str>,
    names: BTreeSet<&'static str>,
    broken: Vec<String>,
    loads: u32,
    poisoned: u32,
}

#[derive(Debug)]
struct Life {
    model: ModelId,
    leases_max: usize,
    phase: Phase,
    /// Bytes on the device.
    held: u64,
    open: BTreeSet<RequestId>,
    exits: mpsc::Sender<Exit>,
    gone: watch::Sender<Option<ExitReason>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Up,
    Loading,
    Hot,
    Parking,
    Parked,
    Unparking,
    Stopping,
    Gone,
}

/// A step between hot and parked.
#[derive(Clone, Copy, Debug)]
struct Transition {
    from: Phase,
    during: Phase,
    to: Phase,
    /// The plugin refuses, the worker dies, it never ends, the worker dies afterwards.
    ways: [&'static str; 4],
}

const PARK: Transition = Transition {
    from: Phase::Hot,
    during: Phase::Parking,
    to: Phase::Parked,
    ways: ["park: the plugin refuses", "park: it dies", "park: it never ends", "parked: it dies"],
};

const UNPARK: Transition = Transition {
    from: Phase::Parked,
    during: Phase::Unparking,
    to: Phase::Hot,
    ways: ["wake: the plugin refuses", "wake: it dies", "wake: it never ends", "woken: it dies"],
};

#[derive(Debug)]
struct FakeInstance {
    id: InstanceId,
    world: World,
}

/// A number that no other request has.
pub(super) fn unique() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl World {
    pub(super) fn new(faults: Faults, order: Order, budget: u64) -> Self {
        let milliseconds = Duration::from_millis;
        let times = Times { start: milliseconds(4), load: milliseconds(20), token: milliseconds(5) };
        Self { ledger: Arc::default(), times, faults, order, budget, workspace: 0, cost: 0, plans: BTreeMap::new() }
    }

    /// Requests that cost something.
    pub(super) fn with_cost(mut self, workspace: u64, cost: u64) -> Self {
        (self.workspace, self.cost) = (workspace, cost);
        self
    }

    /// A model that plans something of its own.
    pub(super) fn with_plan(mut self, model: &str, plan: MemoryPlan) -> Self {
        self.plans.insert(model.into(), plan);
        self
    }

    pub(super) fn with_times(mut self, times: Times) -> Self {
        self.times = times;
        self
    }

    /// The faults that were taken, by name.
    pub(super) fn taken(&self) -> Vec<&'static str> {
        self.ledger().taken.clone()
    }

    /// Every way to fail that was passed, by name.
    pub(super) fn names(&self) -> BTreeSet<&'static str> {
        self.ledger().names.clone()
    }

    /// Rules that were broken.
    pub(super) fn broken(&self) -> Vec<String> {
        self.ledger().broken.clone()
    }

    /// Models of workers that are there.
    pub(super) fn alive(&self) -> Vec<ModelId> {
        let ledger = self.ledger();
        ledger.lives.values().filter(|life| life.phase != Phase::Gone).map(|life| life.model.clone()).collect()
    }

    /// Loads that were begun.
    pub(super) fn loads(&self) -> u32 {
        self.ledger().loads
    }

    /// Whether the effect fails here, in the way named.
    fn fails(&self, way: &'static str) -> bool {
        let mut ledger = self.ledger();
        ledger.passed += 1;
        ledger.names.insert(way);
        let passed = ledger.passed;
        let due = match self.faults {
            Faults::Never => false,
            Faults::Once(n) => passed == n,
            Faults::Twice(first, second) => passed == first || passed == second,
            Faults::First(name) => way == name && ledger.taken.is_empty(),
            Faults::Always(name) => way == name,
        };
        if due {
            ledger.taken.push(way);
        }
        due
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap()
    }

    /// What this does to a worker's life; nothing if it is gone.
    fn change<T>(&self, id: InstanceId, change: impl FnOnce(&mut Life) -> T) -> Option<T> {
        self.ledger().lives.get_mut(&id).filter(|life| life.phase != Phase::Gone).map(change)
    }

    fn accuse(&self, sentence: String) {
        self.ledger().broken.push(sentence);
    }

    /// The process ends: its memory is back, its calls fail, the loop is told, once.
    fn die(&self, id: InstanceId, reason: ExitReason) {
        let Some((exits, gone)) = self.change(id, |life| {
            life.phase = Phase::Gone;
            life.held = 0;
            life.open.clear();
            (life.exits.clone(), life.gone.clone())
        }) else {
            return;
        };
        let exit = Exit { instance: id, reason: reason.clone() };
        match self.order {
            Order::ExitFirst => {
                let _loop_gone = exits.try_send(exit);
                gone.send_replace(Some(reason));
            }
            Order::CallsFirst => {
                gone.send_replace(Some(reason));
                tokio::spawn(async move {
                    sleep(Duration::from_millis(1)).await;
                    let _loop_gone = exits.send(exit).await;
                });
            }
        }
    }

    /// The workers that are there die, whatever they do.
    pub(super) fn crash(&self) {
        let alive: Vec<InstanceId> = self.ledger().lives.keys().copied().collect();
        alive.into_iter().for_each(|id| self.die(id, ExitReason::Killed(9)));
    }

    fn die_soon(&self, id: InstanceId) {
        let world = self.clone();
        tokio::spawn(async move {
            sleep(Duration::from_millis(1)).await;
            world.die(id, ExitReason::Crashed(11));
        });
    }

    /// Waits so long, or until the worker is gone: then why.
    async fn live(&self, id: InstanceId, span: Duration) -> Result<(), Failure> {
        let gone = self.ledger().lives.get(&id).map(|life| life.gone.subscribe());
        let Some(mut gone) = gone else { return Err(ended(&ExitReason::Asked)) };
        tokio::select! {
            biased;
            reason = gone.wait_for(Option::is_some) => {
                let reason = reason.ok().and_then(|reason| reason.clone());
                Err(ended(&reason.unwrap_or(ExitReason::Asked)))
            }
            () = sleep(span) => Ok(()),
        }
    }

    async fn start_one(self, spec: StartSpec, exits: mpsc::Sender<Exit>) -> Started {
        let id = spec.instance;
        if self.fails("start: no process") {
            return Err(Failure::new(FailureKind::Internal, "cannot start a worker"));
        }
        let model = spec.model;
        let life = Life {
            model: model.clone(),
            leases_max: spec.plugin.manifest.max_concurrency as usize,
            phase: Phase::Up,
            held: 0,
            open: BTreeSet::new(),
            exits,
            gone: watch::Sender::new(None),
        };
        if self.ledger().lives.insert(id, life).is_some() {
            self.accuse(format!("{id:?} was started twice"));
        }
        self.live(id, self.times.start).await?;
        if self.fails("start: it dies") {
            self.die(id, ExitReason::Crashed(11));
            return Err(ended(&ExitReason::Crashed(11)));
        }
        if self.fails("start: the plugin refuses") {
            self.die(id, ExitReason::Asked);
            return Err(Failure::new(FailureKind::NotUsable, "wrong options"));
        }
        if self.fails("start: no plan comes") {
            self.live(id, spec.start_timeout).await?;
            self.die(id, ExitReason::Stalled("start".into()));
            return Err(Failure::new(FailureKind::TimedOut, "no memory plan"));
        }
        if self.fails("planned: it dies") {
            self.die_soon(id);
        }
        let own = self.plans.get(&model).cloned();
        let plan = own.unwrap_or_else(|| MemoryPlan::new(NEED).workspace_max(self.workspace));
        Ok((Arc::new(FakeInstance { id, world: self }), plan))
    }

    async fn load_one(self, id: InstanceId, granted: u64, deadline: Duration) -> Result<Loaded, Failure> {
        match self.change(id, |life| (std::mem::replace(&mut life.phase, Phase::Loading), life.held = granted).0) {
            None => return Err(ended(&ExitReason::Crashed(11))),
            Some(Phase::Up) => {}
            Some(phase) => self.accuse(format!("a load of {id:?}, which is {phase:?}")),
        }
        let held: u64 = {
            let mut ledger = self.ledger();
            ledger.loads += 1;
            ledger.lives.values().map(|life| life.held).sum()
        };
        if held > self.budget || granted < NEED {
            self.accuse(format!("{held} bytes of {} are held, {granted} granted for {NEED}", self.budget));
        }
        if self.fails("load: the plugin refuses") {
            self.live(id, self.times.load).await?;
            return Err(Failure::new(FailureKind::NotUsable, "the weights are damaged"));
        }
        if self.fails("load: out of memory") {
            self.live(id, self.times.load).await?;
            return Err(Failure::new(FailureKind::OutOfMemory, "the device has no room"));
        }
        if self.fails("load: it dies") {
            self.live(id, self.times.load / 2).await?;
            self.die(id, ExitReason::Crashed(11));
            return Err(ended(&ExitReason::Crashed(11)));
        }
        if self.fails("load: it never ends") {
            self.live(id, deadline).await?;
            self.die(id, ExitReason::Stalled("load".into()));
            return Err(Failure::new(FailureKind::TimedOut, "no progress"));
        }
        self.live(id, self.times.load).await?;
        self.change(id, |life| life.phase = Phase::Hot);
        if self.fails("loaded: it dies") {
            self.die_soon(id);
        }
        Ok(Loaded { used: NEED })
    }

    /// One step between hot and parked, with its ways to fail.
    async fn transition(self, id: InstanceId, transition: Transition) -> Result<(), Failure> {
        match self.change(id, |life| (std::mem::replace(&mut life.phase, transition.during), life.open.len())) {
            None => return Err(ended(&ExitReason::Crashed(11))),
            Some((phase, 0)) if phase == transition.from => {}
            Some((phase, open)) => {
                self.accuse(format!("{:?} of {id:?}, which is {phase:?} under {open}", transition.during))
            }
        }
        if transition.to == Phase::Hot {
            let held: u64 = {
                let mut ledger = self.ledger();
                ledger.lives.get_mut(&id).into_iter().for_each(|life| life.held = NEED);
                ledger.lives.values().map(|life| life.held).sum()
            };
            if held > self.budget {
                self.accuse(format!("{held} bytes of {} are held", self.budget));
            }
        }
        let [refuses, dies, hangs, dies_after] = transition.ways;
        self.live(id, self.times.load / 4).await?;
        if self.fails(refuses) {
            return Err(Failure::new(FailureKind::NotUsable, "the plugin cannot"));
        }
        if self.fails(dies) {
            self.die(id, ExitReason::Crashed(11));
            return Err(ended(&ExitReason::Crashed(11)));
        }
        if self.fails(hangs) {
            self.live(id, STEP_LIMIT).await?;
            self.die(id, ExitReason::Stalled("park".into()));
            return Err(Failure::new(FailureKind::TimedOut, "it does not answer"));
        }
        self.change(id, |life| {
            if life.phase == transition.during {
                life.phase = transition.to;
                life.held = if transition.to == Phase::Hot { NEED } else { 0 };
            }
        });
        if self.fails(dies_after) {
            self.die_soon(id);
        }
        Ok(())
    }

    /// Opens a call, and says what is wrong with it; nothing if the worker is gone.
    fn open(&self, id: InstanceId, request: RequestId) -> Option<()> {
        let accusation = self.change(id, |life| {
            let wrong = if life.phase != Phase::Hot {
                Some(format!("generate on {id:?}, which is {:?}", life.phase))
            } else if life.open.len() >= life.leases_max {
                Some(format!("{} leases on {id:?}", life.open.len() + 1))
            } else {
                None
            };
            life.open.insert(request);
            wrong
        })?;
        accusation.into_iter().for_each(|sentence| self.accuse(sentence));
        Some(())
    }

    async fn cost_one(self, id: InstanceId) -> Result<u64, Failure> {
        if self.fails("cost: the plugin refuses") {
            return Err(Failure::new(FailureKind::Internal, "the plugin cannot"));
        }
        if self.fails("cost: it dies") {
            self.die(id, ExitReason::Crashed(11));
            return Err(ended(&ExitReason::Crashed(11)));
        }
        if self.fails("cost: the plugin panics") {
            self.die(id, ExitReason::Panicked);
            return Err(Failure::new(FailureKind::Internal, "panicked"));
        }
        if self.fails("cost: it never ends") {
            self.live(id, STEP_LIMIT).await?;
            self.die(id, ExitReason::Stalled("cost".into()));
            return Err(Failure::new(FailureKind::TimedOut, "it does not answer"));
        }
        Ok(self.cost)
    }

    async fn generate_one(
        self,
        id: InstanceId,
        request: RequestId,
        output: &mpsc::Sender<Output>,
        mut cancelled: oneshot::Receiver<CancelCause>,
    ) -> Result<Bytes, Failure> {
        self.open(id, request).ok_or_else(|| ended(&ExitReason::Crashed(11)))?;
        let model = self.change(id, |life| life.model.to_string()).unwrap_or_default();
        if self.fails("generate: the plugin refuses") {
            return Err(Failure::new(FailureKind::InvalidRequest, "no such thing"));
        }
        if self.fails("generate: it dies before it said anything") {
            self.die(id, ExitReason::Crashed(11));
            return Err(ended(&ExitReason::Crashed(11)));
        }
        if self.fails("generate: it hangs") {
            tokio::select! {
                _ = &mut cancelled => {}
                gone = self.live(id, Duration::MAX) => gone?,
            }
            self.live(id, CANCEL_GRACE).await?;
            self.die(id, ExitReason::Stalled("a cancelled request".into()));
            return Err(Failure::new(FailureKind::Cancelled, "the request was cancelled"));
        }
        for token in 0..TOKENS {
            self.live(id, self.times.token).await?;
            if !matches!(cancelled.try_recv(), Err(TryRecvError::Empty))
                || output.send(Output::Event(model.clone().into())).await.is_err()
            {
                return Err(Failure::new(FailureKind::Cancelled, "the request was cancelled"));
            }
            if token == 0 && self.fails("generate: it dies in mid-answer") {
                self.die(id, ExitReason::Crashed(11));
                return Err(ended(&ExitReason::Crashed(11)));
            }
            if token == 0 && self.fails("generate: the plugin panics") {
                self.die(id, ExitReason::Panicked);
                return Err(Failure::new(FailureKind::Internal, "panicked"));
            }
        }
        if self.fails("answered: it dies") {
            self.die_soon(id);
        }
        Ok(Bytes::from_static(b"{}"))
    }

    /// A task that names `poison_ms` makes its worker die after so many; without, this never ends.
    async fn poisoned(self, id: InstanceId, task: &[u8]) -> Result<Bytes, Failure> {
        let task: serde_json::Value = serde_json::from_slice(task).unwrap_or_default();
        let Some(after) = task["poison_ms"].as_u64() else { return std::future::pending().await };
        self.live(id, Duration::from_millis(after)).await?;
        self.ledger().poisoned += 1;
        self.die(id, ExitReason::Crashed(11));
        Err(ended(&ExitReason::Crashed(11)))
    }

    /// Workers that died of a task.
    pub(super) fn poisoned_workers(&self) -> u32 {
        self.ledger().poisoned
    }

    async fn stop_one(self, id: InstanceId, grace: Duration) {
        let Some(open) = self.change(id, |life| {
            life.phase = Phase::Stopping;
            life.open.len()
        }) else {
            return;
        };
        // Without a grace it is the cut at the end of a shutdown, which is for leases that do not end.
        if open > 0 && !grace.is_zero() {
            self.accuse(format!("{id:?} was asked to leave under {open} leases"));
        }
        let (takes, reason) = if self.fails("stop: it does not heed") {
            (grace, ExitReason::Stalled("release".into()))
        } else if self.fails("stop: the plugin cannot release") {
            (RELEASE.min(grace), ExitReason::Unreleased("the plugin cannot".into()))
        } else {
            (RELEASE.min(grace), ExitReason::Asked)
        };
        let reason = if grace.is_zero() { ExitReason::Asked } else { reason };
        if self.live(id, takes).await.is_ok() {
            self.die(id, reason);
        }
    }
}

impl Placement for World {
    fn start(&self, spec: StartSpec, exits: mpsc::Sender<Exit>) -> BoxFuture<'static, Started> {
        let world = self.clone();
        Box::pin(world.start_one(spec, exits))
    }
}

impl InstanceHandle for FakeInstance {
    fn load(&self, granted: u64, deadline: Duration) -> BoxFuture<'static, Result<Loaded, Failure>> {
        Box::pin(self.world.clone().load_one(self.id, granted, deadline))
    }

    fn generate(&self, request: RequestId, ask: Ask, cancelled: oneshot::Receiver<CancelCause>) -> Outputs {
        let (sender, receiver) = mpsc::channel(8);
        let (world, id) = (self.world.clone(), self.id);
        let task = ask.as_task().map(|task| task.header.clone()).unwrap_or_default();
        tokio::spawn(async move {
            let end = tokio::select! {
                end = world.clone().generate_one(id, request, &sender, cancelled) => end,
                end = world.clone().poisoned(id, &task) => end,
            };
            world.change(id, |life| life.open.remove(&request));
            let _client_gone = sender.send(Output::Done(end)).await;
        });
        receiver.into()
    }

    fn park(&self) -> BoxFuture<'static, Result<Loaded, Failure>> {
        let transition = self.world.clone().transition(self.id, PARK);
        Box::pin(async move { transition.await.map(|()| Loaded::default()) })
    }

    fn unpark(&self) -> BoxFuture<'static, Result<Loaded, Failure>> {
        let transition = self.world.clone().transition(self.id, UNPARK);
        Box::pin(async move { transition.await.map(|()| Loaded { used: NEED }) })
    }

    fn health(&self) -> BoxFuture<'static, Result<(), Failure>> {
        let (world, id) = (self.world.clone(), self.id);
        Box::pin(async move {
            world.live(id, world.times.token).await?;
            if world.fails("health: it dies") {
                world.die(id, ExitReason::Crashed(11));
                return Err(ended(&ExitReason::Crashed(11)));
            }
            if world.fails("health: it cannot serve") {
                return Err(Failure::new(FailureKind::Internal, "the engine lost its device"));
            }
            Ok(())
        })
    }

    fn cost(&self, _task: Task) -> BoxFuture<'static, Result<u64, Failure>> {
        Box::pin(self.world.clone().cost_one(self.id))
    }

    fn progress(&self) -> Option<u32> {
        None
    }

    fn stop(&self, grace: Duration) -> BoxFuture<'static, ()> {
        let task = tokio::spawn(self.world.clone().stop_one(self.id, grace));
        Box::pin(async move { task.await.unwrap() })
    }

    fn is_lost(&self) -> bool {
        self.world.change(self.id, |_| ()).is_none()
    }

    fn pid(&self) -> Option<u32> {
        None
    }
}

impl Drop for FakeInstance {
    fn drop(&mut self) {
        self.world.die(self.id, ExitReason::Asked);
    }
}

/// What an open call is told when its worker is gone, in the supervisor's terms.
fn ended(reason: &ExitReason) -> Failure {
    let kind = if *reason == ExitReason::Asked { FailureKind::ShuttingDown } else { FailureKind::WorkerDied };
    Failure::new(kind, format!("the worker {reason}"))
}
