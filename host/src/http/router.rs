//! Which path is answered by what, and how large a body it reads.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::Request;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use axum::{Extension, Router};

use super::bodies::Bodies;
use super::body::BodySize;
use super::error::ApiError;
use super::openai::{audio, chat, completions, images, models};
use super::{admin, artifacts, edge};
use crate::runtime::Handle;
use crate::store::Artifacts;

/// What every endpoint may use. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct App {
    /// The way to the runtime and the configuration.
    pub(super) handle: Handle,
    /// When the host started, in seconds since 1970: `created` of every model.
    pub(super) started_s: u64,
    /// Files that answers name by URL.
    pub(super) artifacts: Arc<Artifacts>,
    /// The bytes of all requests.
    pub(super) bodies: Arc<Bodies>,
}

/// All endpoints over this runtime.
pub fn router(handle: Handle) -> Router {
    let artifacts = artifacts(&handle);
    over(handle, artifacts)
}

/// The store of this host's state folder.
pub(super) fn artifacts(handle: &Handle) -> Arc<Artifacts> {
    Arc::new(Artifacts::new(handle.config().paths.state.join("artifacts")))
}

/// All endpoints over this runtime and this store.
pub(super) fn over(handle: Handle, artifacts: Arc<Artifacts>) -> Router {
    let app = App { handle, started_s: unix_seconds(), artifacts, bodies: Arc::default() };
    let [text, prompt, files] = [BodySize::Text, BodySize::Prompt, BodySize::Files].map(Extension);
    Router::new()
        .route("/v1/chat/completions", post(chat::create).layer(text))
        .route("/chat/completions", post(chat::create).layer(text))
        .route("/v1/completions", post(completions::create).layer(text))
        .route("/completions", post(completions::create).layer(text))
        .route("/v1/audio/generations", post(audio::create).layer(prompt))
        .route("/v1/audio/speech", post(audio::speech).layer(prompt))
        .route("/v1/images/generations", post(images::create).layer(prompt))
        .route("/v1/images/edits", post(images::unserved).layer(files))
        .route("/v1/images/variations", post(images::unserved).layer(files))
        .route("/artifacts/{name}", get(artifacts::get))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::retrieve))
        .route("/models", get(admin::models))
        .route("/models/load", post(admin::load))
        .route("/models/unload", post(admin::unload))
        .route("/models/park", post(admin::park))
        .route("/admin/plan", get(admin::plan))
        .route("/admin/status", get(admin::status))
        .route("/metrics", get(admin::metrics))
        .route("/logs/{*model}", get(admin::logs))
        .route("/health", get(admin::health))
        .route("/livez", get(admin::livez))
        .route("/readyz", get(admin::readyz))
        .route("/ping", get(admin::ping))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(app.clone(), edge::edge))
        .with_state(app)
}

/// Seconds since 1970.
pub(super) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

async fn unknown_path(request: Request) -> ApiError {
    ApiError::unknown_path(request.method().as_str(), request.uri().path())
}

async fn wrong_method(request: Request) -> ApiError {
    ApiError::wrong_method(request.method().as_str(), request.uri().path())
}
