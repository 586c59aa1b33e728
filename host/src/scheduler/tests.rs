//! The scheduler against scripts: what it does, event by event.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, which is what it is for")]

mod parking;
mod why;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Again, DevicePolicy, Effect, Event, Keep, Mapped, ModelPolicy, Outcome, Policy, State, Want};
use crate::domain::{Device, EvictionCause, Failure, FailureKind, InstanceId, Millis, ModelId, ModelState, RequestId};

pub(super) fn policy(models: &[&str], budget: u64, loaded_max: Option<usize>) -> Policy {
    let device = Device::Cpu;
    let model = ModelPolicy {
        devices: vec![device],
        replicas: 1,
        leases_max: 2,
        parks: false,
        pin: false,
        priority: 0,
        keep: Keep::Forever,
    };
    Policy {
        models: models.iter().map(|name| (ModelId::from(*name), model.clone())).collect(),
        devices: [(device, DevicePolicy { budget, loaded_max })].into(),
        host_memory: device,
        queue_max: 100,
        max_wait_ms: 10_000,
        quantum_ms: 100,
        hold_ms: 90_000,
        slot_wait_ms: 600_000,
    }
}

/// The entry of a model is made of something else.
fn remade(state: &State, model: &str) -> Event {
    Event::Configure { policy: Arc::clone(state.policy()), anew: Arc::new([model.into()].into()) }
}

/// Another policy, for the same entries.
fn in_force(policy: Policy) -> Event {
    Event::Configure { policy: Arc::new(policy), anew: Arc::default() }
}

/// Drives a state by hand: plans and loads are answered at once with these sizes unless a test does it itself.
struct Bench {
    state: State,
    now: u64,
    trace: Vec<String>,
    need: BTreeMap<ModelId, u64>,
    /// Bytes of host memory that a parked model holds.
    held: u64,
    /// What all plans say of mapped files.
    mapped: Mapped,
}

impl Bench {
    fn new(policy: Policy) -> Self {
        Self {
            state: State::new(policy),
            now: 1,
            trace: Vec::new(),
            need: BTreeMap::new(),
            held: 0,
            mapped: Mapped::default(),
        }
    }

    fn send(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for effect in self.state.step(Millis(self.now), event) {
                match effect {
                    Effect::Start { instance, model, .. } => {
                        let need = self.need.get(&model).copied().unwrap_or(100);
                        let mapped = self.mapped;
                        self.trace.push(format!("start {model}"));
                        events.insert(0, Event::Planned { instance, required: need, preferred: need, mapped });
                    }
                    Effect::Load { instance, .. } => {
                        self.trace.push(format!("load {}", self.model(instance)));
                        events.insert(0, Event::Loaded(instance));
                    }
                    Effect::Park(instance, _) => {
                        self.trace.push(format!("park {}", self.model(instance)));
                        events.insert(0, Event::Parked { instance, held: self.held });
                    }
                    Effect::Unpark(instance) => {
                        self.trace.push(format!("wake {}", self.model(instance)));
                        events.insert(0, Event::Unparked(instance));
                    }
                    Effect::Kill(instance) => {
                        self.trace.push(format!("cut {}", self.model(instance)));
                        events.insert(0, Event::Exited(instance, Failure::new(FailureKind::WorkerDied, "cut")));
                    }
                    Effect::Stop(instance, _) => {
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
                    Effect::RememberQuarantine | Effect::SetTimer(_) => {}
                }
            }
        }
    }

    fn model(&self, id: InstanceId) -> String {
        self.state.instances().get(&id).map_or_else(|| "?".into(), |instance| instance.model.to_string())
    }

    fn request(&mut self, id: u64, model: &str) {
        self.send(Event::Request { id: RequestId(id), model: model.into(), want: Want::Serve, keep: None });
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
fn a_lowered_budget_is_kept_at_once_by_those_who_are_worth_least() {
    let lowered = |budget, loaded_max| in_force(policy(&["a", "b", "c"], budget, loaded_max));
    for (budget, loaded_max, gone) in [
        (300, None, &[][..]),
        (250, None, &["stop b"]),
        (100, None, &["stop b", "stop c"]),
        (300, Some(2), &["stop b"]),
    ] {
        let mut bench = Bench::new(policy(&["a", "b", "c"], 300, None));
        for (id, model) in [(1, "a"), (2, "b"), (3, "c")] {
            bench.now += 1;
            bench.request(id, model);
        }
        for id in [2, 3] {
            bench.now += 1;
            bench.send(Event::Done(RequestId(id)));
        }
        bench.trace.clear();
        bench.send(lowered(budget, loaded_max));
        bench.check(gone);
        assert_eq!(bench.state.model_state(&"a".into()).0, ModelState::Hot, "it serves");
    }
}

#[test]
fn what_serves_beyond_a_lowered_budget_goes_with_its_last_request() {
    let mut bench = Bench::new(policy(&["a", "b"], 200, None));
    bench.request(1, "a");
    bench.now += 1;
    bench.request(2, "b");
    bench.trace.clear();
    let mut pinned = policy(&["a", "b"], 100, None);
    pinned.models.get_mut("a").unwrap().pin = true;
    bench.send(in_force(pinned));
    bench.check(&[]);
    assert_eq!(bench.state.model_state(&"b".into()).0, ModelState::Draining);
    bench.send(Event::Done(RequestId(2)));
    bench.check(&["stop b"]);
    bench.send(Event::Done(RequestId(1)));
    bench.check(&[]);
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
    policy.models.get_mut("a").unwrap().pin = true;
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
    let request = |id| Event::Request { id: RequestId(id), model: "a".into(), want: Want::Serve, keep: None };
    state.step(Millis(1), request(1));
    state.step(Millis(1), request(2));
    let cause = Failure::new(FailureKind::NotUsable, "bad magic");
    let effects = state.step(Millis(2), Event::Failed(InstanceId(1), cause.clone()));
    for id in [1, 2] {
        assert!(effects.contains(&Effect::Refuse(RequestId(id), cause.clone())), "{effects:?}");
    }
    assert!(effects.contains(&Effect::Stop(InstanceId(1), EvictionCause::Failed)));
    state.step(Millis(3), Event::Exited(InstanceId(1), cause.clone()));
    assert_eq!(state.step(Millis(4), request(3)), [Effect::Refuse(RequestId(3), cause)]);
    assert!(matches!(state.step(Millis(2_000), request(4))[0], Effect::Start { .. }));
}

#[test]
fn a_crash_while_loading_is_a_failed_load_and_one_while_hot_is_not() {
    let mut state = State::new(policy(&["a"], 100, None));
    let request = |id| Event::Request { id: RequestId(id), model: "a".into(), want: Want::Serve, keep: None };
    let crash = Failure::new(FailureKind::WorkerDied, "crashed");
    state.step(Millis(1), request(1));
    state.step(
        Millis(1),
        Event::Planned { instance: InstanceId(1), required: 1, preferred: 1, mapped: Mapped::default() },
    );
    assert_eq!(
        state.step(Millis(2), Event::Exited(InstanceId(1), crash.clone())),
        [Effect::Refuse(RequestId(1), crash.clone())]
    );

    state.step(Millis(2_000), request(2));
    state.step(
        Millis(2_001),
        Event::Planned { instance: InstanceId(2), required: 1, preferred: 1, mapped: Mapped::default() },
    );
    state.step(Millis(2_002), Event::Loaded(InstanceId(2)));
    assert_eq!(state.step(Millis(2_003), Event::Exited(InstanceId(2), crash)), []);
    assert!(matches!(state.step(Millis(2_004), request(3))[0], Effect::Start { .. }));
}

/// A request whose worker died so many times, after so many milliseconds of it.
fn again(id: u64, deaths: u32, ran_ms: u64) -> Event {
    Event::Request { id: RequestId(id), model: "a".into(), want: Want::Again(Again { deaths, ran_ms }), keep: None }
}

/// Model `a` serves so many at once.
fn wide(leases_max: usize) -> Bench {
    let mut policy = policy(&["a"], 100, None);
    policy.models.get_mut("a").unwrap().leases_max = leases_max;
    let mut bench = Bench::new(policy);
    bench.send(Event::Request { id: RequestId(0), model: "a".into(), want: Want::Load, keep: None });
    bench.check(&["start a", "load a", "ready 0"]);
    bench
}

#[test]
fn who_is_tried_again_goes_first_and_others_follow_once_it_is_past_its_point() {
    let mut bench = wide(3);
    bench.send(again(1, 1, 2_000));
    bench.now += 10;
    bench.send(again(2, 1, 0));
    bench.request(3, "a");
    bench.check(&["grant 1 a", "grant 2 a"]);
    // Twice what the first had run, and a second.
    bench.now = 5_000;
    bench.send(Event::Timer);
    bench.check(&[]);
    bench.now += 1;
    bench.send(Event::Timer);
    bench.check(&["grant 3 a"]);
    bench.send(Event::Done(RequestId(1)));
    bench.request(4, "a");
    bench.check(&["grant 4 a"]);
}

#[test]
fn a_trial_ends_with_the_last_that_is_on_it() {
    let mut bench = wide(3);
    bench.send(again(1, 1, 4_000));
    bench.request(2, "a");
    bench.send(Event::Done(RequestId(1)));
    bench.check(&["grant 1 a", "grant 2 a"]);
}

#[test]
fn each_further_death_leaves_less_company_and_in_the_end_none() {
    for (deaths, leases_max, together) in
        [(1, 16, 16), (2, 16, 4), (3, 16, 1), (4, 80, 1), (2, 3, 1), (3, 80, 5), (5, 512, 1), (9, 512, 1), (1, 1, 1)]
    {
        let mut bench = wide(leases_max);
        (1..=90).for_each(|id| bench.send(again(id, deaths, 0)));
        assert_eq!(bench.trace.len(), together, "{deaths} deaths, {leases_max} at once");
        bench.request(500, "a");
        bench.now = 500_000;
        bench.send(Event::Timer);
        let is_confined = deaths > 4;
        assert_eq!(bench.trace.contains(&"grant 500 a".to_owned()), !is_confined && together < leases_max, "{deaths}");
    }
}

#[test]
fn between_two_trials_others_are_served_for_a_quantum() {
    let mut bench = wide(2);
    bench.send(again(1, 2, 0));
    bench.send(again(2, 2, 0));
    bench.request(3, "a");
    bench.check(&["grant 1 a"]);
    bench.now = 1_001;
    bench.send(Event::Timer);
    bench.send(Event::Done(RequestId(1)));
    bench.request(4, "a");
    bench.check(&["grant 3 a", "grant 4 a"]);
    bench.request(5, "a");
    bench.now = 1_101;
    bench.send(Event::Done(RequestId(3)));
    // The quantum is over: nobody begins any more.
    bench.check(&[]);
    bench.send(Event::Done(RequestId(4)));
    bench.check(&["grant 2 a"]);
    bench.now = 2_101;
    bench.send(Event::Timer);
    bench.check(&["grant 5 a"]);
}

#[test]
fn who_is_tried_again_on_a_busy_worker_leaves_it_to_others_for_a_quantum() {
    let mut bench = wide(2);
    bench.request(1, "a");
    bench.send(again(2, 1, 0));
    bench.request(3, "a");
    bench.check(&["grant 1 a", "grant 3 a"]);
    bench.now += 100;
    bench.send(Event::Done(RequestId(3)));
    bench.request(4, "a");
    bench.check(&[]);
    bench.send(Event::Done(RequestId(1)));
    bench.check(&["grant 2 a"]);
}

#[test]
fn patience_ends_and_the_load_goes_on() {
    let mut state = State::new(policy(&["a"], 100, None));
    state.step(Millis(1), Event::Request { id: RequestId(1), model: "a".into(), want: Want::Serve, keep: None });
    state.step(
        Millis(2),
        Event::Planned { instance: InstanceId(1), required: 100, preferred: 100, mapped: Mapped::default() },
    );
    let effects = state.step(Millis(90_001), Event::Timer);
    assert!(
        matches!(&effects[..], [Effect::Refuse(RequestId(1), failure)] if failure.kind == FailureKind::StillLoading),
        "{effects:?}"
    );
    assert_eq!(state.instances()[&InstanceId(1)].state, ModelState::Loading);
}

/// Sends a timer, and says who was refused and why.
fn refused_at(state: &mut State, now: u64) -> Vec<(u64, FailureKind)> {
    let effects = state.step(Millis(now), Event::Timer);
    let refused = effects.into_iter().filter_map(|effect| match effect {
        Effect::Refuse(id, failure) => Some((id.0, failure.kind)),
        _ => None,
    });
    refused.collect()
}

/// Model `a` is hot since 1 ms, requests 1 and 2 have its slots, request 3 waits.
fn busy() -> State {
    let mut bench = Bench::new(policy(&["a"], 100, None));
    (1..=3).for_each(|id| bench.request(id, "a"));
    bench.check(&["start a", "load a", "grant 1 a", "grant 2 a"]);
    bench.state
}

#[test]
fn who_waits_for_a_slot_is_not_told_of_loading() {
    let mut state = busy();
    assert_eq!(refused_at(&mut state, 90_001), [], "`hold` is for loads");
    assert_eq!(refused_at(&mut state, 600_000), []);
    assert_eq!(refused_at(&mut state, 600_001), [(3, FailureKind::Busy)]);
}

#[test]
fn a_slot_that_comes_free_after_hold_is_granted() {
    let mut state = busy();
    state.step(Millis(100_000), Event::Timer);
    let effects = state.step(Millis(300_000), Event::Done(RequestId(1)));
    assert!(matches!(effects[..], [Effect::Grant(RequestId(3), InstanceId(1)), ..]), "{effects:?}");
}

#[test]
fn the_clock_of_a_load_begins_when_the_model_is_lost() {
    let died = || Failure::new(FailureKind::WorkerDied, "crash");
    let mut state = busy();
    state.step(Millis(200_000), Event::Exited(InstanceId(1), died()));
    assert_eq!(refused_at(&mut state, 289_999), []);
    assert_eq!(refused_at(&mut state, 290_000), [(3, FailureKind::StillLoading)], "90 s after the crash");

    // Loaded again in time, it waits for a slot again; all of it together is bounded.
    let mut state = busy();
    let confined = Event::Request {
        id: RequestId(4),
        model: "a".into(),
        want: Want::Again(Again { deaths: 5, ran_ms: 0 }),
        keep: None,
    };
    for (now, event) in [
        (550_000, Event::Exited(InstanceId(1), died())),
        (550_000, Event::Done(RequestId(1))),
        (550_000, Event::Done(RequestId(2))),
        (560_000, confined),
        (570_000, Event::Planned { instance: InstanceId(2), required: 1, preferred: 1, mapped: Mapped::default() }),
        (580_000, Event::Loaded(InstanceId(2))),
    ] {
        state.step(Millis(now), event);
    }
    assert_eq!(refused_at(&mut state, 690_000), [], "a slot since 580 s");
    assert_eq!(refused_at(&mut state, 690_001), [(3, FailureKind::Busy)], "690 s in all");
}

#[test]
fn an_idle_model_is_unloaded_on_time() {
    let mut policy = policy(&["a"], 100, None);
    policy.models.get_mut("a").unwrap().keep = Keep::For(5_000);
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
    bench.send(Event::Unload { model: "a".into(), cut_after_ms: None });
    bench.request(2, "a");
    bench.check(&["start a", "load a", "grant 1 a"]);
    bench.send(Event::Done(RequestId(1)));
    bench.check(&["stop a", "start a", "load a", "grant 2 a"]);
}

#[test]
fn a_changed_model_leaves_and_who_waits_gets_the_new_one() {
    let mut state = State::new(policy(&["a"], 1_000, None));
    let request = |id| Event::Request { id: RequestId(id), model: "a".into(), want: Want::Serve, keep: None };
    let planned = |id| Event::Planned { instance: id, required: 10, preferred: 10, mapped: Mapped::default() };
    let (old, new) = (InstanceId(1), InstanceId(2));
    state.step(Millis(1), request(1));
    state.step(Millis(2), planned(old));
    let event = remade(&state, "a");
    let changed = state.step(Millis(3), event);
    assert!(changed.contains(&Effect::Stop(old, EvictionCause::Reload)), "{changed:?}");
    assert!(!changed.iter().any(|effect| matches!(effect, Effect::Refuse(..))), "{changed:?}");
    // The old one may come to its end of loading before it heeds.
    state.step(Millis(4), Event::Loaded(old));
    let gone = state.step(Millis(5), Event::Exited(old, Failure::new(FailureKind::WorkerDied, "asked")));
    assert!(matches!(gone[0], Effect::Start { instance, .. } if instance == new), "{gone:?}");
    state.step(Millis(6), planned(new));
    assert!(state.step(Millis(7), Event::Loaded(new)).contains(&Effect::Grant(RequestId(1), new)));
    // Under a lease it stays until that ends, and leaves for the same reason.
    let event = remade(&state, "a");
    assert!(!state.step(Millis(8), event).iter().any(|effect| matches!(effect, Effect::Stop(..))));
    assert!(state.step(Millis(9), Event::Done(RequestId(1))).contains(&Effect::Stop(new, EvictionCause::Reload)));
}

#[test]
fn a_failure_is_forgotten_with_the_entry_that_failed() {
    let mut bench = Bench::new(policy(&["a"], 1_000, None));
    let crash = Failure::new(FailureKind::WorkerDied, "crashed");
    bench.send(Event::Quarantine("a".into(), crash));
    bench.request(1, "a");
    let event = remade(&bench.state, "a");
    bench.send(event);
    bench.request(2, "a");
    bench.check(&["refuse 1 NotUsable", "start a", "load a", "grant 2 a"]);
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

fn parking(models: &[&str], budget: u64, loaded_max: Option<usize>) -> Policy {
    let mut policy = policy(models, budget, loaded_max);
    policy.models.values_mut().for_each(|model| model.parks = true);
    policy
}

#[test]
fn a_forced_unload_cuts_at_its_deadline() {
    let mut bench = Bench::new(policy(&["a"], 100, None));
    bench.request(1, "a");
    bench.send(Event::Unload { model: "a".into(), cut_after_ms: Some(3_000) });
    bench.now += 2_999;
    bench.send(Event::Timer);
    bench.check(&["start a", "load a", "grant 1 a"]);
    bench.now += 1;
    bench.send(Event::Timer);
    bench.check(&["cut a"]);
    assert!(bench.state.instances().is_empty());
}

#[test]
fn replicas_start_when_all_are_busy_and_share_the_work() {
    let mut policy = policy(&["a", "b"], 250, None);
    policy.models.get_mut("a").unwrap().replicas = 3;
    let mut bench = Bench::new(policy);
    for id in 1..=5 {
        bench.request(id, "a");
    }
    // Two leases each; a third instance would not fit, and nothing is evicted for one.
    bench.check(&["start a", "load a", "grant 1 a", "grant 2 a", "start a", "load a", "grant 3 a", "grant 4 a"]);
    for id in 1..=4 {
        bench.send(Event::Done(RequestId(id)));
    }
    bench.check(&["grant 5 a"]);
    bench.request(6, "a");
    let leases: Vec<usize> = bench.state.instances().values().map(|instance| instance.leases.len()).collect();
    assert_eq!(leases, [1, 1], "the least loaded serves first");
}

#[test]
fn a_model_goes_where_there_is_memory() {
    let cuda = Device::Cuda;
    let mut policy = policy(&["a", "b"], 10, None);
    for n in 0..2 {
        policy.devices.insert(cuda(n), DevicePolicy { budget: 150, loaded_max: None });
    }
    policy.models.values_mut().for_each(|model| model.devices = vec![cuda(0), cuda(1)]);
    let mut bench = Bench::new(policy);
    bench.request(1, "a");
    bench.send(Event::Done(RequestId(1)));
    bench.request(2, "b");
    // What `b` needs is known only once it was started; it moves instead of evicting.
    bench.check(&["start a", "load a", "grant 1 a", "start b", "stop b", "start b", "load b", "grant 2 b"]);
    let devices: Vec<Device> = bench.state.instances().values().map(|instance| instance.device).collect();
    assert_eq!(devices, [cuda(0), cuda(1)]);
}

/// Two devices, the first of which is too small for `large`.
fn unequal(models: &[&str]) -> Policy {
    let mut policy = policy(models, 10, None);
    let cuda = Device::Cuda;
    for (n, budget) in [(0, 50), (1, 150)] {
        policy.devices.insert(cuda(n), DevicePolicy { budget, loaded_max: None });
    }
    policy.models.values_mut().for_each(|model| model.devices = vec![cuda(0), cuda(1)]);
    policy
}

#[test]
fn a_model_goes_where_it_can_fit_though_that_is_not_the_first() {
    let mut bench = Bench::new(unequal(&["a", "b"]));
    bench.request(1, "a");
    // It is started on the small one, where nobody knows yet what it needs.
    bench.check(&["start a", "stop a", "start a", "load a", "grant 1 a"]);
    bench.send(Event::Done(RequestId(1)));
    bench.now += 1;
    bench.request(2, "b");
    bench.check(&["start b", "stop b", "start b", "stop a", "load b", "grant 2 b"]);
    bench.send(Event::Done(RequestId(2)));
    bench.now += 1;
    // Now it is known.
    bench.request(3, "a");
    bench.check(&["start a", "stop b", "load a", "grant 3 a"]);
}

#[test]
fn what_fits_nowhere_is_refused() {
    let mut bench = Bench::new(unequal(&["a"]));
    bench.need.insert("a".into(), 200);
    bench.request(1, "a");
    bench.check(&["start a", "stop a", "refuse 1 OutOfMemory"]);
}

#[test]
fn a_model_goes_to_the_less_busy_of_two_full_devices() {
    let mut policy = unequal(&["a", "b", "c"]);
    policy.devices.values_mut().for_each(|device| device.budget = 150);
    let mut bench = Bench::new(policy);
    bench.request(1, "a");
    bench.request(2, "b");
    bench.send(Event::Done(RequestId(2)));
    bench.trace.clear();
    bench.now += 1;
    bench.request(3, "c");
    bench.check(&["start c", "stop b", "load c", "grant 3 c"]);
}

#[test]
fn an_operators_park_brings_nothing_back_that_leaves_for_good() {
    let mut bench = Bench::new(parking(&["a"], 1_000, None));
    bench.request(1, "a");
    let event = remade(&bench.state, "a");
    bench.send(event);
    bench.send(Event::Park("a".into()));
    bench.request(2, "a");
    bench.send(Event::Done(RequestId(1)));
    bench.check(&["start a", "load a", "grant 1 a", "stop a", "start a", "load a", "grant 2 a"]);
}

#[test]
fn files_that_several_map_are_held_once() {
    for (files, trace) in [
        // 100 bytes each, 60 of them in one file: 140 together.
        (1, vec!["start a", "load a", "start b", "load b", "start c", "stop a", "load c"]),
        // Each on its own: 100 and 100.
        (0, vec!["start a", "load a", "start b", "stop a", "load b", "start c", "stop b", "load c"]),
    ] {
        let mut bench = Bench::new(policy(&["a", "b", "c"], 170, None));
        for (id, model) in [(1, "a"), (2, "b"), (3, "c")] {
            bench.now += 1;
            bench.mapped = Mapped { files: if files == 1 { 1 } else { id }, bytes: 60 };
            bench.send(Event::Request { id: RequestId(id), model: model.into(), want: Want::Load, keep: None });
        }
        bench.trace.retain(|line| !line.starts_with("ready"));
        bench.check(&trace);
    }
}

#[test]
fn a_replica_needs_no_second_copy_of_its_mapped_file() {
    let mut policy = policy(&["a"], 150, None);
    policy.models.values_mut().for_each(|model| (model.replicas, model.leases_max) = (2, 1));
    let mut bench = Bench::new(policy);
    bench.mapped = Mapped { files: 1, bytes: 60 };
    (1..=2).for_each(|id| bench.request(id, "a"));
    bench.check(&["start a", "load a", "grant 1 a", "start a", "load a", "grant 2 a"]);
}

#[test]
fn a_load_that_runs_out_of_memory_is_tried_once_more_without_the_idle() {
    let mut state = State::new(policy(&["a", "b"], 1_000, None));
    let request =
        |id, model: &str| Event::Request { id: RequestId(id), model: model.into(), want: Want::Serve, keep: None };
    let planned =
        |id| Event::Planned { instance: InstanceId(id), required: 10, preferred: 10, mapped: Mapped::default() };
    let memory = Failure::new(FailureKind::OutOfMemory, "cudaMalloc");
    state.step(Millis(1), request(1, "a"));
    state.step(Millis(2), planned(1));
    state.step(Millis(3), Event::Loaded(InstanceId(1)));
    state.step(Millis(4), Event::Done(RequestId(1)));
    state.step(Millis(5), request(2, "b"));
    state.step(Millis(6), planned(2));
    let first = state.step(Millis(7), Event::Failed(InstanceId(2), memory.clone()));
    assert_eq!(
        first[..2],
        [Effect::Stop(InstanceId(1), EvictionCause::Memory), Effect::Stop(InstanceId(2), EvictionCause::Failed)]
    );
    state.step(Millis(8), Event::Exited(InstanceId(1), memory.clone()));
    state.step(Millis(9), Event::Exited(InstanceId(2), memory.clone()));
    state.step(Millis(10), planned(3));
    let second = state.step(Millis(11), Event::Failed(InstanceId(3), memory.clone()));
    assert!(second.contains(&Effect::Refuse(RequestId(2), memory)), "{second:?}");
}

#[test]
fn a_renewed_model_is_tried_anew_and_what_is_hot_stays() {
    let mut bench = Bench::new(policy(&["a", "b"], 1000, None));
    bench.request(1, "a");
    bench.check(&["start a", "load a", "grant 1 a"]);
    let harmful = Failure::new(FailureKind::Suspected, "harmful");
    bench.send(Event::Quarantine("b".into(), harmful));
    assert!(bench.state.is_quarantined(&"b".into()));
    bench.send(Event::Renew(Arc::new(["a".into(), "b".into()].into())));
    assert!(!bench.state.is_quarantined(&"b".into()));
    assert_eq!(bench.state.model_state(&"a".into()).0, ModelState::Hot);
    bench.request(2, "b");
    bench.check(&["start b", "load b", "grant 2 b"]);
    bench.send(Event::Done(RequestId(1)));
    bench.request(3, "a");
    bench.check(&["grant 3 a"]);
}

#[test]
fn three_crashes_while_loading_are_a_quarantine_that_an_operator_ends() {
    let mut state = State::new(policy(&["a"], 100, None));
    let crash = Failure::new(FailureKind::WorkerDied, "crashed");
    let request = |id, want| Event::Request { id: RequestId(id), model: "a".into(), want, keep: None };
    let mut now = 0;
    for id in 1..=3 {
        now += 100_000;
        let effects = state.step(Millis(now), request(id, Want::Serve));
        assert!(matches!(effects[0], Effect::Start { .. }), "{effects:?}");
        state.step(Millis(now + 1), Event::Exited(InstanceId(id), crash.clone()));
    }
    let refused = state.step(Millis(now + 10_000_000), request(4, Want::Serve));
    assert!(
        matches!(&refused[..], [Effect::Refuse(_, failure)] if failure.message.contains("quarantined")),
        "{refused:?}"
    );
    let tried = state.step(Millis(now + 10_000_001), request(5, Want::Load));
    assert!(matches!(tried[0], Effect::Start { .. }), "{tried:?}");
    // An operator who was wrong has mended nothing.
    state.step(Millis(now + 10_000_002), Event::Exited(InstanceId(4), crash));
    assert_eq!(state.quarantined().count(), 1);
}

#[test]
fn what_others_use_is_not_to_be_had() {
    let mut state = State::new(policy(&["a"], 100, None));
    let device = Device::Cpu;
    let request = Event::Request { id: RequestId(1), model: "a".into(), want: Want::Serve, keep: None };
    state.step(Millis(1), request);
    state.step(Millis(2), Event::Measured(device, 50));
    state.step(
        Millis(3),
        Event::Planned { instance: InstanceId(1), required: 80, preferred: 80, mapped: Mapped::default() },
    );
    assert_eq!(state.instances()[&InstanceId(1)].state, ModelState::Waiting);
    let mut patient = state.clone();
    assert!(
        patient
            .step(Millis(4), Event::Measured(device, 90))
            .contains(&Effect::Load { instance: InstanceId(1), granted: 80 })
    );
    let refused = state.step(Millis(5_001), Event::Timer);
    assert!(
        refused.iter().any(|effect| matches!(effect, Effect::Refuse(_, f) if f.message.contains("other programs"))),
        "{refused:?}"
    );
}

#[test]
fn a_woken_model_takes_what_it_was_loaded_with() {
    let mut state = State::new(parking(&["a", "b"], 150, None));
    let request = |id, model: &str| {
        let (id, model) = (RequestId(id), model.into());
        Event::Request { id, model, want: Want::Serve, keep: None }
    };
    state.step(Millis(1), request(1, "a"));
    state.step(
        Millis(2),
        Event::Planned { instance: InstanceId(1), required: 50, preferred: 120, mapped: Mapped::default() },
    );
    state.step(Millis(3), Event::Loaded(InstanceId(1)));
    state.step(Millis(4), Event::Done(RequestId(1)));
    state.step(Millis(5), Event::Park("a".into()));
    state.step(Millis(6), Event::Parked { instance: InstanceId(1), held: 0 });
    state.step(Millis(7), request(2, "b"));
    state.step(
        Millis(8),
        Event::Planned { instance: InstanceId(2), required: 60, preferred: 60, mapped: Mapped::default() },
    );
    state.step(Millis(9), Event::Loaded(InstanceId(2)));
    state.step(Millis(10), Event::Done(RequestId(2)));
    // Its 50 would fit beside the 60 of `b`; the 120 that it takes again do not.
    let effects = state.step(Millis(11), request(3, "a"));
    assert!(effects.contains(&Effect::Park(InstanceId(2), EvictionCause::Memory)), "{effects:?}");
    assert!(!effects.contains(&Effect::Unpark(InstanceId(1))), "{effects:?}");
}
