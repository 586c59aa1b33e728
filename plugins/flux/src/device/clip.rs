//! CLIP's text encoder in tensors: the arithmetic of [`crate::clip`]. Branches are of the place's type, states f32.

use aihost_engine::candle::Result;
use aihost_engine::cpu::rows::Activation;
use aihost_support::dense::Dense;
use aihost_support::device::{Linear, Place, UploadOptions, activate, attention, to_host_f32};
use candle_core::{DType, Tensor};

use super::linear;
use crate::clip::{self, ClipConfig};

/// A loaded encoder.
#[derive(Debug)]
pub(super) struct Clip {
    config: ClipConfig,
    place: Place,
    /// The token embedding, which stays in its file: a text uses few of its rows.
    tokens: Dense,
    /// (positions, hidden)
    positions: Tensor,
    blocks: Vec<Block>,
    last: Norm,
}

#[derive(Debug)]
struct Norm {
    scale: Tensor,
    shift: Tensor,
    epsilon: f32,
}

#[derive(Debug)]
struct Block {
    attention_norm: Norm,
    query_key_value: Linear,
    out: Linear,
    feed_forward_norm: Norm,
    up: Linear,
    down: Linear,
}

impl Norm {
    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        Ok(candle_nn::ops::layer_norm(x, &self.scale, &self.shift, self.epsilon)?)
    }
}

impl Clip {
    pub(super) fn new(clip: &clip::Clip, options: UploadOptions<'_>) -> Result<Self> {
        let place = options.place;
        let config = clip.config.clone();
        let states = place.computing(DType::F32);
        let norm = |norm: &clip::Norm| -> Result<Norm> {
            let tensor = |values: &[f32]| states.tensor(values, config.hidden);
            Ok(Norm { scale: tensor(&norm.scale)?, shift: tensor(&norm.shift)?, epsilon: config.epsilon })
        };
        let block = |block: &clip::Block| -> Result<Block> {
            Ok(Block {
                attention_norm: norm(&block.attention_norm)?,
                query_key_value: linear(&block.query_key_value, options)?,
                out: linear(&block.out, options)?,
                feed_forward_norm: norm(&block.feed_forward_norm)?,
                up: linear(&block.up, options)?,
                down: linear(&block.down, options)?,
            })
        };
        Ok(Self {
            tokens: clip.tokens.clone(),
            positions: states.tensor(&clip.positions, (config.positions, config.hidden))?,
            blocks: clip.blocks.iter().map(block).collect::<Result<_>>()?,
            last: norm(&clip.last)?,
            place: place.clone(),
            config,
        })
    }

    /// The state (hidden) of a text of at most `positions` tokens.
    pub(super) fn encode(&self, tokens: &[u32]) -> Result<Vec<f32>> {
        let ClipConfig { hidden, heads, .. } = self.config;
        let count = tokens.len();
        let mut x =
            (self.place.computing(DType::F32).embed(&self.tokens, tokens)? + self.positions.narrow(0, 0, count)?)?;
        // A token sees itself and those before it.
        let mask = (0..count * count).map(|i| if i % count > i / count { f32::NEG_INFINITY } else { 0.0 });
        let mask = Tensor::from_iter(mask, &self.place.device)?.reshape((1, count, count))?;
        let wide = |branch: Tensor| branch.to_dtype(DType::F32);
        let narrow = |x: Tensor| x.to_dtype(self.place.dtype);
        let scale = 1.0 / ((hidden / heads) as f64).sqrt();
        for block in &self.blocks {
            let qkv = block.query_key_value.forward(&narrow(block.attention_norm.apply(&x)?)?)?;
            let parts = qkv.reshape((count, 3, heads, hidden / heads))?;
            let part = |i: usize| parts.narrow(1, i, 1)?.squeeze(1)?.transpose(0, 1)?.contiguous();
            let attended = attention(&(part(0)? * scale)?, &part(1)?, &part(2)?, Some(&mask))?;
            x = (x + wide(block.out.forward(&attended)?)?)?;
            let inner = block.up.forward(&narrow(block.feed_forward_norm.apply(&x)?)?)?;
            x = (x + wide(block.down.forward(&activate(Activation::QuickGelu, inner)?)?)?)?;
        }
        let end = x.narrow(0, self.config.end_of(tokens), 1)?;
        to_host_f32(&self.last.apply(&end)?)
    }
}
