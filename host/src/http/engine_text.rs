//! Text from the chat route of an engine that speaks HTTP, read as updates of choices: what a client of another API gets is
//! then written as if a plugin had made it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};

use aihost_plugin_api::task::Usage;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::app::App;
use super::caller::Caller;
use super::engine_chat::ChatReader;
use super::engine_routes::{self, is_no_route};
use super::error::ApiError;
use super::generate::{TextUpdate, TextUpdates, broken_off};
use super::proxy::{self, Outgoing, OutgoingBody};
use super::wire::{self, ChatJob, JsonObject, TextDelivery};
use crate::config::ModelConfig;
use crate::domain::{Class, Failure, FailureKind, ModelState};
use crate::runtime::{Answer, KeepAlive, OutputMode};
use crate::worker::{HttpHead, Output};

/// Where engines answer conversations.
const CHAT: &str = "/v1/chat/completions";
/// Bytes of a refusal that are read for what it says.
const REFUSAL_BYTES: usize = 64 << 10;
/// Bytes of what an engine says of itself; a chat template is most of it.
const FACTS_BYTES: usize = 1 << 20;
/// Bytes of an answer that is read whole.
const ANSWER_BYTES: usize = 64 << 20;

/// One request's choices under way at an engine: one chat after the other, each with its `n` choices.
pub(super) struct EngineText {
    asker: Asker,
    prompts: usize,
    n: usize,
    /// What is still to be asked.
    chats: VecDeque<Box<RawValue>>,
    stage: Stage,
    /// Tokens of the chats that have ended.
    usage: Usage,
    event_bytes: usize,
}

enum Stage {
    Asking(BoxFuture<'static, Result<Reading, ApiError>>),
    Reading(Box<Reading>),
    Ended,
}

/// A chat whose answer has begun.
struct Reading {
    answer: Answer,
    chat: ChatReader,
    /// Whether all of it has come.
    is_whole: bool,
}

/// Whom to ask, and for whom.
#[derive(Clone)]
struct Asker {
    app: App,
    caller: Caller,
    model: ModelConfig,
    terms: wire::TextTerms,
    /// What each body has beside its messages.
    common: Arc<JsonObject>,
}

impl EngineText {
    /// Asks for the first chat, whose refusal is then one in the engine's own words.
    pub(super) async fn ask(app: &App, caller: &Caller, model: &ModelConfig, job: ChatJob) -> Result<Self, ApiError> {
        let ChatJob { terms, common, messages } = job;
        let (prompts, n) = (messages.len(), terms.n);
        let mut chats = VecDeque::from(messages);
        let common = Arc::new(common);
        let asker = Asker { app: app.clone(), caller: caller.clone(), model: model.clone(), terms, common };
        let first = chats.pop_front().ok_or_else(|| ApiError::internal("a request for no text"))?;
        let reading = asker.clone().ask(first).await?;
        let stage = Stage::Reading(Box::new(reading));
        Ok(Self { asker, prompts, n, chats, stage, usage: Usage::default(), event_bytes: 0 })
    }

    /// The chat has ended: on to the next.
    fn next_chat(&mut self, told: Usage) {
        let add = |a: u32, b: u32| a.saturating_add(b);
        self.usage = Usage::default()
            .prompt_tokens(add(self.usage.prompt_tokens, told.prompt_tokens))
            .completion_tokens(add(self.usage.completion_tokens, told.completion_tokens))
            .cached_tokens(add(self.usage.cached_tokens, told.cached_tokens))
            .reasoning_tokens(add(self.usage.reasoning_tokens, told.reasoning_tokens));
        self.stage = match self.chats.pop_front() {
            Some(chat) => Stage::Asking(self.asker.clone().ask(chat).boxed()),
            None => Stage::Ended,
        };
    }
}

impl TextUpdates for EngineText {
    fn choices(&self) -> usize {
        self.prompts * self.n
    }

    fn usage(&self) -> Usage {
        self.usage
    }

    fn event_bytes(&self) -> usize {
        self.event_bytes
    }

    fn poll_update(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<TextUpdate, Failure>>> {
        loop {
            let reading = match &mut self.stage {
                Stage::Ended => return Poll::Ready(None),
                Stage::Asking(asking) => match std::task::ready!(asking.poll_unpin(cx)) {
                    Ok(reading) => {
                        self.stage = Stage::Reading(Box::new(reading));
                        continue;
                    }
                    Err(refused) => {
                        self.stage = Stage::Ended;
                        return Poll::Ready(Some(Err(refused.into_failure())));
                    }
                },
                Stage::Reading(reading) => reading,
            };
            if let Some(update) = reading.chat.next() {
                // Those of earlier prompts come before.
                let first = (self.prompts - 1 - self.chats.len()) * self.n;
                return Poll::Ready(Some(Ok(update.behind(first))));
            }
            if reading.is_whole {
                let told = reading.chat.usage();
                self.next_chat(told);
                continue;
            }
            let read = match std::task::ready!(reading.answer.output.poll_recv(cx)) {
                Some(Output::Bytes(bytes)) => {
                    self.event_bytes += bytes.len();
                    reading.chat.see(&bytes)
                }
                Some(Output::Done(Ok(_))) => {
                    reading.is_whole = true;
                    reading.chat.end()
                }
                Some(Output::Done(Err(failure))) => Err(failure),
                Some(Output::Event(_) | Output::Progress { .. } | Output::Http(_)) => continue,
                None => Err(broken_off()),
            };
            if let Err(failure) = read {
                self.stage = Stage::Ended;
                return Poll::Ready(Some(Err(failure)));
            }
        }
    }
}

impl Asker {
    async fn ask(self, messages: Box<RawValue>) -> Result<Reading, ApiError> {
        let Self { app, caller, model, terms, common } = self;
        let mut chat = JsonObject::clone(&common);
        chat.insert("messages".to_owned(), messages);
        let streams = terms.delivery != TextDelivery::Whole;
        let mut set = |key: &str, value: Value| chat.insert(key.to_owned(), wire::raw(&value));
        set("model", model.engine_name().into());
        set("stream", streams.into());
        if terms.n > 1 {
            set("n", terms.n.into());
        }
        if streams {
            set("stream_options", json!({"include_usage": true}));
        }
        let delivery = if streams { OutputMode::Streamed } else { OutputMode::Gathered };
        let outgoing = outgoing(CHAT, &chat, delivery, terms.class.max(caller.class()), terms.keep_alive);
        let stops = stops(&chat);
        let (head, mut answer) = proxy::open(&app, &caller, &model, outgoing).await?;
        if head.status != StatusCode::OK {
            let said = said(&mut answer, REFUSAL_BYTES).await;
            return Err(ApiError::of_engine(head.status, retry_after(&head), &said));
        }
        let chat = ChatReader::new(is_stream(&head), terms.n, stops);
        Ok(Reading { answer, chat, is_whole: false })
    }
}

fn stops(chat: &JsonObject) -> Vec<String> {
    let Some(stop) = chat.get("stop") else { return Vec::new() };
    let one = || serde_json::from_str(stop.get()).map(|stop: String| vec![stop]);
    serde_json::from_str(stop.get()).or_else(|_| one()).unwrap_or_default()
}

/// Asks the engine of a model at a route, and reads what it says as JSON.
pub(super) async fn ask_json(
    app: &App,
    caller: &Caller,
    model: &ModelConfig,
    path: &str,
    mut body: JsonObject,
) -> Result<Value, ApiError> {
    body.insert("model".to_owned(), wire::raw(model.engine_name()));
    let outgoing = outgoing(path, &body, OutputMode::Gathered, caller.class(), None);
    let (head, mut answer) = proxy::open(app, caller, model, outgoing).await?;
    let said = said(&mut answer, ANSWER_BYTES).await;
    if head.status != StatusCode::OK {
        return Err(ApiError::of_engine(head.status, retry_after(&head), &said));
    }
    serde_json::from_slice(&said).map_err(|error| {
        Failure::new(FailureKind::Unreachable, format!("the engine sent what is no JSON: {error}")).into()
    })
}

/// What the engine of a model says at a route that it may lack, if it is up and has it: nothing is loaded for this.
pub(super) async fn look(app: &App, caller: &Caller, model: &ModelConfig, path: &'static str) -> Option<Value> {
    let status = app.handle.status(model.id.clone()).await.ok().flatten()?;
    if status.state != ModelState::Hot || engine_routes::lacks(app, model, path).await {
        return None;
    }
    let outgoing = Outgoing {
        method: Method::GET,
        target: path.to_owned(),
        headers: HeaderMap::new(),
        body: OutgoingBody::Whole(Bytes::new()),
        delivery: OutputMode::Gathered,
        class: caller.class(),
        keep_alive: None,
        upgrade: None,
    };
    let (head, mut answer) = proxy::open(app, caller, model, outgoing).await.ok()?;
    if is_no_route(head.status) {
        engine_routes::learn(app, model, path).await;
    }
    let said = said(&mut answer, FACTS_BYTES).await;
    if head.status == StatusCode::OK { serde_json::from_slice(&said).ok() } else { None }
}

/// A body of JSON for a route of an engine.
fn outgoing(
    path: &str,
    body: &impl Serialize,
    delivery: OutputMode,
    class: Class,
    keep_alive: Option<KeepAlive>,
) -> Outgoing {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let accepted = if delivery == OutputMode::Streamed { super::sse::CONTENT_TYPE } else { "application/json" };
    headers.insert(header::ACCEPT, HeaderValue::from_static(accepted));
    let body = OutgoingBody::Whole(wire::json(body).into());
    Outgoing {
        method: Method::POST,
        target: path.to_owned(),
        headers,
        body,
        delivery,
        class,
        keep_alive,
        upgrade: None,
    }
}

fn is_stream(head: &HttpHead) -> bool {
    let kind = head.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    kind.trim_start().to_ascii_lowercase().starts_with(super::sse::CONTENT_TYPE)
}

fn retry_after(head: &HttpHead) -> Option<u32> {
    head.headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()
}

/// What an engine says, at most so many bytes of it.
async fn said(answer: &mut Answer, most: usize) -> Vec<u8> {
    let mut said: Vec<u8> = Vec::new();
    while let Some(output) = answer.output.recv().await {
        match output {
            Output::Bytes(bytes) => {
                let left = most - said.len();
                said.extend_from_slice(&bytes[..bytes.len().min(left)]);
                if said.len() == most {
                    break;
                }
            }
            Output::Done(_) => break,
            Output::Http(_) | Output::Event(_) | Output::Progress { .. } => {}
        }
    }
    said
}
