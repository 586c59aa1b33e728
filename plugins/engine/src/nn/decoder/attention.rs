//! Attention, as a block begins with it.

use aihost_plugin_api::Result;

use super::config::{Biases, DecoderConfig};
use super::layer::{Step, other_bias};
use super::norm;
use crate::nn::weights::{Bias, Projection, Weights, project};
use crate::ops::{Activation, Ops};

/// Its weights.
pub(super) struct SelfAttention<O: Ops> {
    /// Of each head a query, and behind it its gate if there are any.
    query: Projection<O>,
    key: Projection<O>,
    value: Projection<O>,
    output: Projection<O>,
    /// The score of seeing nothing, of each head.
    sinks: Option<O::Vector>,
    /// Of the queries and the keys of each head.
    head_norms: Option<[O::Vector; 2]>,
}

/// What a rotary embedding turns the rows of a pass by.
pub(super) struct Angles<O: Ops> {
    pub(super) keys: O::Angles,
    /// Where they are others than those of the keys.
    pub(super) queries: Option<O::Angles>,
}

impl<O: Ops> SelfAttention<O> {
    pub(super) fn open(ops: &O, weights: &mut Weights<'_, O>, c: &DecoderConfig, prefix: &str) -> Result<Self> {
        let (names, hidden, width) = (c.names, c.hidden, c.heads * c.head_width);
        let [query, key, value] = open_parts(weights, c, prefix)?;
        let output = format!("{prefix}.{}", names.attention[3]);
        let output = weights.projection(&output, [hidden, width], 0..hidden, other_bias(c))?;
        let mut head_norm = |part: &str| norm(ops, weights, c, &format!("{prefix}.{part}.weight"), c.head_width);
        let head_norms = match c.has_head_norms {
            true => Some([head_norm(names.head_norms[0])?, head_norm(names.head_norms[1])?]),
            false => None,
        };
        let sinks = format!("{prefix}.{}.weight", names.sinks);
        let sinks = if c.has_sinks { Some(weights.vector(&sinks, c.heads)?) } else { None };
        Ok(Self { query, key, value, output, sinks, head_norms })
    }

    /// What the rows of a pass see, `[rows, hidden]`.
    pub(super) fn forward(&self, step: &mut Step<'_, O>, x: &O::Tensor) -> Result<O::Tensor> {
        let (ops, c) = (step.ops, step.config);
        let [mut queries, mut keys, values] = project(ops, x, [&self.query, &self.key, &self.value])?;
        let mut gates = None;
        if c.has_query_gates {
            let [first, second] = ops.halves(&queries, c.head_width)?;
            (queries, gates) = (first, Some(second));
        }
        if let Some([of_queries, of_keys]) = &self.head_norms {
            queries = ops.rms_norm(&queries, of_queries, c.norm_epsilon)?;
            keys = ops.rms_norm(&keys, of_keys, c.norm_epsilon)?;
        }
        if let Some(angles) = step.angles {
            let of_queries = angles.queries.as_ref().unwrap_or(&angles.keys);
            ops.rotate(&mut queries, c.head_width, of_queries, c.rope_order)?;
            ops.rotate(&mut keys, c.head_width, &angles.keys, c.rope_order)?;
        }
        let attention = crate::ops::Attention {
            layer: step.place,
            queries: &queries,
            keys: &keys,
            values: &values,
            spans: &step.pass.spans,
            scale: c.attention_scale,
            cap: c.attention_cap,
            window: step.layer.window,
            sinks: self.sinks.as_ref(),
        };
        let mut seen = ops.attention(attention, &mut step.cache.keys)?;
        if let Some(gates) = gates {
            seen = ops.gated(gates, &seen, Activation::Sigmoid)?;
        }
        let [output] = project(ops, &seen, [&self.output])?;
        Ok(output)
    }
}

/// Queries, keys and values.
fn open_parts<O: Ops>(weights: &mut Weights<'_, O>, c: &DecoderConfig, prefix: &str) -> Result<[Projection<O>; 3]> {
    let bias = if c.biases == Biases::QueryKeyValue { Bias::Needed } else { other_bias(c) };
    let queries = if c.has_query_gates { 2 * c.heads } else { c.heads };
    let sizes = [queries, c.kv_heads, c.kv_heads].map(|heads| heads * c.head_width);
    let starts = [0, sizes[0], sizes[0] + sizes[1]];
    let all = starts[2] + sizes[2];
    let mut part = |i: usize| {
        let (name, rows, size) = match c.has_fused_attention {
            true => (c.names.fused_attention, starts[i]..starts[i] + sizes[i], all),
            false => (c.names.attention[i], 0..sizes[i], sizes[i]),
        };
        weights.projection(&format!("{prefix}.{name}"), [size, c.hidden], rows, bias)
    };
    Ok([part(0)?, part(1)?, part(2)?])
}
