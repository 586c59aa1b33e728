//! `POST /v1/completions`.

use axum::extract::State;
use axum::response::Response;

use super::super::app::App;
use super::super::body::JsonBody;
use super::super::caller::Caller;
use super::super::error::ApiError;
use super::super::text_answer::{TextApi, answer};
use super::super::wire;

/// Where it is.
pub(in crate::http) const PATH: &str = "/v1/completions";
static COMPLETIONS: TextApi = TextApi { path: PATH, endpoint: PATH, prompt: "prompt", read: wire::read_completion };

/// Continues each prompt of the body.
pub(in crate::http) async fn create(
    State(app): State<App>,
    caller: Caller,
    body: JsonBody,
) -> Result<Response, ApiError> {
    answer(app, caller, &COMPLETIONS, body).await
}
