//! `POST /v1/messages` and the count of a message's tokens.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::super::app::App;
use super::super::body::JsonBody;
use super::super::caller::Caller;
use super::super::error::ApiError;
use super::super::openai::chat;
use super::super::text_answer::{TextApi, answer, count};
use super::super::wire;

static MESSAGES: TextApi =
    TextApi { path: "/v1/messages", endpoint: chat::PATH, prompt: "messages", read: wire::read_messages };
static COUNTED: TextApi = TextApi {
    path: "/v1/messages/count_tokens",
    endpoint: chat::PATH,
    prompt: "messages",
    read: wire::read_messages_to_count,
};

/// Answers a conversation.
pub(in crate::http) async fn create(
    State(app): State<App>,
    caller: Caller,
    body: JsonBody,
) -> Result<Response, ApiError> {
    answer(app, caller, &MESSAGES, body).await
}

/// How many tokens it would have.
pub(in crate::http) async fn count_tokens(
    State(app): State<App>,
    caller: Caller,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let tokens = count(app, caller, &COUNTED, body).await?;
    Ok(Json(json!({"input_tokens": tokens})).into_response())
}
