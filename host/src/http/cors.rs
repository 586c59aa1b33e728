//! Pages and apps of another origin: which of them may read answers, and what their browsers are told of it.

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, header};

use super::auth;
use crate::config::Config;

/// Headers of an answer that a page may read beside those that every page may.
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "x-request-id, openai-processing-ms, openai-version, retry-after, x-should-retry, x-ratelimit-limit-requests, \
     x-ratelimit-remaining-requests, x-ratelimit-reset-requests, www-authenticate, allow",
);
const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
/// How long a browser may keep a preflight's answer, seconds.
const MAX_AGE_S: HeaderValue = HeaderValue::from_static("600");
const VARY: HeaderValue = HeaderValue::from_static("Origin");
const VARY_OF_PREFLIGHT: HeaderValue =
    HeaderValue::from_static("Origin, Access-Control-Request-Method, Access-Control-Request-Headers");

/// What a request says of the page that sends it.
pub(super) struct CrossOrigin {
    origin: HeaderValue,
    /// The browser asks first whether it may; and the headers that it would send.
    preflight: Option<HeaderValue>,
}

impl CrossOrigin {
    /// Of a request that a browser's page or an app sends.
    pub(super) fn of(request: &Request) -> Option<Self> {
        let headers = request.headers();
        let origin = headers.get(header::ORIGIN)?.clone();
        let asked = || headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
        let preflight = (request.method() == Method::OPTIONS).then(|| asked().unwrap_or(HeaderValue::from_static("*")));
        Some(Self { origin, preflight })
    }

    /// Whether nothing is asked for yet.
    pub(super) fn is_preflight(&self) -> bool {
        self.preflight.is_some()
    }

    /// Lets the page read the answer if it is one that may; any other gets no leave.
    pub(super) fn tell(self, config: &Config, headers: &mut HeaderMap) {
        let Self { origin, preflight } = self;
        headers.append(header::VARY, if preflight.is_some() { VARY_OF_PREFLIGHT } else { VARY });
        if !origin.to_str().is_ok_and(|origin| auth::may_read(config, origin)) {
            return;
        }
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        if let Some(asked) = preflight {
            headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, asked);
            headers.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE_S);
        }
    }
}
