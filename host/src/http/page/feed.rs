//! `GET /admin/overview`: a host at this moment. `GET /admin/events`: the same, and then what changes, as it changes, with a
//! sign of life each second, so that whoever watches knows within seconds that the host is gone.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::json;
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::{Instant, sleep_until};

use super::super::app::App;
use super::super::background::shape;
use super::super::caller::Caller;
use super::super::error::ApiError;
use super::super::sse;
use super::super::stream_body::headers as stream_headers;
use super::super::wire::{self, JobReply, JobShape};
use super::message::{HostReply, Known, Message};
use super::pulse::Look;
use crate::telemetry::unix_ms;

/// Who may watch at once: each has a connection for as long as they like.
const WATCHERS_MAX: usize = 32;
/// Silence after which a sign of life is sent.
const BEAT: Duration = Duration::from_secs(1);
/// Jobs that are told of, the newest.
const JOBS_MAX: usize = 50;
/// Between two looks at the jobs.
const JOBS_EVERY: Duration = Duration::from_secs(1);

static WATCHERS: Semaphore = Semaphore::const_new(WATCHERS_MAX);

/// `GET /admin/overview`.
pub(in crate::http) async fn overview(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let (overview, devices) = tokio::try_join!(app.handle.overview(), app.handle.devices())?;
    let look = tokio::task::spawn_blocking(move || Look::of(overview, devices, 1)).await;
    let look = look.map_err(|error| ApiError::internal(error.to_string()))?;
    let shape = shape(&app.handle.config(), &headers);
    let jobs = jobs(&app, &caller, &shape).await;
    let mut known = Known::of(caller);
    let json = wire::json(&whole(&app, &mut known, &look, &jobs));
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], json).into_response())
}

/// `GET /admin/events`.
pub(in crate::http) async fn events(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let Ok(place) = WATCHERS.try_acquire() else {
        return Err(ApiError::too_many_watchers(WATCHERS_MAX));
    };
    let now = Instant::now();
    let feed = Feed {
        looks: app.page.pulse.watch(&app),
        shape: shape(&app.handle.config(), &headers),
        known: Known::of(caller.clone()),
        caller,
        app,
        is_first: true,
        said: now,
        jobs_due: now,
        _place: place,
    };
    let body = stream::unfold(feed, async |mut feed| {
        let piece = feed.next().await?;
        Some((Ok::<_, Infallible>(piece), feed))
    });
    let mut response = (stream_headers(sse::CONTENT_TYPE), Body::from_stream(body)).into_response();
    // What nginx and its like understand: each event is to be passed on as it comes.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

/// What one of those who watch is sent.
struct Feed {
    looks: watch::Receiver<Option<Arc<Look>>>,
    shape: JobShape,
    known: Known,
    caller: Caller,
    app: App,
    is_first: bool,
    /// When something was last sent.
    said: Instant,
    jobs_due: Instant,
    _place: SemaphorePermit<'static>,
}

impl Feed {
    /// The next event; nothing once the host ends.
    async fn next(&mut self) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        while out.is_empty() {
            tokio::select! {
                changed = self.looks.changed() => changed.ok()?,
                () = self.app.jobs.stopping() => return None,
                () = sleep_until(self.said + BEAT) => {
                    sse::write_event(&mut out, "beat", &json!({"now_ms": unix_ms()}));
                    break;
                }
            }
            let look = self.looks.borrow_and_update().clone()?;
            let jobs = if self.jobs_due <= Instant::now() {
                self.jobs_due = Instant::now() + JOBS_EVERY;
                Some(jobs(&self.app, &self.caller, &self.shape).await)
            } else {
                None
            };
            if std::mem::take(&mut self.is_first) {
                let jobs = jobs.unwrap_or_default();
                sse::write_event(&mut out, "snapshot", &whole(&self.app, &mut self.known, &look, &jobs));
            } else {
                let requests = self.app.access_log.recent().after(self.known.request());
                let news = self.known.news(&look, requests, jobs.as_ref());
                if news.is_news() {
                    sse::write_event(&mut out, "change", &news);
                }
            }
        }
        self.said = Instant::now();
        Some(out)
    }
}

/// All that there is.
fn whole<'a>(app: &App, known: &mut Known, look: &'a Look, jobs: &'a Vec<JobReply>) -> Message<'a> {
    let requests = app.access_log.recent().after(0);
    let host = HostReply { version: env!("CARGO_PKG_VERSION"), started_s: app.started_s };
    let history = app.page.history.told();
    let mut message = Message { host: Some(host), history: Some(history), ..known.news(look, requests, Some(jobs)) };
    message.models.get_or_insert_default();
    message.waiting.get_or_insert_default();
    message.swaps.get_or_insert_default();
    message.requests.get_or_insert_default();
    message
}

/// The jobs of whoever asks; none where none are kept.
async fn jobs(app: &App, caller: &Caller, shape: &JobShape) -> Vec<JobReply> {
    let owner = caller.key().map(|key| key.name.clone());
    let jobs = app.jobs.list(owner, None, JOBS_MAX).await.unwrap_or_default();
    jobs.into_iter().map(|view| shape.reply(view)).collect()
}
