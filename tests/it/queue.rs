//! Waiting: who comes next, who costs whom what, and that looking changes nothing.

use aihost_tests::server::{Server, Setup, chat, text};
use aihost_tests::{Gate, eventually};
use futures_util::future::join_all;
use serde_json::json;

/// Models `a` and `b` of which one fits, with these options, and more YAML before `models:`.
fn pair(options: &str, more: &str) -> Server {
    let entry = |name: &str| format!("  {name}:\n    type: text\n    plugin: aihost/echo\n    options: {options}\n");
    let yaml =
        format!("devices: [{{id: cpu, memory: 1GiB, max_loaded: 1}}]\n{more}models:\n{}{}", entry("a"), entry("b"));
    Server::start(&Setup { yaml, plugins: vec!["echo"], ..Setup::default() })
}

/// Options by which every answer is held behind its first token.
fn held(gate: &Gate) -> String {
    format!("{{tokens: 30, answer_gate: {}}}", gate.path().display())
}

/// How often each of the two became hot: from cold, or from parked.
async fn turns(server: &Server) -> [u64; 2] {
    let count = async |model, field| server.status(model, field).await.as_u64().expect("a count");
    let turns = async |model| count(model, "loads").await + count(model, "wakes").await;
    [turns("a").await, turns("b").await]
}

#[tokio::test]
async fn many_waiters_for_the_other_model_cause_one_eviction() {
    let gate = Gate::closed();
    let server = pair(&held(&gate), "");
    let (busy, (waiters, ())) = tokio::join!(server.chat("a", "word"), async {
        server.until("a", "active", json!(1)).await;
        tokio::join!(join_all((0..20).map(|_| server.chat("b", "hi"))), async {
            server.until("b", "queued", json!(20)).await;
            gate.open();
        })
    });
    assert_eq!(busy.0, 200, "{busy:?}");
    assert!(waiters.iter().all(|(status, _)| *status == 200), "{waiters:?}");
    assert_eq!(turns(&server).await, [1, 1]);
}

#[tokio::test]
async fn a_client_that_leaves_the_queue_costs_nobody_anything() {
    let gate = Gate::closed();
    let server = pair(&held(&gate), "");
    let (busy, ()) = tokio::join!(server.chat("a", "word"), async {
        server.until("a", "active", json!(1)).await;
        let (body, other) = (chat("b", "gone"), chat("b", "gone too"));
        let leavers = join_all([server.stream(&body), server.stream(&other)]);
        tokio::select! {
            _ = leavers => panic!("granted under a busy model"),
            () = server.until("b", "queued", json!(2)) => {}
        }
        server.until("b", "queued", json!(0)).await;
        gate.open();
    });
    assert_eq!((busy.0, &busy.1["usage"]["completion_tokens"]), (200, &json!(30)), "{busy:?}");
    assert_eq!(turns(&server).await, [1, 0], "nobody was evicted for one who left");
    assert_eq!(server.status("a", "state").await, "hot");
}

#[tokio::test]
async fn a_request_for_a_model_on_its_way_out_waits_and_reloads_it() {
    let gate = Gate::closed();
    let server = pair(&held(&gate), "");
    let unload = json!({"model": "a"});
    let (first, (unloaded, late, ())) = tokio::join!(server.chat("a", "word"), async {
        server.until("a", "active", json!(1)).await;
        let late = async {
            server.until("a", "state", json!("draining")).await;
            server.chat("a", "late").await
        };
        tokio::join!(server.post("/models/unload", &unload), late, async {
            server.until("a", "queued", json!(1)).await;
            gate.open();
        })
    });
    assert_eq!((first.0, unloaded.0, late.0), (200, 200, 200), "{first:?} {unloaded:?} {late:?}");
    assert_eq!(server.status("a", "loads").await, 2);
}

#[tokio::test]
async fn loading_twice_and_unloading_twice_is_once() {
    let server = pair("{load_ms: 50}", "");
    for (path, state) in [("/models/load", "hot"), ("/models/unload", "cold")] {
        for _ in 0..2 {
            let a = json!({"model": "a"});
            let both = tokio::join!(server.post(path, &a), server.post(path, &a));
            assert_eq!((both.0.0, both.1.0), (200, 200), "{path}: {both:?}");
            assert_eq!(server.status("a", "state").await, state);
        }
    }
    assert_eq!(server.status("a", "loads").await, 1);
}

#[tokio::test]
async fn a_full_queue_is_a_prompt_answer() {
    let gate = Gate::closed();
    let server = pair(&held(&gate), "limits: {queue: 2}\n");
    let (busy, ()) = tokio::join!(server.chat("a", "word"), async {
        server.until("a", "active", json!(1)).await;
        let (one, two) = (chat("b", "1"), chat("b", "2"));
        let waiters = join_all([server.stream(&one), server.stream(&two)]);
        let third = async {
            server.until("b", "queued", json!(2)).await;
            server.stream(&chat("b", "3")).await
        };
        let third = tokio::select! {
            _ = waiters => panic!("granted under a busy model"),
            third = third => third,
        };
        assert_eq!(third.status().as_u16(), 429);
        assert!(third.headers().contains_key("retry-after"), "{third:?}");
        assert_eq!(server.status("a", "active").await, 1, "the answer did not wait for the model");
        gate.open();
    });
    assert_eq!(busy.0, 200, "{busy:?}");
}

#[tokio::test]
async fn a_slot_of_a_loaded_model_is_waited_for_beyond_hold() {
    let yaml =
        "limits: {hold: 1s}\nmodels:\n  a: {type: text, plugin: aihost/echo, options: {latency_ms: 50, tokens: 40}}\n";
    let server = Server::start(&Setup { yaml: yaml.into(), plugins: vec!["echo"], ..Setup::default() });
    assert_eq!(server.post("/models/load", &json!({"model": "a"})).await.0, 200);
    // Each takes two seconds, and there are more than the plugin's 64 slots: the last ones wait longer than `hold`.
    let answers = join_all((0..80).map(|_| server.chat("a", "word"))).await;
    assert!(answers.iter().all(|(status, _)| *status == 200), "{answers:?}");
}

#[tokio::test]
async fn looking_wakes_nobody_and_keeps_nobody_awake() {
    let yaml = "models:\n  a:\n    type: text\n    plugin: aihost/echo\n    park: false\n    keep_alive: 1s\n";
    let server = Server::start(&Setup { yaml: yaml.into(), plugins: vec!["echo"], ..Setup::default() });
    let look = async || {
        for path in ["/health", "/livez", "/readyz", "/ping", "/models", "/v1/models", "/v1/models/a", "/admin/status"]
        {
            assert_eq!(server.get(path).await.0, 200, "{path}");
        }
        server.get("/logs/a").await;
        server.get("/metrics").await;
    };
    look().await;
    assert_eq!((server.status("a", "state").await, server.status("a", "loads").await), (json!("cold"), json!(0)));
    assert_eq!(server.chat("a", "hi").await.0, 200);
    eventually(async || {
        look().await;
        let state = server.status("a", "state").await;
        if state == "cold" { Ok(()) } else { Err(format!("kept {state} by being looked at")) }
    })
    .await;
    assert_eq!(server.status("a", "loads").await, 1);
}

#[tokio::test]
async fn a_storm_takes_few_turns_and_refuses_nobody() {
    const REQUESTS: usize = 400;
    let gate = Gate::closed();
    // A turn that is longer than the storm; in `runtime::tests::storm`, where time is paused, turns end.
    let server = pair(&held(&gate), "limits: {queue: 500}\ndefaults: {max_wait: 10m, quantum: 10m}\n");
    let words: Vec<String> = (0..REQUESTS).map(|n| format!("number-{n}")).collect();
    let asked = words.iter().zip(["a", "b"].into_iter().cycle());
    let storm = join_all(asked.clone().map(|(word, model)| server.chat(model, word)));
    let all_there = async {
        eventually(async || {
            let count = async |model, field| server.status(model, field).await.as_u64().unwrap_or(0);
            let of = async |model| count(model, "active").await + count(model, "queued").await;
            let there = of("a").await + of("b").await;
            if there == REQUESTS as u64 { Ok(()) } else { Err(format!("{there} of {REQUESTS} requests are there")) }
        })
        .await;
        gate.open();
    };
    let (answers, ()) = tokio::join!(storm, all_there);
    for ((word, model), (status, body)) in asked.zip(&answers) {
        assert_eq!(*status, 200, "{body}");
        assert_eq!((text(body), &body["model"]), (word.repeat(30).as_str(), &json!(model)));
    }
    assert_eq!(turns(&server).await, [1, 1]);
}

#[tokio::test]
async fn a_stream_that_waits_pings_where_that_is_asked_for() {
    let models = "models:\n  a: {type: text, plugin: aihost/echo, options: {load_ms: 700}}\n  b: {type: text, plugin: aihost/faulty, options: {fault: hang_load}, startup_time: 1}\n";
    for (limits, pings) in [("limits: {sse_ping: 100ms}\n", true), ("", false)] {
        let yaml = format!("{limits}{models}");
        let server = Server::start(&Setup { yaml, plugins: vec!["echo", "faulty"], ..Setup::default() });
        let body = server.stream(&chat("a", "one two")).await.text().await.expect("a whole body");
        assert_eq!(body.starts_with(": ping\n\n"), pings, "{body}");
        assert!(body.contains("one") && body.ends_with("data: [DONE]\n\n"), "{body}");
        let failed = server.stream(&chat("b", "x")).await;
        assert_eq!(failed.status().as_u16() == 200, pings);
        let body = failed.text().await.expect("a whole body");
        assert!(body.contains("\"error\""), "{body}");
    }
}
