//! Which path is answered by what.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::Request;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};

use super::error::ApiError;
use super::openai::{chat, completions, models};
use super::{admin, edge};
use crate::runtime::Handle;

/// What every endpoint may use. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct App {
    /// The way to the runtime and the configuration.
    pub(super) handle: Handle,
    /// When the host started, in seconds since 1970: `created` of every model.
    pub(super) started_s: u64,
}

/// All endpoints over this runtime.
pub fn router(handle: Handle) -> Router {
    let app = App { handle, started_s: unix_seconds() };
    Router::new()
        .route("/v1/chat/completions", post(chat::create))
        .route("/chat/completions", post(chat::create))
        .route("/v1/completions", post(completions::create))
        .route("/completions", post(completions::create))
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
