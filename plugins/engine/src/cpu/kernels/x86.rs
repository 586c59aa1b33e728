//! Kernels for x86-64 with AVX2, FMA and F16C, and with AVX-VNNI where the CPU has it.
//!
//! `unsafe` here is of two sorts: calling a function whose CPU features were detected ([`Kernels`] exists only then), and loading
//! from or storing to an array of exactly the width of the register.
#![expect(unsafe_code, reason = "vector intrinsics")]

use std::arch::x86_64::*;
use std::sync::LazyLock;

use super::{BLOCK, Format, Q4_1_BYTES, Q8_0_BYTES, Q16Row, Q16Rows};

/// Proof that the CPU has what the kernels need.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernels {
    vnni: bool,
}

impl Kernels {
    pub(super) fn detected() -> Option<Self> {
        static DETECTED: LazyLock<Option<Kernels>> = LazyLock::new(|| {
            let base =
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
            base.then(|| Kernels { vnni: is_x86_feature_detected!("avxvnni") })
        });
        *DETECTED
    }

    pub(super) fn name(self) -> &'static str {
        if self.vnni { "AVX-VNNI" } else { "AVX2" }
    }

    pub(super) fn products(self, format: Format, weights: &[u8], x: &Q16Rows, out: &mut [f32]) {
        // SAFETY: `self` exists only if the features were detected.
        unsafe {
            match (self.vnni, format) {
                (false, Format::Q4_1) => avx2::q4_1(weights, x, out),
                (false, Format::Q8_0) => avx2::q8_0(weights, x, out),
                (true, Format::Q4_1) => vnni::q4_1(weights, x, out),
                (true, Format::Q8_0) => vnni::q8_0(weights, x, out),
            }
        }
    }

    pub(super) fn dot_f16(self, a: &[f32], b: &[u16]) -> f32 {
        // SAFETY: as above.
        unsafe { dot_f16(a, b) }
    }

    pub(super) fn add_scaled_f16(self, sum: &mut [f32], scale: f32, b: &[u16]) {
        // SAFETY: as above.
        unsafe { add_scaled_f16(sum, scale, b) }
    }
}

/// The kernels of one CPU feature set; `$dot` sums groups of four products of unsigned and signed bytes into 32 bits.
macro_rules! kernels {
    ($module:ident, $features:literal, $dot:item) => {
        mod $module {
            use super::*;

            #[target_feature(enable = $features)]
            #[inline]
            $dot

            #[target_feature(enable = $features)]
            pub(super) fn q4_1(weights: &[u8], x: &Q16Rows, out: &mut [f32]) {
                rows::<Q4_1_BYTES>(weights, x, out)
            }

            #[target_feature(enable = $features)]
            pub(super) fn q8_0(weights: &[u8], x: &Q16Rows, out: &mut [f32]) {
                rows::<Q8_0_BYTES>(weights, x, out)
            }

            /// All weight rows with all activation rows, in tiles that fit the registers.
            #[target_feature(enable = $features)]
            #[inline]
            fn rows<const BYTES: usize>(weights: &[u8], x: &Q16Rows, out: &mut [f32]) {
                let (m, blocks) = (x.rows(), weights.as_chunks::<BYTES>().0);
                let row = |r: usize| &blocks[r * x.blocks..(r + 1) * x.blocks];
                let count = out.len() / m.max(1);
                let mut r = 0;
                if m == 1 {
                    while r + 4 <= count {
                        let sums = tile::<BYTES, 4, 1>([row(r), row(r + 1), row(r + 2), row(r + 3)], [x.row(0)]);
                        out[r..r + 4].copy_from_slice(sums.as_flattened());
                        r += 4;
                    }
                }
                while r + 2 <= count {
                    let mut i = 0;
                    while i + 4 <= m {
                        let sums = tile::<BYTES, 2, 4>([row(r), row(r + 1)], [x.row(i), x.row(i + 1), x.row(i + 2), x.row(i + 3)]);
                        out[r * m + i..][..4].copy_from_slice(&sums[0]);
                        out[(r + 1) * m + i..][..4].copy_from_slice(&sums[1]);
                        i += 4;
                    }
                    while i < m {
                        let sums = tile::<BYTES, 2, 1>([row(r), row(r + 1)], [x.row(i)]);
                        out[r * m + i] = sums[0][0];
                        out[(r + 1) * m + i] = sums[1][0];
                        i += 1;
                    }
                    r += 2;
                }
                while r < count {
                    for i in 0..m {
                        out[r * m + i] = tile::<BYTES, 1, 1>([row(r)], [x.row(i)])[0][0];
                    }
                    r += 1;
                }
            }

            /// W weight rows with X activation rows: each block is unpacked once and used X times.
            #[target_feature(enable = $features)]
            #[inline]
            fn tile<const BYTES: usize, const W: usize, const X: usize>(
                w: [&[[u8; BYTES]]; W],
                x: [Q16Row<'_>; X],
            ) -> [[f32; X]; W] {
                let blocks = w[0].len();
                let (mut sums, mut mins) = ([[_mm256_setzero_ps(); X]; W], [[0f32; X]; W]);
                for b in 0..blocks {
                    for j in 0..W {
                        let (scale, min, quants) = unpack(&w[j][b]);
                        for i in 0..X {
                            let products = dot(quants, load_i16(&x[i].quants[b]));
                            let [x_scale, x_total] = x[i].scales[b];
                            let scale = _mm256_set1_ps(scale * x_scale);
                            sums[j][i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(products), scale, sums[j][i]);
                            if BYTES == Q4_1_BYTES {
                                mins[j][i] = min.mul_add(x_total, mins[j][i]);
                            }
                        }
                    }
                }
                let mut out = [[0f32; X]; W];
                for j in 0..W {
                    for i in 0..X {
                        out[j][i] = sum(sums[j][i]) + mins[j][i];
                    }
                }
                out
            }
        }
    };
}

kernels!(
    avx2,
    "avx2,fma,f16c",
    fn dot(w: [__m256i; 2], x: [__m256i; 2]) -> __m256i {
        // No overflow: 32 products of at most 128 * 32767 stay below 2^31.
        _mm256_add_epi32(_mm256_madd_epi16(w[0], x[0]), _mm256_madd_epi16(w[1], x[1]))
    }
);

kernels!(
    vnni,
    "avx2,fma,f16c,avxvnni",
    fn dot(w: [__m256i; 2], x: [__m256i; 2]) -> __m256i {
        _mm256_dpwssd_avx_epi32(_mm256_madd_epi16(w[0], x[0]), w[1], x[1])
    }
);

/// Scale, minimum (0 for Q8_0) and the 32 quants of a block, widened to 16 bits.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn unpack<const BYTES: usize>(block: &[u8; BYTES]) -> (f32, f32, [__m256i; 2]) {
    let head = i32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    let halves = _mm_cvtph_ps(_mm_cvtsi32_si128(head));
    let scale = _mm_cvtss_f32(halves);
    if BYTES == Q4_1_BYTES {
        let min = _mm_cvtss_f32(_mm_movehdup_ps(halves));
        // SAFETY: a Q4_1 block has 16 bytes after its first four.
        let packed = unsafe { _mm_loadu_si128(block[4..20].as_ptr().cast()) };
        let nibble = _mm_set1_epi8(15);
        let (low, high) = (_mm_and_si128(packed, nibble), _mm_and_si128(_mm_srli_epi16::<4>(packed), nibble));
        (scale, min, [_mm256_cvtepu8_epi16(low), _mm256_cvtepu8_epi16(high)])
    } else {
        // SAFETY: a Q8_0 block has 32 bytes after its first two.
        let (low, high) =
            unsafe { (_mm_loadu_si128(block[2..18].as_ptr().cast()), _mm_loadu_si128(block[18..34].as_ptr().cast())) };
        (scale, 0.0, [_mm256_cvtepi8_epi16(low), _mm256_cvtepi8_epi16(high)])
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn load_i16(quants: &[i16; BLOCK]) -> [__m256i; 2] {
    let halves = quants.as_chunks::<16>().0;
    // SAFETY: each half has 16 numbers of 2 bytes.
    unsafe { [_mm256_loadu_si256(halves[0].as_ptr().cast()), _mm256_loadu_si256(halves[1].as_ptr().cast())] }
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
