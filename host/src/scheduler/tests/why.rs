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
    assert_eq!(why(&state, 2), (Outcome::Coming, "`a` is loading on cpu for 0.0 s, 36 %".to_owned()));
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

#[test]
fn a_dry_run_sees_what_a_worker_that_starts_will_bring_about_and_why_a_hot_model_lets_nobody_in() {
    let mut state = State::new(policy(&["a", "b"], 100, None));
    let serve =
        |id, model: &str| Event::Request { id: RequestId(id), model: model.into(), want: Want::Serve, keep: None };
    let planned = |instance| Event::Planned { instance, required: 80, preferred: 80, mapped: Mapped::default() };
    let (first, second, third) = (InstanceId(1), InstanceId(2), InstanceId(3));
    let done = |id| Event::Done(RequestId(id));
    let gone = Event::Exited(first, Failure::new(FailureKind::WorkerDied, "asked"));
    let run =
        |state: &mut State, events: Vec<Event>| events.into_iter().for_each(|event| drop(state.step(Millis(1), event)));
    run(&mut state, vec![serve(1, "a"), planned(first), Event::Loaded(first), done(1)]);
    run(&mut state, vec![serve(2, "b"), planned(second), gone, Event::Loaded(second), done(2)]);
    run(&mut state, vec![serve(3, "a")]);
    let told = state.explain(Millis(5), &"a".into(), None, None);
    assert_eq!((told.state, told.outcome), (ModelState::Starting, Outcome::Evicts), "{}", told.message);
    assert_eq!(told.leaves[0].instance, second);
    // `b` serves on until `a` has waited for too long, and then nobody else begins there.
    run(&mut state, vec![serve(4, "b"), planned(third)]);
    assert_eq!(state.explain(Millis(50), &"b".into(), None, None).outcome, Outcome::Hot);
    let told = state.explain(Millis(20_000), &"b".into(), None, None);
    assert_eq!(told.outcome, Outcome::Waits);
    assert!(told.message.contains("leaves for `a`"), "{}", told.message);
    let behind = told.behind_step("verifying", 455);
    assert_eq!((behind.step, behind.progress), (Some("verifying"), Some(455)));
    assert!(
        behind.message.starts_with("`b` is verifying for ") && behind.message.contains(", 45 %; then: "),
        "{}",
        behind.message
    );
}
