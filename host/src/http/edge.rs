//! What holds for every request and reply: admission, the headers every reply carries, and what a request holds to its end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::access_log::AccessLine;
use super::app::App;
use super::auth::{self, Access};
use super::caller::Caller;
use super::connections::peer_of;
use super::cors::CrossOrigin;
use super::error::{ApiError, Cause};
use super::error_form::ErrorForm;
use super::job_call::JobCall;
use super::quota::Leave;
use super::revalidated::Revalidated;
use super::trace_parent::{TRACE_PARENT, TraceParent};
use crate::runtime::AccessEntry;

/// Longest request id taken over from a client.
const MAX_REQUEST_ID: usize = 128;
/// The id of a request for which none could be made.
pub(super) const NO_ID: HeaderValue = HeaderValue::from_static("req_0");

/// A route's door.
#[derive(Clone)]
pub(super) struct Gate {
    pub(super) app: App,
    /// Whom it is open to.
    pub(super) access: Access,
}

/// Stands before every route.
pub(super) async fn edge(State(gate): State<Gate>, request: Request, next: Next) -> Response {
    let start = Instant::now();
    let id = request_id(request.headers());
    let trace = TraceParent::of(request.headers());
    let header = trace.as_ref().and_then(|trace| trace.header.to_str().ok()).unwrap_or_default();
    let entry = AccessEntry::traced(id.to_str().unwrap_or_default(), header);
    let line = Arc::new(gate.app.access_log.begin(&request, entry, trace.as_ref().map(|trace| trace.trace_id.clone())));
    let form = ErrorForm::of(request.uri().path());
    let cross_origin = CrossOrigin::of(&request);
    let mut response = if cross_origin.as_ref().is_some_and(CrossOrigin::is_preflight) {
        match auth::admit_preflight(&gate.app.handle.config(), request.headers()) {
            Ok(()) => StatusCode::NO_CONTENT.into_response(),
            Err(error) => error.into_response(),
        }
    } else {
        gate.pass(request, next, &line).await
    };
    let cause = response.extensions_mut().remove::<Cause>();
    if let Some(cause) = &cause {
        form.write(&mut response, cause, &id);
    }
    line.answers(response.status(), cause.as_ref());
    // The end of the answer is the end of the request.
    response.extensions_mut().insert(line);
    let headers = response.headers_mut();
    if let Some(trace) = trace {
        headers.insert(TRACE_PARENT, trace.header);
    }
    if let Some(cross_origin) = cross_origin {
        cross_origin.tell(&gate.app.handle.config(), headers);
    }
    if form == ErrorForm::Anthropic {
        headers.insert("request-id", id.clone());
    }
    sign(headers, id, start.elapsed());
    if response.extensions_mut().remove::<Revalidated>().is_some() {
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    }
    response
}

impl Gate {
    /// Hands a request on, if whoever sent it may ask for that, and now.
    async fn pass(&self, mut request: Request, next: Next, line: &AccessLine) -> Response {
        let (caller, Leave { place, rate }) = match self.admit(&request, line) {
            Ok(admitted) => admitted,
            Err(error) => return error.into_response(),
        };
        let held = Arc::new(self.app.bodies.begin(peer_of(&request)));
        request.extensions_mut().insert(caller.asking(line.entry().clone()));
        request.extensions_mut().insert(Arc::clone(&held));
        let mut response = next.run(request).await;
        // The answer is made from them, and its end is the end of the request: they count until then.
        response.extensions_mut().insert(held);
        if let Some(place) = place {
            response.extensions_mut().insert(place);
        }
        if let Some(rate) = rate {
            rate.tell(response.headers_mut());
        }
        response
    }

    /// Who asks, and what they were counted for.
    fn admit(&self, request: &Request, line: &AccessLine) -> Result<(Caller, Leave), ApiError> {
        let Self { app, access } = self;
        if let Some(job) = request.extensions().get::<JobCall>() {
            return self.admit_job(job, line);
        }
        let identified = auth::identify(&app.handle.config(), *access, request.uri(), request.headers());
        let caller = identified?;
        if let Some(key) = caller.key() {
            line.of_key(&key.name);
        }
        auth::authorize(&caller, *access).map_err(|error| error.with_rate(app.quotas.left(&caller)))?;
        let leave = match access {
            Access::Watching(_) => app.quotas.admit_watching(&caller)?,
            Access::Open | Access::AnyKey | Access::Scoped(_) | Access::Page(_) => app.quotas.admit(&caller)?,
        };
        check_expectation(request).map_err(|error| error.with_rate(leave.rate))?;
        Ok((caller, leave))
    }

    /// Whose job runs, and what it is counted for.
    fn admit_job(&self, job: &JobCall, line: &AccessLine) -> Result<(Caller, Leave), ApiError> {
        let caller = auth::owner(&self.app.handle.config(), job.owner.as_deref())?;
        if let Some(key) = caller.key() {
            line.of_key(&key.name);
        }
        auth::authorize(&caller, self.access)?;
        let leave = self.app.quotas.admit_job(&caller)?;
        Ok((caller.waiting_for(job.class, job.progress.clone()), leave))
    }
}

/// What every reply carries, whoever makes it. `took`: from its arrival to the head of its answer.
pub(super) fn sign(headers: &mut HeaderMap, id: HeaderValue, took: Duration) {
    // No browser and no proxy keeps an answer, or takes it for something else than it says it is.
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("x-request-id", id);
    headers.insert("openai-version", HeaderValue::from_static("2020-10-01"));
    let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    headers.insert("openai-processing-ms", HeaderValue::from(took_ms));
}

/// Refuses what a client expects and nobody here knows; one of HTTP/1.0 can expect nothing. What is known is met by the
/// protocol: it says that it goes on once the body is read.
fn check_expectation(request: &Request) -> Result<(), ApiError> {
    let mut expected = request.headers().get_all(header::EXPECT).iter();
    let is_met = |value: &HeaderValue| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"100-continue");
    if request.version() == Version::HTTP_10 || expected.all(is_met) { Ok(()) } else { Err(ApiError::unmet()) }
}

/// The client's own id if it is short and plain, else a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let is_plain = |id: &HeaderValue| {
        let bytes = id.as_bytes();
        (1..=MAX_REQUEST_ID).contains(&bytes.len())
            && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(byte))
    };
    match headers.get("x-request-id") {
        Some(id) if is_plain(id) => id.clone(),
        _ => HeaderValue::try_from(super::wire::new_id("req_")).unwrap_or(NO_ID),
    }
}
