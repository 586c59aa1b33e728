//! Pictures as they are made: progress, unfinished pictures, the finished one; and the same as server-sent events.

use std::convert::Infallible;

use aihost_plugin_api::task::{FinishReason, ImageFinish};
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::generate::broken_off;
use super::openai::images::Maker;
use super::picture::{Canvas, Drawn, Notes, Picture};
use super::router::unix_seconds;
use super::sse;
use crate::domain::{Failure, FailureKind};
use crate::worker::Output;

const PROGRESS: &str = "image_generation.progress";
const PARTIAL: &str = "image_generation.partial_image";
const COMPLETED: &str = "image_generation.completed";

/// The answer of one picture. Dropping it cancels.
pub(super) struct Making {
    output: mpsc::Receiver<Output>,
    canvas: Canvas,
    finished: Option<Picture>,
}

/// What has become of a picture.
pub(super) enum Made {
    /// So many steps.
    Steps { done: u64, total: u64 },
    /// An unfinished picture, the n-th.
    Partial(Picture, u32),
    /// All of it, and how it was made. The last.
    Whole(Picture, ImageFinish),
}

impl Making {
    pub(super) fn new(output: mpsc::Receiver<Output>, canvas: Canvas) -> Self {
        Self { output, canvas, finished: None }
    }

    /// The next thing that can be told.
    pub(super) async fn next(&mut self) -> Result<Made, Failure> {
        loop {
            match self.output.recv().await {
                Some(Output::Bytes(payload)) => match self.canvas.take(&payload)? {
                    Some(Drawn { picture, partial: Some(index) }) => return Ok(Made::Partial(picture, index)),
                    Some(Drawn { picture, partial: None }) => self.finished = Some(picture),
                    None => {}
                },
                Some(Output::Progress { done, total }) => return Ok(Made::Steps { done, total }),
                Some(Output::Done(Ok(summary))) => return self.finish(&summary),
                Some(Output::Done(Err(failure))) => return Err(failure),
                Some(Output::Event(_)) => {}
                None => return Err(broken_off()),
            }
        }
    }

    fn finish(&mut self, summary: &[u8]) -> Result<Made, Failure> {
        let wrong = |message: String| Failure::new(FailureKind::Internal, message);
        let finish: ImageFinish = serde_json::from_slice(summary)
            .map_err(|error| wrong(format!("the plugin ended with what is no image summary: {error}")))?;
        if finish.reason == FinishReason::Cancelled {
            return Err(Failure::new(FailureKind::Cancelled, "the request was cancelled"));
        }
        let picture = self.finished.take();
        let picture = picture.ok_or_else(|| wrong("the plugin ended without a finished picture".to_owned()))?;
        Ok(Made::Whole(picture, finish))
    }
}

/// The events of a streamed answer.
pub(super) struct ImageStream {
    making: Making,
    maker: Maker,
    ended: bool,
}

impl ImageStream {
    pub(super) fn new(making: Making, maker: Maker) -> Self {
        Self { making, maker, ended: false }
    }

    /// Waits until there is something to send, so that an early failure is a plain refusal, and then begins the reply.
    pub(super) async fn respond(mut self) -> Result<Response, Failure> {
        let first = self.event().await?;
        let rest = stream::unfold(self, |mut events| async {
            if events.ended {
                return None;
            }
            let event = match events.event().await {
                Ok(event) => event,
                Err(failure) => {
                    events.ended = true;
                    sse::failure_event(failure).into()
                }
            };
            Some((event, events))
        });
        let body = stream::iter([first]).chain(rest).map(Ok::<_, Infallible>);
        Ok((sse::headers("text/event-stream"), Body::from_stream(body)).into_response())
    }

    async fn event(&mut self) -> Result<Bytes, Failure> {
        let mut out = Vec::new();
        match self.making.next().await? {
            Made::Steps { done, total } => {
                sse::write_event(&mut out, PROGRESS, &json!({"type": PROGRESS, "done": done, "total": total}));
            }
            Made::Partial(picture, index) => {
                let mut event = self.picture(PARTIAL, picture, Notes::new()).await?;
                event["partial_image_index"] = json!(index);
                sse::write_event(&mut out, PARTIAL, &event);
            }
            Made::Whole(picture, finish) => {
                self.ended = true;
                let mut event = self.picture(COMPLETED, picture, self.maker.notes(&finish)).await?;
                event["seed"] = json!(finish.seed);
                sse::write_event(&mut out, COMPLETED, &event);
            }
        }
        Ok(out.into())
    }

    /// What OpenAI's events of both kinds say.
    async fn picture(&self, name: &str, picture: Picture, notes: Notes) -> Result<Value, Failure> {
        let size = format!("{}x{}", picture.width, picture.height);
        let file = self.maker.file(picture, notes).await?;
        Ok(json!({
            "type": name,
            "b64_json": BASE64_STANDARD.encode(file),
            "created_at": unix_seconds(),
            "size": size,
            "quality": "auto",
            "background": "opaque",
            "output_format": self.maker.encoding.format.name(),
        }))
    }
}
