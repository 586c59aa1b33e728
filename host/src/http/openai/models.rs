//! `GET /v1/models` and `GET /v1/models/{id}`. They read the configuration alone: listing loads and wakes nothing.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::super::app::App;
use super::super::body::Name;
use super::super::caller::Caller;
use super::super::error::ApiError;
use super::super::resolve;
use super::super::wire;
use crate::config::{Config, ModelConfig};
use crate::domain::{Kind, ModelId};

/// A model, as clients list it.
#[derive(Serialize)]
struct ModelObject<'a> {
    id: &'a ModelId,
    object: &'a str,
    created: u64,
    owned_by: &'a str,
    kind: Kind,
    aliases: &'a [String],
}

/// All of them.
#[derive(Serialize)]
struct ModelList<'a> {
    object: &'a str,
    #[serde(serialize_with = "objects")]
    data: (&'a Config, &'a Caller, u64),
}

/// Every model that can be served to whoever asks, loaded or not.
pub(in crate::http) async fn list(State(app): State<App>, caller: Caller) -> Result<Response, ApiError> {
    let (config, created) = (app.handle.config(), app.started_s);
    let seen_by = caller.clone();
    let write =
        move |config: Arc<Config>| Ok(wire::json(&ModelList { object: "list", data: (&config, &seen_by, created) }));
    let list = app.listings.models.get(&app, &caller, async { Ok(config) }, write).await?;
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], list).into_response())
}

/// One model, by name or alias; ids may contain slashes.
pub(in crate::http) async fn retrieve(
    State(app): State<App>,
    caller: Caller,
    Name(id): Name,
) -> Result<Response, ApiError> {
    let config = app.handle.config();
    let model = resolve::by_name(&config, &caller, &id)?;
    Ok(Json(object(model, app.started_s)).into_response())
}

fn object(model: &ModelConfig, created: u64) -> ModelObject<'_> {
    let ModelConfig { id, kind, aliases, .. } = model;
    ModelObject { id, object: "model", created, owned_by: "aihost", kind: *kind, aliases }
}

/// Written one by one: there may be many.
fn objects<S: serde::Serializer>(
    (config, caller, created): &(&Config, &Caller, u64),
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(resolve::seen(config, caller).map(|model| object(model, *created)))
}
