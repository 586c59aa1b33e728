//! Workers that die from outside: what was asked is still answered, once, and nothing is left of them.

use aihost_tests::server::{Server, Setup, alive, chat, text};
use aihost_tests::{Gate, PATIENCE, eventually, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

fn server(entries: &str) -> Server {
    let yaml = format!("devices: [{{id: cpu, memory: 1GiB, max_loaded: 1}}]\nmodels:\n{entries}");
    Server::start(&Setup { yaml, plugins: vec!["echo", "faulty"], ..Setup::default() })
}

fn echo(name: &str, more: &str) -> String {
    format!("  {name}:\n    type: text\n    plugin: aihost/echo\n{more}")
}

/// Kills the worker of a model as the kernel would.
async fn kill(server: &Server, model: &str) -> i64 {
    let pid = server.status(model, "pid").await.as_i64().expect("a worker");
    let number = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(number, Signal::KILL).expect("it lives");
    pid
}

/// What `/metrics` says once the host has the first token of model `a`'s first answer.
const FIRST_OUTPUT: &str = "aihost_request_first_output_seconds_count{model=\"a\"} 1\n";

#[tokio::test]
async fn an_idle_worker_that_dies_is_reaped_and_the_next_request_loads_anew() {
    let server = server(&echo("a", ""));
    assert_eq!(server.chat("a", "hi").await.0, 200);
    let pid = kill(&server, "a").await;
    server.until("a", "state", json!("cold")).await;
    let gone = || (!std::path::Path::new(&format!("/proc/{pid}")).exists()).then_some(());
    wait_for("the end of the zombie", gone).await;
    assert_eq!(server.get("/health").await.0, 200);
    let body = server.stream(&chat("a", "again")).await.text().await.expect("a stream");
    assert!(body.contains("again") && body.ends_with("data: [DONE]\n\n"), "{body}");
    assert_eq!(server.status("a", "loads").await, 2);
}

#[tokio::test]
async fn what_dead_workers_said_can_still_be_read_and_a_follower_hears_the_next() {
    let server = server(&echo("a", ""));
    assert_eq!(server.chat("a", "hi").await.0, 200);
    let pid = kill(&server, "a").await;
    server.until("a", "state", json!("cold")).await;
    let url = format!("{}/logs/a?follow=true", server.base());
    let mut followed = reqwest::get(url).await.expect("an answer");
    assert_eq!(server.chat("a", "hi").await.0, 200);
    let next = server.status("a", "pid").await;
    let mut heard = String::new();
    while !heard.contains(&format!("data: [{next}] the worker started\n\n")) {
        let piece = followed.chunk().await.expect("a stream").expect("more of it");
        heard += str::from_utf8(&piece).expect("text");
    }
    let (_, tail) = server.get("/logs/a").await;
    let tail = tail.as_str().expect("text");
    for line in [format!("[{pid}] the worker started\n"), format!("[{pid}] the worker was killed (signal 9)\n")] {
        assert!(tail.contains(&line), "{line:?} is not in {tail:?}");
        assert!(
            heard.contains(&format!("data: {line}\n")),
            "{line:?} was not among what the follower heard: {heard:?}"
        );
    }
}

#[tokio::test]
async fn an_answer_in_one_piece_survives_its_worker() {
    let gate = Gate::closed();
    let server = server(&echo("a", &format!("    options: {{tokens: 40, answer_gate: {}}}\n", gate.path().display())));
    let ((status, body), ()) = tokio::join!(server.chat("a", "word"), async {
        // In mid-answer: the host has the first token, and the gate holds the second.
        eventually(async || {
            let (_, metrics) = server.get("/metrics").await;
            let begun = metrics.as_str().is_some_and(|text| text.contains(FIRST_OUTPUT));
            if begun { Ok(()) } else { Err(format!("no token came: {metrics}")) }
        })
        .await;
        kill(&server, "a").await;
        gate.open();
    });
    assert_eq!(status, 200, "{body}");
    assert_eq!((text(&body), &body["usage"]["completion_tokens"]), ("word".repeat(40).as_str(), &json!(40)));
    assert_eq!(server.status("a", "loads").await, 2);
}

#[tokio::test]
async fn a_request_between_death_and_reload_is_served() {
    let gate = Gate::closed();
    gate.open();
    let server = server(&echo("a", &format!("    options: {{load_gate: {}}}\n", gate.path().display())));
    assert_eq!(server.chat("a", "hi").await.0, 200);
    gate.close();
    kill(&server, "a").await;
    // At once, while the death may not be known; and while the next worker loads.
    let (first, (second, ())) = tokio::join!(server.chat("a", "first"), async {
        server.until("a", "state", json!("loading")).await;
        tokio::join!(server.chat("a", "second"), async {
            server.until("a", "queued", json!(2)).await;
            gate.open();
        })
    });
    assert_eq!((first.0, second.0), (200, 200), "{first:?} {second:?}");
    assert_eq!(server.status("a", "loads").await, 2);
}

#[tokio::test]
async fn a_pin_survives_a_crash() {
    let server = server(&(echo("a", "    pin: true\n") + &echo("b", "")));
    assert_eq!(server.chat("a", "hi").await.0, 200);
    kill(&server, "a").await;
    server.until("a", "state", json!("cold")).await;
    assert_eq!(server.chat("a", "hi").await.0, 200);
    let (status, body) = server.chat("b", "hi").await;
    assert_eq!((status, &body["error"]["code"]), (503, &json!("insufficient_vram")), "{body}");
    assert_eq!((server.status("a", "state").await, server.status("a", "loads").await), (json!("hot"), json!(2)));
}

#[tokio::test]
async fn a_worker_whose_child_holds_its_output_stops_in_bounded_time() {
    let file = tempfile::NamedTempFile::new().unwrap();
    // It keeps the worker's standard output and error open.
    let options = format!("    options: {{child: \"echo $$ > {}; exec sleep 1000\"}}\n", file.path().display());
    let server = server(&format!("  a:\n    type: text\n    plugin: aihost/faulty\n{options}"));
    assert_eq!(server.chat("a", "hi").await.0, 200);
    let number = || std::fs::read_to_string(file.path()).ok()?.trim().parse::<i64>().ok();
    let child = wait_for("the start of the worker's child", number).await;
    assert!(alive(child));
    // Whoever waited for the end of that output would wait for a thousand seconds.
    let a = json!({"model": "a"});
    let unloaded =
        tokio::time::timeout(PATIENCE, server.post("/models/unload", &a)).await.expect("an end of the unload");
    assert_eq!(unloaded.0, 200, "{}", unloaded.1);
    assert_eq!(server.status("a", "state").await, "cold");
    wait_for("the end of the worker's child", || (!alive(child)).then_some(())).await;
}

#[tokio::test]
async fn a_model_that_is_to_be_preloaded_is() {
    let server = server(&echo("a", "    preload: true\n"));
    server.until("a", "state", json!("hot")).await;
    assert_eq!(server.status("a", "loads").await, 1);
}

#[tokio::test]
async fn a_stream_that_was_tried_again_has_an_end_though_its_client_stalls() {
    let folder = tempfile::tempdir().unwrap();
    let once = folder.path().join("once");
    let yaml = format!(
        "limits: {{stream_stall_timeout: 1s}}\nmodels:\n  a:\n    type: text\n    plugin: aihost/faulty\n    options: {{fault: segfault, once_file: {}}}\n",
        once.display()
    );
    let server = Server::start(&Setup { yaml, plugins: vec!["faulty"], ..Setup::default() });
    // More than the sockets between the two take in.
    let mut body = chat("a", "hi");
    body["max_tokens"] = json!(1_000_000);
    let stream = server.stream(&body).await;
    assert_eq!(server.status("a", "loads").await, 2);
    // Nobody reads, until the host has given up on it.
    server.until("a", "active", json!(0)).await;
    let text = tokio::time::timeout(PATIENCE, stream.text()).await.expect("an end").expect("a stream");
    assert!(text.ends_with("data: [DONE]\n\n") && text.contains("\"error\""), "{} bytes", text.len());
}

/// As on a kernel before 5.3, and in a container whose profile does not know `pidfd_open`; and with no descriptor left for it.
#[tokio::test]
async fn workers_are_waited_for_without_what_old_systems_lack() {
    const EPERM: u32 = 1;
    const EMFILE: u32 = 24;
    const ENOSYS: u32 = 38;
    for error in [EPERM, EMFILE, ENOSYS] {
        let yaml = format!("devices: [{{id: cpu, memory: 1GiB}}]\nmodels:\n{}", echo("a", ""));
        let env = [("DENY", aihost_tests::deny().display().to_string()), ("ERROR", error.to_string())];
        let env = env.map(|(name, value)| (name.to_owned(), value)).to_vec();
        // 434 is `pidfd_open` everywhere.
        let before = Some("set -- 434 \"$ERROR\" \"$0\" \"$@\"; set -- \"$DENY\" \"$@\"; exec \"$@\"");
        let server = Server::start(&Setup { yaml, plugins: vec!["echo"], env, before });
        assert_eq!(server.chat("a", "hi").await.0, 200, "error {error}: {}", server.log());
        let pid = kill(&server, "a").await;
        server.until("a", "state", json!("cold")).await;
        assert!(!alive(pid));
        assert_eq!(server.chat("a", "hi").await.0, 200, "error {error}");
        let unloaded = server.post("/models/unload", &json!({"model": "a"})).await;
        assert_eq!(unloaded.0, 200, "error {error}");
    }
}
