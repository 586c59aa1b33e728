//! The parts in candle tensors, for a GPU: the arithmetic of the host's parts, whose loaders they take their weights from.
//!
//! The same code runs on candle's CPU device against the golden values. Between steps, latents lie in host memory, where
//! the schedule, noise and tiles are the same for both.

mod clip;
pub mod memory;
mod transformer;
mod vae;

use aihost_engine::candle::retry_out_of_memory;
use aihost_plugin_api::Result;
use aihost_support::device::{Linear, Place, T5Encoder, UploadOptions};
use candle_core::{DType, Device};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::backend::{Backend, Denoiser, HostBackend};
use crate::convolution::FeatureMap;
use crate::layers;
use crate::memory::Offload;
use crate::model::PartResidency;
use crate::transformer::Conditions;

use self::clip::Clip;
use self::transformer::Transformer;
use self::vae::Vae;

/// The data type that a device computes with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// What FLUX.1 was published in; GPUs since Ampere.
    #[default]
    Bf16,
    /// For older GPUs. Text encoders and autoencoder compute in f32, whose range their states need.
    F16,
    /// Twice the memory, for comparisons.
    F32,
}

impl Dtype {
    /// The type of the transformer's hidden states.
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
pub(crate) struct DeviceBackend {
    device: Device,
    transformer: Transformer,
    clip: Clip,
    t5: T5Encoder,
    vae: Vae,
}

/// How a model is uploaded to a device.
#[derive(Clone, Copy)]
pub struct DeviceOptions<'a> {
    /// The device to upload to.
    pub device: &'a Device,
    /// The type of hidden states and dense weights.
    pub dtype: Dtype,
    /// Which weights stay on the device.
    pub offload: Offload,
    /// Called with the bytes of each matrix that was uploaded; an error ends the upload.
    pub on_progress: &'a (dyn Fn(u64) -> Result<()> + Sync),
}

impl std::fmt::Debug for DeviceOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { device, dtype, offload, .. } = self;
        f.debug_tuple("DeviceOptions").field(device).field(dtype).field(offload).finish()
    }
}

impl DeviceBackend {
    /// Uploads what `offload` keeps on the device, one tensor after the other.
    pub(crate) fn new(parts: &HostBackend, options: &DeviceOptions<'_>) -> Result<Self> {
        let &DeviceOptions { device, dtype, offload, on_progress } = options;
        let place = Place::new(device.clone(), dtype.states());
        let wide = place.computing(dtype.wide());
        let PartResidency { transformer, encoders } = offload.residency();
        let transformer = UploadOptions { place: &place, residency: transformer, on_progress };
        let encoders = UploadOptions { place: &wide, residency: encoders, on_progress };
        Ok(Self {
            device: device.clone(),
            transformer: Transformer::new(&parts.transformer, transformer)?,
            clip: Clip::new(&parts.clip, encoders)?,
            t5: T5Encoder::new(&parts.t5, encoders)?,
            vae: Vae::new(&parts.vae, &wide)?,
        })
    }
}

impl Backend for DeviceBackend {
    fn encode(&self, clip: &[u32], t5: &[u32]) -> Result<(Vec<f32>, Vec<f32>)> {
        retry_out_of_memory(&self.device, || Ok((self.clip.encode(clip)?, self.t5.encode(t5)?)))
    }

    fn denoiser<'a>(&'a self, conditions: &Conditions<'_>) -> Result<Box<dyn Denoiser + 'a>> {
        Ok(Box::new(retry_out_of_memory(&self.device, || Ok(self.transformer.denoiser(conditions)?))?))
    }

    fn pixels(&self, latents: FeatureMap) -> Result<FeatureMap> {
        retry_out_of_memory(&self.device, || Ok(self.vae.pixels(&latents)?))
    }
}

/// A layer of the host's on the device.
fn linear(layer: &layers::Linear, options: UploadOptions<'_>) -> aihost_engine::candle::Result<Linear> {
    Linear::new(&layer.parts, &layer.bias, options)
}
