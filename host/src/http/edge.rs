//! What holds for every request and reply: admission, CORS, the headers every reply carries, and what a request holds to its end.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::access_log::AccessLine;
use super::app::App;
use super::auth::{self, Access};
use super::caller::Caller;
use super::connections::peer_of;
use super::error::{ApiError, Cause};
use super::error_form::ErrorForm;
use super::quota::Leave;
use super::trace_parent::{TRACE_PARENT, TraceParent};
use crate::runtime::AccessEntry;

/// Longest request id taken over from a client.
const MAX_REQUEST_ID: usize = 128;

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
    let origin = request.headers().get(header::ORIGIN).cloned();
    let form = ErrorForm::of(request.uri().path());
    let asked_headers = request.headers().get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
    let is_preflight = request.method() == Method::OPTIONS && origin.is_some();
    let mut response = if is_preflight {
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
    if let Some(origin) = origin {
        allow_local_page(headers, origin);
    }
    if is_preflight {
        allow_preflight(headers, asked_headers);
    }
    keep_private(headers);
    if form == ErrorForm::Anthropic {
        headers.insert("request-id", id.clone());
    }
    headers.insert("x-request-id", id);
    headers.insert("openai-version", HeaderValue::from_static("2020-10-01"));
    let elapsed_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    headers.insert("openai-processing-ms", HeaderValue::from(elapsed_ms));
    response
}

impl Gate {
    /// Hands a request on, if whoever sent it may ask for that, and now.
    async fn pass(self, mut request: Request, next: Next, line: &AccessLine) -> Response {
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
        let identified = auth::identify(&app.handle.config(), *access, request.uri(), request.headers());
        let caller = identified?;
        if let Some(key) = caller.key() {
            line.of_key(&key.name);
        }
        auth::authorize(&caller, *access)?;
        let leave = app.quotas.admit(&caller)?;
        Ok((caller, leave))
    }
}

/// No browser and no proxy keeps an answer, or takes it for something else than it says it is.
pub(super) fn keep_private(headers: &mut HeaderMap) {
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
}

/// Lets a page read the reply if it was served from this machine; any other gets no leave.
fn allow_local_page(headers: &mut HeaderMap, origin: HeaderValue) {
    headers.append(header::VARY, HeaderValue::from_static("Origin"));
    if origin.to_str().is_ok_and(auth::is_local_origin) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        let exposed = HeaderValue::from_static(
            "x-request-id, openai-processing-ms, retry-after, x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests",
        );
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    }
}

fn allow_preflight(headers: &mut HeaderMap, asked: Option<HeaderValue>) {
    if !headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN) {
        return;
    }
    let methods = HeaderValue::from_static("GET, POST, PUT, PATCH, DELETE, OPTIONS");
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
    let allowed = asked.unwrap_or(HeaderValue::from_static("*"));
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, allowed);
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
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
        _ => HeaderValue::try_from(super::wire::new_id("req_")).unwrap_or(HeaderValue::from_static("req_0")),
    }
}
