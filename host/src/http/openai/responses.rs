//! `POST /v1/responses`, and the answers that are kept of it.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::super::app::App;
use super::super::body::{JsonBody, Name};
use super::super::caller::Caller;
use super::super::error::ApiError;
use super::super::text_answer::{TextApi, answer, count};
use super::super::wire;
use super::chat;

static RESPONSES: TextApi =
    TextApi { path: "/v1/responses", endpoint: chat::PATH, prompt: "input", read: wire::read_responses };

/// Answers a request, and keeps the answer for those that go on from it.
pub(in crate::http) async fn create(
    State(app): State<App>,
    caller: Caller,
    body: JsonBody,
) -> Result<Response, ApiError> {
    answer(app, caller, &RESPONSES, body).await
}

/// How many tokens a request would have.
pub(in crate::http) async fn input_tokens(
    State(app): State<App>,
    caller: Caller,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let tokens = count(app, caller, &RESPONSES, body).await?;
    Ok(Json(json!({"object": "response.input_tokens", "input_tokens": tokens})).into_response())
}

/// An answer that is kept.
pub(in crate::http) async fn retrieve(
    State(app): State<App>,
    caller: Caller,
    Name(id): Name,
) -> Result<Response, ApiError> {
    let kept = app.conversations.get(key(&caller), &id).ok_or_else(|| ApiError::no_response(&id))?;
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], kept.response()).into_response())
}

/// Forgets an answer.
pub(in crate::http) async fn delete(
    State(app): State<App>,
    caller: Caller,
    Name(id): Name,
) -> Result<Response, ApiError> {
    if !app.conversations.forget(key(&caller), &id) {
        return Err(ApiError::no_response(&id));
    }
    Ok(Json(json!({"id": id, "object": "response", "deleted": true})).into_response())
}

fn key(caller: &Caller) -> Option<&str> {
    caller.key().map(|key| key.name.as_str())
}
