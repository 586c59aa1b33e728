//! The parts in candle tensors, for a GPU: the sums of the host's parts, whose loaders they take their weights from.
//!
//! The same code runs on candle's CPU device against the golden numbers. Between steps, latents lie in host memory, where
//! the schedule, noise and tiles are the same for both.

mod clip;
pub mod memory;
mod transformer;
mod vae;

use aihost_plugin_api::Result;
use aihost_support::device::{Linear, Loading, Place, T5Encoder, with_room};
use candle_core::{DType, Device};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::compute::{Compute, OnHost, Steps};
use crate::layers;
use crate::memory::Offload;
use crate::picture::Picture;
use crate::transformer::Conditions;

use self::clip::Clip;
use self::transformer::Transformer;
use self::vae::Vae;

/// The numbers that a device computes with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// What FLUX.1 was published in; GPUs since Ampere.
    #[default]
    Bf16,
    /// For older GPUs. Text encoders and autoencoder compute in f32, which their numbers need.
    F16,
    /// Twice the memory, for comparisons.
    F32,
}

impl Dtype {
    /// Candle's name for them.
    pub(crate) fn states(self) -> DType {
        match self {
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
            Self::F32 => DType::F32,
        }
    }

    /// What text encoders and autoencoder compute in: their states are larger than f16 can hold.
    pub(crate) fn wide(self) -> DType {
        if self == Self::F16 { DType::F32 } else { self.states() }
    }
}

/// The parts on a device.
#[derive(Debug)]
pub(crate) struct OnDevice {
    device: Device,
    transformer: Transformer,
    clip: Clip,
    t5: T5Encoder,
    vae: Vae,
}

/// How a model comes to a device.
#[derive(Clone, Copy)]
pub struct Wanted<'a> {
    /// Where to.
    pub device: &'a Device,
    /// What is computed with.
    pub dtype: Dtype,
    /// What stays there.
    pub offload: Offload,
    /// Told the bytes of each matrix that was brought; an error ends it.
    pub heard: &'a (dyn Fn(u64) -> Result<()> + Sync),
}

impl std::fmt::Debug for Wanted<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { device, dtype, offload, .. } = self;
        f.debug_tuple("Wanted").field(device).field(dtype).field(offload).finish()
    }
}

impl OnDevice {
    /// Brings what `offload` keeps to the device, one tensor after the other.
    pub(crate) fn new(parts: &OnHost, wanted: &Wanted<'_>) -> Result<Self> {
        let &Wanted { device, dtype, offload, heard } = wanted;
        let place = Place::new(device.clone(), dtype.states());
        let wide = place.computing(dtype.wide());
        let (keeping, encoders) = offload.keeping();
        let encoders = Loading { place: &wide, keeping: encoders, heard };
        Ok(Self {
            device: device.clone(),
            transformer: Transformer::new(&parts.transformer, Loading { place: &place, keeping, heard })?,
            clip: Clip::new(&parts.clip, encoders)?,
            t5: T5Encoder::new(&parts.t5, encoders)?,
            vae: Vae::new(&parts.vae, &wide)?,
        })
    }
}

impl Compute for OnDevice {
    fn encode(&self, clip: &[u32], t5: &[u32]) -> Result<(Vec<f32>, Vec<f32>)> {
        with_room(&self.device, || Ok((self.clip.encode(clip)?, self.t5.encode(t5)?)))
    }

    fn session<'a>(&'a self, conditions: &Conditions<'_>) -> Result<Box<dyn Steps + 'a>> {
        Ok(Box::new(with_room(&self.device, || Ok(self.transformer.session(conditions)?))?))
    }

    fn pixels(&self, latents: Picture) -> Result<Picture> {
        with_room(&self.device, || Ok(self.vae.pixels(&latents)?))
    }
}

/// A layer of the host's on the device.
fn linear(layer: &layers::Linear, loading: Loading<'_>) -> aihost_support::device::Result<Linear> {
    Linear::new(&layer.parts, &layer.bias, loading)
}
