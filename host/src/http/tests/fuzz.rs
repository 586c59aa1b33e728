//! No body, however odd, makes this room fail: a refusal is always a 4xx in the envelope.

use proptest::prelude::*;
use proptest::sample::select;

use super::*;

const KEYS: &[&str] = &[
    "model",
    "messages",
    "prompt",
    "role",
    "content",
    "type",
    "text",
    "n",
    "stop",
    "seed",
    "stream",
    "stream_options",
    "include_usage",
    "logit_bias",
    "tools",
    "tool_choice",
    "function",
    "name",
    "arguments",
    "tool_calls",
    "logprobs",
    "top_logprobs",
    "max_tokens",
    "response_format",
    "temperature",
    "top_p",
    "top_k",
    "echo",
    "5",
    "modalities",
    "functions",
    "size",
    "steps",
    "guidance",
    "partial_images",
    "output_format",
    "output_compression",
    "duration",
    "input",
    "instructions",
    "call_id",
    "output",
    "system",
    "id",
    "source",
    "media_type",
    "data",
    "tool_use_id",
    "input_schema",
    "thinking",
    "options",
    "format",
    "images",
    "suffix",
    "raw",
    "tokens",
    "json_schema",
    "schema",
    "pattern",
    "grammar",
    "strict",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "structured_outputs",
    "json",
    "choice",
    "parameters",
    "allowed_tools",
    "mode",
    "function_call",
    "reasoning",
    "reasoning_effort",
    "chat_template_kwargs",
    "output_config",
    "effort",
    "think",
    "encoding_format",
    "dimensions",
    "query",
    "documents",
    "top_n",
    "return_documents",
];
/// Where text is asked for.
const TEXT_PATHS: &[&str] = &[
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/api/chat",
    "/api/generate",
    "/tokenize",
    "/detokenize",
    "/v1/messages/count_tokens",
    "/api/show",
    "/api/embed",
    "/v1/embeddings",
    "/v1/rerank",
];
const WORDS: &[&str] = &[
    "message",
    "function_call",
    "function_call_output",
    "reasoning",
    "input_text",
    "input_image",
    "tool_use",
    "tool_result",
    "image",
    "base64",
    "tool",
    "a",
    "org/b",
    "flux",
    "user",
    "assistant",
    "text",
    "function",
    "required",
    "",
    "é\u{0}",
    "16x32",
    "webp",
    "url",
    "json_object",
    "json_schema",
    "regex",
    "grammar",
    "allowed_tools",
    "object",
    "high",
    "enabled",
];

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-3i64..30).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        select(WORDS).prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 48, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(select(KEYS).prop_map(str::to_owned), inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// A valid request with some fields replaced, so that checks deep inside are reached.
fn body() -> impl Strategy<Value = Value> {
    prop::collection::btree_map(select(KEYS), value(), 0..4).prop_map(|fields| {
        let mut body = chat(&json!({"prompt": "x", "input": "x", "max_tokens": 4, "tokens": [1]}));
        fields.into_iter().for_each(|(key, value)| body[key] = value);
        body
    })
}

/// A model that makes nothing, for endpoints whose answers are not text.
fn refuse(_: usize, _: &Submission) -> Result<Vec<Output>, Failure> {
    Err(Failure::new(FailureKind::InvalidRequest, "not this"))
}

fn check(path: &str, script: Script, body: String) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let reply = runtime.block_on(async { Host::new(script).send(post(path, body.clone())).await });
    assert!(reply.status.as_u16() < 500, "{body} -> {}", reply.body);
    if reply.status.is_success() {
        return;
    }
    match path {
        "/v1/messages" | "/v1/messages/count_tokens" => {
            assert!(reply.json()["error"]["type"].is_string(), "{}", reply.body)
        }
        path if path.starts_with("/api/") => assert!(reply.json()["error"].is_string(), "{}", reply.body),
        _ => _ = reply.error(),
    }
}

proptest! {
    #[test]
    fn odd_fields_are_never_our_failure(body in body(), path in select(TEXT_PATHS)) {
        check(path, hello, body.to_string());
    }

    #[test]
    fn odd_fields_of_media_are_never_our_failure(body in body(), of in select(&[("flux", "images"), ("music", "audio")][..])) {
        let mut body = body;
        body["model"] = json!(of.0);
        check(&format!("/v1/{}/generations", of.1), refuse, body.to_string());
    }

    #[test]
    fn odd_bodies_are_never_our_failure(body in value(), path in select(TEXT_PATHS)) {
        check(path, hello, body.to_string());
    }

    #[test]
    fn odd_jobs_are_never_our_failure(body in body(), odd in value(), path in select(TEXT_PATHS), is_odd in any::<bool>()) {
        let job = if is_odd { odd } else { json!({"endpoint": path, "body": body}) };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let reply = runtime.block_on(async {
            let (_folder, host) = super::jobs::kept_host();
            host.send(post("/v1/jobs", job.to_string())).await
        });
        assert!(reply.status.as_u16() < 500, "{job} -> {}", reply.body);
        if !reply.status.is_success() {
            reply.error();
        }
    }

    #[test]
    fn odd_bytes_are_never_our_failure(body in any::<String>()) {
        check("/v1/completions", hello, body);
    }
}
