//! What `POST /v1/messages`, Anthropic's route, answers: the message, the events by which it comes to be, and its errors.

use aihost_plugin_api::task::{FinishReason, TextEvent, TextFinish, Usage};
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::reply::{Choice, TextShape};
use super::{json as to_json, new_id};
use crate::domain::Failure;
use crate::http::error::ApiError;
use crate::http::sse;

/// `POST /v1/messages`.
pub(super) struct MessagesShape {
    id: String,
    model: String,
    /// The request's stop strings.
    stops: Vec<String>,
    /// Blocks that have begun.
    blocks: usize,
    /// What the last of them is, while it goes on.
    open: Option<Open>,
    finish: Option<TextFinish>,
}

/// A block that goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Open {
    Text,
    Thinking,
    /// The call of this number.
    Call(u32),
}

impl MessagesShape {
    pub(super) fn new(model: &str, stops: Vec<String>) -> Self {
        Self { id: new_id("msg_"), model: model.to_owned(), stops, blocks: 0, open: None, finish: None }
    }

    fn message(&self, content: Vec<Value>, usage: Value) -> Value {
        json!({
            "id": self.id, "type": "message", "role": "assistant", "model": self.model, "content": content,
            "stop_reason": self.stop_reason(), "stop_sequence": self.stop_sequence(), "usage": usage,
        })
    }

    fn stop_reason(&self) -> Option<&'static str> {
        let finish = self.finish?;
        Some(match finish.reason {
            FinishReason::Length => "max_tokens",
            FinishReason::ToolCalls => "tool_use",
            FinishReason::ContentFilter => "refusal",
            _ if finish.stop.is_some() => "stop_sequence",
            _ => "end_turn",
        })
    }

    fn stop_sequence(&self) -> Option<&str> {
        let stop = usize::try_from(self.finish?.stop?).ok()?;
        self.stops.get(stop).map(String::as_str)
    }

    /// Makes this the block that goes on, behind whatever went on before.
    fn saying(&mut self, out: &mut Vec<u8>, open: Open, block: impl FnOnce() -> Value) {
        if self.open == Some(open) {
            return;
        }
        self.close(out);
        let data = json!({"type": "content_block_start", "index": self.blocks, "content_block": block()});
        sse::write_event(out, "content_block_start", &data);
        self.blocks += 1;
        self.open = Some(open);
    }

    fn delta(&self, out: &mut Vec<u8>, delta: Value) {
        let data = json!({"type": "content_block_delta", "index": self.blocks - 1, "delta": delta});
        sse::write_event(out, "content_block_delta", &data);
    }

    fn close(&mut self, out: &mut Vec<u8>) {
        if let Some(open) = self.open.take() {
            if open == Open::Thinking {
                // Thoughts are signed, so that they can be sent back; nobody looks at it here.
                let index = self.blocks - 1;
                let delta = json!({"type": "signature_delta", "signature": ""});
                let data = json!({"type": "content_block_delta", "index": index, "delta": delta});
                sse::write_event(out, "content_block_delta", &data);
            }
            let data = json!({"type": "content_block_stop", "index": self.blocks - 1});
            sse::write_event(out, "content_block_stop", &data);
        }
    }
}

impl TextShape for MessagesShape {
    fn open(&mut self, out: &mut Vec<u8>, _index: usize, prompt: Usage) {
        let message = self.message(Vec::new(), usage(prompt));
        sse::write_event(out, "message_start", &json!({"type": "message_start", "message": message}));
        sse::write_event(out, "ping", &json!({"type": "ping"}));
    }

    fn event(&mut self, out: &mut Vec<u8>, _index: usize, event: &TextEvent) {
        match event {
            TextEvent::Text { text, .. } | TextEvent::Refusal { text, .. } if !text.is_empty() => {
                self.saying(out, Open::Text, || json!({"type": "text", "text": ""}));
                self.delta(out, json!({"type": "text_delta", "text": text}));
            }
            TextEvent::Reasoning { text, .. } if !text.is_empty() => {
                self.saying(out, Open::Thinking, || json!({"type": "thinking", "thinking": "", "signature": ""}));
                self.delta(out, json!({"type": "thinking_delta", "thinking": text}));
            }
            TextEvent::ToolCall { index, id, name, .. } => {
                self.close(out);
                self.saying(
                    out,
                    Open::Call(*index),
                    || json!({"type": "tool_use", "id": id, "name": name, "input": {}}),
                );
            }
            // What comes late for a call that is over has no place in this API: one block goes on at a time.
            TextEvent::ToolArguments { index, fragment, .. } if self.open == Some(Open::Call(*index)) => {
                self.delta(out, json!({"type": "input_json_delta", "partial_json": fragment}));
            }
            _ => {}
        }
    }

    fn finish(&mut self, out: &mut Vec<u8>, _index: usize, finish: TextFinish) {
        self.close(out);
        self.finish = Some(finish);
    }

    fn end(&mut self, out: &mut Vec<u8>, tokens: Usage) {
        let delta = json!({"stop_reason": self.stop_reason(), "stop_sequence": self.stop_sequence()});
        let data = json!({"type": "message_delta", "delta": delta, "usage": usage(tokens)});
        sse::write_event(out, "message_delta", &data);
        sse::write_event(out, "message_stop", &json!({"type": "message_stop"}));
    }

    fn fail(&mut self, out: &mut Vec<u8>, failure: Failure) {
        let failed = ApiError::from(failure);
        sse::write_event(out, "error", &error(failed.status(), &failed.message(), ""));
    }

    fn whole(&mut self, choices: &[Choice], tokens: Usage) -> Vec<u8> {
        let mut content = Vec::new();
        for choice in choices {
            if !choice.reasoning.is_empty() {
                content.push(json!({"type": "thinking", "thinking": choice.reasoning, "signature": ""}));
            }
            let text = [choice.text.as_str(), &choice.refusal].concat();
            if !text.is_empty() {
                content.push(json!({"type": "text", "text": text}));
            }
            for call in &choice.calls {
                // Arguments that are no JSON are the model's, and its client's to judge.
                let input: Value = serde_json::from_str(&call.function.arguments).unwrap_or_else(|_| json!({}));
                content.push(json!({"type": "tool_use", "id": call.id, "name": call.function.name, "input": input}));
            }
            self.finish = choice.finish;
        }
        to_json(&self.message(content, usage(tokens)))
    }
}

/// Tokens in Anthropic's words: what was taken from the cache is not among those of the input.
fn usage(tokens: Usage) -> Value {
    json!({
        "input_tokens": tokens.prompt_tokens.saturating_sub(tokens.cached_tokens),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": tokens.cached_tokens,
        "output_tokens": tokens.completion_tokens,
    })
}

/// An error in Anthropic's envelope.
pub(in crate::http) fn error(status: StatusCode, message: &str, request_id: &str) -> Value {
    let kind = match status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 | 529 => "overloaded_error",
        504 => "timeout_error",
        status if status < 500 => "invalid_request_error",
        _ => "api_error",
    };
    let mut json = json!({"type": "error", "error": {"type": kind, "message": message}});
    if !request_id.is_empty() {
        json["request_id"] = request_id.into();
    }
    json
}
