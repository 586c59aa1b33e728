//! The products, in tiles: written once for every format and instruction set.
//!
//! Quantised: a tile is sixteen weight rows, one per lane. Each piece of 32 weights is unpacked once, and multiplied with all
//! activation rows that there are (up to [`CHUNK`]). A result is the sum, piece by piece, of exact products of whole numbers times two
//! scales, so that it does not matter what it is computed beside.
//!
//! Floats: a tile is a few weight rows with a few activation rows; a result has sixteen sums, of every sixteenth column, whatever the
//! tile's size.

use std::marker::PhantomData;

use super::formats::{Format, Piece, Sink, Tile};
use super::simd::{Job, LANES, Lanes, LanesJob, Simd};
use super::{CHUNK, Q16Rows, XBlock};

/// Bytes of a cache line.
const LINE: usize = 64;

/// Products of weight rows in the format `F`: `out` is `[x rows, weight rows]`.
pub(super) struct Quantised<'a, F> {
    pub(super) weights: &'a [u8],
    /// Bytes of a weight row.
    pub(super) stride: usize,
    pub(super) x: &'a Q16Rows,
    pub(super) out: &'a mut [f32],
    pub(super) format: PhantomData<F>,
}

impl<F: Format> LanesJob for Quantised<'_, F> {
    type Out = ();

    #[inline(always)]
    fn run<S: Lanes>(self, simd: S) {
        let Self { weights, stride, x, out, .. } = self;
        let rows = weights.len() / stride;
        let mut sums = vec![[0f32; LANES]; if x.rows == 1 { 0 } else { x.rows.min(CHUNK) }];
        let mut padded = Vec::new();
        for (first, blocks) in x.chunks() {
            let m = blocks.len() / x.blocks;
            for start in (0..rows).step_by(LANES) {
                let count = LANES.min(rows - start);
                let mut tile = &weights[start * stride..][..count * stride];
                if count < LANES {
                    // Rows of zero bytes: whatever they come to is not looked at.
                    padded.clear();
                    padded.extend_from_slice(tile);
                    padded.resize(LANES * stride, 0);
                    tile = &padded;
                }
                let next = weights.get((start + LANES) * stride..).unwrap_or_default();
                let tile = Tile::new(simd, tile, stride);
                if x.rows == 1 {
                    let result = alone::<S, F>(simd, tile, next, blocks);
                    out[start..start + count].copy_from_slice(&result[..count]);
                } else {
                    let sums = &mut sums[..m];
                    sums.fill([0.0; LANES]);
                    together::<S, F>(simd, tile, blocks, sums);
                    for (i, sums) in sums.iter().enumerate() {
                        out[(first + i) * rows + start..][..count].copy_from_slice(&sums[..count]);
                    }
                }
            }
        }
    }
}

/// Sixteen weight rows with one row of activations. What comes `next` is fetched meanwhile.
#[inline(always)]
fn alone<S: Lanes, F: Format>(simd: S, tile: Tile<'_, S>, next: &[u8], x: &[XBlock]) -> [f32; LANES] {
    let lines = (tile.len() / LINE).div_ceil(x.len());
    let mut sink = Alone { simd, x: x.iter(), sum: simd.splat_f32(0.0), next: next.as_ptr(), lines };
    for block in 0..x.len() / (F::WIDTH / super::BLOCK) {
        F::unpack(simd, tile, block, &mut sink);
    }
    let mut out = [0.0; LANES];
    simd.store(sink.sum, &mut out);
    out
}

struct Alone<'a, S: Lanes> {
    simd: S,
    x: std::slice::Iter<'a, XBlock>,
    sum: S::Floats,
    next: *const u8,
    /// Cache lines to fetch for each piece.
    lines: usize,
}

impl<S: Lanes> Sink<S> for Alone<'_, S> {
    #[inline(always)]
    fn piece<F: Format>(&mut self, piece: Piece<S>) {
        let Some(x) = self.x.next() else { return };
        let simd = self.simd;
        // Sixteen rows at once are too many threads of access for the CPU to guess; in the order of addresses they are one.
        for _ in 0..self.lines {
            simd.prefetch(self.next);
            self.next = self.next.wrapping_add(LINE);
        }
        let weights = if F::SIGNED { simd.weights::<true>(piece.quads) } else { simd.weights::<false>(piece.quads) };
        [self.sum] = grown::<S, F, 1>(simd, &weights, &piece, [x], [self.sum]);
    }
}

/// Sixteen weight rows with all rows of a chunk of activations, which is `[blocks, rows]`.
#[inline(always)]
fn together<S: Lanes, F: Format>(simd: S, tile: Tile<'_, S>, x: &[XBlock], sums: &mut [[f32; LANES]]) {
    let blocks = x.len() / sums.len() / (F::WIDTH / super::BLOCK);
    let mut sink = Together { simd, x: x.chunks_exact(sums.len()), sums };
    for block in 0..blocks {
        F::unpack(simd, tile, block, &mut sink);
    }
}

struct Together<'a, S: Lanes> {
    simd: S,
    x: std::slice::ChunksExact<'a, XBlock>,
    sums: &'a mut [[f32; LANES]],
}

impl<S: Lanes> Together<'_, S> {
    #[inline(always)]
    fn several<F: Format, const X: usize>(simd: S, piece: &Piece<S>, x: &[XBlock], sums: &mut [[f32; LANES]]) {
        let weights = if F::SIGNED { simd.weights::<true>(piece.quads) } else { simd.weights::<false>(piece.quads) };
        let ((x, x_rest), (sums, sums_rest)) = (x.as_chunks::<X>(), sums.as_chunks_mut::<X>());
        for (x, sums) in x.iter().zip(sums) {
            let mut these = [simd.splat_f32(0.0); X];
            let mut refs = [&x[0]; X];
            let mut i = 0;
            while i < X {
                these[i] = simd.load(&sums[i]);
                refs[i] = &x[i];
                i += 1;
            }
            these = grown::<S, F, X>(simd, &weights, piece, refs, these);
            let mut i = 0;
            while i < X {
                simd.store(these[i], &mut sums[i]);
                i += 1;
            }
        }
        for (x, sum) in x_rest.iter().zip(sums_rest) {
            let [this] = grown::<S, F, 1>(simd, &weights, piece, [x], [simd.load(sum)]);
            simd.store(this, sum);
        }
    }
}

impl<S: Lanes> Sink<S> for Together<'_, S> {
    #[inline(always)]
    fn piece<F: Format>(&mut self, piece: Piece<S>) {
        let Some(x) = self.x.next() else { return };
        if S::TOGETHER == 4 {
            Self::several::<F, 4>(self.simd, &piece, x, self.sums);
        } else {
            Self::several::<F, 2>(self.simd, &piece, x, self.sums);
        }
    }
}

/// The sums with the products of one more piece: the one place where a result is made.
#[inline(always)]
fn grown<S: Lanes, F: Format, const X: usize>(
    simd: S,
    weights: &S::Weights,
    piece: &Piece<S>,
    x: [&XBlock; X],
    mut sums: [S::Floats; X],
) -> [S::Floats; X] {
    let [first, last] = if F::SIGNED { simd.dots::<true, X>(weights, x) } else { simd.dots::<false, X>(weights, x) };
    let mut i = 0;
    while i < X {
        let scale = simd.splat_f32(x[i].scale);
        if F::HALVES {
            let (a, b) = (simd.mul(piece.scales[0], scale), simd.mul(piece.scales[1], scale));
            sums[i] = simd.mul_add(simd.to_f32(first[i]), a, sums[i]);
            sums[i] = simd.mul_add(simd.to_f32(last[i]), b, sums[i]);
            if F::MINIMUM {
                sums[i] = simd.mul_add(piece.minima[0], simd.splat_f32(x[i].halves[0]), sums[i]);
                sums[i] = simd.mul_add(piece.minima[1], simd.splat_f32(x[i].halves[1]), sums[i]);
            }
        } else {
            let dot = simd.to_f32(simd.add(first[i], last[i]));
            sums[i] = simd.mul_add(dot, simd.mul(piece.scales[0], scale), sums[i]);
            if F::MINIMUM {
                sums[i] = simd.mul_add(piece.minima[0], simd.splat_f32(x[i].total), sums[i]);
            }
        }
        i += 1;
    }
    sums
}

/// A format whose elements are floats.
pub(super) trait Float {
    /// Sixteen elements.
    type Group;
    /// Groups, and the bytes of the elements that are left over.
    fn groups(row: &[u8]) -> (&[Self::Group], &[u8]);
    fn load<S: Simd>(simd: S, group: &Self::Group) -> S::Floats;
    /// Elements one by one.
    fn each(bytes: &[u8]) -> impl Iterator<Item = f32>;
}

macro_rules! float {
    ($name:ident, $bytes:literal, $load:ident, $read:expr) => {
        pub(super) struct $name;

        impl Float for $name {
            type Group = [u8; $bytes * LANES];
            #[inline(always)]
            fn groups(row: &[u8]) -> (&[Self::Group], &[u8]) {
                row.as_chunks()
            }
            #[inline(always)]
            fn load<S: Simd>(simd: S, group: &Self::Group) -> S::Floats {
                simd.$load(group)
            }
            #[inline(always)]
            fn each(bytes: &[u8]) -> impl Iterator<Item = f32> {
                bytes.as_chunks::<$bytes>().0.iter().map($read)
            }
        }
    };
}

float!(F32, 4, load_f32, |bytes| f32::from_le_bytes(*bytes));
float!(F16, 2, load_f16, |bytes| half::f16::from_le_bytes(*bytes).to_f32());
float!(Bf16, 2, load_bf16, |bytes| half::bf16::from_le_bytes(*bytes).to_f32());

/// Products of weight rows of floats: `out` is `[x rows, weight rows]`.
pub(super) struct Floats<'a, E> {
    pub(super) weights: &'a [u8],
    /// Bytes of a weight row.
    pub(super) stride: usize,
    pub(super) x: &'a [f32],
    pub(super) columns: usize,
    pub(super) out: &'a mut [f32],
    pub(super) element: PhantomData<E>,
}

impl<E: Float> Job for Floats<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let (rows, m) = (self.weights.len() / self.stride, self.x.len() / self.columns);
        let mut start = 0;
        if m == 1 {
            while start + 8 <= rows {
                self.tile::<S, 8, 1>(simd, start, 0, rows);
                start += 8;
            }
        }
        while start + 4 <= rows {
            let mut i = 0;
            if S::TOGETHER == 4 {
                while i + 4 <= m {
                    self.tile::<S, 4, 4>(simd, start, i, rows);
                    i += 4;
                }
            } else {
                while i + 2 <= m {
                    self.tile::<S, 2, 2>(simd, start, i, rows);
                    self.tile::<S, 2, 2>(simd, start + 2, i, rows);
                    i += 2;
                }
            }
            while i < m {
                self.tile::<S, 4, 1>(simd, start, i, rows);
                i += 1;
            }
            start += 4;
        }
        while start < rows {
            let mut i = 0;
            while i < m {
                self.tile::<S, 1, 1>(simd, start, i, rows);
                i += 1;
            }
            start += 1;
        }
    }
}

impl<E: Float> Floats<'_, E> {
    /// W weight rows from `start` with X activation rows from `first`.
    #[inline(always)]
    fn tile<S: Simd, const W: usize, const X: usize>(&mut self, simd: S, start: usize, first: usize, rows: usize) {
        let groups = self.columns / LANES;
        let mut w: [&[E::Group]; W] = [&[]; W];
        let mut w_rest: [&[u8]; W] = [&[]; W];
        let mut j = 0;
        while j < W {
            let (all, rest) = E::groups(&self.weights[(start + j) * self.stride..][..self.stride]);
            (w[j], w_rest[j]) = (&all[..groups], rest);
            j += 1;
        }
        let mut x: [&[[f32; LANES]]; X] = [&[]; X];
        let mut x_rest: [&[f32]; X] = [&[]; X];
        let mut i = 0;
        while i < X {
            let (all, rest) = self.x[(first + i) * self.columns..][..self.columns].as_chunks();
            (x[i], x_rest[i]) = (&all[..groups], rest);
            i += 1;
        }
        let mut sums = [[simd.splat_f32(0.0); X]; W];
        let mut k = 0;
        while k < groups {
            let mut these = [simd.splat_f32(0.0); X];
            let mut i = 0;
            while i < X {
                these[i] = simd.load(&x[i][k]);
                i += 1;
            }
            let mut j = 0;
            while j < W {
                let weights = E::load(simd, &w[j][k]);
                let mut i = 0;
                while i < X {
                    sums[j][i] = simd.mul_add(weights, these[i], sums[j][i]);
                    i += 1;
                }
                j += 1;
            }
            k += 1;
        }
        let mut j = 0;
        while j < W {
            let mut i = 0;
            while i < X {
                let rest: f32 = E::each(w_rest[j]).zip(x_rest[i]).map(|(w, x)| w * x).sum();
                self.out[(first + i) * rows + start + j] = simd.sum(sums[j][i]) + rest;
                i += 1;
            }
            j += 1;
        }
    }
}

/// Quantises rows of activations.
pub(super) struct Quantise<'a> {
    pub(super) values: &'a [f32],
    pub(super) columns: usize,
}

impl LanesJob for Quantise<'_> {
    type Out = Q16Rows;

    #[inline(always)]
    fn run<S: Lanes>(self, _simd: S) -> Q16Rows {
        let (rows, blocks) = (self.values.len() / self.columns.max(1), self.columns / super::BLOCK);
        let mut all = Vec::with_capacity(rows * blocks);
        for chunk in self.values.chunks(CHUNK * self.columns.max(1)) {
            let values = chunk.as_chunks().0;
            for block in 0..blocks {
                for row in values.chunks_exact(blocks) {
                    all.push(quantise_block::<S>(&row[block]));
                }
            }
        }
        Q16Rows { rows, blocks, all }
    }
}

#[inline(always)]
fn quantise_block<S: Lanes>(block: &[f32; super::BLOCK]) -> XBlock {
    // As bits, so that a NaN is the largest of all: a value that is no number makes the scale one that is none.
    let mut largest = [0u32; 16];
    for sixteen in block.as_chunks::<16>().0 {
        for (l, x) in largest.iter_mut().zip(sixteen) {
            *l = (*l).max(x.to_bits() & 0x7fff_ffff);
        }
    }
    let scale = f32::from_bits(largest.iter().fold(0, |a, b| a.max(*b))) / 32767.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    // Adding and taking away 1.5 * 2^23 rounds to the nearest whole number, ties to even, in two additions. The clamp is for the
    // smallest scales, whose inverse is not exact, and for what is no number.
    const ROUND: f32 = 12_582_912.0;
    let mut quants = [0i16; super::BLOCK];
    for (quant, x) in quants.iter_mut().zip(block) {
        *quant = ((x * inverse).clamp(-32767.0, 32767.0) + ROUND - ROUND) as i32 as i16;
    }
    let (first, last) = quants.split_at(16);
    let sum = |quants: &[i16]| quants.iter().map(|q| i32::from(*q)).sum::<i32>();
    let high: i32 = quants.iter().map(|q| i32::from(*q >> 8)).sum();
    let halves = [sum(first), sum(last)];
    XBlock {
        quants: S::arrange(&quants),
        scale,
        total: scale * (halves[0] + halves[1]) as f32,
        halves: halves.map(|sum| scale * sum as f32),
        high: -128 * high,
    }
}
