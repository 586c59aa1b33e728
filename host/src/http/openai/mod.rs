//! OpenAI's endpoints, one file per family.

pub(super) mod audio;
pub(super) mod chat;
pub(super) mod completions;
pub(super) mod embeddings;
pub(super) mod images;
pub(super) mod models;
pub(super) mod others;
pub(super) mod responses;
pub(super) mod tokens;

use serde_json::json;

use super::app::App;
use super::error::ApiError;
use crate::domain::{Failure, FailureKind, ModelId};

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
