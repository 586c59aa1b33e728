//! What differs between running on the host's cores and on a device: the arithmetic of the parts. All that is around it
//! (tokens, schedule, noise, tiles, previews) is in [`model`](crate::model), once.

use std::fmt::Debug;

use aihost_plugin_api::Result;
use aihost_support::t5::T5Encoder;

use crate::clip::Clip;
use crate::convolution::FeatureMap;
use crate::transformer::{self, Conditions, Transformer};
use crate::vae::Vae;

/// States of a text and of an image, (tokens, hidden) each.
pub(crate) type States = (Vec<f32>, Vec<f32>);

/// The parts of a model, ready to compute. What goes in and comes out lies in host memory.
pub(crate) trait Backend: Debug + Send + Sync {
    /// CLIP's pooled state (pooled) and T5's states (tokens, context) of a text's token ids, f32.
    fn encode(&self, clip: &[u32], t5: &[u32]) -> Result<(Vec<f32>, Vec<f32>)>;

    /// Computes what all steps of a request share.
    fn denoiser<'a>(&'a self, conditions: &Conditions<'_>) -> Result<Box<dyn Denoiser + 'a>>;

    /// Pixels (height, width, 3) of unscaled latents (height, width, channels).
    fn pixels(&self, latents: FeatureMap) -> Result<FeatureMap>;
}

/// The denoising steps of one request.
pub(crate) trait Denoiser {
    /// The velocity at step `step` for image tokens, both (tokens, in_channels).
    fn predict(&mut self, step: usize, image: &[f32]) -> Result<Vec<f32>>;

    /// The states after the first double block of the first step: a point to compare with a reference.
    fn first_block(&mut self, image: &[f32]) -> Result<States>;
}

/// The parts on the host's cores, with weights in their files.
#[derive(Debug)]
pub(crate) struct HostBackend {
    pub(crate) transformer: Transformer,
    pub(crate) clip: Clip,
    pub(crate) t5: T5Encoder,
    pub(crate) vae: Vae,
}

impl Backend for HostBackend {
    fn encode(&self, clip: &[u32], t5: &[u32]) -> Result<(Vec<f32>, Vec<f32>)> {
        Ok((self.clip.encode(clip)?, self.t5.encode(t5)?))
    }

    fn denoiser<'a>(&'a self, conditions: &Conditions<'_>) -> Result<Box<dyn Denoiser + 'a>> {
        let session = self.transformer.session(conditions)?;
        Ok(Box::new(HostDenoiser { transformer: &self.transformer, session }))
    }

    fn pixels(&self, latents: FeatureMap) -> Result<FeatureMap> {
        Ok(self.vae.pixels(latents))
    }
}

struct HostDenoiser<'a> {
    transformer: &'a Transformer,
    session: transformer::DenoisingSession,
}

impl Denoiser for HostDenoiser<'_> {
    fn predict(&mut self, step: usize, image: &[f32]) -> Result<Vec<f32>> {
        self.transformer.predict(&mut self.session, step, image)
    }

    fn first_block(&mut self, image: &[f32]) -> Result<States> {
        self.transformer.begin(&mut self.session, image)?;
        self.transformer.double_block(&mut self.session, 0, 0)?;
        let (text, image) = self.session.states();
        Ok((text.to_vec(), image.to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use aihost_engine::candle::Failure;
    use aihost_plugin_api::{ErrorKind, LoadRequest};

    use super::*;
    use crate::files::Files;
    use crate::memory::Offload;
    use crate::model::{DenoiseParams, Parts};

    /// A device that is full in the second step of all but small images.
    #[derive(Debug)]
    struct Small {
        parts: HostBackend,
        /// A clone for each request that is under way.
        held: Arc<()>,
    }

    struct SmallDenoiser<'a> {
        denoiser: Box<dyn Denoiser + 'a>,
        _held: Arc<()>,
    }

    impl Backend for Small {
        fn encode(&self, clip: &[u32], t5: &[u32]) -> Result<(Vec<f32>, Vec<f32>)> {
            self.parts.encode(clip, t5)
        }

        fn denoiser<'a>(&'a self, conditions: &Conditions<'_>) -> Result<Box<dyn Denoiser + 'a>> {
            Ok(Box::new(SmallDenoiser { denoiser: self.parts.denoiser(conditions)?, _held: Arc::clone(&self.held) }))
        }

        fn pixels(&self, latents: FeatureMap) -> Result<FeatureMap> {
            self.parts.pixels(latents)
        }
    }

    impl Denoiser for SmallDenoiser<'_> {
        fn predict(&mut self, step: usize, image: &[f32]) -> Result<Vec<f32>> {
            if step == 1 && image.len() > 500 {
                // As cudarc writes it.
                let text = r#"DriverError(CUDA_ERROR_OUT_OF_MEMORY, "out of memory")"#;
                return Err(Failure::from(candle_core::Error::Cuda(text.into())).into());
            }
            self.denoiser.predict(step, image)
        }

        fn first_block(&mut self, image: &[f32]) -> Result<States> {
            self.denoiser.first_block(image)
        }
    }

    #[test]
    fn a_device_that_is_full_fails_the_request_and_serves_the_next() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/flux/dev");
        let files = [("model".to_owned(), folder)].into_iter().collect();
        let files = Files::of(&LoadRequest::new("cpu", files)).unwrap();
        let parts = Parts::open(&files, Offload::AllResident.residency()).unwrap();
        let held = Arc::new(());
        let small = Small { parts: parts.on_host().unwrap(), held: Arc::clone(&held) };
        let model = parts.model(Box::new(small), 16).unwrap();
        let prompt = model.encode("a fox").unwrap();
        let idle = Arc::strong_count(&held);
        let mut steps = 0;
        let mut make = |side| {
            let shape = model.vae().shape(side, side).unwrap();
            let params = DenoiseParams { shape, steps: 2, guidance: 3.5 };
            let made = model.denoise(&prompt, &shape.noise(1), &params, |_| {
                steps += 1;
                Ok(())
            });
            assert_eq!(Arc::strong_count(&held), idle);
            made.map(|latents| latents.len())
        };
        assert_eq!(make(128).unwrap_err().kind(), ErrorKind::OutOfMemory);
        assert_eq!(make(64).unwrap(), 4 * 8 * 8);
        assert_eq!(steps, 3);
    }
}
