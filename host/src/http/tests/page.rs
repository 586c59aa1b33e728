//! The page: who gets it, what it may do, and the feed that it reads.

use std::time::Duration;

use super::*;
use crate::runtime::{Overview, WaitingRequest};

/// What the fake runtime tells: `a` is hot, `b` loads, somebody waits for `b`.
pub(super) fn overview() -> Overview {
    let waiting = WaitingRequest { id: "req_1".to_owned(), model: "b".into(), waited_ms: 7, for_slot: false };
    Overview { models: models(), waiting: vec![waiting], swaps: Vec::new() }
}

fn get(path: &str, headers: &[(&str, &str)]) -> Request<Body> {
    let request = headers.iter().fold(Request::get(path), |request, (name, value)| request.header(*name, *value));
    request.body(Body::empty()).unwrap()
}

#[tokio::test]
async fn whoever_takes_html_gets_the_page_and_everybody_else_what_they_had() {
    let host = Host::with(Config { api_keys: keys(&["secret"]), ..config() }, hello);
    let page = host.send(get("/", &[("accept", "text/html,*/*;q=0.8")])).await;
    assert_eq!((page.status.as_u16(), page.header("content-type")), (200, "text/html; charset=utf-8"));
    assert!(page.body.starts_with("<!doctype html>") && page.header("vary") == "Accept");
    for accept in [&[][..], &[("accept", "*/*")], &[("accept", "application/json")]] {
        let plain = host.send(get("/", accept)).await;
        assert_eq!((plain.body.as_str(), plain.header("vary")), ("Ollama is running", "Accept"));
        assert_eq!(plain.header("cache-control"), "no-store");
    }
}

#[tokio::test]
async fn the_page_may_run_its_own_files_alone_and_they_are_asked_for_again_each_time() {
    let host = Host::with(Config { api_keys: keys(&["secret"]), ..config() }, hello);
    for (path, kind) in [
        ("/", "text/html; charset=utf-8"),
        ("/page/page.js", "text/javascript; charset=utf-8"),
        ("/page/page.css", "text/css; charset=utf-8"),
        ("/page/icon.svg", "image/svg+xml"),
    ] {
        let reply = host.send(get(path, &[("accept", "text/html")])).await;
        assert_eq!((reply.status.as_u16(), reply.header("content-type")), (200, kind), "{path}");
        let policy = reply.header("content-security-policy").to_owned();
        for rule in ["default-src 'none'", "script-src 'self';", "connect-src 'self'", "frame-ancestors 'none'"] {
            assert!(policy.contains(rule), "{path}: {policy}");
        }
        assert!(!policy.contains("unsafe") && !policy.contains("http"), "{policy}");
        assert_eq!(reply.header("cache-control"), "no-cache");
        assert_eq!(reply.header("x-content-type-options"), "nosniff");
        let tag = reply.header("etag").to_owned();
        assert!(tag.len() > 10, "{tag}");
        for known in [tag.clone(), format!("\"other\", W/{tag}")] {
            let again = host.send(get(path, &[("accept", "text/html"), ("if-none-match", known.as_str())])).await;
            assert_eq!((again.status.as_u16(), again.body.as_str(), again.header("etag")), (304, "", tag.as_str()));
        }
        let other = host.send(get(path, &[("accept", "text/html"), ("if-none-match", "\"other\"")])).await;
        assert_eq!(other.status.as_u16(), 200);
    }
    assert_eq!(host.get("/page/none.js").await.error().0, 404);
}

#[tokio::test]
async fn an_overview_has_all_of_it_for_operators_and_of_it_what_they_see() {
    let mut some = key("some");
    some.models = Some(["a".into()].into());
    let mut guest = key("guest");
    guest.scopes = [Scope::Use].into();
    let keys = [some, guest, key("all")].map(Arc::new).to_vec();
    let host = Host::with(Config { api_keys: keys, ..config() }, hello);
    let ask = async |path: &str, key: &str| host.send(with_key(get(path, &[]), key)).await;
    // A request leaves its figures, and not what it said.
    let body = json!({"model": "a", "messages": [{"role": "user", "content": "nobody else's business"}]});
    assert_eq!(host.send(with_key(post("/v1/chat/completions", body.to_string()), "all")).await.status, 200);

    let all = ask("/admin/overview", "all").await;
    let told = all.json();
    assert_eq!(told["models"].as_array().unwrap().len(), 2);
    assert_eq!(told["waiting"], json!([{"request": "req_1", "model": "b", "waited_ms": 7, "awaits": "load"}]));
    assert_eq!((&told["devices"][0]["id"], &told["devices"][1]["free"]), (&json!("cpu"), &Value::Null));
    let last = told["requests"].as_array().unwrap().last().unwrap();
    assert_eq!((&last["model"], &last["key"], &last["method"]), (&json!("a"), &json!("of all"), &json!("POST")));
    assert!(!all.body.contains("nobody else's"), "{}", all.body);

    let some = ask("/admin/overview", "some").await.json();
    assert_eq!((some["models"].as_array().unwrap().len(), &some["waiting"]), (1, &json!([])));
    assert_eq!(ask("/admin/overview", "guest").await.error().0, 403);
    assert_eq!(ask("/admin/events", "guest").await.error().0, 403);
    assert_eq!(ask("/admin/events", "none").await.error().0, 401);
}

/// The next event of a feed: its name and its data.
async fn next(body: &mut axum::body::BodyDataStream) -> (String, Value) {
    let bytes = body.next().await.expect("another event").unwrap();
    let text = std::str::from_utf8(&bytes).unwrap();
    let (name, data) = text.strip_prefix("event: ").unwrap().split_once("\ndata: ").unwrap();
    (name.to_owned(), serde_json::from_str(data).unwrap())
}

#[tokio::test]
async fn the_feed_says_all_then_what_changed_and_gives_a_sign_of_life_each_second() {
    let host = Host::new(hello);
    let response = host.router.clone().oneshot(get("/admin/events", &[])).await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    assert_eq!(response.headers()["x-accel-buffering"], "no");
    let mut body = response.into_body().into_data_stream();
    let (name, all) = next(&mut body).await;
    assert_eq!((name.as_str(), all["models"].as_array().unwrap().len()), ("snapshot", 2));
    // Nothing changes: no more is said than that somebody is there, but for the devices, which are measured now and then.
    let begun = tokio::time::Instant::now();
    let mut beats = 0;
    while beats < 2 {
        let (name, data) = next(&mut body).await;
        match name.as_str() {
            "beat" => beats += 1,
            _ => assert!(data.get("models").is_none() && data["devices"].is_array(), "{data}"),
        }
        assert!(data["now_ms"].as_u64() >= all["now_ms"].as_u64());
    }
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
    assert_eq!(host.post("/v1/chat/completions", &chat(&json!({}))).await.status, 200);
    loop {
        let (_, data) = next(&mut body).await;
        if let Some(requests) = data["requests"].as_array() {
            assert_eq!((requests.len(), &requests[0]["path"]), (1, &json!("/v1/chat/completions")));
            assert!(data.get("models").is_none());
            break;
        }
    }
}

#[tokio::test]
async fn a_model_is_pinned_by_name() {
    let host = Host::new(hello);
    for pinned in [json!({"model": "a"}), json!({"model": "gpt-4o-mini", "pinned": false})] {
        let reply = host.post("/models/pin", &pinned).await;
        assert_eq!((reply.status.as_u16(), reply.json()), (200, json!({"success": true})));
    }
    assert_eq!(host.post("/models/pin", &json!({"model": "c"})).await.error().0, 404);
    assert_eq!(host.post("/models/pin", &json!({"model": "a", "pinned": "yes"})).await.error().2, "pinned");
}

#[tokio::test]
async fn options_are_told_or_why_not() {
    let host = Host::new(hello);
    let told = host.get("/admin/options?model=a").await.json();
    assert_eq!((&told["model"], &told["schema"]), (&json!("a"), &Value::Null));
    assert!(told["note"].as_str().unwrap().contains("echo"), "{told}");
    assert_eq!(host.get("/admin/options").await.error().2, "model");
    assert_eq!(host.get("/admin/options?model=none").await.error().0, 404);
}
