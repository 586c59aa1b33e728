//! Multi-head attention (Vaswani et al. 2017) over rows of f32, a block of queries at a time: the matrix of scores is never
//! whole in memory.

use std::cell::RefCell;

use rayon::prelude::*;

use crate::gemm::{View, ViewMut, matmul};
use aihost_engine::cpu::rows;

/// Queries whose scores are computed at once.
const BLOCK: usize = 64;

/// Queries, keys or values of all heads: rows that begin `stride` apart, heads beside each other.
#[derive(Clone, Copy, Debug)]
pub struct Heads<'a> {
    /// Starts at the first row's first head.
    pub data: &'a [f32],
    /// Elements from the start of one row to the start of the next.
    pub stride: usize,
}

/// What a query may see, beside all keys.
#[derive(Clone, Copy, Debug)]
pub enum Mask<'a> {
    /// Every key.
    None,
    /// Keys up to its own position.
    Causal,
    /// Every key, with a bias added to each score: (heads, queries, keys).
    Bias(&'a [f32]),
}

/// The inputs and sizes of one scaled dot-product attention, all f32.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Queries, (queries, heads * width).
    pub q: Heads<'a>,
    /// Keys, (keys, heads * width).
    pub k: Heads<'a>,
    /// Values, (keys, heads * width).
    pub v: Heads<'a>,
    /// Rows of keys and values.
    pub keys: usize,
    /// Attention heads; their width is `width`.
    pub heads: usize,
    /// Elements of one head.
    pub width: usize,
    /// Factor of the scores before softmax, usually 1 / sqrt(width).
    pub scale: f32,
    /// What a query may see.
    pub mask: Mask<'a>,
}

thread_local! {
    static SCORES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

impl Attention<'_> {
    /// Writes softmax(scale * q kᵀ + mask) v for `queries` queries from `first` on: (queries, heads * width) f32, in rows
    /// `stride` elements apart. Work is cut into blocks of queries over the rayon pool that the caller is in.
    ///
    /// # Panics
    /// If a view lies past its slice.
    pub fn forward(&self, first: usize, queries: usize, out: &mut [f32], stride: usize) {
        let needed = if queries == 0 { 0 } else { (queries - 1) * stride + self.heads * self.width };
        assert!(needed <= out.len(), "the attention output lies past its slice");
        out.par_chunks_mut(BLOCK * stride).take(queries.div_ceil(BLOCK)).enumerate().for_each(|(i, out)| {
            let start = i * BLOCK;
            self.block(first + start, BLOCK.min(queries - start), out, stride);
        });
    }

    /// Bytes of scores that each thread keeps for so many keys.
    pub fn score_bytes(keys: usize) -> u64 {
        (4 * BLOCK * keys) as u64
    }

    fn block(&self, first: usize, queries: usize, out: &mut [f32], stride: usize) {
        let Self { keys, width, .. } = *self;
        let mut scores = SCORES.take();
        scores.resize(queries * keys, 0.0);
        for head in 0..self.heads {
            let rows = |heads: Heads<'_>, from: usize| from * heads.stride + head * width;
            let q = View::rows(&self.q.data[rows(self.q, first)..], queries, width, self.q.stride);
            let k = View::rows(&self.k.data[rows(self.k, 0)..], keys, width, self.k.stride);
            let v = View::rows(&self.v.data[rows(self.v, 0)..], keys, width, self.v.stride);
            matmul(q, k.transposed(), self.scale, &mut ViewMut::rows(&mut scores, queries, keys, keys));
            let mut sums = [0.0; BLOCK];
            for (i, (row, sum)) in scores.chunks_exact_mut(keys).zip(&mut sums).enumerate() {
                match self.mask {
                    Mask::None => {}
                    Mask::Causal => row[(first + i + 1).min(keys)..].fill(f32::NEG_INFINITY),
                    Mask::Bias(bias) => {
                        let place = (head * (bias.len() / self.heads / keys) + first + i) * keys;
                        rows::add_bias(row, &bias[place..place + keys]);
                    }
                }
                *sum = rows::softmax_unnormalised(row);
            }
            let out = &mut out[head * width..];
            let attended = &mut ViewMut::rows(out, queries, width, stride);
            matmul(View::rows(&scores, queries, keys, keys), v, 1.0, attended);
            for (row, sum) in out.chunks_mut(stride).zip(&sums[..queries]) {
                rows::scale(&mut row[..width], 1.0 / sum);
            }
        }
        SCORES.set(scores);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test_values(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + seed * 31) % 211) as f32 / 50.0 - 2.0).collect()
    }

    /// Against the formula in f64, with one buffer of queries, keys and values as blocks have it.
    #[test]
    fn blocks_of_queries_give_the_whole() {
        let (heads, width) = (3, 4);
        let inner = heads * width;
        for (tokens, first) in [(1, 0), (5, 2), (BLOCK, 0), (2 * BLOCK + 7, 3)] {
            let all = test_values(tokens * 3 * inner, 1);
            let bias = test_values(heads * tokens * tokens, 2);
            for mask in [Mask::None, Mask::Causal, Mask::Bias(&bias)] {
                let part = |i: usize| Heads { data: &all[i * inner..], stride: 3 * inner };
                let attention =
                    Attention { q: part(0), k: part(1), v: part(2), keys: tokens, heads, width, scale: 0.7, mask };
                let stride = inner + 2;
                let mut out = vec![9.0; (tokens - first) * stride];
                attention.forward(first, tokens - first, &mut out, stride);
                for query in first..tokens {
                    for head in 0..heads {
                        let at = |i, token: usize, c| f64::from(all[token * 3 * inner + i * inner + head * width + c]);
                        let score = |key: usize| {
                            let dot: f64 = (0..width).map(|c| at(0, query, c) * at(1, key, c)).sum();
                            match mask {
                                Mask::Causal if key > query => f64::NEG_INFINITY,
                                Mask::Bias(bias) => dot * 0.7 + f64::from(bias[(head * tokens + query) * tokens + key]),
                                _ => dot * 0.7,
                            }
                        };
                        let total: f64 = (0..tokens).map(|key| score(key).exp()).sum();
                        for c in 0..width {
                            let wanted: f64 = (0..tokens).map(|key| score(key).exp() / total * at(2, key, c)).sum();
                            let found = out[(query - first) * stride + head * width + c];
                            assert!((f64::from(found) - wanted).abs() < 1e-4, "{mask:?}");
                        }
                    }
                    assert_eq!(out[(query - first) * stride + inner..][..2], [9.0; 2]);
                }
            }
        }
    }
}
