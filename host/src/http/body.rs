//! Reading a request's body or path, within limits of bytes and time, with every refusal in the envelope.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{BodyDataStream, HttpBody};
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::header;
use axum::http::request::Parts;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use hyper::body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::app::App;
use super::blocking::run_long;
use super::bodies::HeldBytes;
use super::caller::Caller;
use super::connections::peer_of;
use super::content_coding::{Codings, Unpacking, WINDOW_BYTES, unpack};
use super::error::ApiError;
use super::wire::ReceivedBody;
use crate::config::TEXT_BODY_BYTES;
use crate::domain::{ByteSize, Class};

/// How long the next piece of a body may take.
const BODY_STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a body may take however little of it comes; each [`BODY_BYTES_PER_SECOND`] that have come are a second more.
const BODY_GRACE: Duration = Duration::from_secs(30);
/// Bytes a second that a body must come with, in the long run.
const BODY_BYTES_PER_SECOND: u64 = 64 << 10;
/// Bytes of a body up to which it is read where it arrived: in less time than any other request would notice, however many
/// come. A longer one is read on a thread that other requests do not share.
const INLINE_READ_BYTES: usize = 16 << 10;
/// Bytes of a body up to which it does not wait for longer ones to be read.
const SHORT_READ_BYTES: usize = 256 << 10;
/// Bodies of either length that are read at once.
const READERS_MAX: usize = 2;

/// Largest body of a command, bytes.
const COMMAND_BODY_BYTES: u64 = 64 << 10;
/// Largest body that describes an image or audio, bytes.
const PROMPT_BODY_BYTES: u64 = 1 << 20;
/// Largest body of files, bytes, unless `body_limit` says otherwise.
const FILES_BODY_BYTES: u64 = 32 << 20;

static SHORT_READERS: Semaphore = Semaphore::const_new(READERS_MAX);
static LONG_READERS: Semaphore = Semaphore::const_new(READERS_MAX);

/// How large a body an endpoint reads.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum BodySize {
    /// A name and a few numbers.
    #[default]
    Command,
    /// A description of what is to be made.
    Prompt,
    /// Prompts and conversations.
    Text,
    /// Images and audio, as they are uploaded.
    Files,
}

impl BodySize {
    /// Most bytes. What `body_limit` says is the most anywhere, and it is what texts and files have if it says something.
    pub(super) fn limit(self, body_limit: Option<ByteSize>) -> ByteSize {
        let (usual, raised) = match self {
            Self::Command => (COMMAND_BODY_BYTES, false),
            Self::Prompt => (PROMPT_BODY_BYTES, false),
            Self::Text => (TEXT_BODY_BYTES, true),
            Self::Files => (FILES_BODY_BYTES, true),
        };
        body_limit.filter(|limit| raised || limit.0 < usual).unwrap_or(ByteSize(usual))
    }
}

/// A body of JSON, not read yet. Cheap to clone.
#[derive(Clone)]
pub(super) struct JsonBody(RawBody);

impl JsonBody {
    /// Reads it, where it holds nobody up.
    pub(super) async fn read<T: Send + 'static>(
        self,
        read: impl FnOnce(&ReceivedBody<'_>) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        self.0.read(read).await
    }
}

/// A body of any kind, as it came. Cheap to clone.
#[derive(Clone)]
pub(super) struct RawBody {
    pub(super) bytes: Bytes,
    class: Class,
    /// Shared with the answer: they count until its end.
    held: Arc<HeldBytes>,
}

impl RawBody {
    /// Takes it in, within its limits.
    pub(super) async fn receive(mut request: Request, app: &App) -> Result<Self, ApiError> {
        // Somebody took it in before.
        if let Some(body) = request.extensions_mut().remove::<Self>() {
            return Ok(body);
        }
        let class = request.extensions().get().map_or_else(Class::default, Caller::class);
        let held = held_by(&request, app);
        let limit = app.handle.config().limits.bodies;
        let mut arriving = Pieces::of(request, app)?;
        let mut bytes = Vec::with_capacity(arriving.announced());
        while let Some(piece) = arriving.next().await? {
            held.add(piece.len(), limit).await.map_err(|_| ApiError::no_room_for_body())?;
            bytes.extend_from_slice(&piece);
            // A long one that comes as fast as it is taken is taken in turn with whatever else the runtime has to do.
            if bytes.len() > INLINE_READ_BYTES {
                tokio::task::yield_now().await;
            }
        }
        Ok(Self { bytes: bytes.into(), class, held })
    }

    /// Reads it as JSON, where that holds nobody up.
    pub(super) async fn read<T: Send + 'static>(
        self,
        read: impl FnOnce(&ReceivedBody<'_>) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let Self { bytes, class, held } = self;
        let read = move |bytes: Bytes| match str::from_utf8(&bytes) {
            Ok(text) => read(&ReceivedBody { text, class }),
            Err(_) => Err(ApiError::malformed("the body is not JSON: it is not UTF-8")),
        };
        if bytes.len() <= INLINE_READ_BYTES {
            return read(bytes);
        }
        let readers = if bytes.len() <= SHORT_READ_BYTES { &SHORT_READERS } else { &LONG_READERS };
        // A client that leaves does not end this: its bytes are held until it is over.
        let read = move || {
            let read = read(bytes);
            drop(held);
            read
        };
        run_long(readers, read).await?
    }
}

impl FromRequest<App> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(mut request: Request, app: &App) -> Result<Self, ApiError> {
        unpack(&mut request)?;
        check_content_type(&request)?;
        RawBody::receive(request, app).await.map(Self)
    }
}

impl FromRequest<App> for RawBody {
    type Rejection = ApiError;

    async fn from_request(mut request: Request, app: &App) -> Result<Self, ApiError> {
        unpack(&mut request)?;
        Self::receive(request, app).await
    }
}

/// A body that is passed on as it comes, within its limits.
pub(super) struct ArrivingBody {
    /// What was read of it before.
    read: Option<Bytes>,
    arriving: Pin<Box<dyn Stream<Item = Result<Bytes, ApiError>> + Send>>,
    problem: BodyProblem,
    /// Bytes that it has, if its client says so.
    length: Option<u64>,
    /// What is kept of it counts until the end of its answer.
    held: Arc<HeldBytes>,
    held_limit: ByteSize,
}

/// What is wrong with a body that was passed on.
#[derive(Clone, Default)]
pub(super) struct BodyProblem(Arc<Mutex<Option<ApiError>>>);

impl BodyProblem {
    /// What was wrong, for the first who asks.
    pub(super) fn take(&self) -> Option<ApiError> {
        self.0.lock().take()
    }

    /// This was wrong; whoever reads the body on is told that something was.
    fn found(&self, error: ApiError) -> std::io::Error {
        *self.0.lock() = Some(error);
        std::io::Error::other("the body did not come as it should")
    }
}

impl ArrivingBody {
    /// A request's body.
    pub(super) fn of(request: Request, app: &App) -> Result<Self, ApiError> {
        let is_packed = request.extensions().get::<Codings>().is_some();
        let length = HttpBody::size_hint(request.body()).exact().filter(|_| !is_packed);
        let held = held_by(&request, app);
        let held_limit = app.handle.config().limits.bodies;
        let arriving = Pieces::of(request, app)?;
        let window = Arc::clone(&held);
        let pieces = futures_util::stream::unfold(arriving, move |mut arriving| {
            let window = Arc::clone(&window);
            async move {
                let piece = match arriving.next().await.transpose()? {
                    Ok(piece) => {
                        // What its decoder looks back to.
                        window
                            .add(arriving.kept(&piece), held_limit)
                            .await
                            .map(|()| piece)
                            .map_err(|_| ApiError::no_room_for_body())
                    }
                    Err(error) => Err(error),
                };
                Some((piece, arriving))
            }
        });
        // Whoever reads it on may ask for more behind its end.
        let arriving = Box::pin(pieces.fuse());
        Ok(Self { read: None, arriving, problem: BodyProblem::default(), length, held, held_limit })
    }

    /// The next piece of it.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        self.arriving.next().await.transpose()
    }

    /// So many bytes of it are kept.
    pub(super) async fn keep(&mut self, bytes: usize) -> Result<(), ApiError> {
        self.held.add(bytes, self.held_limit).await.map_err(|_| ApiError::no_room_for_body())
    }

    /// The same body with this before what has not been read; `length` is what it has by now.
    pub(super) fn behind(self, read: Bytes, length: Option<u64>) -> Self {
        Self { read: Some(read), length, ..self }
    }

    /// The same body, of which this sees what has not been read before it goes on; what it refuses ends the body.
    pub(super) fn seen_by(self, mut see: impl FnMut(&[u8]) -> Result<(), ApiError> + Send + 'static) -> Self {
        let pieces = self.arriving.map(move |piece| piece.and_then(|piece| see(&piece).map(|()| piece)));
        Self { arriving: Box::pin(pieces), ..self }
    }

    /// Bytes that it has, if its client says so.
    pub(super) fn length(&self) -> Option<u64> {
        self.length
    }

    /// What will turn out to be wrong with it.
    pub(super) fn problem(&self) -> BodyProblem {
        self.problem.clone()
    }
}

impl HttpBody for ArrivingBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Some(read) = self.read.take().filter(|read| !read.is_empty()) {
            return Poll::Ready(Some(Ok(Frame::data(read))));
        }
        Poll::Ready(match std::task::ready!(self.arriving.as_mut().poll_next(cx)) {
            Some(Ok(piece)) => Some(Ok(Frame::data(piece))),
            Some(Err(error)) => Some(Err(self.problem.found(error))),
            None => None,
        })
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// A body that nobody looks at. It is taken in, so that the client is done with sending when the answer comes.
pub(super) struct Unread;

impl FromRequest<App> for Unread {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let mut arriving = Arriving::of(request, app)?;
        while arriving.next().await?.is_some() {}
        Ok(Self)
    }
}

/// The name at the end of a path, percent-decoded.
pub(super) struct Name(pub(super) String);

impl FromRequestParts<App> for Name {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        match Path::<String>::from_request_parts(parts, app).await {
            Ok(Path(name)) => Ok(Self(name)),
            Err(_) => Err(ApiError::malformed("the path is not UTF-8 once decoded")),
        }
    }
}

/// Where the bytes of a request are counted.
fn held_by(request: &Request, app: &App) -> Arc<HeldBytes> {
    let held = request.extensions().get::<Arc<HeldBytes>>().cloned();
    held.unwrap_or_else(|| Arc::new(app.bodies.begin(peer_of(request))))
}

/// JSON, or nothing said. Anything else is refused: a form post is what a hostile page can send without a preflight.
pub(super) fn check_content_type(request: &Request) -> Result<(), ApiError> {
    let Some(value) = request.headers().get(header::CONTENT_TYPE) else { return Ok(()) };
    let essence = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json")) {
        Ok(())
    } else {
        Err(ApiError::malformed("the body must be JSON; send `Content-Type: application/json`"))
    }
}

/// A body as it was before its client packed it, piece by piece.
enum Pieces {
    Plain(Arriving),
    Packed {
        unpacking: Unpacking,
        /// What was wrong with it before it was unpacked.
        problem: BodyProblem,
        announced: usize,
        limit: ByteSize,
        /// Bytes that it came to.
        bytes: u64,
    },
}

impl Pieces {
    fn of(mut request: Request, app: &App) -> Result<Self, ApiError> {
        let codings = request.extensions_mut().remove::<Codings>();
        let arriving = Arriving::of(request, app)?;
        let Some(codings) = codings else { return Ok(Self::Plain(arriving)) };
        let (limit, announced, problem) = (arriving.limit, arriving.announced, BodyProblem::default());
        let packed = futures_util::stream::unfold((arriving, problem.clone()), async |(mut arriving, problem)| {
            let piece = arriving.next().await.transpose()?;
            Some((piece.map_err(|error| problem.found(error)), (arriving, problem)))
        });
        Ok(Self::Packed { unpacking: Unpacking::new(packed.fuse(), &codings), problem, announced, limit, bytes: 0 })
    }

    /// Bytes that its client says it has, at most its limit.
    fn announced(&self) -> usize {
        match self {
            Self::Plain(Arriving { announced, .. }) | Self::Packed { announced, .. } => *announced,
        }
    }

    /// Bytes by which its last piece made what a decoder looks back to longer.
    fn kept(&self, piece: &Bytes) -> usize {
        match self {
            Self::Packed { bytes, .. } if *bytes <= WINDOW_BYTES => piece.len(),
            Self::Plain(_) | Self::Packed { .. } => 0,
        }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        let (unpacking, problem, limit, bytes) = match self {
            Self::Plain(arriving) => return arriving.next().await,
            Self::Packed { unpacking, problem, limit, bytes, .. } => (unpacking, problem, *limit, bytes),
        };
        let unsound = |_| ApiError::malformed("the body is not packed as its Content-Encoding says, or not whole");
        let piece = unpacking.next().await.map_err(|error| problem.take().unwrap_or_else(|| unsound(error)))?;
        *bytes += piece.as_ref().map_or(0, |piece| piece.len() as u64);
        if *bytes > limit.0 { Err(ApiError::too_large(limit)) } else { Ok(piece) }
    }
}

/// A body on its way, held to its endpoint's size and to a pace.
struct Arriving {
    pieces: BodyDataStream,
    limit: ByteSize,
    /// Bytes that its client says it has, at most the limit. What does not come takes no memory.
    announced: usize,
    begun: Instant,
    bytes: u64,
}

impl Arriving {
    fn of(request: Request, app: &App) -> Result<Self, ApiError> {
        let size = request.extensions().get::<BodySize>().copied().unwrap_or_default();
        let limit = size.limit(app.handle.config().limits.body_limit);
        let announced = request.headers().get(header::CONTENT_LENGTH);
        let announced = announced.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        if announced.is_some_and(|length| length > limit.0) {
            return Err(ApiError::too_large(limit));
        }
        let announced = announced.and_then(|length| usize::try_from(length).ok()).unwrap_or_default();
        let pieces = request.into_body().into_data_stream();
        Ok(Self { pieces, limit, announced, begun: Instant::now(), bytes: 0 })
    }

    async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        let slow = self.begun + BODY_GRACE + Duration::from_secs(self.bytes / BODY_BYTES_PER_SECOND);
        let stalled = Instant::now() + BODY_STALL_TIMEOUT;
        let piece = timeout_at(slow.min(stalled), self.pieces.next()).await.map_err(|_| {
            if stalled < slow {
                ApiError::stalled(BODY_STALL_TIMEOUT)
            } else {
                ApiError::too_slow(self.begun.elapsed())
            }
        })?;
        let Some(piece) = piece else { return Ok(None) };
        let piece = piece.map_err(|_| ApiError::malformed("the body ended early"))?;
        self.bytes += piece.len() as u64;
        if self.bytes > self.limit.0 {
            return Err(ApiError::too_large(self.limit));
        }
        Ok(Some(piece))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};
    use std::time::Duration;

    use super::*;
    use crate::http::bodies::Bodies;
    use crate::http::connections::Peer;

    const PATIENCE: Duration = Duration::from_secs(30);

    /// A body of so many bytes whose reader goes on when it is told to.
    fn read(bytes: usize, go: Receiver<()>) -> impl Future<Output = Result<(), ApiError>> {
        let held = Arc::new(Arc::new(Bodies::default()).begin(Peer::of([127, 0, 0, 1].into())));
        let body = RawBody { bytes: vec![b' '; bytes].into(), class: Class::default(), held };
        body.read(move |_| go.recv_timeout(PATIENCE).map_err(|error| ApiError::internal(error.to_string())))
    }

    #[tokio::test]
    async fn what_takes_a_while_to_read_holds_up_nobody_and_the_longest_wait_for_one_another_alone() {
        let mut open = Vec::new();
        // More of them than are read at once: those of each length have turns of their own.
        for bytes in [INLINE_READ_BYTES + 1, SHORT_READ_BYTES - 1000, SHORT_READ_BYTES, SHORT_READ_BYTES + 1, 4 << 20] {
            let (go, told) = channel();
            open.push((go, tokio::spawn(read(bytes, told))));
        }
        let (go, told) = channel();
        go.send(()).expect("somebody reads");
        assert!(read(INLINE_READ_BYTES, told).await.is_ok(), "a short one");
        for (go, reading) in open.drain(3..) {
            tokio::task::yield_now().await;
            go.send(()).expect("somebody reads");
            assert!(reading.await.expect("it ends").is_ok(), "a long one waits for those that are not");
        }
        for (go, reading) in open {
            go.send(()).expect("somebody reads");
            assert!(reading.await.expect("it ends").is_ok());
        }
    }
}
