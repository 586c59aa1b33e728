//! An answer as server-sent events. Events that are ready together leave in one piece.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::Stream;
use serde_json::Value;
use tokio::time::{Instant, Interval, interval_at};

use super::error::ApiError;
use super::generate::{Generation, Step};
use super::wire::{Delivery, Shape, write_json};
use crate::domain::Failure;

/// Bytes after which a piece is sent even if more is ready.
const PIECE: usize = 16 * 1024;

/// Headers of a reply that leaves as it is made: nobody on the way may keep it or wait for more.
pub(super) fn headers(kind: &'static str) -> [(HeaderName, HeaderValue); 3] {
    [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ]
}

/// Appends an event with a name.
pub(super) fn write_event(out: &mut Vec<u8>, name: &str, data: &Value) {
    out.extend_from_slice(format!("event: {name}\ndata: ").as_bytes());
    write_json(out, data);
    out.extend_from_slice(b"\n\n");
}

/// The last event of an answer with named events that broke.
pub(super) fn failure_event(failure: Failure) -> Vec<u8> {
    let mut out = b"event: error\ndata: ".to_vec();
    out.extend_from_slice(&ApiError::from(failure).json());
    out.extend_from_slice(b"\n\n");
    out
}

/// The bytes of a streamed answer.
pub(super) struct Events<S> {
    generation: Generation,
    shape: S,
    delivery: Delivery,
    out: Vec<u8>,
    stage: Stage,
    /// When to say that it is still there.
    ping: Option<Interval>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing has come yet.
    Waiting,
    Flowing,
    Ended,
}

impl<S: Shape + Unpin> Events<S> {
    /// `ping`: how often a silent answer sends a comment.
    pub(super) fn new(generation: Generation, shape: S, delivery: Delivery, ping: Option<Duration>) -> Self {
        let ping = ping.map(|period| interval_at(Instant::now() + period, period));
        Self { generation, shape, delivery, out: Vec::new(), stage: Stage::Waiting, ping }
    }

    /// Waits until there is something to send, so that an early failure is a plain refusal, and then begins the reply.
    pub(super) async fn respond(mut self) -> Result<Response, Failure> {
        std::future::poll_fn(|cx| self.fill_or_ping(cx)).await?;
        Ok((headers("text/event-stream"), Body::from_stream(self)).into_response())
    }

    /// What is ready; if that is nothing for long, a comment.
    fn fill_or_ping(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        let filled = self.fill(cx);
        let Some(ping) = &mut self.ping else { return filled };
        if filled.is_ready() {
            ping.reset();
        } else if ping.poll_tick(cx).is_ready() {
            self.out.extend_from_slice(b": ping\n\n");
            return Poll::Ready(Ok(()));
        }
        filled
    }

    /// Takes in all that is ready; `Pending` only if that is nothing.
    fn fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        while self.stage != Stage::Ended && self.out.len() < PIECE {
            let step = match self.generation.poll_step(cx) {
                Poll::Ready(step) => step.transpose()?,
                Poll::Pending if self.out.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            };
            self.open();
            match step {
                Some(Step::Event(index, event)) => self.shape.event(&mut self.out, index, &event),
                Some(Step::Finish(index, finish)) => self.shape.finish(&mut self.out, index, finish.reason),
                None => self.end(),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// All choices begin together and in order: clients take the first chunk of each index as its place in their list.
    fn open(&mut self) {
        if self.stage == Stage::Waiting {
            self.stage = Stage::Flowing;
            (0..self.generation.choices()).for_each(|index| self.shape.open(&mut self.out, index));
        }
    }

    fn end(&mut self) {
        if self.delivery == Delivery::StreamWithUsage {
            self.shape.usage(&mut self.out, self.generation.usage());
        }
        self.close();
    }

    fn fail(&mut self, failure: Failure) {
        self.out.extend_from_slice(b"data: ");
        self.out.extend_from_slice(&ApiError::from(failure).json());
        self.out.extend_from_slice(b"\n\n");
        self.close();
    }

    fn close(&mut self) {
        self.out.extend_from_slice(b"data: [DONE]\n\n");
        self.stage = Stage::Ended;
    }
}

impl<S: Shape + Unpin> Stream for Events<S> {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.stage != Stage::Ended && this.out.is_empty() {
            match this.fill_or_ping(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(failure)) => this.fail(failure),
            }
        }
        if this.out.is_empty() {
            return Poll::Ready(None);
        }
        Poll::Ready(Some(Ok(Bytes::from(std::mem::take(&mut this.out)))))
    }
}
