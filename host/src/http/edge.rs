//! What holds for every request and reply: admission, CORS, the headers every reply carries, and the bytes that a request holds.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::app::App;
use super::auth;
use super::connections::peer_of;

/// Longest request id taken over from a client.
const MAX_REQUEST_ID: usize = 128;

/// Stands before every route.
pub(super) async fn edge(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let start = Instant::now();
    let id = request_id(request.headers());
    let origin = request.headers().get(header::ORIGIN).cloned();
    let asked_headers = request.headers().get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
    let config = app.handle.config();
    let is_preflight = request.method() == Method::OPTIONS && origin.is_some();
    let mut response = if is_preflight {
        match auth::admit_preflight(&config, request.headers()) {
            Ok(()) => StatusCode::NO_CONTENT.into_response(),
            Err(error) => error.into_response(),
        }
    } else {
        match auth::admit(&config, request.uri().path(), request.headers()) {
            Ok(class) => {
                request.extensions_mut().insert(class);
                let held = Arc::new(app.bodies.begin(peer_of(&request)));
                request.extensions_mut().insert(Arc::clone(&held));
                let mut response = next.run(request).await;
                // The answer is made from them: they count until it has ended.
                response.extensions_mut().insert(held);
                response
            }
            Err(error) => error.into_response(),
        }
    };
    let headers = response.headers_mut();
    if let Some(origin) = origin {
        allow_local_page(headers, origin);
    }
    if is_preflight {
        allow_preflight(headers, asked_headers);
    }
    headers.insert("x-request-id", id);
    headers.insert("openai-version", HeaderValue::from_static("2020-10-01"));
    let elapsed_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    headers.insert("openai-processing-ms", HeaderValue::from(elapsed_ms));
    response
}

/// Lets a page read the reply if it was served from this machine; any other gets no leave.
fn allow_local_page(headers: &mut HeaderMap, origin: HeaderValue) {
    headers.append(header::VARY, HeaderValue::from_static("Origin"));
    if origin.to_str().is_ok_and(auth::is_local_origin) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        let exposed = HeaderValue::from_static("x-request-id, openai-processing-ms, retry-after");
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    }
}

fn allow_preflight(headers: &mut HeaderMap, asked: Option<HeaderValue>) {
    if !headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN) {
        return;
    }
    let methods = HeaderValue::from_static("GET, POST, DELETE, OPTIONS");
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
