//! A piece of any length: windows that the model can make, each of which continues the end of the one before.
//!
//! The model hears `overlap` frames of what it made, as codes it is given, and goes on from there (Copet et al. 2023,
//! section 3; audiocraft's `extend_stride` is the window less the overlap). What came before the overlap it forgets.

use aihost_plugin_api::Result;
use candle_core::Tensor;

use crate::decoder::Guidance;
use crate::delay::DelayPattern;
use crate::model::{Model, Piece, Step};
use crate::sampler::Sampler;

/// How a piece is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Frames of a window, at least 1.
    pub frames: usize,
    /// Frames that a window is given of the one before; less than `frames`.
    pub overlap: usize,
}

/// One window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its first frame in the piece.
    pub start: usize,
    /// Its frames.
    pub frames: usize,
    /// How many of them, at its start, are given.
    pub given: usize,
}

/// How far a piece is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advance {
    /// Frames from the start of the piece of which every code is known.
    pub whole: usize,
    /// Steps made.
    pub done: usize,
    /// Of this many.
    pub total: usize,
}

/// A whole piece that is to be made.
#[derive(Debug)]
pub struct Composition {
    /// The prompt's states, (tokens, text width).
    pub text: Tensor,
    /// Frames in all.
    pub frames: usize,
    /// Weight of the prompt.
    pub guidance: Guidance,
    /// How tokens are chosen.
    pub sampler: Sampler,
    /// How it is cut.
    pub windows: Windows,
}

/// Codes by frame, as steps make them.
#[derive(Debug)]
pub struct Codes {
    books: usize,
    /// (frames, codebooks)
    codes: Vec<u32>,
}

impl Windows {
    /// The windows of a piece of `frames` frames.
    pub fn spans(self, frames: usize) -> Vec<Span> {
        let first = Span { start: 0, frames: frames.min(self.frames), given: 0 };
        let next = |span: &Span| {
            let end = span.start + span.frames;
            (end < frames).then(|| {
                let start = end - self.overlap;
                Span { start, frames: (frames - start).min(self.frames), given: self.overlap }
            })
        };
        std::iter::successors(Some(first), next).collect()
    }
}

impl Codes {
    /// Of `frames` frames, none of them known.
    pub fn new(frames: usize, books: usize) -> Self {
        Self { books, codes: vec![0; frames * books] }
    }

    /// (frames, codebooks)
    pub fn all(&self) -> &[u32] {
        &self.codes
    }

    /// One channel's codes of a frame: channels alternate.
    pub fn of(&self, frame: usize, channel: usize, channels: usize) -> Vec<u32> {
        let frame = &self.codes[frame * self.books..(frame + 1) * self.books];
        frame.iter().skip(channel).step_by(channels).copied().collect()
    }

    fn record(&mut self, start: usize, pattern: DelayPattern, step: Step<'_>) {
        for (book, token) in step.tokens.iter().enumerate() {
            if let Some(frame) = pattern.frame(step.index, book) {
                self.codes[(start + frame) * self.books + book] = *token;
            }
        }
    }
}

impl Model {
    /// Makes all codes of a piece, telling `on_progress` after each step.
    ///
    /// # Errors
    /// Those of `on_progress`, which end the piece.
    pub fn compose(
        &self,
        composition: Composition,
        mut on_progress: impl FnMut(&Codes, Advance) -> Result<()>,
    ) -> Result<Codes> {
        let Composition { text, frames, guidance, mut sampler, windows } = composition;
        let books = self.config().decoder.num_codebooks;
        let spans = windows.spans(frames);
        let total = spans.iter().map(|span| self.pattern(span.frames).steps()).sum();
        let mut codes = Codes::new(frames, books);
        let mut done = 0;
        for Span { start, frames, given } in spans {
            let pattern = self.pattern(frames);
            let given = codes.codes[start * books..(start + given) * books].to_vec();
            let piece = Piece { text: &text, frames, guidance, given: &given };
            self.generate(piece, &mut sampler, |step| {
                codes.record(start, pattern, step);
                done += 1;
                on_progress(&codes, Advance { whole: start + pattern.whole_frames(step.index + 1), done, total })
            })?;
        }
        Ok(codes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Every frame is made once, and each window is given exactly the end of the one before.
        #[test]
        fn windows_meet(length in 1usize..50, share in 0usize..100, frames in 1usize..300) {
            let windows = Windows { frames: length, overlap: length * share / 100 };
            let mut made = 0;
            for (number, span) in windows.spans(frames).into_iter().enumerate() {
                prop_assert!(span.frames <= length && span.given < span.frames);
                prop_assert_eq!(span.given, if number == 0 { 0 } else { windows.overlap });
                prop_assert_eq!(span.start + span.given, made);
                made = span.start + span.frames;
            }
            prop_assert_eq!(made, frames);
        }
    }
}
