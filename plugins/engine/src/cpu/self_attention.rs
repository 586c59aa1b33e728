//! Attention of whole sequences (Vaswani et al. 2017), each of which sees itself: a head of a sequence at a time.

use pulp::{Arch, NullaryFnOnce};
use rayon::prelude::*;

use super::rows::softmax_unnormalised;

/// Queries of sequences, `[rows, row]`, and their keys and values, `[rows, kv_heads * width]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Whole<'a> {
    pub(super) queries: &'a [f32],
    pub(super) keys: &'a [f32],
    pub(super) values: &'a [f32],
    /// Elements of a row of queries.
    pub(super) row: usize,
    /// Heads of keys and values; divides those of queries.
    pub(super) kv_heads: usize,
    /// Elements of a head.
    pub(super) width: usize,
    /// What scores are multiplied with.
    pub(super) scale: f32,
    /// Tokens on either side that a query sees.
    pub(super) reach: Option<usize>,
}

/// Bytes that it takes beside its arguments and its result.
pub(super) fn bytes(rows: usize, heads: usize, width: usize, longest: usize) -> u64 {
    // The results of all heads, and of each thread a head's keys and values and a row of scores.
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    4 * (rows * heads * width + threads * longest * (2 * width + 1)) as u64
}

impl Whole<'_> {
    /// The attention of sequences of so many rows into `out`, `[rows, row]`.
    pub(super) fn attend(&self, lengths: &[usize], out: &mut [f32]) {
        let starts = lengths.iter().scan(0, |at, rows| Some(std::mem::replace(at, *at + rows)));
        let heads = self.row / self.width.max(1);
        let tasks: Vec<(usize, usize, usize)> =
            starts.zip(lengths).flat_map(|(start, rows)| (0..heads).map(move |head| (start, *rows, head))).collect();
        let found: Vec<Vec<f32>> =
            tasks.par_iter().with_max_len(1).map(|(start, rows, head)| self.head(*start, *rows, *head)).collect();
        for ((start, _, head), found) in tasks.iter().zip(&found) {
            for (i, values) in found.chunks_exact(self.width).enumerate() {
                let at = (start + i) * self.row + head * self.width;
                out[at..at + self.width].copy_from_slice(values);
            }
        }
    }

    /// One head of a sequence: `[rows, width]`.
    fn head(&self, start: usize, rows: usize, head: usize) -> Vec<f32> {
        let part = |of: &[f32], row: usize, head: usize| -> Vec<f32> {
            let rows = of[start * row..(start + rows) * row].chunks_exact(row);
            rows.flat_map(|row| &row[head * self.width..(head + 1) * self.width]).copied().collect()
        };
        let group = self.row / (self.width * self.kv_heads).max(1);
        let (kv_row, kv_head) = (self.kv_heads * self.width, head / group.max(1));
        let queries = part(self.queries, self.row, head);
        let (keys, values) = (part(self.keys, kv_row, kv_head), part(self.values, kv_row, kv_head));
        // One element of all keys after the other: a query's scores come in one go.
        let turned: Vec<f32> =
            (0..self.width).flat_map(|d| keys.chunks_exact(self.width).map(move |key| key[d])).collect();
        let (mut scores, mut out) = (vec![0.0; rows], vec![0.0; rows * self.width]);
        for (i, (query, out)) in queries.chunks_exact(self.width).zip(out.chunks_exact_mut(self.width)).enumerate() {
            Arch::new().dispatch(Score { query, keys: &turned, scale: self.scale, out: &mut scores });
            if let Some(reach) = self.reach {
                scores[..i.saturating_sub(reach)].fill(f32::NEG_INFINITY);
                scores[(i + reach + 1).min(rows)..].fill(f32::NEG_INFINITY);
            }
            let sum = softmax_unnormalised(&mut scores);
            Arch::new().dispatch(Weigh { weights: &scores, values: &values, sum, out });
        }
        out
    }
}

/// Scores of a query, `[width]`, with keys, `[width, rows]`.
struct Score<'a> {
    query: &'a [f32],
    keys: &'a [f32],
    scale: f32,
    out: &'a mut [f32],
}

// No closures: what runs with more instructions than the rest of the program must be inlined.
impl NullaryFnOnce for Score<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let rows = self.out.len();
        self.out.fill(0.0);
        for (x, keys) in self.query.iter().zip(self.keys.chunks_exact(rows)) {
            let x = x * self.scale;
            for (out, key) in self.out.iter_mut().zip(keys) {
                *out += x * key;
            }
        }
    }
}

/// The mean of values, `[rows, width]`, by weights of this sum.
struct Weigh<'a> {
    weights: &'a [f32],
    values: &'a [f32],
    sum: f32,
    out: &'a mut [f32],
}

impl NullaryFnOnce for Weigh<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let width = self.out.len();
        for (weight, values) in self.weights.iter().zip(self.values.chunks_exact(width)) {
            for (out, value) in self.out.iter_mut().zip(values) {
                *out += weight * value;
            }
        }
        self.out.iter_mut().for_each(|x| *x /= self.sum);
    }
}
