//! The lanes as plain arrays, which compilers make vectors of where they can.

use super::simd::{Blocks, Job, LANES, Simd};
use super::{BLOCK, QUADS, XBlock};

#[derive(Clone, Copy, Debug)]
pub(super) struct Portable;

#[inline(always)]
fn map<T: Copy, U: Copy + Default>(a: [T; LANES], f: impl Fn(T) -> U) -> [U; LANES] {
    let mut out = [U::default(); LANES];
    for (out, a) in out.iter_mut().zip(a) {
        *out = f(a);
    }
    out
}

#[inline(always)]
fn zip<T: Copy + Default>(a: [T; LANES], b: [T; LANES], f: impl Fn(T, T) -> T) -> [T; LANES] {
    let mut out = a;
    for (out, b) in out.iter_mut().zip(b) {
        *out = f(*out, b);
    }
    out
}

impl Simd for Portable {
    type Ints = [i32; LANES];
    type Floats = [f32; LANES];
    type Weights = [[i32; LANES]; QUADS];
    const TOGETHER: usize = 2;

    #[inline(always)]
    fn run<J: Job>(self, job: J) -> J::Out {
        job.run(self)
    }

    #[inline(always)]
    fn splat(self, value: i32) -> Self::Ints {
        [value; LANES]
    }
    #[inline(always)]
    fn and(self, a: Self::Ints, b: Self::Ints) -> Self::Ints {
        zip(a, b, |a, b| a & b)
    }
    #[inline(always)]
    fn or(self, a: Self::Ints, b: Self::Ints) -> Self::Ints {
        zip(a, b, |a, b| a | b)
    }
    #[inline(always)]
    fn add(self, a: Self::Ints, b: Self::Ints) -> Self::Ints {
        zip(a, b, i32::wrapping_add)
    }
    #[inline(always)]
    fn sub(self, a: Self::Ints, b: Self::Ints) -> Self::Ints {
        zip(a, b, i32::wrapping_sub)
    }
    #[inline(always)]
    fn shift_left<const N: u32>(self, a: Self::Ints) -> Self::Ints {
        map(a, |a| a << N)
    }
    #[inline(always)]
    fn shift_right<const N: u32>(self, a: Self::Ints) -> Self::Ints {
        map(a, |a| (a as u32 >> N) as i32)
    }
    #[inline(always)]
    fn shift_right_signed<const N: u32>(self, a: Self::Ints) -> Self::Ints {
        map(a, |a| a >> N)
    }
    #[inline(always)]
    fn lookup(self, table: &[i8; 16], index: Self::Ints) -> Self::Ints {
        map(index, |index| i32::from_le_bytes(index.to_le_bytes().map(|at| table[usize::from(at & 15)] as u8)))
    }
    #[inline(always)]
    fn add_sixteens(self, bytes: Self::Ints, bits: Self::Ints, quad: usize) -> Self::Ints {
        zip(bytes, bits, |bytes, bits| {
            let four = bits as u32 >> (4 * quad);
            let spread = (four & 1) | (four & 2) << 7 | (four & 4) << 14 | (four & 8) << 21;
            bytes + (spread << 4) as i32
        })
    }
    #[inline(always)]
    fn bits_to_f32(self, bits: Self::Ints) -> Self::Floats {
        map(bits, |bits| f32::from_bits(bits as u32))
    }
    #[inline(always)]
    fn to_f32(self, a: Self::Ints) -> Self::Floats {
        map(a, |a| a as f32)
    }
    #[inline(always)]
    fn half(self, a: Self::Ints) -> Self::Floats {
        map(a, |a| half::f16::from_bits(a as u16).to_f32())
    }

    #[inline(always)]
    fn splat_f32(self, value: f32) -> Self::Floats {
        [value; LANES]
    }
    #[inline(always)]
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        zip(a, b, |a, b| a * b)
    }
    /// In two roundings: one takes a library call where there is no instruction.
    #[inline(always)]
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        zip(zip(a, b, |a, b| a * b), c, |product, c| product + c)
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::Floats {
        *from
    }
    #[inline(always)]
    fn load_f16(self, from: &[u8; 2 * LANES]) -> Self::Floats {
        let mut out = [0.0; LANES];
        for (out, from) in out.iter_mut().zip(from.as_chunks::<2>().0) {
            *out = half::f16::from_le_bytes(*from).to_f32();
        }
        out
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u8; 2 * LANES]) -> Self::Floats {
        let mut out = [0.0; LANES];
        for (out, from) in out.iter_mut().zip(from.as_chunks::<2>().0) {
            *out = f32::from_bits(u32::from(u16::from_le_bytes(*from)) << 16);
        }
        out
    }
    #[inline(always)]
    fn load_f32(self, from: &[u8; 4 * LANES]) -> Self::Floats {
        let mut out = [0.0; LANES];
        for (out, from) in out.iter_mut().zip(from.as_chunks::<4>().0) {
            *out = f32::from_le_bytes(*from);
        }
        out
    }
    #[inline(always)]
    fn store(self, a: Self::Floats, to: &mut [f32; LANES]) {
        *to = a;
    }
    #[inline(always)]
    fn sum(self, a: Self::Floats) -> f32 {
        a.iter().sum()
    }

    #[inline(always)]
    fn strides(self, stride: usize) -> Self::Ints {
        let mut row = -(stride as i32);
        [0; LANES].map(|_| {
            row += stride as i32;
            row
        })
    }
    #[inline(always)]
    fn sixteen_bytes<const BYTES: usize>(self, blocks: &Blocks<'_, Self, BYTES>, offset: usize) -> [Self::Ints; 4] {
        let mut out = [[0; LANES]; 4];
        for row in 0..LANES {
            for (out, four) in out.iter_mut().zip(blocks.row::<16>(offset, row).as_chunks::<4>().0) {
                out[row] = i32::from_le_bytes(*four);
            }
        }
        out
    }
    #[inline(always)]
    fn four_bytes<const BYTES: usize>(self, blocks: &Blocks<'_, Self, BYTES>, offset: usize) -> Self::Ints {
        let mut out = [0; LANES];
        for (row, out) in out.iter_mut().enumerate() {
            *out = i32::from_le_bytes(*blocks.row(offset, row));
        }
        out
    }
    #[inline(always)]
    fn prefetch(self, _at: *const u8) {}

    #[inline(always)]
    fn arrange(quants: &[i16; BLOCK]) -> [i32; 2 * QUADS] {
        super::simd::pairs(quants)
    }
    #[inline(always)]
    fn weights<const SIGNED: bool>(self, quads: [Self::Ints; QUADS]) -> Self::Weights {
        quads
    }
    #[inline(always)]
    fn dots<const SIGNED: bool, const X: usize>(
        self,
        weights: &Self::Weights,
        x: [&XBlock; X],
    ) -> [[Self::Ints; X]; 2] {
        let mut out = [[[0; LANES]; X]; 2];
        for (j, quad) in weights.iter().enumerate() {
            let [a, b, c, d] = [24, 16, 8, 0].map(|shift| {
                // Bytes below 128 are the same with and without a sign.
                map(*quad, |quad| quad << shift >> 24)
            });
            for (i, x) in x.iter().enumerate() {
                let [even, odd] = [x.quants[2 * j], x.quants[2 * j + 1]];
                let (first, second) = ((even as i16 as i32, even >> 16), (odd as i16 as i32, odd >> 16));
                let sums = &mut out[j / (QUADS / 2)][i];
                for lane in 0..LANES {
                    sums[lane] += a[lane] * first.0 + b[lane] * second.0 + c[lane] * first.1 + d[lane] * second.1;
                }
            }
        }
        out
    }
}
