//! One request to an engine that answers HTTP itself: what is asked goes to its port, and what comes back becomes outputs, as
//! if the worker had sent them. Whoever leaves closes the connection, which is how engines learn of it.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::Duration;

use aihost_plugin_api::{CustomFinish, CustomHead, CustomRequest, FinishReason, RequestInfo, UpstreamAddress};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{HeaderMap, Request, Response, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

use super::super::awake::timeout;
use super::super::placement::{CancelCause, Output};
use super::super::protocol::Task;
use super::failure;
use super::instance::Supervised;
use crate::domain::{Failure, FailureKind};

/// How long an engine may take to accept a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Most bytes of an engine's answer that are taken at once: so many outputs wait for a client that does not read.
const PIECE_BYTES: usize = 64 << 10;
/// What a body is of which its engine does not say.
const UNKNOWN_MEDIA: &str = "application/octet-stream";

impl Supervised {
    /// Serves one request to its end, which is returned.
    pub(super) async fn ask_upstream(
        &self,
        upstream: &UpstreamAddress,
        task: Task,
        output: &mpsc::Sender<Output>,
        cancelled: &mut oneshot::Receiver<CancelCause>,
    ) -> Result<Bytes, Failure> {
        tokio::select! {
            biased;
            // Whoever drops the sender has left too.
            _ = cancelled => Err(Failure::new(FailureKind::Cancelled, "the request was cancelled")),
            reason = self.process.gone() => Err(failure::of_exit(&self.model, &reason)),
            end = pass(upstream, task, output) => end,
        }
    }
}

/// Asks, and passes on what is answered. Dropped, it closes the connection.
async fn pass(upstream: &UpstreamAddress, task: Task, output: &mpsc::Sender<Output>) -> Result<Bytes, Failure> {
    let request = request(upstream, task)?;
    let connecting = TcpStream::connect(upstream.address);
    let stream = match timeout(CONNECT_LIMIT, connecting).await {
        Some(Ok(stream)) => stream,
        Some(Err(error)) => return Err(silent(error)),
        None => return Err(silent("it accepts no connection")),
    };
    // A packet at once: the only thing lost is a little of the system's time.
    let _ = stream.set_nodelay(true);
    let mut speaking = http1::Builder::new();
    speaking.max_buf_size(PIECE_BYTES);
    let (mut sender, connection) = speaking.handshake(TokioIo::new(stream)).await.map_err(silent)?;
    let answering = async {
        let answer = sender.send_request(request).await.map_err(silent)?;
        forward(answer, output).await
    };
    tokio::pin!(answering, connection);
    tokio::select! {
        biased;
        end = &mut answering => end,
        // What came before it closed can still be read.
        _ = &mut connection => answering.await,
    }
}

/// What is sent to the engine.
fn request(upstream: &UpstreamAddress, task: Task) -> Result<Request<Full<Bytes>>, Failure> {
    let asked: CustomRequest = serde_json::from_slice(&task.header).map_err(internal)?;
    let info: RequestInfo = serde_json::from_slice(&task.info).unwrap_or_default();
    let mut target = format!("{}{}", upstream.prefix, asked.path);
    if !target.starts_with('/') {
        target.insert(0, '/');
    }
    if !asked.query.is_empty() {
        target = format!("{target}?{}", asked.query);
    }
    let mut request =
        Request::builder().method(asked.method.as_str()).uri(target).header(header::HOST, upstream.address.to_string());
    let ours = [("x-request-id", info.id), ("traceparent", info.trace)].map(|(name, value)| (name.to_owned(), value));
    let mut headers: BTreeMap<String, String> = asked.headers;
    headers.extend(ours.into_iter().filter(|(_, value)| !value.is_empty()));
    headers.extend(upstream.headers.clone());
    for (name, value) in &headers {
        request = request.header(name, value);
    }
    request.body(Full::new(task.blocks.into_iter().next().unwrap_or_default())).map_err(internal)
}

/// Head, body, end.
async fn forward(answer: Response<Incoming>, output: &mpsc::Sender<Output>) -> Result<Bytes, Failure> {
    let (parts, mut body) = answer.into_parts();
    let head = serde_json::to_vec(&head(parts.status.as_u16(), &parts.headers)).map_err(internal)?;
    let gone = || Failure::new(FailureKind::Cancelled, "the client left");
    output.send(Output::Event(head.into())).await.map_err(|_| gone())?;
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        let broken = |error: hyper::Error| internal(format!("the engine broke its answer off: {error}"));
        // Trailers have no place in an answer of ours.
        let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
        bytes += data.len() as u64;
        output.send(Output::Bytes(data)).await.map_err(|_| gone())?;
    }
    serde_json::to_vec(&CustomFinish::new(FinishReason::Stop, bytes)).map(Bytes::from).map_err(internal)
}

fn head(status: u16, headers: &HeaderMap) -> CustomHead {
    let text = |name: &header::HeaderName| {
        let values: Vec<&str> = headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
        values.join(", ")
    };
    let media = text(&header::CONTENT_TYPE);
    let head = CustomHead::new(status, if media.is_empty() { UNKNOWN_MEDIA } else { &media });
    headers.keys().fold(head, |head, name| head.header(name.as_str(), &text(name)))
}

fn silent(why: impl Display) -> Failure {
    internal(format!("the engine does not answer: {why}"))
}

fn internal(why: impl Display) -> Failure {
    Failure::new(FailureKind::Internal, why.to_string())
}
