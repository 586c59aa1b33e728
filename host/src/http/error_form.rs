//! Refusals in the words of the API that they answer: each is made once, in OpenAI's envelope, and written anew where another
//! API's clients read it.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use serde_json::{Value, json};

use super::error::Cause;
use super::wire;

/// How the clients of a route read what went wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum ErrorForm {
    /// `{"error": {"message", "type", "param", "code"}}`
    #[default]
    OpenAi,
    /// `{"type": "error", "error": {"type", "message"}}`
    Anthropic,
    /// `{"error": "message"}`
    Ollama,
}

impl ErrorForm {
    /// The form of a path's clients.
    pub(super) fn of(path: &str) -> Self {
        if path.starts_with("/v1/messages") {
            Self::Anthropic
        } else if path.starts_with("/api/") {
            Self::Ollama
        } else {
            Self::OpenAi
        }
    }

    /// The same answer in this form.
    pub(super) fn write(self, response: &mut Response, cause: &Cause, request_id: &HeaderValue) {
        let Some(json) = self.json(response.status(), &cause.shown, request_id.to_str().unwrap_or_default()) else {
            return;
        };
        response.headers_mut().remove(header::CONTENT_LENGTH);
        *response.body_mut() = Body::from(wire::json(&json));
    }

    fn json(self, status: StatusCode, message: &str, request_id: &str) -> Option<Value> {
        match self {
            Self::OpenAi => None,
            Self::Anthropic => Some(wire::messages_error(status, message, request_id)),
            Self::Ollama => Some(json!({"error": message})),
        }
    }
}
