//! Models of kind `custom`: which one a path means, what its plugin sees of a request, and what its client of the answer.

use super::*;
use crate::config::parse;
use crate::http::router::routes;
use crate::runtime::OutputMode;

/// Endpoints at and below one another, and two models at one.
fn served() -> Config {
    let at = |id: &str, endpoint: &str| ModelConfig { endpoint: Some(endpoint.into()), ..model(id, Kind::Custom) };
    let two = ModelConfig { aliases: vec!["zwei".into()], ..at("two", "/v1/shared") };
    configured([at("outer", "/v1/my"), at("inner", "/v1/my/own"), at("one", "/v1/shared"), two, model("a", Kind::Text)])
}

fn head(json: &Value) -> Output {
    event(json)
}

fn bytes(bytes: &'static [u8]) -> Output {
    Output::Bytes(Bytes::from_static(bytes))
}

fn end() -> Output {
    Output::Done(Ok(Bytes::from_static(b"{\"reason\":\"stop\",\"bytes\":2}")))
}

fn ok(_: usize, _: &Submission) -> Result<Vec<Output>, Failure> {
    Ok(vec![head(&json!({"status": 200, "content_type": "text/plain"})), bytes(b"o"), bytes(b"k"), end()])
}

fn asked(method: &str, path: &str, body: &'static str) -> Request<Body> {
    Request::builder().method(method).uri(path).body(body.into()).unwrap()
}

/// The model that each path was submitted to; nothing if it was not.
async fn meant(host: &Host, path: &str) -> Option<String> {
    let before = host.submitted.lock().unwrap().len();
    host.send(asked("POST", path, "")).await;
    host.submitted.lock().unwrap().get(before).map(|submission| submission.model.to_string())
}

#[tokio::test]
async fn a_path_means_the_model_of_the_longest_endpoint_above_it() {
    let host = Host::with(served(), ok);
    for (path, model, rest) in [
        ("/v1/my", "outer", ""),
        ("/v1/my/", "outer", "/"),
        ("/v1/my/x/../y%20z", "outer", "/x/../y%20z"),
        ("/v1/my/ownx", "outer", "/ownx"),
        ("/v1/my/own", "inner", ""),
        ("/v1/my/own//a", "inner", "//a"),
    ] {
        assert_eq!(meant(&host, path).await.as_deref(), Some(model), "{path}");
        assert_eq!(host.tasks().last().unwrap()["path"], rest, "{path}");
    }
    for path in ["/v1/m", "/v1/mx", "/V1/my", "//v1/my", "/v1"] {
        assert_eq!(meant(&host, path).await, None, "{path}");
        assert_eq!(host.send(asked("POST", path, "")).await.error().1, "unknown_url", "{path}");
    }
}

#[tokio::test]
async fn of_two_at_one_endpoint_the_named_one_is_meant_or_the_default() {
    let host = Host::with(served(), ok);
    let refused = host.send(asked("GET", "/v1/shared", "")).await;
    assert_eq!(refused.error(), (400, "missing_required_parameter".into(), "model".into()), "{}", refused.body);
    assert!(refused.body.contains("`one`, `two`"), "{}", refused.body);
    assert_eq!(meant(&host, "/v1/shared?x=1&model=two").await.as_deref(), Some("two"));
    assert_eq!(meant(&host, "/v1/shared?model=zwei").await.as_deref(), Some("two"));
    for body in ["{\"model\": \"one\", \"more\": [1]}", "{\"model\": \"one\"}"] {
        host.send(asked("POST", "/v1/shared/x", body)).await;
        assert_eq!(host.submitted.lock().unwrap().last().unwrap().model.as_str(), "one");
    }
    for body in ["{\"model\": \"a\"}", "{\"model\":", "\u{0}"] {
        assert_eq!(host.send(asked("POST", "/v1/shared", body)).await.status, 400, "{body:?}");
    }
    let mut config = served();
    config.models.get_mut("one").unwrap().default = true;
    assert_eq!(meant(&Host::with(config, ok), "/v1/shared").await.as_deref(), Some("one"));
}

#[tokio::test]
async fn a_plugin_sees_the_request_and_nothing_that_opens_anything() {
    let host = Host::with(Config { api_keys: keys(&["k1"]), ..served() }, ok);
    let mut request = asked("PATCH", "/v1/my/a?b=%2F&b", "\u{0}\u{1}raw");
    for (name, value) in [
        ("authorization", "Bearer k1"),
        ("x-api-key", "k1"),
        ("x-auth-token", "secret"),
        ("cookie", "secret"),
        ("x-forwarded-for", "10.0.0.1"),
        ("content-type", "application/octet-stream"),
        ("accept", "a/b"),
        ("x-mine", "1"),
        ("x-mine", "2"),
        ("user-agent", "curl"),
        ("host", "example.com"),
    ] {
        request.headers_mut().append(name, value.parse().unwrap());
    }
    assert_eq!(host.send(request).await.body, "ok");
    let task = host.tasks().pop().unwrap();
    let wanted = json!({
        "method": "PATCH",
        "path": "/a",
        "query": "b=%2F&b",
        "headers": {"content-type": "application/octet-stream", "accept": "a/b", "x-mine": "1, 2"},
    });
    assert_eq!(task, wanted);
    let submitted = host.submitted.lock().unwrap().pop().unwrap();
    assert_eq!(submitted.ask.as_task().unwrap().blocks, [Bytes::from_static(b"\0\x01raw")]);
    assert_eq!((submitted.kind, submitted.delivery), (Kind::Custom, OutputMode::Once));
}

#[tokio::test]
async fn what_may_be_asked_twice_is_tried_again() {
    let host = Host::with(served(), ok);
    for (method, delivery) in [
        ("GET", OutputMode::Streamed),
        ("HEAD", OutputMode::Streamed),
        ("PUT", OutputMode::Streamed),
        ("DELETE", OutputMode::Streamed),
        ("POST", OutputMode::Once),
        ("PATCH", OutputMode::Once),
        ("BREW", OutputMode::Once),
    ] {
        host.send(asked(method, "/v1/my", "")).await;
        assert_eq!(host.submitted.lock().unwrap().pop().unwrap().delivery, delivery, "{method}");
    }
    let mut request = asked("POST", "/v1/my", "");
    request.headers_mut().insert("idempotency-key", "1".parse().unwrap());
    host.send(request).await;
    assert_eq!(host.submitted.lock().unwrap().pop().unwrap().delivery, OutputMode::Streamed);
}

#[tokio::test]
async fn an_answer_is_what_its_plugin_says_but_for_what_is_the_hosts_to_say() {
    let script: Script = |_, _| {
        let headers = json!({
            "x-seed": "7", "location": "/v1/my/1", "etag": "\"a\"",
            "set-cookie": "a=b", "transfer-encoding": "chunked", "content-length": "99", "connection": "close",
            "access-control-allow-origin": "*", "x-request-id": "forged", "cache-control": "public", "server": "x",
        });
        Ok(vec![
            Output::Progress { done: 1, total: 2 },
            head(&json!({"status": 201, "content_type": "application/x-tensor", "headers": headers})),
            bytes(b"\0\xff"),
            Output::Progress { done: 2, total: 2 },
            bytes(b"\x01"),
            end(),
        ])
    };
    let host = Host::with(served(), script);
    let response = host.router.clone().oneshot(asked("POST", "/v1/my", "")).await.unwrap();
    assert_eq!(response.status(), 201);
    let header = |name: &str| response.headers().get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
    for (name, value) in [
        ("content-type", "application/x-tensor"),
        ("x-seed", "7"),
        ("location", "/v1/my/1"),
        ("etag", "\"a\""),
        ("set-cookie", ""),
        ("transfer-encoding", ""),
        ("connection", ""),
        ("access-control-allow-origin", ""),
        ("cache-control", "no-store"),
        ("server", ""),
    ] {
        assert_eq!(header(name), value, "{name}");
    }
    assert_ne!(header("x-request-id"), "forged");
    let body = axum::body::to_bytes(response.into_body(), 99).await.unwrap();
    assert_eq!(body, Bytes::from_static(b"\0\xff\x01"));
}

#[tokio::test]
async fn a_failure_before_the_answer_is_a_refusal_and_one_within_it_breaks_it_off() {
    let refused: [(Script, u16, &str); 8] = [
        (|_, _| Err(Failure::new(FailureKind::QueueFull, "full")), 429, "rate_limit_exceeded"),
        (|_, _| Ok(vec![failed(FailureKind::InvalidRequest)]), 400, ""),
        (
            |_, _| Ok(vec![head(&json!({"status": 200, "content_type": "a/b"})), failed(FailureKind::Internal)]),
            500,
            "internal_error",
        ),
        (|_, _| Ok(vec![bytes(b"no head")]), 500, "internal_error"),
        (|_, _| Ok(vec![end()]), 500, "internal_error"),
        (|_, _| Ok(vec![head(&json!({"status": 99, "content_type": "a/b"}))]), 500, "internal_error"),
        (|_, _| Ok(vec![head(&json!({"status": 200, "content_type": "a\nb"}))]), 500, "internal_error"),
        (
            |_, _| {
                let headers = json!({"x-long": "x".repeat(20 << 10)});
                Ok(vec![head(&json!({"status": 200, "content_type": "a/b", "headers": headers}))])
            },
            500,
            "internal_error",
        ),
    ];
    for (number, (script, status, code)) in refused.into_iter().enumerate() {
        let reply = Host::with(served(), script).send(asked("GET", "/v1/my", "")).await;
        let (told, named, _) = reply.error();
        assert_eq!((told, named.as_str()), (status, code), "case {number}: {}", reply.body);
    }
    let (sender, output) = mpsc::channel(8);
    sender.try_send(head(&json!({"status": 200, "content_type": "a/b"}))).unwrap();
    sender.try_send(bytes(b"begun")).unwrap();
    let (commands, mut received) = mpsc::channel(1);
    tokio::spawn(async move {
        if let Some(Command::Submit(_, reply)) = received.recv().await {
            let _ = reply.send(Ok(Answer { request: RequestId(1), output }));
        }
    });
    let router = crate::http::router(Handle::new(commands, watch::channel(Arc::new(served())).1, super::no_plugins()));
    let response = router.oneshot(asked("GET", "/v1/my", "")).await.unwrap();
    assert_eq!(response.status(), 200, "what has begun is passed on while more is made");
    assert!(!response.headers().contains_key("content-length"));
    sender.try_send(failed(FailureKind::Internal)).unwrap();
    assert!(axum::body::to_bytes(response.into_body(), 99).await.is_err(), "it looks whole");
}

#[tokio::test]
async fn a_short_answer_has_its_length_and_an_empty_one_none_of_a_body() {
    let short = Host::with(served(), ok);
    let response = short.router.clone().oneshot(asked("GET", "/v1/my", "")).await.unwrap();
    assert_eq!(axum::body::HttpBody::size_hint(response.body()).exact(), Some(2));
    let script: Script =
        |_, _| Ok(vec![head(&json!({"status": 204, "content_type": "text/plain"})), bytes(b"x"), end()]);
    let reply = Host::with(served(), script).send(asked("DELETE", "/v1/my", "")).await;
    assert_eq!((reply.status.as_u16(), reply.body.as_str()), (204, ""));
}

#[tokio::test]
async fn an_endpoint_is_there_for_those_who_see_its_model_and_may_use_it() {
    let narrowed = ApiKey { models: Some([ModelId::from("inner")].into()), ..key("narrow") };
    let operator = ApiKey { scopes: [Scope::Operate].into(), ..key("operator") };
    let host = Host::with(Config { api_keys: vec![Arc::new(narrowed), Arc::new(operator)], ..served() }, ok);
    for (secret, path, status) in [
        ("narrow", "/v1/my/own", 200),
        ("narrow", "/v1/my", 404),
        ("operator", "/v1/my", 403),
        ("operator", "/v1/nothing", 404),
        ("wrong", "/v1/my", 401),
    ] {
        let reply = host.send(with_key(asked("POST", path, ""), secret)).await;
        assert_eq!(reply.status, status, "{secret} {path}: {}", reply.body);
    }
    // Without keys, no page of another site may ask.
    let mut request = asked("POST", "/v1/my", "");
    request.headers_mut().insert("origin", "https://evil.example".parse().unwrap());
    assert_eq!(Host::with(served(), ok).send(request).await.status, 403);
}

#[tokio::test]
async fn a_body_is_held_to_its_limit_and_read_as_it_is() {
    let host = Host::with(served(), ok);
    let reply = host.send(Request::post("/v1/my").body(vec![0; (64 << 10) + 1].into()).unwrap()).await;
    assert_eq!(reply.error().1, "request_too_large");
    for (coding, status) in [("br", 415), ("gzip", 400)] {
        let mut request = asked("POST", "/v1/my", "x");
        request.headers_mut().insert("content-encoding", coding.parse().unwrap());
        assert_eq!(host.send(request).await.error().0, status, "{coding}");
    }
    assert!(host.submitted.lock().unwrap().is_empty());
}

#[test]
fn no_endpoint_gets_into_the_way_of_a_route() {
    // The root is no path of an endpoint at all.
    let paths = routes().into_iter().map(|route| route.path.split("/{").next().unwrap().to_owned());
    for path in paths.filter(|path| path != "/") {
        let yaml = format!("models:\n  a: {{type: custom, plugin: p, endpoint: {path}}}\n");
        let file = std::path::Path::new("/etc/aihost/models.yaml");
        let error = parse(&yaml, file, &Default::default(), &Default::default()).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("the host's own"), "{path}: {error}");
    }
}
