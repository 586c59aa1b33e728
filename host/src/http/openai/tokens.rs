//! `POST /tokenize` and `POST /detokenize`, as llama.cpp and vLLM have them.

use aihost_plugin_api::task::Token;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::super::app::App;
use super::super::body::JsonBody;
use super::super::caller::Caller;
use super::super::error::ApiError;
use super::super::text_answer::{TextApi, tokens};
use super::super::wire;
use super::chat;

static TOKENIZE: TextApi =
    TextApi { path: "/tokenize", endpoint: chat::PATH, prompt: "content", read: wire::read_tokenize };
static DETOKENIZE: TextApi =
    TextApi { path: "/detokenize", endpoint: chat::PATH, prompt: "tokens", read: wire::read_detokenize };

/// The tokens of a text, or of a conversation as its template renders it.
pub(in crate::http) async fn tokenize(
    State(app): State<App>,
    caller: Caller,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let with_pieces = body.clone().read(wire::parse_with_pieces).await?;
    let tokens = tokens(app, caller, &TOKENIZE, body).await?;
    let ids = tokens.iter().map(|token| if with_pieces { piece(token) } else { token.id.into() });
    Ok(Json(json!({"tokens": ids.collect::<Vec<Value>>(), "count": tokens.len()})).into_response())
}

/// The text of tokens.
pub(in crate::http) async fn detokenize(
    State(app): State<App>,
    caller: Caller,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let tokens = tokens(app, caller, &DETOKENIZE, body).await?;
    let bytes: Vec<u8> = tokens.into_iter().flat_map(|token| token.bytes).collect();
    let text = String::from_utf8_lossy(&bytes);
    Ok(Json(json!({"content": text, "prompt": text})).into_response())
}

/// A token with what it stands for: text, or its bytes where they are none.
fn piece(token: &Token) -> Value {
    let piece = match std::str::from_utf8(&token.bytes) {
        Ok(text) => Value::from(text),
        Err(_) => Value::from(token.bytes.as_slice()),
    };
    json!({"id": token.id, "piece": piece})
}
