//! Workers within their grant: told when they pass their plan, ended when they pass what was granted, and nobody else is harmed.

use std::path::Path;
use std::time::Duration;

use aihost::domain::FailureKind;
use aihost::worker::{Allowance, ExitReason};
use aihost_tests::server::{Server, Setup, text};
use aihost_tests::wait_for;
use serde_json::json;

use super::bench::{Bench, LOAD_DEADLINE, ask, collect};

const MIB: u64 = 1 << 20;

/// What these tests grant.
const GRANT: Allowance = Allowance { planned: 64 * MIB, granted: 64 * MIB, mapped: 0 };

/// Bytes that a worker was seen to hold, and ended for.
fn held(reason: &ExitReason) -> u64 {
    match reason {
        ExitReason::BeyondGrant { held, granted } => {
            assert_eq!(*granted, GRANT.granted, "{reason}");
            *held
        }
        other => panic!("the worker {other}"),
    }
}

#[tokio::test]
async fn a_request_that_takes_more_than_was_granted_ends_its_worker_and_learns_why() {
    for fault in ["hoard_at_once", "hoard_slowly"] {
        let mut bench = Bench::new();
        let options = json!({"fault": fault, "bytes": 400 * MIB, "once_file": bench.file("once")});
        let instance = bench.loaded("aihost/faulty", options.clone()).await;
        instance.allow(GRANT);
        let (_, end) = collect(ask(&instance, 1, "x", None)).await;
        let failure = end.unwrap_err();
        assert_eq!(failure.kind, FailureKind::WorkerDied, "{fault}: {failure}");
        let reason = bench.exit().await;
        // More than the margin of 64 MiB, and not all that it wanted where it took its time.
        let most = if fault == "hoard_slowly" { 350 } else { 450 };
        assert!((128 * MIB..most * MIB).contains(&held(&reason)), "{fault}: {reason}");
        assert!(failure.message.contains(&reason.to_string()) && failure.message.contains("`memory:`"), "{failure}");
        // A fresh one, which has its fault behind it, works.
        let again = bench.loaded("aihost/faulty", options).await;
        collect(ask(&again, 2, "x", None)).await.1.unwrap();
    }
}

#[tokio::test]
async fn a_worker_is_measured_before_it_has_a_grant_while_it_loads_and_while_it_idles() {
    let mut bench = Bench::new();
    let options = |fault| json!({"fault": fault, "bytes": 700 * MIB});
    let failure = bench.start("aihost/faulty", options("hoard_in_plan")).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::WorkerDied, "{failure}");
    let reason = bench.exit().await;
    assert!(matches!(reason, ExitReason::BeyondGrant { held, .. } if held > 320 * MIB), "{reason}");

    let instance = bench.start("aihost/faulty", options("hoard_in_load")).await.unwrap();
    instance.allow(GRANT);
    let failure = instance.load(GRANT.granted, LOAD_DEADLINE).await.unwrap_err();
    assert!(failure.message.contains("it held"), "{failure}");
    held(&bench.exit().await);

    let instance = bench.start("aihost/faulty", options("hoard_when_idle")).await.unwrap();
    instance.allow(GRANT);
    instance.load(GRANT.granted, LOAD_DEADLINE).await.unwrap();
    held(&bench.exit().await);
}

#[tokio::test]
async fn what_a_plugin_starts_is_its_own_wherever_it_hides() {
    for hide in ["", "exec setsid ", "exec setsid -f "] {
        let mut bench = Bench::new();
        // `tail` keeps a line whole, and this one has no end.
        let child = format!("{hide}sh -c 'head -c 400M /dev/zero | tail; sleep 60'");
        let instance = bench.start("aihost/faulty", json!({"child": child})).await.unwrap();
        instance.allow(GRANT);
        instance.load(GRANT.granted, LOAD_DEADLINE).await.unwrap();
        held(&bench.exit().await);
    }
}

#[tokio::test]
async fn pages_that_a_fork_shares_count_once() {
    let bench = Bench::new();
    let options = json!({"fault": "fork_with_memory", "bytes": 200 * MIB});
    let instance = bench.start("aihost/faulty", options).await.unwrap();
    instance.allow(Allowance { planned: 250 * MIB, granted: 250 * MIB, mapped: 0 });
    instance.load(250 * MIB, LOAD_DEADLINE).await.unwrap();
    // Who belongs to it is looked up once a second.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(instance.pid().is_some(), "{:?}", bench.log.tail());
    collect(ask(&instance, 1, "x", None)).await.1.unwrap();
}

#[tokio::test]
async fn mapped_files_count_whole_and_a_greater_grant_is_heeded() {
    let mut bench = Bench::new();
    let options = json!({"fault": "hoard_at_once", "bytes": 200 * MIB, "once_file": bench.file("once")});
    let instance = bench.loaded("aihost/faulty", options).await;
    instance.allow(Allowance { planned: 250 * MIB, granted: 250 * MIB, mapped: 0 });
    collect(ask(&instance, 1, "x", None)).await.1.unwrap();
    // It is looked at four times a second.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(instance.pid().is_some(), "it is within its grant");
    instance.allow(Allowance { planned: 250 * MIB, granted: 250 * MIB, mapped: 200 * MIB });
    let reason = bench.exit().await;
    assert!(matches!(reason, ExitReason::BeyondGrant { held, .. } if held > 400 * MIB), "{reason}");
}

fn server(bad: &str) -> Server {
    let yaml = format!(
        "devices: [{{id: cpu, memory: 4GiB}}]\nmodels:\n  good:\n    type: text\n    plugin: aihost/echo\n  bad:\n    type: text\n    plugin: aihost/faulty\n{bad}"
    );
    Server::start(&Setup { yaml, plugins: vec!["echo", "faulty"], ..Setup::default() })
}

#[tokio::test]
async fn one_that_passes_its_plan_is_told_of_once_and_serves_on() {
    let server = server(&format!("    options: {{fault: hoard_at_once, bytes: {}}}\n", 50 * MIB));
    assert_eq!(server.chat("bad", "x").await.0, 200);
    let mut log = String::new();
    wait_for("a warning", || {
        log += &server.log();
        log.contains("where its plugin planned 1.0 MiB").then_some(())
    })
    .await;
    let measured = server.status("bad", "measured").await.as_u64().expect("measured");
    assert!(measured > 50 * MIB, "{measured}");
    let pid = server.status("bad", "pid").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    log += &server.log();
    assert_eq!(log.matches("where its plugin planned").count(), 1, "{log}");
    assert_eq!(server.status("bad", "pid").await, pid);
    let (code, table, stderr) = aihost_tests::server::aihost(&["ps", "--url", server.base()], &[]);
    assert!(code == 0 && table.contains("HELD"), "{table}{stderr}");
}

#[tokio::test]
async fn a_request_that_hoards_is_tried_no_more_than_one_that_crashes_and_others_go_on() {
    let server = server(&format!("    options: {{fault: hoard_at_once, bytes: {}}}\n", 300 * MIB));
    assert_eq!(server.chat("good", "still here").await.0, 200);
    let worker = server.status("good", "pid").await;
    let (status, body) = server.chat("bad", "poison").await;
    let message = body["error"]["message"].as_str().unwrap_or_default();
    assert!(status == 500 && message.contains("it held") && message.contains("of 1.0 MiB granted"), "{status} {body}");
    assert!(message.len() < 400, "{message}");
    let loads = server.status("bad", "loads").await;
    assert_eq!(loads, json!(3));
    let (status, body) = server.chat("bad", "poison").await;
    assert_eq!((status, &body["error"]["code"]), (500, &json!("request_suspected")));
    assert_eq!(server.status("bad", "loads").await, loads);
    let (status, body) = server.chat("good", "still here").await;
    assert_eq!((status, text(&body)), (200, "still here"));
    assert_eq!(server.status("good", "pid").await, worker);
}

#[tokio::test]
async fn more_memory_for_its_entry_is_what_helps() {
    let options = format!("{{fault: hoard_at_once, bytes: {}}}", 300 * MIB);
    let server = server(&format!("    memory: 400MiB\n    options: {options}\n"));
    assert_eq!(server.chat("bad", "x").await.0, 200);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(server.status("bad", "state").await, "hot");
}

#[tokio::test]
async fn a_model_that_hoards_in_its_load_is_quarantined_as_one_that_crashes() {
    let server = server(&format!("    options: {{fault: hoard_in_load, bytes: {}}}\n", 300 * MIB));
    for _ in 0..3 {
        let (status, body) = server.post("/models/load", &json!({"model": "bad"})).await;
        assert!(status >= 500 && body.to_string().contains("it held"), "{status} {body}");
    }
    let (status, body) = server.chat("bad", "x").await;
    assert_eq!((status, &body["error"]["code"]), (500, &json!("model_not_usable")), "{body}");
    assert!(server.why("bad").await.contains("quarantined"));
}

#[tokio::test]
async fn an_allocation_far_beyond_the_grant_fails_and_is_told_as_memory() {
    let options = format!("{{fault: hoard_at_once, bytes: {}, after_tokens: 2}}", 3_u64 << 30);
    let server = server(&format!("    options: {options}\n"));
    let (status, body) = server.chat("bad", "x").await;
    assert!(status == 500 && body.to_string().contains("killed for memory"), "{status} {body}");
}

/// The kernel chooses by this when there is no memory left.
fn oom_score_adj(pid: i64) -> i32 {
    let path = format!("/proc/{pid}/oom_score_adj");
    std::fs::read_to_string(Path::new(&path)).unwrap().trim().parse().unwrap()
}

#[tokio::test]
async fn the_kernel_would_choose_a_worker_before_the_host() {
    let server = server("    options: {child: \"exec sleep 100\"}\n");
    assert_eq!(server.chat("bad", "x").await.0, 200);
    let worker = server.status("bad", "pid").await.as_i64().expect("a pid");
    let host = oom_score_adj(server.pid().into());
    assert!(oom_score_adj(worker) >= (host + 500).min(1000), "{} beside {host}", oom_score_adj(worker));
    let limit = |name: &str| {
        let limits = std::fs::read_to_string(format!("/proc/{worker}/limits")).unwrap();
        limits.lines().find(|line| line.starts_with(name)).unwrap().to_owned()
    };
    let soft = limit("Max data size").split_whitespace().nth(3).map(str::to_owned);
    assert!(soft.as_deref().is_some_and(|soft| soft.parse::<u64>().is_ok()), "{}", limit("Max data size"));
}

#[tokio::test]
async fn a_plan_on_another_device_is_refused_with_its_numbers_before_anything_is_loaded() {
    let yaml = "devices: [{id: cpu, memory: 1GiB}]
models:
  a: {type: text, plugin: aihost/faulty, options: {others: {'cuda:7': 5368709120}}}
  b: {type: text, plugin: aihost/faulty}
";
    let server = Server::start(&Setup { yaml: yaml.into(), plugins: vec!["faulty"], ..Setup::default() });
    let (status, told) = server.post("/models/load", &json!({"model": "a"})).await;
    let told = told["error"]["message"].as_str().expect("a sentence").to_owned();
    assert_eq!(status, 500, "{told}");
    assert!(told.contains("`a` needs 5.0 GiB on cuda:7 beside cpu") && told.contains("one device; choose"), "{told}");
    // A client is told no numbers, and the next model is served.
    let (_, shown) = server.chat("a", "hi").await;
    let shown = shown["error"]["message"].as_str().expect("a sentence").to_owned();
    assert!(!shown.contains("GiB") && !shown.contains("cuda"), "{shown}");
    assert_eq!(server.chat("b", "hi").await.0, 200);
    assert_eq!(server.status("a", "state").await, "failed");
}
