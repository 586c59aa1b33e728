//! What differs between running on the host's cores and on a device: the arithmetic of the parts. All that is around it
//! (tokens, schedule, noise, tiles, previews) is in [`model`](crate::model), once.

use std::fmt::Debug;

use aihost_plugin_api::Result;
use aihost_support::t5::T5Encoder;

use crate::clip::Clip;
use crate::picture::Picture;
use crate::transformer::{self, Conditions, Transformer};
use crate::vae::Vae;

/// States of a text and of a picture, (tokens, hidden) each.
pub(crate) type States = (Vec<f32>, Vec<f32>);

/// The parts of a model, ready to compute. What goes in and comes out lies in host memory.
pub(crate) trait Compute: Debug + Send + Sync {
    /// CLIP's state (pooled) and T5's states (tokens, context) of a text's tokens.
    fn encode(&self, clip: &[u32], t5: &[u32]) -> Result<(Vec<f32>, Vec<f32>)>;

    /// Makes what all steps of a request share.
    fn session<'a>(&'a self, conditions: &Conditions<'_>) -> Result<Box<dyn Steps + 'a>>;

    /// Pixels of latents that were unscaled.
    fn pixels(&self, latents: Picture) -> Result<Picture>;
}

/// The steps of one request.
pub(crate) trait Steps {
    /// The direction at step `step` for picture tokens (tokens, in_channels).
    fn predict(&mut self, step: usize, picture: &[f32]) -> Result<Vec<f32>>;

    /// The states after the first double block of the first step: a place to compare at, between the picture and a direction.
    fn first_block(&mut self, picture: &[f32]) -> Result<States>;
}

/// The parts on the host's cores, with weights in their files.
#[derive(Debug)]
pub(crate) struct OnHost {
    pub(crate) transformer: Transformer,
    pub(crate) clip: Clip,
    pub(crate) t5: T5Encoder,
    pub(crate) vae: Vae,
}

impl Compute for OnHost {
    fn encode(&self, clip: &[u32], t5: &[u32]) -> Result<(Vec<f32>, Vec<f32>)> {
        Ok((self.clip.encode(clip)?, self.t5.encode(t5)?))
    }

    fn session<'a>(&'a self, conditions: &Conditions<'_>) -> Result<Box<dyn Steps + 'a>> {
        let session = self.transformer.session(conditions)?;
        Ok(Box::new(HostSteps { transformer: &self.transformer, session }))
    }

    fn pixels(&self, latents: Picture) -> Result<Picture> {
        Ok(self.vae.pixels(latents))
    }
}

struct HostSteps<'a> {
    transformer: &'a Transformer,
    session: transformer::Session,
}

impl Steps for HostSteps<'_> {
    fn predict(&mut self, step: usize, picture: &[f32]) -> Result<Vec<f32>> {
        self.transformer.predict(&mut self.session, step, picture)
    }

    fn first_block(&mut self, picture: &[f32]) -> Result<States> {
        self.transformer.begin(&mut self.session, picture)?;
        self.transformer.double_block(&mut self.session, 0, 0)?;
        let (text, picture) = self.session.states();
        Ok((text.to_vec(), picture.to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use aihost_plugin_api::{ErrorKind, LoadRequest};
    use aihost_support::device::Failure;

    use super::*;
    use crate::files::Files;
    use crate::memory::Offload;
    use crate::model::{Job, Parts};

    /// A device that is full in the second step of all but small pictures.
    #[derive(Debug)]
    struct Small {
        parts: OnHost,
        /// One for each request that holds something.
        held: Arc<()>,
    }

    struct SmallSteps<'a> {
        steps: Box<dyn Steps + 'a>,
        _held: Arc<()>,
    }

    impl Compute for Small {
        fn encode(&self, clip: &[u32], t5: &[u32]) -> Result<(Vec<f32>, Vec<f32>)> {
            self.parts.encode(clip, t5)
        }

        fn session<'a>(&'a self, conditions: &Conditions<'_>) -> Result<Box<dyn Steps + 'a>> {
            Ok(Box::new(SmallSteps { steps: self.parts.session(conditions)?, _held: Arc::clone(&self.held) }))
        }

        fn pixels(&self, latents: Picture) -> Result<Picture> {
            self.parts.pixels(latents)
        }
    }

    impl Steps for SmallSteps<'_> {
        fn predict(&mut self, step: usize, picture: &[f32]) -> Result<Vec<f32>> {
            if step == 1 && picture.len() > 500 {
                // As cudarc writes it.
                let text = r#"DriverError(CUDA_ERROR_OUT_OF_MEMORY, "out of memory")"#;
                return Err(Failure::from(candle_core::Error::Cuda(text.into())).into());
            }
            self.steps.predict(step, picture)
        }

        fn first_block(&mut self, picture: &[f32]) -> Result<States> {
            self.steps.first_block(picture)
        }
    }

    #[test]
    fn a_device_that_is_full_fails_the_request_and_serves_the_next() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/flux/dev");
        let files = [("model".to_owned(), folder)].into_iter().collect();
        let files = Files::of(&LoadRequest { files, ..LoadRequest::default() }).unwrap();
        let parts = Parts::open(&files, Offload::AllResident.readings()).unwrap();
        let held = Arc::new(());
        let small = Small { parts: parts.on_host().unwrap(), held: Arc::clone(&held) };
        let model = parts.model(Box::new(small), 16).unwrap();
        let prompt = model.encode("a fox").unwrap();
        let idle = Arc::strong_count(&held);
        let mut heard = 0;
        let mut make = |side| {
            let shape = model.vae().shape(side, side).unwrap();
            let job = Job { shape, steps: 2, guidance: 3.5 };
            let made = model.denoise(&prompt, &shape.noise(1), &job, |_| {
                heard += 1;
                Ok(())
            });
            assert_eq!(Arc::strong_count(&held), idle);
            made.map(|latents| latents.len())
        };
        assert_eq!(make(128).unwrap_err().kind(), ErrorKind::OutOfMemory);
        assert_eq!(make(64).unwrap(), 4 * 8 * 8);
        assert_eq!(heard, 3);
    }
}
