//! Text as it is generated: the chunks of every choice as server-sent events. Their shape is `wire`'s.

use std::io;
use std::ops::ControlFlow;
use std::task::{Context, Poll, ready};

use aihost_plugin_api::task::{TextEvent, Usage};

use super::generate::{TextUpdate, TextUpdates};
use super::stream_body::StreamWriter;
use super::wire::TextShape;
use crate::domain::Failure;

/// Bytes of events after which a piece is sent even if more is ready.
pub(super) const TEXT_PIECE_BYTES: usize = 16 * 1024;

/// The events of a streamed answer.
pub(super) struct TextStream {
    updates: Box<dyn TextUpdates>,
    shape: Box<dyn TextShape>,
    has_begun: bool,
    /// Tokens of the prompt, as far as they were told before the answer.
    prompt: Usage,
}

impl TextStream {
    pub(super) fn new(updates: Box<dyn TextUpdates>, shape: Box<dyn TextShape>) -> Self {
        Self { updates, shape, has_begun: false, prompt: Usage::default() }
    }

    /// All choices begin together and in order: clients take the first chunk of each index as its place in their list.
    fn begin(&mut self, out: &mut Vec<u8>) {
        if !self.has_begun {
            self.has_begun = true;
            (0..self.updates.choices()).for_each(|index| self.shape.open(out, index, self.prompt));
        }
    }
}

impl StreamWriter for TextStream {
    fn poll_write(&mut self, cx: &mut Context<'_>, out: &mut Vec<u8>) -> Poll<Result<ControlFlow<()>, Failure>> {
        let update = ready!(self.updates.poll_update(cx)).transpose()?;
        match &update {
            Some(TextUpdate::Event(_, TextEvent::Prompt { tokens, cached, .. })) => {
                self.prompt = Usage::default().prompt_tokens(*tokens).cached_tokens(*cached);
                return Poll::Ready(Ok(ControlFlow::Continue(())));
            }
            // An answer of nothing.
            Some(TextUpdate::Finish(_, finish)) if !self.has_begun => self.prompt = finish.usage.completion_tokens(0),
            _ => {}
        }
        self.begin(out);
        match update {
            Some(TextUpdate::Event(index, event)) => self.shape.event(out, index, &event),
            Some(TextUpdate::Finish(index, finish)) => self.shape.finish(out, index, finish),
            None => {
                self.shape.end(out, self.updates.usage());
                return Poll::Ready(Ok(ControlFlow::Break(())));
            }
        }
        Poll::Ready(Ok(ControlFlow::Continue(())))
    }

    fn fail(&mut self, out: &mut Vec<u8>, failure: Failure) -> io::Result<()> {
        self.shape.fail(out, failure);
        Ok(())
    }
}
