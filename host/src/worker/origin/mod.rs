//! A server that answers HTTP for a model: what is asked goes there, and what comes back becomes outputs, streaming both ways.
//! Whoever leaves closes the connection, which is how servers learn of it. It knows nothing of workers, queues and clients.

mod answer;
mod busy;
mod connection;
mod facts;
mod usage;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aihost_plugin_api::UpstreamAddress;
use bytes::Bytes;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{HeaderMap, Method, Request, Response, Uri};
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::mpsc;
use tokio::time::interval;

use super::ask::{AskBody, HttpAsk, HttpBody};
use super::placement::Output;
use crate::domain::{Failure, FailureKind};

use connection::{AnswerBody, CONNECT_LIMIT, Connections, SendFailure, root_of};

pub(super) use answer::{Answered, Outlet};
pub(super) use busy::until_idle;
pub(super) use facts::facts;

/// How often a request that waits says that it is not stuck.
const SIGN_EVERY: Duration = Duration::from_secs(5);

/// Where a model's engine answers. Cheap to clone.
#[derive(Clone)]
pub(super) struct Origin {
    connections: Arc<Connections>,
    /// Scheme and authority, such as `http://127.0.0.1:8188`.
    base: Arc<str>,
    /// Whom it is asked as.
    host: HeaderValue,
    /// What stands before each path.
    prefix: Arc<str>,
    /// What each request is sent with.
    headers: Arc<HeaderMap>,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum NoAnswer {
    /// It was not sent: it may be asked of another.
    Unsent(Failure),
    /// Nobody knows what came of it.
    Broken(Failure),
}

impl NoAnswer {
    pub(super) fn failure(self) -> Failure {
        match self {
            Self::Unsent(failure) | Self::Broken(failure) => failure,
        }
    }
}

impl Origin {
    /// A server at `http://HOST:PORT/PREFIX`, or with `https`, which each request is sent to with these headers. `tls`: whose
    /// certificates are trusted.
    pub(super) fn new(url: &str, headers: &BTreeMap<String, String>, tls: ClientConfig) -> Self {
        let authority = url.find("://").map_or(0, |scheme| scheme + "://".len());
        let (base, prefix) = url.split_at(url[authority..].find('/').map_or(url.len(), |slash| authority + slash));
        let headers = headers.iter().filter_map(|(name, value)| {
            Some((HeaderName::try_from(name.as_str()).ok()?, HeaderValue::try_from(value.as_str()).ok()?))
        });
        // One that is none cannot be connected to, which is told when it is tried.
        let server = Uri::try_from(base).unwrap_or_default();
        Self {
            host: host(&server),
            connections: Arc::new(Connections::to(server, tls)),
            base: base.into(),
            prefix: prefix.trim_end_matches('/').into(),
            headers: Arc::new(headers.collect()),
        }
    }

    /// Asks; what is answered is still to be passed on. Dropped, it closes the connection.
    pub(super) async fn ask(&self, ask: &HttpAsk) -> Result<Response<AnswerBody>, NoAnswer> {
        loop {
            let connection = self.connections.get().await.map_err(|why| NoAnswer::Unsent(silent(&why)))?;
            let request = self.request(ask).map_err(NoAnswer::Unsent)?;
            let SendFailure { error, unsent, was_kept } = match self.connections.send(connection, request).await {
                Ok(mut answer) => {
                    self.hide(answer.headers_mut());
                    return Ok(answer);
                }
                Err(failed) => failed,
            };
            // Whoever sent it knows what was wrong.
            if error.is_user() {
                let message = format!("the request's body broke off: {}", root_of(&error));
                return Err(NoAnswer::Broken(Failure::new(FailureKind::InvalidRequest, message)));
            }
            let failure = silent(&root_of(&error));
            let Some(request) = unsent else { return Err(NoAnswer::Broken(failure)) };
            ask.body.put_back(request.into_body());
            if !was_kept {
                return Err(NoAnswer::Unsent(failure));
            }
        }
    }

    /// Its own address, which says nothing to those who ask this host, becomes the path that they know.
    fn hide(&self, headers: &mut HeaderMap) {
        let path = headers.get(header::LOCATION).and_then(|value| self.path_of(value.to_str().ok()?));
        if let Some(path) = path.and_then(|path| HeaderValue::try_from(path).ok()) {
            headers.insert(header::LOCATION, path);
        }
    }

    /// The path by which this host is asked for a place of the server's, `http://HOST:PORT/path` or `/path`.
    fn path_of(&self, location: &str) -> Option<String> {
        let is_end = |rest: &&str| rest.is_empty() || rest.starts_with(['/', '?', '#']);
        let rest = match location.strip_prefix(&*self.base).filter(is_end) {
            Some(rest) => rest,
            None if location.starts_with('/') && !location.starts_with("//") => location,
            None => return None,
        };
        // Below one that ends with what API's paths begin with, these are asked for by all of them.
        let version = format!("/{API_VERSION}");
        let prefix = self.prefix.strip_suffix(&*version).unwrap_or(&self.prefix);
        let path = rest.strip_prefix(prefix).filter(is_end).unwrap_or(rest);
        Some(if path.starts_with('/') { path.to_owned() } else { format!("/{path}") })
    }

    /// The same without passing anything on: a small answer of JSON.
    pub(super) async fn look(&self, target: &str) -> Option<serde_json::Value> {
        self.look_with(target, HeaderMap::new()).await
    }

    /// The same of what is not looked at again: a server that has one connection at a time has it back at once.
    pub(super) async fn look_in_passing(&self, target: &str) -> Option<serde_json::Value> {
        self.look_with(target, HeaderMap::from_iter([(header::CONNECTION, HeaderValue::from_static("close"))])).await
    }

    async fn look_with(&self, target: &str, headers: HeaderMap) -> Option<serde_json::Value> {
        let (method, target) = (Method::GET, target.to_owned());
        let body = AskBody::Whole(Bytes::new());
        let ask = HttpAsk { method, target, headers, body, time_limit: CONNECT_LIMIT };
        answer::json(self.ask(&ask).await.ok()?).await
    }

    /// Where an engine answers that runs on this machine.
    ///
    /// # Errors
    /// When the library of TLS, which is not used on the way to it, cannot be set up.
    pub(super) fn on_this_machine(upstream: &UpstreamAddress) -> Result<Self, String> {
        let UpstreamAddress { address, prefix, headers, .. } = upstream;
        // Nothing is encrypted, and nobody needs to be trusted.
        Ok(Self::new(&format!("http://{address}{prefix}"), headers, trusting_nobody()?))
    }

    /// Whether requests are sent with a key of this host's.
    pub(super) fn has_key(&self) -> bool {
        self.headers.contains_key(header::AUTHORIZATION)
    }

    /// The path and query that are asked for.
    pub(super) fn target(&self, ask: &HttpAsk) -> String {
        let (prefix, below) = (self.prefix_of(&ask.target), self.below_prefix(&ask.target));
        let root = if prefix.is_empty() && !below.starts_with('/') { "/" } else { "" };
        format!("{prefix}{root}{below}")
    }

    /// What stands before a path, which some have a part of.
    fn prefix_of(&self, target: &str) -> &str {
        let path = target.split('?').next().unwrap_or_default();
        let above = self.prefix.strip_suffix(API_VERSION).and_then(|above| above.strip_suffix('/'));
        above.filter(|_| BESIDE_API.contains(&path)).unwrap_or(&self.prefix)
    }

    /// What is sent.
    fn request(&self, ask: &HttpAsk) -> Result<Request<HttpBody>, Failure> {
        let target = self.target(ask);
        let wrong = |why: &dyn fmt::Display| {
            Failure::new(FailureKind::InvalidRequest, format!("the path cannot be asked for: {why}"))
        };
        let uri = Uri::try_from(target).map_err(|error| wrong(&error))?;
        let body = ask.body.to_send().ok_or_else(|| {
            Failure::new(FailureKind::Internal, "the request's body was sent to another engine, and is gone")
        })?;
        let mut request = Request::new(body);
        *request.method_mut() = ask.method.clone();
        *request.headers_mut() = ask.headers.clone();
        // A page of ours is a page of the engine's own: it checks where what asks it comes from.
        if request.headers().contains_key(header::ORIGIN)
            && let Ok(origin) = HeaderValue::try_from(&*self.base)
        {
            request.headers_mut().insert(header::ORIGIN, origin);
        }
        request.headers_mut().insert(header::HOST, self.host.clone());
        for (name, value) in self.headers.iter() {
            request.headers_mut().insert(name, value.clone());
        }
        *request.uri_mut() = uri;
        Ok(request)
    }

    /// Whoever names a server by the beginning of its API's paths does not mean that beginning twice.
    fn below_prefix<'a>(&self, target: &'a str) -> &'a str {
        let last = self.prefix.rsplit_once('/').map(|(_, last)| last).unwrap_or_default();
        let rest = target.strip_prefix('/').and_then(|target| target.strip_prefix(last));
        match rest {
            Some(rest) if last == API_VERSION && rest.starts_with(['/', '?']) => rest,
            _ => target,
        }
    }
}

/// For connections that are not encrypted.
///
/// # Errors
/// When the library of TLS cannot be set up.
pub(super) fn trusting_nobody() -> Result<ClientConfig, String> {
    let versions = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS cannot be set up: {error}"))?;
    Ok(versions.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
}

/// Says now and then that whoever waits is not stuck, for as long as somebody may hear it.
pub(super) async fn wait(output: &mpsc::Sender<Output>) {
    let mut signs = interval(SIGN_EVERY);
    while !output.is_closed() {
        signs.tick().await;
        let _told = output.try_send(Output::Progress { done: 0, total: 0 });
    }
}

fn silent(why: &str) -> Failure {
    Failure::new(FailureKind::Unreachable, format!("the engine does not answer: {why}"))
}

/// The name of a server as requests say it.
fn host(server: &Uri) -> HeaderValue {
    let is_usual =
        matches!((server.scheme_str(), server.port_u16()), (Some("http"), Some(80)) | (Some("https"), Some(443)));
    let authority = server.authority().map_or("", |authority| authority.as_str());
    let host = if is_usual { server.host().unwrap_or_default() } else { authority };
    HeaderValue::try_from(host).unwrap_or(HeaderValue::from_static(""))
}

/// Passes an answer on. Dropped, it closes the connection.
pub(super) async fn forward(answer: Response<AnswerBody>, to: &Outlet) -> Result<Answered, NoAnswer> {
    answer::forward(answer, to).await.map_err(NoAnswer::Broken)
}

/// What OpenAI's paths begin with, and base addresses of its clients end with.
const API_VERSION: &str = "v1";
/// Paths that engines have beside those of OpenAI's API, and not below what these begin with: llama.cpp's and vLLM's.
const BESIDE_API: [&str; 3] = ["/tokenize", "/detokenize", "/props"];

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Its headers may be keys.
        write!(f, "{}{}", self.base, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_is_named_by_where_its_api_begins_is_asked_beside_it_for_what_is_there() {
        for (prefix, target, wanted) in [
            ("", "/tokenize", "/tokenize"),
            ("/v1", "/tokenize", "/tokenize"),
            ("/v1", "/props?model=a", "/props?model=a"),
            ("/v1", "/v1/chat/completions", "/v1/chat/completions"),
            ("/v1", "/tokenizer", "/v1/tokenizer"),
            ("/p/v1", "/detokenize", "/p/detokenize"),
            ("/p", "/tokenize", "/p/tokenize"),
        ] {
            let address = "127.0.0.1:81".parse().unwrap();
            let origin = Origin::on_this_machine(&UpstreamAddress::at(address).below(prefix)).unwrap();
            let (method, headers, body) = (Method::POST, HeaderMap::new(), AskBody::Whole(Bytes::new()));
            let ask = HttpAsk { method, target: target.to_owned(), headers, body, time_limit: CONNECT_LIMIT };
            assert_eq!(origin.target(&ask), wanted, "{prefix} {target}");
        }
    }

    #[test]
    fn a_server_sends_nobody_to_an_address_that_this_host_alone_knows() {
        for (prefix, location, path) in [
            ("", "http://127.0.0.1:81/a/?x=1", Some("/a/?x=1")),
            ("", "http://127.0.0.1:81", Some("/")),
            ("", "http://127.0.0.1:81?x", Some("/?x")),
            ("", "/a", Some("/a")),
            ("/p", "http://127.0.0.1:81/p/a", Some("/a")),
            ("/p", "/p", Some("/")),
            ("/p", "/pa/b", Some("/pa/b")),
            ("/p/v1", "/p/v1/a", Some("/v1/a")),
            ("", "http://127.0.0.1:8188/a", None),
            ("", "http://127.0.0.1:81.example/a", None),
            ("", "https://elsewhere/a", None),
            ("", "//elsewhere/a", None),
            ("", "a/b", None),
        ] {
            let address = "127.0.0.1:81".parse().unwrap();
            let origin = Origin::on_this_machine(&UpstreamAddress::at(address).below(prefix)).unwrap();
            assert_eq!(origin.path_of(location).as_deref(), path, "{prefix} {location}");
        }
    }
}
