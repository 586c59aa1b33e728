//! The delay pattern (Copet et al. 2023, section 2.2): codebook k is spoken k steps after codebook 0, so that one step
//! makes one token of every codebook and each may depend on the coarser codes of its own frame.
//!
//! ```text
//! step        0  1  2  3  4  5        _ is padding
//! codebook 0  a  b  c  _  _  _        stereo: left and right codebooks alternate and share a delay
//! codebook 1  _  a  b  c  _  _
//! codebook 2  _  _  a  b  c  _
//! codebook 3  _  _  _  a  b  c
//! ```

/// Which token of which frame each step makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DelayPattern {
    codebooks: usize,
    channels: usize,
    frames: usize,
}

impl DelayPattern {
    /// For `frames` frames of `codebooks` codebooks, all `channels` channels together.
    pub fn new(codebooks: usize, channels: usize, frames: usize) -> Self {
        Self { codebooks, channels, frames }
    }

    /// Codebooks of all channels.
    pub fn codebooks(&self) -> usize {
        self.codebooks
    }

    /// Frames in all.
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// Steps that make all frames.
    pub fn steps(&self) -> usize {
        self.frames + self.delay(self.codebooks - 1)
    }

    /// The frame whose token of `codebook` is made at `step`; `None` where there is padding.
    pub fn frame(&self, step: usize, codebook: usize) -> Option<usize> {
        step.checked_sub(self.delay(codebook)).filter(|frame| *frame < self.frames)
    }

    /// Frames of which every token is known after `steps` steps.
    pub fn whole_frames(&self, steps: usize) -> usize {
        steps.saturating_sub(self.delay(self.codebooks - 1)).min(self.frames)
    }

    fn delay(&self, codebook: usize) -> usize {
        codebook / self.channels
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::DelayPattern;

    proptest! {
        /// What is spoken with delay and put back by frame is what it was, and each frame is whole when it is said to be.
        #[test]
        fn round_trip(per_channel in 1usize..9, channels in 1usize..3, frames in 1usize..40) {
            let pattern = DelayPattern::new(per_channel * channels, channels, frames);
            let code = |codebook: usize, frame: usize| 1000 * codebook + frame;
            let mut back = vec![None; pattern.codebooks() * frames];
            for step in 0..pattern.steps() {
                for codebook in 0..pattern.codebooks() {
                    if let Some(frame) = pattern.frame(step, codebook) {
                        let place = &mut back[codebook * frames + frame];
                        prop_assert!(place.is_none());
                        *place = Some(code(codebook, frame));
                    }
                }
                let whole = (0..frames).take_while(|frame| (0..pattern.codebooks()).all(|codebook| back[codebook * frames + frame].is_some()));
                prop_assert_eq!(whole.count(), pattern.whole_frames(step + 1));
            }
            for codebook in 0..pattern.codebooks() {
                for frame in 0..frames {
                    prop_assert_eq!(back[codebook * frames + frame], Some(code(codebook, frame)));
                }
            }
        }
    }
}
