//! The n-th effect of a swap scenario fails, for every n, until a run has no fault; then any two; then one kind each time.
//!
//! What must hold whatever fails: every request has exactly one answer, of its own model; nothing is held beyond the
//! budget; nobody is asked to leave under a lease or to generate after it; after a shutdown the loop ends, with no
//! worker left.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::super::AccessEntry;
use super::super::run::HEALTH_EVERY;
use super::fake::{Faults, Order, World};
use super::{Answer, Class, EVER, Host, OutputMode, Told, paused};
use crate::domain::{Failure, FailureKind};

const BUDGET: u64 = 150 << 20;
const YAML: &str = "devices: [{id: cpu, memory: 150MiB}]
defaults: {quantum: 50ms}
models:
  a: {type: text, plugin: parker}
  b: {type: text, plugin: fake, startup_time: 60}
";
/// How long a shutdown lets leases end.
const DRAIN: Duration = Duration::from_secs(30);
/// Within which the loop must end: the drain, a start that gives no plan, a worker that heeds no stop.
const END: Duration = Duration::from_secs(120);

/// Faults after which every request is still answered in full, because it is tried again on a fresh worker.
const HARMLESS: [&str; 15] = [
    "health: it dies",
    "health: it cannot serve",
    "loaded: it dies",
    "generate: it dies before it said anything",
    "answered: it dies",
    "stop: it does not heed",
    "stop: the plugin cannot release",
    "park: the plugin refuses",
    "park: it dies",
    "park: it never ends",
    "parked: it dies",
    "wake: the plugin refuses",
    "wake: it dies",
    "wake: it never ends",
    "woken: it dies",
];

/// A fault that breaks a stream, but none of the answers that nobody has seen a part of.
const MID_ANSWER: &str = "generate: it dies in mid-answer";

/// What a run came to.
struct Run {
    taken: Vec<&'static str>,
    names: BTreeSet<&'static str>,
}

/// What the clients and the operator of a run were told.
#[derive(Debug, Default)]
struct Answers {
    /// Of requests that nothing but a fault can harm.
    safe: Vec<(OutputMode, Answer)>,
    /// Of requests that an unload or the shutdown may meet while their model loads.
    met: Vec<Answer>,
    /// Of loads and unloads.
    controls: Vec<Result<(), Failure>>,
}

/// A hot; requests for B; A again; loads and unloads.
async fn scenario(host: &Host, leave: Duration) -> Answers {
    let mut answers = Answers::default();
    answers.safe.push((OutputMode::Streamed, answer(host.ask("a")).await));
    // Nobody asks for so long that it is asked how it is.
    sleep(HEALTH_EVERY).await;
    let kinds = [
        ("a", OutputMode::Gathered),
        ("b", OutputMode::Streamed),
        ("a", OutputMode::Streamed),
        ("b", OutputMode::Gathered),
    ];
    let first = kinds.map(|(model, delivery)| (delivery, host.ask_as(model, Class::Interactive, delivery)));
    let leaver = host.ask("b");
    tokio::spawn(async move {
        sleep(leave).await;
        leaver.abort();
    });
    sleep(Duration::from_millis(20)).await;
    let batch = (OutputMode::Gathered, host.ask_as("b", Class::Batch, OutputMode::Gathered));
    let again = (OutputMode::Streamed, host.ask("a"));
    answers.controls.push(control(host.handle().load("b".into(), AccessEntry::default())).await);
    for (delivery, task) in first.into_iter().chain([batch, again]) {
        answers.safe.push((delivery, answer(task).await));
    }
    let (busy, handle) = (host.ask("b"), host.handle());
    // By now it holds a lease; the unload drains it, and who comes after it loads the model anew.
    sleep(Duration::from_millis(40)).await;
    let unload = tokio::spawn({
        let handle = handle.clone();
        async move { control(handle.unload("b".into(), None, AccessEntry::default())).await }
    });
    sleep(Duration::from_millis(1)).await;
    let after = host.ask("b");
    answers.met.extend([answer(busy).await, answer(after).await]);
    answers.controls.push(unload.await.unwrap());
    answers.controls.push(control(handle.unload("a".into(), None, AccessEntry::default())).await);
    answers
}

async fn answer(task: JoinHandle<Told>) -> Answer {
    task.await.unwrap().answer
}

async fn control(asked: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    timeout(EVER, asked).await.unwrap_or_else(|_| Err(unanswered()))
}

fn unanswered() -> Failure {
    Failure::new(FailureKind::Internal, "a load or an unload was never answered")
}

/// One run from start to shutdown, with every rule checked.
fn run(faults: Faults, order: Order) -> Run {
    run_with(faults, order, Disturbance { leave: Duration::from_millis(20), crash: None })
}

/// What else happens in a run, and when.
#[derive(Clone, Copy, Debug)]
struct Disturbance {
    /// One client leaves.
    leave: Duration,
    /// Every worker that is there dies.
    crash: Option<Duration>,
}

fn run_with(faults: Faults, order: Order, disturbance: Disturbance) -> Run {
    let world = World::new(faults, order, BUDGET);
    let seen = world.clone();
    paused(async move {
        let host = Host::start(world, 2, YAML);
        if let Some(crash) = disturbance.crash {
            let world = host.world.clone();
            tokio::spawn(async move {
                sleep(crash).await;
                world.crash();
            });
        }
        let mut answers = scenario(&host, disturbance.leave).await;
        let last = ["a", "b", "b", "a"].map(|model| host.ask(model));
        sleep(Duration::from_millis(33)).await;
        let (world, begun) = (host.world.clone(), Instant::now());
        let ended = timeout(EVER, host.runtime.shutdown(DRAIN)).await;
        let context = || format!("{faults:?}, {order:?}, {disturbance:?}, taken: {:?}", world.taken());
        assert!(ended.is_ok() && begun.elapsed() <= END, "{}: the loop ended after {:?}", context(), begun.elapsed());
        for task in last {
            answers.met.push(answer(task).await);
        }
        // What was posted while the loop ended.
        sleep(END).await;
        assert_eq!(world.alive(), [], "{}: workers are left", context());
        assert_eq!(world.broken(), [""; 0], "{}", context());
        for told in answers.safe.iter().map(|(_, told)| told).chain(&answers.met) {
            assert!(!matches!(told, Answer::Wrong(_)), "{}: {answers:?}", context());
        }
        assert!(!answers.controls.contains(&Err(unanswered())), "{}: {answers:?}", context());
        let taken = world.taken();
        if disturbance.crash.is_some() {
            return;
        }
        if taken.len() < 2 && taken.iter().all(|way| HARMLESS.contains(way)) {
            assert!(answers.safe.iter().all(|(_, told)| *told == Answer::Whole), "{}: {answers:?}", context());
            assert!(answers.controls.iter().all(Result::is_ok), "{}: {answers:?}", context());
        }
        if taken == [MID_ANSWER] {
            let gathered =
                |(delivery, told): &(OutputMode, Answer)| *delivery == OutputMode::Gathered && *told != Answer::Whole;
            assert!(!answers.safe.iter().any(gathered), "{}: {answers:?}", context());
        }
        if taken.is_empty() {
            assert_eq!(answers.met[..2], [Answer::Whole, Answer::Whole], "{}", context());
        }
    });
    Run { taken: seen.taken(), names: seen.names() }
}

#[test]
fn whatever_effect_fails_nobody_is_lost_and_nothing_is_left() {
    let (mut runs, mut ways) = (0, BTreeMap::new());
    for order in [Order::ExitFirst, Order::CallsFirst] {
        let mut n = 1;
        loop {
            let run = run(Faults::Once(n), order);
            runs += 1;
            let Some(way) = run.taken.first() else { break };
            *ways.entry(*way).or_insert(0) += 1;
            n += 1;
        }
        assert!(n > 50, "only {n} runs: the scenario passes too few effects");
    }
    eprintln!("{runs} runs, one fault each: {ways:#?}");
    let all = run(Faults::Never, Order::ExitFirst).names;
    assert!(all.iter().all(|name| ways.contains_key(name)), "not every way to fail was taken: {all:?}");
}

#[test]
fn two_faults_in_one_run_are_no_worse() {
    // Every first one; of the second ones every fourth, so that the runs take seconds.
    const STRIDE: usize = 4;
    let mut runs = 0;
    'first: for first in 1.. {
        for second in (first + 1..).skip(first as usize % STRIDE).step_by(STRIDE) {
            let order = if (first + second) % 3 == 0 { Order::ExitFirst } else { Order::CallsFirst };
            let taken = run(Faults::Twice(first, second), order).taken.len();
            runs += 1;
            match taken {
                0 => break 'first,
                1 => break,
                _ => {}
            }
        }
    }
    assert!(runs > 1000, "only {runs} runs");
    eprintln!("{runs} runs, two faults each");
}

#[test]
fn a_way_to_fail_that_is_always_taken_is_no_worse() {
    let names = run(Faults::Never, Order::ExitFirst).names;
    assert!(names.len() > 12, "{names:?}");
    for name in &names {
        for order in [Order::ExitFirst, Order::CallsFirst] {
            assert!(!run(Faults::Always(name), order).taken.is_empty());
        }
    }
    eprintln!("{} runs, one way to fail each, every time", 2 * names.len());
}

#[test]
fn a_client_may_leave_at_any_moment() {
    // The scenario takes less; with all of it passed, the client has its answer before it can leave.
    for milliseconds in 0..200 {
        let leave = Duration::from_millis(milliseconds);
        run_with(Faults::Never, Order::ExitFirst, Disturbance { leave, crash: None });
    }
}

#[test]
fn workers_may_die_at_any_moment() {
    for milliseconds in 0..300 {
        for order in [Order::ExitFirst, Order::CallsFirst] {
            let crash = Some(Duration::from_millis(milliseconds));
            run_with(Faults::Never, order, Disturbance { leave: Duration::from_millis(20), crash });
        }
    }
}
