//! Answers that name every model, and many who ask for them.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::FutureExt;

use super::*;

/// Every listing but `/v1/models`, which asks nobody.
const ASKING: [&str; 5] = ["/metrics", "/admin/status", "/models", "/readyz", "/v1/models"];

/// A router over a runtime with so many models, and how often that was asked about all of them.
fn listing(models: usize) -> (Router, Arc<AtomicUsize>) {
    let preloaded = |number: usize| ModelConfig { preload: true, ..model(&format!("m{number}"), Kind::Text) };
    let (commands, mut received) = mpsc::channel(64);
    let looks = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&looks);
    tokio::spawn(async move {
        while let Some(command) = received.recv().await {
            match command {
                Command::Models(reply) => {
                    let look = counted.fetch_add(1, Ordering::Relaxed);
                    let state = if look.is_multiple_of(2) { ModelState::Cold } else { ModelState::Loading };
                    let _ = reply.send((0..models).map(|number| status(&format!("m{number}"), state)).collect());
                }
                Command::Metrics(reply) => {
                    counted.fetch_add(1, Ordering::Relaxed);
                    let _ = reply.send(crate::telemetry::Scrape::new(Arc::default(), Default::default()));
                }
                Command::Unload(_, _, _, reply) => _ = reply.send(Ok(())),
                other => panic!("{other:?}"),
            }
        }
    });
    let config = Arc::new(configured((0..models).map(preloaded)));
    (crate::http::router(Handle::new(commands, tokio::sync::watch::channel(config).1, super::no_plugins())), looks)
}

async fn get(router: &Router, path: &str) -> (u16, Bytes) {
    let response = router.clone().oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
    let status = response.status().as_u16();
    (status, axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap())
}

#[tokio::test]
async fn who_asks_at_the_same_time_gets_the_same_listing_and_who_asks_later_another() {
    for path in ASKING {
        let (router, looks) = listing(3);
        let wanted = if path == "/readyz" { 503 } else { 200 };
        let all = futures_util::future::join_all((0..50).map(|_| get(&router, path))).await;
        assert!(all.iter().all(|(status, text)| *status == wanted && !text.is_empty()), "{path}");
        // The first one's was begun before the others asked.
        assert_eq!(looks.load(Ordering::Relaxed), 2, "{path}");
        let later = [get(&router, path).await, get(&router, path).await];
        assert_eq!(looks.load(Ordering::Relaxed), 4, "{path}");
        if !matches!(path, "/metrics" | "/readyz") {
            assert_ne!(later[0], later[1], "{path} shows what was");
        }
    }
}

#[tokio::test]
async fn an_answer_names_its_model_as_it_was_asked_for_and_all_else_by_its_entry() {
    let messages = json!([{"role": "user", "content": "hi"}]);
    for (path, ask) in [
        ("/v1/chat/completions", json!({"messages": messages})),
        ("/v1/completions", json!({"prompt": "hi"})),
        ("/v1/responses", json!({"input": "hi"})),
        ("/v1/messages", json!({"messages": messages, "max_tokens": 5})),
        ("/api/chat", json!({"messages": messages})),
        ("/api/generate", json!({"prompt": "hi"})),
        ("/api/generate", json!({})),
    ] {
        for (name, stream) in [("gpt-4o-mini", false), ("gpt-4o-mini:latest", true), ("a", true)] {
            let host = Host::new(hello);
            let mut ask = ask.clone();
            (ask["model"], ask["stream"]) = (name.into(), stream.into());
            let reply = host.post(path, &ask).await;
            assert_eq!(reply.status, 200, "{path}: {}", reply.body);
            let named = reply.body.matches("\"model\":\"").count();
            let as_asked = reply.body.matches(&format!("\"model\":\"{name}\"")).count();
            assert!(named > 0 && named == as_asked, "{path}: {}", reply.body);
            assert!(host.submitted.lock().unwrap().iter().all(|submission| submission.model.as_str() == "a"));
        }
    }
    let host = Host::new(hello);
    assert_eq!(host.get("/v1/models/gpt-4o-mini").await.json()["id"], "a");
}

/// Without `/readyz`: a probe has a clock, which a paused one would have run out while the listing is written.
#[tokio::test(start_paused = true)]
async fn a_listing_of_very_many_models_is_shared_for_a_second_but_never_past_a_command() {
    for path in &ASKING[..3] {
        let (router, looks) = listing(300);
        futures_util::future::join_all((0..50).map(|_| get(&router, path))).await;
        get(&router, path).await;
        assert_eq!(looks.load(Ordering::Relaxed), 1, "{path}");
        let unload = post("/models/unload", json!({"model": "m7"}).to_string());
        assert_eq!(router.clone().oneshot(unload).await.unwrap().status(), 200);
        get(&router, path).await;
        assert_eq!(looks.load(Ordering::Relaxed), 2, "{path} is of before the command");
        tokio::time::sleep(Duration::from_secs(2)).await;
        get(&router, path).await;
        assert_eq!(looks.load(Ordering::Relaxed), 3, "{path} is too old");
    }
}

#[tokio::test(start_paused = true)]
async fn listings_that_are_not_read_are_bounded_and_a_client_that_leaves_has_none_begun_anew() {
    let (router, looks) = listing(300);
    let ask = || router.clone().oneshot(Request::get("/models").body(Body::empty()).unwrap());
    let mut unread = Vec::new();
    for _ in 0..20 {
        unread.push(ask().await.unwrap());
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    assert_eq!(looks.load(Ordering::Relaxed), 8);
    assert!(unread.iter().all(|response| response.status() == 200));
    drop(unread);
    // It asks, and leaves before it is answered.
    assert!(ask().now_or_never().is_none());
    get(&router, "/models").await;
    assert_eq!(looks.load(Ordering::Relaxed), 9, "one was begun for each client");
}
