//! `POST /v1/chat/completions`.

use axum::extract::State;
use axum::response::Response;

use super::super::app::App;
use super::super::body::JsonBody;
use super::super::caller::Caller;
use super::super::error::ApiError;
use super::super::wire::{self, ChatShape};
use super::{TextEndpoint, answer};

/// Answers a conversation.
pub(in crate::http) async fn create(
    State(app): State<App>,
    caller: Caller,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let job = body.read(wire::parse_chat).await?;
    let endpoint = TextEndpoint { path: "/v1/chat/completions", prompt: "messages", shape: ChatShape::new };
    answer(app, &caller, endpoint, job).await
}
