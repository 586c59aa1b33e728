//! OpenAI's endpoints, one file per family.

pub(super) mod audio;
pub(super) mod chat;
pub(super) mod completions;
pub(super) mod images;
pub(super) mod models;

use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::app::{App, unix_seconds};
use super::caller::Caller;
use super::error::ApiError;
use super::generate::Generation;
use super::resolve::{self, Wanted};
use super::sse;
use super::stream_body::StreamBody;
use super::text_stream::{TEXT_PIECE_BYTES, TextStream};
use super::wire::{TextDelivery, TextJob, TextShape};
use crate::domain::{Failure, FailureKind, Kind, ModelId};

/// A text endpoint: where it is, what its prompt is called, and what shape its answers have.
struct TextEndpoint<S> {
    path: &'static str,
    prompt: &'static str,
    shape: fn(&TextJob, &str, u64) -> S,
}

/// Resolves the model, runs the request and writes the answer.
async fn answer<S: TextShape + Unpin>(
    app: App,
    caller: &Caller,
    endpoint: TextEndpoint<S>,
    job: TextJob,
) -> Result<Response, ApiError> {
    let config = app.handle.config();
    let wanted = Wanted { kind: Kind::Text, endpoint: endpoint.path };
    let model = resolve::for_request(&config, caller, job.model.as_deref(), wanted)?.id.clone();
    let mut shape = (endpoint.shape)(&job, model.as_str(), unix_seconds());
    let delivery = job.delivery;
    let mut generation = Generation::new(app.handle.clone(), model.clone(), job);
    let result = if delivery == TextDelivery::Whole {
        generation.collect().await.map(|choices| {
            let body = shape.whole(&choices, generation.usage());
            ([(header::CONTENT_TYPE, "application/json")], body).into_response()
        })
    } else {
        let stream = StreamBody::new(TextStream::new(generation, shape, delivery), TEXT_PIECE_BYTES);
        stream.with_ping(config.limits.sse_ping).respond(sse::CONTENT_TYPE).await
    };
    match result {
        Ok(response) => Ok(response),
        Err(failure) => Err(explain(&app, failure, &model, endpoint.prompt).await),
    }
}

/// Adds what the failure itself does not know: which field is to blame, how far a load is.
async fn explain(app: &App, failure: Failure, model: &ModelId, prompt: &str) -> ApiError {
    match failure.kind {
        FailureKind::ContextLength => ApiError::from(failure).param(prompt),
        FailureKind::StillLoading => {
            let error = ApiError::from(failure);
            match app.handle.status(model.clone()).await.ok().flatten() {
                Some(status) => {
                    let mut loading = json!({"state": status.state, "progress": status.progress});
                    if let Some(step) = status.step {
                        loading["step"] = json!(step);
                    }
                    error.loading(loading)
                }
                None => error,
            }
        }
        _ => failure.into(),
    }
}

/// The same, and the field that a model's own refusal begins with.
async fn refusal(app: &App, failure: Failure, model: &ModelId, fields: &[&'static str]) -> ApiError {
    let first = failure.message.split(' ').next().unwrap_or_default();
    let blamed = fields.iter().find(|field| failure.kind == FailureKind::InvalidRequest && **field == first).copied();
    let error = explain(app, failure, model, "prompt").await;
    match blamed {
        Some(field) => error.param(field),
        None => error,
    }
}
