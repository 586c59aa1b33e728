//! The lanes on x86-64: as two registers of AVX2, with AVX-VNNI where the CPU has it, and as one of AVX-512 with VNNI.
//!
//! `unsafe` here is of three sorts: calling a function whose CPU features were detected (a value of a set's type exists only then),
//! loading from or storing to an array of exactly the width of the register, and reading blocks of rows that lie in their tile, of which
//! [`Blocks`](super::simd::Blocks) makes sure.
#![expect(unsafe_code, reason = "vector intrinsics")]

mod avx2;
mod avx512;

use std::arch::x86_64::*;

pub(super) use avx2::{Avx2, AvxVnni};
pub(super) use avx512::Avx512Vnni;

/// Calls intrinsics of the set whose method this is.
macro_rules! enabled {
    ($call:expr) => {{
        // SAFETY: `self` exists only if the set's features were detected, and arguments that are addresses are those of arrays of the
        // register's width.
        unsafe { $call }
    }};
}
use enabled;

impl Avx2 {
    pub(super) fn dot_f16(self, a: &[f32], b: &[u16]) -> f32 {
        enabled!(dot_f16(a, b))
    }

    pub(super) fn add_scaled_f16(self, sum: &mut [f32], scale: f32, b: &[u16]) {
        enabled!(add_scaled_f16(sum, scale, b))
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn load_f32(values: &[f32; 8]) -> __m256 {
    // SAFETY: 8 floats are there.
    unsafe { _mm256_loadu_ps(values.as_ptr()) }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn load_f16(values: &[u16; 8]) -> __m256 {
    // SAFETY: 8 halves are there.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(values.as_ptr().cast()) })
}

/// The sum of eight lanes.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn sum(lanes: __m256) -> f32 {
    let four = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps::<1>(lanes));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

#[target_feature(enable = "avx2,fma,f16c")]
fn dot_f16(a: &[f32], b: &[u16]) -> f32 {
    let len = a.len().min(b.len());
    let ((a, a_rest), (b, b_rest)) = (a[..len].as_chunks::<8>(), b[..len].as_chunks::<8>());
    let mut sums = [_mm256_setzero_ps(); 4];
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        sums[i % 4] = _mm256_fmadd_ps(load_f32(a), load_f16(b), sums[i % 4]);
    }
    let all = _mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3]));
    sum(all) + super::scalar::dot_f16(a_rest, b_rest)
}

#[target_feature(enable = "avx2,fma,f16c")]
fn add_scaled_f16(total: &mut [f32], scale: f32, b: &[u16]) {
    let len = total.len().min(b.len());
    let ((total, total_rest), (b, b_rest)) = (total[..len].as_chunks_mut::<8>(), b[..len].as_chunks::<8>());
    let factor = _mm256_set1_ps(scale);
    for (total, b) in total.iter_mut().zip(b) {
        let new = _mm256_fmadd_ps(factor, load_f16(b), load_f32(total));
        // SAFETY: 8 floats are there.
        unsafe { _mm256_storeu_ps(total.as_mut_ptr(), new) };
    }
    super::scalar::add_scaled_f16(total_rest, scale, b_rest);
}
