//! `POST /api/embed` and its older form `POST /api/embeddings`: asked of engines at OpenAI's route.

use std::time::Instant;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::super::app::App;
use super::super::body::JsonBody;
use super::super::caller::Caller;
use super::super::engine_text::ask_json;
use super::super::error::ApiError;
use super::super::resolve::{self, Wanted};
use super::super::wire;
use crate::domain::Kind;

/// Where engines answer.
const EMBEDDINGS: &str = "/v1/embeddings";

/// The embeddings of texts.
pub(in crate::http) async fn embed(
    State(app): State<App>,
    caller: Caller,
    body: JsonBody,
) -> Result<Json<Value>, ApiError> {
    let begun = Instant::now();
    let (model, mut answer) = asked(&app, &caller, body, "/api/embed").await?;
    let embeddings = taken(&mut answer);
    let took = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let tokens = answer["usage"]["prompt_tokens"].as_u64().unwrap_or_default();
    Ok(Json(json!({
        "model": model, "embeddings": embeddings, "total_duration": took, "load_duration": 0, "prompt_eval_count": tokens,
    })))
}

/// The embedding of a text.
pub(in crate::http) async fn embeddings(
    State(app): State<App>,
    caller: Caller,
    body: JsonBody,
) -> Result<Json<Value>, ApiError> {
    let (_, mut answer) = asked(&app, &caller, body, "/api/embeddings").await?;
    let embedding = taken(&mut answer).into_iter().next().unwrap_or_else(|| json!([]));
    Ok(Json(json!({"embedding": embedding})))
}

/// What the engine of the model that is meant says, and the name by which it was asked for.
async fn asked(app: &App, caller: &Caller, body: JsonBody, path: &'static str) -> Result<(String, Value), ApiError> {
    let (name, asked) = body.read(wire::parse_embed).await?;
    let config = app.handle.config();
    let model = match &name {
        // Engines of text embed as well.
        Some(name) => resolve::by_name(&config, caller, name)?,
        None => resolve::for_request(&config, caller, None, Wanted { kind: Kind::Embedding, endpoint: EMBEDDINGS })?,
    };
    if !app.handle.speaks_http(model) {
        return Err(resolve::wrong_kind(model, path));
    }
    let answer = ask_json(app, caller, model, EMBEDDINGS, asked).await?;
    Ok((name.unwrap_or_else(|| model.id.to_string()), answer))
}

/// The vectors of an answer of OpenAI's, in order.
fn taken(answer: &mut Value) -> Vec<Value> {
    let data = answer["data"].as_array_mut().map(std::mem::take).unwrap_or_default();
    data.into_iter().map(|mut item| item["embedding"].take()).collect()
}
