//! Audio as it is made: a WAV file whose length nobody knows yet, or server-sent events that carry its pieces.

use std::io;
use std::ops::ControlFlow;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use aihost_plugin_api::task::{AudioBlock, AudioFinish};
use axum::response::Response;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::json;
use tokio::sync::mpsc;

use super::generate::broken_off;
use super::sse;
use super::stream_body::{StreamBody, StreamWriter};
use super::wire::AudioStreaming;
use crate::domain::Failure;
use crate::media::audio::{block, finish, pcm, wav_head};
use crate::runtime::Submitted;
use crate::worker::Output;

/// Bytes of audio after which a piece is sent even if more is ready.
const AUDIO_PIECE_BYTES: usize = 64 * 1024;

const PROGRESS: &str = "audio_generation.progress";
const DELTA: &str = "audio_generation.delta";
const DONE: &str = "audio_generation.done";

/// The bytes of a streamed answer.
struct AudioStream {
    source: Source,
    streaming: AudioStreaming,
    /// Whether the file's head has left, which the first samples bring with them.
    has_head: bool,
}

/// Where the audio comes from.
enum Source {
    Asking(BoxFuture<'static, Submitted>),
    Answering(mpsc::Receiver<Output>),
}

/// Begins the reply once there is something to send; an early failure is a plain refusal. Events that nothing has come of for so
/// long say that they are there; a file cannot.
pub(super) async fn respond(
    asked: impl Future<Output = Submitted> + Send + 'static,
    streaming: AudioStreaming,
    ping: Option<Duration>,
) -> Result<Response, Failure> {
    let (content_type, ping) = match streaming {
        AudioStreaming::Wav => ("audio/wav", None),
        AudioStreaming::Events => (sse::CONTENT_TYPE, ping),
    };
    let stream = AudioStream { source: Source::Asking(asked.boxed()), streaming, has_head: false };
    StreamBody::new(stream, AUDIO_PIECE_BYTES).with_ping(ping).respond(content_type).await
}

impl AudioStream {
    fn samples(&mut self, out: &mut Vec<u8>, block: &AudioBlock) {
        let mut bytes = Vec::new();
        if !self.has_head {
            self.has_head = true;
            bytes = wav_head(block.header.sample_rate, block.header.channels);
        }
        bytes.extend(pcm(&block.samples));
        match self.streaming {
            AudioStreaming::Wav => out.extend(bytes),
            AudioStreaming::Events => {
                let audio = BASE64_STANDARD.encode(bytes);
                sse::write_event(out, DELTA, &json!({"type": DELTA, "audio": audio}));
            }
        }
    }

    fn progress(&self, out: &mut Vec<u8>, done: u64, total: u64) {
        if self.streaming == AudioStreaming::Events {
            sse::write_event(out, PROGRESS, &json!({"type": PROGRESS, "done": done, "total": total}));
        }
    }

    fn end(&self, out: &mut Vec<u8>, finish: AudioFinish) {
        if self.streaming == AudioStreaming::Events {
            let AudioFinish { sample_rate, channels, seconds, .. } = finish;
            let event = json!({
                "type": DONE,
                "response_format": "wav",
                "sample_rate": sample_rate,
                "channels": channels,
                "seconds": seconds,
            });
            sse::write_event(out, DONE, &event);
        }
    }
}

impl StreamWriter for AudioStream {
    fn poll_write(&mut self, cx: &mut Context<'_>, out: &mut Vec<u8>) -> Poll<Result<ControlFlow<()>, Failure>> {
        let output = match &mut self.source {
            Source::Answering(output) => output,
            Source::Asking(asking) => {
                self.source = Source::Answering(ready!(asking.poll_unpin(cx))?.output);
                return Poll::Ready(Ok(ControlFlow::Continue(())));
            }
        };
        match ready!(output.poll_recv(cx)) {
            Some(Output::Bytes(payload)) => self.samples(out, &block(&payload)?),
            Some(Output::Progress { done, total }) => self.progress(out, done, total),
            Some(Output::Done(Ok(summary))) => {
                self.end(out, finish(&summary)?);
                return Poll::Ready(Ok(ControlFlow::Break(())));
            }
            Some(Output::Done(Err(failure))) => return Poll::Ready(Err(failure)),
            Some(Output::Event(_) | Output::Http(_)) => {}
            None => return Poll::Ready(Err(broken_off())),
        }
        Poll::Ready(Ok(ControlFlow::Continue(())))
    }

    /// A file has no way to say that it is not whole.
    fn fail(&mut self, out: &mut Vec<u8>, failure: Failure) -> io::Result<()> {
        match self.streaming {
            AudioStreaming::Wav => Err(io::Error::other(failure.to_string())),
            AudioStreaming::Events => {
                sse::write_failure_event(out, failure);
                Ok(())
            }
        }
    }
}
