//! Which routes an engine is known to lack: its first request at one tells, once for each start of it.

use std::collections::HashMap;
use std::time::Duration;

use axum::http::StatusCode;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::app::App;
use crate::config::ModelConfig;
use crate::domain::ModelId;

/// How long it is believed of an engine whose starts this host does not see.
const BELIEVED_FOR: Duration = Duration::from_secs(60);

/// What is known of all engines.
#[derive(Debug, Default)]
pub(super) struct EngineRoutes {
    lacking: Mutex<HashMap<(ModelId, &'static str), Lack>>,
}

/// A route was not there.
#[derive(Clone, Copy, Debug)]
struct Lack {
    /// Loads of the model by then.
    loads: u64,
    seen: Instant,
}

/// Whether a status says that there is no such route.
pub(super) fn is_no_route(status: StatusCode) -> bool {
    matches!(status, StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED)
}

/// Whether the engine of a model, as it runs now, is known to lack a route.
pub(super) async fn lacks(app: &App, model: &ModelConfig, path: &'static str) -> bool {
    let known = app.engine_routes.lacking.lock().get(&(model.id.clone(), path)).copied();
    let Some(Lack { loads, seen }) = known else { return false };
    if model.http.remote.is_some() && seen.elapsed() >= BELIEVED_FOR {
        return false;
    }
    loads_of(app, model).await == loads
}

/// The engine of a model has said that it lacks a route.
pub(super) async fn learn(app: &App, model: &ModelConfig, path: &'static str) {
    let lack = Lack { loads: loads_of(app, model).await, seen: Instant::now() };
    app.engine_routes.lacking.lock().insert((model.id.clone(), path), lack);
}

async fn loads_of(app: &App, model: &ModelConfig) -> u64 {
    app.handle.status(model.id.clone()).await.ok().flatten().map_or(0, |status| status.loads)
}
