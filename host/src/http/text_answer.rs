//! One way for every request for text, whichever API it came by and whoever answers: read, resolve, ask, write.

use std::sync::Arc;
use std::time::Duration;

use aihost_plugin_api::task::{Token, Usage};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;

use super::app::{App, unix_seconds};
use super::blocking::run_blocking;
use super::body::JsonBody;
use super::caller::Caller;
use super::engine_text::EngineText;
use super::error::ApiError;
use super::generate::{Generation, TextUpdates, collect};
use super::openai::explain;
use super::resolve::{self, Wanted};
use super::sse;
use super::stream_body::StreamBody;
use super::text_stream::{TEXT_PIECE_BYTES, TextStream};
use super::tokens::{Told, tokens_of};
use super::wire::{
    self, Answerer, Asked, Choice, FieldNames, ReceivedBody, TextAsk, TextDelivery, TextShape, TextWork,
};
use crate::config::{Config, ModelConfig};
use crate::domain::{Failure, Kind};
use crate::runtime::BudgetShare;

/// A way to ask for text.
pub(super) struct TextApi {
    /// Where it is.
    pub(super) path: &'static str,
    /// Where a model says that it answers to be meant by requests that name none.
    pub(super) endpoint: &'static str,
    /// What its prompt is called.
    pub(super) prompt: &'static str,
    /// Reads a body.
    pub(super) read: fn(&ReceivedBody<'_>, &Asked) -> Result<TextAsk, ApiError>,
}

/// Answers a request.
pub(super) async fn answer(
    app: App,
    caller: Caller,
    api: &'static TextApi,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let config = app.handle.config();
    let (model, TextAsk { mut work, shape }) = read(&app, &config, &caller, api, body).await?;
    let names = work.take_names();
    check_grammar(&app, model, &names)?;
    let delivery = work.terms().delivery;
    // Clients hold the name in an answer against the one that they asked for.
    let named = work.terms().model.clone().unwrap_or_else(|| model.id.to_string());
    let updates = updates(&app, &caller, model, work).await?;
    let shape = shape(&named, unix_seconds());
    match send(updates, shape, delivery, config.limits.sse_ping).await {
        Ok(response) => Ok(response),
        Err(failure) => Err(refusal(&app, failure, model, api, &names).await),
    }
}

/// The tokens of the prompt of a request, which is not answered.
pub(super) async fn tokens(
    app: App,
    caller: Caller,
    api: &'static TextApi,
    body: JsonBody,
) -> Result<Vec<Token>, ApiError> {
    Ok(told(app, caller, api, body).await?.0)
}

/// How many tokens the prompt of a request has, which is not answered.
pub(super) async fn count(app: App, caller: Caller, api: &'static TextApi, body: JsonBody) -> Result<u32, ApiError> {
    Ok(told(app, caller, api, body).await?.1.prompt_tokens)
}

async fn told(
    app: App,
    caller: Caller,
    api: &'static TextApi,
    body: JsonBody,
) -> Result<(Vec<Token>, Usage), ApiError> {
    let config = app.handle.config();
    let (model, TextAsk { mut work, shape: _ }) = read(&app, &config, &caller, api, body).await?;
    let names = work.take_names();
    match tokens_of(&app, &caller, model, work).await {
        Ok(told) => Ok(told),
        Err(Told::Refused(error)) => Err(error),
        Err(Told::Failed(failure)) => Err(refusal(&app, failure, model, api, &names).await),
    }
}

/// What a client reads of a failure: the field that a plugin blames has the client's own name.
async fn refusal(app: &App, failure: Failure, model: &ModelConfig, api: &TextApi, names: &FieldNames) -> ApiError {
    let by_plugin = failure.details.as_ref().and_then(|details| details.field.clone());
    let refused = explain(app, failure, &model.id, api.prompt).await;
    // Of a prompt that is too long it is said already.
    let is_by_plugin = by_plugin.is_some() && by_plugin.as_deref() == refused.param_name().as_deref();
    if is_by_plugin { refused.renamed(|path| Some(names.of(path))) } else { refused }
}

/// A plugin that does not keep an answer to a form is not asked for one.
fn check_grammar(app: &App, model: &ModelConfig, names: &FieldNames) -> Result<(), ApiError> {
    match names.needs_grammar().filter(|_| app.handle.keeps_grammar(model) == Some(false)) {
        Some(field) => {
            let message = format!(
                "`{field}`: the plugin of the model `{}` does not keep answers to a form; ask another model, or say in the prompt what is wanted",
                model.id
            );
            Err(ApiError::unsupported(field, message))
        }
        None => Ok(()),
    }
}

/// Reads a body for the model that it means.
async fn read<'a>(
    app: &App,
    config: &'a Config,
    caller: &Caller,
    api: &'static TextApi,
    body: JsonBody,
) -> Result<(&'a ModelConfig, TextAsk), ApiError> {
    let find = |name: Option<&str>| {
        let endpoint = if name.is_some() { api.path } else { api.endpoint };
        resolve::for_request(config, caller, name, Wanted { kind: Kind::Text, endpoint })
    };
    let mut known = None;
    if app.handle.may_speak_http(config) {
        let name = body.clone().read(wire::parse_name).await?;
        known = Some(find(name.as_deref())?);
    }
    let speaks_http = known.is_some_and(|model| app.handle.speaks_http(model));
    let asked = Asked {
        answerer: if speaks_http { Answerer::Engine } else { Answerer::Plugin },
        conversations: Arc::clone(&app.conversations),
        key: caller.key().map(|key| key.name.clone()),
    };
    let ask = body.read(move |body| (api.read)(body, &asked)).await?;
    let model = match known {
        Some(model) => model,
        None => find(ask.work.terms().model.as_deref())?,
    };
    Ok((model, ask))
}

/// Asks whoever answers for the model.
async fn updates(
    app: &App,
    caller: &Caller,
    model: &ModelConfig,
    work: TextWork,
) -> Result<Box<dyn TextUpdates>, ApiError> {
    Ok(match work {
        TextWork::Plugin(mut job) => {
            job.default_max_tokens(model.default_max_tokens);
            let (handle, access) = (app.handle.clone(), caller.access().clone());
            Box::new(Generation::new(handle, model.id.clone(), access, *job))
        }
        TextWork::Engine(job) => Box::new(EngineText::ask(app, caller, model, *job).await?),
    })
}

/// Writes the answer, whole or as it comes.
async fn send(
    mut updates: Box<dyn TextUpdates>,
    shape: Box<dyn TextShape>,
    delivery: TextDelivery,
    ping: Option<Duration>,
) -> Result<Response, Failure> {
    if delivery == TextDelivery::Whole {
        let (choices, share) = collect(&mut *updates).await?;
        return whole(shape, choices, updates.usage(), share).await;
    }
    let content_type = shape.content_type();
    let stream = StreamBody::new(TextStream::new(updates, shape), TEXT_PIECE_BYTES);
    // Only events have comments.
    let ping = ping.filter(|_| content_type == sse::CONTENT_TYPE);
    stream.with_ping(ping).respond(content_type).await
}

/// Bytes of events up to which an answer in one piece is written where they came.
const INLINE_WRITE_BYTES: usize = 64 << 10;

/// An answer in one piece, and its share of what all of them may hold until it has been sent.
struct WholeAnswer {
    text: Vec<u8>,
    _share: BudgetShare,
}

impl AsRef<[u8]> for WholeAnswer {
    fn as_ref(&self) -> &[u8] {
        &self.text
    }
}

/// Writes an answer in one piece, a long one where it holds nobody up.
async fn whole(
    mut shape: Box<dyn TextShape>,
    choices: Vec<Choice>,
    usage: Usage,
    share: BudgetShare,
) -> Result<Response, Failure> {
    let is_long = share.bytes() > INLINE_WRITE_BYTES;
    let write = move || WholeAnswer { text: shape.whole(&choices, usage), _share: share };
    let answer = if is_long { run_blocking(move || Ok(write())).await? } else { write() };
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], Bytes::from_owner(answer))
        .into_response())
}
