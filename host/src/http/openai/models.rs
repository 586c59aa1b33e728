//! `GET /v1/models`, `GET /v1/models/{id}` and llama.cpp's `GET /props`: what there is to know of models before one is asked.
//! Nothing here loads or wakes any.

use std::collections::HashMap;
use std::sync::Arc;

use aihost_plugin_api::ModelFacts;
use axum::Json;
use axum::extract::{OriginalUri, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Value, json};

use super::super::app::App;
use super::super::body::Name;
use super::super::caller::Caller;
use super::super::engine_text;
use super::super::error::ApiError;
use super::super::page_key::{pairs, percent_decoded};
use super::super::resolve::{self, Wanted};
use super::super::wire;
use crate::config::{Config, ModelConfig};
use crate::domain::{Kind, ModelId, ModelState};
use crate::runtime::{Handle, ModelStatus};

/// What a request for text to a plugin may say of how tokens are chosen and where they end.
const TEXT_PARAMETERS: [&str; 17] = [
    "frequency_penalty",
    "logit_bias",
    "logprobs",
    "max_completion_tokens",
    "max_tokens",
    "min_p",
    "n",
    "presence_penalty",
    "repetition_penalty",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "temperature",
    "top_k",
    "top_logprobs",
    "top_p",
];

/// Where llama.cpp's server tells of its model.
const PROPS: &str = "/props";

/// A model, as clients list it.
#[derive(Serialize)]
struct ModelObject<'a> {
    id: &'a ModelId,
    object: &'a str,
    created: u64,
    owned_by: &'a str,
    kind: Kind,
    aliases: &'a [String],
    /// Where it stands; `null` while nobody can tell.
    state: Option<ModelState>,
    /// Tokens of prompt and answer together, by the names under which clients look for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    context_length: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_model_len: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    meta: Option<Meta<'a>>,
    architecture: Modalities,
    capabilities: Vec<&'a str>,
    supported_parameters: Vec<&'a str>,
}

/// What is known of the weights, in llama.cpp's words.
#[derive(Serialize)]
struct Meta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    n_ctx: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    n_ctx_train: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    n_vocab: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    n_embd: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    n_params: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    architecture: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    quantization: Option<&'a str>,
}

/// What goes in and what comes out, in OpenRouter's words.
#[derive(Serialize)]
struct Modalities {
    input_modalities: Vec<&'static str>,
    output_modalities: Vec<&'static str>,
}

/// All of them.
#[derive(Serialize)]
struct ModelList<'a> {
    object: &'a str,
    data: Vec<ModelObject<'a>>,
}

/// Every model that can be served to whoever asks, loaded or not.
pub(in crate::http) async fn list(State(app): State<App>, caller: Caller) -> Result<Response, ApiError> {
    let (config, created) = (app.handle.config(), app.started_s);
    let (handle, seen_by) = (app.handle.clone(), caller.clone());
    let listed = app.handle.clone();
    let write = move |models: Vec<ModelStatus>| {
        let states: HashMap<&str, ModelState> =
            models.iter().map(|status| (status.id.as_str(), status.state)).collect();
        let seen: Vec<&ModelConfig> = resolve::seen(&config, &seen_by).collect();
        let facts: Vec<ModelFacts> = seen.iter().map(|model| handle.facts(model)).collect();
        let mut data = Vec::with_capacity(seen.len());
        for (model, facts) in seen.into_iter().zip(&facts) {
            let state = states.get(model.id.as_str()).copied();
            data.push(object(&handle, model, facts, state, created));
        }
        Ok(wire::json(&ModelList { object: "list", data }))
    };
    let list = app
        .listings
        .models
        .get(&app, &caller, async move { Ok(listed.models().await.unwrap_or_default()) }, write)
        .await?;
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
    let state = app.handle.status(model.id.clone()).await.ok().flatten().map(|status| status.state);
    let facts = app.handle.facts(model);
    Ok(Json(object(&app.handle, model, &facts, state, app.started_s)).into_response())
}

/// `GET /props?model=`: the same of a text model, as llama.cpp's server tells it. An engine that is up and has the route says more
/// than is known here.
pub(in crate::http) async fn props(
    State(app): State<App>,
    caller: Caller,
    OriginalUri(uri): OriginalUri,
) -> Result<Json<Value>, ApiError> {
    let named = pairs(&uri).find_map(|pair| pair.strip_prefix("model=").map(percent_decoded));
    let named = named.map(|name| String::from_utf8_lossy(&name).into_owned());
    let config: Arc<Config> = app.handle.config();
    let wanted = Wanted { kind: Kind::Text, endpoint: super::chat::PATH };
    let model = resolve::for_request(&config, &caller, named.as_deref(), wanted)?;
    if app.handle.speaks_http(model)
        && let Some(told) = engine_text::look(&app, &caller, model, PROPS).await
    {
        return Ok(Json(told));
    }
    let facts = app.handle.facts(model);
    Ok(Json(json!({
        "model_alias": model.id,
        "model_path": "",
        "total_slots": 1,
        "chat_template": facts.chat_template.as_deref().unwrap_or_default(),
        "default_generation_settings": {"n_ctx": facts.context_length.unwrap_or_default()},
        "modalities": {"vision": facts.can("vision"), "audio": false},
        "build_info": concat!("aihost ", env!("CARGO_PKG_VERSION")),
    })))
}

fn object<'a>(
    handle: &Handle,
    model: &'a ModelConfig,
    facts: &'a ModelFacts,
    state: Option<ModelState>,
    created: u64,
) -> ModelObject<'a> {
    let ModelConfig { id, kind, aliases, .. } = model;
    let meta = Meta {
        n_ctx: facts.context_length,
        n_ctx_train: facts.trained_context_length,
        n_vocab: facts.vocabulary,
        n_embd: facts.embedding_length,
        n_params: facts.parameters,
        size: facts.bytes,
        architecture: facts.architecture.as_deref(),
        quantization: facts.quantization.as_deref(),
    };
    let is_known = *facts != ModelFacts::default();
    // What an engine takes, it says itself.
    let is_of_plugin = *kind == Kind::Text && !handle.speaks_http(model);
    let parameters =
        if is_of_plugin { parameters(facts, handle.keeps_grammar(model) == Some(true)) } else { Vec::new() };
    ModelObject {
        id,
        object: "model",
        created,
        owned_by: "aihost",
        kind: *kind,
        aliases,
        state,
        context_length: facts.context_length,
        max_model_len: facts.context_length,
        meta: is_known.then_some(meta),
        architecture: modalities(*kind, facts),
        capabilities: capabilities(*kind, facts),
        supported_parameters: parameters,
    }
}

fn parameters(facts: &ModelFacts, keeps_grammar: bool) -> Vec<&'static str> {
    let mut parameters = TEXT_PARAMETERS.to_vec();
    if facts.can("tools") {
        parameters.extend(["tools", "tool_choice", "parallel_tool_calls"]);
    }
    if keeps_grammar {
        parameters.extend(["response_format", "structured_outputs"]);
    }
    if facts.can("thinking") || facts.can("reasoning") {
        parameters.extend(["reasoning", "reasoning_effort"]);
    }
    parameters
}

/// What a model can, in Ollama's words.
pub(in crate::http) fn capabilities(kind: Kind, facts: &ModelFacts) -> Vec<&str> {
    let mut capabilities = match kind {
        Kind::Text => vec!["completion"],
        Kind::Embedding => vec!["embedding"],
        _ => Vec::new(),
    };
    for ability in &facts.abilities {
        let known = match ability.as_str() {
            "fill_in" => "insert",
            "reasoning" => "thinking",
            other => other,
        };
        if !capabilities.contains(&known) {
            capabilities.push(known);
        }
    }
    capabilities
}

fn modalities(kind: Kind, facts: &ModelFacts) -> Modalities {
    let (mut input_modalities, output) = match kind {
        Kind::Text => (vec!["text"], "text"),
        Kind::Embedding => (vec!["text"], "embeddings"),
        Kind::Image => (vec!["text"], "image"),
        Kind::Audio | Kind::Speech => (vec!["text"], "audio"),
        Kind::Transcription => (vec!["audio"], "text"),
        Kind::Custom => (Vec::new(), ""),
    };
    if facts.can("vision") {
        input_modalities.push("image");
    }
    let output_modalities = if output.is_empty() { Vec::new() } else { vec![output] };
    Modalities { input_modalities, output_modalities }
}
