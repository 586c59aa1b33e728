//! MusicGen (Copet et al. 2023, "Simple and Controllable Music Generation") as a plugin: music from a prompt.
//!
//! Serves checkpoints in the layout of `facebook/musicgen-small`, `-medium`, `-large` and their stereo versions, on the
//! CPU. The parts, in the order in which a request passes them: [`compose`] (long pieces), [`model`] (files, prompt, loop),
//! [`decoder`] over [`matrix`], [`delay`], [`sampler`], [`encodec`]; [`engine`] speaks with the host. Nothing here knows HTTP.

pub mod compose;
pub mod config;
pub mod decoder;
pub mod delay;
pub mod encodec;
pub mod engine;
pub mod matrix;
pub mod model;
mod rolling_rows;
pub mod sampler;

use aihost_plugin_api::{Error, ErrorKind, LoadContext, LoadRequest, MemoryPlan, Plugin, Result};
use aihost_support::weights::{Entry, Weights};
use candle_core::DType;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::compose::Windows;
use crate::config::Config;
use crate::engine::{Chunking, MusicGen};
use crate::model::{Files, Model};

aihost_plugin_api::export_plugin! {
    plugin: MusicGenPlugin,
    id: "musicgen",
    devices: ["cpu"],
    formats: ["safetensors", "bin", "folder"],
}

/// Most frames that are sent together, half a minute.
const MAX_CHUNK_FRAMES: usize = 1500;

/// The entry's `options:`.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// How the decoder's weights are kept. Half precision halves memory and the time of a step.
    pub dtype: Precision,
    /// Audio is sent after this many frames (50 are a second), 1 to 1500. Smaller begins sooner and costs more.
    #[schemars(range(min = 1, max = MAX_CHUNK_FRAMES))]
    pub chunk_frames: usize,
    /// Seconds that are made in one go, above 0. Longer pieces go on from their own end. What a model's positions do not
    /// hold is less.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub window: f64,
    /// Seconds of its own end that a longer piece goes on from; less than `window`, and less in proportion where the
    /// window is.
    #[schemars(range(min = 0))]
    pub overlap: f64,
}

/// How weights are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// As they are stored in the file.
    #[default]
    Stored,
    /// 4 bytes.
    F32,
    /// 2 bytes, IEEE 754 half.
    F16,
    /// 2 bytes, bfloat16.
    Bf16,
}

impl Default for Options {
    fn default() -> Self {
        // What MusicGen was trained on, and what audiocraft keeps of it.
        Self { dtype: Precision::default(), chunk_frames: 50, window: 30.0, overlap: 12.0 }
    }
}

impl Precision {
    fn dtype(self) -> Option<DType> {
        match self {
            Self::Stored => None,
            Self::F32 => Some(DType::F32),
            Self::F16 => Some(DType::F16),
            Self::Bf16 => Some(DType::BF16),
        }
    }
}

impl Options {
    /// The windows and chunks in frames of this model.
    fn chunking(&self, config: &Config) -> Chunking {
        let wanted = (self.window * config.audio_encoder.frame_rate()).round() as usize;
        let frames = wanted.clamp(1, engine::max_window(config).max(1));
        let overlap = (frames as f64 * self.overlap / self.window).round() as usize;
        Chunking { chunk: self.chunk_frames, windows: Windows { frames, overlap: overlap.min(frames - 1) } }
    }
}

/// The plugin, with the entry's options.
#[derive(Debug)]
pub struct MusicGenPlugin {
    options: Options,
}

impl Plugin for MusicGenPlugin {
    type Options = Options;
    type Engine = MusicGen;

    fn new(options: Options) -> Result<Self> {
        if !(1..=MAX_CHUNK_FRAMES).contains(&options.chunk_frames) {
            let chunk = options.chunk_frames;
            let text = format!("options: chunk_frames is {chunk}; it must be from 1 to {MAX_CHUNK_FRAMES}");
            return Err(Error::new(ErrorKind::InvalidOptions, text));
        }
        let Options { window, overlap, .. } = options;
        if !(window.is_finite() && window > 0.0 && (0.0..window).contains(&overlap)) {
            let text = format!(
                "options: window is {window} and overlap {overlap}; they are seconds above 0, the overlap less than the window"
            );
            return Err(Error::new(ErrorKind::InvalidOptions, text));
        }
        Ok(Self { options })
    }

    fn plan(&self, load: &LoadRequest) -> Result<MemoryPlan> {
        let files = Files::of(load)?;
        let config = Config::read(&files.config)?;
        let required = self.weight_bytes(&Weights::open(&files.weights)?.entries());
        let workspace_max = engine::max_bytes(&config, self.options.chunking(&config));
        Ok(MemoryPlan::new(required).workspace_max(workspace_max))
    }

    fn load(&self, load: &LoadRequest, ctx: &LoadContext) -> Result<MusicGen> {
        if load.device != "cpu" {
            return Err(Error::new(ErrorKind::Unsupported, format!("musicgen runs on cpu, not on {}", load.device)));
        }
        let files = Files::of(load)?;
        let weights = Weights::open(&files.weights)?;
        let entries = weights.entries();
        let stored = entries.iter().filter(|entry| is_loaded(&entry.name));
        let total = stored.map(|entry| (entry.elements * entry.dtype.size_in_bytes()) as u64).sum();
        let watch = ctx.clone();
        let weights = weights.observed(move |read| {
            watch.progress(read.min(total), total);
            watch.check()
        });
        let threads = rayon::ThreadPoolBuilder::new().num_threads(load.threads.max(1)).build();
        let threads = threads.map_err(Error::internal)?;
        let model = threads.install(|| Model::load_from(&weights, &files, self.options.dtype.dtype()))?;
        let chunking = self.options.chunking(model.config());
        Ok(MusicGen { model, threads, chunking, weights: self.weight_bytes(&entries) })
    }
}

impl MusicGenPlugin {
    /// Bytes of the tensors that are loaded, in the type they are kept in.
    fn weight_bytes(&self, entries: &[Entry]) -> u64 {
        let bytes = |entry: &Entry| {
            let kept = if entry.name.starts_with("decoder.") || entry.name.starts_with("enc_to_dec_proj.") {
                self.options.dtype.dtype().unwrap_or(entry.dtype)
            } else {
                DType::F32
            };
            (entry.elements * kept.size_in_bytes()) as u64
        };
        entries.iter().filter(|entry| is_loaded(&entry.name)).map(bytes).sum()
    }
}

/// The codec's encoder, its training statistics, stored sinusoids and the second name of the text embedding are not.
fn is_loaded(name: &str) -> bool {
    !(name.starts_with("audio_encoder.encoder.")
        || name.ends_with(".codebook.embed_avg")
        || name.ends_with(".codebook.cluster_size")
        || name.ends_with(".codebook.inited")
        || name.ends_with(".embed_positions.weights")
        || name == "text_encoder.encoder.embed_tokens.weight")
}

#[cfg(test)]
mod option_tests {
    use super::*;

    /// What the schema says of a number: the bound, and the next beyond it.
    fn bound(name: &str, key: &str) -> Option<f64> {
        serde_json::to_value(schemars::schema_for!(Options)).unwrap()["properties"][name][key].as_f64()
    }

    fn is_taken(options: serde_json::Value) -> bool {
        serde_json::from_value(options).is_ok_and(|options| MusicGenPlugin::new(options).is_ok())
    }

    #[test]
    fn the_schema_has_the_bounds_that_are_enforced() {
        let (least, most) = (bound("chunk_frames", "minimum").unwrap(), bound("chunk_frames", "maximum").unwrap());
        for (value, wanted) in [(least - 1.0, false), (least, true), (most, true), (most + 1.0, false)] {
            assert_eq!(is_taken(serde_json::json!({"chunk_frames": value as u64})), wanted, "{value}");
        }
        assert_eq!((bound("window", "exclusiveMinimum"), bound("overlap", "minimum")), (Some(0.0), Some(0.0)));
        for (window, overlap, wanted) in
            [(0.0, 0.0, false), (-1.0, 0.0, false), (0.1, 0.0, true), (30.0, -0.1, false), (30.0, 30.0, false)]
        {
            assert_eq!(
                is_taken(serde_json::json!({"window": window, "overlap": overlap})),
                wanted,
                "{window}, {overlap}"
            );
        }
    }
}
