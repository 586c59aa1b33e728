//! Park and unpark, health and cost, against real workers: memory really comes back, and a step that goes wrong costs one
//! worker at most.

use std::sync::Arc;
use std::time::Duration;

use aihost::domain::{Device, Failure, FailureKind};
use aihost::worker::{ExitReason, InstanceHandle, Placement, WorkerLimits, WorkerPlacement};
use aihost_tests::{Gate, binary, model_file};
use bytes::Bytes;
use serde_json::json;

use super::bench::{Bench, LOAD_DEADLINE, Limits, SHORT, ask, collect, first_event, task};

/// What the echo plugin allocates in these tests.
const WEIGHTS: u64 = 96 << 20;
/// Keys and values of one token: 30 layers, 3 heads of 64, two bytes each.
const SMOLLM2_BYTES_PER_TOKEN: u64 = 30 * 3 * 64 * 2 * 2;
/// What a process may hold beside its weights and still count as having given them back.
const SLACK: u64 = 24 << 20;

fn usage(instance: &Arc<dyn InstanceHandle>) -> u64 {
    instance.usage().expect("a live worker can be measured")
}

#[tokio::test]
async fn a_park_gives_memory_back_and_an_unpark_takes_it_again() {
    let mut bench = Bench::new();
    let instance = bench.loaded("aihost/echo", json!({"memory": WEIGHTS, "allocate": true, "unpark_ms": 50})).await;
    let hot = usage(&instance);
    assert!(hot >= WEIGHTS, "{hot}");

    instance.park().await.unwrap();
    let parked = usage(&instance);
    assert!(parked < SLACK, "{parked} of {hot} bytes are still held");
    let failure = collect(ask(&instance, 1, "hello", None)).await.1.unwrap_err();
    // The worker says it, not the plugin, which is not asked.
    assert!(failure.message.contains("must be woken first"), "{failure}");
    instance.health().await.unwrap();

    assert_eq!(instance.unpark().await.unwrap().used, WEIGHTS);
    assert_eq!(instance.progress(), Some(1000));
    assert!(usage(&instance) >= WEIGHTS);
    assert_eq!(collect(ask(&instance, 2, "hello", None)).await.0, "hello");

    instance.stop(Duration::from_secs(5)).await;
    assert_eq!(instance.usage(), None);
    assert_eq!(bench.exit().await, ExitReason::Asked);
}

#[tokio::test]
async fn a_park_that_keeps_its_memory_is_seen_from_outside() {
    let bench = Bench::new();
    let options = json!({"memory": WEIGHTS, "allocate": true, "leak_on_park": true});
    let instance = bench.loaded("aihost/echo", options).await;
    instance.park().await.unwrap();
    assert!(usage(&instance) >= WEIGHTS);
}

#[tokio::test]
async fn a_worker_that_serves_is_not_parked() {
    let bench = Bench::new();
    let instance = bench.loaded("aihost/echo", json!({"latency_ms": 5, "tokens": 100})).await;
    let mut answer = ask(&instance, 1, "word ", None);
    first_event(&mut answer).await;
    let failure = instance.park().await.unwrap_err();
    assert!(failure.message.contains("serves 1 request"), "{failure}");
    let (text, end) = collect(answer).await;
    assert_eq!(text, "word ".repeat(99));
    end.unwrap();
}

#[tokio::test]
async fn health_and_cost_do_not_wait_behind_a_request() {
    let bench = Bench::new();
    let options = json!({"latency_ms": 10, "tokens": 100_000, "cost_per_byte": 1000});
    let instance = bench.loaded("aihost/echo", options).await;
    let mut answer = ask(&instance, 1, "word ", None);
    first_event(&mut answer).await;
    let costs = (1..=20).map(|n| instance.cost(Bytes::from(task(&"x".repeat(n), None)).into()));
    let costs = futures_util::future::join_all(costs).await;
    assert_eq!(costs, (1..=20).map(|n| Ok(n * 1000)).collect::<Vec<_>>());
    instance.health().await.unwrap();
    let failure = instance.cost(Bytes::from("{}").into()).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::NotUsable, "{failure}");
    first_event(&mut answer).await;
}

/// Takes a step on a hot model (`unpark`: on a parked one) and gives how it failed.
async fn take(instance: &Arc<dyn InstanceHandle>, step: &str) -> Failure {
    match step {
        "park" => instance.park().await.unwrap_err(),
        "unpark" => {
            instance.park().await.unwrap();
            instance.unpark().await.unwrap_err()
        }
        "health" => instance.health().await.unwrap_err(),
        _ => instance.cost(Bytes::from(task("x", None)).into()).await.unwrap_err(),
    }
}

const STEPS: [&str; 4] = ["park", "unpark", "health", "cost"];

#[tokio::test]
async fn a_step_that_fails_says_why_and_costs_nothing() {
    let bench = Bench::new();
    for step in STEPS {
        let options = json!({"fault": format!("{step}_error"), "once_file": bench.file(step)});
        let instance = bench.loaded("aihost/faulty", options).await;
        let failure = take(&instance, step).await;
        assert_eq!(failure.kind, FailureKind::Internal, "{step}");
        assert!(failure.message.contains("an error of a step"), "{step}: {failure}");
        if step == "unpark" {
            instance.unpark().await.unwrap();
        }
        assert_eq!(collect(ask(&instance, 1, "x", Some(2))).await.0, "word word ", "{step}");
    }
}

#[tokio::test]
async fn a_step_that_panics_costs_the_worker() {
    for step in STEPS {
        let mut bench = Bench::new();
        let instance = bench.loaded("aihost/faulty", json!({"fault": format!("panic_in_{step}")})).await;
        let failure = take(&instance, step).await;
        assert!(failure.message.contains("a panic in a step"), "{step}: {failure}");
        assert_eq!(bench.exit().await, ExitReason::Panicked, "{step}");
    }
}

#[tokio::test]
async fn a_step_that_aborts_is_told() {
    for step in STEPS {
        let mut bench = Bench::new();
        let instance = bench.loaded("aihost/faulty", json!({"fault": format!("abort_in_{step}")})).await;
        let failure = take(&instance, step).await;
        assert_eq!(failure.kind, FailureKind::WorkerDied, "{step}: {failure}");
        assert_eq!(bench.exit().await, ExitReason::Aborted, "{step}");
    }
}

#[tokio::test]
async fn a_step_that_hangs_ends_at_its_limit() {
    for step in STEPS {
        let worker = WorkerLimits { step: Duration::from_millis(300), ..SHORT };
        let mut bench = Bench::under(Limits { worker, ..Limits::default() });
        let instance = bench.loaded("aihost/faulty", json!({"fault": format!("hang_{step}")})).await;
        let failure = take(&instance, step).await;
        assert_eq!(failure.kind, FailureKind::TimedOut, "{step}");
        assert!(failure.message.contains(&format!("its {step}")), "{failure}");
        assert_eq!(bench.exit().await, ExitReason::Stalled(step.to_owned()));
    }
}

#[tokio::test]
async fn an_unpark_that_makes_progress_may_take_longer_than_its_limit() {
    let worker = WorkerLimits { step: Duration::from_millis(400), ..SHORT };
    let mut bench = Bench::under(Limits { worker, ..Limits::default() });
    // The load reported more steps than the unpark will: they do not count for it.
    let options = json!({"load_ms": 1600, "unpark_ms": 1500, "park_ms": 5000});
    let instance = bench.loaded("aihost/echo", options).await;
    instance.unpark().await.unwrap();
    // A park reports no progress, so its limit stands.
    assert_eq!(instance.park().await.unwrap_err().kind, FailureKind::TimedOut);
    assert_eq!(bench.exit().await, ExitReason::Stalled("park".to_owned()));
}

#[tokio::test]
async fn a_caller_who_gives_up_leaves_the_worker_in_order() {
    let (bench, gate) = (Bench::new(), Gate::closed());
    let instance = bench.loaded("aihost/echo", json!({"park_gate": gate.path()})).await;
    drop(instance.park());
    // The park goes on. A health check that did not wait its turn would be given its answer, and its own would be one too many.
    let (health, ()) = tokio::join!(instance.health(), async { gate.open() });
    health.unwrap();
    assert_eq!(collect(ask(&instance, 1, "x", None)).await.1.unwrap_err().kind, FailureKind::Internal);
    instance.unpark().await.unwrap();
    collect(ask(&instance, 2, "x", None)).await.1.unwrap();
}

#[tokio::test]
async fn the_device_is_measured() {
    let placement = WorkerPlacement { executable: binary() };
    let free = placement.capacity(Device::Cpu).expect("this machine has memory");
    assert!(free > 1 << 20, "{free}");
    assert_eq!(placement.capacity(Device::Cuda(99)), None);
}

#[tokio::test]
async fn a_language_model_wakes_to_the_same_words() {
    let bench = Bench::with(&["candle_llm"], Limits::default());
    let mut spec = bench.spec("candle-llm", json!({"context": 2048, "slots": 4, "threads": 2}));
    spec.load.files.insert("model".to_owned(), model_file());
    let instance = bench.start_as(&WorkerPlacement { executable: binary() }, spec).await.unwrap();
    instance.load(4 << 30, LOAD_DEADLINE).await.unwrap();
    let question = "Who wrote Romeo and Juliet?";
    let (before, end) = collect(ask(&instance, 1, question, Some(24))).await;
    end.unwrap();
    // Keys and values take memory as they are written, so there have to be some.
    let end = collect(ask(&instance, 2, &"to be or not to be ".repeat(40), Some(1))).await.1.unwrap();
    let written = end["usage"]["prompt_tokens"].as_u64().unwrap() * SMOLLM2_BYTES_PER_TOKEN;
    let hot = usage(&instance);

    instance.park().await.unwrap();
    let parked = usage(&instance);
    assert!(hot - parked >= written, "{parked} of {hot} bytes are still held, and {written} were keys and values");

    instance.unpark().await.unwrap();
    let (after, _) = collect(ask(&instance, 3, question, Some(24))).await;
    assert!(before.contains("Shakespeare"), "{before}");
    assert_eq!(after, before);
}
