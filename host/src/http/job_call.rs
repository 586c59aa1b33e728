//! A job's turn: what it asks goes through the same routes as a request whose client waits, and what comes back is what the job
//! came to. Nothing here answers anything by itself.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::response::Parts;
use axum::http::{HeaderName, HeaderValue, Method, Request, header};
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::Deserialize;
use serde_json::Value;
use tower::ServiceExt;

use super::access_log::AccessLine;
use super::app::App;
use super::blocking::run_blocking;
use super::wire::{ReceivedBody, is_urgent};
use crate::config::Limits;
use crate::domain::{ByteSize, Class};
use crate::jobs::{Attempt, Dispatch, JobError, JobLimits, Outcome, Progress};

/// Most bytes of a job's answer.
const ANSWER_BYTES_MAX: usize = 512 << 20;
/// The code of what is refused because the host ends.
const ENDING: &str = "shutting_down";

/// That a request is a job's, and whose. Only this host can say so: what comes over a connection brings no extensions.
#[derive(Clone, Debug)]
pub(super) struct JobCall {
    /// The name of the key that the job came with.
    pub(super) owner: Option<String>,
    /// How urgent it is.
    pub(super) class: Class,
    /// Who is told how far it is.
    pub(super) progress: Progress,
}

/// Answers jobs by the routes of this host.
#[derive(Clone, Debug)]
pub(super) struct JobDispatch {
    pub(super) app: App,
    pub(super) router: Router,
}

impl Dispatch for JobDispatch {
    fn limits(&self) -> JobLimits {
        limits(&self.app.handle.config().limits)
    }

    fn run(&self, attempt: Attempt) -> BoxFuture<'static, Outcome> {
        let this = self.clone();
        async move { this.answer(attempt).await.unwrap_or_else(Outcome::Failed) }.boxed()
    }
}

/// What jobs are held to.
pub(super) fn limits(limits: &Limits) -> JobLimits {
    JobLimits { unfinished: limits.jobs, at_once: limits.jobs_at_once, ttl: limits.job_ttl, bytes: limits.job_bytes }
}

impl JobDispatch {
    async fn answer(self, attempt: Attempt) -> Result<Outcome, JobError> {
        let response = match self.router.oneshot(request(attempt)?).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        // What they hold is held until the answer has been read.
        let (parts, body) = response.into_parts();
        let bytes = to_bytes(body, ANSWER_BYTES_MAX).await.map_err(|error| unread(&error))?;
        if let Some(line) = parts.extensions.get::<Arc<AccessLine>>() {
            line.whole();
        }
        outcome(&parts, bytes).await
    }
}

/// What a job asks, as a request.
fn request(Attempt { job, request: asked, progress }: Attempt) -> Result<Request<Body>, JobError> {
    let received = ReceivedBody { text: &asked.body, class: Class::Batch };
    let class = if is_urgent(&received) { Class::Interactive } else { Class::Batch };
    let mut request = Request::new(Body::from(asked.body));
    *request.method_mut() = Method::POST;
    let unreadable = || JobError::new(500, "internal_error", "what is kept of this job cannot be asked any more");
    *request.uri_mut() = job.endpoint.parse().map_err(|_| unreadable())?;
    for (name, value) in asked.headers {
        let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) else { continue };
        request.headers_mut().insert(name, value);
    }
    request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Ok(id) = HeaderValue::try_from(job.id.as_str()) {
        request.headers_mut().insert("x-request-id", id);
    }
    request.extensions_mut().insert(JobCall { owner: job.owner, class, progress });
    Ok(request)
}

/// What of an answer of JSON concerns a job.
#[derive(Deserialize)]
struct Told {
    usage: Option<Value>,
    error: Option<Value>,
}

async fn outcome(parts: &Parts, bytes: Bytes) -> Result<Outcome, JobError> {
    let header = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let content_type = header("content-type").unwrap_or_else(|| "application/octet-stream".to_owned());
    let told = if content_type.starts_with("application/json") {
        let bytes = bytes.clone();
        let read = run_blocking(move || Ok(serde_json::from_slice::<Told>(&bytes).ok())).await;
        read.ok().flatten()
    } else {
        None
    };
    if parts.status.is_success() {
        return Ok(Outcome::Answered { content_type, bytes, usage: told.and_then(|told| told.usage) });
    }
    let status = parts.status.as_u16();
    let error = told.and_then(|told| told.error);
    let may_retry = header("x-should-retry").as_deref() != Some("false");
    let retry_after = header("retry-after").and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
    match retry_after {
        Some(wait) if may_retry && matches!(status, 429 | 503) => return Ok(Outcome::NotNow(wait)),
        None if error.as_ref().is_some_and(|error| error["code"] == ENDING) => {
            return Ok(Outcome::NotNow(Duration::ZERO));
        }
        _ => {}
    }
    Err(match error {
        Some(error) if error.is_object() => JobError { status, error },
        _ => {
            let said = String::from_utf8_lossy(&bytes[..bytes.len().min(500)]).into_owned();
            JobError::new(status, "engine_error", &format!("the model's engine answered with status {status}: {said}"))
        }
    })
}

/// Why an answer was not read to its end.
fn unread(error: &axum::Error) -> JobError {
    let is_too_long =
        std::error::Error::source(error).is_some_and(|source| source.is::<http_body_util::LengthLimitError>());
    if is_too_long {
        let most = ByteSize(ANSWER_BYTES_MAX as u64);
        JobError::new(
            507,
            "answer_too_large",
            &format!("the answer is larger than {most}, the most of a job; ask for less"),
        )
    } else {
        JobError::new(502, "answer_broken", &format!("the answer ended before it was whole: {error}"))
    }
}
