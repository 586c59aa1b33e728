//! One connection's socket and where it stands: whether its client is asking or being answered, since when, and whether it
//! is still there. Bytes and states, nothing of routes.

use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

/// How often a socket is looked at of which the system gives no notice: a request lies in it that has not been read.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// What every answer begins with. Its bytes are sent early, one at a time, to a client that has ended its side of the
/// connection: if it has closed all of it, its system answers with a reset. There is no other way to tell that from a client
/// that has only finished asking.
const FIRST_BYTES: &[u8] = b"HTTP/1.";
/// How long after the first of them the second is sent; each further one takes twice as long.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// Bytes from which on a request's first line is what makes its head too large.
const LONG_LINE_BYTES: usize = 32 << 10;
/// Bytes at the end of a request's first line that tell its version.
const VERSION_BYTES: usize = 16;
/// Bytes of a request that tell what it asks for.
const BEGINNING_BYTES: usize = 32;
/// How long these may take to come.
const BEGINNING_TIMEOUT: Duration = Duration::from_millis(200);

/// What the client of a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing, since it connected.
    Fresh,
    /// Nothing, since its last answer.
    Idle,
    /// It sends a request's head.
    Head,
    /// It sends a request's body.
    Body,
    /// It waits for an answer or reads one.
    Answer,
    /// It speaks something else than HTTP with the engine of a model.
    Switched,
    /// Nothing that matters: what it still sends is thrown away.
    Closing,
}

/// A connection, as its task, its answers and whoever makes room see it.
#[derive(Debug)]
pub(super) struct ClientSocket {
    stream: TcpStream,
    /// Where its client is.
    pub(super) address: IpAddr,
    state: Mutex<SocketState>,
    evicted: Notify,
    bridged: Notify,
}

#[derive(Debug)]
struct SocketState {
    phase: Phase,
    since: Instant,
    /// Since when the client takes nothing of what is to be sent.
    stalled: Option<Instant>,
    /// Bytes have come that no request was made of yet.
    has_unread_bytes: bool,
    /// Whether all of the last request's body was read.
    whole: bool,
    /// Whether the last request's answer has begun.
    answering: bool,
    /// Whether some of an answer may not have been written yet.
    owed: bool,
    /// The client has ended its side.
    ended: bool,
    /// So many of the next answer's first bytes are sent already.
    probed: usize,
    /// The status of the refusal of a head that is no HTTP.
    refused: Option<u16>,
    /// What has come of the first line of the head that comes.
    line: RequestLine,
}

/// What has come of a request's first line.
#[derive(Debug, Default)]
struct RequestLine {
    is_whole: bool,
    bytes: usize,
    /// Its last bytes so far.
    end: Vec<u8>,
}

/// The client has closed the connection, or it broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the client has left")]
pub(super) struct Gone;

impl ClientSocket {
    pub(super) fn new(stream: TcpStream, address: IpAddr) -> Self {
        let state = SocketState {
            phase: Phase::Fresh,
            since: Instant::now(),
            stalled: None,
            has_unread_bytes: false,
            whole: true,
            answering: false,
            owed: false,
            ended: false,
            probed: 0,
            refused: None,
            line: RequestLine::default(),
        };
        Self { stream, address, state: Mutex::new(state), evicted: Notify::new(), bridged: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, SocketState> {
        self.state.lock()
    }

    /// What its client is doing, and since when.
    pub(super) fn phase(&self) -> (Phase, Instant) {
        let state = self.state();
        // An answer that is over but not written is still being read.
        let phase = if state.phase == Phase::Idle && state.owed { Phase::Answer } else { state.phase };
        (phase, state.since)
    }

    /// Since when the client takes nothing of what is to be sent.
    pub(super) fn stalled(&self) -> Option<Instant> {
        self.state().stalled
    }

    /// Its place is needed.
    pub(super) fn evict(&self) {
        self.evicted.notify_one();
    }

    /// Resolves when its place is needed.
    pub(super) async fn evicted(&self) {
        self.evicted.notified().await;
    }

    /// The status of a head which the protocol could not read; no answer was sent.
    pub(super) fn refused(&self) -> Option<u16> {
        let state = self.state();
        state.refused.map(|status| state.line.status(status))
    }

    /// A request's head was read.
    pub(super) fn asked(&self, has_body: bool) {
        let mut state = self.state();
        state.enter(if has_body { Phase::Body } else { Phase::Answer });
        state.has_unread_bytes = false;
        state.whole = !has_body;
        state.answering = false;
    }

    /// The request's body was read, or nobody wants it any more.
    pub(super) fn body_over(&self, whole: bool) {
        let mut state = self.state();
        state.whole |= whole;
        if state.phase == Phase::Body {
            state.enter(Phase::Answer);
        }
    }

    /// Whether all of the request's body was read.
    pub(super) fn body_is_whole(&self) -> bool {
        self.state().whole
    }

    /// More of an answer is about to be written.
    pub(super) fn answers(&self) {
        let mut state = self.state();
        state.answering = true;
        state.owed = true;
    }

    /// The answer is over.
    pub(super) fn answered(&self) {
        let mut state = self.state();
        if state.phase != Phase::Switched {
            state.enter(Phase::Idle);
        }
    }

    /// The answer is the last that is one of HTTP.
    pub(super) fn switches(&self) {
        self.state().enter(Phase::Switched);
    }

    /// What was spoken instead is over.
    pub(super) fn bridge_ended(&self) {
        self.bridged.notify_one();
    }

    /// Resolves when it is.
    pub(super) async fn bridged(&self) {
        self.bridged.notified().await;
    }

    /// Whether the client has ended its side, and nothing was sent since that would tell whether it is there.
    pub(super) fn is_in_doubt(&self) -> bool {
        let state = self.state();
        state.ended && state.probed == 0
    }

    /// Resolves when the client of the request under way has left.
    pub(super) async fn gone(self: Arc<Self>) {
        if self.ended().await.is_err() {
            return;
        }
        let mut interval = PROBE_INTERVAL;
        loop {
            // What was sent to a closed connection comes back as an error.
            let reset = self.stream.ready(Interest::ERROR);
            match self.probe() {
                Err(Gone) => return,
                Ok(Probed::Nothing) => {
                    let _known = reset.await;
                    return;
                }
                Ok(Probed::Later) => {
                    if timeout(LOOK_INTERVAL, reset).await.is_ok() {
                        return;
                    }
                }
                Ok(Probed::Byte) => {
                    if timeout(interval, reset).await.is_ok() {
                        return;
                    }
                    interval *= 2;
                }
            }
        }
    }

    /// Resolves when the client has ended its side.
    async fn ended(&self) -> Result<(), Gone> {
        loop {
            match self.stream.peek(&mut [0]).await {
                Ok(0) => break,
                Ok(_) => {
                    // The next request lies there already; the end may lie behind it.
                    let ready = self.stream.ready(Interest::READABLE | Interest::ERROR).await.map_err(|_| Gone)?;
                    if ready.is_error() {
                        return Err(Gone);
                    }
                    if ready.is_read_closed() {
                        break;
                    }
                    sleep(LOOK_INTERVAL).await;
                }
                Err(_) => return Err(Gone),
            }
        }
        self.state().ended = true;
        Ok(())
    }

    /// Sends the next of the answer's first bytes.
    fn probe(&self) -> Result<Probed, Gone> {
        let mut state = self.state();
        let Some(byte) = FIRST_BYTES.get(state.probed..=state.probed).filter(|_| !state.answering) else {
            return Ok(Probed::Nothing);
        };
        if state.owed {
            return Ok(Probed::Later);
        }
        match self.stream.try_write(byte) {
            Ok(0) => Ok(Probed::Later),
            Ok(_) => {
                state.probed += 1;
                Ok(Probed::Byte)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Probed::Later),
            Err(_) => Err(Gone),
        }
    }

    /// Whether its client begins by asking for one of these paths. What it sent stays to be read.
    pub(super) async fn asks_for(&self, paths: &[&str]) -> bool {
        let mut beginning = [0; BEGINNING_BYTES];
        let Ok(Ok(read)) = timeout(BEGINNING_TIMEOUT, self.stream.peek(&mut beginning)).await else { return false };
        let asked = beginning[..read].strip_prefix(b"GET ").and_then(|rest| rest.split(|byte| *byte == b' ').next());
        asked.is_some_and(|asked| paths.iter().any(|path| path.as_bytes() == asked))
    }

    /// Sends a last answer, says that nothing more follows, and throws away what the client still sends: closing a
    /// connection with bytes unread would take the answer from a client that reads it late.
    pub(super) async fn close(&self, last: &[u8], limits: Linger) {
        self.state().enter(Phase::Closing);
        let closing = async {
            self.write(last).await?;
            rustix::net::shutdown(&self.stream, rustix::net::Shutdown::Write)?;
            let mut bytes_left = limits.bytes;
            let mut piece = vec![0; 16 << 10];
            while bytes_left > 0 {
                match self.stream.try_read(&mut piece) {
                    Ok(0) => break,
                    Ok(read) => bytes_left = bytes_left.saturating_sub(read),
                    Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                    Err(_) if limits.idle.is_zero() => break,
                    Err(_) => timeout(limits.idle, self.stream.readable()).await??,
                }
            }
            Ok(())
        };
        match timeout(limits.total, closing).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "a connection ended before its client had sent all"),
            Err(_) => tracing::debug!("a client went on sending after its refusal"),
        }
    }

    async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.stream.writable().await?;
            match self.stream.try_write(bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// How long a connection that is being closed takes in what its client still sends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Linger {
    /// At most so long, however much still comes.
    pub(super) total: Duration,
    /// At most so long without any byte. Zero: only what is there already.
    pub(super) idle: Duration,
    /// At most so many bytes.
    pub(super) bytes: usize,
}

/// What was sent to see whether the client is there.
enum Probed {
    /// A byte of its answer.
    Byte,
    /// Nothing yet: the answer before it is not written.
    Later,
    /// Nothing, and nothing will be: the answer has begun, or all that is known of it was sent.
    Nothing,
}

impl RequestLine {
    fn read(&mut self, bytes: &[u8]) {
        if self.is_whole {
            return;
        }
        // Empty lines before a request are passed over.
        let empty =
            if self.end.is_empty() { bytes.iter().take_while(|byte| b"\r\n".contains(byte)).count() } else { 0 };
        let bytes = &bytes[empty..];
        let end = memchr::memchr(b'\n', bytes);
        self.is_whole = end.is_some();
        let line = &bytes[..end.unwrap_or(bytes.len())];
        self.bytes += line.len();
        self.end.extend_from_slice(&line[line.len().saturating_sub(VERSION_BYTES)..]);
        self.end.drain(..self.end.len().saturating_sub(VERSION_BYTES));
    }

    /// What the protocol's status for a head that it cannot read means of one with this line.
    fn status(&self, status: u16) -> u16 {
        match status {
            431 if !self.is_whole || self.bytes > LONG_LINE_BYTES => 414,
            400 if self.is_whole && self.is_of_another_version() => 505,
            status => status,
        }
    }

    fn is_of_another_version(&self) -> bool {
        let last = self.end.trim_ascii_end().rsplit(|byte| *byte == b' ').next().unwrap_or_default();
        last.strip_prefix(b"HTTP/").is_some_and(|version| {
            let is_one = version.iter().all(|byte| byte.is_ascii_digit() || *byte == b'.') && !version.is_empty();
            is_one && !matches!(version, b"1.0" | b"1.1")
        })
    }
}

impl SocketState {
    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.since = Instant::now();
    }

    /// The status of an answer that the protocol makes itself, to a head that it cannot read.
    fn own_refusal(&self, bytes: &[u8]) -> Option<u16> {
        let asks = matches!(self.phase, Phase::Fresh | Phase::Idle | Phase::Head);
        if !asks || !self.has_unread_bytes || self.owed {
            return None;
        }
        let status = bytes.strip_prefix(b"HTTP/1.1 ").or_else(|| bytes.strip_prefix(b"HTTP/1.0 "))?.get(..3)?;
        std::str::from_utf8(status).ok()?.parse().ok()
    }
}

/// The connection as the protocol reads and writes it.
#[derive(Debug)]
pub(super) struct SocketIo(pub(super) Arc<ClientSocket>);

impl SocketIo {
    fn poll_send(&self, cx: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let Self(socket) = self;
        let all: usize = pieces.iter().map(|piece| piece.len()).sum();
        {
            let mut state = socket.state();
            let first = pieces.iter().find(|piece| !piece.is_empty()).map_or(&[][..], |piece| piece);
            if let Some(status) = state.own_refusal(first) {
                // Ours has a body, and follows once the protocol has ended.
                state.refused = Some(status);
                return Poll::Ready(Ok(all));
            }
            if state.refused.is_some() {
                return Poll::Ready(Ok(all));
            }
            if state.probed > 0 && !first.is_empty() {
                debug_assert!(first.starts_with(FIRST_BYTES), "an answer that begins otherwise");
                return Poll::Ready(Ok(std::mem::take(&mut state.probed)));
            }
        }
        loop {
            match socket.stream.poll_write_ready(cx) {
                Poll::Ready(ready) => ready?,
                Poll::Pending => {
                    socket.state().stalled.get_or_insert_with(Instant::now);
                    return Poll::Pending;
                }
            }
            match socket.stream.try_write_vectored(pieces) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => {
                    socket.state().stalled = None;
                    return Poll::Ready(written);
                }
            }
        }
    }
}

impl AsyncRead for SocketIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self(socket) = &*self;
        let before = buf.filled().len();
        loop {
            ready!(socket.stream.poll_read_ready(cx))?;
            match socket.stream.try_read_buf(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(read) => {
                    let mut state = socket.state();
                    state.ended |= read == 0;
                    state.has_unread_bytes |= read > 0;
                    match state.phase {
                        // The time for a first head is counted from the begin of the connection.
                        Phase::Fresh if read > 0 => state.phase = Phase::Head,
                        Phase::Idle if read > 0 => {
                            state.enter(Phase::Head);
                            state.line = RequestLine::default();
                        }
                        _ => {}
                    }
                    if state.phase == Phase::Head {
                        state.line.read(&buf.filled()[before..]);
                    }
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl AsyncWrite for SocketIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_send(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// All that the protocol had to say has been written.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.state().owed = false;
        Poll::Ready(Ok(()))
    }

    /// The connection's own task ends it, once the client has had time to read.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
