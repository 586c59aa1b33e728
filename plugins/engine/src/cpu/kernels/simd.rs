//! What a kernel is written in: sixteen lanes of 32 bits, one for each of sixteen weight rows.
//!
//! A value of an implementing type is proof that the CPU has the instructions: it is made in one place, after they were detected.
//! All methods are inlined into a function that has those instructions enabled, which [`Simd::run`] is.

use super::{BLOCK, QUADS, XBlock};

/// Weight rows of a tile, one per lane.
pub(super) const LANES: usize = 16;

/// The same block of sixteen weight rows: row r's lies `r * stride` bytes after `start`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blocks<'a, S: Lanes, const BYTES: usize> {
    /// From the first row's block to the end of the tile.
    bytes: &'a [u8],
    stride: usize,
    strides: S::Ints,
}

impl<'a, S: Lanes, const BYTES: usize> Blocks<'a, S, BYTES> {
    /// Block `block` of the rows of a tile, which is `[16, stride]` bytes; `strides` are [`Lanes::strides`].
    ///
    /// # Panics
    /// If the block does not lie within the rows.
    #[inline(always)]
    pub(super) fn of(tile: &'a [u8], block: usize, stride: usize, strides: S::Ints) -> Self {
        assert!((block + 1) * BYTES <= stride && tile.len() == LANES * stride, "the block lies within its row");
        Self { bytes: &tile[block * BYTES..], stride, strides }
    }

    /// Bytes `offset..offset + N` of the block, of each row: where the first one's are, how far it is to the next, and that in lanes.
    #[inline(always)]
    pub(super) fn at<const N: usize>(&self, offset: usize) -> (*const u8, usize, S::Ints) {
        assert!(offset + N <= BYTES, "the bytes lie within the block");
        (self.bytes[offset..].as_ptr(), self.stride, self.strides)
    }

    /// Bytes `offset..offset + N` of the block of row `row`.
    #[inline(always)]
    pub(super) fn row<const N: usize>(&self, offset: usize, row: usize) -> &'a [u8; N] {
        self.bytes[row * self.stride + offset..].first_chunk().expect("the bytes lie within the block")
    }
}

/// Instructions on sixteen f32.
pub(super) trait Simd: Copy + Send + Sync {
    /// Sixteen f32.
    type Floats: Copy;
    /// As many rows of activations as are best multiplied at once: 4 or 2.
    const TOGETHER: usize;

    /// Runs `job` with the instructions enabled.
    fn run<J: Job>(self, job: J) -> J::Out;

    fn splat_f32(self, value: f32) -> Self::Floats;
    /// `a * b + c`.
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    fn load(self, from: &[f32; LANES]) -> Self::Floats;
    fn load_f16(self, from: &[u8; 2 * LANES]) -> Self::Floats;
    fn load_bf16(self, from: &[u8; 2 * LANES]) -> Self::Floats;
    fn load_f32(self, from: &[u8; 4 * LANES]) -> Self::Floats;
    /// The sum of the lanes, always in the same order.
    fn sum(self, a: Self::Floats) -> f32;
}

/// Instructions on sixteen lanes of 32 bits, as quantised weights need them.
pub(super) trait Lanes: Simd {
    /// Sixteen whole numbers, or four bytes or two 16-bit numbers each.
    type Ints: Copy;
    /// 32 weights of sixteen rows, ready for [`Lanes::dots`].
    type Weights: Copy;

    /// Runs `job` with the instructions enabled.
    fn run_lanes<J: LanesJob>(self, job: J) -> J::Out;

    fn splat(self, value: i32) -> Self::Ints;
    fn and(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    fn or(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    fn add(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    fn sub(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    fn shift_left<const N: u32>(self, a: Self::Ints) -> Self::Ints;
    /// Zeros come in.
    fn shift_right<const N: u32>(self, a: Self::Ints) -> Self::Ints;
    /// Copies of the sign come in.
    fn shift_right_signed<const N: u32>(self, a: Self::Ints) -> Self::Ints;
    /// `table` at each of the bytes of `index`, which are below 16.
    fn lookup(self, table: &[i8; 16], index: Self::Ints) -> Self::Ints;
    /// Adds 16 to byte k of a lane where bit `4 * quad + k` of that lane of `bits` is set. `quad` is below 8, the bytes below 240.
    fn add_sixteens(self, bytes: Self::Ints, bits: Self::Ints, quad: usize) -> Self::Ints;
    /// `bits` as f32.
    fn bits_to_f32(self, bits: Self::Ints) -> Self::Floats;
    fn to_f32(self, a: Self::Ints) -> Self::Floats;
    /// The lower 16 bits of each lane, which are an f16.
    fn half(self, a: Self::Ints) -> Self::Floats;

    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    fn store(self, a: Self::Floats, to: &mut [f32; LANES]);

    /// `stride * r` in lane r.
    fn strides(self, stride: usize) -> Self::Ints;
    /// 16 bytes of each row: vector j has the j-th four of each in its lane.
    fn sixteen_bytes<const BYTES: usize>(self, blocks: &Blocks<'_, Self, BYTES>, offset: usize) -> [Self::Ints; 4];
    /// Four bytes of each row.
    fn four_bytes<const BYTES: usize>(self, blocks: &Blocks<'_, Self, BYTES>, offset: usize) -> Self::Ints;
    /// Asks for these bytes to be brought near; any address will do.
    fn prefetch(self, at: *const u8);

    /// The 32 quants of an activation block in the order that [`Lanes::dots`] wants.
    fn arrange(quants: &[i16; BLOCK]) -> [i32; 2 * QUADS];
    /// Makes weights ready: vector j has weights `4 * j..4 * j + 4` of each row, as bytes: signed ones if `SIGNED`, else below 128.
    fn weights<const SIGNED: bool>(self, quads: [Self::Ints; QUADS]) -> Self::Weights;
    /// The exact products of a row's first and last 16 weights with those of X activation blocks.
    fn dots<const SIGNED: bool, const X: usize>(self, weights: &Self::Weights, x: [&XBlock; X])
    -> [[Self::Ints; X]; 2];
}

/// Lanes that multiply four bytes at a time, unsigned ones with signed ones: activations of 16 bits come as two of 8.
pub(super) trait ByteLanes: Lanes<Weights = [[<Self as Lanes>::Ints; QUADS]; 2]> {
    /// Signed bytes with 128 added.
    fn unsigned(self, a: Self::Ints) -> Self::Ints;
    /// `sums` and in each lane the four products of its bytes.
    fn dot_bytes(self, sums: Self::Ints, unsigned: Self::Ints, signed: Self::Ints) -> Self::Ints;
}

/// Bytes as unsigned ones, and as they are.
#[inline(always)]
pub(super) fn byte_weights<S: ByteLanes, const SIGNED: bool>(simd: S, quads: [S::Ints; QUADS]) -> S::Weights {
    let mut unsigned = quads;
    if SIGNED {
        let mut j = 0;
        while j < QUADS {
            unsigned[j] = simd.unsigned(quads[j]);
            j += 1;
        }
    }
    [unsigned, quads]
}

/// [`Lanes::dots`] of bytes.
#[inline(always)]
pub(super) fn byte_dots<S: ByteLanes, const SIGNED: bool, const X: usize>(
    simd: S,
    [unsigned, weights]: &S::Weights,
    x: [&XBlock; X],
) -> [[S::Ints; X]; 2] {
    let mut out = [[simd.splat(0); X]; 2];
    let mut half = 0;
    while half < 2 {
        let sums = &mut out[half];
        if SIGNED && half == 0 {
            // What the 128 that were added come to.
            let mut i = 0;
            while i < X {
                sums[i] = simd.splat(x[i].high);
                i += 1;
            }
        }
        let mut j = half * 4;
        while j < half * 4 + 4 {
            let mut i = 0;
            while i < X {
                sums[i] = simd.dot_bytes(sums[i], unsigned[j], simd.splat(x[i].quants[j]));
                i += 1;
            }
            j += 1;
        }
        let mut low = [simd.splat(0); X];
        let mut i = 0;
        while i < X {
            sums[i] = simd.shift_left::<8>(sums[i]);
            if X > 1 {
                low[i] = sums[i];
            }
            i += 1;
        }
        let mut j = half * 4;
        while j < half * 4 + 4 {
            let mut i = 0;
            while i < X {
                low[i] = simd.dot_bytes(low[i], simd.splat(x[i].quants[QUADS + j]), weights[j]);
                i += 1;
            }
            j += 1;
        }
        let mut i = 0;
        while i < X {
            // One row alone has two sums at once instead of one after the other: less to wait for.
            sums[i] = if X > 1 { low[i] } else { simd.add(sums[i], low[i]) };
            i += 1;
        }
        half += 1;
    }
    out
}

/// Work that is the same in every instruction set.
pub(super) trait Job {
    type Out;
    /// Marked `inline(always)` by each implementation, so that it is compiled with the instructions of `S`.
    fn run<S: Simd>(self, simd: S) -> Self::Out;
}

/// Work that is the same in every instruction set with [`Lanes`].
pub(super) trait LanesJob {
    type Out;
    /// As [`Job::run`].
    fn run<S: Lanes>(self, simd: S) -> Self::Out;
}

/// Quants two by two, those of four following ones being (0, 2) and (1, 3): as weights come out of their bytes.
#[inline(always)]
pub(super) fn pairs(quants: &[i16; BLOCK]) -> [i32; 2 * QUADS] {
    let mut out = [0; 2 * QUADS];
    for (out, four) in out.as_chunks_mut::<2>().0.iter_mut().zip(quants.as_chunks::<4>().0) {
        let pair = |low: i16, high: i16| i32::from(low as u16) | i32::from(high) << 16;
        *out = [pair(four[0], four[2]), pair(four[1], four[3])];
    }
    out
}

/// The upper bytes of quants, then the lower ones, four by four.
#[inline(always)]
pub(super) fn bytes(quants: &[i16; BLOCK]) -> [i32; 2 * QUADS] {
    let mut out = [0; 2 * QUADS];
    let (high, low) = out.split_at_mut(QUADS);
    for ((high, low), four) in high.iter_mut().zip(low).zip(quants.as_chunks::<4>().0) {
        *high = i32::from_le_bytes([
            (four[0] >> 8) as u8,
            (four[1] >> 8) as u8,
            (four[2] >> 8) as u8,
            (four[3] >> 8) as u8,
        ]);
        *low = i32::from_le_bytes([four[0] as u8, four[1] as u8, four[2] as u8, four[3] as u8]);
    }
    out
}
