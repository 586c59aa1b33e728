//! Two registers of AVX2: with pairs of 16 bits, or with AVX-VNNI and activations as upper and lower bytes.

use std::arch::x86_64::*;

use super::super::simd::{self, Blocks, ByteLanes, Job, LANES, Lanes, LanesJob, Simd};
use super::super::{BLOCK, QUADS, XBlock};
use super::enabled;

/// Proof that the CPU has AVX2, FMA and F16C.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Avx2(());

impl Avx2 {
    pub(in super::super) fn detected() -> Option<Self> {
        let all =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        all.then_some(Self(()))
    }
}

/// Proof that the CPU has those and AVX-VNNI.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct AvxVnni(());

impl AvxVnni {
    pub(in super::super) fn detected() -> Option<Self> {
        (Avx2::detected().is_some() && is_x86_feature_detected!("avxvnni")).then_some(Self(()))
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn run<J: Job>(simd: Avx2, job: J) -> J::Out {
    job.run(simd)
}

#[target_feature(enable = "avx2,fma,f16c")]
fn run_lanes<J: LanesJob>(simd: Avx2, job: J) -> J::Out {
    job.run(simd)
}

#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
fn run_vnni_lanes<J: LanesJob>(simd: AvxVnni, job: J) -> J::Out {
    job.run(simd)
}

#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
fn run_vnni<J: Job>(simd: AvxVnni, job: J) -> J::Out {
    job.run(simd)
}

/// What both sets have in common; `$own` are the products.
macro_rules! lanes {
    ($set:ident, $run:ident, $run_lanes:ident, $weights:ty, { $($own:item)* }) => {
        impl Simd for $set {
            type Floats = [__m256; 2];
            const TOGETHER: usize = 2;
            fn run<J: Job>(self, job: J) -> J::Out {
                enabled!($run(self, job))
            }
            #[inline(always)]
            fn splat_f32(self, value: f32) -> Self::Floats {
                enabled!([_mm256_set1_ps(value); 2])
            }
            #[inline(always)]
            fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
                enabled!([_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])])
            }
            #[inline(always)]
            fn load(self, from: &[f32; LANES]) -> Self::Floats {
                enabled!([_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from[8..].as_ptr())])
            }
            #[inline(always)]
            fn load_f16(self, from: &[u8; 2 * LANES]) -> Self::Floats {
                enabled!([
                    _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())),
                    _mm256_cvtph_ps(_mm_loadu_si128(from[16..].as_ptr().cast())),
                ])
            }
            #[inline(always)]
            fn load_bf16(self, from: &[u8; 2 * LANES]) -> Self::Floats {
                enabled!({
                    let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.as_ptr().cast()));
                    let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(from[16..].as_ptr().cast()));
                    [
                        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
                    ]
                })
            }
            #[inline(always)]
            fn load_f32(self, from: &[u8; 4 * LANES]) -> Self::Floats {
                enabled!([_mm256_loadu_ps(from.as_ptr().cast()), _mm256_loadu_ps(from[32..].as_ptr().cast())])
            }
            #[inline(always)]
            fn sum(self, a: Self::Floats) -> f32 {
                enabled!(super::sum(_mm256_add_ps(a[0], a[1])))
            }
        }

        impl Lanes for $set {
            type Ints = [__m256i; 2];
            type Weights = $weights;

            fn run_lanes<J: LanesJob>(self, job: J) -> J::Out {
                enabled!($run_lanes(self, job))
            }
            #[inline(always)]
            fn splat(self, value: i32) -> Self::Ints {
                enabled!([_mm256_set1_epi32(value); 2])
            }
            #[inline(always)]
            fn and(self, a: Self::Ints, b: Self::Ints) -> Self::Ints {
                enabled!([_mm256_and_si256(a[0], b[0]), _mm256_and_si256(a[1], b[1])])
            }
            #[inline(always)]
            fn or(self, a: Self::Ints, b: Self::Ints) -> Self::Ints {
                enabled!([_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])])
            }
            #[inline(always)]
            fn add(self, a: Self::Ints, b: Self::Ints) -> Self::Ints {
                enabled!([_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])])
            }
            #[inline(always)]
            fn sub(self, a: Self::Ints, b: Self::Ints) -> Self::Ints {
                enabled!([_mm256_sub_epi32(a[0], b[0]), _mm256_sub_epi32(a[1], b[1])])
            }
            #[inline(always)]
            fn shift_left<const N: u32>(self, a: Self::Ints) -> Self::Ints {
                enabled!({
                    let by = _mm_cvtsi32_si128(N as i32);
                    [_mm256_sll_epi32(a[0], by), _mm256_sll_epi32(a[1], by)]
                })
            }
            #[inline(always)]
            fn shift_right<const N: u32>(self, a: Self::Ints) -> Self::Ints {
                enabled!({
                    let by = _mm_cvtsi32_si128(N as i32);
                    [_mm256_srl_epi32(a[0], by), _mm256_srl_epi32(a[1], by)]
                })
            }
            #[inline(always)]
            fn shift_right_signed<const N: u32>(self, a: Self::Ints) -> Self::Ints {
                enabled!({
                    let by = _mm_cvtsi32_si128(N as i32);
                    [_mm256_sra_epi32(a[0], by), _mm256_sra_epi32(a[1], by)]
                })
            }
            #[inline(always)]
            fn lookup(self, table: &[i8; 16], index: Self::Ints) -> Self::Ints {
                enabled!({
                    let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
                    [_mm256_shuffle_epi8(table, index[0]), _mm256_shuffle_epi8(table, index[1])]
                })
            }
            #[inline(always)]
            fn add_sixteens(self, bytes: Self::Ints, bits: Self::Ints, quad: usize) -> Self::Ints {
                let byte = quad as i32 / 2;
                let mask = if quad.is_multiple_of(2) { 0x0804_0201 } else { 0x8040_2010_u32 as i32 };
                let from = [0, 1, 2, 3].map(|lane| (lane * 4 + byte) * 0x0101_0101);
                enabled!({
                    let from = _mm256_broadcastsi128_si256(_mm_setr_epi32(from[0], from[1], from[2], from[3]));
                    let (mask, sixteen) = (_mm256_set1_epi32(mask), _mm256_set1_epi8(16));
                    let mut out = bytes;
                    let mut i = 0;
                    while i < 2 {
                        let eight = _mm256_and_si256(_mm256_shuffle_epi8(bits[i], from), mask);
                        let set = _mm256_and_si256(_mm256_cmpeq_epi8(eight, mask), sixteen);
                        out[i] = _mm256_add_epi8(bytes[i], set);
                        i += 1;
                    }
                    out
                })
            }
            #[inline(always)]
            fn bits_to_f32(self, bits: Self::Ints) -> Self::Floats {
                enabled!([_mm256_castsi256_ps(bits[0]), _mm256_castsi256_ps(bits[1])])
            }
            #[inline(always)]
            fn to_f32(self, a: Self::Ints) -> Self::Floats {
                enabled!([_mm256_cvtepi32_ps(a[0]), _mm256_cvtepi32_ps(a[1])])
            }
            #[inline(always)]
            fn half(self, a: Self::Ints) -> Self::Floats {
                let low = self.and(a, self.splat(0xffff));
                enabled!({
                    let mut out = [_mm256_setzero_ps(); 2];
                    let mut i = 0;
                    while i < 2 {
                        let halves = _mm_packus_epi32(
                            _mm256_castsi256_si128(low[i]),
                            _mm256_extracti128_si256::<1>(low[i]),
                        );
                        out[i] = _mm256_cvtph_ps(halves);
                        i += 1;
                    }
                    out
                })
            }
            #[inline(always)]
            fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
                enabled!([_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])])
            }
            #[inline(always)]
            fn store(self, a: Self::Floats, to: &mut [f32; LANES]) {
                enabled!({
                    _mm256_storeu_ps(to.as_mut_ptr(), a[0]);
                    _mm256_storeu_ps(to[8..].as_mut_ptr(), a[1]);
                })
            }
            /// Not needed: rows are read one by one.
            #[inline(always)]
            fn strides(self, _stride: usize) -> Self::Ints {
                self.splat(0)
            }
            #[inline(always)]
            fn sixteen_bytes<const BYTES: usize>(
                self,
                blocks: &Blocks<'_, Self, BYTES>,
                offset: usize,
            ) -> [Self::Ints; 4] {
                let (start, stride, _) = blocks.at::<16>(offset);
                enabled!({
                    let mut out = [[_mm256_setzero_si256(); 2]; 4];
                    let mut i = 0;
                    while i < 2 {
                        // Rows r and r + 4, so that what is unpacked below comes out in the order of rows.
                        let mut two = [_mm256_setzero_si256(); 4];
                        let mut r = 0;
                        while r < 4 {
                            let row = start.add((8 * i + r) * stride);
                            let first = _mm256_castsi128_si256(_mm_loadu_si128(row.cast()));
                            let second = _mm_loadu_si128(row.add(4 * stride).cast());
                            two[r] = _mm256_inserti128_si256::<1>(first, second);
                            r += 1;
                        }
                        let [a, b, c, d] = two;
                        let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
                        let (ab_high, cd_high) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
                        out[0][i] = _mm256_unpacklo_epi64(ab, cd);
                        out[1][i] = _mm256_unpackhi_epi64(ab, cd);
                        out[2][i] = _mm256_unpacklo_epi64(ab_high, cd_high);
                        out[3][i] = _mm256_unpackhi_epi64(ab_high, cd_high);
                        i += 1;
                    }
                    out
                })
            }
            #[inline(always)]
            fn four_bytes<const BYTES: usize>(self, blocks: &Blocks<'_, Self, BYTES>, offset: usize) -> Self::Ints {
                let mut four = [0i32; LANES];
                let mut row = 0;
                while row < LANES {
                    four[row] = i32::from_le_bytes(*blocks.row(offset, row));
                    row += 1;
                }
                enabled!([
                    _mm256_loadu_si256(four.as_ptr().cast()),
                    _mm256_loadu_si256(four[8..].as_ptr().cast())
                ])
            }
            #[inline(always)]
            fn prefetch(self, at: *const u8) {
                enabled!(_mm_prefetch::<_MM_HINT_T1>(at.cast()))
            }

            $($own)*
        }
    };
}

lanes!(Avx2, run, run_lanes, [[__m256i; 2]; 2 * QUADS], {
    #[inline(always)]
    fn arrange(quants: &[i16; BLOCK]) -> [i32; 2 * QUADS] {
        simd::pairs(quants)
    }
    /// Widened to 16 bits: of each four the pairs (0, 2) and (1, 3).
    #[inline(always)]
    fn weights<const SIGNED: bool>(self, quads: [Self::Ints; QUADS]) -> Self::Weights {
        enabled!({
            let mut out = [[_mm256_setzero_si256(); 2]; 2 * QUADS];
            let byte = _mm256_set1_epi16(0xff);
            let mut j = 0;
            while j < QUADS {
                let mut i = 0;
                while i < 2 {
                    let quad = quads[j][i];
                    if SIGNED {
                        out[2 * j][i] = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(quad));
                        out[2 * j + 1][i] = _mm256_srai_epi16::<8>(quad);
                    } else {
                        out[2 * j][i] = _mm256_and_si256(quad, byte);
                        out[2 * j + 1][i] = _mm256_srli_epi16::<8>(quad);
                    }
                    i += 1;
                }
                j += 1;
            }
            out
        })
    }
    #[inline(always)]
    fn dots<const SIGNED: bool, const X: usize>(
        self,
        weights: &Self::Weights,
        x: [&XBlock; X],
    ) -> [[Self::Ints; X]; 2] {
        let mut out = [[self.splat(0); X]; 2];
        let mut j = 0;
        while j < 2 * QUADS {
            let mut i = 0;
            while i < X {
                let two = self.splat(x[i].quants[j]);
                let sums = &mut out[j / QUADS][i];
                *sums = enabled!([
                    _mm256_add_epi32(sums[0], _mm256_madd_epi16(weights[j][0], two[0])),
                    _mm256_add_epi32(sums[1], _mm256_madd_epi16(weights[j][1], two[1])),
                ]);
                i += 1;
            }
            j += 1;
        }
        out
    }
});

lanes!(AvxVnni, run_vnni, run_vnni_lanes, [[[__m256i; 2]; QUADS]; 2], {
    #[inline(always)]
    fn arrange(quants: &[i16; BLOCK]) -> [i32; 2 * QUADS] {
        simd::bytes(quants)
    }
    #[inline(always)]
    fn weights<const SIGNED: bool>(self, quads: [Self::Ints; QUADS]) -> Self::Weights {
        simd::byte_weights::<Self, SIGNED>(self, quads)
    }
    #[inline(always)]
    fn dots<const SIGNED: bool, const X: usize>(
        self,
        weights: &Self::Weights,
        x: [&XBlock; X],
    ) -> [[Self::Ints; X]; 2] {
        simd::byte_dots::<Self, SIGNED, X>(self, weights, x)
    }
});

impl ByteLanes for AvxVnni {
    #[inline(always)]
    fn unsigned(self, a: Self::Ints) -> Self::Ints {
        enabled!([_mm256_xor_si256(a[0], _mm256_set1_epi8(-128)), _mm256_xor_si256(a[1], _mm256_set1_epi8(-128))])
    }
    #[inline(always)]
    fn dot_bytes(self, sums: Self::Ints, unsigned: Self::Ints, signed: Self::Ints) -> Self::Ints {
        enabled!([
            _mm256_dpbusd_avx_epi32(sums[0], unsigned[0], signed[0]),
            _mm256_dpbusd_avx_epi32(sums[1], unsigned[1], signed[1]),
        ])
    }
}
