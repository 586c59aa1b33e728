//! Refusals: every class of failure, and bodies that are wrong in one place.

use super::*;
use crate::domain::FailureDetails;

const CHAT: &str = "/v1/chat/completions";

async fn check(path: &str, body: &Value, status: u16, code: &str, param: &str) {
    let reply = Host::new(hello).post(path, body).await;
    assert_eq!(reply.error(), (status, code.to_owned(), param.to_owned()), "{body} -> {}", reply.body);
}

#[tokio::test]
async fn each_failure_has_its_status() {
    use FailureKind as F;
    let cases: [(Script, u16, &str, &str, &str); 16] = [
        (|_, _| refused(F::InvalidRequest), 400, "", "", ""),
        (|_, _| refused(F::ContextLength), 400, "context_length_exceeded", "", ""),
        (|_, _| refused(F::UnknownModel), 404, "model_not_found", "", ""),
        (|_, _| refused(F::WrongKind), 400, "unsupported_endpoint_for_model", "", ""),
        (|_, _| refused(F::QueueFull), 429, "rate_limit_exceeded", "2", ""),
        (|_, _| refused(F::Busy), 429, "rate_limit_exceeded", "2", ""),
        (|_, _| refused(F::StillLoading), 503, "model_loading", "10", ""),
        (|_, _| refused(F::OutOfMemory), 503, "insufficient_vram", "", "false"),
        (|_, _| refused(F::NotUsable), 500, "model_not_usable", "", "false"),
        (|_, _| refused(F::NotPulled), 503, "model_not_pulled", "", "false"),
        (|_, _| refused(F::WorkerDied), 500, "worker_died", "", ""),
        (|_, _| refused(F::Suspected), 500, "request_suspected", "", "false"),
        (|_, _| refused(F::TimedOut), 504, "timed_out", "", ""),
        (|_, _| refused(F::ShuttingDown), 503, "shutting_down", "", ""),
        (|_, _| refused(F::Cancelled), 499, "cancelled", "", ""),
        (|_, _| refused(F::Internal), 500, "internal_error", "", ""),
    ];
    for (script, status, code, retry_after, should_retry) in cases {
        for stream in [false, true] {
            let reply = Host::new(script).post(CHAT, &chat(&json!({"stream": stream}))).await;
            let (found, found_code, _) = reply.error();
            assert_eq!((found, found_code.as_str()), (status, code), "{}", reply.body);
            assert_eq!(reply.header("retry-after"), retry_after, "{code}");
            assert_eq!(reply.header("x-should-retry"), should_retry, "{code}");
            assert_eq!(reply.header("content-type"), "application/json");
        }
    }
}

fn refused(kind: FailureKind) -> Result<Vec<Output>, Failure> {
    Err(Failure::new(kind, "it broke"))
}

#[tokio::test]
async fn an_overflow_says_what_clients_look_for() {
    let host = Host::new(|_, _| {
        let mut failure = Failure::new(FailureKind::ContextLength, "it broke");
        let details = FailureDetails { prompt_tokens: Some(9000), context_tokens: Some(4096), ..Default::default() };
        failure.details = Some(Box::new(details));
        Ok(vec![Output::Done(Err(failure))])
    });
    for (path, param) in [(CHAT, "messages"), ("/v1/completions", "prompt")] {
        for stream in [false, true] {
            let mut body = chat(&json!({"stream": stream}));
            body["prompt"] = json!("x");
            let reply = host.post(path, &body).await;
            assert_eq!(reply.error(), (400, "context_length_exceeded".into(), param.into()));
            let error = &reply.json()["error"];
            assert_eq!((&error["n_prompt_tokens"], &error["n_ctx"]), (&json!(9000), &json!(4096)));
            let message = error["message"].as_str().unwrap();
            for phrase in ["context_length_exceeded", "maximum context length is", "exceeds the available context size"]
            {
                assert!(message.contains(phrase), "no `{phrase}`: {message}");
            }
        }
    }
    // What a plugin says itself is not said twice, and where it counts nothing, nothing is said of it.
    let plain = Host::new(|_, _| {
        let said = "This model's maximum context length is 8 tokens, which exceeds the available context size";
        Ok(vec![Output::Done(Err(Failure::new(FailureKind::ContextLength, said)))])
    });
    let error = plain.post(CHAT, &chat(&json!({}))).await.json()["error"].clone();
    assert_eq!(error["message"].as_str().unwrap().matches("available context size").count(), 1, "{error}");
    assert!(error.get("n_ctx").is_none(), "{error}");
}

#[tokio::test]
async fn half_a_surrogate_pair_is_told_by_its_place() {
    let host = Host::new(hello);
    let of = |content: &str| format!(r#"{{"model":"a","messages":[{{"role":"user","content":"{content}"}}]}}"#);
    for (content, half) in [
        (r"\ud83d x", r"\ud83d"),
        (r"x \uDE00", r"\uDE00"),
        (r"\ud83d\ud83d\ude00", r"\ud83d"),
        (r"\ud83d\ude00 \ude00", r"\ude00"),
        (r"\\\ud83d", r"\ud83d"),
        (r"\ud83d", r"\ud83d"),
    ] {
        let reply = host.send(post(CHAT, of(content))).await;
        assert_eq!(reply.error(), (400, String::new(), "messages[0].content".into()), "{content}");
        let message = reply.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.starts_with("`messages[0].content` has half of a surrogate pair"), "{message}");
        assert!(message.contains(&format!("({half})")), "{content}: {message}");
    }
    for content in [r"\ud83d\ude00", r"\\ud83d", "\u{1f600}", r"\u00e4"] {
        assert_eq!(host.send(post(CHAT, of(content))).await.status, 200, "{content}");
    }
    for (body, param) in [
        (r#"{"model":"a","messages":[{"role":"user","content":"x"}],"stop":["a","\ud83d"]}"#, "stop[1]"),
        (r#"{"model":"\ud83d","messages":[{"role":"user","content":"x"}]}"#, "model"),
        (r#"{"\ud83d":"a","messages":[{"role":"user","content":"x"}]}"#, ""),
    ] {
        let reply = host.send(post(CHAT, body)).await;
        assert_eq!(reply.error(), (400, String::new(), param.into()), "{body}");
        assert!(reply.body.contains("half of a surrogate pair"), "{}", reply.body);
    }
}

#[tokio::test]
async fn a_loading_model_tells_how_far_it_is() {
    let mut config = configured([model("b", Kind::Text)]);
    config.limits.queue = 1;
    let host = Host::with(config, |_, _| refused(FailureKind::StillLoading));
    let reply = host.post(CHAT, &chat(&json!({"model": "b"}))).await;
    assert_eq!(reply.json()["error"]["loading"], json!({"state": "loading", "progress": 250}));
}

#[tokio::test]
async fn a_failure_after_the_first_byte_is_the_last_event() {
    let host = Host::new(|_, _| Ok(vec![text("Hel"), failed(FailureKind::WorkerDied)]));
    let reply = host.router.clone().oneshot(post(CHAT, chat(&json!({"stream": true})).to_string())).await.unwrap();
    // Both outputs were ready before the head was sent: nobody else is asked any more, so what there was is told.
    assert_eq!(reply.status(), 200);
    let body = axum::body::to_bytes(reply.into_body(), usize::MAX).await.unwrap();
    let body = String::from_utf8_lossy(&body);
    assert!(body.contains("Hel") && body.contains("\"code\":\"worker_died\""), "{body}");

    for (path, body) in [
        ("/v1/completions", json!({"model": "a", "prompt": "x", "stream": true})),
        ("/v1/responses", json!({"model": "a", "input": "x", "stream": true})),
        (
            "/v1/messages",
            json!({"model": "a", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}], "stream": true}),
        ),
        ("/api/chat", json!({"model": "a", "messages": [{"role": "user", "content": "x"}]})),
        ("/api/generate", json!({"model": "a", "prompt": "x"})),
    ] {
        let reply = host.post(path, &body).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.body);
        let (said, failed) = reply.body.split_once("Hel").unwrap_or_else(|| panic!("{path}: {}", reply.body));
        assert!(failed.contains("it broke") && !said.contains("it broke"), "{path}: {}", reply.body);
    }

    let (outputs, receiver) = mpsc::channel(4);
    let router = answering(receiver);
    outputs.send(text("Hel")).await.unwrap();
    let reply = router.oneshot(post(CHAT, chat(&json!({"stream": true})).to_string())).await.unwrap();
    assert_eq!(reply.status(), 200);
    outputs.send(failed(FailureKind::WorkerDied)).await.unwrap();
    let body = axum::body::to_bytes(reply.into_body(), usize::MAX).await.unwrap();
    let expected = concat!(
        "\n\ndata: {\"error\":{\"message\":\"it broke\",\"type\":\"server_error\",\"param\":null,\"code\":\"worker_died\"}}\n\n",
        "data: [DONE]\n\n"
    );
    assert!(body.ends_with(expected.as_bytes()), "{body:?}");
}

#[tokio::test]
async fn a_plugin_that_sends_nonsense_or_nothing_is_an_error() {
    for script in [
        (|_, _| Ok(vec![Output::Event(Bytes::from_static(b"{"))])) as Script,
        |_, _| Ok(vec![]),
        |_, _| Ok(vec![Output::Done(Ok(Bytes::from_static(b"[]")))]),
    ] {
        assert_eq!(Host::new(script).post(CHAT, &chat(&json!({}))).await.error().0, 500);
    }
}

#[tokio::test]
async fn wrong_fields_are_named() {
    let cases = [
        (json!({"temperature": 2.5}), "invalid_value", "temperature"),
        (json!({"temperature": "hot"}), "invalid_type", "temperature"),
        (json!({"top_p": -0.1}), "invalid_value", "top_p"),
        (json!({"n": 0}), "invalid_value", "n"),
        (json!({"n": 129}), "invalid_value", "n"),
        (json!({"n": 1.5}), "invalid_type", "n"),
        (json!({"max_tokens": -1}), "invalid_value", "max_tokens"),
        (json!({"top_logprobs": 21, "logprobs": true}), "invalid_value", "top_logprobs"),
        (json!({"top_logprobs": 2}), "invalid_value", "top_logprobs"),
        (json!({"stop": ["a", 1]}), "invalid_type", "stop[1]"),
        (json!({"logit_bias": {"5": 101}}), "invalid_value", "logit_bias.5"),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {}}}),
            "missing_required_parameter",
            "response_format.json_schema.schema",
        ),
        (json!({"response_format": {"type": "sound"}}), "invalid_value", "response_format.type"),
        (json!({"response_format": {"type": 123}}), "invalid_type", "response_format.type"),
        (json!({"tool_choice": "required"}), "invalid_value", "tool_choice"),
        (json!({"tool_choice": "perhaps"}), "invalid_value", "tool_choice"),
        (json!({"tools": [{"type": "custom"}]}), "unsupported_parameter", "tools[0].type"),
        (
            json!({"tools": [{"type": "function", "function": {}}]}),
            "missing_required_parameter",
            "tools[0].function.name",
        ),
        (json!({"modalities": ["text", "audio"]}), "unsupported_parameter", "modalities"),
        (json!({"stream_options": 1}), "invalid_type", "stream_options"),
        (json!({"model": 1}), "invalid_type", "model"),
        (json!({"messages": null}), "missing_required_parameter", "messages"),
        (json!({"messages": []}), "invalid_value", "messages"),
        (json!({"messages": [1]}), "invalid_type", "messages[0]"),
        (json!({"messages": [{"role": "king", "content": "x"}]}), "invalid_value", "messages[0].role"),
        (json!({"messages": [{"role": "user"}]}), "missing_required_parameter", "messages[0].content"),
        (json!({"messages": [{"role": "user", "content": 1}]}), "invalid_type", "messages[0].content"),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
            "unsupported_parameter",
            "messages[0].content[0]",
        ),
    ];
    for (extra, code, param) in cases {
        check(CHAT, &chat(&extra), 400, code, param).await;
    }
}

#[tokio::test]
async fn wrong_completion_fields_are_named() {
    for (body, code, param) in [
        (json!({}), "missing_required_parameter", "prompt"),
        (json!({"prompt": []}), "invalid_value", "prompt"),
        (json!({"prompt": [1, "x"]}), "invalid_type", "prompt[1]"),
        (json!({"prompt": ["x", [-1]]}), "invalid_type", "prompt[1][0]"),
        (json!({"prompt": "x", "logprobs": 6}), "invalid_value", "logprobs"),
        (json!({"prompt": [1], "suffix": "y"}), "unsupported_parameter", "suffix"),
        (json!({"prompt": "x", "best_of": 2}), "unsupported_parameter", "best_of"),
        (json!({"prompt": vec!["x"; 9], "n": 128}), "invalid_value", "n"),
    ] {
        check("/v1/completions", &body, 400, code, param).await;
    }
}

#[tokio::test]
async fn models_are_found_or_refused() {
    check(CHAT, &chat(&json!({"model": "gpt-4o-min"})), 404, "model_not_found", "model").await;
    check(CHAT, &chat(&json!({"model": "flux"})), 400, "unsupported_endpoint_for_model", "model").await;
    let hint = Host::new(hello).post(CHAT, &chat(&json!({"model": "gpt-4o-min"}))).await;
    assert!(hint.body.contains("did you mean `gpt-4o-mini`?"), "{}", hint.body);
}

#[tokio::test]
async fn a_request_without_a_model_goes_by_its_endpoint() {
    let nameless = |path: &'static str| (path, json!({"messages": [{"role": "user", "content": "x"}], "prompt": "x"}));
    for ((path, body), model) in [(nameless(CHAT), "a"), (nameless("/v1/completions"), "org/b")] {
        assert_eq!(Host::new(hello).post(path, &body).await.json()["model"], model);
    }
    let mut two = [model("a", Kind::Text), model("b", Kind::Text)];
    let (path, body) = nameless(CHAT);
    let reply = Host::with(configured(two.clone()), hello).post(path, &body).await;
    assert_eq!(reply.error(), (400, "missing_required_parameter".into(), "model".into()));
    assert!(reply.body.contains("`a`, `b`"), "{}", reply.body);
    two[1].default = true;
    assert_eq!(Host::with(configured(two), hello).post(path, &body).await.json()["model"], "b");
    assert_eq!(Host::with(configured([]), hello).post(path, &body).await.error().0, 400);
}

#[tokio::test]
async fn bodies_that_are_no_object_are_refused() {
    let host = Host::new(hello);
    for body in ["", "{", "[]", "1", "null", "\"x\"", "{\"model\": \"\\ud800\"}"] {
        assert_eq!(host.send(post(CHAT, body)).await.error().0, 400, "{body}");
    }
    let deep = "[".repeat(10_000);
    assert_eq!(host.send(post(CHAT, deep)).await.error().0, 400);
    let form = Request::post(CHAT).header("content-type", "text/plain").body(Body::from("{}")).unwrap();
    assert_eq!(host.send(form).await.error().0, 400);
}

#[tokio::test]
async fn a_body_over_the_limit_is_413() {
    let host = Host::new(hello);
    let large = "x".repeat(65 << 10);
    let announced = post(CHAT, large.clone());
    assert_eq!(host.send(announced).await.error(), (413, "request_too_large".into(), String::new()));
    let chunks = futures_util::stream::iter([Ok::<_, std::io::Error>(Bytes::from(large))]);
    assert_eq!(host.send(post(CHAT, Body::from_stream(chunks))).await.error().0, 413);
}
