//! Parking, waking, and what becomes of parked models when memory is short.

use super::*;

#[test]
fn a_model_that_parks_is_parked_for_another_and_woken_again() {
    let mut bench = Bench::new(parking(&["a", "b"], 150, None));
    bench.held = 20;
    for (id, model) in [(1, "a"), (2, "b"), (3, "a"), (4, "b")] {
        bench.request(id, model);
        bench.send(Event::Done(RequestId(id)));
    }
    bench.check(&[
        "start a",
        "load a",
        "grant 1 a",
        "start b",
        "park a",
        "load b",
        "grant 2 b",
        "park b",
        "wake a",
        "grant 3 a",
        "park a",
        "wake b",
        "grant 4 b",
    ]);
}

#[test]
fn a_parked_model_leaves_for_good_when_its_memory_is_needed() {
    let mut bench = Bench::new(parking(&["a", "b", "c"], 150, None));
    bench.held = 60;
    for (id, model) in [(1, "a"), (2, "b")] {
        bench.request(id, model);
        bench.send(Event::Done(RequestId(id)));
    }
    // Parked, `a` still holds 60 of 150, so `b` fits only without it.
    bench.check(&["start a", "load a", "grant 1 a", "start b", "park a", "stop a", "load b", "grant 2 b"]);
}

#[test]
fn parked_models_take_no_place() {
    let mut bench = Bench::new(parking(&["a", "b"], 1_000, Some(1)));
    bench.request(1, "a");
    bench.send(Event::Done(RequestId(1)));
    bench.request(2, "b");
    bench.send(Event::Done(RequestId(2)));
    bench.check(&["start a", "load a", "grant 1 a", "start b", "park a", "load b", "grant 2 b"]);
}

#[test]
fn a_device_parks_into_host_memory_only_as_far_as_that_goes() {
    let cuda = Device::Cuda(0);
    for (host_budget, expected) in [(100, "park a"), (99, "stop a")] {
        let mut policy = parking(&["a", "b"], host_budget, None);
        policy.devices.insert(cuda, DevicePolicy { budget: 150, loaded_max: None });
        policy.models.values_mut().for_each(|model| model.devices = vec![cuda]);
        let mut bench = Bench::new(policy);
        bench.request(1, "a");
        bench.send(Event::Done(RequestId(1)));
        bench.request(2, "b");
        assert_eq!(bench.trace[4], expected, "{:?}", bench.trace);
    }
}

#[test]
fn a_park_that_fails_ends_the_worker_and_is_not_tried_again() {
    let mut state = State::new(parking(&["a"], 100, None));
    let request = |id| Event::Request { id: RequestId(id), model: "a".into(), want: Want::Serve, keep: None };
    let planned =
        |id| Event::Planned { instance: InstanceId(id), required: 10, preferred: 10, mapped: Mapped::default() };
    let leaked = Failure::new(FailureKind::NotUsable, "its memory did not come back");
    state.step(Millis(1), request(1));
    state.step(Millis(2), planned(1));
    state.step(Millis(3), Event::Loaded(InstanceId(1)));
    state.step(Millis(4), Event::Done(RequestId(1)));
    let parked = state.step(Millis(5), Event::Park("a".into()));
    assert!(parked.contains(&Effect::Park(InstanceId(1), EvictionCause::Asked)), "{parked:?}");
    // Someone who comes meanwhile waits for a fresh worker, and is not told of the failure.
    state.step(Millis(6), request(2));
    let failed = state.step(Millis(7), Event::Failed(InstanceId(1), leaked.clone()));
    assert!(failed.contains(&Effect::Stop(InstanceId(1), EvictionCause::Failed)), "{failed:?}");
    let exited = state.step(Millis(8), Event::Exited(InstanceId(1), leaked));
    assert!(matches!(exited[0], Effect::Start { instance: InstanceId(2), .. }), "{exited:?}");
    state.step(Millis(9), planned(2));
    assert_eq!(state.step(Millis(10), Event::Loaded(InstanceId(2)))[0], Effect::Grant(RequestId(2), InstanceId(2)));
    state.step(Millis(11), Event::Done(RequestId(2)));
    let asked = state.step(Millis(12), Event::Park("a".into()));
    assert!(!asked.iter().any(|effect| matches!(effect, Effect::Park(..))), "{asked:?}");
}

#[test]
fn a_park_that_failed_is_tried_again_once_the_model_is_made_of_other_files() {
    let mut state = State::new(parking(&["a"], 100, None));
    let request = |id| Event::Request { id: RequestId(id), model: "a".into(), want: Want::Serve, keep: None };
    let leaked = Failure::new(FailureKind::NotUsable, "its memory did not come back");
    let is_parked = |effects: &[Effect]| effects.iter().any(|effect| matches!(effect, Effect::Park(..)));
    let mut now = 0;
    let mut step = |event| {
        now += 1;
        state.step(Millis(now), event)
    };
    let hot = |id| {
        let planned =
            Event::Planned { instance: InstanceId(id), required: 10, preferred: 10, mapped: Mapped::default() };
        [request(id), planned, Event::Loaded(InstanceId(id)), Event::Done(RequestId(id))]
    };
    let renewed = || Event::Renew(Arc::new(["a".into()].into()));
    hot(1).into_iter().for_each(|event| drop(step(event)));
    assert!(is_parked(&step(Event::Park("a".into()))));
    step(Event::Failed(InstanceId(1), leaked.clone()));
    step(Event::Exited(InstanceId(1), leaked.clone()));
    hot(2).into_iter().for_each(|event| drop(step(event)));
    // Another file lies there by now; what is up is made of the one before, which cannot park.
    step(renewed());
    assert!(!is_parked(&step(Event::Park("a".into()))));
    step(Event::Unload { model: "a".into(), cut_after_ms: None });
    step(Event::Exited(InstanceId(2), leaked.clone()));
    hot(3).into_iter().for_each(|event| drop(step(event)));
    assert!(is_parked(&step(Event::Park("a".into()))), "another file pays for the one before");
    // One that is parked when its file is replaced, and then fails, is no word on the next.
    step(Event::Parked { instance: InstanceId(3), held: 1 });
    step(renewed());
    step(Event::Failed(InstanceId(3), leaked.clone()));
    step(Event::Exited(InstanceId(3), leaked));
    hot(4).into_iter().for_each(|event| drop(step(event)));
    assert!(is_parked(&step(Event::Park("a".into()))), "the old file's failure is held against the new one");
}

#[test]
fn a_wake_that_fails_is_a_cold_start() {
    let mut state = State::new(parking(&["a"], 100, None));
    let request = |id| Event::Request { id: RequestId(id), model: "a".into(), want: Want::Serve, keep: None };
    let broken = Failure::new(FailureKind::NotUsable, "x");
    state.step(Millis(1), request(1));
    state.step(
        Millis(2),
        Event::Planned { instance: InstanceId(1), required: 10, preferred: 10, mapped: Mapped::default() },
    );
    state.step(Millis(3), Event::Loaded(InstanceId(1)));
    state.step(Millis(4), Event::Done(RequestId(1)));
    state.step(Millis(5), Event::Park("a".into()));
    state.step(Millis(6), Event::Parked { instance: InstanceId(1), held: 1 });
    let woken = state.step(Millis(7), request(2));
    assert!(woken.contains(&Effect::Unpark(InstanceId(1))), "{woken:?}");
    let failed = state.step(Millis(8), Event::Failed(InstanceId(1), broken.clone()));
    assert!(!failed.iter().any(|effect| matches!(effect, Effect::Refuse(..))), "{failed:?}");
    let exited = state.step(Millis(9), Event::Exited(InstanceId(1), broken));
    assert!(matches!(exited[0], Effect::Start { .. }), "{exited:?}");
}

#[test]
fn an_idle_model_parks_and_one_kept_for_nothing_stops() {
    let mut policy = parking(&["a"], 100, None);
    policy.models.get_mut("a").unwrap().keep = Keep::For(5_000);
    let mut bench = Bench::new(policy);
    bench.request(1, "a");
    bench.send(Event::Done(RequestId(1)));
    bench.now += 5_000;
    bench.send(Event::Timer);
    bench.check(&["start a", "load a", "grant 1 a", "park a"]);
    let keep = |id, keep| Event::Request { id: RequestId(id), model: "a".into(), want: Want::Serve, keep: Some(keep) };
    bench.send(keep(2, Keep::Forever));
    bench.send(Event::Done(RequestId(2)));
    bench.now += 1_000_000;
    bench.send(Event::Timer);
    bench.check(&["wake a", "grant 2 a"]);
    bench.send(keep(3, Keep::For(0)));
    bench.send(Event::Done(RequestId(3)));
    bench.check(&["grant 3 a", "stop a"]);
}

#[test]
fn an_operators_park_waits_for_leases() {
    let mut bench = Bench::new(parking(&["a"], 100, None));
    bench.request(1, "a");
    bench.send(Event::Park("a".into()));
    bench.check(&["start a", "load a", "grant 1 a"]);
    bench.send(Event::Done(RequestId(1)));
    bench.check(&["park a"]);
    bench.send(Event::Unload { model: "a".into(), cut_after_ms: None });
    bench.check(&["stop a"]);
}
