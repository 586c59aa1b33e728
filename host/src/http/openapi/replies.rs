//! The shapes of answers.

use serde_json::{Value, json};

/// All of them, by name.
#[expect(clippy::too_many_lines, reason = "a table of all shapes")]
pub(super) fn schemas() -> Value {
    let text = || json!({"type": "string"});
    let nullable = |kind: &str| json!({"type": [kind, "null"]});
    let count = || json!({"type": "integer", "minimum": 0});
    let object = |required: &[&str], properties: Value| json!({"type": "object", "required": required, "properties": properties});
    let list = |of: Value| json!({"type": "array", "items": of});
    let refer = |name: &str| json!({"$ref": format!("#/components/schemas/{name}")});
    let usage = object(
        &["prompt_tokens", "completion_tokens", "total_tokens"],
        json!({
            "prompt_tokens": count(), "completion_tokens": count(), "total_tokens": count(),
            "prompt_tokens_details": object(&["cached_tokens"], json!({"cached_tokens": count()})),
            "completion_tokens_details": object(&["reasoning_tokens"], json!({"reasoning_tokens": count()})),
        }),
    );
    let read_tokens =
        object(&["prompt_tokens", "total_tokens"], json!({"prompt_tokens": count(), "total_tokens": count()}));
    let finish = json!({"enum": ["stop", "length", "tool_calls", "function_call", "content_filter", null]});
    let function = object(&["name", "arguments"], json!({"name": text(), "arguments": text()}));
    let call =
        object(&["id", "type", "function"], json!({"id": text(), "type": {"const": "function"}, "function": function}));
    let chat_message = object(
        &["role", "content", "refusal"],
        json!({
            "role": {"const": "assistant"}, "content": nullable("string"), "refusal": nullable("string"),
            "reasoning_content": text(), "tool_calls": list(call), "function_call": function,
        }),
    );
    let chat_choice = object(
        &["index", "message", "logprobs", "finish_reason"],
        json!({"index": count(), "message": chat_message, "logprobs": nullable("object"), "finish_reason": finish}),
    );
    let completion_choice = object(
        &["index", "text", "logprobs", "finish_reason"],
        json!({"index": count(), "text": text(), "logprobs": nullable("object"), "finish_reason": finish}),
    );
    let completion = |kind: &str, choice: Value| {
        object(
            &["id", "object", "created", "model", "choices", "usage"],
            json!({
                "id": text(), "object": {"const": kind}, "created": count(), "model": text(), "choices": list(choice),
                "usage": usage,
            }),
        )
    };
    let model = object(
        &["id", "object", "created", "owned_by", "kind", "aliases", "state"],
        json!({
            "id": text(), "object": {"const": "model"}, "created": count(), "owned_by": text(), "kind": text(),
            "aliases": list(text()), "state": nullable("string"), "context_length": count(), "max_model_len": count(),
            "meta": {"type": "object"}, "architecture": {"type": "object"}, "capabilities": list(text()),
            "supported_parameters": list(text()),
        }),
    );
    let error = object(
        &["message", "type", "param", "code"],
        json!({"message": text(), "type": text(), "param": nullable("string"), "code": nullable("string")}),
    );
    let result =
        object(&["url", "content_type", "bytes"], json!({"url": text(), "content_type": text(), "bytes": count()}));
    let job = object(
        &["id", "object", "endpoint", "model", "status", "progress", "created_at", "error", "result"],
        json!({
            "id": text(), "object": {"const": "job"}, "endpoint": text(), "model": text(),
            "status": {"enum": ["queued", "in_progress", "completed", "failed", "cancelled", "expired"]},
            "progress": {"type": "integer", "minimum": 0, "maximum": 100}, "created_at": count(),
            "started_at": nullable("integer"), "completed_at": nullable("integer"), "expires_at": nullable("integer"),
            "attempts": count(), "error": {"anyOf": [error, {"type": "null"}]}, "usage": nullable("object"),
            "result": {"anyOf": [result, {"type": "null"}]},
        }),
    );
    let media = object(&["data"], json!({"created": count(), "data": list(json!({"type": "object"}))}));
    json!({
        "Object": {"type": "object"},
        "List": {"type": "array", "items": {"type": "object"}},
        "Success": object(&["success"], json!({"success": {"const": true}})),
        "Error": object(&["error"], json!({"error": error})),
        "AnthropicError": object(
            &["type", "error"],
            json!({"type": {"const": "error"}, "error": object(&["type", "message"], json!({"type": text(), "message": text()}))}),
        ),
        "OllamaError": object(&["error"], json!({"error": text()})),
        "ChatCompletion": completion("chat.completion", chat_choice),
        "Completion": completion("text_completion", completion_choice),
        "Response": object(
            &[
                "id", "object", "created_at", "status", "error", "incomplete_details", "instructions", "metadata", "model",
                "output", "parallel_tool_calls", "temperature", "tool_choice", "tools", "top_p", "usage",
            ],
            json!({
                "id": text(), "object": {"const": "response"}, "created_at": count(),
                "status": {"enum": ["completed", "incomplete", "failed", "in_progress"]}, "model": text(),
                "output": list(object(&["id", "type"], json!({"id": text(), "type": text()}))), "tools": {"type": "array"},
            }),
        ),
        "Embeddings": object(
            &["object", "data", "model", "usage"],
            json!({
                "object": {"const": "list"}, "model": text(), "usage": read_tokens,
                "data": list(object(
                    &["object", "index", "embedding"],
                    json!({"object": {"const": "embedding"}, "index": count(), "embedding": {"type": ["array", "string"]}}),
                )),
            }),
        ),
        "Ranking": object(
            &["object", "model", "usage", "results"],
            json!({
                "object": {"const": "list"}, "model": text(), "usage": read_tokens,
                "results": list(object(
                    &["index", "relevance_score"],
                    json!({
                        "index": count(), "relevance_score": {"type": "number"},
                        "document": object(&["text"], json!({"text": text()})),
                    }),
                )),
            }),
        ),
        "Job": job,
        "Jobs": object(
            &["object", "data", "first_id", "last_id", "has_more"],
            json!({
                "object": {"const": "list"}, "data": list(refer("Job")), "first_id": nullable("string"),
                "last_id": nullable("string"), "has_more": {"type": "boolean"},
            }),
        ),
        "DeletedResponse": object(&["id", "deleted"], json!({"id": text(), "deleted": {"const": true}})),
        "InputTokens": object(&["object", "input_tokens"], json!({"object": text(), "input_tokens": count()})),
        "CountedTokens": object(&["input_tokens"], json!({"input_tokens": count()})),
        "Message": object(
            &["id", "type", "role", "model", "content", "stop_reason", "stop_sequence", "usage"],
            json!({
                "id": text(), "type": {"const": "message"}, "role": {"const": "assistant"}, "model": text(),
                "content": list(object(&["type"], json!({"type": {"enum": ["text", "thinking", "tool_use"]}}))),
                "stop_reason": {"enum": ["end_turn", "max_tokens", "stop_sequence", "tool_use", "refusal", null]},
                "stop_sequence": nullable("string"), "usage": {"type": "object"},
            }),
        ),
        "OllamaAnswer": object(
            &["model", "created_at", "done"],
            json!({
                "model": text(), "created_at": text(), "done": {"type": "boolean"}, "done_reason": text(),
                "message": object(&["role", "content"], json!({"role": text(), "content": text()})), "response": text(),
            }),
        ),
        "OllamaModels": object(
            &["models"],
            json!({"models": list(object(&["name", "model", "digest"], json!({"name": text(), "size": count(), "digest": text()})))}),
        ),
        "Tokenized": object(&["tokens", "count"], json!({"tokens": {"type": "array"}, "count": count()})),
        "Detokenized": object(&["content"], json!({"content": text(), "prompt": text()})),
        "Audio": media,
        "Images": media,
        "Model": model,
        "Models": object(&["object", "data"], json!({"object": {"const": "list"}, "data": list(refer("Model"))})),
        "Overview": overview(),
        "RouterModels": object(
            &["object", "data"],
            json!({"object": {"const": "list"}, "data": list(object(&["id", "status"], json!({"id": text(), "status": {"type": "object"}})))}),
        ),
    })
}

/// What whoever watches a host is told.
fn overview() -> Value {
    let text = || json!({"type": "string"});
    let nullable = |kind: &str| json!({"type": [kind, "null"]});
    let count = || json!({"type": "integer", "minimum": 0});
    let object = |required: &[&str], properties: Value| json!({"type": "object", "required": required, "properties": properties});
    let list = |of: Value| json!({"type": "array", "items": of});
    let refer = |name: &str| json!({"$ref": format!("#/components/schemas/{name}")});
    let waiting = object(
        &["request", "model", "waited_ms", "awaits"],
        json!({"request": text(), "model": text(), "waited_ms": count(), "awaits": {"enum": ["load", "slot"]}}),
    );
    let swap = object(
        &["number", "model", "device", "kind", "cause", "for", "requests", "began_ms", "steps", "outcome", "error"],
        json!({
            "number": count(), "model": text(), "device": text(), "cause": text(), "for": nullable("string"),
            "kind": {"enum": ["load", "wake", "park", "unload", "lost"]}, "requests": nullable("string"),
            "began_ms": count(), "error": nullable("string"),
            "steps": list(object(&["name", "ms"], json!({"name": text(), "ms": count()}))),
            "outcome": {"enum": ["underway", "done", "failed", "dropped"]},
        }),
    );
    let request = object(
        &["number", "ended_ms", "id", "method", "path", "status", "duration_ms"],
        json!({
            "number": count(), "ended_ms": count(), "id": text(), "key": nullable("string"), "method": text(),
            "path": text(), "model": nullable("string"), "status": count(), "code": nullable("string"),
            "cause": nullable("string"), "queue_ms": nullable("integer"), "swap_ms": nullable("integer"),
            "first_token_ms": nullable("integer"), "tokens_in": nullable("integer"),
            "tokens_out": nullable("integer"), "duration_ms": count(),
        }),
    );
    let host = object(&["version", "started_s"], json!({"version": text(), "started_s": count()}));
    let model = object(&["id", "kind", "state"], json!({"id": text(), "kind": text(), "state": text()}));
    object(
        &["now_ms", "host", "models", "devices", "history", "waiting", "swaps", "requests", "jobs"],
        json!({
            "now_ms": count(), "host": host, "models": list(model),
            "devices": list(object(&["id", "budget"], json!({"id": text(), "budget": count()}))),
            "history": object(&["every_ms", "devices"], json!({"every_ms": count(), "devices": {"type": "object"}})),
            "waiting": list(waiting), "swaps": list(swap), "requests": list(request), "jobs": list(refer("Job")),
        }),
    )
}
