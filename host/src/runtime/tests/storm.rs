//! A storm: 400 requests that alternate between two models of which one fits, all at once. Nobody is refused, the models
//! take few turns, and nobody who is next waits beyond the bound.

use std::time::Duration;

use tokio::time::Instant;

use super::fake::{Faults, Order, TOKENS, Times, World};
use super::{Answer, Host, paused};

const REQUESTS: u32 = 400;
const START: Duration = Duration::from_millis(30);
const LOAD: Duration = Duration::from_millis(500);
/// More than a worker takes to leave.
const LEAVE: Duration = Duration::from_millis(10);
const MAX_WAIT: Duration = Duration::from_secs(60);
const QUANTUM: Duration = Duration::from_secs(5);
/// The least share of the oracle's speed.
const SHARE: f64 = 0.8;

/// What a storm came to.
#[derive(Debug)]
struct Storm {
    took: Duration,
    swaps: u32,
    /// The longest time that passed between two grants of one model, and until its first.
    longest_turn: Duration,
}

/// One request is served at a time, for `service`.
fn storm(service: Duration) -> Storm {
    let yaml = format!(
        "devices: [{{id: cpu, memory: 150MiB}}]\nlimits: {{queue: {REQUESTS}, hold: 1h}}\ndefaults: {{max_wait: {}s, quantum: {}s}}\nmodels:\n  a: {{type: text, plugin: fake}}\n  b: {{type: text, plugin: fake}}\n",
        MAX_WAIT.as_secs(),
        QUANTUM.as_secs()
    );
    let times = Times { start: START, load: LOAD, token: service / TOKENS };
    let world = World::new(Faults::Never, Order::ExitFirst, 150 << 20).with_times(times);
    paused(async move {
        let host = Host::start(world, 1, &yaml);
        let begun = Instant::now();
        let clients: Vec<_> = (0..REQUESTS).map(|n| host.ask(["a", "b"][n as usize % 2])).collect();
        let mut granted = [Vec::new(), Vec::new()];
        for (n, client) in clients.into_iter().enumerate() {
            let told = client.await.unwrap();
            assert_eq!(told.answer, Answer::Whole, "request {n}");
            granted[n % 2].push(told.granted);
        }
        let longest_turn = granted.iter().flat_map(|times| {
            assert!(times.is_sorted(), "first come, first served");
            std::iter::once(begun).chain(times.iter().copied()).zip(times).map(|(before, at)| *at - before)
        });
        let longest_turn = longest_turn.max().unwrap();
        assert_eq!(host.world.broken(), [""; 0]);
        // The last answer is read to its end a little late.
        let last = *granted.iter().flatten().max().unwrap();
        Storm { took: last - begun + service, swaps: host.world.loads() - 1, longest_turn }
    })
}

fn check(service: Duration) {
    let storm = storm(service);
    let oracle = service * REQUESTS + START + LOAD + LEAVE + LOAD;
    let share = oracle.as_secs_f64() / storm.took.as_secs_f64();
    eprintln!("{service:?} each: {share:.3} of the oracle, {storm:?}");
    assert!(share >= SHARE, "{share} of the oracle: {storm:?}");
    // Who is next waits until the other model's oldest waiter would be overdue, for its lease to end, and for the swap.
    let bound = MAX_WAIT + QUANTUM + service + LEAVE + START + LOAD;
    assert!(storm.longest_turn <= bound, "{:?} is beyond {bound:?}", storm.longest_turn);
}

#[test]
fn a_storm_that_ends_within_the_bound_takes_one_swap() {
    for milliseconds in [4, 20, 100] {
        check(Duration::from_millis(milliseconds));
        assert_eq!(storm(Duration::from_millis(milliseconds)).swaps, 1);
    }
}

#[test]
fn a_storm_of_minutes_is_still_no_thrash() {
    for milliseconds in [400, 2000] {
        check(Duration::from_millis(milliseconds));
    }
}
