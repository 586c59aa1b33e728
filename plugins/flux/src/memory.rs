//! What a model and a request take, before they take it, and which weights stay in memory.

use aihost_plugin_api::{MemoryPlan, MemoryUsage};
use aihost_support::attention::Attention;
use aihost_support::checkpoint::{Checkpoint, Layers};
use aihost_support::dense::{Residency, panel_bytes};
use aihost_support::t5::T5Encoder;
use candle_core::DeviceLocation;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::device::memory::{CONTEXT, Weights};
use crate::device::{self, Dtype};
use crate::latents::Shape;
use crate::model::{CACHED_PROMPTS, PartResidency, Parts, decoded_at_once};
use crate::transformer::DenoisingSession;

/// Which weights stay in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Offload {
    /// As much as the host grants, in the order of the others.
    #[default]
    Auto,
    /// All: mapped from their files, or on the GPU.
    AllResident,
    /// The transformer's. The text encoders' are read, or brought to the GPU, for each new prompt.
    EncodersParked,
    /// None but the autoencoder's. The transformer's are read, or brought to the GPU, in each step: slow, and with the least
    /// memory.
    Streamed,
}

/// What compiled expressions of tokenizers take, bytes.
const TOKENIZERS: u64 = 3 << 19;

/// Bytes of a loaded tokenizer for each byte of its files: measured with 32 thousand pieces for T5 and 49 thousand for CLIP.
const TOKENIZER_FACTOR: u64 = 13;

/// From the one that takes most.
const POLICIES: [Offload; 3] = [Offload::AllResident, Offload::EncodersParked, Offload::Streamed];

impl Offload {
    /// Which parts' weights stay in memory under it.
    pub fn residency(self) -> PartResidency {
        let (transformer, encoders) = match self {
            Self::Auto | Self::AllResident => (Residency::Resident, Residency::Resident),
            Self::EncodersParked => (Residency::Resident, Residency::Streamed),
            Self::Streamed => (Residency::Streamed, Residency::Streamed),
        };
        PartResidency { transformer, encoders }
    }

    /// The policies from the one that takes least to the one that takes most, of those it allows.
    fn range(self) -> (Self, Self) {
        match self {
            Self::Auto => (Self::Streamed, Self::AllResident),
            stated => (stated, stated),
        }
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

/// Where a model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// On the host's cores, so many threads; states are f32 and weights as they are stored.
    Host {
        /// Threads that compute, at least 1.
        threads: usize,
    },
    /// In tensors on a device.
    Tensors {
        /// The device, as candle names it.
        location: DeviceLocation,
        /// The type of hidden states and dense weights.
        dtype: Dtype,
    },
}

impl Target {
    /// Bytes on the target that a request takes at its peak.
    pub fn cost(self, parts: &Parts, request: &RequestSize, policy: Offload) -> u64 {
        match self {
            Self::Host { threads } => cost(parts, request, threads),
            Self::Tensors { dtype, .. } => device::memory::cost(parts, request, dtype, policy),
        }
    }
}

/// Bytes of a model's parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    transformer: u64,
    encoders: u64,
    /// Under any policy, on the target.
    always: u64,
    /// Part of `always` that the device keeps to itself as long as it is open.
    context: u64,
    /// The most a request takes.
    workspace: u64,
    /// In host memory under any policy, where the target is another.
    host: Option<u64>,
}

impl Memory {
    /// Of open parts; `most` is the largest request.
    pub fn of(parts: &Parts, target: Target, offload: Offload, most: &RequestSize) -> Self {
        let prompt = 4 * (most.text_length * parts.transformer.1.context + parts.transformer.1.pooled) as u64;
        let host = TOKENIZERS + TOKENIZER_FACTOR * parts.tokenizer_bytes() + CACHED_PROMPTS as u64 * prompt;
        let (least, _) = offload.range();
        let workspace = target.cost(parts, most, least);
        match target {
            Target::Host { .. } => {
                let (clip, t5) = (&parts.clip, &parts.t5);
                Self {
                    transformer: parts.transformer.0.size(|_| true),
                    encoders: clip.0.size(|_| true) + t5.0.size(|name| !is_second_table(&t5.0, name)),
                    always: copied(parts, size_of::<f32>()) + host,
                    context: 0,
                    workspace,
                    host: None,
                }
            }
            Target::Tensors { location, dtype } => {
                let Weights { transformer, encoders, always } = Weights::of(parts, dtype);
                let context = if matches!(location, DeviceLocation::Cuda { .. }) { CONTEXT } else { 0 };
                Self { transformer, encoders, always: always + context, context, workspace, host: Some(host) }
            }
        }
    }

    /// Bytes under a policy on the target, requests apart.
    pub fn weights(&self, policy: Offload) -> u64 {
        self.always + self.resident(policy)
    }

    /// Bytes of the matrices that stay in memory under a policy.
    pub fn resident(&self, policy: Offload) -> u64 {
        let residency = policy.residency();
        let resident = |residency, bytes| if residency == Residency::Resident { bytes } else { 0 };
        resident(residency.transformer, self.transformer) + resident(residency.encoders, self.encoders)
    }

    /// What is held under a policy, requests apart.
    pub fn usage(&self, policy: Offload) -> MemoryUsage {
        let device = self.weights(policy);
        MemoryUsage::new(device, self.host.unwrap_or(device))
    }

    /// What is held while it is parked.
    pub fn parked(&self) -> MemoryUsage {
        MemoryUsage::new(self.context, 0)
    }

    /// What the host is told: from the least to the most of what `offload` allows.
    pub fn plan(&self, offload: Offload) -> MemoryPlan {
        let (least, most) = offload.range();
        // On a device, weights are copies.
        let mapped = if self.host.is_none() { self.resident(least) } else { 0 };
        MemoryPlan::new(self.weights(least)).preferred(self.weights(most)).workspace_max(self.workspace).mapped(mapped)
    }
}

/// What is copied out of the files under any policy: the autoencoder's weights, of `element` bytes each, and vectors as f32.
pub(crate) fn copied(parts: &Parts, element: usize) -> u64 {
    let vectors = |checkpoint: &Checkpoint| 4 * checkpoint.count(|name| is_vector(checkpoint, name));
    let positions = 4 * (parts.clip.1.positions * parts.clip.1.hidden) as u64;
    let autoencoder = element as u64 * parts.vae.0.count(|name| name.contains("decoder."));
    let checkpoints = [&parts.transformer.0, &parts.clip.0, &parts.t5.0];
    autoencoder + positions + checkpoints.map(vectors).iter().sum::<u64>()
}

/// Whether a tensor has one dimension.
pub(crate) fn is_vector(checkpoint: &Checkpoint, name: &str) -> bool {
    checkpoint.shape(name).is_some_and(|shape| shape.len() == 1)
}

/// The sizes of a request that decide its memory.
#[derive(Clone, Copy, Debug)]
pub struct RequestSize {
    /// The shape of the latents.
    pub shape: Shape,
    /// Denoising steps.
    pub steps: usize,
    /// Whether unfinished images are decoded on the way.
    pub previews: bool,
    /// Tokens of the prompt for T5.
    pub text_length: usize,
}

/// Bytes a request allocates at its peak on the host's cores.
fn cost(parts: &Parts, request: &RequestSize, threads: usize) -> u64 {
    let &RequestSize { shape, steps, previews, text_length } = request;
    let (config, vae) = (&parts.transformer.1, &parts.vae.1);
    let tokens = text_length + shape.tokens();
    let scratch = panel_bytes(config.hidden + config.inner) + Attention::score_bytes(tokens);
    let steps = DenoisingSession::bytes(config, text_length, shape.tokens(), steps) + threads as u64 * scratch;
    let at_once = decoded_at_once(vae, shape);
    let pixels = shape.height * shape.width * vae.scale().pow(2);
    // Floats, bytes, and for tiles two rows of them.
    let rgb = pixels * 3 * if at_once == shape { 5 } else { 13 };
    let decode = vae.bytes(at_once, threads) + rgb as u64;
    let encode = T5Encoder::bytes(&parts.t5.1, text_length).max(parts.clip.1.bytes());
    // Noise, latents, their packed forms, the velocity.
    let latents = 4 * (5 * shape.len()) as u64;
    let request = if previews { steps + decode } else { steps.max(decode) };
    latents + encode.max(request)
}

/// Files of encoders may hold their table of tokens twice.
fn is_second_table(checkpoint: &Checkpoint, name: &str) -> bool {
    name == "encoder.embed_tokens.weight" && checkpoint.has("shared.weight")
}
