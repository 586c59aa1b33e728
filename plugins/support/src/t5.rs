//! The encoder of T5 (Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
//! Transformer"): text tokens in, one state per token out.
//!
//! Knows no tokenizer and no task. Serves T5 1.0 (ReLU) and T5 1.1 (gated GELU, Shazeer 2020), on any device and type.

use aihost_plugin_api::{Error, ErrorKind, Result};
use candle_core::{D, DType, Module, Tensor};
use serde::Deserialize;

use crate::weights::Scope;

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
    /// Blocks.
    pub num_layers: usize,
    /// Attention heads.
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

/// A loaded encoder. Its type and device are those of its weights.
#[derive(Debug)]
pub struct T5Encoder {
    embedding: Tensor,
    blocks: Vec<Block>,
    bias: PositionBias,
    norm: RmsNorm,
}

impl T5Encoder {
    /// Loads from `scope`, below which are `shared` (or `encoder.embed_tokens`) and `encoder`.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape, or the configuration names an activation that T5 does not have.
    pub fn load(config: &T5Config, scope: &Scope<'_>) -> Result<Self> {
        let encoder = scope.at("encoder");
        let table = (config.vocab_size, config.d_model);
        let embedding = match scope.has("shared.weight") {
            true => scope.get("shared.weight", table)?,
            false => encoder.get("embed_tokens.weight", table)?,
        };
        let blocks =
            (0..config.num_layers).map(|i| Block::load(config, &encoder.at("block").at(i))).collect::<Result<_>>()?;
        // The first block's table serves all blocks.
        let first = encoder.at("block.0.layer.0.SelfAttention.relative_attention_bias");
        Ok(Self {
            embedding,
            blocks,
            bias: PositionBias {
                table: first.get("weight", (config.relative_attention_num_buckets, config.num_heads))?,
                max_distance: config.relative_attention_max_distance,
            },
            norm: RmsNorm::load(config, &encoder.at("final_layer_norm"))?,
        })
    }

    /// States `(tokens, d_model)` of one text, in the type of the weights.
    ///
    /// # Errors
    /// If the text is empty or a token is not in the vocabulary.
    pub fn encode(&self, tokens: &[u32]) -> Result<Tensor> {
        let vocabulary = self.embedding.dim(0).map_err(Error::internal)?;
        if tokens.is_empty() || tokens.iter().any(|token| *token as usize >= vocabulary) {
            return Err(Error::internal(format!("the text is empty or has a token past {vocabulary}")));
        }
        self.forward(tokens).map_err(Error::internal)
    }

    fn forward(&self, tokens: &[u32]) -> candle_core::Result<Tensor> {
        let ids = Tensor::new(tokens, self.embedding.device())?;
        let mut x = self.embedding.index_select(&ids, 0)?;
        let bias = self.bias.of(tokens.len())?;
        for block in &self.blocks {
            x = (&x + block.attention.forward(&block.attention_norm.forward(&x)?, &bias)?)?;
            x = (&x + block.feed_forward.forward(&block.feed_forward_norm.forward(&x)?)?)?;
        }
        self.norm.forward(&x)
    }
}

#[derive(Debug)]
struct Block {
    attention_norm: RmsNorm,
    attention: Attention,
    feed_forward_norm: RmsNorm,
    feed_forward: FeedForward,
}

impl Block {
    fn load(config: &T5Config, scope: &Scope<'_>) -> Result<Self> {
        let (attention, feed_forward) = (scope.at("layer.0"), scope.at("layer.1"));
        Ok(Self {
            attention_norm: RmsNorm::load(config, &attention.at("layer_norm"))?,
            attention: Attention::load(config, &attention.at("SelfAttention"))?,
            feed_forward_norm: RmsNorm::load(config, &feed_forward.at("layer_norm"))?,
            feed_forward: FeedForward::load(config, &feed_forward.at("DenseReluDense"))?,
        })
    }
}

/// Scales by the root of the mean square, without subtracting the mean (Zhang and Sennrich 2019); in f32 inside.
#[derive(Debug)]
struct RmsNorm {
    weight: Tensor,
    epsilon: f64,
}

impl RmsNorm {
    fn load(config: &T5Config, scope: &Scope<'_>) -> Result<Self> {
        Ok(Self { weight: scope.get("weight", config.d_model)?, epsilon: config.layer_norm_epsilon })
    }
}

impl Module for RmsNorm {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let wide = x.to_dtype(DType::F32)?;
        let scale = (wide.sqr()?.mean_keepdim(D::Minus1)? + self.epsilon)?.sqrt()?;
        wide.broadcast_div(&scale)?.to_dtype(x.dtype())?.broadcast_mul(&self.weight)
    }
}

/// Multi-head attention with a position bias and, unlike the Transformer's, no scale on the scores.
#[derive(Debug)]
struct Attention {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    heads: usize,
}

impl Attention {
    fn load(config: &T5Config, scope: &Scope<'_>) -> Result<Self> {
        let inner = config.num_heads * config.d_kv;
        let inward = |name: &str| scope.get(name, (inner, config.d_model));
        Ok(Self {
            q: inward("q.weight")?,
            k: inward("k.weight")?,
            v: inward("v.weight")?,
            o: scope.get("o.weight", (config.d_model, inner))?,
            heads: config.num_heads,
        })
    }

    /// `x` (tokens, d_model), `bias` (heads, tokens, tokens).
    fn forward(&self, x: &Tensor, bias: &Tensor) -> candle_core::Result<Tensor> {
        let tokens = x.dim(0)?;
        let heads =
            |weight: &Tensor| linear(x, weight)?.reshape((tokens, self.heads, ()))?.transpose(0, 1)?.contiguous();
        let (q, k, v) = (heads(&self.q)?, heads(&self.k)?, heads(&self.v)?);
        let scores = (q.matmul(&k.t()?)? + bias)?.to_dtype(DType::F32)?;
        let scores = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
        let probabilities = scores.broadcast_div(&scores.sum_keepdim(D::Minus1)?)?.to_dtype(x.dtype())?;
        let mixed = probabilities.matmul(&v)?.transpose(0, 1)?.contiguous()?.reshape((tokens, ()))?;
        linear(&mixed, &self.o)
    }
}

/// A learned bias for each head and distance; distances share buckets that widen logarithmically (section 2.1).
#[derive(Debug)]
struct PositionBias {
    /// (buckets, heads)
    table: Tensor,
    max_distance: usize,
}

impl PositionBias {
    /// (heads, tokens, tokens): the bias on key j as seen from query i.
    fn of(&self, tokens: usize) -> candle_core::Result<Tensor> {
        let (buckets, heads) = self.table.dims2()?;
        let index: Vec<u32> = (0..tokens)
            .flat_map(|query| (0..tokens).map(move |key| (query, key)))
            .map(|(query, key)| bucket(key as i64 - query as i64, buckets, self.max_distance))
            .collect();
        let rows = self.table.index_select(&Tensor::new(index, self.table.device())?, 0)?;
        rows.reshape((tokens, tokens, heads))?.permute((2, 0, 1))?.contiguous()
    }
}

/// The bucket of a distance. Half are for keys after the query; half of each side are single distances.
fn bucket(distance: i64, buckets: usize, max_distance: usize) -> u32 {
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
struct FeedForward {
    /// One layer in, or a gate and a layer.
    inward: Vec<Tensor>,
    outward: Tensor,
    activation: Activation,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Activation {
    Relu,
    /// The tanh approximation.
    Gelu,
    Silu,
}

impl FeedForward {
    fn load(config: &T5Config, scope: &Scope<'_>) -> Result<Self> {
        let (activation, names): (_, &[&str]) = match config.feed_forward_proj.as_str() {
            "relu" => (Activation::Relu, &["wi.weight"]),
            "gated-gelu" => (Activation::Gelu, &["wi_0.weight", "wi_1.weight"]),
            "gated-silu" => (Activation::Silu, &["wi_0.weight", "wi_1.weight"]),
            other => {
                let text =
                    format!("T5 with `feed_forward_proj` `{other}` is not known; relu, gated-gelu and gated-silu are");
                return Err(Error::new(ErrorKind::Unsupported, text));
            }
        };
        let inward = names.iter().map(|name| scope.get(name, (config.d_ff, config.d_model))).collect::<Result<_>>()?;
        Ok(Self { inward, outward: scope.get("wo.weight", (config.d_model, config.d_ff))?, activation })
    }

    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let mut hidden = linear(x, &self.inward[0])?;
        hidden = match self.activation {
            Activation::Relu => hidden.relu()?,
            Activation::Gelu => hidden.gelu()?,
            Activation::Silu => hidden.silu()?,
        };
        if let Some(second) = self.inward.get(1) {
            hidden = (hidden * linear(x, second)?)?;
        }
        linear(&hidden, &self.outward)
    }
}

/// `x` (tokens, in) times `weight` (out, in) transposed.
fn linear(x: &Tensor, weight: &Tensor) -> candle_core::Result<Tensor> {
    x.matmul(&weight.t()?)
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
