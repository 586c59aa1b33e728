//! `POST /v1/chat/completions`.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::super::app::App;
use super::super::body::JsonBody;
use super::super::caller::Caller;
use super::super::error::ApiError;
use super::super::text_answer::{TextApi, answer, count};
use super::super::wire;

/// Where it is.
pub(in crate::http) const PATH: &str = "/v1/chat/completions";
static CHAT: TextApi = TextApi { path: PATH, endpoint: PATH, prompt: "messages", read: wire::read_chat };

/// Answers a conversation.
pub(in crate::http) async fn create(
    State(app): State<App>,
    caller: Caller,
    body: JsonBody,
) -> Result<Response, ApiError> {
    answer(app, caller, &CHAT, body).await
}

/// How many tokens a conversation would have, in llama.cpp's words.
pub(in crate::http) async fn input_tokens(
    State(app): State<App>,
    caller: Caller,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let tokens = count(app, caller, &CHAT, body).await?;
    Ok(Json(json!({"object": "response.input_tokens", "input_tokens": tokens})).into_response())
}
