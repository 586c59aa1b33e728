//! Sound as it is made: a WAV file whose length nobody knows yet, or server-sent events that carry its pieces.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use aihost_plugin_api::task::{AudioBlock, AudioFinish};
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures_util::Stream;
use serde_json::json;
use tokio::sync::mpsc;

use super::generate::broken_off;
use super::openai::audio::{block, finish};
use super::sound::{pcm, wav_head};
use super::sse;
use super::wire::AudioStreaming;
use crate::domain::Failure;
use crate::worker::Output;

/// Bytes after which a piece is sent even if more is ready.
const PIECE: usize = 64 * 1024;

/// The bytes of a streamed answer. Dropping it cancels.
pub(super) struct AudioStream {
    output: mpsc::Receiver<Output>,
    streaming: AudioStreaming,
    out: Vec<u8>,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// No sample has come yet, so the file's head has not left.
    Waiting,
    Flowing,
    Ended,
}

impl AudioStream {
    pub(super) fn new(output: mpsc::Receiver<Output>, streaming: AudioStreaming) -> Self {
        Self { output, streaming, out: Vec::new(), stage: Stage::Waiting }
    }

    /// Waits until there is something to send, so that an early failure is a plain refusal, and then begins the reply.
    pub(super) async fn respond(mut self) -> Result<Response, Failure> {
        std::future::poll_fn(|cx| self.fill(cx)).await?;
        let kind = match self.streaming {
            AudioStreaming::Wav => "audio/wav",
            AudioStreaming::Events => "text/event-stream",
        };
        Ok((sse::headers(kind), Body::from_stream(self)).into_response())
    }

    /// Takes in all that is ready; `Pending` only if that is nothing.
    fn fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        while self.stage != Stage::Ended && self.out.len() < PIECE {
            match self.output.poll_recv(cx) {
                Poll::Ready(Some(Output::Bytes(payload))) => self.samples(&block(&payload)?),
                Poll::Ready(Some(Output::Progress { done, total })) => self.progress(done, total),
                Poll::Ready(Some(Output::Done(Ok(summary)))) => self.end(finish(&summary)?),
                Poll::Ready(Some(Output::Done(Err(failure)))) => return Poll::Ready(Err(failure)),
                Poll::Ready(Some(Output::Event(_))) => {}
                Poll::Ready(None) => return Poll::Ready(Err(broken_off())),
                Poll::Pending if self.out.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        Poll::Ready(Ok(()))
    }

    fn samples(&mut self, block: &AudioBlock) {
        let mut bytes = match self.stage {
            Stage::Waiting => wav_head(block.header.sample_rate, block.header.channels),
            _ => Vec::new(),
        };
        self.stage = Stage::Flowing;
        bytes.extend(pcm(&block.samples));
        match self.streaming {
            AudioStreaming::Wav => self.out.extend(bytes),
            AudioStreaming::Events => {
                let audio = BASE64_STANDARD.encode(bytes);
                sse::write_event(
                    &mut self.out,
                    "audio_generation.delta",
                    &json!({"type": "audio_generation.delta", "audio": audio}),
                );
            }
        }
    }

    fn progress(&mut self, done: u64, total: u64) {
        if self.streaming == AudioStreaming::Events {
            let event = json!({"type": "audio_generation.progress", "done": done, "total": total});
            sse::write_event(&mut self.out, "audio_generation.progress", &event);
        }
    }

    fn end(&mut self, finish: AudioFinish) {
        if self.streaming == AudioStreaming::Events {
            let AudioFinish { sample_rate, channels, seconds, .. } = finish;
            let event = json!({
                "type": "audio_generation.done",
                "response_format": "wav",
                "sample_rate": sample_rate,
                "channels": channels,
                "seconds": seconds,
            });
            sse::write_event(&mut self.out, "audio_generation.done", &event);
        }
        self.stage = Stage::Ended;
    }
}

impl Stream for AudioStream {
    /// An error breaks the connection off: a file has no other way to say that it is not whole.
    type Item = io::Result<Bytes>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.stage != Stage::Ended && this.out.is_empty() {
            match this.fill(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(failure)) => {
                    this.stage = Stage::Ended;
                    if this.streaming == AudioStreaming::Wav {
                        return Poll::Ready(Some(Err(io::Error::other(failure.to_string()))));
                    }
                    this.out.extend(sse::failure_event(failure));
                }
            }
        }
        if this.out.is_empty() {
            return Poll::Ready(None);
        }
        Poll::Ready(Some(Ok(Bytes::from(std::mem::take(&mut this.out)))))
    }
}
