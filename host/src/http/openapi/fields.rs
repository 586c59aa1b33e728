//! The schemas of the fields that requests have. `null` is the same as absent everywhere.

use serde_json::{Value, json};

/// That of a field of a body; empty for one that nobody described.
pub(super) fn schema(path: &str, field: &str) -> Value {
    let mut schema = plain(path, field);
    // What may be absent may be null.
    if let Some(all) = schema["enum"].as_array_mut() {
        all.push(Value::Null);
    }
    if let Some(kind) = schema.get("type").cloned() {
        schema["type"] = match kind {
            Value::Array(mut kinds) => {
                kinds.push("null".into());
                kinds.into()
            }
            kind => json!([kind, "null"]),
        };
    }
    schema
}

/// Fields that must be there.
pub(super) fn required(path: &str) -> &'static [&'static str] {
    match path {
        "/v1/chat/completions"
        | "/chat/completions"
        | "/v1/chat/completions/input_tokens"
        | "/chat/completions/input_tokens" => &["messages"],
        "/v1/completions" | "/completions" | "/v1/images/generations" | "/v1/audio/generations" => &["prompt"],
        "/v1/responses" | "/responses" | "/v1/responses/input_tokens" | "/responses/input_tokens" => &["input"],
        "/v1/messages" => &["messages", "max_tokens"],
        "/v1/messages/count_tokens" => &["messages"],
        "/detokenize" => &["tokens"],
        "/v1/embeddings" | "/embeddings" => &["input"],
        "/v1/rerank" | "/rerank" => &["query", "documents"],
        "/v1/jobs" => &["endpoint", "body"],
        "/models/load" | "/models/unload" | "/models/park" | "/models/pin" => &["model"],
        _ => &[],
    }
}

/// Whether a body may be a form.
pub(super) fn takes_form(path: &str) -> bool {
    matches!(path, "/v1/audio/transcriptions" | "/v1/audio/translations" | "/v1/images/edits" | "/v1/images/variations")
}

#[expect(clippy::too_many_lines, reason = "a table of all fields")]
fn plain(path: &str, field: &str) -> Value {
    let text = || json!({"type": "string"});
    let object = || json!({"type": "object"});
    let flag = || json!({"type": "boolean"});
    let array = || json!({"type": "array"});
    let count = || json!({"type": "integer", "minimum": 0});
    let number = |least: f64, most: f64| json!({"type": "number", "minimum": least, "maximum": most});
    match (path, field) {
        ("/v1/jobs", "endpoint") => text(),
        ("/v1/jobs", "body") => object(),
        (_, "background") if path.starts_with("/v1/images/") || path.starts_with("/v1/audio/") => {
            json!({"type": ["boolean", "string"], "description": "true keeps the request as a job"})
        }
        (_, "prompt") if path.ends_with("completions") => json!({"type": ["string", "array"]}),
        (_, "logprobs") if path.ends_with("/completions") && !path.contains("chat") => {
            json!({"type": "integer", "minimum": 0, "maximum": 5})
        }
        (_, "logprobs") => json!({"type": ["boolean", "integer"]}),
        ("/v1/messages" | "/v1/messages/count_tokens", "temperature") => number(0.0, 1.0),
        ("/v1/audio/generations", "temperature" | "top_p") => json!({"type": "number"}),
        ("/v1/audio/generations", "top_k") => json!({"type": "integer"}),
        ("/v1/messages" | "/v1/messages/count_tokens", "system") => json!({"type": ["string", "array"]}),
        ("/v1/messages" | "/v1/messages/count_tokens", "tool_choice" | "output_format") => object(),
        ("/v1/audio/generations" | "/v1/images/generations", "response_format" | "output_format") => text(),
        (_, "thinking") if !path.starts_with("/v1/messages") => json!({"type": ["boolean", "object"]}),
        (_, "reasoning_effort") => {
            json!({"type": "string", "enum": ["none", "minimal", "low", "medium", "high", "xhigh"]})
        }
        (_, "guided_json") => json!({"type": ["object", "string", "boolean"]}),
        (_, "json_schema") => json!({"type": ["object", "string", "boolean"]}),
        ("/api/chat" | "/api/generate", "format") => json!({"type": ["string", "object"]}),
        (
            _,
            "model"
            | "prompt"
            | "suffix"
            | "user"
            | "system"
            | "instructions"
            | "template"
            | "content"
            | "name"
            | "size"
            | "service_tier"
            | "previous_response_id"
            | "truncation"
            | "safety_identifier"
            | "prompt_cache_key"
            | "response"
            | "stream_format"
            | "quality"
            | "style"
            | "background"
            | "negative_prompt"
            | "moderation"
            | "output_format"
            | "voice"
            | "lyrics"
            | "guided_regex"
            | "guided_grammar"
            | "grammar",
        ) if !(path.contains("responses") && field == "background") => text(),
        (_, "background") => flag(),
        (
            _,
            "stream"
            | "echo"
            | "ignore_eos"
            | "raw"
            | "store"
            | "parallel_tool_calls"
            | "normalize"
            | "continue_final_message"
            | "add_generation_prompt"
            | "enable_thinking",
        ) => flag(),
        (
            _,
            "messages" | "tools" | "functions" | "modalities" | "images" | "include" | "context" | "tokens"
            | "mcp_servers" | "guided_choice",
        ) => array(),
        (_, "encoding_format") => json!({"type": "string", "enum": ["float", "base64"]}),
        (_, "query") => text(),
        (_, "documents") => array(),
        (_, "return_documents") => flag(),
        (_, "top_n") => json!({"type": "integer", "minimum": 1}),
        (_, "stop_sequences") => json!({"type": "array", "items": {"type": "string"}}),
        (
            _,
            "stream_options"
            | "response_format"
            | "logit_bias"
            | "metadata"
            | "text"
            | "reasoning"
            | "options"
            | "thinking"
            | "output_config"
            | "structured_outputs"
            | "chat_template_kwargs",
        ) => object(),
        (_, "stop" | "input" | "container" | "image" | "mask") => json!({"type": ["string", "array", "object"]}),
        (_, "conversation") => json!({"type": ["string", "object"]}),
        (_, "tool_choice" | "function_call") => json!({"type": ["string", "object"]}),
        (_, "pinned") => json!({"type": "boolean"}),
        (_, "think") => json!({"type": ["boolean", "string"]}),
        (_, "keep_alive") => {
            json!({"type": ["number", "string"], "description": "seconds, a text like 5m, or forever"})
        }
        (_, "n") => json!({"type": "integer", "minimum": 1, "maximum": 128}),
        (
            _,
            "max_tokens"
            | "max_completion_tokens"
            | "max_output_tokens"
            | "max_tool_calls"
            | "dimensions"
            | "partial_images"
            | "steps"
            | "num_inference_steps"
            | "output_compression"
            | "bitrate"
            | "sample_rate",
        ) => count(),
        (_, "top_logprobs") => json!({"type": "integer", "minimum": 0, "maximum": 20}),
        (_, "best_of") => count(),
        (_, "seed") => json!({"type": "integer"}),
        (_, "top_k") => json!({"type": "integer", "minimum": -1}),
        (_, "temperature") => number(0.0, 2.0),
        (_, "top_p" | "min_p") => number(0.0, 1.0),
        (_, "frequency_penalty" | "presence_penalty") => number(-2.0, 2.0),
        (_, "repetition_penalty" | "repeat_penalty") => {
            json!({"type": "number", "exclusiveMinimum": 0, "maximum": 100})
        }
        (_, "guidance" | "guidance_scale" | "cfg_scale" | "duration" | "force_after") => json!({"type": "number"}),
        _ => json!({}),
    }
}
