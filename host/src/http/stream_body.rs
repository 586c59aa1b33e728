//! The body of a reply that leaves as it is made: what is ready together leaves in one piece. Nothing of what is in it.

use std::io;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::Stream;
use tokio::time::{Instant, Interval, interval_at, timeout};

use super::sse;
use crate::domain::Failure;

/// Writes one answer, bit by bit. Dropping it cancels.
pub(super) trait StreamWriter: Send + Unpin + 'static {
    /// Takes in the next thing that is ready and writes what it comes to, which may be nothing; `Break` is the end.
    fn poll_write(&mut self, cx: &mut Context<'_>, out: &mut Vec<u8>) -> Poll<Result<ControlFlow<()>, Failure>>;

    /// Tells a client who has the beginning that no more comes.
    ///
    /// # Errors
    /// If the shape of the answer has no way to say so: the connection is broken off.
    fn fail(&mut self, out: &mut Vec<u8>, failure: Failure) -> io::Result<()>;
}

/// The body of one answer.
pub(super) struct StreamBody<W> {
    writer: W,
    /// Bytes after which a piece is sent even if more is ready.
    piece_bytes: usize,
    /// What has been written and not sent.
    out: Vec<u8>,
    has_ended: bool,
    /// When to say that the answer is still being made.
    ping: Option<Interval>,
}

impl<W: StreamWriter> StreamBody<W> {
    /// Pieces are sent once they have so many bytes, even if more is ready.
    pub(super) fn new(writer: W, piece_bytes: usize) -> Self {
        Self { writer, piece_bytes, out: Vec::new(), has_ended: false, ping: None }
    }

    /// The same for server-sent events that carry a comment whenever nothing has come for this long.
    pub(super) fn with_ping(self, period: Option<Duration>) -> Self {
        Self { ping: period.map(|period| interval_at(Instant::now() + period, period)), ..self }
    }

    /// Waits until there is something to send, so that an early failure is a plain refusal, and then begins the reply.
    pub(super) async fn respond(mut self, content_type: &'static str) -> Result<Response, Failure> {
        std::future::poll_fn(|cx| self.fill_or_ping(cx)).await?;
        Ok((headers(content_type), Body::from_stream(self)).into_response())
    }

    /// Begins the reply with what there is after this long, or once that is a piece. If it is all, the reply has its length; a
    /// failure that comes before is a plain refusal.
    pub(super) async fn into_response_within(mut self, wait: Duration) -> Result<Response, Failure> {
        let filled = std::future::poll_fn(|cx| self.fill_piece(cx));
        match timeout(wait, filled).await {
            Ok(filled) => filled?,
            Err(_elapsed) => {}
        }
        if self.has_ended {
            return Ok(Body::from(self.out).into_response());
        }
        Ok(([unbuffered()], Body::from_stream(self)).into_response())
    }

    /// What is ready; if that is nothing for long, a comment.
    fn fill_or_ping(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        let filled = self.fill(cx);
        let Some(ping) = &mut self.ping else { return filled };
        if filled.is_ready() {
            ping.reset();
        } else if ping.poll_tick(cx).is_ready() {
            sse::write_ping(&mut self.out);
            return Poll::Ready(Ok(()));
        }
        filled
    }

    /// Takes in all that is ready; `Pending` only if that is nothing. A failure behind what is taken in is told with it, if it can be.
    fn fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        match self.fill_piece(cx) {
            Poll::Pending if !self.out.is_empty() => Poll::Ready(Ok(())),
            Poll::Ready(Err(failure)) if !self.out.is_empty() => {
                self.has_ended = true;
                Poll::Ready(self.writer.fail(&mut self.out, failure.clone()).map_err(|_| failure))
            }
            filled => filled,
        }
    }

    /// Takes in a piece, or all that there is; `Pending` until then.
    fn fill_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        while !self.has_ended && self.out.len() < self.piece_bytes {
            self.has_ended = ready!(self.writer.poll_write(cx, &mut self.out))?.is_break();
        }
        Poll::Ready(Ok(()))
    }
}

impl<W: StreamWriter> Stream for StreamBody<W> {
    /// An error breaks the connection off.
    type Item = io::Result<Bytes>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if !this.has_ended && this.out.is_empty() {
            match this.fill_or_ping(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(failure)) => {
                    this.has_ended = true;
                    if let Err(broken) = this.writer.fail(&mut this.out, failure) {
                        this.out.clear();
                        return Poll::Ready(Some(Err(broken)));
                    }
                }
            }
        }
        if this.out.is_empty() {
            return Poll::Ready(None);
        }
        Poll::Ready(Some(Ok(Bytes::from(std::mem::take(&mut this.out)))))
    }
}

/// Headers of a reply that leaves as it is made.
pub(super) fn headers(content_type: &'static str) -> [(HeaderName, HeaderValue); 2] {
    [(header::CONTENT_TYPE, HeaderValue::from_static(content_type)), unbuffered()]
}

/// Nobody on the way may wait for more.
fn unbuffered() -> (HeaderName, HeaderValue) {
    (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"))
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use http_body_util::BodyExt;

    use super::*;
    use crate::domain::FailureKind;

    /// Writes so many words, and fails; all of it is ready at once.
    struct Words(usize);

    impl StreamWriter for Words {
        fn poll_write(&mut self, _: &mut Context<'_>, out: &mut Vec<u8>) -> Poll<Result<ControlFlow<()>, Failure>> {
            let Some(left) = self.0.checked_sub(1) else {
                return Poll::Ready(Err(Failure::new(FailureKind::WorkerDied, "it died")));
            };
            self.0 = left;
            out.extend(b"word ");
            Poll::Ready(Ok(ControlFlow::Continue(())))
        }

        fn fail(&mut self, out: &mut Vec<u8>, failure: Failure) -> io::Result<()> {
            out.extend(failure.message.as_bytes());
            Ok(())
        }
    }

    #[tokio::test]
    async fn what_came_before_a_failure_is_told_before_it() {
        let reply = StreamBody::new(Words(2), 1 << 10).respond("text/plain").await.unwrap();
        assert_eq!(reply.status(), StatusCode::OK);
        assert_eq!(reply.into_body().collect().await.unwrap().to_bytes(), "word word it died");
        let refused = StreamBody::new(Words(0), 1 << 10).respond("text/plain").await;
        assert_eq!(refused.unwrap_err().kind, FailureKind::WorkerDied);
    }
}
