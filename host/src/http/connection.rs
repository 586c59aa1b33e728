//! One connection, from its first byte to its last: requests to the router, answers back, and the time that a client has.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, Request, Response, header};
use axum::response::IntoResponse;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::access_log::{AccessLine, AccessLog};
use super::bodies::HeldBytes;
use super::connections::Peer;
use super::edge::{NO_ID, sign};
use super::error::ApiError;
use super::quota::Place;
use super::socket::{ClientSocket, Gone, Linger, Phase, SocketIo};

/// How long a connection may take to send a whole request head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may stay open between an answer and the next request. Common proxies keep theirs for 60 s.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);
/// How long after `stream_stall_timeout` a connection ends whose client reads nothing: what makes the answer ends it first.
const STALL_GRACE: Duration = Duration::from_secs(5);
/// Largest head of a request, bytes.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// Bytes that are read from a connection at once, and held for it while it sends a head.
const MAX_READ_BYTES: usize = MAX_HEAD_BYTES + (8 << 10);
/// How long what a client still sends is thrown away after its refusal.
const LINGER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long it may then send nothing.
const LINGER_IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of it that are thrown away.
const MAX_LINGER_BYTES: usize = 256 << 20;
/// How long it is thrown away of a client for which there is no place.
const SHORT_LINGER_TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes that are thrown away of a client for which there is no place.
const MAX_SHORT_LINGER_BYTES: usize = 1 << 20;
/// How long the host waits for such a client while it stops.
const LAST_LINGER_TIMEOUT: Duration = Duration::from_millis(500);

const LINGER: Linger = Linger { total: LINGER_TIMEOUT, idle: LINGER_IDLE_TIMEOUT, bytes: MAX_LINGER_BYTES };
/// For a client that is sent away at once.
pub(super) const SHORT_LINGER: Linger =
    Linger { total: SHORT_LINGER_TIMEOUT, idle: LAST_LINGER_TIMEOUT, bytes: MAX_SHORT_LINGER_BYTES };

/// What connections are served with.
#[derive(Clone, Debug)]
pub(super) struct Serving {
    protocol: http1::Builder,
    router: Router,
    /// What could not be routed stands in it too.
    log: Arc<AccessLog>,
    /// Each answer is the last of its connection from then on.
    leaving: CancellationToken,
    /// Ends when the host does.
    stopping: CancellationToken,
}

/// How a connection's protocol ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ProtocolEnd {
    /// Both sides had nothing more to say.
    Over,
    /// With a head that it could not read.
    BadHead,
    /// Its client took too long.
    TimedOut(Phase),
    /// Its place is needed.
    Evicted,
    /// Both sides speak something else from here on.
    Switched,
}

impl Serving {
    pub(super) fn new(
        router: Router,
        log: Arc<AccessLog>,
        leaving: CancellationToken,
        stopping: CancellationToken,
    ) -> Self {
        let mut protocol = http1::Builder::new();
        // Times are kept here, where idleness and a slow head are told apart.
        protocol.header_read_timeout(None).half_close(true);
        protocol.max_header_size(MAX_HEAD_BYTES).max_buf_size(MAX_READ_BYTES);
        Self { protocol, router, log, leaving, stopping }
    }

    /// Serves a connection to its end. `stall_timeout`: how long its client may take nothing of an answer.
    pub(super) async fn serve(self, socket: Arc<ClientSocket>, stall_timeout: Duration) {
        let end = self.exchange(&socket, stall_timeout + STALL_GRACE).await;
        let refusal = match (end, socket.refused()) {
            (ProtocolEnd::Evicted, _) => return,
            (ProtocolEnd::Switched, _) => {
                tokio::select! {
                    () = socket.bridged() => {}
                    () = socket.evicted() => return,
                }
                None
            }
            (ProtocolEnd::TimedOut(Phase::Head), _) => Some(ApiError::head_stalled(HEAD_TIMEOUT)),
            (_, Some(status)) => Some(ApiError::bad_head(status)),
            // What it does not refuse itself is the begin of HTTP/2.
            (ProtocolEnd::BadHead, None) if socket.phase().0 == Phase::Head => Some(ApiError::bad_head(505)),
            _ => None,
        };
        let may_send_more = refusal.is_some() || !socket.body_is_whole();
        let told = |refusal| {
            let id = self.log.turned_away(Peer::of(socket.address), &refusal);
            bytes_of(refusal, &id)
        };
        let last = refusal.map(told).unwrap_or_default();
        let linger = if may_send_more { LINGER } else { Linger { idle: Duration::ZERO, ..LINGER } };
        tokio::select! {
            () = socket.close(&last, linger) => {}
            () = socket.evicted() => {}
            () = async {
                self.stopping.cancelled().await;
                tokio::time::sleep(LAST_LINGER_TIMEOUT).await;
            } => {}
        }
    }

    /// Requests and answers, until the protocol, the clock or somebody who needs the place ends them.
    async fn exchange(&self, socket: &Arc<ClientSocket>, stall_timeout: Duration) -> ProtocolEnd {
        let router = TowerToHyperService::new(self.router.clone());
        let (answering, leaving) = (Arc::clone(socket), self.leaving.clone());
        let service = service_fn(move |request| {
            let answered = answer(Arc::clone(&answering), router.clone(), request);
            let leaving = leaving.clone();
            async move {
                let mut response = answered.await?;
                if leaving.is_cancelled() {
                    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Gone>(response)
            }
        });
        let mut connection =
            pin!(self.protocol.serve_connection(TokioIo::new(SocketIo(Arc::clone(socket))), service).with_upgrades());
        let mut evicted = pin!(socket.evicted());
        let mut stopping = pin!(self.stopping.cancelled());
        let mut asked_to_stop = false;
        let mut clock = pin!(sleep_until(Instant::now()));
        std::future::poll_fn(|cx| {
            if evicted.as_mut().poll(cx).is_ready() {
                return Poll::Ready(ProtocolEnd::Evicted);
            }
            if !asked_to_stop && stopping.as_mut().poll(cx).is_ready() {
                asked_to_stop = true;
                connection.as_mut().graceful_shutdown();
            }
            if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
                return Poll::Ready(match ended {
                    Err(error) if error.is_parse() => ProtocolEnd::BadHead,
                    Err(error) => {
                        tracing::debug!(%error, "a connection broke");
                        ProtocolEnd::Over
                    }
                    Ok(()) if socket.phase().0 == Phase::Switched => ProtocolEnd::Switched,
                    Ok(()) => ProtocolEnd::Over,
                });
            }
            if asked_to_stop && matches!(socket.phase().0, Phase::Fresh | Phase::Idle | Phase::Head) {
                return Poll::Ready(ProtocolEnd::Evicted);
            }
            match deadline(socket, stall_timeout) {
                Some(deadline) if elapsed(clock.as_mut(), deadline, cx) => {
                    Poll::Ready(ProtocolEnd::TimedOut(socket.phase().0))
                }
                _ => Poll::Pending,
            }
        })
        .await
    }
}

/// When the client's time is up.
fn deadline(socket: &ClientSocket, stall_timeout: Duration) -> Option<Instant> {
    let (phase, since) = socket.phase();
    match phase {
        Phase::Fresh | Phase::Head => Some(since + HEAD_TIMEOUT),
        Phase::Idle => Some(since + IDLE_TIMEOUT),
        Phase::Switched => None,
        Phase::Body | Phase::Answer | Phase::Closing => socket.stalled().map(|since| since + stall_timeout),
    }
}

fn elapsed(mut clock: Pin<&mut Sleep>, deadline: Instant, cx: &mut Context<'_>) -> bool {
    if clock.deadline() != deadline {
        clock.as_mut().reset(deadline);
    }
    clock.poll(cx).is_ready()
}

/// An answer as bytes, for where the protocol makes none any more. `id`: the request's, or whatever came in its place.
pub(super) fn bytes_of(error: ApiError, id: &str) -> Vec<u8> {
    let body = error.json();
    let mut response = error.into_response();
    let headers = response.headers_mut();
    sign(headers, HeaderValue::try_from(id).unwrap_or(NO_ID), Duration::ZERO);
    if let Ok(date) = HeaderValue::try_from(httpdate::fmt_http_date(SystemTime::now())) {
        headers.insert(header::DATE, date);
    }
    let mut bytes = format!("HTTP/1.1 {}\r\n", response.status()).into_bytes();
    for (name, value) in response.headers() {
        let line: [&[u8]; 4] = [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"];
        bytes.extend(line.concat());
    }
    bytes.extend(format!("content-length: {}\r\nconnection: close\r\n\r\n", body.len()).bytes());
    bytes.extend(body);
    bytes
}

/// Hands a request to the router, as long as its client is there.
async fn answer(
    socket: Arc<ClientSocket>,
    router: TowerToHyperService<Router>,
    request: Request<Incoming>,
) -> Result<Response<AnswerBody>, Gone> {
    socket.asked(!request.body().is_end_stream());
    let mut request = request.map(|body| Body::new(RequestBody { socket: Arc::clone(&socket), body, is_whole: false }));
    request.extensions_mut().insert(Peer::of(socket.address));
    let mut answering = pin!(router.call(request));
    let mut gone = Arc::clone(&socket).gone().boxed();
    let mut response = std::future::poll_fn(|cx| {
        if let Poll::Ready(Ok(response)) = answering.as_mut().poll(cx) {
            return Poll::Ready(Ok(response));
        }
        // While a body comes, its end is the end of the connection as well.
        if socket.phase().0 == Phase::Answer && gone.poll_unpin(cx).is_ready() {
            return Poll::Ready(Err(Gone));
        }
        Poll::Pending
    })
    .await?;
    socket.answers();
    if !socket.body_is_whole() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let held = response.extensions_mut().remove::<Arc<HeldBytes>>();
    let bridge = response.extensions_mut().remove::<Bridge>();
    let place = response.extensions_mut().remove::<Arc<Place>>();
    let line = response.extensions_mut().remove::<Arc<AccessLine>>();
    if let Some(bridge) = bridge.and_then(|bridge| bridge.take()) {
        socket.switches();
        let (socket, place) = (Arc::clone(&socket), place.clone());
        tokio::spawn(async move {
            bridge.await;
            drop(place);
            socket.bridge_ended();
        });
    }
    let is_events = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "text/event-stream");
    let comment = is_events.then_some(COMMENT);
    Ok(response.map(|body| AnswerBody { socket, body, gone, comment, line, _held: held, _place: place }))
}

/// A request's body on its way to whoever reads it.
struct RequestBody {
    socket: Arc<ClientSocket>,
    body: Incoming,
    is_whole: bool,
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        if frame.is_none() || self.body.is_end_stream() {
            self.is_whole = true;
            self.socket.body_over(true);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        self.socket.body_over(self.is_whole || self.body.is_end_stream());
    }
}

/// What carries a connection on that leaves HTTP, among an answer's extensions.
#[derive(Clone)]
pub(super) struct Bridge(Arc<Mutex<Option<BoxFuture<'static, ()>>>>);

impl Bridge {
    /// Begins once the answer is sent, and ends with the connection.
    pub(super) fn new(carry: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(Some(carry.boxed()))))
    }

    fn take(&self) -> Option<BoxFuture<'static, ()>> {
        self.0.lock().take()
    }
}

/// What an answer of events sends to see whether its client, who has ended its side, is still there.
const COMMENT: &[u8] = b": ping\n\n";

/// An answer on its way to its client.
struct AnswerBody {
    socket: Arc<ClientSocket>,
    body: Body,
    /// Resolves when the client has left.
    gone: BoxFuture<'static, ()>,
    /// What may be sent once to see whether it is there.
    comment: Option<&'static [u8]>,
    /// What the log says of it.
    line: Option<Arc<AccessLine>>,
    /// The bytes of the request.
    _held: Option<Arc<HeldBytes>>,
    /// Its place among those of its key.
    _place: Option<Arc<Place>>,
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            self.socket.answers();
            if let (None, Some(line)) = (&frame, &self.line) {
                line.whole();
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        if self.gone.poll_unpin(cx).is_ready() {
            return Poll::Ready(Some(Err(Gone.into())));
        }
        if self.socket.is_in_doubt()
            && let Some(comment) = self.comment.take()
        {
            self.socket.answers();
            return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(comment)))));
        }
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for AnswerBody {
    fn drop(&mut self) {
        if let Some(line) = self.line.take().filter(|_| self.body.is_end_stream()) {
            line.whole();
        }
        self.socket.answered();
    }
}
