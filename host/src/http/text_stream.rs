//! Text as it is generated: the chunks of every choice as server-sent events. Their shape is `wire`'s.

use std::io;
use std::ops::ControlFlow;
use std::task::{Context, Poll, ready};

use super::generate::{Generation, TextUpdate};
use super::sse;
use super::stream_body::StreamWriter;
use super::wire::{TextDelivery, TextShape};
use crate::domain::Failure;

/// Bytes of events after which a piece is sent even if more is ready.
pub(super) const TEXT_PIECE_BYTES: usize = 16 * 1024;

/// The events of a streamed answer.
pub(super) struct TextStream<S> {
    generation: Generation,
    shape: S,
    delivery: TextDelivery,
    has_begun: bool,
}

impl<S: TextShape + Unpin> TextStream<S> {
    pub(super) fn new(generation: Generation, shape: S, delivery: TextDelivery) -> Self {
        Self { generation, shape, delivery, has_begun: false }
    }

    /// All choices begin together and in order: clients take the first chunk of each index as its place in their list.
    fn begin(&mut self, out: &mut Vec<u8>) {
        if !self.has_begun {
            self.has_begun = true;
            (0..self.generation.choices()).for_each(|index| self.shape.open(out, index));
        }
    }
}

impl<S: TextShape + Unpin> StreamWriter for TextStream<S> {
    fn poll_write(&mut self, cx: &mut Context<'_>, out: &mut Vec<u8>) -> Poll<Result<ControlFlow<()>, Failure>> {
        let update = ready!(self.generation.poll_update(cx)).transpose()?;
        self.begin(out);
        match update {
            Some(TextUpdate::Event(index, event)) => self.shape.event(out, index, &event),
            Some(TextUpdate::Finish(index, finish)) => self.shape.finish(out, index, finish.reason),
            None => {
                if self.delivery == TextDelivery::StreamWithUsage {
                    self.shape.usage(out, self.generation.usage());
                }
                sse::write_done(out);
                return Poll::Ready(Ok(ControlFlow::Break(())));
            }
        }
        Poll::Ready(Ok(ControlFlow::Continue(())))
    }

    fn fail(&mut self, out: &mut Vec<u8>, failure: Failure) -> io::Result<()> {
        sse::write_failure(out, failure);
        sse::write_done(out);
        Ok(())
    }
}
