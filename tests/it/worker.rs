//! Every way a plugin can misbehave, against a real worker: the host survives, and says truly what happened.

use std::time::Duration;

use aihost::domain::{ByteSize, FailureKind};
use aihost::runtime::OutputLimits;
use aihost::worker::{ExitReason, WorkerPlacement};
use aihost_tests::{Gate, PATIENCE, wait_for};
use serde_json::json;
use tokio::time::timeout;

use super::bench::{Bench, LOAD_DEADLINE, Limits, UNHURRIED, ask, ask_for, collect, first_event, task};

fn alive(pid: u32) -> bool {
    // A zombie is gone as far as memory and locks are concerned, but must be reaped too.
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

#[tokio::test]
async fn a_good_plugin_answers_and_leaves_when_asked() {
    let mut bench = Bench::new();
    let instance = bench.loaded("aihost/echo", json!({"memory": 4096})).await;
    let pid = instance.pid().unwrap();
    let (text, end) = collect(ask(&instance, 1, "to be or not", None)).await;
    assert_eq!(text, "to be or not");
    let end = end.unwrap();
    assert_eq!(end["reason"], "stop");
    assert_eq!(end["usage"], json!({"prompt_tokens": 4, "completion_tokens": 4, "cached_tokens": 0}));
    let (text, end) = collect(ask(&instance, 2, "to be or not", Some(2))).await;
    assert_eq!((text.as_str(), &end.unwrap()["reason"]), ("to be ", &json!("length")));
    assert_eq!(instance.progress(), None, "a load without steps has no progress");

    instance.stop(PATIENCE).await;
    assert_eq!(instance.pid(), None);
    assert!(!alive(pid));
    assert_eq!(bench.exit().await, ExitReason::Asked);
    let (_, end) = collect(ask(&instance, 3, "late", None)).await;
    assert_eq!(end.unwrap_err().kind, FailureKind::ShuttingDown);
    drop(instance);
    bench.no_more_exits().await;
}

/// The nice values of the threads of a process that have this name.
fn nice(pid: u32, name: &str) -> Vec<i32> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let stats = threads.filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("stat")).ok());
    let named = stats.filter(|stat| stat.contains(&format!("({name})")));
    named.map(|stat| stat.rsplit(')').next().unwrap().split_whitespace().nth(16).unwrap().parse().unwrap()).collect()
}

#[tokio::test]
async fn what_a_plugin_computes_comes_after_what_serves() {
    let bench = Bench::new();
    let instance = bench.loaded("aihost/faulty", json!({"fault": "spin", "bytes": 4})).await;
    let (pid, own) = (instance.pid().unwrap(), rustix::process::getpriority_process(None).unwrap());
    let usual = nice(pid, "heartbeat");
    assert_eq!(usual, [own], "the worker's own");
    assert_eq!(nice(pid, "socket-writer"), usual);
    // A thread has its name once it runs.
    let spinning = wait_for("threads that spin", || Some(nice(pid, "spin")).filter(|threads| threads.len() == 4)).await;
    // One more than usual, or the highest there is.
    assert_eq!(spinning, [(own + 1).min(19); 4]);
    let (text, _) = collect(ask(&instance, 1, "hi", None)).await;
    assert_eq!(text, "word ".repeat(8));
}

#[tokio::test]
async fn sixty_four_requests_are_served_at_once_and_in_order() {
    let (bench, gate) = (Bench::new(), Gate::closed());
    let instance = bench.loaded("aihost/echo", json!({"tokens": 40, "answer_gate": gate.path()})).await;
    let mut answers: Vec<_> = (1..=64).map(|n| ask(&instance, n, &format!("r{n} "), None)).collect();
    // None ends before the gate opens, so all of them have begun.
    for answer in &mut answers {
        first_event(answer).await;
    }
    gate.open();
    for (n, (text, end)) in
        futures_util::future::join_all(answers.into_iter().map(collect)).await.into_iter().enumerate()
    {
        assert_eq!(text, format!("r{} ", n + 1).repeat(39));
        assert_eq!(end.unwrap()["usage"]["completion_tokens"], 40);
    }
}

#[tokio::test]
async fn a_large_request_and_answer_cross_whole() {
    let bench = Bench::new();
    let instance = bench.loaded("aihost/echo", json!({})).await;
    let text = "0123456789 ".repeat(60_000);
    let (answer, end) = collect(ask(&instance, 1, &text, None)).await;
    assert!(answer == text, "{} of {} bytes", answer.len(), text.len());
    end.unwrap();
}

#[tokio::test]
async fn a_reader_that_does_not_read_pauses_the_plugin() {
    let bench = Bench::new();
    let word = "x".repeat(64 << 10);
    let instance = bench.loaded("aihost/echo", json!({"tokens": 400})).await;
    let mut slow = ask(&instance, 1, &word, None);
    first_event(&mut slow).await;
    // Another reader is not held up meanwhile.
    let (text, _) = collect(ask(&instance, 2, "quick", Some(1))).await;
    assert_eq!(text, "quick");
    // Worker and host hold the credit, the sockets and the output queue, but not the 25 MiB of the whole answer.
    let held = memory(instance.pid().unwrap());
    assert!(held < ByteSize(200 << 20), "the worker holds {held}");
    let (text, end) = collect(slow).await;
    assert_eq!(text.len(), 399 * word.len());
    end.unwrap();
}

#[tokio::test]
async fn a_dropped_answer_cancels_its_request_alone() {
    let bench = Bench::new();
    let instance = bench.loaded("aihost/echo", json!({"latency_ms": 10, "tokens": 100_000})).await;
    let mut left = ask(&instance, 1, "x ", None);
    first_event(&mut left).await;
    drop(left);
    let (text, end) = collect(ask(&instance, 2, "y ", Some(60))).await;
    assert_eq!(text, "y ".repeat(60));
    end.unwrap();
    // The worker lived on past the grace of the cancelled request.
    assert!(instance.pid().is_some());
}

#[tokio::test]
async fn wrong_options_and_errors_of_the_plugin_are_its_own_words() {
    let mut bench = Bench::new();
    let failure = bench.start("aihost/echo", json!({"latency": 5})).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::NotUsable);
    assert!(failure.message.contains("unknown field `latency`"), "{failure}");
    assert_eq!(bench.exit().await, ExitReason::Asked);

    for (fault, kind, words) in [
        ("load_error", FailureKind::NotUsable, "the weights are damaged"),
        ("load_out_of_memory", FailureKind::OutOfMemory, "no room"),
    ] {
        let instance = bench.start("aihost/faulty", json!({"fault": fault})).await.unwrap();
        let failure = instance.load(0, LOAD_DEADLINE).await.unwrap_err();
        assert_eq!(failure.kind, kind);
        assert!(failure.message.contains(words), "{failure}");
        drop(instance);
        assert_eq!(bench.exit().await, ExitReason::Asked);
    }

    let instance = bench.loaded("aihost/faulty", json!({})).await;
    let output = ask_for(&instance, 1, "{}".to_owned(), UNHURRIED);
    assert_eq!(collect(output).await.1.unwrap_err().kind, FailureKind::NotUsable);
    collect(ask(&instance, 2, "x", None)).await.1.unwrap();
}

#[tokio::test]
async fn a_panic_is_a_failure_and_costs_the_worker() {
    let mut bench = Bench::new();
    for fault in ["panic_in_new", "panic_in_plan"] {
        let failure = bench.start("aihost/faulty", json!({"fault": fault})).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Internal);
        assert!(failure.message.contains("panicked") && failure.message.contains("as asked"), "{failure}");
        assert_eq!(bench.exit().await, ExitReason::Panicked);
    }
    let instance = bench.start("aihost/faulty", json!({"fault": "panic_in_load"})).await.unwrap();
    let failure = instance.load(0, LOAD_DEADLINE).await.unwrap_err();
    assert!(failure.message.contains("a panic in load"), "{failure}");
    assert_eq!(bench.exit().await, ExitReason::Panicked);

    let instance = bench.loaded("aihost/faulty", json!({"fault": "panic_in_generate", "after_tokens": 2})).await;
    let (text, end) = collect(ask(&instance, 1, "x", None)).await;
    assert_eq!((text.as_str(), end.unwrap_err().kind), ("word word ", FailureKind::Internal));
    assert_eq!(bench.exit().await, ExitReason::Panicked);
    assert!(bench.log.tail().iter().any(|line| line.contains("a panic in generate")), "{:?}", bench.log.tail());
}

#[tokio::test]
async fn a_panic_while_dropping_does_not_keep_a_worker_from_leaving() {
    let mut bench = Bench::new();
    let instance = bench.loaded("aihost/faulty", json!({"fault": "panic_in_drop"})).await;
    instance.stop(PATIENCE).await;
    let reason = bench.exit().await;
    assert!(matches!(&reason, ExitReason::Unreleased(why) if why.contains("a panic in drop")), "{reason}");
    // It left by itself, and could still say so.
    let tail = bench.log.tail();
    assert!(tail.iter().any(|line| line.contains("release failed") && line.contains("panicked")), "{tail:?}");
}

/// The worker dies during a request: the request, and another one open beside it, end with the reason.
async fn dies(fault: &str, wanted: ExitReason) {
    let mut bench = Bench::new();
    let gate = Gate::closed();
    let options = json!({"fault": fault, "after_tokens": 3, "once_file": bench.file("once"), "gate": gate.path()});
    let instance = bench.loaded("aihost/faulty", options.clone()).await;
    let pid = instance.pid().unwrap();
    let mut output = ask(&instance, 1, "x", None);
    for _ in 0..3 {
        first_event(&mut output).await;
    }
    gate.open();
    let (text, end) = collect(output).await;
    assert_eq!(text, "", "{fault}");
    let failure = end.unwrap_err();
    assert_eq!(failure.kind, FailureKind::WorkerDied, "{fault}: {failure}");
    assert!(failure.message.contains(&wanted.to_string()), "{fault}: {failure}");
    assert_eq!(bench.exit().await, wanted, "{fault}");
    assert!(!alive(pid));
    let (_, late) = collect(ask(&instance, 2, "x", None)).await;
    assert_eq!(late.unwrap_err().kind, FailureKind::WorkerDied);
    instance.stop(Duration::from_secs(1)).await;

    // A fresh worker of the same plugin works.
    let again = bench.loaded("aihost/faulty", options).await;
    collect(ask(&again, 3, "x", None)).await.1.unwrap();
    drop((instance, again));
    assert_eq!(bench.exit().await, ExitReason::Asked);
    bench.no_more_exits().await;
}

#[tokio::test]
async fn abort_is_told() {
    dies("abort", ExitReason::Aborted).await;
}

#[tokio::test]
async fn a_segfault_is_told() {
    dies("segfault", ExitReason::Crashed(11)).await;
}

#[tokio::test]
async fn an_exit_that_nobody_asked_for_is_told() {
    dies("exit0", ExitReason::Exited(0)).await;
}

#[tokio::test]
async fn a_failed_allocation_is_told_as_memory() {
    dies("oom", ExitReason::OutOfMemory).await;
}

#[tokio::test]
async fn a_frozen_process_is_noticed_by_its_silence() {
    dies("freeze", ExitReason::Stalled("generate".to_owned())).await;
}

#[tokio::test]
async fn a_kill_from_outside_is_told() {
    let mut bench = Bench::new();
    let instance = bench.loaded("aihost/echo", json!({"latency_ms": 10, "tokens": 100_000})).await;
    let mut output = ask(&instance, 1, "x ", None);
    first_event(&mut output).await;
    let pid = rustix::process::Pid::from_raw(instance.pid().unwrap().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(collect(output).await.1.unwrap_err().kind, FailureKind::WorkerDied);
    assert_eq!(bench.exit().await, ExitReason::Killed(15));
}

#[tokio::test]
async fn a_load_that_hangs_ends_at_its_deadline() {
    let mut bench = Bench::new();
    let instance = bench.start("aihost/faulty", json!({"fault": "hang_load"})).await.unwrap();
    let failure = instance.load(0, Duration::from_millis(200)).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::TimedOut);
    assert_eq!(bench.exit().await, ExitReason::Stalled("load".to_owned()));
}

#[tokio::test]
async fn a_load_that_makes_progress_may_take_longer_than_its_deadline_but_not_for_ever() {
    let mut bench = Bench::new();
    let instance = bench.start("aihost/echo", json!({"load_ms": 1500})).await.unwrap();
    instance.load(0, Duration::from_millis(400)).await.unwrap();
    assert_eq!(instance.progress(), Some(1000));
    drop(instance);
    assert_eq!(bench.exit().await, ExitReason::Asked);

    let instance = bench.start("aihost/echo", json!({"load_ms": 60_000})).await.unwrap();
    let failure = instance.load(0, Duration::from_millis(200)).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::TimedOut);
    assert_eq!(bench.exit().await, ExitReason::Stalled("load".to_owned()));
}

#[tokio::test]
async fn a_request_that_hangs_costs_the_worker_once_it_is_cancelled() {
    let mut bench = Bench::new();
    let instance = bench.loaded("aihost/faulty", json!({"fault": "hang_generate", "after_tokens": 1})).await;
    let mut output = ask(&instance, 1, "x", None);
    first_event(&mut output).await;
    drop(output);
    assert_eq!(bench.exit().await, ExitReason::Stalled("a cancelled request".to_owned()));
}

#[tokio::test]
async fn a_request_that_shows_nothing_fails_and_costs_a_worker_that_hangs() {
    for (after_tokens, text, limit) in [(0, "", "first_output_timeout"), (2, "word word ", "output_stall_timeout")] {
        let short = |first, stall| OutputLimits { first, stall };
        let moment = Duration::from_millis(300);
        let output = if after_tokens == 0 { short(moment, PATIENCE) } else { short(PATIENCE, moment) };
        let mut bench = Bench::new();
        let options = json!({"fault": "hang_generate", "after_tokens": after_tokens, "once_file": bench.file("once")});
        let instance = bench.loaded("aihost/faulty", options.clone()).await;
        let (said, end) = collect(ask_for(&instance, 1, task("x", None), output)).await;
        let failure = end.unwrap_err();
        assert_eq!((said.as_str(), failure.kind), (text, FailureKind::TimedOut), "{failure}");
        assert!(failure.message.contains(limit) && failure.message.contains("0.3 s"), "{failure}");
        assert_eq!(bench.exit().await, ExitReason::Stalled("generate".to_owned()));
    }
}

#[tokio::test]
async fn a_request_that_shows_nothing_but_ends_when_cancelled_costs_no_worker() {
    let output = OutputLimits { first: PATIENCE, stall: Duration::from_millis(200) };
    let bench = Bench::new();
    // It waits at a gate that nobody opens, and looks whether it is cancelled.
    let gate = Gate::closed();
    let instance = bench.loaded("aihost/echo", json!({"tokens": 2, "answer_gate": gate.path()})).await;
    let failure = collect(ask_for(&instance, 1, task("x", None), output)).await.1.unwrap_err();
    assert_eq!(failure.kind, FailureKind::TimedOut, "{failure}");
    assert!(instance.health().await.is_ok());
}

/// A request that says a word and then nothing, on a worker of its own, is ended: whoever began before it and was still
/// silent by the same limit would have been ended first.
async fn a_silent_one_is_ended(bench: &Bench, output: OutputLimits) {
    let instance = bench.loaded("aihost/faulty", json!({"fault": "hang_generate", "after_tokens": 1})).await;
    let failure = collect(ask_for(&instance, 1, task("x", None), output)).await.1.unwrap_err();
    assert_eq!(failure.kind, FailureKind::TimedOut, "{failure}");
}

#[tokio::test]
async fn progress_is_a_sign_of_life() {
    let second = Duration::from_secs(1);
    let output = OutputLimits { first: second, stall: second };
    let (bench, gate) = (Bench::new(), Gate::closed());
    let instance = bench.loaded("aihost/faulty", json!({"fault": "progress_only", "gate": gate.path()})).await;
    let telling = ask_for(&instance, 1, task("x", None), output);
    a_silent_one_is_ended(&bench, output).await;
    gate.open();
    collect(telling).await.1.unwrap();
}

#[tokio::test]
async fn a_reader_that_does_not_read_is_not_the_plugins_stall() {
    let output = OutputLimits { first: PATIENCE, stall: Duration::from_secs(1) };
    let bench = Bench::new();
    let word = "x".repeat(64 << 10);
    let instance = bench.loaded("aihost/echo", json!({"tokens": 200})).await;
    let mut slow = ask_for(&instance, 1, task(&word, None), output);
    first_event(&mut slow).await;
    a_silent_one_is_ended(&bench, output).await;
    let (text, end) = collect(slow).await;
    assert_eq!(text.len(), 199 * word.len());
    end.unwrap();
}

#[tokio::test]
async fn a_worker_that_hangs_is_killed_when_its_grace_is_over() {
    let mut bench = Bench::new();
    let instance = bench.loaded("aihost/faulty", json!({"fault": "hang_generate", "after_tokens": 1})).await;
    let mut output = ask(&instance, 1, "x", None);
    // One that was asked to go before its request came would have nothing to wait for.
    first_event(&mut output).await;
    let stopping = instance.stop(Duration::from_millis(300));
    let ((), (_, end)) = tokio::join!(stopping, collect(output));
    assert_eq!(end.unwrap_err().kind, FailureKind::ShuttingDown);
    assert_eq!(bench.exit().await, ExitReason::Stalled("generate".to_owned()));
}

/// A worker that hangs, and a child of its plugin that does this on SIGTERM, are stopped with so much grace; whether the
/// child got as far as to say goodbye. Both are gone.
async fn stop_with_child(on_term: &str, grace: Duration) -> bool {
    let mut bench = Bench::new();
    let pid_file = bench.file("pid");
    let (pid, goodbye) = (pid_file.display(), bench.file("goodbye"));
    let script = on_term.replace("GOODBYE", &format!("touch {}", goodbye.display()));
    let script = format!("trap '{script}' TERM; echo $$ > {pid}.new; mv {pid}.new {pid}; while :; do sleep 0.02; done");
    let options = json!({"fault": "hang_generate", "after_tokens": 1, "child": script});
    let instance = bench.loaded("aihost/faulty", options).await;
    let child = wait_for("the child's number", || std::fs::read_to_string(&pid_file).ok()).await;
    let mut open = ask(&instance, 1, "x", None);
    first_event(&mut open).await;
    timeout(PATIENCE, instance.stop(grace)).await.expect("it was not killed");
    let hung = ExitReason::Stalled("generate".to_owned());
    assert_eq!(bench.exit().await, if grace.is_zero() { ExitReason::Asked } else { hung });
    let child = child.trim().parse().unwrap();
    wait_for("the end of the child", || (!alive(child)).then_some(())).await;
    goodbye.exists()
}

/// Long enough to be a grace, and short enough to be over soon for a worker that hangs.
const SOME_GRACE: Duration = Duration::from_millis(100);

#[tokio::test]
async fn what_a_plugin_started_may_say_goodbye() {
    assert!(stop_with_child("sleep 0.3; GOODBYE; exit 0", SOME_GRACE).await, "it was killed before it could");
}

#[tokio::test]
async fn what_heeds_no_sigterm_is_killed() {
    assert!(stop_with_child("GOODBYE", SOME_GRACE).await, "it was killed before it was asked");
}

#[tokio::test]
async fn no_grace_asks_nobody_and_kills() {
    assert!(!stop_with_child("GOODBYE", Duration::ZERO).await, "it was asked first");
}

/// Signal 15 in the masks of /proc.
const SIGTERM_BIT: u64 = 1 << (15 - 1);

#[tokio::test]
async fn a_worker_that_cannot_take_a_sigterm_is_killed_after_it() {
    let mut bench = Bench::under(Limits { silence: 10 * PATIENCE, ..Limits::default() });
    let instance = bench.loaded("aihost/faulty", json!({"fault": "freeze"})).await;
    let pid = instance.pid().unwrap();
    let _open = ask(&instance, 1, "x", None);
    let status = || std::fs::read_to_string(format!("/proc/{pid}/status")).ok();
    wait_for("the freeze", || status()?.contains("State:\tT").then_some(())).await;
    let asked = wait_for("a SIGTERM that it cannot take", || {
        let pending = status()?.lines().find_map(|line| line.strip_prefix("ShdPnd:\t").map(str::to_owned))?;
        let signals = u64::from_str_radix(&pending, 16).ok()?;
        (signals & SIGTERM_BIT != 0).then_some(())
    });
    let stopped = timeout(PATIENCE, instance.stop(SOME_GRACE));
    tokio::join!(async { stopped.await.expect("it was not killed") }, asked);
    assert_eq!(bench.exit().await, ExitReason::Stalled("generate".to_owned()));
}

#[tokio::test]
async fn dropping_the_handle_kills() {
    let mut bench = Bench::new();
    let instance = bench.loaded("aihost/faulty", json!({"fault": "hang_generate"})).await;
    let pid = instance.pid().unwrap();
    drop(instance);
    assert_eq!(bench.exit().await, ExitReason::Asked);
    wait_for("the end of the process", || (!alive(pid)).then_some(())).await;
}

#[tokio::test]
async fn a_start_that_hangs_ends_at_its_deadline() {
    let mut bench = Bench::under(Limits { start: Duration::from_millis(300), ..Limits::default() });
    let hanging = bench.start("aihost/faulty", json!({"fault": "hang_plan"}));
    let failure = hanging.await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::TimedOut);
    assert_eq!(bench.exit().await, ExitReason::Stalled("start".to_owned()));
}

#[tokio::test]
async fn noise_on_stdout_is_a_log_not_a_protocol() {
    let bench = Bench::new();
    let instance = bench.loaded("aihost/faulty", json!({"fault": "stdout_noise"})).await;
    collect(ask(&instance, 1, "x", None)).await.1.unwrap();
    for wanted in ["stdout: noise on stdout 99", "stderr: noise on stderr 99"] {
        wait_for(wanted, || bench.log.tail().iter().any(|line| line.ends_with(wanted)).then_some(())).await;
    }
}

#[tokio::test]
async fn a_plugin_that_heeds_no_pause_loses_its_request_not_the_host() {
    let bench = Bench::new();
    let instance = bench.loaded("aihost/faulty", json!({"fault": "ignore_pause", "once_file": bench.file("once")}));
    let instance = instance.await;
    let output = ask(&instance, 1, "x", None);
    // Nobody reads until the worker has said that the flood met its limit; another request is served meanwhile.
    wait_for("the end of the flood", || {
        bench.log.tail().iter().any(|line| line.contains("goes on through Pause")).then_some(())
    })
    .await;
    collect(ask(&instance, 2, "x", None)).await.1.unwrap();
    let (text, end) = collect(output).await;
    assert!(text.len() < 8 << 20, "{} bytes", text.len());
    assert_eq!(end.unwrap()["reason"], "cancelled");
}

#[tokio::test]
async fn a_file_that_is_no_worker_is_told() {
    let mut bench = Bench::new();
    let spec = bench.spec("aihost/echo", json!({}));
    let absent = WorkerPlacement { executable: bench.file("absent") };
    let failure = bench.start_as(&absent, spec.clone()).await.unwrap_err();
    assert!(failure.message.contains("cannot start a worker"), "{failure}");
    let other = WorkerPlacement { executable: "/bin/false".into() };
    let failure = bench.start_as(&other, spec).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::WorkerDied);
    assert_eq!(bench.exit().await, ExitReason::Exited(1));
}

/// Resident bytes of a process.
fn memory(pid: u32) -> ByteSize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    ByteSize(kib.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10)
}
