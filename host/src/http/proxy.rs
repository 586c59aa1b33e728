//! Requests to models whose engines answer HTTP themselves: what is sent on, what comes back, and what of either is between
//! one side and this host alone. Bodies stream both ways, and what is looked at of them is where an event ends.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Frame, SizeHint};
use hyper::upgrade::OnUpgrade;
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, interval_at};

use super::app::App;
use super::body::{ArrivingBody, BodyProblem};
use super::caller::Caller;
use super::connection::Bridge;
use super::error::ApiError;
use super::generate::broken_off;
use super::openai::explain;
use super::page_key::percent_decoded;
use super::passed_events::PassedEvents;
use super::sse;
use super::websocket::{self, Holder};
use crate::config::ModelConfig;
use crate::domain::{Class, Failure, FailureKind, Kind};
use crate::runtime::{Answer, KeepAlive, OutputMode, Submission};
use crate::worker::{Ask, AskBody, HttpAsk, HttpHead, HttpOutput, Output};

/// Headers between two neighbours, which say nothing to those behind them.
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];
/// Headers of a request that are for this host, or that are made anew.
const FOR_US: [HeaderName; 6] = [
    header::AUTHORIZATION,
    header::CONTENT_LENGTH,
    header::COOKIE,
    header::EXPECT,
    header::HOST,
    HeaderName::from_static("x-api-key"),
];
/// Headers of an answer that are this host's to say.
const OURS: [HeaderName; 7] = [
    header::CACHE_CONTROL,
    header::DATE,
    header::SERVER,
    header::SET_COOKIE,
    header::STRICT_TRANSPORT_SECURITY,
    header::X_CONTENT_TYPE_OPTIONS,
    HeaderName::from_static("x-request-id"),
];
/// The same, by how they begin.
const OUR_PREFIXES: [&str; 3] = ["access-control-", "openai-", "x-ratelimit-"];

/// What is sent on.
pub(super) struct Outgoing {
    pub(super) method: Method,
    /// Path and query at the engine.
    pub(super) target: String,
    /// As they came, or what [`forwarded`] left of them.
    pub(super) headers: HeaderMap,
    pub(super) body: OutgoingBody,
    pub(super) delivery: OutputMode,
    pub(super) class: Class,
    pub(super) keep_alive: Option<KeepAlive>,
    /// The client's side, if it wants to speak something else.
    pub(super) upgrade: Option<OnUpgrade>,
}

/// What a request carries.
pub(super) enum OutgoingBody {
    Whole(Bytes),
    /// It comes while it is sent, after these bytes.
    Streamed(ArrivingBody),
}

impl OutgoingBody {
    /// When what is answered to it is passed on. What can be sent twice, by a method for which twice is as good as once, may be
    /// asked of another worker when one died of it.
    pub(super) fn delivery(&self, method: &Method) -> OutputMode {
        match self {
            Self::Whole(_) if method.is_idempotent() => OutputMode::Streamed,
            Self::Whole(_) | Self::Streamed(_) => OutputMode::Once,
        }
    }
}

/// Asks the engine of a model, and answers as it does.
pub(super) async fn ask(
    app: &App,
    caller: &Caller,
    model: &ModelConfig,
    mut outgoing: Outgoing,
) -> Result<Response, ApiError> {
    let upgrade = outgoing.upgrade.take();
    if upgrade.is_none() {
        outgoing.headers.remove(header::UPGRADE);
        outgoing.headers.remove(header::CONNECTION);
    }
    let is_head = outgoing.method == Method::HEAD;
    let ping = app.handle.config().limits.sse_ping;
    let asked = Asked { kind: model.kind, target: outgoing.target.clone(), is_head, ping };
    let (submission, problem) = submission(app, caller, model, outgoing)?;
    let holder = Holder { handle: app.handle.clone(), hold: Submission { ask: Ask::Hold, ..submission.clone() } };
    let answered = match app.handle.submit(submission).await {
        Ok(answer) => respond(answer, upgrade, holder, asked).await,
        Err(failure) => Err(failure),
    };
    match answered {
        Ok(response) => Ok(response),
        // What was wrong with the body explains why its engine has no answer to it.
        Err(failure) => match problem.and_then(|problem| problem.take()) {
            Some(error) => Err(error),
            None => Err(explain(app, failure, &model.id, "body").await),
        },
    }
}

/// Asks the engine of a model for an answer that is read here: its head, and what follows.
pub(super) async fn open(
    app: &App,
    caller: &Caller,
    model: &ModelConfig,
    outgoing: Outgoing,
) -> Result<(HttpHead, Answer), ApiError> {
    let (submission, _whole) = submission(app, caller, model, outgoing)?;
    let opened = match app.handle.submit(submission).await {
        Ok(mut answer) => match next(&mut answer).await {
            Ok(HttpOutput::Head(head)) => Ok((head, answer)),
            Ok(_) => Err(no_head()),
            Err(failure) => Err(failure),
        },
        Err(failure) => Err(failure),
    };
    match opened {
        Ok(opened) => Ok(opened),
        Err(failure) => Err(explain(app, failure, &model.id, "body").await),
    }
}

/// The request for the runtime, and what will turn out to be wrong with a body that is on its way.
fn submission(
    app: &App,
    caller: &Caller,
    model: &ModelConfig,
    outgoing: Outgoing,
) -> Result<(Submission, Option<BodyProblem>), ApiError> {
    let Outgoing { method, target, mut headers, body, delivery, class, keep_alive, upgrade: _ } = outgoing;
    if goes_back(&target) {
        let message = "the path has `.` or `..` in it, which means another one; write that";
        return Err(ApiError::malformed(message));
    }
    let access = caller.access().clone();
    let [id, trace] = [access.id(), access.trace()].map(|text| HeaderValue::try_from(text).ok());
    for (name, value) in [("x-request-id", id), ("traceparent", trace)] {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    let (body, problem) = match body {
        OutgoingBody::Whole(bytes) => (AskBody::Whole(bytes), None),
        OutgoingBody::Streamed(arriving) => {
            let problem = arriving.problem();
            (AskBody::streamed(arriving.map_err(Into::into).boxed_unsync()), Some(problem))
        }
    };
    let time_limit = app.handle.config().limits.request_timeout;
    let http = HttpAsk { method, target, headers, body, time_limit };
    let (model, kind) = (model.id.clone(), model.kind);
    let submission = Submission { model, kind, ask: Ask::Http(Arc::new(http)), class, keep_alive, delivery, access };
    Ok((submission, problem))
}

/// Whether a path means another one than it says: what was looked at here is then not what its engine would answer at.
fn goes_back(target: &str) -> bool {
    let path = target.split('?').next().unwrap_or_default();
    percent_decoded(path).split(|byte| b"/\\".contains(byte)).any(|segment| matches!(segment, b"." | b".."))
}

/// What an answer must know of its request.
struct Asked {
    kind: Kind,
    /// Path and query at the engine.
    target: String,
    is_head: bool,
    /// Silence after which a stream of events says that it is there.
    ping: Option<Duration>,
}

/// Waits until the answer begins, so that an early failure is a plain refusal.
async fn respond(
    mut answer: Answer,
    upgrade: Option<OnUpgrade>,
    holder: Holder,
    asked: Asked,
) -> Result<Response, Failure> {
    let is_head = asked.is_head;
    let HttpOutput::Head(HttpHead { status, mut headers }) = next(&mut answer).await? else { return Err(no_head()) };
    // Where a body comes in chunks, a length beside them says nothing.
    let length = headers.get(header::CONTENT_LENGTH).filter(|_| !headers.contains_key(header::TRANSFER_ENCODING));
    let length = length.and_then(|value| value.to_str().ok()?.parse().ok());
    let switched = (status == StatusCode::SWITCHING_PROTOCOLS).then(|| switch_headers(&headers));
    let named = named_in_connection(&headers);
    let to_drop: Vec<HeaderName> = headers.keys().filter(|name| !is_passed_on(&named, name)).cloned().collect();
    for name in to_drop {
        headers.remove(name);
    }
    if !is_head {
        headers.remove(header::CONTENT_LENGTH);
    }
    let mut response = match switched {
        Some(switched) => {
            let HttpOutput::Switched(connection) = next(&mut answer).await? else { return Err(no_head()) };
            let Some(client) = upgrade else {
                return Err(Failure::new(FailureKind::Unreachable, "the engine left HTTP, and nobody had asked it to"));
            };
            headers.extend(switched);
            let mut response = Response::new(Body::empty());
            response.extensions_mut().insert(Bridge::new(websocket::bridge(client, connection, holder)));
            response
        }
        None => {
            let is_empty = is_head || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
            let left = if is_empty { Some(0) } else { length };
            headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
            let events = PassedEvents::of(asked.kind, &asked.target, &headers).filter(|_| left.is_none());
            let ping = asked.ping.filter(|_| events.is_some());
            let ping = ping.map(|period| interval_at(Instant::now() + period, period));
            Response::new(Body::new(AnsweredBody { output: Some(answer.output), left, events, ping }))
        }
    };
    *response.status_mut() = status;
    *response.headers_mut() = *headers;
    Ok(response)
}

/// What an engine gives before its body.
async fn next(answer: &mut Answer) -> Result<HttpOutput, Failure> {
    loop {
        match answer.output.recv().await {
            Some(Output::Http(output)) => return Ok(output),
            Some(Output::Progress { .. }) => {}
            Some(Output::Done(Err(failure))) => return Err(failure),
            Some(Output::Event(_) | Output::Bytes(_) | Output::Done(Ok(_))) => return Err(no_head()),
            None => return Err(broken_off()),
        }
    }
}

fn no_head() -> Failure {
    Failure::new(FailureKind::Internal, "the engine's answer has no head")
}

/// What both sides of a connection that leaves HTTP must read.
fn switch_headers(headers: &HeaderMap) -> HeaderMap {
    let mut kept = HeaderMap::new();
    for name in [header::CONNECTION, header::UPGRADE] {
        if let Some(value) = headers.get(&name) {
            kept.insert(name, value.clone());
        }
    }
    kept
}

/// What an engine may be told of a request's headers.
pub(super) fn forwarded(headers: &HeaderMap) -> HeaderMap {
    let named = named_in_connection(headers);
    let is_between = |name: &HeaderName| HOP_BY_HOP.contains(name) || named.contains(name);
    let kept = headers.iter().filter(|(name, _)| !is_between(name) && !FOR_US.contains(name));
    let mut forwarded: HeaderMap = kept.map(|(name, value)| (name.clone(), value.clone())).collect();
    if let Some(upgrade) = switches_to(headers) {
        forwarded.insert(header::UPGRADE, upgrade.clone());
        forwarded.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
    forwarded
}

/// What a client would rather speak, if that can be carried: bytes both ways. Another version of HTTP, which some clients offer
/// with any request, is between two neighbours.
fn switches_to(headers: &HeaderMap) -> Option<&HeaderValue> {
    let is_http = |value: &HeaderValue| {
        let named = value.to_str().unwrap_or_default().split(',').map(|name| name.trim().to_ascii_lowercase());
        named.into_iter().any(|name| name.starts_with("h2") || name.starts_with("http/"))
    };
    headers.get(header::UPGRADE).filter(|upgrade| !is_http(upgrade))
}

/// The client's side of a request that would rather speak something else.
pub(super) fn upgrade_of(request: &mut Request) -> Option<OnUpgrade> {
    switches_to(request.headers())?;
    Some(hyper::upgrade::on(request))
}

/// Whether a header of an answer goes on; `named`: those that its sender names in `Connection`.
fn is_passed_on(named: &[HeaderName], name: &HeaderName) -> bool {
    let is_ours = OURS.contains(name) || OUR_PREFIXES.iter().any(|prefix| name.as_str().starts_with(prefix));
    // Trailers are passed on, to clients who take them, where their names stand before the body.
    let is_between = HOP_BY_HOP.contains(name) && *name != header::TRAILER;
    !is_ours && !is_between && !named.contains(name)
}

/// The headers that a sender says are for its neighbour alone.
fn named_in_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    let values = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).filter_map(|name| name.trim().parse().ok()).collect()
}

/// Whether it may be asked of another worker when one died of it: by HTTP, if asking twice is as good as once.
pub(super) fn is_repeatable(method: &Method, headers: &HeaderMap) -> bool {
    method.is_idempotent() || headers.contains_key("idempotency-key")
}

/// The body of an answer, as it comes.
struct AnsweredBody {
    /// `None` once it is over.
    output: Option<mpsc::Receiver<Output>>,
    /// Bytes that are still to come, if their engine said how many there are.
    left: Option<u64>,
    /// What is known of it, if it is a stream of events.
    events: Option<PassedEvents>,
    /// When to say that there will be more.
    ping: Option<Interval>,
}

impl AnsweredBody {
    /// A comment, once nothing has come for long. In the midst of an event nothing can be said.
    fn poll_ping(&mut self, cx: &mut Context<'_>) -> Poll<Bytes> {
        let (Some(ping), Some(events)) = (&mut self.ping, &self.events) else { return Poll::Pending };
        loop {
            ready!(ping.poll_tick(cx));
            if events.is_between() {
                let mut out = Vec::new();
                sse::write_ping(&mut out);
                return Poll::Ready(out.into());
            }
        }
    }
}

impl HttpBody for AnsweredBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        loop {
            let Some(output) = &mut self.output else { return Poll::Ready(None) };
            let polled = output.poll_recv(cx);
            if polled.is_pending() {
                return self.poll_ping(cx).map(|ping| Some(Ok(Frame::data(ping))));
            }
            if let Some(ping) = &mut self.ping {
                ping.reset();
            }
            let failure = match ready!(polled) {
                Some(Output::Bytes(bytes)) => {
                    self.left = self.left.map(|left| left.saturating_sub(bytes.len() as u64));
                    if let Some(events) = &mut self.events {
                        events.see(&bytes);
                    }
                    return Poll::Ready(Some(Ok(Frame::data(bytes))));
                }
                Some(Output::Http(HttpOutput::Trailers(trailers))) => {
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
                Some(Output::Done(Ok(_))) => {
                    self.output = None;
                    return Poll::Ready(None);
                }
                Some(Output::Done(Err(failure))) => failure,
                Some(Output::Progress { .. } | Output::Event(_) | Output::Http(_)) => continue,
                None => broken_off(),
            };
            self.output = None;
            let why = failure.to_string();
            if let Some(told) = self.events.take().and_then(|events| events.failure(failure)) {
                return Poll::Ready(Some(Ok(Frame::data(told))));
            }
            // A body of any other kind has no way to say that it is not whole.
            return Poll::Ready(Some(Err(std::io::Error::other(why))));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.output.is_none() || self.left == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for AnsweredBody {
    /// Who has all the bytes that there are has not left: the end of the answer is still on its way.
    fn drop(&mut self) {
        if let (Some(mut output), Some(0)) = (self.output.take(), self.left) {
            tokio::spawn(async move { while output.recv().await.is_some() {} });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn what_is_between_neighbours_or_opens_something_goes_no_further() {
        let asked = headers(&[
            ("authorization", "Bearer k"),
            ("x-api-key", "k"),
            ("cookie", "aihost=k"),
            ("host", "a"),
            ("content-length", "3"),
            ("connection", "close, x-mine"),
            ("x-mine", "1"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("content-type", "a/b"),
            ("x-other", "2"),
        ]);
        assert_eq!(names(&forwarded(&asked)), ["content-type", "x-other"]);
        let switching = headers(&[("connection", "Upgrade"), ("upgrade", "websocket"), ("sec-websocket-key", "k")]);
        assert_eq!(names(&forwarded(&switching)), ["connection", "sec-websocket-key", "upgrade"]);
        let answered = headers(&[
            ("server", "x"),
            ("set-cookie", "a=b"),
            ("access-control-allow-origin", "*"),
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("keep-alive", "1"),
            ("etag", "e"),
            ("trailer", "x-sum"),
        ]);
        let named = named_in_connection(&answered);
        let kept: Vec<&HeaderName> = answered.keys().filter(|name| is_passed_on(&named, name)).collect();
        assert_eq!(kept, ["etag", "trailer"]);
        // Java's client offers it with every request.
        let other_http =
            headers(&[("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c"), ("http2-settings", "x")]);
        assert_eq!(names(&forwarded(&other_http)), [] as [&str; 0]);
    }

    #[test]
    fn a_path_is_what_it_says() {
        for plain in ["/", "/a/b", "/a..b/.c/d.", "/a?x=/../y", "/a%2fb", "//a", "/a/...", "/%"] {
            assert!(!goes_back(plain), "{plain}");
        }
        for back in
            ["/..", "/a/../b", "/a/%2e%2E/b", "/a/.%2e?x", "/a%2f..%2fb", "/a/./b", "/a\\..\\b", "/a%5c..", "/a/.."]
        {
            assert!(goes_back(back), "{back}");
        }
    }
}
