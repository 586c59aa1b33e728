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
pub(super) enum Manners {
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
}

/// A file on the server.
#[derive(Clone, Debug, Default)]
pub(super) struct Page {
    pub(super) bytes: Vec<u8>,
    pub(super) content_type: Option<&'static str>,
    pub(super) manners: Manners,
    /// What `Authorization` must be.
    pub(super) authorization: Option<&'static str>,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) path: String,
    pub(super) range: Option<String>,
    pub(super) authorization: Option<String>,
    pub(super) accept: Option<String>,
}

/// A running server.
#[derive(Clone, Debug)]
pub(super) struct Standin {
    pages: Arc<Mutex<BTreeMap<String, Page>>>,
    asked: Arc<Mutex<Vec<Asked>>>,
    pub(super) base: String,
}

impl Standin {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let standin = Self::at("http", listener.local_addr().expect("an address"));
        let router = standin.router();
        tokio::spawn(async move { axum::serve(listener, router).await });
        standin
    }

    /// One that encrypts, as `localhost`.
    pub(super) async fn encrypted(config: rustls::ServerConfig) -> Self {
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

    pub(super) fn put(&self, path: &str, page: Page) {
        self.pages.lock().expect("not poisoned").insert(path.to_owned(), page);
    }

    /// A file with good manners.
    pub(super) fn file(&self, path: &str, bytes: &[u8]) {
        self.put(path, Page { bytes: bytes.to_vec(), ..Page::default() });
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.base)
    }

    pub(super) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("not poisoned").clone()
    }

    /// The ranges that were asked for of one file.
    pub(super) fn ranges(&self, path: &str) -> Vec<Option<String>> {
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
    let first = {
        let mut all = standin.asked.lock().expect("not poisoned");
        all.push(asked.clone());
        all.iter().filter(|asked| asked.path == path).count() == 1
    };
    let page = standin.pages.lock().expect("not poisoned").get(&path).cloned();
    let Some(page) = page else { return StatusCode::NOT_FOUND.into_response() };
    if page.authorization.is_some_and(|wanted| asked.authorization.as_deref() != Some(wanted)) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let from: Option<usize> =
        asked.range.as_deref().and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    let from = from.filter(|_| text(header::IF_RANGE).as_deref() == Some("\"v1\""));
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
        (Manners::Good | Manners::CutOnce(_), Some(from)) => {
            part(&page.bytes, from, page.bytes.len(), page.bytes.len())
        }
        (Manners::Plain, _) => page.bytes.clone().into_response(),
        (Manners::Gzip, _) => ([(header::CONTENT_ENCODING, "gzip")], page.bytes.clone()).into_response(),
        (_, None) => ([(header::ETAG, "\"v1\"")], page.bytes.clone()).into_response(),
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
