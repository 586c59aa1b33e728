//! The encoder of T5 (Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
//! Transformer"): text tokens in, one state per token out.
//!
//! Knows no tokenizer and no task. Serves T5 1.0 (ReLU) and T5 1.1 (gated GELU, Shazeer 2020). States are f32; weights
//! stay as they are stored.

use aihost_plugin_api::{Error, ErrorKind, Result};
use rayon::prelude::*;
use serde::Deserialize;

use crate::attention::{Attention, Heads, Mask};
use crate::checkpoint::Layers;
use crate::dense::{self, Dense};
use crate::gemm::{View, ViewMut};
use aihost_engine::cpu::rows::{self, Activation};

/// The sizes of a T5 encoder: keys and defaults of a Hugging Face `config.json`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct T5Config {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of a state.
    pub d_model: usize,
    /// Width of one head's keys and values; heads times this need not be `d_model`.
    pub d_kv: usize,
    /// Width inside the feed-forward layer.
    pub d_ff: usize,
    /// Transformer blocks.
    pub num_layers: usize,
    /// Attention heads of a block.
    pub num_heads: usize,
    /// Rows of the relative position bias.
    pub relative_attention_num_buckets: usize,
    /// Distance from which on all positions share a bucket, tokens.
    pub relative_attention_max_distance: usize,
    /// Added to the mean square.
    pub layer_norm_epsilon: f64,
    /// `relu`, `gated-gelu` or `gated-silu`.
    pub feed_forward_proj: String,
}

impl Default for T5Config {
    fn default() -> Self {
        Self {
            vocab_size: 32128,
            d_model: 512,
            d_kv: 64,
            d_ff: 2048,
            num_layers: 6,
            num_heads: 8,
            relative_attention_num_buckets: 32,
            relative_attention_max_distance: 128,
            layer_norm_epsilon: 1e-6,
            feed_forward_proj: "relu".to_owned(),
        }
    }
}

/// A loaded encoder.
#[derive(Debug)]
pub struct T5Encoder {
    pub(crate) config: T5Config,
    pub(crate) embedding: Dense,
    pub(crate) blocks: Vec<Block>,
    pub(crate) bias: PositionBias,
    pub(crate) norm: Vec<f32>,
}

impl T5Encoder {
    /// Loads from `layers`, in which are `shared` (or `encoder.embed_tokens`) and `encoder`.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape, or the configuration names an activation that T5 does not have.
    pub fn load(config: &T5Config, layers: &dyn Layers) -> Result<Self> {
        let table = if layers.has("shared.weight") { "shared.weight" } else { "encoder.embed_tokens.weight" };
        let embedding = layers.matrix(table, config.vocab_size, config.d_model)?;
        let blocks = (0..config.num_layers).map(|i| Block::load(config, layers, i)).collect::<Result<_>>()?;
        // The first block's table serves all blocks.
        let first = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";
        let shape = [config.relative_attention_num_buckets, config.num_heads];
        Ok(Self {
            embedding,
            blocks,
            bias: PositionBias {
                table: layers.tensor_f32(first, &shape)?,
                heads: config.num_heads,
                max_distance: config.relative_attention_max_distance,
            },
            norm: layers.tensor_f32("encoder.final_layer_norm.weight", &[config.d_model])?,
            config: config.clone(),
        })
    }

    /// Width of a state.
    pub fn width(&self) -> usize {
        self.config.d_model
    }

    /// States (tokens, d_model) of one text.
    ///
    /// # Errors
    /// If the text is empty or a token is not in the vocabulary, or a weight file cannot be read.
    pub fn encode(&self, tokens: &[u32]) -> Result<Vec<f32>> {
        let vocabulary = self.embedding.rows();
        if tokens.is_empty() || tokens.iter().any(|token| *token as usize >= vocabulary) {
            return Err(Error::internal(format!("the text is empty or has a token past {vocabulary}")));
        }
        let width = self.config.d_model;
        let mut x = vec![0.0; tokens.len() * width];
        for (token, row) in tokens.iter().zip(x.chunks_exact_mut(width)) {
            self.embedding.widen(*token as usize..*token as usize + 1, row)?;
        }
        let bias = self.bias.of(tokens.len());
        let mut normed = vec![0.0; x.len()];
        for block in &self.blocks {
            self.norm(&x, &block.attention_norm, &mut normed);
            block.attention.add_to(&mut x, &normed, tokens.len(), &bias)?;
            self.norm(&x, &block.feed_forward_norm, &mut normed);
            block.feed_forward.add_to(&mut x, &normed, tokens.len())?;
        }
        self.norm(&x, &self.norm, &mut normed);
        Ok(normed)
    }

    /// Bytes that encoding `tokens` allocates at its peak.
    pub fn bytes(config: &T5Config, tokens: usize) -> u64 {
        let inner = config.num_heads * config.d_kv;
        let attention = 4 * inner + config.d_model;
        let feed_forward = 2 * config.d_ff + config.d_model;
        let widest = config.d_model.max(config.d_ff).max(inner);
        4 * (tokens * (2 * config.d_model + attention.max(feed_forward)) + config.num_heads * tokens * tokens) as u64
            + dense::panel_bytes(widest)
            + Attention::score_bytes(tokens)
    }

    fn norm(&self, x: &[f32], scale: &[f32], out: &mut [f32]) {
        let (width, epsilon) = (self.config.d_model, self.config.layer_norm_epsilon as f32);
        let rows = x.par_chunks_exact(width).zip(out.par_chunks_exact_mut(width));
        rows.for_each(|(row, out)| rows::rms_norm(row, epsilon, scale, out));
    }
}

#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) attention_norm: Vec<f32>,
    pub(crate) attention: SelfAttention,
    pub(crate) feed_forward_norm: Vec<f32>,
    pub(crate) feed_forward: FeedForward,
}

impl Block {
    fn load(config: &T5Config, layers: &dyn Layers, index: usize) -> Result<Self> {
        let norm = |layer| {
            layers.tensor_f32(&format!("encoder.block.{index}.layer.{layer}.layer_norm.weight"), &[config.d_model])
        };
        Ok(Self {
            attention_norm: norm(0)?,
            attention: SelfAttention::load(config, layers, &format!("encoder.block.{index}.layer.0.SelfAttention"))?,
            feed_forward_norm: norm(1)?,
            feed_forward: FeedForward::load(config, layers, &format!("encoder.block.{index}.layer.1.DenseReluDense"))?,
        })
    }
}

/// Multi-head attention with a position bias and, unlike the Transformer's, no scale on the scores.
#[derive(Debug)]
pub(crate) struct SelfAttention {
    pub(crate) q: Dense,
    pub(crate) k: Dense,
    pub(crate) v: Dense,
    pub(crate) o: Dense,
    pub(crate) heads: usize,
}

impl SelfAttention {
    fn load(config: &T5Config, layers: &dyn Layers, name: &str) -> Result<Self> {
        let inner = config.num_heads * config.d_kv;
        let inward = |part: &str| layers.matrix(&format!("{name}.{part}.weight"), inner, config.d_model);
        Ok(Self {
            q: inward("q")?,
            k: inward("k")?,
            v: inward("v")?,
            o: layers.matrix(&format!("{name}.o.weight"), config.d_model, inner)?,
            heads: config.num_heads,
        })
    }

    /// Adds to `x` what it makes of `normed`, both (tokens, d_model); `bias` is (heads, tokens, tokens).
    fn add_to(&self, x: &mut [f32], normed: &[f32], tokens: usize, bias: &[f32]) -> Result<()> {
        let (inner, width) = (self.q.rows(), self.o.rows());
        let mut qkv = vec![0.0; tokens * 3 * inner];
        let target = ViewMut::rows(&mut qkv, tokens, 3 * inner, 3 * inner);
        dense::project(View::rows(normed, tokens, width, width), &[&self.q, &self.k, &self.v], target)?;
        let part = |i: usize| Heads { data: &qkv[i * inner..], stride: 3 * inner };
        let (heads, keys) = (self.heads, tokens);
        let (q, k, v, mask) = (part(0), part(1), part(2), Mask::Bias(bias));
        let attention = Attention { q, k, v, keys, heads, width: inner / heads, scale: 1.0, mask };
        let mut attended = vec![0.0; tokens * inner];
        attention.forward(0, tokens, &mut attended, inner);
        add_product(x, &attended, inner, &self.o)
    }
}

/// Adds to `x` (rows, out) the product of `input` (rows, `columns`) with a weight.
fn add_product(x: &mut [f32], input: &[f32], columns: usize, weight: &Dense) -> Result<()> {
    let (count, width) = (input.len() / columns, weight.rows());
    let mut branch = vec![0.0; count * width];
    let target = ViewMut::rows(&mut branch, count, width, width);
    dense::project(View::rows(input, count, columns, columns), &[weight], target)?;
    rows::add_gated(x, &branch, &[], &[]);
    Ok(())
}

/// A learned bias for each head and distance; distances share buckets that widen logarithmically (section 2.1).
#[derive(Debug)]
pub(crate) struct PositionBias {
    /// (buckets, heads)
    pub(crate) table: Vec<f32>,
    pub(crate) heads: usize,
    pub(crate) max_distance: usize,
}

impl PositionBias {
    /// (heads, tokens, tokens): the bias on key j as seen from query i.
    fn of(&self, tokens: usize) -> Vec<f32> {
        let buckets = self.table.len() / self.heads;
        // By distance, from 1 - tokens to tokens - 1.
        let span = 2 * tokens - 1;
        let of = |i: usize| bucket(i as i64 - (tokens as i64 - 1), buckets, self.max_distance) as usize;
        let buckets_of: Vec<usize> = (0..span).map(of).collect();
        let mut out = vec![0.0; self.heads * tokens * tokens];
        for (row, out) in out.chunks_exact_mut(tokens).enumerate() {
            let (head, query) = (row / tokens, row % tokens);
            for (out, bucket) in out.iter_mut().zip(&buckets_of[tokens - 1 - query..]) {
                *out = self.table[bucket * self.heads + head];
            }
        }
        out
    }
}

/// The bucket of a distance. Half are for keys after the query; half of each side are single distances.
pub(crate) fn bucket(distance: i64, buckets: usize, max_distance: usize) -> u32 {
    let side = buckets / 2;
    let exact = side / 2;
    let start = if distance > 0 { side } else { 0 };
    let distance = distance.unsigned_abs() as usize;
    let within = if distance < exact {
        distance
    } else {
        // In f32, as the reference does: the result is cut to an integer.
        let (distance, exact_f) = (distance as f32, exact as f32);
        let span = (max_distance as f64 / f64::from(exact_f)).ln() as f32;
        let step = (distance / exact_f).ln() / span * (side - exact) as f32;
        (exact + step as usize).min(side - 1)
    };
    (start + within) as u32
}

#[derive(Debug)]
pub(crate) struct FeedForward {
    /// One layer in, or a gate and a layer.
    pub(crate) inward: Vec<Dense>,
    pub(crate) outward: Dense,
    pub(crate) activation: Activation,
}

impl FeedForward {
    fn load(config: &T5Config, layers: &dyn Layers, name: &str) -> Result<Self> {
        let (activation, names): (_, &[&str]) = match config.feed_forward_proj.as_str() {
            "relu" => (Activation::Relu, &["wi"]),
            "gated-gelu" => (Activation::GeluTanh, &["wi_0", "wi_1"]),
            "gated-silu" => (Activation::Silu, &["wi_0", "wi_1"]),
            other => {
                let text =
                    format!("T5 with `feed_forward_proj` `{other}` is not known; relu, gated-gelu and gated-silu are");
                return Err(Error::new(ErrorKind::Unsupported, text));
            }
        };
        let inward = |part: &&str| layers.matrix(&format!("{name}.{part}.weight"), config.d_ff, config.d_model);
        let outward = layers.matrix(&format!("{name}.wo.weight"), config.d_model, config.d_ff)?;
        Ok(Self { inward: names.iter().map(inward).collect::<Result<_>>()?, outward, activation })
    }

    /// Adds to `x` what it makes of `normed`, both (tokens, d_model).
    fn add_to(&self, x: &mut [f32], normed: &[f32], tokens: usize) -> Result<()> {
        let (width, inner) = (self.outward.rows(), self.outward.columns());
        let parts: Vec<&Dense> = self.inward.iter().collect();
        let stride = parts.len() * inner;
        let mut hidden = vec![0.0; tokens * stride];
        let target = ViewMut::rows(&mut hidden, tokens, stride, stride);
        dense::project(View::rows(normed, tokens, width, width), &parts, target)?;
        hidden.par_chunks_exact_mut(stride).for_each(|row| {
            let (gate, layer) = row.split_at_mut(inner);
            rows::activate(self.activation, gate, &[]);
            if !layer.is_empty() {
                rows::multiply(gate, layer);
            }
        });
        let mut branch = vec![0.0; tokens * width];
        let target = ViewMut::rows(&mut branch, tokens, width, width);
        dense::project(View::rows(&hidden, tokens, inner, stride), &[&self.outward], target)?;
        rows::add_gated(x, &branch, &[], &[]);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::bucket;

    #[test]
    fn buckets_are_the_papers() {
        // 32 buckets up to 128: distances 0 to 7 alone, then wider, 15 for all that is far; the other side from 16 on.
        let of = |distance| bucket(distance, 32, 128);
        assert_eq!([0, -1, -7, -8, -11, -12, -16, -127, -128, -5000].map(of), [0, 1, 7, 8, 8, 9, 10, 15, 15, 15]);
        assert_eq!([1, 7, 8, 128].map(of), [17, 23, 24, 31]);
    }
}
