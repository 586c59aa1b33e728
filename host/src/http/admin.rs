//! Health, model status and control: what operators and supervisors ask. Nothing here loads a model but `load`.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::sync::broadcast::error::RecvError;

use super::app::App;
use super::body::{JsonBody, Name};
use super::caller::Caller;
use super::error::ApiError;
use super::resolve;
use super::sse;
use super::stream_body::headers;
use super::wire::{self, DeviceReply, Fields, Keys, PlanReply, RouterList, StatusReply};
use crate::domain::{Failure, FailureKind, ModelId, ModelState};
use crate::runtime::{DeviceStatus, Explanation, ModelStatus};
use crate::telemetry::{Scrape, TextFormat};
use crate::worker::Followed;

/// The same of a pin.
pub(super) const PIN_KEYS: Keys = &["model", "pinned"];
/// How long a probe waits for the runtime. Longer than any turn of its loop takes, shorter than a probe's caller waits.
const PROBE_LIMIT: Duration = Duration::from_secs(5);
/// Longest that a forced unload may wait before it cuts, seconds.
const FORCE_AFTER_MAX_S: f32 = 86_400.0;
/// What is read of the body of a load, an unload or a park.
pub(super) const KEYS: Keys = &["model", "force_after"];

/// `GET /models`: llama.cpp's router shape, and our own fields beside it.
pub(super) async fn models(State(app): State<App>, caller: Caller) -> Result<Response, ApiError> {
    let (handle, created) = (app.handle.clone(), app.started_s);
    let seen_by = caller.clone();
    let write = move |mut models: Vec<ModelStatus>| {
        models.retain(|model| seen_by.sees(model.id.as_str()));
        Ok(wire::json(&RouterList::of(&models, created)))
    };
    Ok(json_reply(app.listings.router.get(&app, &caller, async move { handle.models().await }, write).await?))
}

/// `POST /models/load`: answers once the model is hot, or says why it is not.
pub(super) async fn load(State(app): State<App>, caller: Caller, body: JsonBody) -> Result<Json<Value>, ApiError> {
    let Control { model, .. } = asked(&app, &caller, body).await?;
    done(&app, app.handle.load(model, caller.access().clone()).await)
}

/// `POST /models/unload`: answers once the model is cold. `force_after`: seconds until requests that still run are cut.
pub(super) async fn unload(State(app): State<App>, caller: Caller, body: JsonBody) -> Result<Json<Value>, ApiError> {
    let Control { model, force_after } = asked(&app, &caller, body).await?;
    done(&app, app.handle.unload(model, force_after, caller.access().clone()).await)
}

/// `POST /models/park`: answers once the model's device memory is back.
pub(super) async fn park(State(app): State<App>, caller: Caller, body: JsonBody) -> Result<Json<Value>, ApiError> {
    let Control { model, .. } = asked(&app, &caller, body).await?;
    done(&app, app.handle.park(model, caller.access().clone()).await)
}

/// `POST /models/pin`: never evicts the model for others, or with `pinned: false` does again, until models.yaml is read anew.
pub(super) async fn pin(State(app): State<App>, caller: Caller, body: JsonBody) -> Result<Json<Value>, ApiError> {
    let (name, pinned) = body
        .read(|body| {
            let fields = Fields::root(body, PIN_KEYS)?;
            Ok((fields.required_text("model")?.into_owned(), fields.flag("pinned")?.unwrap_or(true)))
        })
        .await?;
    let model = resolve::by_name(&app.handle.config(), &caller, &name)?.id.clone();
    caller.access().asks_for(&model);
    done(&app, app.handle.pin(model, pinned).await)
}

/// A command has this outcome, and listings show it from now on.
fn done(app: &App, outcome: Result<(), Failure>) -> Result<Json<Value>, ApiError> {
    app.listings.command_done();
    outcome.map_err(ApiError::for_operator)?;
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
    let handle = app.handle.clone();
    let seen_by = caller.clone();
    let write = move |models: Vec<ModelStatus>| {
        let seen = models.iter().filter(|model| seen_by.sees(model.id.as_str()));
        Ok(wire::json(&seen.map(StatusReply::from).collect::<Vec<_>>()))
    };
    Ok(json_reply(app.listings.status.get(&app, &caller, async move { handle.models().await }, write).await?))
}

/// `GET /admin/devices`: what each device may hold, holds and has, ours and others'.
pub(super) async fn devices(State(app): State<App>, caller: Caller) -> Result<Response, ApiError> {
    let handle = app.handle.clone();
    let write = |devices: Vec<DeviceStatus>| Ok(wire::json(&devices.iter().map(DeviceReply::from).collect::<Vec<_>>()));
    Ok(json_reply(app.listings.devices.get(&app, &caller, async move { handle.devices().await }, write).await?))
}

/// `GET /metrics`: everything that is measured, for a scraper.
pub(super) async fn metrics(State(app): State<App>, caller: Caller, asked: HeaderMap) -> Result<Response, ApiError> {
    let (handle, tally, format) = (app.handle.clone(), Arc::clone(app.access_log.tally()), text_format(&asked));
    let seen_by = caller.clone();
    let write = move |mut scrape: Scrape| {
        tally.tell(scrape.gauges());
        let text = scrape.render(format).map_err(|e| Failure::new(FailureKind::Internal, e.to_string()))?;
        if seen_by.sees_all() {
            return Ok(text.into_bytes());
        }
        let is_seen = |line: &&str| model_label(line).is_none_or(|model| seen_by.sees(model));
        Ok(text.split_inclusive('\n').filter(is_seen).collect::<String>().into_bytes())
    };
    let listing = match format {
        TextFormat::OpenMetrics => &app.listings.metrics,
        TextFormat::Classic => &app.listings.classic_metrics,
    };
    let text = listing.get(&app, &caller, async move { handle.metrics().await }, write).await?;
    let headers = [(header::CONTENT_TYPE, format.content_type()), (header::VARY, "Accept")];
    Ok((headers, text).into_response())
}

/// What a scraper asks for: Prometheus's own text unless it takes OpenMetrics at least as gladly.
fn text_format(asked: &HeaderMap) -> TextFormat {
    let accepted = asked.get_all(header::ACCEPT).into_iter().filter_map(|value| value.to_str().ok());
    let (mut openmetrics, mut classic) = (0.0, 0.0);
    for entry in accepted.flat_map(|value| value.split(',')) {
        let mut parts = entry.split(';').map(|part| part.trim().to_ascii_lowercase());
        let kind = parts.next().unwrap_or_default();
        let parameters: Vec<String> = parts.collect();
        let value =
            |name: &str| parameters.iter().find_map(|parameter| parameter.strip_prefix(name)?.strip_prefix('='));
        let weight = value("q").map_or(1.0, |q| q.trim().parse().unwrap_or(0.0));
        let version = value("version").map(|version| version.trim_matches('"'));
        match kind.as_str() {
            "application/openmetrics-text" if matches!(version, None | Some("0.0.1" | "1.0.0")) => {
                openmetrics = f32::max(openmetrics, weight);
            }
            "text/plain" => classic = f32::max(classic, weight),
            _ => {}
        }
    }
    if openmetrics > 0.0 && openmetrics >= classic { TextFormat::OpenMetrics } else { TextFormat::Classic }
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

fn json_reply(json: Bytes) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], json).into_response()
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
    match &*answered(preloading(&app)).await? {
        [] => Ok(Json(json!({"status": "ok"}))),
        sentence => Err(ApiError::not_ready(String::from_utf8_lossy(sentence))),
    }
}

/// `GET /ping`: Runpod's probe. 204 keeps the pod in the pool, without traffic, until it is 200.
pub(super) async fn ping(State(app): State<App>) -> Result<StatusCode, ApiError> {
    let waiting = answered(preloading(&app)).await?;
    Ok(if waiting.is_empty() { StatusCode::OK } else { StatusCode::NO_CONTENT })
}

/// What the runtime says, if it says it in time.
async fn answered<T, E>(answer: impl Future<Output = Result<T, E>>) -> Result<T, ApiError>
where
    ApiError: From<E>,
{
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

/// The sentence of how many `preload: true` models have neither been loaded once nor failed; empty if there are none. It has no
/// names: nobody was asked for a key.
async fn preloading(app: &App) -> Result<Bytes, ApiError> {
    let config = app.handle.config();
    if !config.models.values().any(|entry| entry.preload) {
        app.handle.ping().await?;
        return Ok(Bytes::new());
    }
    let handle = app.handle.clone();
    let write = move |models: Vec<ModelStatus>| {
        let is_preload = |model: &ModelStatus| config.models.get(&model.id).is_some_and(|entry| entry.preload);
        let is_underway = |model: &ModelStatus| {
            model.loads == 0 && model.error.is_none() && !matches!(model.state, ModelState::Hot | ModelState::Failed)
        };
        let sentence = match models.iter().filter(|model| is_preload(model) && is_underway(model)).count() {
            0 => String::new(),
            1 => "a model is still loading that is to be loaded at start".to_owned(),
            several => format!("{several} models are still loading that are to be loaded at start"),
        };
        Ok(sentence.into_bytes())
    };
    app.listings.preloading.get(app, &Caller::anyone(), async move { handle.models().await }, write).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scrapers_get_the_text_that_they_ask_for() {
        use TextFormat::{Classic, OpenMetrics};
        for (accept, wanted) in [
            (None, Classic),
            (Some("*/*"), Classic),
            (Some("text/plain"), Classic),
            (Some(""), Classic),
            (Some("application/json"), Classic),
            (Some("application/openmetrics-text"), OpenMetrics),
            (Some("Application/OpenMetrics-Text; version=1.0.0; charset=utf-8"), OpenMetrics),
            (
                Some(
                    "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
                ),
                OpenMetrics,
            ),
            (Some("text/plain;version=0.0.4;q=0.9, application/openmetrics-text;q=0.1"), Classic),
            (Some("application/openmetrics-text;q=0, text/plain;q=0.1"), Classic),
            (Some("application/openmetrics-text;version=2.0.0"), Classic),
            (Some("application/openmetrics-text;q=nonsense"), Classic),
        ] {
            let mut asked = HeaderMap::new();
            if let Some(accept) = accept {
                asked.insert(header::ACCEPT, accept.parse().expect("a header"));
            }
            assert_eq!(text_format(&asked), wanted, "{accept:?}");
        }
    }
}
