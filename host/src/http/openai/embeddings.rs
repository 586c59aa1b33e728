//! `POST /v1/embeddings` and `POST /v1/rerank`, of models that a plugin serves. Those whose engines speak HTTP have been asked by the
//! time that a request comes here.

use aihost_plugin_api::task::EmbeddingForm;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};

use super::super::app::App;
use super::super::blocking::run_blocking;
use super::super::body::JsonBody;
use super::super::caller::Caller;
use super::super::embedding_output::{Embedded, embed};
use super::super::error::ApiError;
use super::super::resolve::{self, Wanted};
use super::super::wire::{self, EmbeddingJob, ReceivedBody};
use super::explain;
use crate::config::{Config, ModelConfig};
use crate::domain::{Kind, ModelId};

pub(in crate::http) const PATH: &str = "/v1/embeddings";
pub(in crate::http) const RERANK_PATH: &str = "/v1/rerank";

/// The vectors of texts.
pub(in crate::http) async fn create(
    State(app): State<App>,
    caller: Caller,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let Asked { model, name, job, more: encoding } = asked(&app, &caller, body, PATH, wire::parse_embeddings).await?;
    let embedded = ask(&app, &caller, &model, (EmbeddingForm::Vector, "input"), job).await?;
    reply(move || wire::embeddings(embedded.vectors(), encoding, &name, embedded.prompt_tokens)).await
}

/// Documents in the order in which they answer a query.
pub(in crate::http) async fn rerank(
    State(app): State<App>,
    caller: Caller,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let Asked { model, name, job, more: shape } = asked(&app, &caller, body, RERANK_PATH, wire::parse_rerank).await?;
    let embedded = ask(&app, &caller, &model, (EmbeddingForm::Score, "documents"), job).await?;
    reply(move || wire::ranking(embedded.scores(), &shape, &name, embedded.prompt_tokens)).await
}

/// A request, and whose it is.
struct Asked<T> {
    model: ModelId,
    /// What clients hold the name in an answer against: the one that they asked for.
    name: String,
    job: EmbeddingJob,
    /// How it is to be answered.
    more: T,
}

/// Reads a request at this path.
async fn asked<T: Send + 'static>(
    app: &App,
    caller: &Caller,
    body: JsonBody,
    path: &'static str,
    parse: fn(&ReceivedBody<'_>) -> Result<(EmbeddingJob, T), ApiError>,
) -> Result<Asked<T>, ApiError> {
    let (named, parsed) = body.read(move |body| Ok((wire::parse_name(body)?, parse(body)))).await?;
    // Whose it is comes first: what else it has to say is for its model to know.
    let model = find(app, &app.handle.config(), caller, (named.as_deref(), path))?.id.clone();
    let (job, more) = parsed?;
    Ok(Asked { name: job.model.clone().unwrap_or_else(|| model.to_string()), model, job, more })
}

/// The model of a plugin that a request at this path means.
fn find<'a>(
    app: &App,
    config: &'a Config,
    caller: &Caller,
    (name, path): (Option<&str>, &str),
) -> Result<&'a ModelConfig, ApiError> {
    let is_here = |model: &ModelConfig| !app.handle.speaks_http(model);
    match name {
        Some(_) => {
            let wanted = Wanted { kind: Kind::Embedding, endpoint: path };
            let model = resolve::for_request(config, caller, name, wanted)?;
            if is_here(model) { Ok(model) } else { Err(resolve::wrong_kind(model, path)) }
        }
        None => {
            // Whatever it does with texts, this is where an entry of its kind says that it answers.
            let here = resolve::seen(config, caller).filter(|model| is_here(model));
            let model = resolve::unnamed(here, Kind::Embedding, PATH)?;
            caller.access().asks_for(&model.id);
            Ok(model)
        }
    }
}

/// Asks it; what is wrong with the texts is said of this field.
pub(in crate::http) async fn ask(
    app: &App,
    caller: &Caller,
    model: &ModelId,
    (form, field): (EmbeddingForm, &str),
    job: EmbeddingJob,
) -> Result<Embedded, ApiError> {
    match embed(&app.handle, caller, model, form, job).await {
        Ok(embedded) => Ok(embedded),
        Err(failure) => Err(explain(app, failure, model, field).await),
    }
}

/// An answer of JSON, which may be long: written where it holds nobody up.
pub(in crate::http) async fn reply(write: impl FnOnce() -> Vec<u8> + Send + 'static) -> Result<Response, ApiError> {
    let json = run_blocking(move || Ok(write())).await?;
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], json).into_response())
}
