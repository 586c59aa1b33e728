//! Waiting: who comes next, who costs whom what, and that looking changes nothing.

use std::time::{Duration, Instant};

use aihost_tests::server::{Server, Setup, chat, text};
use futures_util::future::join_all;
use serde_json::{Value, json};

/// Models `a` and `b` of which one fits, with these options, and more YAML before `models:`.
fn pair(options: &str, more: &str) -> Server {
    let entry = |name: &str| format!("  {name}:\n    type: text\n    plugin: aihost/echo\n    options: {options}\n");
    let yaml =
        format!("devices: [{{id: cpu, memory: 1GiB, max_loaded: 1}}]\n{more}models:\n{}{}", entry("a"), entry("b"));
    Server::start(&Setup { yaml, plugins: vec!["echo"], ..Setup::default() })
}

async fn loads(server: &Server) -> (Value, Value) {
    (server.status("a", "loads").await, server.status("b", "loads").await)
}

#[tokio::test]
async fn many_waiters_for_the_other_model_cause_one_eviction() {
    let server = pair("{latency_ms: 20, tokens: 30}", "");
    let (busy, waiters) = tokio::join!(server.chat("a", "word"), async {
        server.until("a", "active", json!(1)).await;
        join_all((0..20).map(|_| server.chat("b", "hi"))).await
    });
    assert_eq!(busy.0, 200, "{busy:?}");
    assert!(waiters.iter().all(|(status, _)| *status == 200), "{waiters:?}");
    assert_eq!(loads(&server).await, (json!(1), json!(1)));
}

#[tokio::test]
async fn a_client_that_leaves_the_queue_costs_nobody_anything() {
    let server = pair("{latency_ms: 10, tokens: 100}", "");
    let (busy, ()) = tokio::join!(server.chat("a", "word"), async {
        server.until("a", "active", json!(1)).await;
        let (body, other) = (chat("b", "gone"), chat("b", "gone too"));
        let leavers = join_all([server.stream(&body), server.stream(&other)]);
        tokio::select! {
            _ = leavers => panic!("granted under a busy model"),
            () = server.until("b", "queued", json!(2)) => {}
        }
        server.until("b", "queued", json!(0)).await;
    });
    assert_eq!((busy.0, &busy.1["usage"]["completion_tokens"]), (200, &json!(100)), "{busy:?}");
    assert_eq!(loads(&server).await, (json!(1), json!(0)), "nobody was evicted for one who left");
    assert_eq!(server.status("a", "state").await, "hot");
}

#[tokio::test]
async fn a_request_for_a_model_on_its_way_out_waits_and_reloads_it() {
    let server = pair("{latency_ms: 10, tokens: 40}", "");
    let unload = json!({"model": "a"});
    let (first, (unloaded, late)) = tokio::join!(server.chat("a", "word"), async {
        server.until("a", "active", json!(1)).await;
        tokio::join!(server.post("/models/unload", &unload), async {
            server.until("a", "state", json!("draining")).await;
            server.chat("a", "late").await
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
    let server = pair("{latency_ms: 20, tokens: 50}", "limits: {queue: 2}\n");
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
    });
    assert_eq!(busy.0, 200, "{busy:?}");
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
    let begun = Instant::now();
    while server.status("a", "state").await != "cold" {
        look().await;
        assert!(begun.elapsed() < aihost_tests::PATIENCE, "kept awake by being looked at");
    }
    assert_eq!(server.status("a", "loads").await, 1);
}

#[tokio::test]
async fn a_storm_takes_few_turns_and_refuses_nobody() {
    const REQUESTS: usize = 400;
    let server = pair("{latency_ms: 5, tokens: 4}", "limits: {queue: 500}\ndefaults: {quantum: 100ms}\n");
    let begun = Instant::now();
    let words: Vec<String> = (0..REQUESTS).map(|n| format!("number-{n}")).collect();
    let asked = words.iter().zip(["a", "b"].into_iter().cycle());
    let answers = join_all(asked.clone().map(|(word, model)| server.chat(model, word))).await;
    for ((word, model), (status, body)) in asked.zip(&answers) {
        assert_eq!(*status, 200, "{body}");
        assert_eq!((text(body), &body["model"]), (word.repeat(4).as_str(), &json!(model)));
    }
    let took = begun.elapsed();
    let (a, b) = loads(&server).await;
    let loads = a.as_u64().zip(b.as_u64()).map(|(a, b)| a + b).expect("counted");
    eprintln!("{REQUESTS} requests in {took:?} with {loads} loads");
    // They do not all arrive in one moment here. Every turn lasts a quantum, and there are few of them beside 400.
    assert!(loads <= 8, "{loads} loads");
    assert!(took < Duration::from_secs(60), "{took:?}");
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
