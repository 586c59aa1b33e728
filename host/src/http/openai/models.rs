//! `GET /v1/models` and `GET /v1/models/{id}`. They read the configuration alone: listing loads and wakes nothing.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::super::body::Name;
use super::super::error::ApiError;
use super::super::resolve;
use super::super::router::App;
use crate::config::ModelConfig;

/// Every model that can be served, loaded or not.
pub(in crate::http) async fn list(State(app): State<App>) -> Json<Value> {
    let config = app.handle.config();
    let models = config.models.values();
    let data: Vec<_> = models.map(|model| object(model, app.started_s)).collect();
    Json(json!({"object": "list", "data": data}))
}

/// One model, by name or alias; ids may contain slashes.
pub(in crate::http) async fn retrieve(State(app): State<App>, Name(id): Name) -> Result<Json<Value>, ApiError> {
    let config = app.handle.config();
    let model = resolve::by_name(&config, &id)?;
    Ok(Json(object(model, app.started_s)))
}

fn object(model: &ModelConfig, created: u64) -> Value {
    json!({
        "id": model.id,
        "object": "model",
        "created": created,
        "owned_by": "aihost",
        "kind": model.kind,
        "aliases": model.aliases,
    })
}
