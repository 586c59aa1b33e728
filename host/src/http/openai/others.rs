//! OpenAI's endpoints for which no plugin makes anything: they are answered by models whose engines speak HTTP themselves, which
//! have been asked by the time that a request comes here.

use axum::extract::{OriginalUri, State};
use axum::response::Response;

use super::super::app::App;
use super::super::body::JsonBody;
use super::super::caller::Caller;
use super::super::error::ApiError;
use super::super::resolve;
use super::super::wire;

/// Says who would answer.
pub(in crate::http) async fn create(
    State(app): State<App>,
    caller: Caller,
    OriginalUri(uri): OriginalUri,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let name = body.read(wire::parse_name).await?;
    let config = app.handle.config();
    let Some(name) = name else {
        return Err(ApiError::missing_model("and no model here answers this endpoint by itself"));
    };
    let model = resolve::by_name(&config, &caller, &name)?;
    Err(resolve::wrong_kind(model, uri.path()))
}
