//! FLUX.1 schnell and dev (Black Forest Labs 2024) as a plugin: a picture from a description.
//!
//! Serves the first release's files, diffusers' folder, and GGUF-quantised transformers and T5 encoders, on the CPU. The
//! parts, in the order in which a request passes them: [`model`] (the way through), [`tokens`], [`clip`] and support's T5,
//! [`latents`], [`schedule`], [`transformer`] over [`rope`] and [`layers`], [`vae`]; [`files`], [`config`] and [`memory`] are
//! for loading; [`engine`] speaks with the host. Nothing here knows HTTP.

pub mod clip;
pub mod config;
pub mod engine;
pub mod files;
pub mod latents;
pub mod layers;
pub mod memory;
pub mod model;
mod picture;
pub mod rope;
pub mod schedule;
mod tiles;
pub mod tokens;
pub mod transformer;
pub mod vae;

use aihost_plugin_api::{Error, ErrorKind, LoadContext, LoadRequest, MemoryPlan, Plugin, Result};
use aihost_support::dense::Reading;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::engine::{Flux, MAX_STEPS};
use crate::files::Files;
use crate::latents::Shape;
use crate::memory::{Load, Memory, Offload};
use crate::model::{Parts, Readings};

aihost_plugin_api::export_plugin! {
    plugin: FluxPlugin,
    id: "flux",
    kinds: ["image"],
    devices: ["cpu"],
    formats: ["safetensors", "gguf"],
}

/// Tokens of T5 that dev was trained with, and most that are served.
const MAX_TEXT_LENGTH: usize = 512;
/// Tokens of T5 that schnell was distilled with.
const SCHNELL_TEXT_LENGTH: usize = 256;

/// The entry's `options:`.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Which weights stay in memory.
    pub offload: Offload,
    /// Tokens of a prompt that T5 reads, 1 to 512; a longer prompt is cut. Default: 512 for dev, 256 for schnell.
    #[schemars(range(min = 1, max = 512))]
    pub max_sequence_length: Option<usize>,
    /// Most pixels of a picture; memory is planned for them.
    #[schemars(range(min = 256))]
    pub max_pixels: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { offload: Offload::Auto, max_sequence_length: None, max_pixels: 2048 * 2048 }
    }
}

/// The plugin.
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
            Options { max_pixels, .. } if !(256..=1 << 28).contains(&max_pixels) => {
                wrong(format!("max_pixels is {max_pixels}; it must be from 256 to {}", 1 << 28))
            }
            options => Ok(Self { options }),
        }
    }

    fn plan(&self, load: &LoadRequest) -> Result<MemoryPlan> {
        let streamed = Readings { transformer: Reading::Streamed, encoders: Reading::Streamed };
        let parts = Parts::open(&Files::of(load)?, streamed)?;
        Ok(self.memory(&parts, load.threads).plan(self.options.offload))
    }

    fn load(&self, load: &LoadRequest, ctx: &LoadContext) -> Result<Flux> {
        if load.device != "cpu" {
            return Err(Error::new(ErrorKind::Unsupported, format!("flux runs on cpu, not on {}", load.device)));
        }
        let files = Files::of(load)?;
        let parts = Parts::open(&files, Offload::Streamed.readings())?;
        let memory = self.memory(&parts, load.threads);
        let policy = self.options.offload.choose(&memory, load.granted);
        tracing::info!(?policy, granted = load.granted, "weights in memory");
        let parts = Parts::open(&files, policy.readings())?;
        let text_length = self.text_length(&parts);
        let threads = rayon::ThreadPoolBuilder::new().num_threads(load.threads.max(1)).build();
        let threads = threads.map_err(Error::internal)?;
        let model = threads.install(|| parts.load(text_length))?;
        let total = memory.mapped(policy);
        parts.preload(|read| {
            ctx.progress(read.min(total), total);
            ctx.check()
        })?;
        let max_pixels = self.options.max_pixels;
        Ok(Flux { model, parts, threads, memory, policy, text_length, max_pixels })
    }
}

impl FluxPlugin {
    fn text_length(&self, parts: &Parts) -> usize {
        let trained = if parts.transformer.1.guidance { MAX_TEXT_LENGTH } else { SCHNELL_TEXT_LENGTH };
        self.options.max_sequence_length.unwrap_or(trained)
    }

    fn memory(&self, parts: &Parts, threads: usize) -> Memory {
        let (vae, text_length) = (&parts.vae.1, self.text_length(parts));
        // A square is as dear as any picture of as many pixels.
        let side = (self.options.max_pixels as f64).sqrt() as usize / vae.scale() / 2 * 2;
        let shape = Shape { channels: vae.latent_channels, height: side.max(2), width: side.max(2) };
        let load = Load { shape, steps: MAX_STEPS as usize, previews: true, text_length, threads: threads.max(1) };
        Memory::of(parts, text_length, memory::cost(parts, &load))
    }
}
