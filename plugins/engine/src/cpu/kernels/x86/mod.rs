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

/// The sum of eight lanes.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn sum(lanes: __m256) -> f32 {
    let four = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps::<1>(lanes));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}
