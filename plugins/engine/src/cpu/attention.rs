//! Causal attention (Vaswani et al. 2017) of several sequences over their blocks of a cache.
//!
//! Keys are looked at in segments of a fixed length, whose results are merged in order (Milakov and Gimelshein 2018): a query's
//! result is the same whether it comes in a long prompt or alone, on one thread or on many.

use std::cell::RefCell;
use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use pulp::{Arch, NullaryFnOnce};
use rayon::prelude::*;

use super::cache::KvCache;
use super::rows::{self, softmax_unnormalised};
use crate::ops::{BLOCK_TOKENS, Span};

/// Blocks of a segment.
const SEGMENT_BLOCKS: usize = 16;
/// Tokens of a segment.
const SEGMENT: usize = SEGMENT_BLOCKS * BLOCK_TOKENS;
/// Queries, over all heads of a group, that look at a segment together.
const TILE_QUERIES: usize = 24;
/// Queries that are in registers together.
const TOGETHER: usize = 4;
/// Products of queries and keys below which attention is not worth spreading over threads.
const MIN_PARALLEL: usize = 1 << 15;
/// Pieces of work for each thread below which a query's segments are spread too.
const PIECES_PER_THREAD: usize = 4;

/// Queries of one sequence and one key head.
#[derive(Clone, Copy, Debug)]
struct Tile<'a> {
    /// The first row of the pass.
    row: usize,
    rows: usize,
    /// The position of the first.
    position: usize,
    head: usize,
    blocks: &'a [u32],
}

/// What an attention looks at, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub(super) layer: usize,
    /// What scores are multiplied with.
    pub(super) scale: f32,
    /// What they stay below.
    pub(super) cap: Option<f32>,
    /// Tokens that a query sees, itself among them.
    pub(super) window: Option<usize>,
}

/// The shape of an attention.
#[derive(Clone, Copy, Debug)]
struct Shape {
    /// Query heads of a key head.
    group: usize,
    kv_heads: usize,
    width: usize,
    look: Look,
}

/// What queries have seen: of each the largest score, the sum of the weights relative to it, and as many values.
#[derive(Clone, Debug)]
struct Seen {
    largest: Vec<f32>,
    sums: Vec<f32>,
    /// `[queries, width]`
    values: Vec<f32>,
}

#[derive(Debug, Default)]
struct Scratch {
    /// A block's keys or values, f32.
    block: Vec<f32>,
    /// `[queries, SEGMENT]`
    scores: Vec<f32>,
    /// `[queries, width]`
    queries: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Attention of `q`, `[rows, heads * width]`, into `out` of the same shape; `sinks` are the scores of seeing nothing, `[heads]`. The keys and values of the rows are in the cache.
pub(super) fn attend(
    q: &[f32],
    cache: &KvCache,
    look: Look,
    sinks: Option<&[f32]>,
    spans: &[Span<'_>],
    out: &mut [f32],
) {
    let cached = cache.shape();
    let row = q.len() / spans.iter().map(|span| span.rows).sum::<usize>().max(1);
    let (kv_heads, width) = (cached.kv_heads, cached.width);
    let shape = Shape { group: row / (kv_heads * width), kv_heads, width, look };
    let tiles = tiles(spans, shape);
    let work: usize = spans.iter().map(|span| span.rows * (span.start + span.rows) * row).sum();
    let threads = if work < MIN_PARALLEL { 1 } else { rayon::current_num_threads() };
    let seen: Vec<Seen> = if threads == 1 {
        tiles.iter().map(|tile| tile.seen(q, cache, shape, tile.segments(look.window))).collect()
    } else if tiles.len() >= threads * PIECES_PER_THREAD {
        tiles.par_iter().with_max_len(1).map(|tile| tile.seen(q, cache, shape, tile.segments(look.window))).collect()
    } else {
        by_segment(&tiles, q, cache, shape)
    };
    for (tile, seen) in tiles.iter().zip(&seen) {
        tile.write(seen, shape, sinks, out);
    }
}

/// Bytes that it takes beside its arguments.
pub(super) fn bytes(rows: usize, heads: usize, width: usize, context: usize) -> u64 {
    let seen = rows * heads * (width + 2);
    // Few rows keep what each of their segments gave.
    let segments = if rows * heads < TILE_QUERIES * PIECES_PER_THREAD { context.div_ceil(SEGMENT) } else { 0 };
    let scratch = TILE_QUERIES.max(heads) * (SEGMENT + width) + width * BLOCK_TOKENS;
    // Nobody has begun a pool where this is planned.
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    4 * (seen * (1 + segments) + scratch * threads) as u64
}

fn tiles<'a>(spans: &[Span<'a>], shape: Shape) -> Vec<Tile<'a>> {
    let most = (TILE_QUERIES / shape.group).max(1);
    let (mut tiles, mut first) = (Vec::new(), 0);
    for span in spans {
        for head in 0..shape.kv_heads {
            for at in (0..span.rows).step_by(most) {
                let (row, position, rows) = (first + at, span.start + at, most.min(span.rows - at));
                tiles.push(Tile { row, rows, position, head, blocks: span.blocks });
            }
        }
        first += span.rows;
    }
    tiles
}

/// Each segment of each tile on its own, merged in order.
fn by_segment(tiles: &[Tile<'_>], q: &[f32], cache: &KvCache, shape: Shape) -> Vec<Seen> {
    let window = shape.look.window;
    let pieces: Vec<(usize, usize)> =
        tiles.iter().enumerate().flat_map(|(i, tile)| tile.segments(window).map(move |segment| (i, segment))).collect();
    let found: Vec<Seen> = pieces
        .par_iter()
        .with_max_len(1)
        .map(|(i, segment)| tiles[*i].seen(q, cache, shape, *segment..*segment + 1))
        .collect();
    let mut found = found.into_iter();
    tiles
        .iter()
        .map(|tile| {
            let mut seen = Seen::nothing(tile.rows * shape.group, shape.width);
            found.by_ref().take(tile.segments(window).len()).for_each(|more| seen.merge(&more));
            seen
        })
        .collect()
}

/// The first token that a query sees.
fn first_seen(position: usize, window: Option<usize>) -> usize {
    window.map_or(0, |window| (position + 1).saturating_sub(window))
}

impl Tile<'_> {
    /// Segments of which its queries see something.
    fn segments(&self, window: Option<usize>) -> Range<usize> {
        first_seen(self.position, window) / SEGMENT..(self.position + self.rows).div_ceil(SEGMENT)
    }

    /// What its queries see of some segments.
    fn seen(&self, q: &[f32], cache: &KvCache, shape: Shape, segments: Range<usize>) -> Seen {
        let Shape { group, width, .. } = shape;
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.queries.clear();
            let row = group * shape.kv_heads * width;
            for r in self.row..self.row + self.rows {
                let from = r * row + self.head * group * width;
                scratch.queries.extend_from_slice(&q[from..from + group * width]);
            }
            let mut seen = Seen::nothing(self.rows * group, width);
            for segment in segments {
                let more = self.segment(cache, shape, segment, scratch);
                seen.merge(&more);
            }
            seen
        })
    }

    fn segment(&self, cache: &KvCache, shape: Shape, segment: usize, scratch: &mut Scratch) -> Seen {
        let (Shape { group, width, .. }, Look { layer, scale, cap, window }) = (shape, shape.look);
        let queries = self.rows * group;
        let first = segment * SEGMENT;
        let end = (self.position + self.rows).min(first + SEGMENT);
        let blocks = &self.blocks[first / BLOCK_TOKENS..end.div_ceil(BLOCK_TOKENS)];
        let keys = blocks.len() * BLOCK_TOKENS;
        let Scratch { block: wide, scores, queries: q } = scratch;
        wide.resize(width * BLOCK_TOKENS, 0.0);
        scores.resize(queries * keys, 0.0);
        for (i, block) in blocks.iter().enumerate() {
            let block = cache.block(layer, *block, self.head);
            block.keys.convert_to_f32_slice(wide);
            score(q, wide, width, block.key_scale * scale, &mut scores[i * BLOCK_TOKENS..], keys);
        }
        let mut seen = Seen::nothing(queries, width);
        for (query, scores) in scores.chunks_exact_mut(keys).enumerate() {
            let position = self.position + query / group;
            let visible = (position + 1).saturating_sub(first).min(keys);
            if let Some(cap) = cap {
                rows::cap(&mut scores[..visible], cap);
            }
            scores[visible..].fill(f32::NEG_INFINITY);
            let passed = first_seen(position, window).saturating_sub(first).min(keys);
            scores[..passed].fill(f32::NEG_INFINITY);
            seen.largest[query] = scores.iter().fold(f32::NEG_INFINITY, |most, x| most.max(*x));
            seen.sums[query] = softmax_unnormalised(scores);
        }
        for (i, block) in blocks.iter().enumerate() {
            let block = cache.block(layer, *block, self.head);
            block.values.convert_to_f32_slice(wide);
            if block.value_scale != 1.0 {
                wide.iter_mut().for_each(|x| *x *= block.value_scale);
            }
            weigh(&scores[i * BLOCK_TOKENS..], keys, wide, width, &mut seen.values);
        }
        seen
    }

    fn write(&self, seen: &Seen, shape: Shape, sinks: Option<&[f32]>, out: &mut [f32]) {
        let Shape { group, kv_heads, width, .. } = shape;
        let values = seen.values.chunks_exact(width).zip(&seen.sums);
        for (query, (values, sum)) in values.enumerate() {
            let (row, head) = (self.row + query / group, self.head * group + query % group);
            let at = (row * kv_heads * group + head) * width;
            // What was seen of everything is less by as much as nothing weighs.
            let (kept, sum) = match sinks {
                None => (1.0, *sum),
                Some(sinks) => {
                    let largest = seen.largest[query].max(sinks[head]);
                    let kept = (seen.largest[query] - largest).exp();
                    (kept, sum * kept + (sinks[head] - largest).exp())
                }
            };
            out[at..at + width].iter_mut().zip(values).for_each(|(out, x)| *out = x * kept / sum);
        }
    }
}

impl Seen {
    fn nothing(queries: usize, width: usize) -> Self {
        Self { largest: vec![f32::NEG_INFINITY; queries], sums: vec![0.0; queries], values: vec![0.0; queries * width] }
    }

    /// Takes in what was seen of the keys that follow.
    fn merge(&mut self, more: &Self) {
        let width = self.values.len() / self.sums.len().max(1);
        for query in 0..self.sums.len() {
            if more.largest[query] == f32::NEG_INFINITY {
                // It sees none of them.
                continue;
            }
            let largest = self.largest[query].max(more.largest[query]);
            let (old, new) = ((self.largest[query] - largest).exp(), (more.largest[query] - largest).exp());
            self.largest[query] = largest;
            self.sums[query] = self.sums[query] * old + more.sums[query] * new;
            let range = query * width..(query + 1) * width;
            for (x, more) in self.values[range.clone()].iter_mut().zip(&more.values[range]) {
                *x = *x * old + more * new;
            }
        }
    }
}

/// Whether a product and a sum are one instruction here. Where they are not, `mul_add` is a function that takes fifty times as long.
fn is_fused() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    true
}

#[inline(always)]
fn mul_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// Scores of queries, `[queries, width]`, with a block's keys, `[width, BLOCK_TOKENS]`, into rows of `out` that lie `stride` apart.
fn score(q: &[f32], keys: &[f32], width: usize, scale: f32, out: &mut [f32], stride: usize) {
    if is_fused() {
        Arch::new().dispatch(Score::<true> { q, keys, width, scale, out, stride });
    } else {
        Arch::new().dispatch(Score::<false> { q, keys, width, scale, out, stride });
    }
}

struct Score<'a, const FUSED: bool> {
    q: &'a [f32],
    keys: &'a [f32],
    width: usize,
    scale: f32,
    out: &'a mut [f32],
    stride: usize,
}

// No closure: what runs with more instructions than the rest of the program must be inlined, and a closure need not be.
impl<const FUSED: bool> NullaryFnOnce for Score<'_, FUSED> {
    type Output = ();

    #[inline(always)]
    fn call(mut self) {
        let count = self.q.len() / self.width;
        let mut at = 0;
        while at + TOGETHER <= count {
            self.some::<TOGETHER>(at);
            at += TOGETHER;
        }
        while at < count {
            self.some::<1>(at);
            at += 1;
        }
    }
}

impl<const FUSED: bool> Score<'_, FUSED> {
    #[inline(always)]
    fn some<const N: usize>(&mut self, at: usize) {
        let Self { width, stride, scale, .. } = *self;
        let q = &self.q[at * width..(at + N) * width];
        let mut sums = [[0f32; BLOCK_TOKENS]; N];
        // Loops by index: in a build that optimises less, iterators stay calls of functions without these instructions.
        let keys = &self.keys.as_chunks::<BLOCK_TOKENS>().0[..width];
        let mut d = 0;
        while d < width {
            let mut n = 0;
            while n < N {
                let x = q[n * width + d];
                let mut t = 0;
                while t < BLOCK_TOKENS {
                    sums[n][t] = mul_add::<FUSED>(x, keys[d][t], sums[n][t]);
                    t += 1;
                }
                n += 1;
            }
            d += 1;
        }
        for (n, sums) in sums.iter().enumerate() {
            let out = &mut self.out[(at + n) * stride..(at + n) * stride + BLOCK_TOKENS];
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = sum * scale;
            }
        }
    }
}

/// Adds a block's values, `[BLOCK_TOKENS, width]`, to `out`, `[queries, width]`, by weights in rows that lie `stride` apart.
fn weigh(weights: &[f32], stride: usize, values: &[f32], width: usize, out: &mut [f32]) {
    if is_fused() {
        Arch::new().dispatch(Weigh::<true> { weights, stride, values, width, out });
    } else {
        Arch::new().dispatch(Weigh::<false> { weights, stride, values, width, out });
    }
}

struct Weigh<'a, const FUSED: bool> {
    weights: &'a [f32],
    stride: usize,
    values: &'a [f32],
    width: usize,
    out: &'a mut [f32],
}

impl<const FUSED: bool> NullaryFnOnce for Weigh<'_, FUSED> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { weights, stride, values, width, out } = self;
        for (query, out) in out.chunks_exact_mut(width).enumerate() {
            let weights = &weights[query * stride..query * stride + BLOCK_TOKENS];
            let (chunks, rest) = out.as_chunks_mut::<LANES>();
            for (i, chunk) in chunks.iter_mut().enumerate() {
                let mut sums = *chunk;
                let mut token = 0;
                while token < BLOCK_TOKENS {
                    let weight = weights[token];
                    let values = &values[token * width + i * LANES..][..LANES];
                    let mut d = 0;
                    while d < LANES {
                        sums[d] = mul_add::<FUSED>(weight, values[d], sums[d]);
                        d += 1;
                    }
                    token += 1;
                }
                *chunk = sums;
            }
            let from = width - rest.len();
            for (weight, values) in weights.iter().zip(values.chunks_exact(width)) {
                for (sum, value) in rest.iter_mut().zip(&values[from..]) {
                    *sum = mul_add::<FUSED>(*weight, *value, *sum);
                }
            }
        }
    }
}

/// Elements of a head that are in registers together.
const LANES: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::CacheShape;

    const SHAPE: CacheShape = CacheShape { layers: 1, kv_heads: 2, width: 40 };
    const LOOK: Look = Look { layer: 0, scale: 0.5, cap: None, window: None };
    const HEADS: usize = 6;
    const TOKENS: usize = 700;

    fn noise(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as f32 / u32::MAX as f32 * 2.0 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    /// Blocks in an order of their own.
    fn blocks() -> Vec<u32> {
        let count = TOKENS.div_ceil(BLOCK_TOKENS) as u32;
        (0..count).map(|i| i * 7 % count).collect()
    }

    fn filled(blocks: &[u32]) -> (KvCache, Vec<f32>, Vec<f32>) {
        let row = SHAPE.kv_heads * SHAPE.width;
        let (keys, values) = (noise(TOKENS * row, 3), noise(TOKENS * row, 5));
        let mut cache = KvCache::new(SHAPE, blocks.len()).unwrap();
        cache.write(0, &keys, &values, &[Span { rows: TOKENS, start: 0, blocks, state: 0 }]);
        (cache, keys, values)
    }

    #[test]
    fn it_is_the_formula() {
        let sinks: Vec<f32> = noise(HEADS, 17).iter().map(|x| 4.0 * x).collect();
        is_the_formula(LOOK, Some(&sinks));
        is_the_formula(Look { window: Some(100), ..LOOK }, Some(&sinks));
        for (cap, window) in
            [(None, None), (Some(1.5), None), (None, Some(1)), (None, Some(200)), (Some(2.0), Some(512))]
        {
            is_the_formula(Look { cap, window, ..LOOK }, None);
        }
    }

    fn is_the_formula(look: Look, sinks: Option<&[f32]>) {
        let blocks = blocks();
        let (cache, keys, values) = filled(&blocks);
        let (width, row) = (SHAPE.width, HEADS * SHAPE.width);
        let q = noise(TOKENS * row, 7);
        let mut out = vec![0.0; q.len()];
        attend(&q, &cache, look, sinks, &[Span { rows: TOKENS, start: 0, blocks: &blocks, state: 0 }], &mut out);
        let half = |x: f32| f64::from(half::f16::from_f32(x).to_f32());
        for (position, head) in [(0, 0), (1, 5), (15, 1), (16, 2), (255, 3), (256, 4), (511, 0), (699, 5)] {
            let q = &q[position * row + head * width..][..width];
            let kv = |of: &[f32], token: usize, d: usize| half(of[(token * SHAPE.kv_heads + head / 3) * width + d]);
            let product = |token| (0..width).map(|d| f64::from(q[d]) * kv(&keys, token, d)).sum::<f64>() * 0.5;
            let capped = |score: f64| look.cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh());
            let seen = look.window.map_or(0, |window| (position + 1).saturating_sub(window))..=position;
            let weights: Vec<f64> = seen.clone().map(|token| capped(product(token)).exp()).collect();
            let nothing = sinks.map_or(0.0, |sinks| f64::from(sinks[head]).exp());
            let sum: f64 = weights.iter().sum::<f64>() + nothing;
            for d in 0..width {
                let wanted: f64 =
                    seen.clone().zip(&weights).map(|(token, weight)| weight / sum * kv(&values, token, d)).sum();
                let found = f64::from(out[position * row + head * width + d]);
                assert!((found - wanted).abs() < 1e-5, "{look:?} {position} {head} {d}: {found} {wanted}");
            }
        }
    }

    #[test]
    fn a_query_gives_the_same_in_any_company_and_on_any_number_of_threads() {
        for window in [None, Some(40), Some(300)] {
            gives_the_same(Look { window, ..LOOK });
        }
    }

    fn gives_the_same(look: Look) {
        let blocks = blocks();
        let (cache, ..) = filled(&blocks);
        let row = HEADS * SHAPE.width;
        let q = noise(TOKENS * row, 11);
        let whole = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut out = vec![0.0; q.len()];
            let span = Span { rows: TOKENS, start: 0, blocks: &blocks, state: 0 };
            pool.install(|| attend(&q, &cache, look, None, &[span], &mut out));
            out
        };
        let together = whole(3);
        assert_eq!(whole(1), together);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        for position in [0, 17, 255, 256, 512, 699] {
            // Alone, and beside another sequence that comes in pieces.
            let alone = Span { rows: 1, start: position, blocks: &blocks, state: 0 };
            let other = Span { rows: 30, start: 100, blocks: &blocks, state: 0 };
            let own = &q[position * row..(position + 1) * row];
            for spans in [vec![alone.clone()], vec![other.clone(), alone.clone(), other.clone()]] {
                let before = spans.iter().take_while(|span| **span != alone).map(|span| span.rows).sum::<usize>();
                let rows = spans.iter().map(|span| span.rows).sum::<usize>();
                let mut queries = noise(rows * row, 13);
                queries[before * row..(before + 1) * row].copy_from_slice(own);
                let mut out = vec![0.0; queries.len()];
                pool.install(|| attend(&queries, &cache, look, None, &spans, &mut out));
                assert_eq!(out[before * row..(before + 1) * row], together[position * row..(position + 1) * row]);
            }
        }
    }
}
