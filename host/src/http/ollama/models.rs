//! What Ollama's clients ask of models: `GET /api/tags`, `POST /api/show`, `GET /api/ps`, `GET /api/version`. Nothing here loads
//! or wakes any.

use std::sync::Arc;

use aihost_plugin_api::ModelFacts;
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::super::app::App;
use super::super::body::JsonBody;
use super::super::caller::Caller;
use super::super::error::ApiError;
use super::super::openai::models::capabilities;
use super::super::resolve;
use super::super::wire;
use crate::config::{Config, ModelConfig};
use crate::domain::ModelState;
use crate::runtime::ModelStatus;

/// The version of Ollama whose API this is: clients ask before they use what is newer.
const VERSION: &str = "0.12.6";

/// What stands for ever, which Ollama's clients are told as a time: a hundred years.
const FOR_EVER: std::time::Duration = std::time::Duration::from_secs(100 * 365 * 24 * 3600);

/// `GET /api/version`.
pub(in crate::http) async fn version() -> Json<Value> {
    Json(json!({"version": VERSION}))
}

/// `GET /api/tags`: every model that there is for whoever asks.
pub(in crate::http) async fn tags(State(app): State<App>, caller: Caller) -> Result<Response, ApiError> {
    let (config, modified) = (app.handle.config(), time(app.started_s));
    let (seen_by, handle) = (caller.clone(), app.handle.clone());
    let write = move |config: Arc<Config>| {
        let models = resolve::seen(&config, &seen_by).map(|model| tag(model, &handle.facts(model), &modified));
        Ok(wire::json(&json!({"models": models.collect::<Vec<_>>()})))
    };
    let list = app.listings.tags.get(&app, &caller, async { Ok(config) }, write).await?;
    Ok(json_reply(list))
}

/// `POST /api/show`: one of them.
pub(in crate::http) async fn show(
    State(app): State<App>,
    caller: Caller,
    body: JsonBody,
) -> Result<Json<Value>, ApiError> {
    let name = body.read(wire::parse_shown).await?.ok_or_else(|| ApiError::missing("model"))?;
    let config = app.handle.config();
    let model = resolve::by_name(&config, &caller, &name)?;
    let facts = app.handle.facts(model);
    Ok(Json(json!({
        "license": "",
        "modelfile": format!("# an entry of models.yaml\nFROM {}\n", model.id),
        "parameters": "",
        "details": details(model, &facts),
        "template": facts.chat_template.as_deref().unwrap_or_default(),
        "model_info": info(model, &facts),
        "capabilities": capabilities(model.kind, &facts),
        "modified_at": time(app.started_s),
    })))
}

/// `GET /api/ps`: those that are loaded.
pub(in crate::http) async fn ps(State(app): State<App>, caller: Caller) -> Result<Response, ApiError> {
    let (handle, config, modified) = (app.handle.clone(), app.handle.config(), time(app.started_s));
    let (seen_by, known) = (caller.clone(), app.handle.clone());
    let write = move |models: Vec<ModelStatus>| {
        let up = models.iter().filter(|status| is_up(status) && seen_by.sees(status.id.as_str()));
        let entries = up.filter_map(|status| {
            let model = config.models.get(&status.id)?;
            Some(loaded(model, status, &known.facts(model), &modified))
        });
        Ok(wire::json(&json!({"models": entries.collect::<Vec<_>>()})))
    };
    Ok(json_reply(app.listings.loaded.get(&app, &caller, async move { handle.models().await }, write).await?))
}

/// `GET /running`: the same as llama-swap tells it.
pub(in crate::http) async fn running(State(app): State<App>, caller: Caller) -> Result<Response, ApiError> {
    let handle = app.handle.clone();
    let seen_by = caller.clone();
    let write = move |models: Vec<ModelStatus>| {
        let seen = models.iter().filter(|status| seen_by.sees(status.id.as_str()));
        let entries = seen.filter_map(|status| Some(json!({"model": status.id, "state": swap_state(status.state)?})));
        Ok(wire::json(&json!({"running": entries.collect::<Vec<_>>()})))
    };
    Ok(json_reply(app.listings.running.get(&app, &caller, async move { handle.models().await }, write).await?))
}

/// A state in llama-swap's words; nothing for a model that it would not list.
fn swap_state(state: ModelState) -> Option<&'static str> {
    Some(match state {
        ModelState::Hot | ModelState::Draining => "ready",
        ModelState::Starting | ModelState::Loading | ModelState::Unparking => "starting",
        ModelState::Stopping | ModelState::Parking => "stopping",
        _ => return None,
    })
}

/// `GET /` for whoever reads no pages, and `HEAD /`: what clients and health checks of Ollama look for.
pub(in crate::http) async fn root() -> &'static str {
    "Ollama is running"
}

fn json_reply(list: Bytes) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], list).into_response()
}

/// A model that is loaded.
fn loaded(model: &ModelConfig, status: &ModelStatus, facts: &ModelFacts, modified: &str) -> Value {
    let mut entry = tag(model, facts, modified);
    if let Some(context) = facts.context_length {
        entry["context_length"] = context.into();
    }
    let on_card = status.device.as_deref().is_some_and(|device| device != "cpu");
    entry["size"] = status.measured.unwrap_or_default().max(status.memory).into();
    entry["size_vram"] = if on_card { status.memory } else { 0 }.into();
    entry["expires_at"] = expiry(model, status).into();
    entry
}

fn is_up(model: &ModelStatus) -> bool {
    matches!(model.state, ModelState::Hot | ModelState::Draining)
}

fn tag(model: &ModelConfig, facts: &ModelFacts, modified: &str) -> Value {
    // There is no manifest whose digest that could be; an entry keeps its own.
    let digest: String = Sha256::digest(model.id.as_str()).iter().map(|byte| format!("{byte:02x}")).collect();
    json!({
        "name": model.id, "model": model.id, "modified_at": modified, "size": facts.bytes.unwrap_or_default(),
        "digest": digest, "details": details(model, facts),
    })
}

fn details(model: &ModelConfig, facts: &ModelFacts) -> Value {
    let family = facts.architecture.as_deref().unwrap_or(&model.plugin);
    json!({
        "parent_model": "", "format": "", "family": family, "families": [family],
        "parameter_size": facts.parameters.map(rounded).unwrap_or_default(),
        "quantization_level": facts.quantization.as_deref().unwrap_or_default(),
    })
}

/// So many weights, as people say it: `135M`, `8.0B`.
fn rounded(parameters: u64) -> String {
    match parameters {
        0..1_000_000_000 => format!("{}M", parameters / 1_000_000),
        _ => format!("{}.{}B", parameters / 1_000_000_000, parameters / 100_000_000 % 10),
    }
}

/// What is known of the weights, under the names of GGUF's metadata.
fn info(model: &ModelConfig, facts: &ModelFacts) -> Value {
    let family = facts.architecture.as_deref().unwrap_or(&model.plugin);
    let mut info = json!({"general.architecture": family, "general.basename": model.id});
    for (name, value) in [
        ("general.parameter_count".to_owned(), facts.parameters),
        (format!("{family}.context_length"), facts.context_length.map(u64::from)),
        (format!("{family}.embedding_length"), facts.embedding_length.map(u64::from)),
        (format!("{family}.vocab_size"), facts.vocabulary.map(u64::from)),
    ] {
        if let Some(value) = value {
            info[name] = value.into();
        }
    }
    info
}

/// When a model that nobody asks for would go.
fn expiry(model: &ModelConfig, status: &ModelStatus) -> String {
    let now = Timestamp::now();
    let idle = std::time::Duration::from_millis(status.idle_ms.unwrap_or_default());
    let left = model.keep_alive.map(|kept| kept.saturating_sub(idle));
    // Ollama says so of what stays for ever.
    let left = left.unwrap_or(FOR_EVER);
    now.checked_add(left).unwrap_or(Timestamp::MAX).to_string()
}

fn time(seconds: u64) -> String {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH).to_string()
}
