//! `/upstream/NAME/...`: the paths of an engine's own, for its page and its programs, where its entry opens them. A browser says
//! its key once, in the query, and has it in a cookie from then on, since pages send no other.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};

use super::app::App;
use super::body::BodySize;
use super::caller::Caller;
use super::custom::whole_or_streamed;
use super::error::ApiError;
use super::page_key::{COOKIE, QUERY, cookies, in_query, pairs};
use super::proxy::{self, Outgoing};
use super::resolve;
use crate::domain::{Failure, FailureKind};

/// What stands before the name.
pub(super) const PREFIX: &str = "/upstream/";

/// Passes a request on to the engine that it names.
pub(super) async fn answer(State(app): State<App>, caller: Caller, mut request: Request) -> Result<Response, ApiError> {
    let config = app.handle.config();
    let rest = request.uri().path().strip_prefix(PREFIX).unwrap_or_default().to_owned();
    let seen = || resolve::seen(&config, &caller);
    // Names may have slashes: the longest that this begins with is meant.
    let is_at = |name: &str| rest.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let named = seen().filter_map(|model| {
        let names = std::iter::once(model.id.as_str()).chain(model.aliases.iter().map(String::as_str));
        names.filter(|name| is_at(name)).max_by_key(|name| name.len()).map(|name| (name.len(), model))
    });
    let Some((length, model)) = named.max_by_key(|(length, _)| *length) else {
        let name = rest.split('/').next().unwrap_or_default();
        resolve::by_name(&config, &caller, name)?;
        return Err(ApiError::unknown_path(request.method().as_str(), request.uri().path()));
    };
    caller.access().asks_for(&model.id);
    let base = format!("{PREFIX}{}", &rest[..length]);
    // Where nobody is asked for a key, what its address calls one is the engine's.
    let has_keys = !config.api_keys.is_empty();
    if let Some(welcome) = has_keys.then(|| welcome(&request, &base)).flatten() {
        return Ok(welcome);
    }
    let path = &rest[length..];
    if path.is_empty() && request.method() == Method::GET {
        // What a page asks for lies below it.
        return Ok(moved(&format!("{base}/"), request.uri().query()));
    }
    let is_open = model.http.routes.iter().any(|route| path.starts_with(route.as_str()));
    if !is_open || !app.handle.speaks_http(model) {
        let message = format!("the model `{}` does not answer at {base}{path}", model.id);
        let whole = format!("{message}; `upstream_routes:` of its entry opens paths of its engine");
        return Err(Failure::new(FailureKind::WrongKind, whole).for_clients(message).into());
    }
    request.extensions_mut().insert(BodySize::Files);
    let upgrade = proxy::upgrade_of(&mut request);
    let method = request.method().clone();
    let mut headers = proxy::forwarded(request.headers());
    headers.extend(cookies_of_its_own(request.headers()));
    let query =
        if has_keys { without_key(request.uri()) } else { request.uri().query().unwrap_or_default().to_owned() };
    let target = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
    let body = whole_or_streamed(&app, request).await?;
    let delivery = body.delivery(&method);
    let class = caller.class();
    let outgoing = Outgoing { method, target, headers, body, delivery, class, keep_alive: None, upgrade };
    let mut response = proxy::ask(&app, &caller, model, outgoing).await?;
    below(response.headers_mut(), &base);
    Ok(response)
}

/// What the engine sees of the query.
fn without_key(uri: &Uri) -> String {
    let is_key = |pair: &&str| pair.strip_prefix(QUERY).is_some_and(|rest| rest.starts_with('='));
    pairs(uri).filter(|pair| !is_key(pair)).collect::<Vec<_>>().join("&")
}

/// The cookies that the engine set itself.
fn cookies_of_its_own(headers: &HeaderMap) -> Option<(HeaderName, HeaderValue)> {
    let own: Vec<String> =
        cookies(headers).filter(|(name, _)| *name != COOKIE).map(|(name, value)| format!("{name}={value}")).collect();
    let value = HeaderValue::try_from(own.join("; ")).ok().filter(|value| !value.is_empty())?;
    Some((header::COOKIE, value))
}

/// A page that is asked for with a key in its address: the same without it, and the key in a cookie.
fn welcome(request: &Request, base: &str) -> Option<Response> {
    let key = in_query(request.uri()).filter(|_| request.method() == Method::GET)?;
    if request.headers().contains_key(header::UPGRADE) {
        return None;
    }
    let cookie = format!("{COOKIE}={key}; Path={base}; HttpOnly; SameSite=Strict");
    let mut response = moved(request.uri().path(), Some(&without_key(request.uri())));
    response.headers_mut().insert(header::SET_COOKIE, HeaderValue::try_from(cookie).ok()?);
    Some(response)
}

fn moved(path: &str, query: Option<&str>) -> Response {
    let query = query.filter(|query| !query.is_empty()).map(|query| format!("?{query}")).unwrap_or_default();
    match HeaderValue::try_from(format!("{path}{query}")) {
        Ok(location) => (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, location)]).into_response(),
        Err(_) => StatusCode::NOT_FOUND.into_response(),
    }
}

/// Where the engine sends a client: below the path at which it is found here.
fn below(headers: &mut HeaderMap, base: &str) {
    let Some(location) = headers.get(header::LOCATION).and_then(|value| value.to_str().ok()) else { return };
    if location.starts_with('/')
        && !location.starts_with("//")
        && let Ok(moved) = HeaderValue::try_from(format!("{base}{location}"))
    {
        headers.insert(header::LOCATION, moved);
    }
}
