//! Attention, as a block begins with it.

use aihost_plugin_api::Result;

use super::config::{Biases, DecoderConfig, LayerConfig};
use super::layer::{Step, other_bias};
use super::norm;
use crate::nn::weights::{Bias, Projection, Weights, project};
use crate::ops::{Activation, Attention, Ops, SelfAttention};

/// Its weights.
pub(super) struct AttentionLayer<O: Ops> {
    /// Of each head a query, and behind it its gate if there are any.
    query: Projection<O>,
    /// Keys and values, unless those of an earlier layer are seen.
    keys: Option<Keys<O>>,
    output: Projection<O>,
    /// The score of seeing nothing, of each head.
    sinks: Option<O::Vector>,
    /// Of the queries of each head.
    query_norm: Option<O::Vector>,
}

/// What keys and values come from.
struct Keys<O: Ops> {
    key: Projection<O>,
    /// Where it is absent, values are keys before their norm.
    value: Option<Projection<O>>,
    /// Of the keys of each head.
    key_norm: Option<O::Vector>,
    /// Of the values of each head.
    value_norm: Option<O::Vector>,
}

/// What the activations of a pass become before they see each other.
struct Projected<T> {
    queries: T,
    /// Keys and values, of a layer that has its own.
    added: Option<[T; 2]>,
}

/// What a rotary embedding turns the rows of a pass by.
pub(super) struct Angles<O: Ops> {
    pub(super) keys: O::Angles,
    /// Where they are others than those of the keys.
    pub(super) queries: Option<O::Angles>,
}

impl<O: Ops> AttentionLayer<O> {
    pub(super) fn open(
        ops: &O,
        weights: &mut Weights<'_, O>,
        c: &DecoderConfig,
        prefix: &str,
        layer: LayerConfig,
    ) -> Result<Self> {
        let (names, hidden, width) = (c.names, c.hidden, c.heads * layer.head_width);
        let query = open_part(weights, c, prefix, layer, 0)?;
        let head_norm = |weights: &mut Weights<'_, O>, part: usize| {
            let name = format!("{prefix}.{}.weight", names.head_norms[part]);
            c.has_head_norms.then(|| norm(ops, weights, c, &name, layer.head_width)).transpose()
        };
        let query_norm = head_norm(weights, 0)?;
        let keys = if layer.keys_of.is_some() {
            // Some checkpoints have them all the same.
            let parts = [names.attention[1], names.attention[2], names.head_norms[1]];
            parts.into_iter().for_each(|part| weights.leave_out(format!("{prefix}.{part}.weight")));
            None
        } else {
            let has_values = !c.has_value_norms || weights.has(&format!("{prefix}.{}.weight", names.attention[2]));
            Some(Keys {
                key: open_part(weights, c, prefix, layer, 1)?,
                value: has_values.then(|| open_part(weights, c, prefix, layer, 2)).transpose()?,
                key_norm: head_norm(weights, 1)?,
                value_norm: c.has_value_norms.then(|| ops.vector(vec![1.0; layer.head_width])).transpose()?,
            })
        };
        let output = format!("{prefix}.{}", names.attention[3]);
        let output = weights.projection(&output, [hidden, width], 0..hidden, other_bias(c))?;
        let sinks = format!("{prefix}.{}.weight", names.sinks);
        let sinks = if c.has_sinks { Some(weights.vector(&sinks, c.heads)?) } else { None };
        Ok(Self { query, keys, output, sinks, query_norm })
    }

    /// What the rows of a pass see, `[rows, hidden]`.
    pub(super) fn forward(&self, step: &mut Step<'_, O>, x: &O::Tensor) -> Result<O::Tensor> {
        let (ops, c, layer) = (step.ops, step.config, step.layer);
        let Projected { mut queries, added } = self.projected(step, x)?;
        let mut gates = None;
        if c.has_query_gates {
            let [first, second] = ops.halves(&queries, layer.head_width)?;
            (queries, gates) = (first, Some(second));
        }
        if let Some(norm) = &self.query_norm {
            queries = ops.rms_norm(&queries, norm, c.norm_epsilon)?;
        }
        if let Some(angles) = step.angles {
            let angles = angles.queries.as_ref().unwrap_or(&angles.keys);
            ops.rotate(&mut queries, layer.head_width, angles, c.rope_order)?;
        }
        let mut seen = self.seen(step, &queries, added.as_ref())?;
        if let Some(gates) = gates {
            seen = ops.gated(gates, &seen, Activation::Sigmoid)?;
        }
        let [output] = project(ops, &seen, [&self.output])?;
        Ok(output)
    }

    /// What queries see, by the cache or in their own sequences.
    fn seen(&self, step: &mut Step<'_, O>, queries: &O::Tensor, added: Option<&[O::Tensor; 2]>) -> Result<O::Tensor> {
        let (ops, c, layer, place) = (step.ops, step.config, step.layer, step.place);
        let spans = step.pass.spans.as_slice();
        let added = added.map(|added| added.each_ref());
        if let Some([keys, values]) = added.filter(|_| c.sees_all) {
            let lengths: Vec<usize> = spans.iter().map(|span| span.rows).collect();
            return ops.self_attention(SelfAttention {
                queries,
                keys,
                values,
                lengths: &lengths,
                heads: c.heads,
                kv_heads: layer.kv_heads,
                scale: c.attention_scale,
                // A window is of both sides.
                reach: layer.window.map(|window| window / 2),
            });
        }
        let attention = Attention {
            layer: place.layer,
            queries,
            added,
            spans,
            scale: c.attention_scale,
            cap: c.attention_cap,
            window: layer.window,
            sinks: self.sinks.as_ref(),
        };
        ops.attention(attention, &mut step.cache.keys[place.cache])
    }

    /// Queries as they come, and keys and values as the cache keeps them.
    fn projected(&self, step: &Step<'_, O>, x: &O::Tensor) -> Result<Projected<O::Tensor>> {
        let (ops, epsilon) = (step.ops, step.config.norm_epsilon);
        let Some(Keys { key, value, key_norm, value_norm }) = &self.keys else {
            let [queries] = project(ops, x, [&self.query])?;
            return Ok(Projected { queries, added: None });
        };
        let (queries, mut keys, mut values) = match value {
            Some(value) => {
                let [queries, keys, values] = project(ops, x, [&self.query, key, value])?;
                (queries, keys, values)
            }
            None => {
                let [queries, keys] = project(ops, x, [&self.query, key])?;
                let values = ops.columns(&keys, 0..step.layer.kv_heads * step.layer.head_width)?;
                (queries, keys, values)
            }
        };
        if let Some(norm) = key_norm {
            keys = ops.rms_norm(&keys, norm, epsilon)?;
        }
        if let Some(norm) = value_norm {
            values = ops.rms_norm(&values, norm, epsilon)?;
        }
        if let Some(angles) = step.angles {
            ops.rotate(&mut keys, step.layer.head_width, &angles.keys, step.config.rope_order)?;
        }
        Ok(Projected { queries, added: Some([keys, values]) })
    }
}

/// Queries, keys or values.
fn open_part<O: Ops>(
    weights: &mut Weights<'_, O>,
    c: &DecoderConfig,
    prefix: &str,
    layer: LayerConfig,
    part: usize,
) -> Result<Projection<O>> {
    let bias = if c.biases == Biases::QueryKeyValue { Bias::Needed } else { other_bias(c) };
    let queries = if c.has_query_gates { 2 * c.heads } else { c.heads };
    let sizes = [queries, layer.kv_heads, layer.kv_heads].map(|heads| heads * layer.head_width);
    let (start, size) = (sizes[..part].iter().sum::<usize>(), sizes[part]);
    let (name, rows, all) = match c.has_fused_attention {
        true => (c.names.fused_attention, start..start + size, sizes.iter().sum()),
        false => (c.names.attention[part], 0..size, size),
    };
    weights.projection(&format!("{prefix}.{name}"), [all, c.hidden], rows, bias)
}
