//! One transformer block.

use aihost_plugin_api::Result;

use super::config::{Biases, DecoderConfig, Norms};
use super::experts::Mixture;
use super::norm;
use crate::nn::weights::{Bias, Projection, Weights, project};
use crate::ops::{Attention, Ops, Pass};

/// A block's weights.
pub(super) struct Layer<O: Ops> {
    attention_norms: NormPair<O>,
    query: Projection<O>,
    key: Projection<O>,
    value: Projection<O>,
    output: Projection<O>,
    /// The score of seeing nothing, of each head.
    sinks: Option<O::Vector>,
    /// Of the queries and the keys of each head.
    head_norms: Option<[O::Vector; 2]>,
    network_norms: NormPair<O>,
    network: Network<O>,
}

/// A norm before a part of a block, and one behind it.
struct NormPair<O: Ops> {
    before: O::Vector,
    behind: Option<O::Vector>,
}

/// What stands behind attention.
enum Network<O: Ops> {
    Dense { gate: Projection<O>, up: Projection<O>, down: Projection<O> },
    Experts(Mixture<O>),
}

/// What a rotary embedding turns the rows of a pass by.
pub(super) struct Angles<O: Ops> {
    pub(super) keys: O::Angles,
    /// Where they are others than those of the keys.
    pub(super) queries: Option<O::Angles>,
}

impl<O: Ops> Layer<O> {
    pub(super) fn open(ops: &O, weights: &mut Weights<'_, O>, c: &DecoderConfig, layer: usize) -> Result<Self> {
        let (names, hidden, width) = (c.names, c.hidden, c.heads * c.head_width);
        let prefix = format!("{}.{layer}", names.layers);
        let [query, key, value] = open_attention(weights, c, &prefix)?;
        let output = format!("{prefix}.{}", names.attention[3]);
        let output = weights.projection(&output, [hidden, width], 0..hidden, other_bias(c))?;
        let mut head_norm = |part: &str| norm(ops, weights, c, &format!("{prefix}.{part}.weight"), c.head_width);
        let head_norms = match c.has_head_norms {
            true => Some([head_norm(names.head_norms[0])?, head_norm(names.head_norms[1])?]),
            false => None,
        };
        let sinks = format!("{prefix}.{}.weight", names.sinks);
        let sinks = if c.has_sinks { Some(weights.vector(&sinks, c.heads)?) } else { None };
        let network = match c.experts.filter(|_| c.layers[layer].has_experts) {
            Some(experts) => Network::Experts(Mixture::open(weights, c, &prefix, experts)?),
            None => Network::open_dense(weights, c, &prefix)?,
        };
        let attention_norms = NormPair::open(ops, weights, c, &prefix, 0)?;
        let network_norms = NormPair::open(ops, weights, c, &prefix, 1)?;
        Ok(Self { attention_norms, query, key, value, output, sinks, head_norms, network_norms, network })
    }

    /// Adds what attention of the rows of a pass gives to `x`.
    #[expect(clippy::too_many_arguments, reason = "a pass, its place in the model, and what it reads and writes")]
    pub(super) fn attend(
        &self,
        ops: &O,
        c: &DecoderConfig,
        layer: usize,
        x: &mut O::Tensor,
        angles: Option<&Angles<O>>,
        pass: &Pass<'_>,
        cache: &mut O::Cache,
    ) -> Result<()> {
        let normed = ops.rms_norm(x, &self.attention_norms.before, c.norm_epsilon)?;
        let [mut queries, mut keys, values] = project(ops, &normed, [&self.query, &self.key, &self.value])?;
        if let Some([of_queries, of_keys]) = &self.head_norms {
            queries = ops.rms_norm(&queries, of_queries, c.norm_epsilon)?;
            keys = ops.rms_norm(&keys, of_keys, c.norm_epsilon)?;
        }
        if let Some(angles) = angles {
            let of_queries = angles.queries.as_ref().unwrap_or(&angles.keys);
            ops.rotate(&mut queries, c.head_width, of_queries, c.rope_order)?;
            ops.rotate(&mut keys, c.head_width, &angles.keys, c.rope_order)?;
        }
        let attention = Attention {
            layer,
            queries: &queries,
            keys: &keys,
            values: &values,
            spans: &pass.spans,
            scale: c.attention_scale,
            cap: c.attention_cap,
            window: c.layers[layer].window,
            sinks: self.sinks.as_ref(),
        };
        let attended = ops.attention(attention, cache)?;
        let [delta] = project(ops, &attended, [&self.output])?;
        self.attention_norms.add(ops, c, x, delta)
    }

    /// Adds what the feed-forward network gives to `x`.
    pub(super) fn feed_forward(&self, ops: &O, c: &DecoderConfig, x: &mut O::Tensor) -> Result<()> {
        let normed = ops.rms_norm(x, &self.network_norms.before, c.norm_epsilon)?;
        let delta = match &self.network {
            Network::Dense { gate, up, down } => {
                let [gate, up] = project(ops, &normed, [gate, up])?;
                let [delta] = project(ops, &ops.gated(gate, &up, c.activation)?, [down])?;
                delta
            }
            Network::Experts(mixture) => mixture.forward(ops, &normed, c.activation)?,
        };
        self.network_norms.add(ops, c, x, delta)
    }
}

impl<O: Ops> NormPair<O> {
    /// Those of a block's first or second part.
    fn open(ops: &O, weights: &mut Weights<'_, O>, c: &DecoderConfig, prefix: &str, part: usize) -> Result<Self> {
        let mut norm = |name: &str| norm(ops, weights, c, &format!("{prefix}.{name}.weight"), c.hidden);
        let before = norm(c.names.norms_before[part])?;
        let behind = match c.norms {
            Norms::Before => None,
            Norms::Around => Some(norm(c.names.norms_behind[part])?),
        };
        Ok(Self { before, behind })
    }

    /// `x += delta`, as the block has it.
    fn add(&self, ops: &O, c: &DecoderConfig, x: &mut O::Tensor, delta: O::Tensor) -> Result<()> {
        let mut delta = match &self.behind {
            Some(norm) => ops.rms_norm(&delta, norm, c.norm_epsilon)?,
            None => delta,
        };
        ops.scale(&mut delta, c.residual_scale)?;
        ops.add(x, &delta)
    }
}

impl<O: Ops> Network<O> {
    fn open_dense(weights: &mut Weights<'_, O>, c: &DecoderConfig, prefix: &str) -> Result<Self> {
        let (names, inner) = (c.names, c.feed_forward);
        let [gate, up, down] = names.feed_forward;
        let mut rows = |name: &str, of: usize, at: usize| {
            weights.projection(
                &format!("{prefix}.{name}"),
                [of * inner, c.hidden],
                at * inner..(at + 1) * inner,
                other_bias(c),
            )
        };
        let (gate, up) = if c.is_fused {
            (rows(names.fused_feed_forward, 2, 0)?, rows(names.fused_feed_forward, 2, 1)?)
        } else {
            (rows(gate, 1, 0)?, rows(up, 1, 0)?)
        };
        let down = weights.projection(&format!("{prefix}.{down}"), [c.hidden, inner], 0..c.hidden, other_bias(c))?;
        Ok(Self::Dense { gate, up, down })
    }
}

/// Queries, keys and values.
fn open_attention<O: Ops>(weights: &mut Weights<'_, O>, c: &DecoderConfig, prefix: &str) -> Result<[Projection<O>; 3]> {
    let bias = if c.biases == Biases::QueryKeyValue { Bias::Needed } else { other_bias(c) };
    let sizes = [c.heads, c.kv_heads, c.kv_heads].map(|heads| heads * c.head_width);
    let starts = [0, sizes[0], sizes[0] + sizes[1]];
    let all = starts[2] + sizes[2];
    let mut part = |i: usize| {
        let (name, rows, size) = match c.is_fused {
            true => (c.names.fused_attention, starts[i]..starts[i] + sizes[i], all),
            false => (c.names.attention[i], 0..sizes[i], sizes[i]),
        };
        weights.projection(&format!("{prefix}.{name}"), [size, c.hidden], rows, bias)
    };
    Ok([part(0)?, part(1)?, part(2)?])
}

/// Whether products other than queries, keys and values have biases.
fn other_bias(c: &DecoderConfig) -> Bias {
    if c.biases == Biases::AsStored { Bias::AsStored } else { Bias::None }
}
