//! Every format read one weight at a time: rows for embeddings, and what the kernels are held against.
//!
//! The layouts are ggml's (`ggml-common.h`, `ggml-quants.c` of llama.cpp), and so is the order of operations: values equal its own.

use crate::files::TensorType;

/// What the nibbles of IQ4_NL and IQ4_XS stand for.
pub(super) const IQ4_VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
/// What the nibbles of MXFP4 stand for, doubled, with [`MXFP4_ZERO`] added: a sign, two bits of exponent, one of fraction.
pub(super) const MXFP4_VALUES: [i8; 16] = [12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0];
/// The value that stands for 0.
pub(super) const MXFP4_ZERO: f32 = 12.0;

/// A row as f32. `bytes` are the row's blocks, `out` has as many elements as they have.
pub(crate) fn read_row(dtype: TensorType, bytes: &[u8], out: &mut [f32]) {
    let blocks = bytes.chunks_exact(dtype.block_bytes()).zip(out.chunks_exact_mut(dtype.block()));
    for (block, out) in blocks {
        read_block(dtype, block, out);
    }
}

/// One block; `block` and `out` have the sizes of its type.
fn read_block(dtype: TensorType, block: &[u8], out: &mut [f32]) {
    match dtype {
        TensorType::F32 => out[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]),
        TensorType::F16 => out[0] = half_at(block, 0),
        TensorType::Bf16 => out[0] = half::bf16::from_le_bytes([block[0], block[1]]).to_f32(),
        TensorType::Q40 => {
            let scale = half_at(block, 0);
            fill(out, |i| scale * (f32::from(nibble(&block[2..], i)) - 8.0));
        }
        TensorType::Q41 => {
            let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
            fill(out, |i| scale * f32::from(nibble(&block[4..], i)) + minimum);
        }
        TensorType::Q50 => {
            let scale = half_at(block, 0);
            fill(out, |i| scale * (f32::from(nibble(&block[6..], i) + 16 * bit(&block[2..], i)) - 16.0));
        }
        TensorType::Q51 => {
            let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
            fill(out, |i| scale * f32::from(nibble(&block[8..], i) + 16 * bit(&block[4..], i)) + minimum);
        }
        TensorType::Q80 => {
            let scale = half_at(block, 0);
            fill(out, |i| scale * f32::from(block[2 + i] as i8));
        }
        TensorType::Q2K => {
            let (scale, minimum) = (half_at(block, 80), half_at(block, 82));
            fill(out, |i| {
                let factors = block[i / 16];
                scale * f32::from(factors & 15) * f32::from(two_bits(&block[16..80], i))
                    - minimum * f32::from(factors >> 4)
            });
        }
        TensorType::Q3K => {
            let scale = half_at(block, 108);
            fill(out, |i| {
                let high = (block[i % 32] >> (i / 32)) & 1;
                let quant = f32::from(two_bits(&block[32..96], i) + 4 * high) - 4.0;
                scale * f32::from(q3_scale(&block[96..108], i / 16)) * quant
            });
        }
        TensorType::Q4K => {
            let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
            fill(out, |i| {
                let (factor, offset) = sixes(&block[4..16], i / 32);
                let quant = (block[16 + 32 * (i / 64) + i % 32] >> (4 * (i / 32 % 2))) & 15;
                scale * f32::from(factor) * f32::from(quant) - minimum * f32::from(offset)
            });
        }
        TensorType::Q5K => {
            let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
            fill(out, |i| {
                let (factor, offset) = sixes(&block[4..16], i / 32);
                let low = (block[48 + 32 * (i / 64) + i % 32] >> (4 * (i / 32 % 2))) & 15;
                let high = (block[16 + i % 32] >> (i / 32)) & 1;
                scale * f32::from(factor) * f32::from(low + 16 * high) - minimum * f32::from(offset)
            });
        }
        TensorType::Q6K => {
            let scale = half_at(block, 208);
            fill(out, |i| {
                let (half, piece, at) = (i / 128, i / 32 % 4, i % 32);
                let low = (block[64 * half + 32 * (piece % 2) + at] >> (4 * (piece / 2))) & 15;
                let high = (block[128 + 32 * half + at] >> (2 * piece)) & 3;
                let factor = f32::from(block[192 + i / 16] as i8);
                scale * factor * (f32::from(low + 16 * high) - 32.0)
            });
        }
        TensorType::Iq4Nl => {
            let scale = half_at(block, 0);
            fill(out, |i| scale * f32::from(IQ4_VALUES[usize::from(nibble(&block[2..], i))]));
        }
        TensorType::Iq4Xs => {
            let scale = half_at(block, 0);
            fill(out, |i| {
                let piece = i / 32;
                let low = (block[4 + piece / 2] >> (4 * (piece % 2))) & 15;
                let high = (block[2 + piece / 4] >> (2 * (piece % 4))) & 3;
                let value = IQ4_VALUES[usize::from(nibble(&block[8 + 16 * piece..], i % 32))];
                scale * (f32::from(low + 16 * high) - 32.0) * f32::from(value)
            });
        }
        TensorType::Mxfp4 => {
            let scale = mxfp4_scale(block[0]);
            fill(out, |i| scale * (f32::from(MXFP4_VALUES[usize::from(nibble(&block[1..], i))]) - MXFP4_ZERO));
        }
    }
}

fn fill(out: &mut [f32], value: impl Fn(usize) -> f32) {
    for (i, out) in out.iter_mut().enumerate() {
        *out = value(i);
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Nibble i of 32: the low ones come first.
fn nibble(bytes: &[u8], i: usize) -> u8 {
    (bytes[i % 16] >> (4 * (i / 16))) & 15
}

fn bit(bytes: &[u8], i: usize) -> u8 {
    (bytes[i / 8] >> (i % 8)) & 1
}

/// Quant i of 256 of 2 bits: 32 bytes have 128, the lowest bits first.
fn two_bits(bytes: &[u8], i: usize) -> u8 {
    (bytes[32 * (i / 128) + i % 32] >> (2 * (i / 32 % 4))) & 3
}

/// Scale and minimum i of eight of 6 bits each.
fn sixes(bytes: &[u8], i: usize) -> (u8, u8) {
    if i < 4 {
        (bytes[i] & 63, bytes[i + 4] & 63)
    } else {
        let low = bytes[i + 4];
        ((low & 15) | (bytes[i - 4] >> 6 << 4), (low >> 4) | (bytes[i] >> 6 << 4))
    }
}

/// Scale i of the sixteen of Q3_K.
fn q3_scale(bytes: &[u8], i: usize) -> i8 {
    let low = (bytes[i % 8] >> (4 * (i / 8))) & 15;
    let high = (bytes[8 + i % 4] >> (2 * (i / 4))) & 3;
    (low | high << 4) as i8 - 32
}

/// Half of 2^(e - 127), as the values are doubled; 255 is no number, as the specification of the format (OCP MX 1.0) has it.
fn mxfp4_scale(e: u8) -> f32 {
    if e == 255 { f32::NAN } else { (f64::from(e) - 128.0).exp2() as f32 }
}

/// Sum of `a[i] * b[i]`, `b` being f16 bits.
pub(super) fn dot_f16(a: &[f32], b: &[u16]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * half::f16::from_bits(*b).to_f32()).sum()
}

/// `sum[i] += scale * b[i]`, `b` being f16 bits.
pub(super) fn add_scaled_f16(sum: &mut [f32], scale: f32, b: &[u16]) {
    for (sum, b) in sum.iter_mut().zip(b) {
        *sum += scale * half::f16::from_bits(*b).to_f32();
    }
}
