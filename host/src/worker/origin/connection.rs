//! Connections to one server, for one request at a time. Whoever waits for an answer reads its connection itself: no task
//! stands between the two, which would have to be woken for each piece. Between two requests connections are kept for a moment.

use std::error::Error;
use std::future::poll_fn;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::{Pin, pin};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, Response, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::connect::HttpConnector;
use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use rustls::ClientConfig;
use tokio::time::{Instant, sleep_until, timeout};
use tower::Service;

use crate::worker::ask::HttpBody;
use crate::worker::quiet;

/// How long a server may take to accept a connection at one of its addresses.
const ACCEPT_LIMIT: Duration = Duration::from_secs(5);
/// How long it may take from a name to a connection over which it can be asked, TLS included.
pub(super) const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long a server may not even say that it has what it was sent.
const GONE_LIMIT: Duration = Duration::from_secs(10);
/// Most bytes of an answer that are taken at once: so many outputs wait for a client that does not read.
const PIECE_BYTES: usize = 64 << 10;
/// How long a connection is kept for the next request: not as long as servers keep theirs, of which most do for 5 s. What is
/// sent in the moment in which a server closes is lost, and may not be sent again unless it is repeatable.
const IDLE_LIMIT: Duration = Duration::from_secs(4);
/// How long a connection rests behind an answer whose length was not told ahead. Some servers close theirs after such a one, as
/// `HTTP/1.0` did, and say so by that alone: llama.cpp's among them.
const REST: Duration = Duration::from_millis(100);
/// Connections that are kept for later.
const IDLE_MAX: usize = 64;

/// The way to one server.
pub(super) struct Connections {
    connector: HttpsConnector<HttpConnector>,
    /// Scheme and authority.
    server: Uri,
    idle: Arc<Idle>,
}

/// Those that wait for a request.
#[derive(Default)]
struct Idle(Mutex<IdleState>);

#[derive(Default)]
struct IdleState {
    /// The one that has waited longest first.
    connections: Vec<Kept>,
    is_swept: bool,
}

/// A connection, and when it may be used again.
struct Kept {
    from: Instant,
    until: Instant,
    connection: Connection,
}

/// A connection over which one request is under way, or none.
pub(super) struct Connection {
    sender: SendRequest<HttpBody>,
    /// What reads and writes, until it is over.
    link: Option<Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>>,
    /// Whether it has carried a request before.
    is_used: bool,
    /// The socket below, where nothing but HTTP comes over it.
    socket: Option<OwnedFd>,
}

/// The body of an answer. Dropped before its end, it closes its connection.
pub(in crate::worker) struct AnswerBody {
    body: Incoming,
    /// How long its connection rests behind it.
    rest: Duration,
    /// Until the end.
    connection: Option<Connection>,
    idle: Weak<Idle>,
}

/// Why a request has no answer.
pub(super) struct SendFailure {
    pub(super) error: hyper::Error,
    /// What was to be sent, if nothing of it was.
    pub(super) unsent: Option<Request<HttpBody>>,
    /// Whether a server may have closed the connection because it had been idle.
    pub(super) was_kept: bool,
}

impl Connections {
    /// To a server at `http://HOST:PORT`, or with `https`. `tls`: whose certificates are trusted.
    pub(super) fn to(server: Uri, tls: ClientConfig) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.set_connect_timeout(Some(ACCEPT_LIMIT));
        tcp.set_nodelay(true);
        // A machine that is gone says nothing: what it does not take is noticed, and so is its silence on a connection that waits.
        tcp.set_tcp_user_timeout(Some(GONE_LIMIT));
        tcp.set_keepalive(Some(GONE_LIMIT / 2));
        tcp.set_keepalive_interval(Some(GONE_LIMIT / 2));
        tcp.set_keepalive_retries(Some(2));
        tcp.enforce_http(false);
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(tcp);
        Self { connector, server, idle: Arc::default() }
    }

    /// One that was kept, or a new one.
    pub(super) async fn get(&self) -> Result<Connection, String> {
        match self.idle.take() {
            Some(connection) => Ok(connection),
            None => self.open().await,
        }
    }

    async fn open(&self) -> Result<Connection, String> {
        let connecting = self.connector.clone().call(self.server.clone());
        let stream = match timeout(CONNECT_LIMIT, connecting).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(root_of(&*error)),
            Err(_) => return Err(format!("there is no connection to it after {} s", CONNECT_LIMIT.as_secs())),
        };
        let socket = match &stream {
            MaybeHttpsStream::Http(stream) => stream.inner().as_fd().try_clone_to_owned().ok(),
            MaybeHttpsStream::Https(_) => None,
        };
        let mut http = http1::Builder::new();
        let (sender, link) = http.max_buf_size(PIECE_BYTES).handshake(stream).await.map_err(|error| root_of(&error))?;
        Ok(Connection { sender, link: Some(Box::pin(link.with_upgrades())), is_used: false, socket })
    }

    /// Asks over a connection.
    pub(super) async fn send(
        &self,
        mut connection: Connection,
        request: Request<HttpBody>,
    ) -> Result<Response<AnswerBody>, SendFailure> {
        let was_kept = std::mem::replace(&mut connection.is_used, true);
        let mut answer = pin!(connection.sender.try_send_request(request));
        let answered = poll_fn(|cx| connection.poll(cx, |quiet| answer.as_mut().poll(quiet))).await;
        match answered {
            Ok(answer) => {
                let idle = Arc::downgrade(&self.idle);
                let rest = if answer.body().size_hint().exact().is_some() { Duration::ZERO } else { REST };
                Ok(answer.map(|body| AnswerBody { body, rest, connection: Some(connection), idle }))
            }
            Err(mut failed) => {
                let unsent = failed.take_message();
                Err(SendFailure { error: failed.into_error(), unsent, was_kept })
            }
        }
    }
}

impl Connection {
    /// Reads and writes what there is, and looks at what moves by that alone. The task is woken for more only if nothing came of
    /// it.
    fn poll<T>(&mut self, cx: &mut Context<'_>, mut look: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        self.exchange(&mut Context::from_waker(Waker::noop()));
        if let Poll::Ready(seen) = quiet::look(cx, &mut look) {
            return Poll::Ready(seen);
        }
        self.exchange(cx);
        quiet::look(cx, look)
    }

    fn exchange(&mut self, cx: &mut Context<'_>) {
        if let Some(link) = &mut self.link
            // What was wrong is told to whoever waits for an answer.
            && link.as_mut().poll(cx).is_ready()
        {
            self.link = None;
        }
    }

    /// Whether it can carry the next request, as far as that can be seen.
    fn is_open(&mut self) -> bool {
        self.exchange(&mut Context::from_waker(Waker::noop()));
        self.link.is_some() && self.sender.is_ready() && self.socket.as_ref().is_none_or(is_quiet)
    }
}

/// Whether nothing came over a socket that nobody reads, neither bytes nor its end. The system knows that before the runtime does,
/// which hears of it when it looks next.
fn is_quiet(socket: &OwnedFd) -> bool {
    let mut byte = [0; 1];
    recv(socket, &mut byte[..], RecvFlags::PEEK | RecvFlags::DONTWAIT) == Err(Errno::AGAIN)
}

impl Idle {
    fn take(&self) -> Option<Connection> {
        let mut state = self.0.lock();
        let now = Instant::now();
        loop {
            let newest = state.connections.iter().rposition(|kept| kept.from <= now)?;
            let mut kept = state.connections.remove(newest);
            if kept.until > now && kept.connection.is_open() {
                return Some(kept.connection);
            }
        }
    }

    fn keep(self: &Arc<Self>, mut connection: Connection, rest: Duration) {
        if !connection.is_open() {
            return;
        }
        let mut state = self.0.lock();
        if state.connections.len() >= IDLE_MAX {
            return;
        }
        let now = Instant::now();
        state.connections.push(Kept { from: now + rest, until: now + IDLE_LIMIT, connection });
        if !std::mem::replace(&mut state.is_swept, true) {
            tokio::spawn(sweep(Arc::downgrade(self)));
        }
    }

    /// Closes those whose time is over. When the next one's is; nothing if there is none.
    fn close_old(&self) -> Option<Instant> {
        let mut state = self.0.lock();
        let now = Instant::now();
        let old = state.connections.partition_point(|kept| kept.until <= now);
        state.connections.drain(..old);
        let next = state.connections.first().map(|kept| kept.until);
        state.is_swept = next.is_some();
        next
    }
}

async fn sweep(idle: Weak<Idle>) {
    while let Some(next) = idle.upgrade().and_then(|idle| idle.close_old()) {
        sleep_until(next).await;
    }
}

impl AnswerBody {
    /// Reads and writes until this has ended, which waits for what comes of that.
    pub(super) async fn until<T>(mut self, done: impl Future<Output = T>) -> T {
        let mut done = pin!(done);
        poll_fn(|cx| match &mut self.connection {
            Some(connection) => connection.poll(cx, |quiet| done.as_mut().poll(quiet)),
            None => done.as_mut().poll(cx),
        })
        .await
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let Self { body, connection, .. } = &mut *self;
        let mut body = Pin::new(body);
        let mut frame = body.as_mut().poll_frame(&mut Context::from_waker(Waker::noop()));
        if frame.is_pending() {
            frame = match connection {
                Some(connection) => connection.poll(cx, |quiet| body.as_mut().poll_frame(quiet)),
                None => body.poll_frame(cx),
            };
        }
        if let Poll::Ready(None) = frame
            && let (Some(connection), Some(idle)) = (self.connection.take(), self.idle.upgrade())
        {
            idle.keep(connection, self.rest);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The innermost reason of an error, which is the one that says something.
pub(super) fn root_of(error: &(dyn Error + 'static)) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Empty};
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::task::JoinHandle;

    use super::*;
    use crate::worker::origin::trusting_nobody;

    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";

    fn connections() -> Connections {
        Connections::to(Uri::from_static("http://127.0.0.1:1"), trusting_nobody().unwrap())
    }

    /// A connection to a server that answers so many requests and then waits for the end: how many it saw, and when that was.
    async fn served(requests: usize) -> (Connection, JoinHandle<(usize, Instant)>) {
        let (client, mut server) = duplex(1 << 10);
        let serving = tokio::spawn(async move {
            for seen in 0..requests {
                if !is_asked(&mut server).await {
                    return (seen, Instant::now());
                }
                server.write_all(ANSWER).await.unwrap();
            }
            let another = is_asked(&mut server).await;
            if another {
                is_asked(&mut server).await;
            }
            (requests + usize::from(another), Instant::now())
        });
        (over(client).await, serving)
    }

    async fn over(client: DuplexStream) -> Connection {
        let (sender, link) = http1::handshake(TokioIo::new(client)).await.unwrap();
        Connection { sender, link: Some(Box::pin(link.with_upgrades())), is_used: false, socket: None }
    }

    async fn is_asked(server: &mut DuplexStream) -> bool {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let Ok(byte) = server.read_u8().await else { return false };
            head.push(byte);
        }
        true
    }

    fn request() -> Request<HttpBody> {
        Request::new(Empty::new().map_err(|never| match never {}).boxed_unsync())
    }

    async fn ask(connections: &Connections, connection: Connection) -> Response<AnswerBody> {
        connections.send(connection, request()).await.unwrap_or_else(|failed| panic!("{}", failed.error))
    }

    #[tokio::test]
    async fn a_connection_that_was_closed_a_moment_ago_carries_nothing() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Uri::try_from(format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let connections = Connections::to(server, trusting_nobody().unwrap());
        let mut connection = connections.open().await.unwrap();
        let accepted = listener.accept().unwrap();
        assert!(connection.is_open());
        // The runtime has had no moment to hear of it.
        drop(accepted);
        assert!(!connection.is_open());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_carries_the_next_request_and_is_closed_once_it_was_idle_for_long() {
        let connections = connections();
        let (connection, server) = served(9).await;
        let answer = ask(&connections, connection).await;
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "hi");
        tokio::time::sleep(IDLE_LIMIT / 2).await;
        let kept = connections.get().await.unwrap();
        let answer = ask(&connections, kept).await;
        assert!(connections.idle.take().is_none(), "it is in use");
        answer.into_body().collect().await.unwrap();
        let idle = Instant::now();
        let (seen, ended) = server.await.unwrap();
        assert_eq!(seen, 2);
        let waited = ended - idle;
        assert!(waited >= IDLE_LIMIT && waited < IDLE_LIMIT + Duration::from_millis(100), "{waited:?}");
        assert!(!connections.idle.0.lock().is_swept, "nobody looks for what is not there");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_its_server_closed_carries_nothing() {
        let connections = connections();
        let (connection, server) = served(1).await;
        ask(&connections, connection).await.into_body().collect().await.unwrap();
        let kept = connections.idle.take().expect("it was kept");
        server.abort();
        assert!(server.await.is_err());
        let Err(failed) = connections.send(kept, request()).await else { panic!("it was answered") };
        assert!(failed.was_kept && failed.unsent.is_some(), "{}", failed.error);

        let (connection, server) = served(1).await;
        ask(&connections, connection).await.into_body().collect().await.unwrap();
        server.abort();
        assert!(server.await.is_err());
        assert!(connections.idle.take().is_none(), "it is closed");
    }

    #[tokio::test(start_paused = true)]
    async fn behind_an_answer_in_chunks_a_connection_rests() {
        let connections = connections();
        let (client, mut server) = duplex(1 << 10);
        let serving = tokio::spawn(async move {
            for _ in 0..2 {
                assert!(is_asked(&mut server).await);
                let answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
                server.write_all(answer).await.unwrap();
            }
        });
        let answer = ask(&connections, over(client).await).await;
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "hi");
        assert!(connections.idle.take().is_none(), "its server may be about to close it");
        tokio::time::sleep(REST).await;
        let kept = connections.idle.take().expect("it did not");
        ask(&connections, kept).await.into_body().collect().await.unwrap();
        serving.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_leaves_closes_it() {
        let connections = connections();
        let (connection, server) = served(9).await;
        drop(ask(&connections, connection).await);
        assert_eq!(server.await.unwrap().0, 1);
        let (connection, server) = served(0).await;
        let asking = connections.send(connection, request());
        assert!(timeout(Duration::from_secs(1), asking).await.is_err());
        assert_eq!(server.await.unwrap().0, 1);
    }
}
