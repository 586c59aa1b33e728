//! What layers are told of tokens besides the residual stream (Gemma 3n): of each token by a table, and by its embedding.

use aihost_plugin_api::Result;

use super::config::DecoderConfig;
use super::norm;
use crate::nn::weights::{Bias, Projection, Weights, project};
use crate::ops::Ops;

/// What all layers are told, side by side.
pub(super) struct LayerInputs<O: Ops> {
    table: O::Table,
    projection: Projection<O>,
    /// Of each layer's part.
    norm: O::Vector,
    width: usize,
}

impl<O: Ops> LayerInputs<O> {
    pub(super) fn open(ops: &O, weights: &mut Weights<'_, O>, c: &DecoderConfig, width: usize) -> Result<Self> {
        let (names, all) = (c.names.layer_inputs, width * (c.layers.len() + c.unused_layers));
        Ok(Self {
            table: weights.table(names.table, c.vocabulary, all)?,
            projection: weights.projection(names.projection, [all, c.hidden], 0..all, Bias::None)?,
            norm: norm(ops, weights, c, names.norm, width)?,
            width,
        })
    }

    /// `[rows, layers * width]`, of embeddings `[rows, hidden]`.
    pub(super) fn forward(&self, ops: &O, c: &DecoderConfig, tokens: &[u32], x: &O::Tensor) -> Result<O::Tensor> {
        let [mut by_embedding] = project(ops, x, [&self.projection])?;
        ops.scale(&mut by_embedding, 1.0 / (c.hidden as f32).sqrt())?;
        let mut told = ops.rms_norm(&by_embedding, &self.norm, c.norm_epsilon)?;
        let mut by_token = ops.embedding(&self.table, tokens)?;
        ops.scale(&mut by_token, (self.width as f32).sqrt())?;
        ops.add(&mut told, &by_token)?;
        // Two parts of one size each.
        ops.scale(&mut told, std::f32::consts::FRAC_1_SQRT_2)?;
        Ok(told)
    }

    /// A layer's part.
    pub(super) fn of_layer(&self, ops: &O, told: &O::Tensor, layer: usize) -> Result<O::Tensor> {
        ops.columns(told, layer * self.width..(layer + 1) * self.width)
    }
}
