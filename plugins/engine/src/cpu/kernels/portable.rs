//! Plain arrays, which compilers make vectors of where they can. Quantised weights are read to f32 first.

use super::simd::{Job, LANES, Simd};

#[derive(Clone, Copy, Debug)]
pub(super) struct Portable;

impl Simd for Portable {
    type Floats = [f32; LANES];
    const TOGETHER: usize = 2;
    #[inline(always)]
    fn run<J: Job>(self, job: J) -> J::Out {
        job.run(self)
    }
    #[inline(always)]
    fn splat_f32(self, value: f32) -> Self::Floats {
        [value; LANES]
    }
    /// In two roundings: one takes a library call where there is no instruction.
    #[inline(always)]
    fn mul_add(self, a: Self::Floats, b: Self::Floats, mut c: Self::Floats) -> Self::Floats {
        for i in 0..LANES {
            c[i] += a[i] * b[i];
        }
        c
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
    fn sum(self, a: Self::Floats) -> f32 {
        a.iter().sum()
    }
}
