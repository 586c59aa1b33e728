//! OpenAI's endpoints, one file per family.

pub(super) mod audio;
pub(super) mod chat;
pub(super) mod completions;
pub(super) mod images;
pub(super) mod models;
pub(super) mod others;

use aihost_plugin_api::task::Usage;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde_json::json;

use super::app::{App, unix_seconds};
use super::blocking::run_blocking;
use super::caller::Caller;
use super::error::ApiError;
use super::generate::Generation;
use super::resolve::{self, Wanted};
use super::sse;
use super::stream_body::StreamBody;
use super::text_stream::{TEXT_PIECE_BYTES, TextStream};
use super::wire::{Choice, TextDelivery, TextJob, TextShape};
use crate::domain::{Failure, FailureKind, Kind, ModelId};
use crate::runtime::BudgetShare;

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
    mut job: TextJob,
) -> Result<Response, ApiError> {
    let config = app.handle.config();
    let wanted = Wanted { kind: Kind::Text, endpoint: endpoint.path };
    let model = resolve::for_request(&config, caller, job.model.as_deref(), wanted)?;
    job.default_max_tokens(model.default_max_tokens);
    let model = model.id.clone();
    let shape = (endpoint.shape)(&job, model.as_str(), unix_seconds());
    let delivery = job.delivery;
    let mut generation = Generation::new(app.handle.clone(), model.clone(), caller.access().clone(), job);
    let result = if delivery == TextDelivery::Whole {
        match generation.collect().await {
            Ok((choices, share)) => whole(shape, choices, generation.usage(), share).await,
            Err(failure) => Err(failure),
        }
    } else {
        let stream = StreamBody::new(TextStream::new(generation, shape, delivery), TEXT_PIECE_BYTES);
        stream.with_ping(config.limits.sse_ping).respond(sse::CONTENT_TYPE).await
    };
    match result {
        Ok(response) => Ok(response),
        Err(failure) => Err(explain(&app, failure, &model, endpoint.prompt).await),
    }
}

/// Bytes of events up to which an answer in one piece is written where they came.
const INLINE_WRITE_BYTES: usize = 64 << 10;

/// An answer in one piece, and its share of what all of them may hold until it has been sent.
struct WholeAnswer {
    text: Vec<u8>,
    _share: BudgetShare,
}

impl AsRef<[u8]> for WholeAnswer {
    fn as_ref(&self) -> &[u8] {
        &self.text
    }
}

/// Writes an answer in one piece, a long one where it holds nobody up.
async fn whole(
    mut shape: impl TextShape,
    choices: Vec<Choice>,
    usage: Usage,
    share: BudgetShare,
) -> Result<Response, Failure> {
    let is_long = share.bytes() > INLINE_WRITE_BYTES;
    let write = move || WholeAnswer { text: shape.whole(&choices, usage), _share: share };
    let answer = if is_long { run_blocking(move || Ok(write())).await? } else { write() };
    Ok(([(header::CONTENT_TYPE, "application/json")], Bytes::from_owner(answer)).into_response())
}

/// Adds what the failure itself does not know: which field is to blame, how far a load is.
pub(super) async fn explain(app: &App, failure: Failure, model: &ModelId, prompt: &str) -> ApiError {
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
