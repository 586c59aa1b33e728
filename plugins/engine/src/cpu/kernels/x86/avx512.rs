//! One register of AVX-512; activations as upper and lower bytes.

use std::arch::x86_64::*;

use super::super::simd::{self, Blocks, ByteLanes, Job, LANES, Lanes, LanesJob, Simd};
use super::super::{BLOCK, QUADS, XBlock};
use super::enabled;

/// Proof that the CPU has AVX-512 with BW, DQ, VL and VNNI.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Avx512Vnni(());

impl Avx512Vnni {
    pub(in super::super) fn detected() -> Option<Self> {
        let all = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni");
        all.then_some(Self(()))
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn run<J: Job>(simd: Avx512Vnni, job: J) -> J::Out {
    job.run(simd)
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn run_lanes<J: LanesJob>(simd: Avx512Vnni, job: J) -> J::Out {
    job.run(simd)
}

impl Simd for Avx512Vnni {
    type Floats = __m512;
    const TOGETHER: usize = 4;
    fn run<J: Job>(self, job: J) -> J::Out {
        enabled!(run(self, job))
    }
    #[inline(always)]
    fn splat_f32(self, value: f32) -> __m512 {
        enabled!(_mm512_set1_ps(value))
    }
    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        enabled!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> __m512 {
        enabled!(_mm512_loadu_ps(from.as_ptr()))
    }
    #[inline(always)]
    fn load_f16(self, from: &[u8; 2 * LANES]) -> __m512 {
        enabled!(_mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())))
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u8; 2 * LANES]) -> __m512 {
        enabled!({
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        })
    }
    #[inline(always)]
    fn load_f32(self, from: &[u8; 4 * LANES]) -> __m512 {
        enabled!(_mm512_loadu_ps(from.as_ptr().cast()))
    }
    #[inline(always)]
    fn sum(self, a: __m512) -> f32 {
        enabled!(super::sum(_mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a))))
    }
}

impl Lanes for Avx512Vnni {
    type Ints = __m512i;
    /// Bytes as unsigned ones (signed ones with 128 added), and as they are.
    type Weights = [[__m512i; QUADS]; 2];

    fn run_lanes<J: LanesJob>(self, job: J) -> J::Out {
        enabled!(run_lanes(self, job))
    }
    #[inline(always)]
    fn splat(self, value: i32) -> __m512i {
        enabled!(_mm512_set1_epi32(value))
    }
    #[inline(always)]
    fn and(self, a: __m512i, b: __m512i) -> __m512i {
        enabled!(_mm512_and_si512(a, b))
    }
    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        enabled!(_mm512_or_si512(a, b))
    }
    #[inline(always)]
    fn add(self, a: __m512i, b: __m512i) -> __m512i {
        enabled!(_mm512_add_epi32(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m512i, b: __m512i) -> __m512i {
        enabled!(_mm512_sub_epi32(a, b))
    }
    #[inline(always)]
    fn shift_left<const N: u32>(self, a: __m512i) -> __m512i {
        enabled!(_mm512_slli_epi32::<N>(a))
    }
    #[inline(always)]
    fn shift_right<const N: u32>(self, a: __m512i) -> __m512i {
        enabled!(_mm512_srli_epi32::<N>(a))
    }
    #[inline(always)]
    fn shift_right_signed<const N: u32>(self, a: __m512i) -> __m512i {
        enabled!(_mm512_srai_epi32::<N>(a))
    }
    #[inline(always)]
    fn lookup(self, table: &[i8; 16], index: __m512i) -> __m512i {
        enabled!(_mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())), index))
    }
    #[inline(always)]
    fn add_sixteens(self, bytes: __m512i, bits: __m512i, quad: usize) -> __m512i {
        let byte = quad as i32 / 2;
        let mask = if quad.is_multiple_of(2) { 0x0804_0201 } else { 0x8040_2010_u32 as i32 };
        let from = |lane: i32| (lane * 4 + byte) * 0x0101_0101;
        enabled!({
            let eight = _mm512_shuffle_epi8(bits, _mm512_set4_epi32(from(3), from(2), from(1), from(0)));
            let set = _mm512_test_epi8_mask(eight, _mm512_set1_epi32(mask));
            _mm512_mask_add_epi8(bytes, set, bytes, _mm512_set1_epi8(16))
        })
    }
    #[inline(always)]
    fn bits_to_f32(self, bits: __m512i) -> __m512 {
        enabled!(_mm512_castsi512_ps(bits))
    }
    #[inline(always)]
    fn to_f32(self, a: __m512i) -> __m512 {
        enabled!(_mm512_cvtepi32_ps(a))
    }
    #[inline(always)]
    fn half(self, a: __m512i) -> __m512 {
        enabled!(_mm512_cvtph_ps(_mm512_cvtepi32_epi16(a)))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        enabled!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn store(self, a: __m512, to: &mut [f32; LANES]) {
        enabled!(_mm512_storeu_ps(to.as_mut_ptr(), a))
    }
    #[inline(always)]
    fn strides(self, stride: usize) -> __m512i {
        enabled!({
            let row = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            _mm512_mullo_epi32(row, _mm512_set1_epi32(stride as i32))
        })
    }
    #[inline(always)]
    fn sixteen_bytes<const BYTES: usize>(self, blocks: &Blocks<'_, Self, BYTES>, offset: usize) -> [__m512i; 4] {
        let (start, stride, _) = blocks.at::<16>(offset);
        enabled!({
            // Rows r, r + 4, r + 8 and r + 12, so that what is unpacked below comes out in the order of rows.
            macro_rules! four {
                ($row:literal) => {{
                    let row = start.add($row * stride);
                    let a = _mm512_castsi128_si512(_mm_loadu_si128(row.cast()));
                    let a = _mm512_inserti32x4::<1>(a, _mm_loadu_si128(row.add(4 * stride).cast()));
                    let a = _mm512_inserti32x4::<2>(a, _mm_loadu_si128(row.add(8 * stride).cast()));
                    _mm512_inserti32x4::<3>(a, _mm_loadu_si128(row.add(12 * stride).cast()))
                }};
            }
            let (a, b, c, d) = (four!(0), four!(1), four!(2), four!(3));
            let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
            let (ab_high, cd_high) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
            [
                _mm512_unpacklo_epi64(ab, cd),
                _mm512_unpackhi_epi64(ab, cd),
                _mm512_unpacklo_epi64(ab_high, cd_high),
                _mm512_unpackhi_epi64(ab_high, cd_high),
            ]
        })
    }
    #[inline(always)]
    fn four_bytes<const BYTES: usize>(self, blocks: &Blocks<'_, Self, BYTES>, offset: usize) -> __m512i {
        let (start, _, strides) = blocks.at::<4>(offset);
        enabled!(_mm512_i32gather_epi32::<1>(strides, start.cast()))
    }
    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        enabled!(_mm_prefetch::<_MM_HINT_T1>(at.cast()))
    }
    #[inline(always)]
    fn arrange(quants: &[i16; BLOCK]) -> [i32; 2 * QUADS] {
        simd::bytes(quants)
    }
    #[inline(always)]
    fn weights<const SIGNED: bool>(self, quads: [__m512i; QUADS]) -> Self::Weights {
        simd::byte_weights::<Self, SIGNED>(self, quads)
    }
    #[inline(always)]
    fn dots<const SIGNED: bool, const X: usize>(self, weights: &Self::Weights, x: [&XBlock; X]) -> [[__m512i; X]; 2] {
        simd::byte_dots::<Self, SIGNED, X>(self, weights, x)
    }
}

impl ByteLanes for Avx512Vnni {
    #[inline(always)]
    fn unsigned(self, a: __m512i) -> __m512i {
        enabled!(_mm512_xor_si512(a, _mm512_set1_epi8(-128)))
    }
    #[inline(always)]
    fn dot_bytes(self, sums: __m512i, unsigned: __m512i, signed: __m512i) -> __m512i {
        enabled!(_mm512_dpbusd_epi32(sums, unsigned, signed))
    }
}
