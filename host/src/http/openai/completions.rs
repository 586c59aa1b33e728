//! `POST /v1/completions`.

use axum::extract::State;
use axum::response::Response;

use super::super::app::App;
use super::super::body::JsonBody;
use super::super::caller::Caller;
use super::super::error::ApiError;
use super::super::wire::{self, CompletionShape};
use super::{TextEndpoint, answer};

/// Continues each prompt of the body.
pub(in crate::http) async fn create(
    State(app): State<App>,
    caller: Caller,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let job = body.read(wire::parse_completion).await?;
    let endpoint = TextEndpoint { path: "/v1/completions", prompt: "prompt", shape: CompletionShape::new };
    answer(app, &caller, endpoint, job).await
}
