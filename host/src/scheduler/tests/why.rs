//! Dry runs of requests: what is said must be what then happens.

use super::*;

#[test]
fn a_dry_run_says_what_the_real_one_does_and_changes_nothing() {
    let mut policy = policy(&["a", "b", "c"], 150, None);
    policy.models.get_mut("a").unwrap().parks = true;
    let mut bench = Bench::new(policy);
    let outcome = |bench: &Bench, model: &str| bench.state.explain(Millis(bench.now), &model.into(), None, None);
    assert_eq!(outcome(&bench, "a").outcome, Outcome::Unknown);
    assert_eq!(bench.state.explain(Millis(1), &"a".into(), Some(100), None).outcome, Outcome::Fits);
    assert_eq!(bench.state.explain(Millis(1), &"a".into(), Some(151), None).outcome, Outcome::Refused);
    bench.request(1, "b");
    bench.send(Event::Done(RequestId(1)));
    bench.request(2, "a");
    let waits = outcome(&bench, "b");
    assert_eq!(waits.outcome, Outcome::Waits);
    assert!(waits.message.contains("`a` serves a request"), "{}", waits.message);
    bench.send(Event::Done(RequestId(2)));
    assert_eq!(outcome(&bench, "a").outcome, Outcome::Hot);
    let before = bench.state.clone();
    let evicts = outcome(&bench, "b");
    assert_eq!((evicts.outcome, evicts.leaves[0].model.as_str(), evicts.leaves[0].how), (Outcome::Evicts, "a", "park"));
    assert_eq!(bench.state, before);
    bench.trace.clear();
    bench.request(3, "b");
    bench.check(&["start b", "park a", "load b", "grant 3 b"]);
}

#[test]
fn a_dry_run_tells_the_truth_of_models_that_are_not_just_cold_or_hot() {
    let mut state = State::new(policy(&["a"], 100, None));
    let why = |state: &State, now| {
        let told = state.explain(Millis(now), &"a".into(), None, Some(360));
        (told.outcome, told.message)
    };
    let serve = |id| Event::Request { id: RequestId(id), model: "a".into(), want: Want::Serve, keep: None };
    let instance = InstanceId(1);
    state.step(Millis(0), serve(1));
    state.step(Millis(1), Event::Planned { instance, required: 80, preferred: 80, mapped: Mapped::default() });
    assert_eq!(why(&state, 2), (Outcome::Coming, "`a` is loading on cpu, 36 %".to_owned()));
    state.step(Millis(4_001), Event::Loaded(instance));
    // Its slots are taken.
    let slots = state.policy().models["a"].leases_max as u64;
    (2..=slots + 1).for_each(|id| drop(state.step(Millis(4_001), serve(id))));
    let (outcome, message) = why(&state, 4_002);
    assert_eq!(outcome, Outcome::Waits);
    assert!(message.contains("as many requests as it may"), "{message}");
    // It dies, and the second load takes as long as the first.
    state.step(Millis(5_000), Event::Exited(instance, Failure::new(FailureKind::WorkerDied, "it died")));
    let again = state.instance_of(&"a".into()).map(|(id, _)| id).unwrap_or(InstanceId(2));
    state.step(
        Millis(5_000),
        Event::Planned { instance: again, required: 80, preferred: 80, mapped: Mapped::default() },
    );
    let (outcome, message) = why(&state, 6_000);
    assert_eq!((outcome, message.contains("about 3.0 s more")), (Outcome::Coming, true), "{message}");
    // That load fails: it is tried again after a pause, and a request before is refused with the cause.
    state.step(Millis(7_000), Event::Failed(again, Failure::new(FailureKind::NotUsable, "no such option")));
    state.step(Millis(7_000), Event::Exited(again, Failure::new(FailureKind::WorkerDied, "ended")));
    let (outcome, message) = why(&state, 7_100);
    assert_eq!(outcome, Outcome::Refused);
    assert!(message.contains("is tried again in") && message.contains("no such option"), "{message}");
    // Quarantined until somebody says so.
    state.step(Millis(8_000), Event::Quarantine("a".into(), Failure::new(FailureKind::WorkerDied, "it dies")));
    let (outcome, message) = why(&state, 1_000_000);
    assert_eq!(outcome, Outcome::Refused);
    assert!(message.contains("quarantined") && message.contains("it dies"), "{message}");
}
