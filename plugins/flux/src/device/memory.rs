//! What a model and a request take on a device, before they take it.
//!
//! Follows the code of the other files here tensor by tensor: which of them are there at a time, and how wide they are.

use aihost_support::checkpoint::Checkpoint;
use aihost_support::dense::Residency;
use aihost_support::device::{T5Encoder, attention_bytes};

use super::Dtype;
use super::vae::{IM2COL_ELEMENTS, NORM_ELEMENTS};
use crate::clip::ClipConfig;
use crate::config::TransformerConfig;
use crate::latents::Shape;
use crate::memory::{Offload, RequestSize, copied, is_vector};
use crate::model::{Parts, decoded_at_once};
use crate::vae::VaeConfig;

/// What CUDA, cuBLAS and the kernels' code take beside tensors, bytes. An estimate, after what a server of candle models
/// reports to be left when nothing is loaded; not measured with this plugin.
pub const CONTEXT: u64 = 700 << 20;

/// Token embeddings, which stay in their files: a text uses few of their rows.
const EMBEDDINGS: [&str; 4] = ["token_embedding.weight", "shared.weight", "embed_tokens.weight", "token_embd.weight"];

/// Most bytes of an element of a matrix that is uploaded or dequantised for one use.
const TRANSIENT_BYTES: usize = 8;

/// Bytes of the parts' weights on a device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weights {
    /// Bytes of the transformer's matrices.
    pub(crate) transformer: u64,
    /// Bytes of the text encoders' matrices.
    pub(crate) encoders: u64,
    /// On the device under any policy: the autoencoder, biases, scales, CLIP's positions.
    pub(crate) always: u64,
}

impl Weights {
    pub(crate) fn of(parts: &Parts, dtype: Dtype) -> Self {
        let size = dtype.states().size_in_bytes();
        let is_table = |name: &str| EMBEDDINGS.iter().any(|table| name.ends_with(table));
        let matrices =
            |checkpoint: &Checkpoint| checkpoint.size_as(size, |name| !is_vector(checkpoint, name) && !is_table(name));
        Self {
            transformer: matrices(&parts.transformer.0),
            encoders: matrices(&parts.clip.0) + matrices(&parts.t5.0),
            always: copied(parts, dtype.wide().size_in_bytes()),
        }
    }
}

/// Bytes that a request takes at its peak.
pub fn cost(parts: &Parts, request: &RequestSize, dtype: Dtype, offload: Offload) -> u64 {
    let residency = offload.residency();
    let vae = decoded_at_once(&parts.vae.1, request.shape);
    let widened = dtype.wide() != dtype.states();
    let encode = encode(parts, request.text_length, dtype)
        + transient(&parts.t5.0, widest_of_t5(parts), residency.encoders == Residency::Resident && !widened);
    let steps = steps(&parts.transformer.1, request, dtype)
        + transient(&parts.transformer.0, widest(&parts.transformer.1), residency.transformer == Residency::Resident);
    let decode = decode(&parts.vae.1, vae, dtype);
    encode.max(if request.previews { steps + decode } else { steps.max(decode) })
}

/// Bytes that the text encoders take, weights apart.
pub fn encode(parts: &Parts, text_length: usize, dtype: Dtype) -> u64 {
    let size = dtype.wide().size_in_bytes();
    let &ClipConfig { positions, hidden, heads, inner, .. } = &parts.clip.1;
    let states = positions * (8 + size) * hidden;
    let attention = positions * 7 * size * hidden + attention_bytes(heads, positions, positions, size);
    let clip = states + attention.max(positions * 16 * inner) + 4 * positions * positions;
    T5Encoder::bytes(&parts.t5.1, text_length, size).max(clip as u64)
}

/// Bytes that the steps of a request take, weights apart.
pub fn steps(config: &TransformerConfig, request: &RequestSize, dtype: Dtype) -> u64 {
    let (size, hidden, inner) = (dtype.states().size_in_bytes(), config.hidden, config.inner);
    let tokens = request.text_length + request.shape.tokens();
    // Modulations of all steps, and the widest of them once more on its way.
    let modulations = (12 * config.double_blocks + 3 * config.single_blocks + 2 + 12) * hidden * size * request.steps;
    let session = request.text_length * hidden * size + tokens * config.head() * 4 + modulations;
    let block = [
        // States, normed states, queries, keys and values; of them queries and keys in f32, one of them twice.
        tokens * hidden * (5 * size + 12),
        // As these come out of their layer, with and without its bias.
        tokens * hidden * 8 * size,
        // States, normed states, queries, keys, values and the attention's output, beside scores.
        tokens * hidden * 6 * size + attention_bytes(config.heads, tokens, tokens, size),
        // States, normed and attended states; the feed-forward layer's inner activations in f32 twice.
        tokens * (hidden * 3 * size + inner * 8),
        // The same, and attended states beside inner activations.
        tokens * (hidden * 4 + inner * 2) * size,
    ];
    (session + block.into_iter().max().unwrap_or(0)) as u64
}

/// Bytes that decoding latents of `shape` at once takes, weights apart.
pub fn decode(config: &VaeConfig, shape: Shape, dtype: Dtype) -> u64 {
    let size = dtype.wide().size_in_bytes();
    let levels = config.widths.len();
    let pixels = |level: usize| (shape.height * shape.width) << (2 * (levels - 1 - level));
    let level = |i: usize| {
        // An upsampled image is as wide as the coarser level.
        let wider = config.widths.get(i + 1).copied().unwrap_or(config.widths[i]);
        let own = config.widths[i];
        // A convolution's input and result, beside what its block began with.
        let beside = pixels(i) * size * (2 * wider + own).max(wider + 2 * own);
        // Neighbours of a band of pixels, the rows they are of, and what is made of them, with and without its bias.
        let gathered = (pixels(i) * 9 * wider).min(IM2COL_ELEMENTS) * size * 12 / 9;
        // A band in f32, in three operations after each other.
        let normed = (pixels(i) * wider).min(NORM_ELEMENTS) * 12;
        // The end of a block: two branches, their sum, and what it began with.
        (beside + gathered.max(normed)).max(pixels(i) * size * (wider + 3 * own))
    };
    let most = (0..levels).map(level).max().unwrap_or(0);
    let tokens = shape.height * shape.width;
    let attention = tokens * 7 * config.widths[levels - 1] * size + attention_bytes(1, tokens, tokens, size);
    most.max(attention) as u64
}

/// Elements of the transformer's largest matrix, once its parts are joined.
fn widest(config: &TransformerConfig) -> usize {
    config.hidden * (3 * config.hidden).max(config.inner + config.hidden).max(6 * config.hidden)
}

fn widest_of_t5(parts: &Parts) -> usize {
    let config = &parts.t5.1;
    config.d_model * (2 * config.d_ff).max(3 * config.num_heads * config.d_kv)
}

/// Bytes that a matrix of so many elements takes while it is used: none if it is there already (`ready`) and dense.
fn transient(checkpoint: &Checkpoint, elements: usize, ready: bool) -> u64 {
    let dense = checkpoint.size_as(0, |_| true) == 0;
    // As it is in its file, then in the states' type, and put together: at most f32, or blocks made f32, and twice that type.
    if ready && dense { 0 } else { (elements * TRANSIENT_BYTES) as u64 }
}
