//! A server of files and package pages, that can misbehave, plain or encrypted.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path as UrlPath, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::StreamExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// What a server does with a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Manners {
    /// Ranges, a strong tag.
    #[default]
    Good,
    /// The first answer breaks off after so many bytes.
    CutOnce(usize),
    /// Every answer breaks off after so many bytes of its own.
    CutAlways(usize),
    /// The first answer breaks off; the rest begins a byte too early.
    WrongOffset(usize),
    /// The first answer breaks off; of the rest it sends ten bytes at a time.
    ShortRange(usize),
    /// The first answer breaks off; by then the file is another one, under the same tag, and longer.
    Grown(usize),
    /// The first answer breaks off; then the file is gone.
    Vanishing(usize),
    /// Neither ranges nor a tag.
    Plain,
    /// Always this status, and `Retry-After`.
    Status(u16),
    /// Compressed, it says.
    Gzip,
    /// 403, as the hub says that a repository's terms are to be accepted.
    Gated,
    /// To `cdn/PATH`, as the hub sends who asks for a large file.
    Redirect,
    /// The first answers are 429; then it is good.
    Busy(usize),
    /// It announces so many bytes more than there are.
    Lying(usize),
    /// It says that it gives ranges, and gives all of the file.
    Unranged,
    /// Each answer to a range breaks off after so many bytes.
    CutRanges(usize),
    /// After so many answers the file is gone.
    Leaving(usize),
    /// After the first answer the file is another one, of the same length.
    Replaced,
}

/// A file on the server.
#[derive(Clone, Debug, Default)]
pub(crate) struct Page {
    pub(crate) bytes: Vec<u8>,
    pub(crate) content_type: Option<&'static str>,
    pub(crate) manners: Manners,
    /// What `Authorization` must be.
    pub(crate) authorization: Option<&'static str>,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) path: String,
    pub(crate) range: Option<String>,
    pub(crate) authorization: Option<String>,
    pub(crate) accept: Option<String>,
}

/// A running server.
#[derive(Clone, Debug)]
pub(crate) struct Standin {
    pages: Arc<Mutex<BTreeMap<String, Page>>>,
    asked: Arc<Mutex<Vec<Asked>>>,
    pub(crate) base: String,
}

impl Standin {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let standin = Self::at("http", listener.local_addr().expect("an address"));
        let router = standin.router();
        tokio::spawn(async move { axum::serve(listener, router).await });
        standin
    }

    /// One that encrypts, as `localhost`.
    pub(crate) async fn encrypted(config: rustls::ServerConfig) -> Self {
        let tcp = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let standin = Self::at("https", tcp.local_addr().expect("an address"));
        let router = standin.router();
        let listener = Encrypted { tcp, acceptor: TlsAcceptor::from(Arc::new(config)) };
        tokio::spawn(async move { axum::serve(listener, router).await });
        standin
    }

    fn at(scheme: &str, address: SocketAddr) -> Self {
        let base = format!("{scheme}://localhost:{}", address.port());
        Self { pages: Arc::default(), asked: Arc::default(), base }
    }

    fn router(&self) -> Router {
        Router::new().route("/{*path}", get(answer)).with_state(self.clone())
    }

    pub(crate) fn put(&self, path: &str, page: Page) {
        self.pages.lock().expect("not poisoned").insert(path.to_owned(), page);
    }

    /// A file with good manners.
    pub(crate) fn file(&self, path: &str, bytes: &[u8]) {
        self.put(path, Page { bytes: bytes.to_vec(), ..Page::default() });
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.base)
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("not poisoned").clone()
    }

    /// The ranges that were asked for of one file.
    pub(crate) fn ranges(&self, path: &str) -> Vec<Option<String>> {
        self.asked().into_iter().filter(|asked| asked.path == path).map(|asked| asked.range).collect()
    }
}

async fn answer(State(standin): State<Standin>, UrlPath(path): UrlPath<String>, headers: HeaderMap) -> Response {
    let text = |name| headers.get(name).map(|value: &header::HeaderValue| value.to_str().expect("ascii").to_owned());
    let asked = Asked {
        path: path.clone(),
        range: text(header::RANGE),
        authorization: text(header::AUTHORIZATION),
        accept: text(header::ACCEPT),
    };
    let count = {
        let mut all = standin.asked.lock().expect("not poisoned");
        all.push(asked.clone());
        all.iter().filter(|asked| asked.path == path).count()
    };
    let first = count == 1;
    let page = standin.pages.lock().expect("not poisoned").get(&path).cloned();
    let Some(mut page) = page else { return StatusCode::NOT_FOUND.into_response() };
    if page.authorization.is_some_and(|wanted| asked.authorization.as_deref() != Some(wanted)) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let tag = if page.manners == Manners::Replaced && !first { "\"v2\"" } else { "\"v1\"" };
    if tag == "\"v2\"" {
        page.bytes.reverse();
    }
    let (from, to) = asked.range.as_deref().and_then(|range| range.strip_prefix("bytes=")?.split_once('-')).unzip();
    let from: Option<usize> = from.and_then(|from| from.parse().ok());
    // A range without its end goes to the end of the file.
    let until = to.and_then(|to| to.parse::<usize>().ok()).map_or(page.bytes.len(), |to| page.bytes.len().min(to + 1));
    let from = from.filter(|_| text(header::IF_RANGE).is_none_or(|wanted| wanted == tag));
    let mut response = match (page.manners, from) {
        (Manners::Status(status), _) => {
            let status = StatusCode::from_u16(status).expect("a status");
            (status, [(header::RETRY_AFTER, "0")]).into_response()
        }
        (
            Manners::CutOnce(at)
            | Manners::WrongOffset(at)
            | Manners::ShortRange(at)
            | Manners::Grown(at)
            | Manners::Vanishing(at),
            None,
        ) if first => cut(&page.bytes, 0, at),
        (Manners::Vanishing(_), _) => StatusCode::NOT_FOUND.into_response(),
        (Manners::Leaving(answers), _) if count > answers => StatusCode::NOT_FOUND.into_response(),
        (Manners::Busy(answers), _) if count <= answers => {
            (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, "0")]).into_response()
        }
        (Manners::Gated, _) => (StatusCode::FORBIDDEN, [("x-error-code", "GatedRepo")]).into_response(),
        (Manners::Redirect, _) => {
            (StatusCode::FOUND, [(header::LOCATION, standin.url(&format!("cdn/{path}")))]).into_response()
        }
        (Manners::Lying(more), _) => {
            let length = (page.bytes.len() + more).to_string();
            let bytes = Bytes::copy_from_slice(&page.bytes);
            let body = Body::from_stream(futures_util::stream::once(async { Ok::<_, std::io::Error>(bytes) }));
            ([(header::ETAG, tag.to_owned()), (header::CONTENT_LENGTH, length)], body).into_response()
        }
        (Manners::CutRanges(at), Some(from)) => cut_range(&page.bytes, from, until, at),
        (Manners::CutAlways(at), None) => cut(&page.bytes, 0, at),
        (Manners::CutAlways(at), Some(from)) => cut(&page.bytes, from, at),
        (_, Some(from)) if from >= page.bytes.len() => {
            let range = format!("bytes */{}", page.bytes.len());
            (StatusCode::RANGE_NOT_SATISFIABLE, [(header::CONTENT_RANGE, range)]).into_response()
        }
        (Manners::WrongOffset(_), Some(from)) => part(&page.bytes, from - 1, page.bytes.len(), page.bytes.len()),
        (Manners::ShortRange(_), Some(from)) => {
            part(&page.bytes, from, page.bytes.len().min(from + 10), page.bytes.len())
        }
        (Manners::Grown(_), Some(from)) => part(&page.bytes, from, page.bytes.len(), page.bytes.len() + 7),
        (
            Manners::Good | Manners::CutOnce(_) | Manners::Busy(_) | Manners::Leaving(_) | Manners::Replaced,
            Some(from),
        ) => part(&page.bytes, from, until, page.bytes.len()),
        (Manners::Plain, _) => page.bytes.clone().into_response(),
        (Manners::Gzip, _) => ([(header::CONTENT_ENCODING, "gzip")], page.bytes.clone()).into_response(),
        (_, None) | (Manners::Unranged, Some(_)) => {
            ([(header::ETAG, tag), (header::ACCEPT_RANGES, "bytes")], page.bytes.clone()).into_response()
        }
    };
    if let Some(kind) = page.content_type {
        response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    }
    response
}

/// The bytes from `from` to `until` of a file of `total`.
fn part(bytes: &[u8], from: usize, until: usize, total: usize) -> Response {
    let range = format!("bytes {from}-{}/{total}", until - 1);
    let head = [(header::ETAG, "\"v1\"".to_owned()), (header::CONTENT_RANGE, range)];
    (StatusCode::PARTIAL_CONTENT, head, bytes[from..until].to_vec()).into_response()
}

/// All from `from` on is announced, and it breaks off after `count` bytes.
fn cut(bytes: &[u8], from: usize, count: usize) -> Response {
    let (total, until) = (bytes.len(), bytes.len().min(from + count));
    let sent = Bytes::copy_from_slice(&bytes[from..until]);
    let half = futures_util::stream::once(async { Ok(sent) });
    // The pause lets the server send the first half before it finds the connection broken.
    let broken = futures_util::stream::once(async {
        tokio::task::yield_now().await;
        Err(std::io::Error::other("cut"))
    });
    let head = [
        (header::ETAG, "\"v1\"".to_owned()),
        (header::CONTENT_LENGTH, (total - from).to_string()),
        (header::CONTENT_RANGE, format!("bytes {from}-{}/{total}", total - 1)),
    ];
    let status = if from == 0 { StatusCode::OK } else { StatusCode::PARTIAL_CONTENT };
    (status, head, Body::from_stream(half.chain(broken))).into_response()
}

/// The bytes from `from` to `until` are announced, and it breaks off after `count` of them.
fn cut_range(bytes: &[u8], from: usize, until: usize, count: usize) -> Response {
    let sent = Bytes::copy_from_slice(&bytes[from..until.min(from + count)]);
    let is_whole = from + count >= until;
    let half = futures_util::stream::once(async { Ok(sent) });
    let broken = futures_util::stream::once(async move {
        tokio::task::yield_now().await;
        if is_whole { Ok(Bytes::new()) } else { Err(std::io::Error::other("cut")) }
    });
    let head = [
        (header::ETAG, "\"v1\"".to_owned()),
        (header::CONTENT_LENGTH, (until - from).to_string()),
        (header::CONTENT_RANGE, format!("bytes {from}-{}/{}", until - 1, bytes.len())),
    ];
    (StatusCode::PARTIAL_CONTENT, head, Body::from_stream(half.chain(broken))).into_response()
}

/// Encrypted connections. Who cannot agree on one is let go.
struct Encrypted {
    tcp: TcpListener,
    acceptor: TlsAcceptor,
}

impl axum::serve::Listener for Encrypted {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let Ok((stream, address)) = self.tcp.accept().await else { continue };
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.tcp.local_addr()
    }
}
