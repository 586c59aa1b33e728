//! A host that was stopped and goes on, as by Ctrl-Z and fg, a debugger, or a paused container: its workers said what they
//! could, and silence counts only while it was awake.

use std::time::Duration;

use aihost_tests::server::{Server, Setup, chat, text};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

/// Longer than every limit in these tests, as a pause of a minute is beside the usual ones.
const PAUSE: Duration = Duration::from_millis(3500);

fn server(limits: &str, options: &str) -> Server {
    let entry = |name: &str| {
        format!("  {name}:\n    type: text\n    plugin: aihost/echo\n    startup_time: 2\n    options: {options}\n")
    };
    let devices = "devices: [{id: cpu, memory: 1GiB}]\n";
    let yaml = format!("{devices}limits: {{worker_silence: 2s, {limits}}}\nmodels:\n{}{}", entry("a"), entry("b"));
    Server::start(&Setup { yaml, plugins: vec!["echo"], ..Setup::default() })
}

async fn worker(server: &Server, model: &str) -> i32 {
    i32::try_from(server.status(model, "pid").await.as_i64().expect("a worker")).unwrap()
}

/// Stops these processes, and has them go on after a while, the first one first.
async fn pause(pids: &[i32]) {
    let signal = |signal: Signal| {
        for pid in pids {
            kill_process(Pid::from_raw(*pid).unwrap(), signal).unwrap();
        }
    };
    signal(Signal::STOP);
    // The time is what is tested.
    tokio::time::sleep(PAUSE).await;
    signal(Signal::CONT);
}

#[tokio::test]
async fn a_host_that_goes_on_keeps_its_workers_and_their_streams() {
    for with_workers in [false, true] {
        let server = server("output_stall_timeout: 2s", "{latency_ms: 100, tokens: 20}");
        let mut pids = vec![server.pid()];
        for model in ["a", "b"] {
            assert_eq!(server.chat(model, "hi").await.0, 200);
            pids.push(worker(&server, model).await);
        }
        let workers = pids[1..].to_vec();
        if !with_workers {
            pids.truncate(1);
        }
        let stream = server.stream(&chat("a", "word ")).await;
        server.until("a", "active", json!(1)).await;
        pause(&pids).await;
        let body = stream.text().await.expect("a whole stream");
        assert!(body.ends_with("data: [DONE]\n\n") && !body.contains("\"error\""), "{body}");
        for (model, pid) in ["a", "b"].into_iter().zip(workers) {
            assert_eq!(server.chat(model, "hi").await.0, 200, "{model}");
            assert_eq!(worker(&server, model).await, pid, "{model}: {}", server.log());
        }
    }
}

#[tokio::test]
async fn no_limit_of_a_request_counts_a_pause() {
    let limits = "first_output_timeout: 2500ms, output_stall_timeout: 2500ms, request_timeout: 5s";
    let server = server(limits, "{latency_ms: 1000, tokens: 3}");
    assert_eq!(server.post("/models/load", &json!({"model": "a"})).await.0, 200);
    let pids = [server.pid(), worker(&server, "a").await];
    let asked = async {
        server.until("a", "active", json!(1)).await;
        pause(&pids).await;
    };
    let ((status, body), ()) = tokio::join!(server.chat("a", "word"), asked);
    assert_eq!((status, text(&body)), (200, "wordwordword"), "{}", server.log());
}

#[tokio::test]
async fn neither_a_load_nor_who_waits_for_it_counts_a_pause() {
    let server = server("hold: 3s", "{load_ms: 1000}");
    let asked = async {
        server.until("a", "state", json!("loading")).await;
        let pids = [server.pid(), worker(&server, "a").await];
        pause(&pids).await;
    };
    let ((status, body), ()) = tokio::join!(server.chat("a", "still here"), asked);
    assert_eq!((status, text(&body)), (200, "still here"), "{}", server.log());
    assert_eq!(server.status("a", "loads").await, 1);
}

#[tokio::test]
async fn a_worker_that_stops_alone_is_still_replaced() {
    let server = server("output_stall_timeout: 60s", "{latency_ms: 100, tokens: 1000}");
    let stream = server.stream(&chat("a", "word ")).await;
    server.until("a", "active", json!(1)).await;
    let pid = worker(&server, "a").await;
    kill_process(Pid::from_raw(pid).unwrap(), Signal::STOP).unwrap();
    let body = stream.text().await.expect("a framed end");
    assert!(body.contains("stopped answering"), "{body}");
}
