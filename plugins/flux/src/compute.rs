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
