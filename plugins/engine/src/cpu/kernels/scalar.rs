//! The portable kernels: what the others are held against.

use super::{Format, Q4_1_BYTES, Q8_0_BYTES, Q16Row, Q16Rows};

pub(super) fn products(format: Format, weights: &[u8], x: &Q16Rows, out: &mut [f32]) {
    let (m, row_bytes) = (x.rows(), weights.len() / (out.len() / x.rows().max(1)).max(1));
    for (row, out) in weights.chunks_exact(row_bytes).zip(out.chunks_exact_mut(m)) {
        for (i, out) in out.iter_mut().enumerate() {
            *out = match format {
                Format::Q4_1 => q4_1(row, x.row(i)),
                Format::Q8_0 => q8_0(row, x.row(i)),
            };
        }
    }
}

fn q4_1(row: &[u8], x: Q16Row<'_>) -> f32 {
    let mut sum = 0.0;
    for ((block, q), [scale, total]) in row.as_chunks::<Q4_1_BYTES>().0.iter().zip(x.quants).zip(x.scales) {
        let (d, min) = (f16(block, 0), f16(block, 2));
        let dot: i32 = (0..16)
            .map(|i| {
                i32::from(block[4 + i] & 15) * i32::from(q[i]) + i32::from(block[4 + i] >> 4) * i32::from(q[i + 16])
            })
            .sum();
        sum += d * scale * dot as f32 + min * total;
    }
    sum
}

fn q8_0(row: &[u8], x: Q16Row<'_>) -> f32 {
    let mut sum = 0.0;
    for ((block, q), [scale, _]) in row.as_chunks::<Q8_0_BYTES>().0.iter().zip(x.quants).zip(x.scales) {
        let dot: i32 = block[2..].iter().zip(q).map(|(w, x)| i32::from(*w as i8) * i32::from(*x)).sum();
        sum += f16(block, 0) * scale * dot as f32;
    }
    sum
}

fn f16(block: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

pub(super) fn dot_f16(a: &[f32], b: &[u16]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * half::f16::from_bits(*b).to_f32()).sum()
}

pub(super) fn add_scaled_f16(sum: &mut [f32], scale: f32, b: &[u16]) {
    for (sum, b) in sum.iter_mut().zip(b) {
        *sum += scale * half::f16::from_bits(*b).to_f32();
    }
}
