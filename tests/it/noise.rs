//! What plugins say: as much of it as a log takes, in a form that steers nobody's terminal, and at the shouter's cost alone.

use std::time::{Duration, Instant};

use aihost::domain::FailureKind;
use aihost::worker::ExitReason;
use aihost_tests::server::{Server, Setup, aihost, prepare, text};
use aihost_tests::{PATIENCE, wait_for};
use serde_json::json;
use tokio::sync::broadcast::error::TryRecvError;

use super::bench::{Bench, ask, collect};

const MIB: u64 = 1 << 20;

fn server(options: &str) -> Server {
    let yaml = format!(
        "devices: [{{id: cpu, memory: 4GiB}}]\nmodels:\n  good:\n    type: text\n    plugin: aihost/echo\n  bad:\n    type: text\n    plugin: aihost/faulty\n    memory: 1GiB\n    options: {options}\n"
    );
    Server::start(&Setup { yaml, plugins: vec!["echo", "faulty"], ..Setup::default() })
}

/// The most that a process ever had in memory, bytes.
fn peak(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    kib.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[tokio::test]
async fn a_plugin_that_shouts_loses_lines_and_not_its_request() {
    for (fault, bytes) in [("shout", 100 * MIB), ("many_records", 50 * MIB)] {
        let bench = Bench::new();
        let instance = bench.loaded("aihost/faulty", json!({"fault": fault, "bytes": bytes})).await;
        let mut followed = bench.log.follow();
        collect(ask(&instance, 1, "x", None)).await.1.unwrap();
        // A burst, then a hundred a second: of a million lines.
        wait_for("the count of what was dropped", || {
            bench.log.tail().iter().any(|line| line.contains(" lines dropped")).then_some(())
        })
        .await;
        let mut passed = 0;
        loop {
            match followed.news.try_recv() {
                Ok(_) => passed += 1,
                Err(TryRecvError::Lagged(missed)) => passed += missed,
                Err(_) => break,
            }
        }
        assert!(passed < 20_000, "{fault}: {passed} lines passed");
        let (text, end) = collect(ask(&instance, 2, "x", Some(1))).await;
        assert_eq!((text.as_str(), end.is_ok()), ("word ", true), "{fault}");
    }
}

#[tokio::test]
async fn a_child_that_floods_its_output_costs_the_host_a_bounded_log() {
    let server = server("{child: \"exec yes noise\"}");
    let begun = Instant::now();
    assert_eq!(server.chat("bad", "x").await.0, 200);
    let mut bytes = 0;
    let mut told = 0;
    // Over some seconds, so that a rate shows and not only a burst.
    while told < 3 || begun.elapsed() < Duration::from_secs(4) {
        let log = server.log();
        told += log.matches("lines dropped").count();
        bytes += log.len();
        assert!(begun.elapsed() < PATIENCE, "nothing was said to be dropped");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let most = (512 << 10) + 64 * 1024 * begun.elapsed().as_secs() as usize;
    assert!(bytes < most, "{bytes} bytes of log in {:?}", begun.elapsed());
    assert_eq!(server.chat("good", "still here").await.0, 200);
}

#[tokio::test]
async fn what_is_larger_than_a_line_is_cut_before_it_reaches_the_host() {
    for (fault, bytes, status) in
        [("huge_record", 100 * MIB, 200), ("huge_panic", 64 * MIB, 500), ("huge_error", 64 * MIB, 500)]
    {
        let server = server(&format!("{{fault: {fault}, bytes: {bytes}}}"));
        assert_eq!(server.chat("good", "still here").await.0, 200);
        let (found, body) = server.chat("bad", "x").await;
        assert_eq!(found, status, "{fault}");
        let message = body["error"]["message"].as_str().unwrap_or_default();
        assert!(message.len() < 1024, "{fault}: {} bytes reached the client", message.len());
        let (_, log) = server.get("/logs/bad").await;
        let log = log.as_str().unwrap_or_default().to_owned() + &server.log();
        let longest = log.lines().map(str::len).max().unwrap_or(0);
        assert!(longest < 16 << 10, "{fault}: a line of {longest} bytes");
        let peak = peak(server.pid());
        assert!(peak < 80 * MIB, "{fault}: the host took {peak} bytes");
        let (status, body) = server.chat("good", "still here").await;
        assert_eq!((status, text(&body)), (200, "still here"));
    }
}

#[tokio::test]
async fn an_error_without_words_is_a_sentence() {
    let server = server("{fault: empty_error}");
    let (status, body) = server.chat("bad", "x").await;
    assert_eq!((status, &body["error"]["message"]), (500, &json!("the plugin failed and did not say why")));
}

#[tokio::test]
async fn nobody_writes_lines_that_are_not_his_or_steers_a_terminal() {
    let server = server("{fault: forge}");
    let (status, body) = server.chat("bad", "x").await;
    let message = body["error"]["message"].as_str().unwrap_or_default();
    assert!(status == 500 && message.contains("\\u{1b}]0;title\\u{7}"), "{body}");
    // The plugin's standard error reaches the log a moment later.
    wait_for("all of its words", || {
        let (_, lines, _) = aihost(&["logs", "bad", "--url", server.base()], &[]);
        lines.contains("stderr: ").then_some(())
    })
    .await;
    let (_, ps, notes) = aihost(&["ps", "--url", server.base()], &[]);
    let (_, logs, _) = aihost(&["logs", "bad", "--url", server.base()], &[]);
    let host = server.log();
    for (what, printed) in [("client", message), ("ps", &ps), ("ps", &notes), ("logs", &logs), ("host", &host)] {
        let steers = |c: char| c != '\n' && c != '\t' && (c.is_control() || c == '\u{202e}');
        assert!(!printed.contains(steers), "{what}: {printed:?}");
        assert!(printed.lines().all(|line| !line.starts_with("[99]")), "{what}: {printed}");
    }
    assert!(logs.contains("\\r\\n[99] ERROR aihost: forged\\u{202e}"), "{logs}");
}

#[tokio::test]
async fn a_stop_that_nobody_asked_for_is_not_the_clients_leaving() {
    let server = server("{fault: stop_unasked}");
    let (status, body) = server.chat("bad", "x").await;
    assert!(status == 500 && body.to_string().contains("nobody asked for"), "{status} {body}");
}

#[tokio::test]
async fn a_plugin_that_closes_the_workers_socket_is_told_apart() {
    let mut bench = Bench::new();
    let instance = bench.loaded("aihost/faulty", json!({"fault": "close_all", "after_tokens": 1})).await;
    let (_, end) = collect(ask(&instance, 1, "x", None)).await;
    let failure = end.unwrap_err();
    assert!(failure.message.contains("its plugin closed the connection to the host"), "{failure}");
    assert_eq!(failure.kind, FailureKind::WorkerDied);
    let reason = bench.exit().await;
    assert!(matches!(&reason, ExitReason::Misbehaved(what) if what.contains("closed the connection")), "{reason}");
}

/// What a process says as it dies is heard by `worker::a_failed_allocation_is_told_as_memory`.
#[tokio::test]
async fn a_child_is_heard_and_a_line_without_an_end_is_one() {
    let bench = Bench::new();
    let child = "echo the child was here; printf 'without an end' >&2; exec sleep 100";
    let _instance = bench.loaded("aihost/faulty", json!({"child": child})).await;
    for wanted in ["stdout: the child was here", "stderr: without an end"] {
        wait_for(wanted, || bench.log.tail().iter().any(|line| line.ends_with(wanted)).then_some(())).await;
    }
}

#[tokio::test]
async fn a_plugins_folder_is_listed_without_obeying_its_files() {
    let (folder, config) = prepare(&Setup { yaml: "models: {}\n".into(), ..Setup::default() });
    let name = "plugins/\u{1b}[2J\n\u{202e}x.so";
    std::fs::write(folder.path().join(name), b"\x7fELF but not really").unwrap();
    for arguments in [&["plugins", "list"][..], &["plugins", "list", "--json"], &["check"]] {
        let config = config.display().to_string();
        let arguments: Vec<&str> = arguments.iter().copied().chain(["--config", &config]).collect();
        let (_, stdout, stderr) = aihost(&arguments, &[]);
        let printed = stdout + &stderr;
        assert!(!printed.contains(['\u{1b}', '\u{202e}']), "{arguments:?}: {printed:?}");
    }
}
