//! T5's encoder in tensors: the layers and arithmetic of [`crate::t5`], whose loader it takes its weights from.
//!
//! Branches are of the place's type; the states that they are added to are f32: they grow large on their way.

use aihost_plugin_api::Result;
use candle_core::{DType, Tensor};

use super::{Linear, Place, UploadOptions, activate, attention, attention_bytes, to_host_f32};
use crate::dense::Dense;
use crate::t5::{self, T5Config};
use aihost_engine::cpu::rows::Activation;

/// A loaded encoder.
#[derive(Debug)]
pub struct T5Encoder {
    place: Place,
    epsilon: f32,
    heads: usize,
    /// Read where it lies: a text uses few of its rows.
    embedding: Dense,
    /// (buckets, heads)
    bias: Tensor,
    max_distance: usize,
    blocks: Vec<Block>,
    norm: Tensor,
}

#[derive(Debug)]
struct Block {
    attention_norm: Tensor,
    query_key_value: Linear,
    out: Linear,
    feed_forward_norm: Tensor,
    /// One layer in, or a gate and a layer beside it.
    up: Linear,
    gated: bool,
    activation: Activation,
    down: Linear,
}

impl T5Encoder {
    /// Brings an encoder to the device.
    ///
    /// # Errors
    /// If a weight file cannot be read, or the device is out of memory.
    pub fn new(encoder: &t5::T5Encoder, options: UploadOptions<'_>) -> Result<Self> {
        let place = options.place;
        let linear = |parts: &[Dense]| Linear::new(parts, &[], options);
        let states = place.computing(DType::F32);
        let norm = |scale: &[f32]| states.tensor(scale, scale.len());
        let block = |block: &t5::Block| -> super::Result<Block> {
            let t5::Block { attention, feed_forward, .. } = block;
            let parts = [&attention.q, &attention.k, &attention.v].map(Clone::clone);
            Ok(Block {
                attention_norm: norm(&block.attention_norm)?,
                query_key_value: linear(&parts)?,
                out: linear(std::slice::from_ref(&attention.o))?,
                feed_forward_norm: norm(&block.feed_forward_norm)?,
                up: linear(&feed_forward.inward)?,
                gated: feed_forward.inward.len() == 2,
                activation: feed_forward.activation,
                down: linear(std::slice::from_ref(&feed_forward.outward))?,
            })
        };
        let heads = encoder.bias.heads;
        let table = &encoder.bias.table;
        Ok(Self {
            epsilon: encoder.config.layer_norm_epsilon as f32,
            heads,
            embedding: encoder.embedding.clone(),
            bias: states.tensor(table, (table.len() / heads, heads))?,
            max_distance: encoder.bias.max_distance,
            blocks: encoder.blocks.iter().map(block).collect::<super::Result<_>>()?,
            norm: norm(&encoder.norm)?,
            place: place.clone(),
        })
    }

    /// States (tokens, d_model) of one text, in host memory.
    ///
    /// # Errors
    /// If the text is empty or a token is not in the vocabulary; if a file cannot be read, or the device is out of memory.
    pub fn encode(&self, tokens: &[u32]) -> Result<Vec<f32>> {
        Ok(self.states(tokens)?)
    }

    /// Bytes that encoding `tokens` takes on a device at its peak, weights apart, for branches of `size` bytes an element.
    pub fn bytes(config: &T5Config, tokens: usize, size: usize) -> u64 {
        let &T5Config { d_model, d_ff, num_heads, d_kv, .. } = config;
        let bias = 4 * num_heads * tokens * tokens;
        // States, their norm, and it narrowed; and queries, keys and values twice, or two layers and one as f32 and active.
        let states = (8 + size) * d_model;
        let attention =
            tokens * (states + 6 * size * num_heads * d_kv) + attention_bytes(num_heads, tokens, tokens, size);
        let feed_forward = tokens * (states + (2 * size + 8) * d_ff);
        // The bias is gathered by its bucket indices, then transposed.
        let transposed = bias + 4 * tokens * tokens;
        (bias + transposed.max(attention).max(feed_forward)) as u64
    }

    fn states(&self, tokens: &[u32]) -> super::Result<Vec<f32>> {
        let wide = |branch: Tensor| branch.to_dtype(DType::F32);
        let norm = |x: &Tensor, scale: &Tensor| candle_nn::ops::rms_norm(x, scale, self.epsilon);
        let narrow = |x: Tensor| x.to_dtype(self.place.dtype);
        let mut x = self.place.computing(DType::F32).embed(&self.embedding, tokens)?;
        let bias = self.position_bias(tokens.len())?;
        for block in &self.blocks {
            let qkv = block.query_key_value.forward(&narrow(norm(&x, &block.attention_norm)?)?)?;
            let parts = qkv.reshape((tokens.len(), 3, self.heads, ()))?;
            let part = |i: usize| parts.narrow(1, i, 1)?.squeeze(1)?.transpose(0, 1)?.contiguous();
            // Unlike the Transformer's, scores have no scale.
            let attended = attention(&part(0)?, &part(1)?, &part(2)?, Some(&bias))?;
            x = (x + wide(block.out.forward(&attended)?)?)?;
            let up = block.up.forward(&narrow(norm(&x, &block.feed_forward_norm)?)?)?;
            let inner = if block.gated {
                let width = up.dim(1)? / 2;
                (activate(block.activation, up.narrow(1, 0, width)?)? * up.narrow(1, width, width)?)?
            } else {
                activate(block.activation, up)?
            };
            x = (x + wide(block.down.forward(&inner)?)?)?;
        }
        to_host_f32(&norm(&x, &self.norm)?)
    }

    /// (heads, tokens, tokens): the bias on key j as seen from query i.
    fn position_bias(&self, tokens: usize) -> super::Result<Tensor> {
        let (buckets, _) = self.bias.dims2()?;
        let count = tokens as i64;
        let pairs = (0..count).flat_map(|query| (0..count).map(move |key| key - query));
        let buckets_of_pairs: Vec<u32> =
            pairs.map(|distance| t5::bucket(distance, buckets, self.max_distance)).collect();
        let buckets_of_pairs = Tensor::from_vec(buckets_of_pairs, tokens * tokens, &self.place.device)?;
        let bias = self.bias.index_select(&buckets_of_pairs, 0)?;
        Ok(bias.t()?.reshape((self.heads, tokens, tokens))?.contiguous()?)
    }
}
