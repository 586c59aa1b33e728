//! What a decoder takes, in bytes.

use super::config::{DecoderConfig, Recurrence};
use super::names::Names;
use crate::files::Tensors;
use crate::ops::Ops;

/// Bytes of the weights of a decoder where they are used.
pub fn weight_bytes<O: Ops>(ops: &O, file: &Tensors, names: &Names) -> u64 {
    let tables = [names.layer_inputs.table, names.embedding];
    // Where there is no other matrix, the table is also what the output is multiplied with.
    ops.weight_bytes(file, if file.has_tensor(names.head) { &tables } else { &tables[..1] })
}

/// Bytes that a pass of so many rows takes at its peak beside the cache, with logits for `wanted` of them and sequences of at
/// most `context` tokens: the sum of what its operations take.
pub fn workspace_bytes<O: Ops>(ops: &O, c: &DecoderConfig, rows: usize, wanted: usize, context: usize) -> u64 {
    let tensor = |width| ops.tensor_bytes(rows, width);
    let behind = tensor(c.hidden);
    // The residual stream and its norm are there throughout.
    let common = tensor(c.hidden) + tensor(c.hidden);
    // Queries with gates are there as they come and apart.
    let queries = if c.has_query_gates { 4 } else { 1 };
    let attention = c.layers.iter().filter(|layer| !layer.is_recurrent).flat_map(|layer| {
        let (q, kv) = (c.heads * layer.head_width, layer.kv_heads * layer.head_width);
        let qkv = queries * tensor(q) + 2 * tensor(kv);
        let norms = if c.has_head_norms { tensor(q.max(kv)) } else { 0 };
        [
            qkv + norms + ops.linear_bytes(rows, c.hidden, queries as usize * q + 2 * kv),
            qkv + tensor(q) + ops.attention_bytes(rows, c.heads, layer.head_width, context),
            qkv + tensor(q) + behind + ops.linear_bytes(rows, q, c.hidden),
        ]
    });
    let widest = c.layers.iter().map(|layer| layer.feed_forward).max().unwrap_or(0);
    let dense = [
        2 * tensor(widest) + ops.linear_bytes(rows, c.hidden, 2 * widest),
        2 * tensor(widest) + behind + ops.linear_bytes(rows, widest, c.hidden),
    ];
    let experts = c.experts.map(|experts| {
        let (rows, inner) = (rows * experts.used, experts.feed_forward);
        let chosen = ops.tensor_bytes(rows, c.hidden) + 2 * ops.tensor_bytes(rows, inner);
        let up = ops.linear_bytes(rows, c.hidden, inner);
        let down = ops.tensor_bytes(rows, c.hidden) + ops.linear_bytes(rows, inner, c.hidden);
        let shared =
            experts.shared.map_or(0, |inner| 2 * tensor(inner) + 2 * behind + ops.linear_bytes(rows, c.hidden, inner));
        chosen + behind + up.max(down) + shared
    });
    let recurrent = c.recurrence.map(|recurrence| {
        let state = c.state();
        let (inputs, outputs) = match recurrence {
            Recurrence::ShortConvolution { .. } => (3 * c.hidden, c.hidden),
            Recurrence::DeltaNet(net) => (net.channels() + 2 * net.heads, 2 * net.heads * net.value_width),
        };
        let values = tensor(inputs) + tensor(state.channels) + tensor(outputs) + behind;
        values + ops.recurrence_bytes(rows, state).max(ops.linear_bytes(rows, c.hidden, inputs + outputs))
    });
    let logits = 2 * ops.tensor_bytes(wanted, c.hidden)
        + ops.tensor_bytes(wanted, c.vocabulary)
        + ops.linear_bytes(wanted, c.hidden, c.vocabulary);
    // All layers' inputs are there throughout, and before that what they are made of.
    let inputs = c.layer_inputs.map_or(0, |width| {
        let all = width * (c.layers.len() + c.unused_layers);
        3 * tensor(all) + 2 * tensor(width) + behind + ops.linear_bytes(rows, c.hidden, all)
    });
    // A norm of what a network beside others gave.
    let beside = if c.has_network_beside { 4 * behind } else { 0 };
    let peak = attention.chain(recurrent).chain(dense).chain(experts).chain([logits]).max().unwrap_or(0);
    let angles: u64 = c.rotaries.iter().map(|rotary| 2 * ops.tensor_bytes(rows, rotary.width)).sum();
    common + peak + inputs + beside + angles
}
