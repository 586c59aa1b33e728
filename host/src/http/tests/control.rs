//! Lists of models, loading and unloading, health.

use super::*;

#[tokio::test]
async fn models_are_listed_without_their_aliases() {
    let host = Host::new(hello);
    let json = host.get("/v1/models").await.json();
    let ids: Vec<_> = json["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["a", "flux", "music", "org/b"]);
    assert_eq!(json["data"][0]["object"], "model");
    assert_eq!(json["data"][0]["aliases"], json!(["gpt-4o-mini"]));
}

#[tokio::test]
async fn one_model_is_found_by_any_spelling_of_its_path() {
    let host = Host::new(hello);
    for (path, id) in [("a", "a"), ("gpt-4o-mini", "a"), ("org/b", "org/b"), ("org%2Fb", "org/b")] {
        assert_eq!(host.get(&format!("/v1/models/{path}")).await.json()["id"], id, "{path}");
    }
    assert_eq!(host.get("/v1/models/c").await.error(), (404, "model_not_found".into(), "model".into()));
    assert_eq!(host.get("/v1/models/%ff").await.error().0, 400);
}

#[tokio::test]
async fn states_have_llama_cpps_names() {
    let json = Host::new(hello).get("/models").await.json();
    assert_eq!(json["data"][0]["status"]["value"], "loaded");
    assert_eq!(json["data"][1]["status"], json!({"value": "loading", "state": "loading", "progress": 250}));
}

#[tokio::test]
async fn models_are_loaded_and_unloaded_by_name() {
    let host = Host::with(configured([model("a", Kind::Text), model("b", Kind::Text)]), hello);
    for path in ["/models/load", "/models/park", "/models/unload"] {
        let reply = host.post(path, &json!({"model": "a"})).await;
        assert_eq!((reply.status.as_u16(), reply.json()), (200, json!({"success": true})));
        assert_eq!(host.post(path, &json!({"model": "c"})).await.error().0, 404);
        assert_eq!(
            host.post(path, &json!({})).await.error(),
            (400, "missing_required_parameter".into(), "model".into())
        );
    }
    assert_eq!(host.post("/models/load", &json!({"model": "b"})).await.error().1, "model_not_pulled");
}

#[tokio::test]
async fn status_and_logs_are_given_as_they_are() {
    let host = Host::new(hello);
    let status = host.get("/admin/status").await.json();
    assert_eq!((&status[0]["id"], &status[0]["state"], &status[0]["loads"]), (&json!("a"), &json!("hot"), &json!(1)));
    assert_eq!(host.get("/logs/org/b").await.body, "one\ntwo\n");
    assert_eq!(host.get("/logs/none").await.error().0, 404);
    assert_eq!(host.get("/logs/org/b?follow=x").await.error().0, 400);
}

#[tokio::test]
async fn logs_can_be_followed_to_the_end_of_the_model() {
    let reply = Host::new(hello).get("/logs/org/b?follow=true").await;
    assert_eq!(reply.headers["content-type"], "text/event-stream");
    let skipped = "data: (1 lines were skipped: this reader is too slow)\n\n";
    assert_eq!(reply.body, format!("data: one\n\ndata: two\n\n{skipped}data: three\ndata: lines\n\ndata: four\n\n"));
}

#[tokio::test]
async fn metrics_are_text_and_need_the_key_that_the_rest_needs() {
    let host = Host::new(hello);
    let lost = "aihost_requests_lost_total{model=\"a\"} 0";
    let mut asked = Request::get("/metrics").body(Body::empty()).unwrap();
    let reply = host.get("/metrics").await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    assert!(reply.body.contains(lost) && !reply.body.contains("# EOF"), "{}", reply.body);
    asked.headers_mut().insert("accept", "application/openmetrics-text; version=1.0.0".parse().unwrap());
    let reply = host.send(asked).await;
    assert_eq!(reply.header("content-type"), "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert!(reply.body.contains(lost) && reply.body.ends_with("# EOF\n"), "{}", reply.body);
    let keyed = Config { api_keys: keys(&["secret"]), ..config() };
    assert_eq!(Host::with(keyed, hello).get("/metrics").await.error().0, 401);
}

#[tokio::test]
async fn refusals_are_counted_by_status() {
    let keyed = Config { api_keys: keys(&["secret"]), ..config() };
    let host = Host::with(keyed, hello);
    for _ in 0..3 {
        assert_eq!(host.get("/v1/models").await.status, 401);
    }
    assert_eq!(host.send(with_key(Request::get("/nowhere").body(Body::empty()).unwrap(), "secret")).await.status, 404);
    let told = host.send(with_key(Request::get("/metrics").body(Body::empty()).unwrap(), "secret")).await.body;
    for (status, count) in [("401", 3), ("404", 1), ("403", 0), ("429", 0), ("503", 0)] {
        let line = format!("aihost_http_refusals_total{{status=\"{status}\"}} {count}\n");
        assert!(told.contains(&line), "no `{line}` in\n{told}");
    }
}

#[tokio::test]
async fn devices_are_told_with_what_is_unknown_of_them() {
    let reply = Host::new(hello).get("/admin/devices").await;
    let wanted = r#"[{"id":"cpu","budget":9,"reserved":5,"held":4,"others":3,"free":2,"total":9},{"id":"cuda:0","budget":9,"reserved":5,"held":null,"others":null,"free":null,"total":null}]"#;
    assert_eq!((reply.status.as_u16(), reply.body.as_str()), (200, wanted));
}

#[tokio::test]
async fn readiness_waits_for_preloaded_models() {
    let idle = Host::with(configured([model("b", Kind::Text)]), hello);
    assert_eq!(idle.get("/ping").await.status, 200);
    assert_eq!(idle.get("/readyz").await.status, 200);
    let preloading = Host::with(configured([ModelConfig { preload: true, ..model("b", Kind::Text) }]), hello);
    assert_eq!(preloading.get("/ping").await.status, 204);
    assert_eq!(preloading.get("/readyz").await.error().0, 503);
    assert_eq!(preloading.get("/health").await.status, 200);
    assert_eq!(preloading.get("/livez").await.status, 200);
}

#[tokio::test]
async fn a_runtime_that_is_gone_is_503() {
    let (commands, received) = mpsc::channel(1);
    drop(received);
    let router = crate::http::router(Handle::new(
        commands,
        tokio::sync::watch::channel(Arc::new(config())).1,
        super::no_plugins(),
    ));
    for (path, status) in [("/health", 503), ("/readyz", 503), ("/ping", 503), ("/livez", 503), ("/v1/models", 200)] {
        let reply = router.clone().oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(reply.status(), status, "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_does_not_answer_is_503_too() {
    let (commands, _received) = mpsc::channel(1);
    let config = configured([ModelConfig { preload: true, ..model("b", Kind::Text) }]);
    let router = crate::http::router(Handle::new(
        commands,
        tokio::sync::watch::channel(Arc::new(config)).1,
        super::no_plugins(),
    ));
    for (path, status) in [("/health", 503), ("/readyz", 503), ("/ping", 503), ("/livez", 200)] {
        let reply = router.clone().oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(reply.status(), status, "{path}");
    }
}
