//! What a block without keys and values begins with: a gated delta net (Yang et al. 2024), or a short convolution (LFM2).

use aihost_plugin_api::Result;

use super::config::{DecoderConfig, DeltaNet};
use super::layer::Step;
use crate::nn::weights::{Bias, Projection, Weights, project};
use crate::ops::{Activation, Convolution, DeltaRule, Ops};

/// The weights of a gated delta net.
pub(super) struct GatedDeltaNet<O: Ops> {
    shape: DeltaNet,
    /// Queries, keys and values.
    mixed: Projection<O>,
    gate: Projection<O>,
    beta: Projection<O>,
    alpha: Projection<O>,
    kernel: O::Vector,
    /// Added to alpha, of each head.
    bias: Vec<f32>,
    /// Of each head, below 0.
    rate: Vec<f32>,
    /// Of the output of each head.
    norm: O::Vector,
    output: Projection<O>,
}

impl<O: Ops> GatedDeltaNet<O> {
    pub(super) fn open(weights: &mut Weights<'_, O>, c: &DecoderConfig, prefix: &str, shape: DeltaNet) -> Result<Self> {
        let (names, hidden) = (c.names.delta_net, c.hidden);
        let (channels, values) = (shape.channels(), shape.heads * shape.value_width);
        let mut part = |name: &str, rows: usize, columns: usize| {
            weights.projection(&format!("{prefix}.{name}"), [rows, columns], 0..rows, Bias::None)
        };
        let mixed = part(names.mixed, channels, hidden)?;
        let gate = part(names.gate, values, hidden)?;
        let beta = part(names.beta, shape.heads, hidden)?;
        let alpha = part(names.alpha, shape.heads, hidden)?;
        let output = part(names.output, hidden, values)?;
        let mut rate = weights.values(&format!("{prefix}.{}", names.rate), shape.heads)?;
        if names.rate_is_log {
            rate.iter_mut().for_each(|rate| *rate = -rate.exp());
        }
        Ok(Self {
            shape,
            mixed,
            gate,
            beta,
            alpha,
            kernel: weights.kernel(&format!("{prefix}.{}", names.kernel), channels, shape.taps + 1)?,
            bias: weights.values(&format!("{prefix}.{}", names.bias), shape.heads)?,
            rate,
            norm: weights.vector(&format!("{prefix}.{}.weight", names.norm), shape.value_width)?,
            output,
        })
    }

    /// `[rows, hidden]`
    pub(super) fn forward(&self, step: &mut Step<'_, O>, x: &O::Tensor) -> Result<O::Tensor> {
        let (ops, layer, spans) = (step.ops, step.place.layer, step.pass.spans.as_slice());
        let [mixed, gate, beta, alpha] = project(ops, x, [&self.mixed, &self.gate, &self.beta, &self.alpha])?;
        let states = &mut step.cache.states;
        let mixed = ops.convolve(Convolution { layer, x: &mixed, kernel: &self.kernel, spans }, states)?;
        let rule = DeltaRule {
            layer,
            mixed: &ops.activate(mixed, Activation::Silu)?,
            key_heads: self.shape.key_heads,
            is_grouped: self.shape.is_grouped,
            alpha: &alpha,
            beta: &ops.activate(beta, Activation::Sigmoid)?,
            bias: &self.bias,
            rate: &self.rate,
            spans,
        };
        let found = ops.delta_rule(rule, states)?;
        let found = ops.rms_norm(&found, &self.norm, step.config.norm_epsilon)?;
        let [output] = project(ops, &ops.gated(gate, &found, Activation::Silu)?, [&self.output])?;
        Ok(output)
    }
}

/// The weights of a short convolution.
pub(super) struct ShortConvolution<O: Ops> {
    /// What the inputs are gated by, what the outputs are gated by, and the inputs.
    parts: [Projection<O>; 3],
    kernel: O::Vector,
    output: Projection<O>,
}

impl<O: Ops> ShortConvolution<O> {
    pub(super) fn open(weights: &mut Weights<'_, O>, c: &DecoderConfig, prefix: &str, taps: usize) -> Result<Self> {
        let ([input, kernel, output], hidden) = (c.names.short_convolution, c.hidden);
        let mut part = |i: usize| {
            let rows = i * hidden..(i + 1) * hidden;
            weights.projection(&format!("{prefix}.{input}"), [3 * hidden, hidden], rows, Bias::None)
        };
        Ok(Self {
            parts: [part(0)?, part(1)?, part(2)?],
            kernel: weights.kernel(&format!("{prefix}.{kernel}"), hidden, taps + 1)?,
            output: weights.projection(&format!("{prefix}.{output}"), [hidden, hidden], 0..hidden, Bias::None)?,
        })
    }

    /// `[rows, hidden]`
    pub(super) fn forward(&self, step: &mut Step<'_, O>, x: &O::Tensor) -> Result<O::Tensor> {
        let ops = step.ops;
        let [before, behind, x] = project(ops, x, self.parts.each_ref())?;
        let x = ops.gated(before, &x, Activation::Identity)?;
        let pass = Convolution { layer: step.place.layer, x: &x, kernel: &self.kernel, spans: &step.pass.spans };
        let convolved = ops.convolve(pass, &mut step.cache.states)?;
        let [output] = project(ops, &ops.gated(behind, &convolved, Activation::Identity)?, [&self.output])?;
        Ok(output)
    }
}
