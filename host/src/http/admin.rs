//! Health, model status and control: what operators and supervisors ask. Nothing here loads a model but `load`.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::sync::broadcast::error::RecvError;

use super::app::App;
use super::body::{JsonBody, Name};
use super::caller::Caller;
use super::error::ApiError;
use super::redact::for_clients;
use super::resolve;
use super::sse;
use super::stream_body::headers;
use super::wire::{Fields, Keys, PlanReply, StatusReply};
use crate::domain::{Failure, FailureKind, ModelId, ModelState};
use crate::runtime::{Explanation, ModelStatus};
use crate::telemetry::Scrape;
use crate::worker::Followed;

/// How long a probe waits for the runtime. Longer than any turn of its loop takes, shorter than a probe's caller waits.
const PROBE_LIMIT: Duration = Duration::from_secs(5);
/// Longest that a forced unload may wait before it cuts, seconds.
const FORCE_AFTER_MAX_S: f32 = 86_400.0;
/// What is read of the body of a load, an unload or a park.
pub(super) const KEYS: Keys = &["model", "force_after"];

/// `GET /models`: llama.cpp's router shape, and our own fields beside it.
pub(super) async fn models(State(app): State<App>, caller: Caller) -> Result<Json<Value>, ApiError> {
    let models = app.handle.models().await?;
    let seen = models.iter().filter(|model| caller.sees(model.id.as_str()));
    let data: Vec<_> = seen.map(|model| router_entry(model, app.started_s)).collect();
    Ok(Json(json!({"object": "list", "data": data})))
}

/// `POST /models/load`: answers once the model is hot, or says why it is not.
pub(super) async fn load(State(app): State<App>, caller: Caller, body: JsonBody) -> Result<Json<Value>, ApiError> {
    let model = asked(&app, &caller, body).await?.model;
    app.handle.load(model).await.map_err(ApiError::for_operator)?;
    Ok(Json(json!({"success": true})))
}

/// `POST /models/unload`: answers once the model is cold. `force_after`: seconds until requests that still run are cut.
pub(super) async fn unload(State(app): State<App>, caller: Caller, body: JsonBody) -> Result<Json<Value>, ApiError> {
    let Control { model, force_after } = asked(&app, &caller, body).await?;
    app.handle.unload(model, force_after).await.map_err(ApiError::for_operator)?;
    Ok(Json(json!({"success": true})))
}

/// `POST /models/park`: answers once the model's device memory is back.
pub(super) async fn park(State(app): State<App>, caller: Caller, body: JsonBody) -> Result<Json<Value>, ApiError> {
    let model = asked(&app, &caller, body).await?.model;
    app.handle.park(model).await.map_err(ApiError::for_operator)?;
    Ok(Json(json!({"success": true})))
}

#[derive(Debug, Deserialize)]
pub(super) struct PlanQuery {
    model: Option<String>,
}

/// `GET /admin/plan?model=`: what a request for the model would meet, and who would leave for it. Changes nothing.
pub(super) async fn plan(
    State(app): State<App>,
    caller: Caller,
    query: Result<Query<PlanQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let PlanQuery { model } = read(query)?;
    let name = model.ok_or_else(|| ApiError::missing("model"))?;
    let model = resolve::by_name(&app.handle.config(), &caller, &name)?.id.clone();
    let plan = app.handle.explain(model).await.map_err(ApiError::for_operator)?;
    Ok(Json(PlanReply::from(&seen_of(plan, &caller))).into_response())
}

/// A plan without the names of models that there are not for this caller.
pub(super) fn seen_of(mut plan: Explanation, caller: &Caller) -> Explanation {
    let others = plan.leaves.iter().map(|one| &one.model).chain(plan.stays.iter().map(|one| &one.model));
    let hidden: BTreeSet<ModelId> = others.filter(|model| !caller.sees(model.as_str())).cloned().collect();
    for model in &hidden {
        plan.message = plan.message.replace(&format!("`{model}`"), "another model");
    }
    plan.leaves.retain(|one| !hidden.contains(&one.model));
    plan.stays.retain(|one| !hidden.contains(&one.model));
    plan
}

/// `GET /admin/status`: every model's status in full.
pub(super) async fn status(State(app): State<App>, caller: Caller) -> Result<Response, ApiError> {
    let models = app.handle.models().await?;
    let seen = models.iter().filter(|model| caller.sees(model.id.as_str()));
    Ok(Json(seen.map(StatusReply::from).collect::<Vec<_>>()).into_response())
}

/// `GET /metrics`: everything that is measured, for a scraper.
pub(super) async fn metrics(State(app): State<App>, caller: Caller) -> Result<Response, ApiError> {
    let text = app.handle.metrics().await?.render().map_err(|e| Failure::new(FailureKind::Internal, e.to_string()))?;
    let is_seen = |line: &&str| model_label(line).is_none_or(|model| caller.sees(model));
    let text: String = text.split_inclusive('\n').filter(is_seen).collect();
    Ok(([(header::CONTENT_TYPE, Scrape::CONTENT_TYPE)], text).into_response())
}

/// The model that a line of metrics is about. A model's name has nothing in it that would be escaped there.
fn model_label(line: &str) -> Option<&str> {
    line.split_once("model=\"")?.1.split('"').next()
}

/// Readers that may follow logs at once: they stay as long as they like, and each has a connection.
const FOLLOWERS_MAX: usize = 64;

static FOLLOWERS: Semaphore = Semaphore::const_new(FOLLOWERS_MAX);

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct LogsQuery {
    follow: bool,
}

/// `GET /logs/{model}`: the last lines of its workers, oldest first, as plain text. `?follow=true`: as events, and then
/// every line as it comes.
pub(super) async fn logs(
    State(app): State<App>,
    caller: Caller,
    query: Result<Query<LogsQuery>, QueryRejection>,
    Name(name): Name,
) -> Result<Response, ApiError> {
    let LogsQuery { follow } = read(query)?;
    let model = resolve::by_name(&app.handle.config(), &caller, &name)?.id.clone();
    let Followed { tail, news } = app.handle.logs(model).await?;
    if follow {
        let Ok(place) = FOLLOWERS.try_acquire() else {
            return Err(ApiError::too_many_followers(FOLLOWERS_MAX));
        };
        let news = futures_util::stream::unfold(news, async |mut news| match news.recv().await {
            Ok(line) => Some((line, news)),
            Err(RecvError::Lagged(lines)) => {
                Some((format!("({lines} lines were skipped: this reader is too slow)"), news))
            }
            Err(RecvError::Closed) => None,
        });
        let lines = futures_util::stream::iter(tail).chain(news).map(move |line| {
            let _place = &place;
            Ok::<_, Infallible>(line_event(&line))
        });
        return Ok((headers(sse::CONTENT_TYPE), Body::from_stream(lines)).into_response());
    }
    let text: String = tail.iter().flat_map(|line| [line.as_str(), "\n"]).collect();
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response())
}

fn read<T>(query: Result<Query<T>, QueryRejection>) -> Result<T, ApiError> {
    let query = query.map_err(|error| ApiError::malformed(format!("the query cannot be read: {error}")))?;
    Ok(query.0)
}

fn line_event(text: &str) -> String {
    let lines: String = text.split(['\n', '\r']).flat_map(|line| ["data: ", line, "\n"]).collect();
    lines + "\n"
}

/// `GET /health`: whether the runtime answers. Says nothing of models: a host with none loaded is healthy.
pub(super) async fn health(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    answered(app.handle.ping()).await?;
    Ok(Json(json!({"status": "ok"})))
}

/// `GET /livez`: whether the process answers, and still has a runtime.
pub(super) async fn livez(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    if app.handle.is_over() {
        return Err(ApiError::not_ready("the runtime has ended, and this process with it"));
    }
    Ok(Json(json!({"status": "ok"})))
}

/// `GET /readyz`: whether preloaded models have come up, or failed to.
pub(super) async fn readyz(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    // No names: nobody was asked for a key.
    match answered(preloading(&app)).await? {
        0 => Ok(Json(json!({"status": "ok"}))),
        1 => Err(ApiError::not_ready("a model is still loading that is to be loaded at start")),
        several => {
            Err(ApiError::not_ready(format!("{several} models are still loading that are to be loaded at start")))
        }
    }
}

/// `GET /ping`: Runpod's probe. 204 keeps the pod in the pool, without traffic, until it is 200.
pub(super) async fn ping(State(app): State<App>) -> Result<StatusCode, ApiError> {
    let waiting = answered(preloading(&app)).await?;
    Ok(if waiting == 0 { StatusCode::OK } else { StatusCode::NO_CONTENT })
}

/// What the runtime says, if it says it in time.
async fn answered<T>(answer: impl Future<Output = Result<T, Failure>>) -> Result<T, ApiError> {
    let late = |_| ApiError::not_ready(format!("the runtime has not answered for {} s", PROBE_LIMIT.as_secs()));
    Ok(tokio::time::timeout(PROBE_LIMIT, answer).await.map_err(late)??)
}

/// What is to be done with a model.
struct Control {
    model: ModelId,
    force_after: Option<Duration>,
}

async fn asked(app: &App, caller: &Caller, body: JsonBody) -> Result<Control, ApiError> {
    let (name, force_after) = body
        .read(|body| {
            let fields = Fields::root(body, KEYS)?;
            let name = fields.required_text("model")?.into_owned();
            Ok((name, fields.number("force_after", 0.0..=FORCE_AFTER_MAX_S)?))
        })
        .await?;
    let model = resolve::by_name(&app.handle.config(), caller, &name)?.id.clone();
    Ok(Control { model, force_after: force_after.map(Duration::from_secs_f32) })
}

/// How many of the `preload: true` models have neither been loaded once nor failed.
async fn preloading(app: &App) -> Result<usize, Failure> {
    let config = app.handle.config();
    if !config.models.values().any(|entry| entry.preload) {
        app.handle.ping().await?;
        return Ok(0);
    }
    let models = app.handle.models().await?;
    let is_preload = |model: &ModelStatus| config.models.get(&model.id).is_some_and(|entry| entry.preload);
    let is_underway = |model: &ModelStatus| {
        model.loads == 0 && model.error.is_none() && !matches!(model.state, ModelState::Hot | ModelState::Failed)
    };
    Ok(models.iter().filter(|model| is_preload(model) && is_underway(model)).count())
}

fn router_entry(model: &ModelStatus, created: u64) -> Value {
    let value = match model.state {
        ModelState::Cold | ModelState::Stopping | ModelState::Failed => "unloaded",
        ModelState::Starting | ModelState::Waiting | ModelState::Loading | ModelState::Unparking => "loading",
        ModelState::Hot | ModelState::Draining => "loaded",
        // llama.cpp's word for a model that gives its memory back and wakes on demand.
        ModelState::Parking | ModelState::Parked => "sleeping",
    };
    let mut status = json!({"value": value, "state": model.state, "progress": model.progress});
    if let Some(step) = model.step {
        status["step"] = json!(step);
    }
    if let Some(error) = &model.error {
        status["failed"] = json!(true);
        status["error"] = json!(for_clients(error));
    }
    json!({
        "id": model.id,
        "object": "model",
        "created": created,
        "owned_by": "aihost",
        "status": status,
        "kind": model.kind,
        "plugin": model.plugin,
        "aliases": model.aliases,
        "device": model.device,
        "memory": model.memory,
        "measured": model.measured,
        "replicas": model.replicas,
        "active": model.active,
        "queued": model.queued,
        "loads": model.loads,
    })
}
