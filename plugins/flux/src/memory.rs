//! What a model and a request take, before they take it, and which weights stay in memory.

use aihost_plugin_api::MemoryPlan;
use aihost_support::attention::Attention;
use aihost_support::checkpoint::Layers;
use aihost_support::dense::{Reading, panel_bytes};
use aihost_support::t5::T5Encoder;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::latents::Shape;
use crate::model::{CACHED_PROMPTS, Parts, Readings, is_tiled};
use crate::transformer::Session;

/// Which weights stay in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Offload {
    /// As much as the host grants, in the order of the others.
    #[default]
    Auto,
    /// All, mapped from their files.
    AllResident,
    /// The transformer's. The text encoders' are read for each new prompt.
    EncodersParked,
    /// None but the autoencoder's. The transformer's are read in each step: slow, and with the least memory.
    Streamed,
}

/// What compiled expressions of tokenizers take, bytes.
const TOKENIZERS: u64 = 3 << 19;

/// Bytes of a loaded tokenizer for each byte of its files: measured with 32 thousand pieces for T5 and 49 thousand for CLIP.
const TOKENIZER_FACTOR: u64 = 13;

/// From the one that takes most.
const POLICIES: [Offload; 3] = [Offload::AllResident, Offload::EncodersParked, Offload::Streamed];

impl Offload {
    /// How weights are reached under it.
    pub fn readings(self) -> Readings {
        let (transformer, encoders) = match self {
            Self::Auto | Self::AllResident => (Reading::Mapped, Reading::Mapped),
            Self::EncodersParked => (Reading::Mapped, Reading::Streamed),
            Self::Streamed => (Reading::Streamed, Reading::Streamed),
        };
        Readings { transformer, encoders }
    }

    /// The policy for `granted` bytes, of which `plan`'s workspace is not for weights.
    pub fn choose(self, memory: &Memory, granted: u64) -> Self {
        let left = granted.saturating_sub(memory.workspace);
        let fits = |policy: &&Self| memory.weights(**policy) <= left;
        match self {
            Self::Auto => POLICIES.iter().find(fits).copied().unwrap_or(Self::Streamed),
            stated => stated,
        }
    }
}

/// Bytes of a model's parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    transformer: u64,
    encoders: u64,
    /// What is copied, under any policy: the autoencoder as f32, vectors, tokenizers, kept prompts.
    copied: u64,
    /// The most a request takes.
    workspace: u64,
}

impl Memory {
    /// Of open parts; `workspace` is the most a request may take.
    pub fn of(parts: &Parts, text_length: usize, workspace: u64) -> Self {
        let (transformer, config) = &parts.transformer;
        let vector = |checkpoint: &aihost_support::checkpoint::Checkpoint| -> u64 {
            let vectors = checkpoint.names().filter_map(|name| checkpoint.shape(name)).filter(|shape| shape.len() == 1);
            vectors.map(|shape| 4 * shape[0] as u64).sum()
        };
        let (clip, t5) = (&parts.clip, &parts.t5);
        let decoder = |name: &str| name.contains("decoder.");
        let vae = parts.vae.0.names().filter(|name| decoder(name));
        let vae: u64 =
            vae.filter_map(|name| parts.vae.0.shape(name)).map(|shape| shape.iter().product::<usize>() as u64).sum();
        let prompt = 4 * (text_length * config.context + config.pooled) as u64;
        let positions = 4 * (clip.1.positions * clip.1.hidden) as u64;
        Self {
            transformer: transformer.size(|_| true),
            encoders: clip.0.size(|_| true) + t5.0.size(|name| !is_second_table(&t5.0, name)),
            copied: 4 * vae
                + vector(transformer)
                + vector(&clip.0)
                + vector(&t5.0)
                + positions
                + TOKENIZERS
                + TOKENIZER_FACTOR * parts.tokenizer_bytes()
                + CACHED_PROMPTS as u64 * prompt,
            workspace,
        }
    }

    /// Bytes under a policy, requests apart.
    pub fn weights(&self, policy: Offload) -> u64 {
        self.copied + self.mapped(policy)
    }

    /// Bytes of mapped files.
    pub fn mapped(&self, policy: Offload) -> u64 {
        let readings = policy.readings();
        let kept = |reading, bytes| if reading == Reading::Mapped { bytes } else { 0 };
        kept(readings.transformer, self.transformer) + kept(readings.encoders, self.encoders)
    }

    /// What the host is told: from the least to the most of what `offload` allows.
    pub fn plan(&self, offload: Offload) -> MemoryPlan {
        let (least, most) = match offload {
            Offload::Auto => (Offload::Streamed, Offload::AllResident),
            stated => (stated, stated),
        };
        MemoryPlan {
            required: self.weights(least),
            preferred: self.weights(most),
            workspace_max: self.workspace,
            mapped: self.mapped(least),
        }
    }
}

/// What a request is made of, as far as memory goes.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Of the latents.
    pub shape: Shape,
    /// Steps.
    pub steps: usize,
    /// Whether unfinished pictures are decoded on the way.
    pub previews: bool,
    /// T5's tokens.
    pub text_length: usize,
    /// Threads.
    pub threads: usize,
}

/// Bytes a request allocates at its peak.
pub fn cost(parts: &Parts, load: &Load) -> u64 {
    let &Load { shape, steps, previews, text_length, threads } = load;
    let (config, vae) = (&parts.transformer.1, &parts.vae.1);
    let tokens = text_length + shape.tokens();
    let scratch = panel_bytes(config.hidden + config.inner) + Attention::score_bytes(tokens);
    let steps = Session::bytes(config, text_length, shape.tokens(), steps) + threads as u64 * scratch;
    let tile = vae.tile();
    let at_once = match is_tiled(vae, shape) {
        true => Shape { height: shape.height.min(tile), width: shape.width.min(tile), ..shape },
        false => shape,
    };
    let pixels = shape.height * shape.width * vae.scale().pow(2);
    // Floats, bytes, and for tiles two rows of them.
    let kept = pixels * 3 * if at_once == shape { 5 } else { 13 };
    let decode = vae.bytes(at_once, threads) + kept as u64;
    let encode = T5Encoder::bytes(&parts.t5.1, text_length).max(parts.clip.1.bytes());
    // Noise, latents, their packed forms, the direction.
    let latents = 4 * (5 * shape.len()) as u64;
    let request = if previews { steps + decode } else { steps.max(decode) };
    latents + encode.max(request)
}

/// Files of encoders may hold their table of tokens twice.
fn is_second_table(checkpoint: &aihost_support::checkpoint::Checkpoint, name: &str) -> bool {
    name == "encoder.embed_tokens.weight" && checkpoint.has("shared.weight")
}
