//! Operations by the cores of the host, over weights that stay in their mapped file. Activations are f32.
//!
//! Work is split over the rayon pool that the caller is in.

pub mod attention;
pub mod cache;
pub mod kernels;
pub mod linear;
mod recurrence;
pub mod rows;
mod self_attention;

use std::borrow::Cow;
use std::ops::Range;

use aihost_plugin_api::Result;
use rayon::prelude::*;

pub use linear::{Linear, project};

use crate::files::Tensors;
use crate::ops::{
    Activation, Attention, CacheShape, Convolution, DeltaRule, Ops, RotaryOrder, SelfAttention, StateShape,
};
use cache::KvCache;
use recurrence::States;

/// Rows of activations from which on they are worth spreading over threads.
const PARALLEL_ROWS: usize = 4;

/// The cores of the host.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu;

/// Activations, `[values.len() / width, width]` f32.
#[derive(Clone, Debug)]
pub struct Rows {
    values: Vec<f32>,
    width: usize,
}

impl Rows {
    fn zeros(rows: usize, width: usize) -> Self {
        Self { values: vec![0.0; rows * width], width }
    }

    fn count(&self) -> usize {
        self.values.len() / self.width.max(1)
    }

    /// Runs `make` on each row of this and the row of `other` beside it.
    fn each(&mut self, other: &Self, make: impl Fn(&mut [f32], &[f32]) + Sync) {
        let (width, other_width) = (self.width.max(1), other.width.max(1));
        if self.count() < PARALLEL_ROWS {
            let rows = self.values.chunks_exact_mut(width).zip(other.values.chunks_exact(other_width));
            rows.for_each(|(row, other)| make(row, other));
        } else {
            let rows = self.values.par_chunks_exact_mut(width).zip(other.values.par_chunks_exact(other_width));
            rows.for_each(|(row, other)| make(row, other));
        }
    }
}

impl Ops for Cpu {
    type Tensor = Rows;
    type Matrix = Linear;
    type Table = Linear;
    type Vector = Vec<f32>;
    type Angles = (Vec<[f32; 2]>, usize);
    type Cache = KvCache;
    type States = States;

    fn table(&self, file: &Tensors, name: &str, rows: usize, columns: usize) -> Result<Linear> {
        Linear::open(file, name, rows, columns)
    }

    fn matrix_rows(&self, file: &Tensors, name: &str, shape: &[usize], rows: Range<usize>) -> Result<Linear> {
        Linear::open_rows(file, name, shape, rows)
    }

    fn vector(&self, values: Vec<f32>) -> Result<Vec<f32>> {
        Ok(values)
    }

    fn cache(&self, shape: CacheShape, blocks: usize) -> Result<KvCache> {
        KvCache::new(shape, blocks)
    }

    fn states(&self, shape: StateShape, places: usize) -> Result<States> {
        States::new(shape, places)
    }

    fn copy_state(&self, states: &mut States, from: usize, to: usize) -> Result<()> {
        states.copy(from, to);
        Ok(())
    }

    fn angles(&self, table: &[[f32; 2]], pairs: usize) -> Result<Self::Angles> {
        Ok((table.to_vec(), pairs))
    }

    fn embedding(&self, table: &Linear, tokens: &[u32]) -> Result<Rows> {
        let mut x = Rows::zeros(tokens.len(), table.columns());
        for (row, token) in x.values.chunks_exact_mut(table.columns().max(1)).zip(tokens) {
            table.row(*token as usize, row);
        }
        Ok(x)
    }

    fn rms_norm(&self, x: &Rows, scale: &Vec<f32>, epsilon: f32) -> Result<Rows> {
        let mut out = Rows::zeros(x.count(), x.width);
        out.each(x, |out, row| {
            let heads = out.chunks_exact_mut(scale.len().max(1)).zip(row.chunks_exact(scale.len().max(1)));
            heads.for_each(|(out, head)| rows::rms_norm(head, epsilon, scale, out));
        });
        Ok(out)
    }

    fn layer_norm(&self, x: &Rows, scale: &Vec<f32>, shift: Option<&Vec<f32>>, epsilon: f32) -> Result<Rows> {
        let mut out = Rows::zeros(x.count(), x.width);
        let shift = shift.map_or_else(|| Cow::Owned(vec![0.0; x.width]), Cow::Borrowed);
        out.each(x, |out, row| rows::layer_norm(row, epsilon, (scale, 0.0), &shift, out));
        Ok(out)
    }

    fn linear<const N: usize>(&self, x: &Rows, matrices: [&Linear; N]) -> Result<[Rows; N]> {
        let mut out = matrices.map(|matrix| Rows::zeros(x.count(), matrix.rows()));
        let mut targets: Vec<(&Linear, &mut [f32])> =
            matrices.into_iter().zip(out.iter_mut().map(|rows| rows.values.as_mut_slice())).collect();
        project(&x.values, x.count(), &mut targets);
        Ok(out)
    }

    fn linear_grouped(&self, x: &Rows, groups: &[(usize, &Linear)]) -> Result<Rows> {
        let mut out = Rows::zeros(x.count(), groups.first().map_or(0, |(_, matrix)| matrix.rows()));
        linear::project_grouped(&x.values, groups, &mut out.values);
        Ok(out)
    }

    fn rotate(&self, x: &mut Rows, width: usize, (table, pairs): &Self::Angles, order: RotaryOrder) -> Result<()> {
        if *pairs == 0 {
            return Ok(());
        }
        for (row, angles) in x.values.chunks_exact_mut(x.width).zip(table.chunks_exact(*pairs)) {
            for head in row.chunks_exact_mut(width) {
                rows::rotate(head, angles, order);
            }
        }
        Ok(())
    }

    fn attention(&self, pass: Attention<'_, Rows, Vec<f32>>, cache: &mut KvCache) -> Result<Rows> {
        if let Some([keys, values]) = pass.added {
            cache.write(pass.layer, &keys.values, &values.values, pass.spans);
        }
        let mut out = Rows::zeros(pass.queries.count(), pass.queries.width);
        let look = attention::Look { layer: pass.layer, scale: pass.scale, cap: pass.cap, window: pass.window };
        let sinks = pass.sinks.map(Vec::as_slice);
        attention::attend(&pass.queries.values, cache, look, sinks, pass.spans, &mut out.values);
        Ok(out)
    }

    fn self_attention(&self, pass: SelfAttention<'_, Rows>) -> Result<Rows> {
        let mut out = Rows::zeros(pass.queries.count(), pass.queries.width);
        let [queries, keys, values] = [pass.queries, pass.keys, pass.values].map(|rows| rows.values.as_slice());
        let whole = self_attention::Whole {
            queries,
            keys,
            values,
            row: pass.queries.width,
            width: pass.queries.width / pass.heads.max(1),
            kv_heads: pass.kv_heads,
            scale: pass.scale,
            reach: pass.reach,
        };
        whole.attend(pass.lengths, &mut out.values);
        Ok(out)
    }

    fn convolve(&self, pass: Convolution<'_, Rows, Vec<f32>>, states: &mut States) -> Result<Rows> {
        states.convolve(&pass)
    }

    fn delta_rule(&self, pass: DeltaRule<'_, Rows>, states: &mut States) -> Result<Rows> {
        states.delta_rule(&pass)
    }

    fn columns(&self, x: &Rows, columns: Range<usize>) -> Result<Rows> {
        let rows = x.values.chunks_exact(x.width.max(1));
        Ok(Rows { values: rows.flat_map(|row| &row[columns.clone()]).copied().collect(), width: columns.len() })
    }

    fn halves(&self, x: &Rows, width: usize) -> Result<[Rows; 2]> {
        let half = |which: usize| {
            let pieces = x.values.chunks_exact(width).skip(which).step_by(2);
            Rows { values: pieces.flatten().copied().collect(), width: x.width / 2 }
        };
        Ok([half(0), half(1)])
    }

    fn activate(&self, mut x: Rows, activation: Activation) -> Result<Rows> {
        let width = x.width.max(1);
        if x.count() < PARALLEL_ROWS {
            x.values.chunks_exact_mut(width).for_each(|row| rows::activate(activation, row, &[]));
        } else {
            x.values.par_chunks_exact_mut(width).for_each(|row| rows::activate(activation, row, &[]));
        }
        Ok(x)
    }

    fn gated(&self, mut gate: Rows, up: &Rows, activation: Activation) -> Result<Rows> {
        gate.each(up, |gate, up| rows::gate(activation, gate, up));
        Ok(gate)
    }

    fn add(&self, x: &mut Rows, delta: &Rows) -> Result<()> {
        x.each(delta, rows::add_bias);
        Ok(())
    }

    fn add_grouped(&self, x: &mut Rows, groups: &[(usize, &Vec<f32>)]) -> Result<()> {
        let vectors = groups.iter().flat_map(|(rows, vector)| std::iter::repeat_n(*vector, *rows));
        x.values.chunks_exact_mut(x.width.max(1)).zip(vectors).for_each(|(row, vector)| rows::add_bias(row, vector));
        Ok(())
    }

    fn add_vector(&self, x: &mut Rows, vector: &Vec<f32>) -> Result<()> {
        x.values.chunks_exact_mut(vector.len().max(1)).for_each(|row| rows::add_bias(row, vector));
        Ok(())
    }

    fn scale(&self, x: &mut Rows, factor: f32) -> Result<()> {
        if factor != 1.0 {
            rows::scale(&mut x.values, factor);
        }
        Ok(())
    }

    fn weighted_sums(&self, x: &Rows, places: &[(usize, f32)], rows: usize) -> Result<Rows> {
        let mut out = Rows::zeros(rows, x.width);
        for ((row, weight), added) in places.iter().zip(x.values.chunks_exact(x.width.max(1))) {
            rows::add_weighted(&mut out.values[row * x.width..(row + 1) * x.width], added, *weight);
        }
        Ok(out)
    }

    fn select(&self, x: &Rows, rows: &[usize]) -> Result<Rows> {
        let values = rows.iter().flat_map(|row| &x.values[row * x.width..(row + 1) * x.width]).copied().collect();
        Ok(Rows { values, width: x.width })
    }

    fn to_host(&self, x: &Rows) -> Result<Vec<f32>> {
        Ok(x.values.clone())
    }

    fn is_in_place(&self) -> bool {
        true
    }

    fn weight_bytes(&self, file: &Tensors, _tables: &[&str]) -> u64 {
        file.len() as u64
    }

    fn tensor_bytes(&self, rows: usize, width: usize) -> u64 {
        4 * rows as u64 * width as u64
    }

    fn linear_bytes(&self, rows: usize, columns: usize, outputs: usize) -> u64 {
        // The activations quantised, and of several rows the result a second time, transposed.
        let transposed = if rows > 1 { 4 * rows * outputs } else { 0 };
        (4 * rows * columns + transposed) as u64
    }

    fn attention_bytes(&self, rows: usize, heads: usize, width: usize, context: usize) -> u64 {
        attention::bytes(rows, heads, width, context)
    }

    fn self_attention_bytes(&self, rows: usize, heads: usize, width: usize, longest: usize) -> u64 {
        self_attention::bytes(rows, heads, width, longest)
    }

    fn recurrence_bytes(&self, rows: usize, shape: StateShape) -> u64 {
        recurrence::bytes(rows, shape)
    }

    fn block_bytes(&self, shape: CacheShape) -> u64 {
        cache::block_bytes(shape)
    }

    fn state_bytes(&self, shape: StateShape) -> u64 {
        recurrence::state_bytes(shape)
    }
}
