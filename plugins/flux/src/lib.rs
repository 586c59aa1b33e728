//! FLUX.1 schnell and dev (Black Forest Labs 2024) as a plugin: an image from a prompt.
//!
//! Serves the first release's files, diffusers' folder, and GGUF-quantised transformers and T5 encoders, on the CPU and, in a
//! build with the feature `cuda`, on NVIDIA GPUs, where it has never run so far. The parts, in the order in which a request passes them: [`model`] (the way through), [`tokens`], [`clip`] and support's T5,
//! [`latents`], [`schedule`], [`transformer`] over [`rope`] and [`layers`], [`vae`]; [`files`], [`config`] and [`memory`] are
//! for loading; [`device`] has the same arithmetic in tensors; [`engine`] speaks with the host. Nothing here knows HTTP.

mod backend;
pub mod clip;
pub mod config;
mod convolution;
pub mod device;
pub mod engine;
pub mod files;
pub mod latents;
pub mod layers;
pub mod memory;
pub mod model;
pub mod rope;
pub mod schedule;
mod tiles;
pub mod tokens;
pub mod transformer;
pub mod vae;

use aihost_engine::candle::locate;
use aihost_plugin_api::{Error, ErrorKind, LoadContext, LoadRequest, MemoryPlan, Plugin, Result};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::device::Dtype;
use crate::engine::{Flux, Loaded, MAX_STEPS};
use crate::files::Files;
use crate::latents::Shape;
use crate::memory::{Memory, Offload, RequestSize, Target};
use crate::model::Parts;

#[cfg(not(feature = "cuda"))]
aihost_plugin_api::export_plugin! {
    plugin: FluxPlugin,
    id: "flux",
    devices: ["cpu"],
    formats: ["safetensors", "gguf", "folder"],
    parks: true,
}

#[cfg(feature = "cuda")]
aihost_plugin_api::export_plugin! {
    plugin: FluxPlugin,
    id: "flux",
    devices: ["cpu", "cuda"],
    formats: ["safetensors", "gguf", "folder"],
    parks: true,
}

/// Tokens of T5 that dev was trained with, and most that are served.
const MAX_TEXT_LENGTH: usize = 512;
/// Least pixels that `max_pixels` may be: an image of 16 by 16.
const MIN_PIXELS: u64 = 256;
/// Most pixels that `max_pixels` may be: an image of 16,384 by 16,384.
const MAX_PIXELS: u64 = 1 << 28;
/// Most pixels of an image on a device: candle's kernels count elements in 32 bits.
const MAX_DEVICE_PIXELS: u64 = 1 << 25;
/// Tokens of T5 that schnell was distilled with.
const SCHNELL_TEXT_LENGTH: usize = 256;

/// The entry's `options:`.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Which weights stay in memory.
    pub offload: Offload,
    /// Tokens of a prompt that T5 reads, 1 to 512; a longer prompt is cut. Default: 512 for dev, 256 for schnell.
    #[schemars(range(min = 1, max = MAX_TEXT_LENGTH))]
    pub max_sequence_length: Option<usize>,
    /// Most pixels of an image; memory is planned for them.
    #[schemars(range(min = MIN_PIXELS, max = MAX_PIXELS))]
    pub max_pixels: u64,
    /// What a GPU computes with, and keeps dense weights in. Default: bf16. Not for the CPU.
    pub dtype: Option<Dtype>,
}

impl Default for Options {
    fn default() -> Self {
        Self { offload: Offload::Auto, max_sequence_length: None, max_pixels: 2048 * 2048, dtype: None }
    }
}

/// The plugin, with the entry's options.
#[derive(Debug)]
pub struct FluxPlugin {
    options: Options,
}

impl Plugin for FluxPlugin {
    type Options = Options;
    type Engine = Flux;

    fn new(options: Options) -> Result<Self> {
        let wrong = |text: String| Err(Error::new(ErrorKind::InvalidOptions, format!("options: {text}")));
        match options {
            Options { max_sequence_length: Some(length), .. } if !(1..=MAX_TEXT_LENGTH).contains(&length) => {
                wrong(format!("max_sequence_length is {length}; it must be from 1 to {MAX_TEXT_LENGTH}"))
            }
            Options { max_pixels, .. } if !(MIN_PIXELS..=MAX_PIXELS).contains(&max_pixels) => {
                wrong(format!("max_pixels is {max_pixels}; it must be from {MIN_PIXELS} to {MAX_PIXELS}"))
            }
            options => Ok(Self { options }),
        }
    }

    fn plan(&self, load: &LoadRequest) -> Result<MemoryPlan> {
        self.plan_on(load, self.target(load)?)
    }

    fn load(&self, load: &LoadRequest, ctx: &LoadContext) -> Result<Flux> {
        self.load_on(load, self.target(load)?, ctx)
    }
}

impl FluxPlugin {
    /// Where the host wants it to run.
    fn target(&self, load: &LoadRequest) -> Result<Target> {
        match (load.device.as_str(), self.options.dtype) {
            ("cpu", None) => Ok(Target::Host { threads: load.threads.max(1) }),
            ("cpu", Some(_)) => {
                let text = "options: dtype is for GPUs; on the CPU weights stay as they are stored. Leave it out";
                Err(Error::new(ErrorKind::InvalidOptions, text))
            }
            _ if self.options.max_pixels > MAX_DEVICE_PIXELS => {
                let text = format!(
                    "options: max_pixels is at most {MAX_DEVICE_PIXELS} on a GPU, whose kernels count no further"
                );
                Err(Error::new(ErrorKind::InvalidOptions, text))
            }
            (device, dtype) => Ok(Target::Tensors { location: locate(device)?, dtype: dtype.unwrap_or_default() }),
        }
    }

    /// The plan for a target, which need not be the one that `load` names.
    ///
    /// # Errors
    /// If a file is missing, damaged, or of a model that is not served.
    pub fn plan_on(&self, load: &LoadRequest, target: Target) -> Result<MemoryPlan> {
        let parts = Parts::open(&Files::of(load)?, Offload::Streamed.residency())?;
        Ok(self.memory(&parts, target).plan(self.options.offload))
    }

    /// Loads for a target, which need not be the one that `load` names.
    ///
    /// # Errors
    /// As [`plan_on`](Self::plan_on); [`ErrorKind::OutOfMemory`] if less is granted than the weights take, or the device is
    /// out of memory.
    pub fn load_on(&self, load: &LoadRequest, target: Target, ctx: &LoadContext) -> Result<Flux> {
        let files = Files::of(load)?;
        let parts = Parts::open(&files, Offload::Streamed.residency())?;
        let memory = self.memory(&parts, target);
        let policy = self.options.offload.choose(&memory, load.granted);
        let held = memory.weights(policy);
        if held > load.granted {
            let text = format!(
                "{} bytes are granted and weights take {held}; name another `offload` in the entry's options, or give it more `memory:`",
                load.granted
            );
            return Err(Error::new(ErrorKind::OutOfMemory, text));
        }
        tracing::info!(?policy, ?target, granted = load.granted, "weights in memory");
        let text_length = self.text_length(&parts);
        let (granted, max_pixels) = (load.granted, self.options.max_pixels);
        let flux = Flux::new(Loaded { files, parts, target, memory, policy, text_length, granted, max_pixels })?;
        flux.load_weights(ctx)?;
        Ok(flux)
    }

    fn text_length(&self, parts: &Parts) -> usize {
        let trained = if parts.transformer.1.guidance { MAX_TEXT_LENGTH } else { SCHNELL_TEXT_LENGTH };
        self.options.max_sequence_length.unwrap_or(trained)
    }

    fn memory(&self, parts: &Parts, target: Target) -> Memory {
        let (vae, text_length) = (&parts.vae.1, self.text_length(parts));
        // A square takes as much memory as any image of as many pixels.
        let side = (self.options.max_pixels as f64).sqrt() as usize / vae.scale() / 2 * 2;
        let shape = Shape { channels: vae.latent_channels, height: side.max(2), width: side.max(2) };
        let most = RequestSize { shape, steps: MAX_STEPS as usize, previews: true, text_length };
        Memory::of(parts, target, self.options.offload, &most)
    }
}

#[cfg(test)]
mod option_tests {
    use super::*;

    /// What the schema says of a number: the bound, and the next beyond it.
    fn bound(name: &str, key: &str) -> Option<f64> {
        serde_json::to_value(schemars::schema_for!(Options)).unwrap()["properties"][name][key].as_f64()
    }

    fn is_taken(options: serde_json::Value) -> bool {
        serde_json::from_value(options).is_ok_and(|options| FluxPlugin::new(options).is_ok())
    }

    #[test]
    fn the_schema_has_the_bounds_that_are_enforced() {
        for name in ["max_pixels", "max_sequence_length"] {
            let (least, most) = (bound(name, "minimum").unwrap() as u64, bound(name, "maximum").unwrap() as u64);
            for (value, wanted) in [(least - 1, false), (least, true), (most, true), (most + 1, false)] {
                assert_eq!(is_taken(serde_json::json!({ name: value })), wanted, "{name}: {value}");
            }
        }
    }
}
