//! What a server answers, piece by piece, as outputs.

use std::time::Duration;

use aihost_plugin_api::FinishReason;
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::{HeaderMap, Response, StatusCode, header};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::super::placement::{EngineConnection, HttpHead, HttpOutput, Output};
use super::connection::{AnswerBody, root_of};
use super::usage::{Tokens, UsageReader};
use crate::domain::{Failure, FailureKind};

/// How long a small answer may take, from its head to its end.
const SMALL_LIMIT: Duration = Duration::from_secs(5);
/// Most bytes of an answer that is read for what its server calls what it took.
const SHORT_BYTES: usize = 16 << 10;
/// Most bytes of a small answer.
const SMALL_BYTES: usize = 4 << 20;

/// What is said of an answer once it is whole.
#[derive(Serialize)]
struct HttpFinish {
    reason: FinishReason,
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Tokens>,
}

/// What came of an answer that was passed on.
#[derive(Debug)]
pub(in crate::worker) struct Answered {
    /// The summary of it, as JSON.
    pub(in crate::worker) summary: Bytes,
    /// What its server called what it took, if it said so: `id` of a short answer of JSON.
    pub(in crate::worker) job: Option<String>,
}

/// Whom an answer is passed on to.
#[derive(Clone, Debug)]
pub(in crate::worker) struct Outlet {
    pub(in crate::worker) output: mpsc::Sender<Output>,
    /// Turns true when the engine is about to go.
    pub(in crate::worker) leaving: watch::Receiver<bool>,
}

#[derive(Deserialize)]
struct Named {
    id: String,
}

/// Passes an answer on.
pub(super) async fn forward(answer: Response<AnswerBody>, to: &Outlet) -> Result<Answered, Failure> {
    let status = answer.status();
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return switch(answer, to).await;
    }
    let output = &to.output;
    let (parts, mut body) = answer.into_parts();
    let mut usage = UsageReader::of(&parts.headers);
    let mut short = (media(&parts.headers) == "application/json").then(Vec::new);
    say(output, HttpOutput::Head(HttpHead::new(status, parts.headers))).await?;
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| broken(&error))?;
        match frame.into_data() {
            Ok(data) => {
                bytes += data.len() as u64;
                usage.see(&data);
                short = short.filter(|short| short.len() + data.len() <= SHORT_BYTES);
                if let Some(short) = &mut short {
                    short.extend_from_slice(&data);
                }
                tell(output, Output::Bytes(data)).await?;
            }
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    say(output, HttpOutput::Trailers(trailers)).await?;
                }
            }
        }
    }
    let job = short.and_then(|short| serde_json::from_slice(&short).ok()).map(|Named { id }| id);
    // It becomes a part of a path.
    let job = job.filter(|job| job.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)));
    Ok(Answered { summary: summary(bytes, usage.found()), job })
}

/// From here on both sides speak something else: the connection is handed over.
async fn switch(mut answer: Response<AnswerBody>, to: &Outlet) -> Result<Answered, Failure> {
    let switching = hyper::upgrade::on(&mut answer);
    let head = HttpHead::new(answer.status(), std::mem::take(answer.headers_mut()));
    let connection = answer.into_body().until(switching).await.map_err(|error| broken(&error))?;
    say(&to.output, HttpOutput::Head(head)).await?;
    say(&to.output, HttpOutput::Switched(EngineConnection::new(connection, to.leaving.clone()))).await?;
    Ok(Answered { summary: summary(0, None), job: None })
}

/// A small answer of JSON, if it is one.
pub(super) async fn json(answer: Response<AnswerBody>) -> Option<serde_json::Value> {
    if !answer.status().is_success() {
        return None;
    }
    let body = Limited::new(answer.into_body(), SMALL_BYTES).collect();
    let body = timeout(SMALL_LIMIT, body).await.ok()?.ok()?;
    serde_json::from_slice(&body.to_bytes()).ok()
}

fn summary(bytes: u64, usage: Option<Tokens>) -> Bytes {
    // Plain data, for which serialising cannot fail.
    serde_json::to_vec(&HttpFinish { reason: FinishReason::Stop, bytes, usage }).unwrap_or_default().into()
}

async fn say(output: &mpsc::Sender<Output>, what: HttpOutput) -> Result<(), Failure> {
    tell(output, Output::Http(what)).await
}

async fn tell(output: &mpsc::Sender<Output>, what: Output) -> Result<(), Failure> {
    output.send(what).await.map_err(|_| Failure::new(FailureKind::Cancelled, "the client left"))
}

fn broken(error: &hyper::Error) -> Failure {
    let why = root_of(error);
    Failure::new(FailureKind::Unreachable, format!("the engine broke its answer off: {why}"))
}

/// The media type of a body, without what is said of it.
pub(super) fn media(headers: &HeaderMap) -> &str {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim()
}
