//! `/v1/jobs`: jobs, what becomes of them, their answers, and an end to them. A key sees its own.

use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, body::Body};
use bytes::Bytes;
use futures_util::stream;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::watch;

use super::app::App;
use super::artifacts::streamed;
use super::background::{accept, shape};
use super::body::{JsonBody, Name};
use super::caller::Caller;
use super::error::ApiError;
use super::router::of_job;
use super::sse;
use super::stream_body::headers as stream_headers;
use super::wire::{self, JobReply, JobShape, job_status};
use crate::jobs::{JobId, JobState, JobView, Jobs, StoreError};

/// Jobs of one page, where a request does not say how many.
const PAGE: usize = 20;
/// Most jobs of one page, as OpenAI has it.
const PAGE_MAX: usize = 100;
/// Between two comments in a silent stream of events, where `sse_ping` says nothing.
const PING: Duration = Duration::from_secs(15);

/// `POST /v1/jobs`.
pub(super) async fn create(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let asked = body.read(wire::parse_job).await?;
    let Some(wanted) = of_job(&asked.endpoint) else {
        let message =
            "`endpoint` must be a route below /v1/ that a model answers with POST, like /v1/images/generations";
        return Err(ApiError::invalid("endpoint", message));
    };
    accept(&app, &caller, &headers, (wanted, asked)).await
}

/// What `GET /v1/jobs` is asked with.
#[derive(Debug, Deserialize)]
pub(super) struct ListQuery {
    limit: Option<usize>,
    after: Option<String>,
}

/// `GET /v1/jobs`, the newest first.
pub(super) async fn list(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<serde_json::Value>, ApiError> {
    let Query(ListQuery { limit, after }) = query.map_err(|error| ApiError::malformed(error.body_text()))?;
    let limit = limit.unwrap_or(PAGE);
    if !(1..=PAGE_MAX).contains(&limit) {
        return Err(ApiError::invalid("limit", format!("`limit` must be from 1 to {PAGE_MAX}")));
    }
    let after = after.as_deref().map(|id| JobId::parse(id).ok_or_else(|| ApiError::unknown_job(id))).transpose()?;
    let mut jobs = app.jobs.list(owner(&caller).map(str::to_owned), after, limit + 1).await?;
    let has_more = jobs.len() > limit;
    jobs.truncate(limit);
    let shape = shape(&app.handle.config(), &headers);
    let data: Vec<JobReply> = jobs.into_iter().map(|view| shape.reply(view)).collect();
    let [first, last] = [data.first(), data.last()].map(|job| job.map(JobReply::id));
    Ok(Json(json!({"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": has_more})))
}

/// `GET /v1/jobs/{id}`.
pub(super) async fn retrieve(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    Name(id): Name,
) -> Result<Json<JobReply>, ApiError> {
    let view = find(&app.jobs, &caller, &id).await?;
    Ok(Json(shape(&app.handle.config(), &headers).reply(view)))
}

/// `GET /v1/jobs/{id}/result`: what the request would have been answered with.
pub(super) async fn result(State(app): State<App>, caller: Caller, Name(id): Name) -> Result<Response, ApiError> {
    let JobView { job, .. } = find(&app.jobs, &caller, &id).await?;
    let facts = match (job.state, job.answer) {
        (JobState::Done, Some(facts)) => facts,
        (JobState::Expired, _) => return Err(ApiError::job_expired()),
        (state @ (JobState::Queued | JobState::Running), _) => {
            return Err(ApiError::job_is(job_status(state), "its answer is there once it is completed"));
        }
        (state, _) => return Err(ApiError::job_is(job_status(state), "it has no answer, and its `error` says why")),
    };
    let file = match app.jobs.open_answer(&job.id).await {
        Ok(file) => file,
        // It went in this moment.
        Err(StoreError::Unknown) => return Err(ApiError::job_expired()),
        Err(error) => return Err(error.into()),
    };
    let kind = HeaderValue::try_from(facts.content_type);
    let kind = kind.unwrap_or(HeaderValue::from_static("application/octet-stream"));
    let headers = [(header::CONTENT_TYPE, kind), (header::CONTENT_LENGTH, HeaderValue::from(facts.bytes))];
    Ok((headers, streamed(file.into())).into_response())
}

/// `POST /v1/jobs/{id}/cancel`. One that is cancelled stays so.
pub(super) async fn cancel(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    Name(id): Name,
) -> Result<Json<JobReply>, ApiError> {
    let known = parse(&id)?;
    let view = match app.jobs.cancel(owner(&caller), &known).await {
        Err(StoreError::OutOfTurn(late)) if late.0 == JobState::Cancelled => find(&app.jobs, &caller, &id).await?,
        cancelled => cancelled.map_err(|error| refusal(error, &id))?,
    };
    Ok(Json(shape(&app.handle.config(), &headers).reply(view)))
}

/// `DELETE /v1/jobs/{id}`. One that waits or runs ends by it.
pub(super) async fn delete(
    State(app): State<App>,
    caller: Caller,
    Name(id): Name,
) -> Result<Json<serde_json::Value>, ApiError> {
    let known = parse(&id)?;
    app.jobs.remove(owner(&caller), &known).await.map_err(|error| refusal(error, &id))?;
    Ok(Json(json!({"id": id, "object": "job.deleted", "deleted": true})))
}

/// `GET /v1/jobs/{id}/events`: what becomes of a job, as it becomes so. Each event tells the whole job, so that whoever was away
/// has missed nothing.
pub(super) async fn events(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    Name(id): Name,
) -> Result<Response, ApiError> {
    let known = parse(&id)?;
    let follower = app.jobs.follow(owner(&caller), &known).await.map_err(|error| refusal(error, &id))?;
    let config = app.handle.config();
    let seen = headers.get("last-event-id").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let events = Events {
        follower,
        jobs: app.jobs.clone(),
        shape: shape(&config, &headers),
        ping: config.limits.sse_ping.unwrap_or(PING),
        seen,
        is_first: true,
        has_ended: false,
    };
    let body = stream::unfold(events, async |mut events| {
        let piece = events.next().await?;
        Some((Ok::<_, std::convert::Infallible>(piece), events))
    });
    Ok((stream_headers(sse::CONTENT_TYPE), Body::from_stream(body)).into_response())
}

/// The events of a job.
struct Events {
    follower: watch::Receiver<JobView>,
    jobs: Jobs,
    shape: JobShape,
    /// Silence after which a comment is sent.
    ping: Duration,
    /// The last event that the client has.
    seen: Option<String>,
    is_first: bool,
    has_ended: bool,
}

impl Events {
    /// The next event, or a comment; nothing once the job is over, or the host stops.
    async fn next(&mut self) -> Option<Bytes> {
        let mut out = Vec::new();
        while !self.has_ended {
            if !std::mem::take(&mut self.is_first) {
                tokio::select! {
                    changed = self.follower.changed() => changed.ok()?,
                    () = self.jobs.stopping() => return None,
                    () = tokio::time::sleep(self.ping) => {
                        sse::write_ping(&mut out);
                        return Some(out.into());
                    }
                }
            }
            let view = self.follower.borrow_and_update().clone();
            self.has_ended = view.job.state.is_over();
            let id = format!("{}.{}", view.job.attempts, view.progress);
            if self.seen.take().is_some_and(|seen| seen == id) && !self.has_ended {
                continue;
            }
            let reply = self.shape.reply(view);
            out.extend_from_slice(format!("id: {id}\n").as_bytes());
            let name = reply.event();
            sse::write_event(&mut out, name, &json!({"type": name, "job": reply}));
            return Some(out.into());
        }
        None
    }
}

async fn find(jobs: &Jobs, caller: &Caller, id: &str) -> Result<JobView, ApiError> {
    jobs.get(owner(caller), &parse(id)?).await.map_err(|error| refusal(error, id))
}

fn owner(caller: &Caller) -> Option<&str> {
    caller.key().map(|key| key.name.as_str())
}

fn parse(id: &str) -> Result<JobId, ApiError> {
    JobId::parse(id).ok_or_else(|| ApiError::unknown_job(id))
}

fn refusal(error: StoreError, id: &str) -> ApiError {
    match error {
        StoreError::Unknown => ApiError::unknown_job(id),
        error => error.into(),
    }
}
