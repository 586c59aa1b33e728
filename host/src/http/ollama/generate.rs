//! `POST /api/chat` and `POST /api/generate`.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::app::App;
use super::super::body::JsonBody;
use super::super::caller::Caller;
use super::super::error::ApiError;
use super::super::openai::{chat as openai_chat, explain};
use super::super::resolve::{self, Wanted};
use super::super::text_answer::{TextApi, answer};
use super::super::wire;
use crate::domain::Kind;

static CHAT: TextApi =
    TextApi { path: "/api/chat", endpoint: openai_chat::PATH, prompt: "messages", read: wire::read_ollama_chat };
static GENERATE: TextApi =
    TextApi { path: "/api/generate", endpoint: openai_chat::PATH, prompt: "prompt", read: wire::read_ollama_generate };

/// Answers a conversation.
pub(in crate::http) async fn chat(
    State(app): State<App>,
    caller: Caller,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let nothing = json!({"message": {"role": "assistant", "content": ""}});
    serve(app, caller, &CHAT, body, nothing).await
}

/// Answers a prompt.
pub(in crate::http) async fn generate(
    State(app): State<App>,
    caller: Caller,
    body: JsonBody,
) -> Result<Response, ApiError> {
    serve(app, caller, &GENERATE, body, json!({"response": ""})).await
}

/// Answers; a request without anything to answer loads the model, or unloads it if it is to be kept for no time.
async fn serve(
    app: App,
    caller: Caller,
    api: &'static TextApi,
    body: JsonBody,
    nothing: Value,
) -> Result<Response, ApiError> {
    let Some(bare) = body.clone().read(wire::parse_bare).await? else { return answer(app, caller, api, body).await };
    let config = app.handle.config();
    let wanted = Wanted { kind: Kind::Text, endpoint: api.path };
    let model = resolve::for_request(&config, &caller, bare.model.as_deref(), wanted)?.id.clone();
    let access = caller.access().clone();
    let done = match bare.unloads {
        true => app.handle.unload(model.clone(), None, access).await,
        false => app.handle.load(model.clone(), access).await,
    };
    app.listings.command_done();
    if let Err(failure) = done {
        return Err(explain(&app, failure, &model, "model").await);
    }
    let mut told = nothing;
    told["model"] = bare.model.unwrap_or_else(|| model.to_string()).into();
    told["created_at"] = Timestamp::now().to_string().into();
    told["done"] = true.into();
    told["done_reason"] = if bare.unloads { "unload" } else { "load" }.into();
    Ok(Json(told).into_response())
}
