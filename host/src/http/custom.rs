//! Models of kind `custom`: whatever is asked at an entry's `endpoint:` or below it goes to its plugin, and what that answers
//! goes to the client. What is asked and answered is between the two; here the frame alone is known.

use std::io;
use std::ops::ControlFlow;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use aihost_plugin_api::{CustomHead, CustomRequest};
use axum::body::{Body, HttpBody};
use axum::extract::{FromRequest, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::sync::mpsc;

use super::app::App;
use super::auth::{self, Access};
use super::body::{ArrivingBody, BodySize, RawBody};
use super::caller::Caller;
use super::content_coding::unpack;
use super::divert::{Diverted, EnginePath, Head, Taken};
use super::error::ApiError;
use super::generate::broken_off;
use super::openai::explain;
use super::proxy::{self, Outgoing, OutgoingBody};
use super::resolve;
use super::stream_body::{StreamBody, StreamWriter};
use super::wire;
use crate::config::{Config, ModelConfig, Scope};
use crate::domain::{Failure, FailureKind, Kind};
use crate::runtime::{Handle, OutputMode, Submission};
use crate::worker::{Output, Task};

/// Bytes after which a piece is sent even if more is ready.
const PIECE_BYTES: usize = 64 * 1024;
/// How long an answer that has begun is waited for to be whole, so that a short one has its length.
const WHOLE_WAIT: Duration = Duration::from_millis(2);
/// Most bytes of an answer's headers; common clients read no more.
const HEAD_BYTES: usize = 16 << 10;
/// Headers of a request that its plugin sees, beside those that begin with `x-`.
const SEEN: [HeaderName; 3] = [header::ACCEPT, header::ACCEPT_LANGUAGE, header::CONTENT_TYPE];
/// What the paths begin with of APIs that engines may speak beyond this host.
const API_PREFIX: &str = "/v1/";
/// Bytes of a body up to which it is taken in before it is sent on.
const WHOLE_BYTES: u64 = 256 << 10;
/// Parts of names of headers that carry what opens something.
const SECRETS: [&str; 6] = ["auth", "cookie", "key", "password", "secret", "token"];
/// Headers of an answer that are the host's to say, or between it and the client's connection; and cookies, which would be sent
/// to all that this host serves.
const OWN: [HeaderName; 14] = [
    header::CACHE_CONTROL,
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::DATE,
    header::PROXY_AUTHENTICATE,
    header::SERVER,
    header::SET_COOKIE,
    header::STRICT_TRANSPORT_SECURITY,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::X_CONTENT_TYPE_OPTIONS,
];
/// The same, by how they begin.
const OWN_PREFIXES: [&str; 8] =
    ["access-control-", "keep-alive", "openai-", "proxy-", "traceparent", "x-accel-", "x-ratelimit-", "x-request-id"];

/// Answers what no route answers: the model whose endpoint it is, if there is one for this caller.
pub(super) async fn answer(State(app): State<App>, caller: Caller, mut request: Request) -> Result<Response, ApiError> {
    let config = app.handle.config();
    let path = request.uri().path().to_owned();
    let (endpoint, models) = at(&app.handle, &config, &caller, &path);
    if models.is_empty() {
        return elsewhere(app, &config, &caller, request).await;
    }
    auth::authorize(&caller, Access::Scoped(Scope::Use))?;
    if let [only] = models.as_slice()
        && app.handle.speaks_http(only)
    {
        caller.access().asks_for(&only.id);
        request.extensions_mut().insert(BodySize::Files);
        return pass(&app, &caller, only, endpoint, request).await;
    }
    let mut asked = CustomRequest::default();
    (asked.method, asked.path) = (request.method().as_str().to_owned(), path[endpoint.len()..].to_owned());
    asked.query = request.uri().query().unwrap_or_default().to_owned();
    let delivery = replay(request.method(), request.headers());
    visible(request.headers(), &mut asked);
    request.extensions_mut().insert(BodySize::Files);
    unpack(&mut request)?;
    let (parts, body) = request.into_parts();
    let body = RawBody::from_request(Request::from_parts(parts.clone(), body), &app).await?;
    let model = choose(&models, endpoint, &asked.query, &body).await?;
    if app.handle.speaks_http(model) {
        caller.access().asks_for(&model.id);
        let mut again = Request::from_parts(parts, Body::empty());
        again.extensions_mut().insert(body);
        return pass(&app, &caller, model, endpoint, again).await;
    }
    let model = model.id.clone();
    caller.access().asks_for(&model);
    let blocks = if body.bytes.is_empty() { Vec::new() } else { vec![body.bytes] };
    let task = Task { header: wire::json(&asked).into(), blocks, ..Task::default() };
    let ask = task.into();
    let (class, access) = (caller.class(), caller.access().clone());
    let submission =
        Submission { model: model.clone(), kind: Kind::Custom, ask, class, keep_alive: None, delivery, access };
    let result = match app.handle.submit(submission).await {
        Ok(answer) => respond(answer.output).await,
        Err(failure) => Err(failure),
    };
    match result {
        Ok(response) => Ok(response),
        Err(failure) => Err(explain(&app, failure, &model, "body").await),
    }
}

/// What is at no endpoint: another of OpenAI's paths, of a model that is named and whose engine may have it.
async fn elsewhere(app: App, config: &Config, caller: &Caller, mut request: Request) -> Result<Response, ApiError> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let unknown = || ApiError::unknown_path(method.as_str(), &path);
    if !path.starts_with(API_PREFIX) || !app.handle.may_speak_http(config) {
        return Err(unknown());
    }
    auth::authorize(caller, Access::Scoped(Scope::Use))?;
    request.extensions_mut().insert(BodySize::Files);
    match (Diverted { app, wanted: None, at: EnginePath::Same }).take(config, request).await? {
        Taken::Answered(response) => Ok(response),
        Taken::Left(_) => Err(unknown()),
    }
}

/// Passes a request on to the engine of a model, at the path that it has there.
async fn pass(
    app: &App,
    caller: &Caller,
    model: &ModelConfig,
    endpoint: &str,
    mut request: Request,
) -> Result<Response, ApiError> {
    let upgrade = proxy::upgrade_of(&mut request);
    let mut head = Head::of(&request);
    if !model.http.has_endpoint {
        // Nothing but what is below it: an engine tells its endpoint from the same with a slash behind it.
        head.target = head.target[endpoint.len()..].to_owned();
    }
    let repeatable = proxy::is_repeatable(request.method(), request.headers());
    let body = whole_or_streamed(app, request).await?;
    let delivery = match &body {
        OutgoingBody::Whole(_) if repeatable => OutputMode::Streamed,
        _ => OutputMode::Once,
    };
    let outgoing = Outgoing { upgrade, ..head.outgoing(body, delivery, caller.class(), None) };
    proxy::ask(app, caller, model, outgoing).await
}

/// A short body is taken in, so that it can be sent once more; a long one is passed on as it comes.
pub(super) async fn whole_or_streamed(app: &App, request: Request) -> Result<OutgoingBody, ApiError> {
    let is_here = request.extensions().get::<RawBody>().is_some();
    let length = request.body().size_hint().exact();
    if is_here || length.is_some_and(|length| length <= WHOLE_BYTES) {
        return RawBody::receive(request, app).await.map(|body| OutgoingBody::Whole(body.bytes));
    }
    ArrivingBody::of(request, app).map(OutgoingBody::Streamed)
}

/// The longest endpoint that this path is at or below, and the models that have it.
fn at<'a>(handle: &Handle, config: &'a Config, caller: &Caller, path: &str) -> (&'a str, Vec<&'a ModelConfig>) {
    let (mut longest, mut models) = ("", Vec::new());
    // One whose engine answers HTTP itself may have an endpoint of its own, whatever it makes.
    let has_its_own = |model: &&ModelConfig| model.kind == Kind::Custom || handle.speaks_http(model);
    for model in resolve::seen(config, caller).filter(has_its_own) {
        let Some(endpoint) = model.endpoint.as_deref() else { continue };
        let is_below = path.strip_prefix(endpoint).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        if !is_below || endpoint.len() < longest.len() {
            continue;
        }
        if endpoint.len() > longest.len() {
            (longest, models) = (endpoint, Vec::new());
        }
        models.push(model);
    }
    (longest, models)
}

/// The model that is meant among those of one endpoint: the one that `model` names in the query or in a body of JSON, else the
/// only one, or the default.
async fn choose<'a>(
    models: &[&'a ModelConfig],
    endpoint: &str,
    query: &str,
    body: &RawBody,
) -> Result<&'a ModelConfig, ApiError> {
    if let [only] = models {
        return Ok(only);
    }
    let named = |name: &str| models.iter().find(|model| model.is_called(name)).copied();
    let by_query = query.split('&').find_map(|pair| named(pair.strip_prefix("model=")?));
    if let Some(model) = by_query {
        return Ok(model);
    }
    // What is no JSON names none.
    let name = body.clone().read(wire::parse_name).await.ok().flatten();
    if let Some(model) = name.as_deref().and_then(named) {
        return Ok(model);
    }
    resolve::unnamed(models.iter().copied(), Kind::Custom, endpoint)
}

/// Whether it may be asked of another worker when one died of it: by HTTP, if asking twice is as good as once.
fn replay(method: &Method, headers: &HeaderMap) -> OutputMode {
    let is_repeatable = method.is_idempotent() || headers.contains_key("idempotency-key");
    if is_repeatable { OutputMode::Streamed } else { OutputMode::Once }
}

/// Takes over the headers that a plugin may see.
fn visible(headers: &HeaderMap, asked: &mut CustomRequest) {
    for name in headers.keys() {
        let text = name.as_str();
        let is_private = text.starts_with("x-forwarded-") || text == "x-real-ip";
        let is_open = text.starts_with("x-") && !is_private && !SECRETS.iter().any(|secret| text.contains(secret));
        if !SEEN.contains(name) && !is_open {
            continue;
        }
        let values: Vec<_> = headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
        if !values.is_empty() {
            asked.headers.insert(text.to_owned(), values.join(", "));
        }
    }
}

/// Waits until the answer begins, so that an early failure is a plain refusal.
async fn respond(mut output: mpsc::Receiver<Output>) -> Result<Response, Failure> {
    let head = loop {
        match output.recv().await {
            Some(Output::Event(json)) => break read_head(&json)?,
            Some(Output::Progress { .. }) => {}
            Some(Output::Done(Err(failure))) => return Err(failure),
            Some(Output::Bytes(_) | Output::Http(_) | Output::Done(Ok(_))) => {
                return Err(wrong("the plugin's answer has no head"));
            }
            None => return Err(broken_off()),
        }
    };
    let mut response = StreamBody::new(CustomStream { output }, PIECE_BYTES).into_response_within(WHOLE_WAIT).await?;
    if matches!(head.status(), StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED) {
        *response.body_mut() = Body::empty();
    }
    *response.status_mut() = head.status();
    response.headers_mut().extend(head.into_parts().0.headers);
    Ok(response)
}

/// Status and headers, without those that a plugin does not say.
fn read_head(json: &[u8]) -> Result<Response, Failure> {
    let head: CustomHead =
        serde_json::from_slice(json).map_err(|error| wrong(format!("the plugin's answer has no head: {error}")))?;
    let bytes: usize = head.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes + head.content_type.len() > HEAD_BYTES {
        return Err(wrong("the plugin's answer has a head larger than clients read"));
    }
    let status = StatusCode::from_u16(head.status).ok().filter(|status| status.as_u16() >= 200);
    let status =
        status.ok_or_else(|| wrong(format!("the plugin answered with status {}, which is none", head.status)))?;
    let content_type = HeaderValue::try_from(head.content_type.as_str());
    let content_type = content_type.map_err(|_| wrong("the plugin's content type is none"))?;
    let mut response = (status, [(header::CONTENT_TYPE, content_type)]).into_response();
    for (name, value) in head.headers {
        let bad = || wrong(format!("the plugin answered with a header `{name}` that is none"));
        let read = HeaderName::try_from(name.as_str()).map_err(|_| bad())?;
        if OWN.contains(&read) || OWN_PREFIXES.iter().any(|prefix| read.as_str().starts_with(prefix)) {
            continue;
        }
        let value = HeaderValue::try_from(value).map_err(|_| bad())?;
        response.headers_mut().insert(read, value);
    }
    Ok(response)
}

fn wrong(message: impl Into<String>) -> Failure {
    Failure::new(FailureKind::Internal, message)
}

/// The body of an answer, as it comes.
struct CustomStream {
    output: mpsc::Receiver<Output>,
}

impl StreamWriter for CustomStream {
    fn poll_write(&mut self, cx: &mut Context<'_>, out: &mut Vec<u8>) -> Poll<Result<ControlFlow<()>, Failure>> {
        match ready!(self.output.poll_recv(cx)) {
            Some(Output::Bytes(bytes)) => out.extend_from_slice(&bytes),
            Some(Output::Progress { .. } | Output::Http(_)) => {}
            Some(Output::Event(_)) => return Poll::Ready(Err(wrong("the plugin began its answer twice"))),
            Some(Output::Done(Ok(_))) => return Poll::Ready(Ok(ControlFlow::Break(()))),
            Some(Output::Done(Err(failure))) => return Poll::Ready(Err(failure)),
            None => return Poll::Ready(Err(broken_off())),
        }
        Poll::Ready(Ok(ControlFlow::Continue(())))
    }

    /// A body of any kind has no way to say that it is not whole.
    fn fail(&mut self, _out: &mut Vec<u8>, failure: Failure) -> io::Result<()> {
        Err(io::Error::other(failure.to_string()))
    }
}
