//! `GET /admin/options?model=`: what options the plugin of a model takes, by its own word, and which its entry gives.

use std::path::Path;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::app::App;
use super::super::caller::Caller;
use super::super::error::ApiError;
use super::super::resolve;
use crate::worker::Schemas;

/// This program, which describes plugins in a child of its own.
const SELF: &str = "/proc/self/exe";

#[derive(Debug, Deserialize)]
pub(in crate::http) struct OptionsQuery {
    model: Option<String>,
}

/// `GET /admin/options`. A plugin is asked once; `schema` is null where it cannot say, and `note` says why.
pub(in crate::http) async fn options(
    State(app): State<App>,
    caller: Caller,
    query: Result<Query<OptionsQuery>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    let Query(OptionsQuery { model }) =
        query.map_err(|error| ApiError::malformed(format!("the query cannot be read: {error}")))?;
    let name = model.ok_or_else(|| ApiError::missing("model"))?;
    let config = app.handle.config();
    let model = resolve::by_name(&config, &caller, &name)?.clone();
    let described = match app.handle.plugin(&model) {
        Some(plugin) => {
            let (state, sharing) = (config.paths.state.clone(), config.paths.sharing);
            let ask = move || Schemas::new(Path::new(SELF), &state, sharing).get(&plugin);
            tokio::task::spawn_blocking(ask).await.map_err(|error| ApiError::internal(error.to_string()))?
        }
        None => Err(format!("there is no plugin `{}` that could be asked", model.plugin)),
    };
    let (schema, note) = match described {
        Ok(schema) => (Some(schema), None),
        Err(why) => (None, Some(why)),
    };
    Ok(Json(json!({
        "model": model.id, "plugin": model.plugin, "options": model.options, "schema": schema.as_deref(), "note": note,
    })))
}
