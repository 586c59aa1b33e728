//! What holds for every reply: headers, keys, CORS, foreign names, unknown paths.

use super::*;

fn get(path: &str, headers: &[(&str, &str)]) -> Request<Body> {
    request("GET", path, headers)
}

fn request(method: &str, path: &str, headers: &[(&str, &str)]) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Body::empty()).unwrap()
}

#[tokio::test]
async fn every_reply_carries_its_headers() {
    let host = Host::new(hello);
    let foreign = [("host", "evil.com")];
    let preflight = [("origin", "http://localhost"), ("access-control-request-method", "POST")];
    for (path, request) in [
        ("/health", get("/health", &[])),
        ("/v1/models", get("/v1/models", &[])),
        ("/nowhere", get("/nowhere", &[])),
        ("405", get("/v1/chat/completions", &[])),
        ("403", get("/v1/models", &foreign)),
        ("a preflight", request("OPTIONS", "/v1/models", &preflight)),
        ("400", post("/v1/chat/completions", "{")),
        ("a stream", post("/v1/chat/completions", chat(&json!({"stream": true})).to_string())),
    ] {
        let reply = host.send(request).await;
        assert!(reply.header("x-request-id").starts_with("req_"), "{path}");
        assert_eq!(reply.header("openai-version"), "2020-10-01", "{path}");
        assert!(reply.header("openai-processing-ms").parse::<u64>().is_ok(), "{path}");
    }
    let echoed = host.send(get("/health", &[("x-request-id", "my-id_1")])).await;
    assert_eq!(echoed.header("x-request-id"), "my-id_1");
    let refused = host.send(get("/health", &[("x-request-id", "<script>")])).await;
    assert!(refused.header("x-request-id").starts_with("req_"));
}

#[tokio::test]
async fn unknown_paths_and_methods_are_told_apart() {
    let host = Host::new(hello);
    assert_eq!(host.get("/v1/files").await.error(), (404, "unknown_url".into(), String::new()));
    for (method, path, allow) in [
        ("GET", "/v1/chat/completions", "POST"),
        ("TRACE", "/v1/models", "GET,HEAD"),
        ("QUERY", "/models/load", "POST"),
    ] {
        let reply = host.send(request(method, path, &[])).await;
        assert_eq!(reply.error(), (405, "method_not_allowed".into(), String::new()));
        assert_eq!(reply.header("allow"), allow, "{method} {path}");
    }
}

#[tokio::test]
async fn every_route_refuses_other_methods_by_name() {
    let host = Host::new(hello);
    let mut refused = 0;
    for route in super::super::router::routes() {
        if route.answered.is_empty() {
            continue;
        }
        let answered = |method: &str| route.answered.iter().any(|one| *one == method);
        let parameters = ["{*id}", "{*model}", "{name}", "{id}"];
        let path = parameters.into_iter().fold(route.path.to_owned(), |path, parameter| path.replace(parameter, "a"));
        for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE", "QUERY", "OPTIONS", "PROPFIND"] {
            if answered(method) || (method == "HEAD" && answered("GET")) {
                continue;
            }
            refused += 1;
            let reply = host.send(request(method, &path, &[])).await;
            assert_eq!(reply.status, 405, "{method} {path}");
            let allow: Vec<&str> = reply.header("allow").split(',').map(str::trim).collect();
            assert!(route.answered.iter().all(|one| allow.contains(&one.as_str())), "{method} {path}: {allow:?}");
            if method != "HEAD" {
                assert!(reply.body.contains("see the Allow header"), "{method} {path}: {}", reply.body);
            }
        }
    }
    assert!(refused > 200, "{refused}");
}

#[tokio::test]
async fn slashes_too_many_say_nothing_on_the_hosts_own_paths() {
    let host = Host::new(hello);
    for path in
        ["/v1/chat/completions/", "//v1/chat/completions", "/v1//chat///completions//", "/chat/completions/?x=/"]
    {
        assert_eq!(host.post(path, &chat(&json!({}))).await.status, 200, "{path}");
    }
    for path in
        ["/v1/models/", "//v1/models", "/models/", "/health/", "/v1/models/a/", "/v1//models/org//b", "/v1/models//a"]
    {
        assert_eq!(host.get(path).await.status, 200, "{path}");
    }
    let reply = host.send(request("PUT", "/v1/models/", &[])).await;
    assert_eq!((reply.status.as_u16(), reply.header("allow")), (405, "GET,HEAD"));
    for path in ["/v1/", "/v1/nowhere/"] {
        assert_eq!(host.get(path).await.error(), (404, "unknown_url".into(), String::new()), "{path}");
    }
    // Keys are asked for as where the path is straight.
    let keyed = Host::with(Config { api_keys: keys(&["k"]), ..config() }, hello);
    assert_eq!(keyed.get("//v1/models/").await.status, 401);
    assert_eq!(keyed.get("//health/").await.status, 200);
}

#[tokio::test]
async fn models_are_found_by_any_name_however_it_is_written() {
    let mut strange = model("org/a:b", Kind::Text);
    strange.aliases = vec!["x@y".into(), "org/alias:latest".into()];
    let host = Host::with(configured([model("a", Kind::Text), strange]), hello);
    for path in ["org/a:b", "org%2Fa:b", "org%2fa%3Ab", "org/a%3ab", "x@y", "x%40y", "org%2Falias:latest", "org//a:b/"]
    {
        let reply = host.get(&format!("/v1/models/{path}")).await;
        assert_eq!(reply.json()["id"], "org/a:b", "{path}: {}", reply.body);
    }
    for path in ["org%252Fa:b", "org", "a:b", "50%25"] {
        assert_eq!(host.get(&format!("/v1/models/{path}")).await.error().1, "model_not_found", "{path}");
    }
    assert_eq!(host.get("/v1/models/%ff").await.error().0, 400);
    for path in ["/v1/chat/completions", "/models/load", "/models/unload", "/models/park"] {
        assert_eq!(host.post(path, &chat(&json!({"model": "org/alias:latest"}))).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn every_path_that_is_said_to_serve_a_kind_answers() {
    let host = Host::new(hello);
    let paths = ["/v1/embeddings", "/v1/audio/speech", "/v1/audio/transcriptions", "/nowhere"];
    let paths = paths.into_iter().chain(super::super::router::routes().into_iter().map(|route| route.path));
    let mut served = 0;
    for path in paths {
        let is_served = [Kind::Text, Kind::Image, Kind::Audio, Kind::Embedding, Kind::Speech, Kind::Transcription]
            .into_iter()
            .any(|kind| super::super::router::is_served(path, kind));
        if is_served {
            served += 1;
            let reply = host.send(post(path, "{}")).await;
            assert!(![404, 405, 501].contains(&reply.status.as_u16()), "{path}: {}", reply.status);
        }
    }
    assert!(served >= 4, "{served}");
}

#[tokio::test]
async fn keys_are_asked_for_where_there_are_some() {
    let host = Host::with(Config { api_keys: keys(&["k1", "k2"]), ..config() }, hello);
    for (headers, status) in [
        (&[][..], 401),
        (&[("authorization", "Bearer no")][..], 401),
        (&[("authorization", "Bearer k")][..], 401),
        (&[("authorization", "Basic k1")][..], 401),
        (&[("authorization", "Bearer k2")][..], 200),
        (&[("authorization", "bearer k1")][..], 200),
        (&[("x-api-key", "k1"), ("host", "example.com")][..], 200),
    ] {
        let reply = host.send(get("/v1/models", headers)).await;
        assert_eq!(reply.status, status, "{headers:?}");
        if status == 401 {
            assert_eq!(reply.error().1, "invalid_api_key");
        }
    }
    for path in ["/health", "/livez", "/readyz", "/ping"] {
        assert!(host.get(path).await.status.is_success(), "{path}");
    }
    assert_eq!(host.get("/nowhere").await.status, 401);
}

#[tokio::test]
async fn a_keyless_loopback_answers_to_its_own_names_only() {
    let host = Host::new(hello);
    for (headers, status) in [
        (&[("host", "localhost:9000")][..], 200),
        (&[("host", "127.0.0.1:9000")][..], 200),
        (&[("host", "[::1]:9000"), ("origin", "http://localhost:5173")][..], 200),
        (&[("host", "evil.com")][..], 403),
        (&[("host", "localhost.evil.com")][..], 403),
        (&[("host", "localhost"), ("origin", "http://localhost.evil.com")][..], 403),
        (&[("host", "localhost"), ("origin", "null")][..], 403),
    ] {
        assert_eq!(host.send(get("/v1/models", headers)).await.status, status, "{headers:?}");
    }
    let open = Host::with(Config { listen: "0.0.0.0:9000".parse().unwrap(), ..config() }, hello);
    assert_eq!(open.send(get("/v1/models", &[("host", "gpu.example.com")])).await.status, 200);
}

#[tokio::test]
async fn only_pages_of_this_machine_may_read() {
    let keyed = Host::with(Config { api_keys: keys(&["k"]), ..config() }, hello);
    let preflight = |origin| {
        let headers = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "authorization, x-stainless-os"),
        ];
        request("OPTIONS", "/v1/chat/completions", &headers)
    };
    let local = keyed.send(preflight("http://localhost:5173")).await;
    assert_eq!(local.status, 204);
    assert_eq!(local.header("access-control-allow-origin"), "http://localhost:5173");
    assert_eq!(local.header("access-control-allow-headers"), "authorization, x-stainless-os");
    assert!(local.header("access-control-allow-methods").contains("POST"));
    let foreign = keyed.send(preflight("http://localhost.evil.com")).await;
    assert_eq!((foreign.status, foreign.header("access-control-allow-origin")), (StatusCode::NO_CONTENT, ""));
    let plain = keyed.send(get("/v1/models", &[("origin", "http://127.0.0.1"), ("x-api-key", "k")])).await;
    assert_eq!(plain.header("access-control-allow-origin"), "http://127.0.0.1");
    assert!(plain.header("access-control-expose-headers").contains("x-request-id"));
}
