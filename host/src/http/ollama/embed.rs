//! `POST /api/embed` and its older form `POST /api/embeddings`: asked of plugins, and of engines at OpenAI's route.

use std::time::Instant;

use aihost_plugin_api::task::EmbeddingForm;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::super::app::App;
use super::super::body::JsonBody;
use super::super::caller::Caller;
use super::super::embedding_output::Embedded;
use super::super::engine_text::ask_json;
use super::super::error::ApiError;
use super::super::openai::embeddings::{self, PATH, reply};
use super::super::resolve::{self, Wanted};
use super::super::wire;
use crate::domain::Kind;

/// What a model says to a request of either form.
enum Said {
    /// An engine, in OpenAI's form.
    Engine(Value),
    Plugin(Embedded),
}

/// The embeddings of texts.
pub(in crate::http) async fn embed(
    State(app): State<App>,
    caller: Caller,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let begun = Instant::now();
    let (model, said) = asked(&app, &caller, body, "/api/embed").await?;
    let took = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let mut answer = match said {
        Said::Engine(answer) => answer,
        Said::Plugin(embedded) => {
            let write = move || {
                let vectors: Vec<&[f32]> = embedded.vectors().collect();
                wire::ollama_embeddings(&vectors, &model, embedded.prompt_tokens, took)
            };
            return reply(write).await;
        }
    };
    let embeddings = taken(&mut answer);
    let tokens = answer["usage"]["prompt_tokens"].as_u64().unwrap_or_default();
    Ok(Json(json!({
        "model": model, "embeddings": embeddings, "total_duration": took, "load_duration": 0, "prompt_eval_count": tokens,
    }))
    .into_response())
}

/// The embedding of a text.
pub(in crate::http) async fn embeddings(
    State(app): State<App>,
    caller: Caller,
    body: JsonBody,
) -> Result<Response, ApiError> {
    match asked(&app, &caller, body, "/api/embeddings").await?.1 {
        Said::Engine(mut answer) => {
            let embedding = taken(&mut answer).into_iter().next().unwrap_or_else(|| json!([]));
            Ok(Json(json!({"embedding": embedding})).into_response())
        }
        Said::Plugin(embedded) => {
            reply(move || wire::ollama_embedding(embedded.vectors().next().unwrap_or_default())).await
        }
    }
}

/// What the model that is meant says, and the name by which it was asked for.
async fn asked(app: &App, caller: &Caller, body: JsonBody, path: &'static str) -> Result<(String, Said), ApiError> {
    let (name, asked) = body.clone().read(wire::parse_embed).await?;
    let config = app.handle.config();
    let model = match &name {
        // Engines of text embed as well.
        Some(name) => resolve::by_name(&config, caller, name)?,
        None => resolve::for_request(&config, caller, None, Wanted { kind: Kind::Embedding, endpoint: PATH })?,
    };
    let named = name.unwrap_or_else(|| model.id.to_string());
    if app.handle.speaks_http(model) {
        return Ok((named, Said::Engine(ask_json(app, caller, model, PATH, asked).await?)));
    }
    if model.kind != Kind::Embedding {
        return Err(resolve::wrong_kind(model, path));
    }
    let (job, field) = body.read(wire::parse_texts).await?;
    let embedded = embeddings::ask(app, caller, &model.id, (EmbeddingForm::Vector, field), job).await?;
    Ok((named, Said::Plugin(embedded)))
}

/// The vectors of an answer of OpenAI's, in order.
fn taken(answer: &mut Value) -> Vec<Value> {
    let data = answer["data"].as_array_mut().map(std::mem::take).unwrap_or_default();
    data.into_iter().map(|mut item| item["embedding"].take()).collect()
}
