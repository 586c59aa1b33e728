//! `POST /v1/completions`.

use axum::extract::State;
use axum::response::Response;

use super::super::body::JsonObject;
use super::super::error::ApiError;
use super::super::router::App;
use super::super::wire::{self, CompletionShape};
use super::{TextEndpoint, answer};

/// Continues prompts.
pub(in crate::http) async fn create(
    State(app): State<App>,
    JsonObject(body): JsonObject,
) -> Result<Response, ApiError> {
    let job = wire::parse_completion(&body)?;
    let endpoint = TextEndpoint { path: "/v1/completions", prompt: "prompt", shape: CompletionShape::new };
    answer(app, endpoint, job).await
}
