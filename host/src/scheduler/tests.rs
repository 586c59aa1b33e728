//! The scheduler against scripts and against chance. A seed that fails is printed by the assertion.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, which is what it is for")]

use std::collections::{BTreeMap, BTreeSet};

use super::{DevicePolicy, Effect, Event, ModelPolicy, Policy, State, Want};
use crate::domain::{DeviceId, Failure, FailureKind, InstanceId, Millis, ModelId, ModelState, RequestId};

fn policy(models: &[&str], budget: u64, loaded_max: Option<usize>) -> Policy {
    let device = DeviceId("cpu".into());
    let model =
        ModelPolicy { devices: vec![device.clone()], leases_max: 2, pin: false, priority: 0, keep_alive_ms: None };
    Policy {
        models: models.iter().map(|name| (ModelId::from(*name), model.clone())).collect(),
        devices: [(device, DevicePolicy { budget, loaded_max })].into(),
        queue_max: 100,
        max_wait_ms: 10_000,
        quantum_ms: 100,
        hold_ms: 90_000,
    }
}

/// Drives a state by hand: plans and loads are answered at once with these sizes unless a test does it itself.
struct Bench {
    state: State,
    now: u64,
    trace: Vec<String>,
    need: BTreeMap<ModelId, u64>,
}

impl Bench {
    fn new(policy: Policy) -> Self {
        Self { state: State::new(policy), now: 1, trace: Vec::new(), need: BTreeMap::new() }
    }

    fn send(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for effect in self.state.step(Millis(self.now), event) {
                match effect {
                    Effect::Start { instance, model, .. } => {
                        let need = self.need.get(&model).copied().unwrap_or(100);
                        self.trace.push(format!("start {model}"));
                        events.insert(0, Event::Planned { instance, required: need, preferred: need });
                    }
                    Effect::Load { instance, .. } => {
                        self.trace.push(format!("load {}", self.model(instance)));
                        events.insert(0, Event::Loaded(instance));
                    }
                    Effect::Stop(instance) => {
                        self.trace.push(format!("stop {}", self.model(instance)));
                        events.insert(0, Event::Exited(instance, Failure::new(FailureKind::WorkerDied, "asked")));
                    }
                    Effect::Grant(request, instance) => {
                        self.trace.push(format!("grant {} {}", request.0, self.model(instance)))
                    }
                    Effect::Ready(request) => self.trace.push(format!("ready {}", request.0)),
                    Effect::Refuse(request, failure) => {
                        self.trace.push(format!("refuse {} {:?}", request.0, failure.kind))
                    }
                    Effect::Wake(_) => {}
                }
            }
        }
    }

    fn model(&self, id: InstanceId) -> String {
        self.state.instances().get(&id).map_or_else(|| "?".into(), |instance| instance.model.0.clone())
    }

    fn request(&mut self, id: u64, model: &str) {
        self.send(Event::Request { id: RequestId(id), model: model.into(), want: Want::Serve });
    }

    fn check(&mut self, expected: &[&str]) {
        assert_eq!(std::mem::take(&mut self.trace), expected);
    }
}

#[test]
fn a_request_loads_and_a_second_one_joins() {
    let mut bench = Bench::new(policy(&["a"], 100, None));
    bench.request(1, "a");
    bench.request(2, "a");
    bench.check(&["start a", "load a", "grant 1 a", "grant 2 a"]);
}

#[test]
fn an_idle_model_makes_room_and_a_busy_one_never_does() {
    let mut bench = Bench::new(policy(&["a", "b"], 150, None));
    bench.request(1, "a");
    bench.request(2, "b");
    bench.check(&["start a", "load a", "grant 1 a", "start b"]);
    bench.now += 80_000;
    bench.send(Event::Timer);
    bench.check(&[]);
    bench.send(Event::Done(RequestId(1)));
    bench.check(&["stop a", "load b", "grant 2 b"]);
}

#[test]
fn what_fits_stays() {
    let mut bench = Bench::new(policy(&["a", "b", "c"], 200, None));
    for (id, model) in [(1, "a"), (2, "b"), (3, "c")] {
        bench.now += 1;
        bench.request(id, model);
        bench.send(Event::Done(RequestId(id)));
    }
    bench.check(&[
        "start a",
        "load a",
        "grant 1 a",
        "start b",
        "load b",
        "grant 2 b",
        "start c",
        "stop a",
        "load c",
        "grant 3 c",
    ]);
}

#[test]
fn loaded_max_one_is_the_originals_behaviour() {
    let mut bench = Bench::new(policy(&["a", "b"], 1_000_000, Some(1)));
    bench.request(1, "a");
    bench.send(Event::Done(RequestId(1)));
    bench.request(2, "b");
    bench.check(&["start a", "load a", "grant 1 a", "start b", "stop a", "load b", "grant 2 b"]);
}

#[test]
fn only_what_is_needed_is_evicted() {
    let mut bench = Bench::new(policy(&["small", "large", "new"], 400, None));
    bench.need = [("small".into(), 100), ("large".into(), 300), ("new".into(), 300)].into();
    for (id, model) in [(1, "small"), (2, "large"), (3, "new")] {
        bench.now += 1;
        bench.request(id, model);
        bench.send(Event::Done(RequestId(id)));
    }
    assert_eq!(bench.trace[6..], ["start new", "stop large", "load new", "grant 3 new"]);
}

#[test]
fn pinned_models_stay_and_what_then_cannot_fit_is_refused_with_the_numbers() {
    let mut policy = policy(&["a", "b"], 150, None);
    policy.models.get_mut(&"a".into()).unwrap().pin = true;
    let mut bench = Bench::new(policy);
    bench.request(1, "a");
    bench.send(Event::Done(RequestId(1)));
    bench.request(2, "b");
    bench.check(&["start a", "load a", "grant 1 a", "start b", "stop b", "refuse 2 OutOfMemory"]);
}

#[test]
fn alternating_requests_are_served_in_two_batches() {
    let mut policy = policy(&["a", "b"], 100, None);
    policy.models.values_mut().for_each(|model| model.leases_max = 1);
    let mut bench = Bench::new(policy);
    for id in 0..6 {
        bench.request(id, if id % 2 == 0 { "a" } else { "b" });
    }
    for id in [0, 2, 4, 1, 3, 5] {
        bench.now += 30;
        bench.send(Event::Done(RequestId(id)));
    }
    bench.check(&[
        "start a",
        "load a",
        "grant 0 a",
        "start b",
        "grant 2 a",
        "grant 4 a",
        "stop a",
        "load b",
        "grant 1 b",
        "grant 3 b",
        "grant 5 b",
    ]);
}

#[test]
fn an_overdue_waiter_closes_the_gate() {
    let mut policy = policy(&["a", "b"], 100, None);
    policy.models.values_mut().for_each(|model| model.leases_max = 1);
    let mut bench = Bench::new(policy);
    bench.request(1, "a");
    bench.request(2, "a");
    bench.request(3, "b");
    bench.now += 10_000;
    bench.send(Event::Done(RequestId(1)));
    assert_eq!(bench.trace.last().unwrap(), "grant 3 b", "{:?}", bench.trace);
    // Its own waiter is not lost: it is next.
    bench.now += 10_000;
    bench.send(Event::Done(RequestId(3)));
    assert_eq!(bench.trace.last().unwrap(), "grant 2 a", "{:?}", bench.trace);
}

#[test]
fn a_client_that_leaves_the_queue_costs_nothing() {
    let mut bench = Bench::new(policy(&["a", "b"], 100, None));
    bench.request(1, "a");
    bench.request(2, "b");
    bench.send(Event::Cancel(RequestId(2)));
    bench.send(Event::Done(RequestId(1)));
    bench.check(&["start a", "load a", "grant 1 a", "start b", "stop b"]);
    bench.request(3, "a");
    bench.check(&["grant 3 a"]);
}

#[test]
fn a_failed_load_reaches_every_waiter_and_cools_down() {
    let mut state = State::new(policy(&["a"], 100, None));
    let request = |id| Event::Request { id: RequestId(id), model: "a".into(), want: Want::Serve };
    state.step(Millis(1), request(1));
    state.step(Millis(1), request(2));
    let cause = Failure::new(FailureKind::NotUsable, "bad magic");
    let effects = state.step(Millis(2), Event::Failed(InstanceId(1), cause.clone()));
    for id in [1, 2] {
        assert!(effects.contains(&Effect::Refuse(RequestId(id), cause.clone())), "{effects:?}");
    }
    assert!(effects.contains(&Effect::Stop(InstanceId(1))));
    state.step(Millis(3), Event::Exited(InstanceId(1), cause.clone()));
    assert_eq!(state.step(Millis(4), request(3)), [Effect::Refuse(RequestId(3), cause)]);
    assert!(matches!(state.step(Millis(2_000), request(4))[0], Effect::Start { .. }));
}

#[test]
fn a_crash_while_loading_is_a_failed_load_and_one_while_hot_is_not() {
    let mut state = State::new(policy(&["a"], 100, None));
    let request = |id| Event::Request { id: RequestId(id), model: "a".into(), want: Want::Serve };
    let crash = Failure::new(FailureKind::WorkerDied, "crashed");
    state.step(Millis(1), request(1));
    state.step(Millis(1), Event::Planned { instance: InstanceId(1), required: 1, preferred: 1 });
    assert_eq!(
        state.step(Millis(2), Event::Exited(InstanceId(1), crash.clone())),
        [Effect::Refuse(RequestId(1), crash.clone())]
    );

    state.step(Millis(2_000), request(2));
    state.step(Millis(2_001), Event::Planned { instance: InstanceId(2), required: 1, preferred: 1 });
    state.step(Millis(2_002), Event::Loaded(InstanceId(2)));
    assert_eq!(state.step(Millis(2_003), Event::Exited(InstanceId(2), crash)), []);
    assert!(matches!(state.step(Millis(2_004), request(3))[0], Effect::Start { .. }));
}

#[test]
fn a_solo_request_goes_first_and_alone() {
    let mut bench = Bench::new(policy(&["a"], 100, None));
    bench.request(1, "a");
    bench.send(Event::Request { id: RequestId(2), model: "a".into(), want: Want::Solo });
    bench.request(3, "a");
    bench.check(&["start a", "load a", "grant 1 a"]);
    bench.send(Event::Done(RequestId(1)));
    bench.check(&["grant 2 a"]);
    bench.request(4, "a");
    bench.send(Event::Done(RequestId(2)));
    bench.check(&["grant 3 a", "grant 4 a"]);
}

#[test]
fn patience_ends_and_the_load_goes_on() {
    let mut state = State::new(policy(&["a"], 100, None));
    state.step(Millis(1), Event::Request { id: RequestId(1), model: "a".into(), want: Want::Serve });
    state.step(Millis(2), Event::Planned { instance: InstanceId(1), required: 100, preferred: 100 });
    let effects = state.step(Millis(90_001), Event::Timer);
    assert!(
        matches!(&effects[..], [Effect::Refuse(RequestId(1), failure)] if failure.kind == FailureKind::StillLoading),
        "{effects:?}"
    );
    assert_eq!(state.instances()[&InstanceId(1)].state, ModelState::Loading);
}

#[test]
fn an_idle_model_is_unloaded_on_time() {
    let mut policy = policy(&["a"], 100, None);
    policy.models.get_mut(&"a".into()).unwrap().keep_alive_ms = Some(5_000);
    let mut bench = Bench::new(policy);
    bench.request(1, "a");
    bench.now = 8_000;
    bench.send(Event::Timer);
    bench.send(Event::Done(RequestId(1)));
    bench.now = 12_999;
    bench.send(Event::Timer);
    bench.check(&["start a", "load a", "grant 1 a"]);
    bench.now = 13_000;
    bench.send(Event::Timer);
    bench.check(&["stop a"]);
}

#[test]
fn unload_drains_and_a_request_meanwhile_reloads() {
    let mut bench = Bench::new(policy(&["a"], 100, None));
    bench.request(1, "a");
    bench.send(Event::Unload("a".into()));
    bench.request(2, "a");
    bench.check(&["start a", "load a", "grant 1 a"]);
    bench.send(Event::Done(RequestId(1)));
    bench.check(&["stop a", "start a", "load a", "grant 2 a"]);
}

#[test]
fn shutdown_refuses_waiters_and_waits_for_leases() {
    let mut bench = Bench::new(policy(&["a", "b"], 100, None));
    bench.request(1, "a");
    bench.request(2, "b");
    bench.send(Event::Shutdown);
    bench.check(&["start a", "load a", "grant 1 a", "start b", "refuse 2 ShuttingDown", "stop b"]);
    assert!(!bench.state.is_over());
    bench.request(3, "a");
    bench.send(Event::Done(RequestId(1)));
    bench.check(&["refuse 3 ShuttingDown", "stop a"]);
    assert!(bench.state.is_over());
}

/// A world that answers effects late, in any order, with crashes, cancels, unloads and failed loads.
struct World {
    state: State,
    rng: u64,
    now: u64,
    pending: Vec<Event>,
    open: BTreeMap<RequestId, Answer>,
    leased: BTreeMap<RequestId, InstanceId>,
    next: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Waiting,
    Granted,
}

impl World {
    fn draw(&mut self, below: u64) -> u64 {
        // SplitMix64 (Steele et al. 2014): small, seeded, the same everywhere.
        self.rng = self.rng.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.rng;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % below
    }

    fn feed(&mut self, event: Event) {
        if let Event::Done(id) = &event {
            self.leased.remove(id);
            self.open.remove(id);
        }
        if let Event::Exited(id, _) = &event {
            let lost: Vec<RequestId> =
                self.leased.iter().filter(|(_, on)| *on == id).map(|(request, _)| *request).collect();
            self.pending.extend(lost.into_iter().map(Event::Done));
        }
        for effect in self.state.step(Millis(self.now), event) {
            self.carry_out(effect);
        }
        self.check();
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Start { instance, model, .. } => {
                let required = 60 + 20 * (model.0.len() as u64);
                let event = if self.draw(12) == 0 {
                    Event::Failed(instance, Failure::new(FailureKind::NotUsable, "start"))
                } else {
                    Event::Planned { instance, required, preferred: required + 30 }
                };
                self.pending.push(event);
            }
            Effect::Load { instance, granted } => {
                assert!(granted > 0);
                let event = if self.draw(12) == 0 {
                    Event::Failed(instance, Failure::new(FailureKind::OutOfMemory, "load"))
                } else {
                    Event::Loaded(instance)
                };
                self.pending.push(event);
            }
            Effect::Grant(id, instance) => {
                assert_eq!(
                    self.open.insert(id, Answer::Granted),
                    Some(Answer::Waiting),
                    "granted twice or after a refusal"
                );
                self.leased.insert(id, instance);
                self.pending.push(Event::Done(id));
            }
            Effect::Ready(id) | Effect::Refuse(id, _) => {
                assert_eq!(self.open.remove(&id), Some(Answer::Waiting), "answered twice");
            }
            Effect::Stop(instance) => {
                assert!(!self.leased.values().any(|on| *on == instance), "stopped under a lease");
                self.pending.push(Event::Exited(instance, Failure::new(FailureKind::WorkerDied, "asked")));
            }
            Effect::Wake(at) => assert!(at > Millis(self.now)),
        }
    }

    fn check(&self) {
        let mut reserved = 0;
        let mut loaded = BTreeSet::new();
        for (id, instance) in self.state.instances() {
            reserved += instance.reserved;
            assert!(!instance.solo || instance.leases.len() == 1, "company for a solo lease: {instance:?}");
            if instance.reserved > 0 {
                loaded.insert(*id);
            }
        }
        assert!(reserved <= 250, "over budget: {reserved}");
        assert!(loaded.len() <= 2, "too many loaded: {loaded:?}");
    }

    fn step(&mut self) {
        self.now += self.draw(200);
        let model = ["a", "bb", "ccc"][self.draw(3) as usize];
        match self.draw(20) {
            0..6 => {
                self.next += 1;
                let id = RequestId(self.next);
                let want = [Want::Serve, Want::Serve, Want::ServeBatch, Want::Load, Want::Solo][self.draw(5) as usize];
                self.open.insert(id, Answer::Waiting);
                self.feed(Event::Request { id, model: model.into(), want });
            }
            6 => {
                let waiting: Vec<RequestId> =
                    self.open.iter().filter(|(_, a)| **a == Answer::Waiting).map(|(id, _)| *id).collect();
                if !waiting.is_empty() {
                    let id = waiting[self.draw(waiting.len() as u64) as usize];
                    self.open.remove(&id);
                    self.feed(Event::Cancel(id));
                }
            }
            7 => self.feed(Event::Unload(model.into())),
            8 if self.draw(10) == 0 => {
                let alive: Vec<InstanceId> = self.state.instances().keys().copied().collect();
                if !alive.is_empty() {
                    let id = alive[self.draw(alive.len() as u64) as usize];
                    self.feed(Event::Exited(id, Failure::new(FailureKind::WorkerDied, "crash")));
                }
            }
            9 => self.feed(Event::Timer),
            _ if !self.pending.is_empty() => {
                let at = self.draw(self.pending.len() as u64) as usize;
                let event = self.pending.swap_remove(at);
                self.feed(event);
            }
            _ => {}
        }
    }

    /// With every effect answered and time passing, nobody may wait for ever.
    fn drain(&mut self, seed: u64) {
        for _ in 0..10_000 {
            if self.open.is_empty() && self.pending.is_empty() {
                return;
            }
            self.now += 500;
            match self.pending.pop() {
                Some(event) => self.feed(event),
                None => self.feed(Event::Timer),
            }
        }
        panic!("seed {seed}: lost waiters {:?} in {:#?}", self.open, self.state);
    }
}

#[test]
fn chance_finds_no_lost_waiter_no_double_answer_no_eviction_under_lease() {
    for seed in 0..100 {
        let mut policy = policy(&["a", "bb", "ccc"], 250, Some(2));
        policy.hold_ms = 1_000_000_000;
        let mut world = World {
            state: State::new(policy),
            rng: seed,
            now: 1,
            pending: Vec::new(),
            open: BTreeMap::new(),
            leased: BTreeMap::new(),
            next: 0,
        };
        let steps = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            (0..1_500).for_each(|_| world.step());
            world.drain(seed);
            world.feed(Event::Shutdown);
            world.drain(seed);
            assert!(world.state.is_over());
        }));
        assert!(steps.is_ok(), "seed {seed} failed, see the panic above");
    }
}
