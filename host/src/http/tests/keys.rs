//! What a key may: the models that there are for it, how often and how much at once, how urgent and how long.

use super::*;
use crate::config::Rate;
use crate::domain::{Device, InstanceId};
use crate::http::error::{ApiError, Cause};
use crate::runtime::{Class, Explanation, KeepAlive, Leaving, Outcome, Staying};
use axum::response::IntoResponse;

/// What only whoever runs the host can do.
const FOR_OPERATORS: &str = "options.context: wants a whole number; correct models.yaml, then `aihost models load a`";

fn with_keys(keys: impl IntoIterator<Item = ApiKey>) -> Config {
    Config { api_keys: keys.into_iter().map(Arc::new).collect(), ..config() }
}

/// A key for which there are these models.
fn narrowed(secret: &str, models: &[&str]) -> ApiKey {
    ApiKey { models: Some(models.iter().map(|model| ModelId::from(*model)).collect()), ..key(secret) }
}

fn get(path: &str, key: &str) -> Request<Body> {
    with_key(Request::get(path).body(Body::empty()).unwrap(), key)
}

fn post_as(path: &str, key: &str, body: &Value) -> Request<Body> {
    with_key(post(path, body.to_string()), key)
}

fn ids(reply: &Reply) -> Vec<String> {
    let json = reply.json();
    let listed = json.get("data").unwrap_or(&json).as_array().unwrap();
    listed.iter().map(|model| model["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_key_sees_its_models_and_no_others() {
    let host = Host::with(with_keys([narrowed("some", &["a", "music"]), key("all")]), hello);
    assert_eq!(ids(&host.send(get("/v1/models", "some")).await), ["a", "music"]);
    assert_eq!(ids(&host.send(get("/v1/models", "all")).await), ["a", "flux", "music", "org/b"]);
    assert_eq!(ids(&host.send(get("/models", "some")).await), ["a"]);
    assert_eq!(ids(&host.send(get("/admin/status", "some")).await), ["a"]);
    assert_eq!(ids(&host.send(get("/admin/status", "all")).await), ["a", "b"]);
    for name in ["a", "gpt-4o-mini"] {
        assert_eq!(host.send(get(&format!("/v1/models/{name}"), "some")).await.json()["id"], "a");
    }
}

#[tokio::test]
async fn a_model_that_is_not_for_a_key_is_refused_as_one_that_is_not_there() {
    let host = Host::with(with_keys([narrowed("some", &["flux", "music"])]), hello);
    let as_told = async |name: &str, request: Request<Body>| {
        let reply = host.send(request).await;
        assert_eq!(reply.error(), (404, "model_not_found".into(), "model".into()), "{}", reply.body);
        reply.json()["error"]["message"].as_str().unwrap().replace(name, "NAME")
    };
    for path in [
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/images/generations",
        "/v1/audio/generations",
        "/v1/audio/speech",
        "/models/load",
        "/models/unload",
        "/models/park",
    ] {
        let body = |name: &str| json!({"model": name, "prompt": "x", "messages": [{"role": "user", "content": "x"}]});
        let absent = as_told("zzzzzzz", post_as(path, "some", &body("zzzzzzz"))).await;
        for hidden in ["org/b", "gpt-4o-mini"] {
            assert_eq!(as_told(hidden, post_as(path, "some", &body(hidden))).await, absent, "{path}");
        }
    }
    for path in ["/v1/models/", "/logs/", "/admin/plan?model="] {
        let absent = as_told("zzzzzzz", get(&format!("{path}zzzzzzz"), "some")).await;
        for hidden in ["org/b", "gpt-4o-mini"] {
            assert_eq!(as_told(hidden, get(&format!("{path}{hidden}"), "some")).await, absent, "{path}");
        }
    }
    // A name that is nearly that of a hidden model is not guessed.
    let guess = host.send(get("/v1/models/gpt-4o-min", "some")).await;
    assert!(!guess.body.contains("did you mean"), "{}", guess.body);
    assert_eq!(host.submitted.lock().unwrap().len(), 0);
}

#[tokio::test]
async fn a_request_without_a_model_means_one_that_there_is_for_its_key() {
    let two = configured([model("a", Kind::Text), model("b", Kind::Text)]);
    let keys = [narrowed("one", &["b"]), narrowed("none", &["elsewhere"]), key("all")].map(Arc::new).to_vec();
    let host = Host::with(Config { api_keys: keys, ..two }, hello);
    let body = json!({"messages": [{"role": "user", "content": "hi"}]});
    let ask = async |key| host.send(post_as("/v1/chat/completions", key, &body)).await;
    assert_eq!(ask("one").await.json()["model"], "b");
    let none = ask("none").await;
    assert_eq!(none.error().0, 400);
    assert!(!none.body.contains("`a`") && !none.body.contains("`b`"), "{}", none.body);
    assert!(ask("all").await.body.contains("`a`, `b`"));
}

#[tokio::test]
async fn metrics_of_other_models_are_left_out() {
    let host = Host::with(with_keys([narrowed("none", &["b"]), narrowed("some", &["a"])]), hello);
    let (none, some) = (host.send(get("/metrics", "none")).await, host.send(get("/metrics", "some")).await);
    assert!(some.body.contains("model=\"a\"") && some.body.contains("aihost_http_connections"));
    assert!(!none.body.contains("model=\"a\"") && none.body.contains("aihost_http_connections"), "{}", none.body);
}

#[test]
fn a_plan_names_no_model_that_is_not_for_the_key() {
    let leaving = |model: &str| Leaving {
        model: model.into(),
        instance: InstanceId(1),
        how: "park",
        memory: 1,
        idle_ms: 1,
        takes_ms: 1,
    };
    let staying =
        |model: &str| Staying { model: model.into(), instance: InstanceId(2), memory: 1, reason: "pinned".into() };
    let plan = Explanation {
        model: "a".into(),
        state: ModelState::Cold,
        outcome: Outcome::Evicts,
        message: "`a` needs room: `secret` (park), `b` (park) would leave for it".into(),
        device: Some(Device::Cpu),
        needs: None,
        free: None,
        budget: None,
        takes_ms: None,
        progress: None,
        left_ms: None,
        since_ms: None,
        step: None,
        closed: None,
        queued: 0,
        leaves: vec![leaving("secret"), leaving("b")],
        stays: vec![staying("secret"), staying("a")],
    };
    let caller = crate::http::caller::Caller::of(Arc::new(narrowed("some", &["a", "b"])));
    let seen = crate::http::admin::seen_of(plan.clone(), &caller);
    assert_eq!(seen.message, "`a` needs room: another model (park), `b` (park) would leave for it");
    assert_eq!((seen.leaves.len(), seen.stays.len()), (1, 1));
    let all = crate::http::admin::seen_of(plan.clone(), &crate::http::caller::Caller::anyone());
    assert_eq!((all.message, all.leaves.len(), all.stays.len()), (plan.message, 2, 2));
}

#[tokio::test(start_paused = true)]
async fn a_key_asks_as_often_as_its_rate_allows() {
    let rate = Some(Rate { requests: 3, per: Duration::from_secs(60) });
    let host = Host::with(with_keys([ApiKey { rate, ..key("slow") }, key("free")]), hello);
    let ask = async |key: &str| host.send(get("/v1/models", key)).await;
    let told = |reply: &Reply| {
        let header = |name: &str| reply.header(&format!("x-ratelimit-{name}-requests")).to_owned();
        [header("limit"), header("remaining"), header("reset")]
    };
    for (remaining, reset) in [("2", "20s"), ("1", "40s"), ("0", "1m0s")] {
        let reply = ask("slow").await;
        assert_eq!((reply.status.as_u16(), told(&reply)), (200, ["3", remaining, reset].map(str::to_owned)));
    }
    let refused = ask("slow").await;
    assert_eq!(refused.error(), (429, "rate_limit_exceeded".into(), String::new()));
    assert_eq!(refused.json()["error"]["type"], "rate_limit_error");
    assert_eq!((refused.header("retry-after"), told(&refused)), ("20", ["3", "0", "1m0s"].map(str::to_owned)));
    // Others are not concerned, probes neither, and a refusal costs nothing.
    let free = ask("free").await;
    assert_eq!((free.status.as_u16(), told(&free)), (200, [""; 3].map(str::to_owned)));
    assert_eq!(host.send(get("/health", "slow")).await.status, 200);
    tokio::time::advance(Duration::from_secs(20)).await;
    assert_eq!(ask("slow").await.status, 200);
    assert_eq!(ask("slow").await.status, 429);
}

#[tokio::test(start_paused = true)]
async fn what_a_key_may_not_do_costs_nothing_of_its_rate() {
    let rate = Some(Rate { requests: 1, per: Duration::from_secs(60) });
    let host = Host::with(with_keys([ApiKey { rate, scopes: [Scope::Use].into(), ..key("k") }]), hello);
    for _ in 0..3 {
        let refused = host.send(get("/metrics", "k")).await;
        assert_eq!((refused.status.as_u16(), refused.header("x-ratelimit-remaining-requests")), (403, "1"));
        assert_eq!(host.send(get("/v1/models", "other")).await.status, 401);
    }
    assert_eq!(host.send(get("/v1/models", "k")).await.status, 200);
    assert_eq!(host.send(get("/v1/models", "k")).await.status, 429);
}

#[tokio::test]
async fn a_key_has_so_many_requests_at_once_until_their_answers_end() {
    let rate = Some(Rate { requests: 60, per: Duration::from_secs(60) });
    let host = Host::with(with_keys([ApiKey { concurrency: Some(2), rate, ..key("k") }, key("other")]), hello);
    let open = async |key: &str| host.router.clone().oneshot(get("/v1/models", key)).await.unwrap();
    let (first, second) = (open("k").await, open("k").await);
    assert_eq!([first.status(), second.status()], [200, 200]);
    for _ in 0..3 {
        let refused = host.send(get("/v1/models", "k")).await;
        assert_eq!(refused.error(), (429, "rate_limit_exceeded".into(), String::new()));
        assert!(refused.header("retry-after").parse::<u32>().is_ok());
        assert_eq!(refused.header("x-ratelimit-limit-requests"), "60");
    }
    assert_eq!(open("other").await.status(), 200);
    drop(first);
    assert_eq!(open("k").await.status(), 200);
    drop(second);
}

#[tokio::test(start_paused = true)]
async fn what_a_key_has_used_outlives_a_new_configuration() {
    let limited = |requests, concurrency| ApiKey {
        rate: Some(Rate { requests, per: Duration::from_secs(60) }),
        concurrency: Some(concurrency),
        ..key("k")
    };
    let before = with_keys([limited(2, 1)]);
    let host = Host::with(before.clone(), hello);
    let open = async || host.router.clone().oneshot(get("/v1/models", "k")).await.unwrap();
    let held = open().await;
    assert_eq!(held.status(), 200);
    // Other keys come before it, and it is called otherwise: it is the same key.
    host.config.send_replace(Arc::new(with_keys([key("new"), ApiKey { name: "renamed".into(), ..limited(2, 1) }])));
    assert_eq!(open().await.status(), 429, "one runs that began before");
    drop(held);
    assert_eq!(open().await.status(), 200);
    assert_eq!(open().await.status(), 429, "two were sent");
    // What is removed is refused at once, and what is new is let in.
    host.config.send_replace(Arc::new(with_keys([key("new")])));
    assert_eq!(open().await.status(), 401);
    assert_eq!(host.send(get("/v1/models", "new")).await.status, 200);
    host.config.send_replace(Arc::new(before));
    assert_eq!(open().await.status(), 429, "a key that comes back does not begin anew");
    host.config.send_replace(Arc::new(with_keys([limited(3, 2)])));
    assert_eq!(open().await.status(), 200, "another rate does");
}

#[tokio::test]
async fn a_request_keeps_its_model_no_longer_and_no_shorter_than_the_operator_says() {
    let seconds = Duration::from_secs;
    let mut config = config();
    (config.limits.keep_alive, config.limits.keep_alive_min) = (Some(seconds(600)), seconds(60));
    let bodies = |keep: &Value| {
        [
            ("/v1/chat/completions", chat(&json!({"keep_alive": keep}))),
            ("/v1/completions", json!({"model": "a", "prompt": "x", "keep_alive": keep})),
            ("/v1/images/generations", json!({"model": "flux", "prompt": "x", "keep_alive": keep})),
            ("/v1/audio/generations", json!({"model": "music", "prompt": "x", "keep_alive": keep})),
        ]
    };
    let host = Host::with(config, hello);
    for (keep, wanted) in [
        (json!(0), Some(KeepAlive::For(seconds(60)))),
        (json!("5m"), Some(KeepAlive::For(seconds(300)))),
        (json!("1h"), Some(KeepAlive::For(seconds(600)))),
        (json!(-1), Some(KeepAlive::For(seconds(600)))),
        (json!("forever"), Some(KeepAlive::For(seconds(600)))),
        (Value::Null, None),
    ] {
        for (path, body) in bodies(&keep) {
            host.submitted.lock().unwrap().clear();
            host.post(path, &body).await;
            assert_eq!(host.submitted.lock().unwrap()[0].keep_alive, wanted, "{path} {keep}");
        }
    }
}

#[tokio::test]
async fn a_batch_key_cannot_be_more_urgent_than_it_is() {
    let host = Host::with(with_keys([ApiKey { class: Class::Batch, ..key("robot") }]), hello);
    for tier in ["auto", "default", "priority", "scale", "flex"] {
        host.submitted.lock().unwrap().clear();
        let body = chat(&json!({"service_tier": tier}));
        assert_eq!(host.send(post_as("/v1/chat/completions", "robot", &body)).await.status, 200);
        assert_eq!(host.submitted.lock().unwrap()[0].class, Class::Batch, "{tier}");
    }
}

#[tokio::test]
async fn clients_are_not_shown_where_things_lie_and_operators_are() {
    let said = "its file /srv/secret-place/x.gguf is not there";
    let fails: Script =
        |_, _| Err(Failure::new(FailureKind::Internal, "its file /srv/secret-place/x.gguf is not there"));
    let breaks: Script = |_, _| {
        let failure = Failure::new(FailureKind::WorkerDied, "its file /srv/secret-place/x.gguf is not there");
        Ok(vec![text("a"), Output::Done(Err(failure))])
    };
    for script in [fails, breaks] {
        let host = Host::new(script);
        for (path, body) in [
            ("/v1/chat/completions", chat(&json!({}))),
            ("/v1/chat/completions", chat(&json!({"stream": true}))),
            ("/v1/completions", json!({"model": "a", "prompt": "x"})),
            ("/v1/images/generations", json!({"model": "flux", "prompt": "x"})),
            ("/v1/images/generations", json!({"model": "flux", "prompt": "x", "stream": true})),
            ("/v1/audio/generations", json!({"model": "music", "prompt": "x"})),
        ] {
            let reply = host.post(path, &body).await;
            assert!(reply.body.contains("…/x.gguf") && !reply.body.contains("secret-place"), "{path}: {}", reply.body);
        }
    }
    let (commands, mut received) = mpsc::channel(4);
    tokio::spawn(async move {
        while let Some(command) = received.recv().await {
            let failure = Failure::new(FailureKind::NotUsable, said);
            match command {
                Command::Load(_, _, reply) | Command::Unload(_, _, _, reply) | Command::Park(_, _, reply) => {
                    let _ = reply.send(Err(failure));
                }
                Command::Explain(_, reply) => _ = reply.send(Err(failure)),
                Command::Models(reply) => {
                    let _ = reply.send(vec![ModelStatus {
                        error: Some(said.into()),
                        client_error: Some(said.into()),
                        ..status("a", ModelState::Failed)
                    }]);
                }
                _ => {}
            }
        }
    });
    let router = crate::http::router(Handle::new(commands, watch::channel(Arc::new(config())).1, super::no_plugins()));
    let body = json!({"model": "a"}).to_string();
    for (request, is_whole) in [
        (post("/models/load", body.clone()), true),
        (post("/models/unload", body.clone()), true),
        (post("/models/park", body), true),
        (Request::get("/admin/plan?model=a").body(Body::empty()).unwrap(), true),
        (Request::get("/admin/status").body(Body::empty()).unwrap(), true),
        (Request::get("/models").body(Body::empty()).unwrap(), false),
    ] {
        let path = request.uri().path().to_owned();
        let reply = router.clone().oneshot(request).await.unwrap();
        let bytes = axum::body::to_bytes(reply.into_body(), usize::MAX).await.unwrap();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        assert!(text.contains("x.gguf") && text.contains("secret-place") == is_whole, "{path}: {text}");
    }
}

#[tokio::test]
async fn clients_read_what_they_can_do_and_operators_all_of_it() {
    let fails: Script = |_, _| Err(Failure::new(FailureKind::NotUsable, FOR_OPERATORS));
    let breaks: Script = |_, _| {
        let failure = Failure::new(FailureKind::WorkerDied, FOR_OPERATORS).for_clients("it broke");
        Ok(vec![text("a"), Output::Done(Err(failure))])
    };
    for (script, shown) in [(fails, "ask whoever runs this host"), (breaks, "it broke")] {
        for stream in [false, true] {
            let body = Host::new(script).post("/v1/chat/completions", &chat(&json!({"stream": stream}))).await.body;
            assert!(body.contains(shown) && !body.contains("models.yaml") && !body.contains("aihost"), "{body}");
        }
    }
    let error = ApiError::from(Failure::new(FailureKind::NotUsable, FOR_OPERATORS)).into_response();
    assert_eq!(error.extensions().get::<Cause>().unwrap().message, FOR_OPERATORS);
}

#[tokio::test]
async fn probes_name_no_model() {
    let loading = ModelConfig { preload: true, ..model("b", Kind::Text) };
    let host = Host::with(configured([loading]), hello);
    for path in ["/readyz", "/ping", "/health", "/livez"] {
        let body = host.get(path).await.body;
        assert!(!body.contains("`b`") && !body.contains(": b"), "{path}: {body}");
    }
    assert!(host.get("/readyz").await.body.contains("a model is still loading"));
}
