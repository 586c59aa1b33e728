//! Swapping: who is loaded, who is evicted, and that nobody is cut off. With the echo plugin, which has no weights.

use aihost_tests::server::{DRAINS, Server, Setup, alive, chat, text};
use aihost_tests::{Gate, eventually, wait_for};
use serde_json::json;

/// Two echo models of which one fits.
fn pair(options: &str) -> Server {
    let yaml = format!(
        "devices: [{{id: cpu, memory: 1GiB, max_loaded: 1}}]\nmodels:\n  a:\n    type: text\n    plugin: aihost/echo\n    park: false\n    options: {options}\n  b:\n    type: text\n    plugin: aihost/echo\n    park: false\n    options: {options}\n"
    );
    Server::start(&Setup { yaml, plugins: vec!["echo"], ..Setup::default() })
}

/// Options by which every answer is held behind its first token.
fn held(gate: &Gate, tokens: u32) -> String {
    format!("{{tokens: {tokens}, answer_gate: {}}}", gate.path().display())
}

#[tokio::test]
async fn a_request_for_the_other_model_swaps() {
    let server = pair("{}");
    for round in 1..=3 {
        for (model, other) in [("a", "b"), ("b", "a")] {
            let (status, body) = server.chat(model, "one two three").await;
            assert_eq!(status, 200, "{body}");
            assert_eq!(text(&body), "one two three");
            assert_eq!(body["model"], model);
            assert_eq!(server.status(model, "state").await, "hot");
            assert_eq!(server.status(model, "loads").await, round);
            server.until(other, "state", json!("cold")).await;
        }
    }
}

#[tokio::test]
async fn a_busy_model_is_not_evicted_and_its_answer_is_whole() {
    let gate = Gate::closed();
    let server = pair(&held(&gate, 50));
    let (a, (b, ())) = tokio::join!(server.chat("a", "word"), async {
        server.until("a", "active", json!(1)).await;
        tokio::join!(server.chat("b", "word"), async {
            server.until("b", "queued", json!(1)).await;
            gate.open();
        })
    });
    assert_eq!((a.0, b.0), (200, 200), "{a:?} {b:?}");
    assert_eq!(a.1["usage"]["completion_tokens"], 50);
    assert_eq!(server.status("a", "loads").await, 1);
}

#[tokio::test]
async fn many_waiters_cause_one_load() {
    let server = pair("{load_ms: 100}");
    let waiters = futures_util::future::join_all((0..20).map(|_| server.chat("a", "hi"))).await;
    assert!(waiters.iter().all(|(status, _)| *status == 200), "{waiters:?}");
    assert_eq!(server.status("a", "loads").await, 1);
}

#[tokio::test]
async fn interleaved_requests_are_served_in_batches() {
    let gate = Gate::closed();
    let server = pair(&held(&gate, 4));
    let models = ["a", "b"].repeat(10);
    let asked = futures_util::future::join_all(models.iter().map(|model| server.chat(model, "hi")));
    // Ten are served at once, and then the others: nobody swaps for a single one.
    let (answers, ()) = tokio::join!(asked, async {
        eventually(async || {
            let (a, b) = (server.status("a", "active").await, server.status("b", "active").await);
            let waiting = (server.status("a", "queued").await, server.status("b", "queued").await);
            let one_side = [(json!(10), json!(0)), (json!(0), json!(10))].contains(&(a.clone(), b.clone()));
            let other_side = waiting == (b.clone(), a.clone());
            if one_side && other_side { Ok(()) } else { Err(format!("{a} and {b} are served, {waiting:?} wait")) }
        })
        .await;
        gate.open();
    });
    assert!(answers.iter().all(|(status, _)| *status == 200), "{answers:?}");
    for (model, (_, body)) in models.iter().zip(&answers) {
        assert_eq!(body["model"], *model);
    }
    assert_eq!((server.status("a", "loads").await, server.status("b", "loads").await), (json!(1), json!(1)));
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_slot_and_keeps_the_model() {
    let server = pair("{latency_ms: 20, tokens: 100000}");
    let mut response = server.stream(&chat("a", "word")).await;
    assert!(response.chunk().await.is_ok_and(|chunk| chunk.is_some()));
    assert_eq!(server.status("a", "active").await, 1);
    drop(response);
    server.until("a", "active", json!(0)).await;
    assert_eq!(server.status("a", "state").await, "hot");
}

#[tokio::test]
async fn load_and_unload_over_http() {
    let server = pair("{}");
    assert_eq!(server.post("/models/load", &json!({"model": "a"})).await, (200, json!({"success": true})));
    assert_eq!(server.status("a", "state").await, "hot");
    let (_, models) = server.get("/models").await;
    let value = |id: &str| {
        models["data"]
            .as_array()
            .and_then(|list| list.iter().find(|m| m["id"] == id))
            .map(|m| m["status"]["value"].clone())
    };
    assert_eq!((value("a"), value("b")), (Some(json!("loaded")), Some(json!("unloaded"))));
    assert_eq!(server.post("/models/unload", &json!({"model": "a"})).await, (200, json!({"success": true})));
    assert_eq!(server.status("a", "state").await, "cold");
    assert_eq!(server.post("/models/load", &json!({"model": "nope"})).await.0, 404);
}

#[tokio::test]
async fn sigterm_drains_and_leaves_nothing_behind() {
    let gate = Gate::closed();
    let mut server = pair(&held(&gate, 60));
    let response = server.stream(&chat("a", "word")).await;
    let worker = server.status("a", "pid").await.as_i64().expect("a worker");
    server.signal(rustix::process::Signal::TERM);
    server.logged(DRAINS).await;
    gate.open();
    let body = response.text().await.expect("the stream ends well");
    assert!(body.trim_end().ends_with("data: [DONE]"), "{body}");
    assert!(server.wait().success());
    assert!(!alive(worker));
}

#[tokio::test]
async fn no_worker_outlives_a_killed_host() {
    let mut server = pair("{}");
    assert_eq!(server.chat("a", "hi").await.0, 200);
    let worker = server.status("a", "pid").await.as_i64().expect("a worker");
    server.signal(rustix::process::Signal::KILL);
    server.wait();
    wait_for("the worker's end", || (!alive(worker)).then_some(())).await;
}
