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
        _ => {
            let read = Read::block(dtype, block);
            let sixteens = read.quants.as_chunks::<16>().0.iter().zip(&read.factors);
            for (out, (quants, [scale, minimum])) in out.as_chunks_mut::<16>().0.iter_mut().zip(sixteens) {
                for (out, quant) in out.iter_mut().zip(quants) {
                    *out = scale * f32::from(*quant) + minimum;
                }
            }
        }
    }
}

/// A block of a quantised type, of which each 16 weights are scale times quant plus minimum.
struct Read {
    quants: [i8; 256],
    /// Scale and minimum.
    factors: [[f32; 2]; 16],
}

impl Read {
    fn block(dtype: TensorType, block: &[u8]) -> Self {
        let mut read = Self { quants: [0; 256], factors: [[half_at(block, 0), 0.0]; 16] };
        match dtype {
            TensorType::F32 | TensorType::F16 | TensorType::Bf16 => {}
            TensorType::Q40 => read.nibbles(&block[2..], |q| q as i8 - 8),
            TensorType::Q41 => {
                read.factors = [[half_at(block, 0), half_at(block, 2)]; 16];
                read.nibbles(&block[4..], |q| q as i8);
            }
            TensorType::Q50 => {
                read.nibbles(&block[6..], |q| q as i8 - 16);
                read.fifth_bits(&block[2..6]);
            }
            TensorType::Q51 => {
                read.factors = [[half_at(block, 0), half_at(block, 2)]; 16];
                read.nibbles(&block[8..], |q| q as i8);
                read.fifth_bits(&block[4..8]);
            }
            TensorType::Q80 => {
                for (quant, byte) in read.quants.iter_mut().zip(&block[2..]) {
                    *quant = *byte as i8;
                }
            }
            TensorType::Q2K => {
                read.bits::<2>(&block[16..80], 0);
                let (scale, minimum) = (half_at(block, 80), half_at(block, 82));
                for (factors, byte) in read.factors.iter_mut().zip(block) {
                    *factors = [scale * f32::from(byte & 15), -minimum * f32::from(byte >> 4)];
                }
            }
            TensorType::Q3K => {
                read.bits::<2>(&block[32..96], 0);
                read.bits::<1>(&block[..32], 2);
                for quant in &mut read.quants {
                    *quant -= 4;
                }
                for (i, factors) in read.factors.iter_mut().enumerate() {
                    factors[0] = half_at(block, 108) * f32::from(q3_scale(&block[96..108], i));
                }
            }
            TensorType::Q4K => {
                read.sixes(block);
                read.bits::<4>(&block[16..], 0);
            }
            TensorType::Q5K => {
                read.sixes(block);
                read.bits::<4>(&block[48..], 0);
                read.bits::<1>(&block[16..48], 4);
            }
            TensorType::Q6K => {
                // Nibbles of 64 bytes make 128 quants: the low ones of all, then the high ones.
                for (quants, bytes) in read.quants.as_chunks_mut::<128>().0.iter_mut().zip(block.as_chunks::<64>().0) {
                    let (low, high) = quants.split_at_mut(64);
                    for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
                        (*low, *high) = ((byte & 15) as i8, (byte >> 4) as i8);
                    }
                }
                read.bits::<2>(&block[128..192], 4);
                for quant in &mut read.quants {
                    *quant -= 32;
                }
                for (factors, byte) in read.factors.iter_mut().zip(&block[192..]) {
                    factors[0] = half_at(block, 208) * f32::from(*byte as i8);
                }
            }
            TensorType::Iq4Nl => read.nibbles(&block[2..], |q| IQ4_VALUES[usize::from(q)]),
            TensorType::Iq4Xs => {
                for (piece, bytes) in block[8..].as_chunks::<16>().0.iter().enumerate() {
                    let low = (block[4 + piece / 2] >> (4 * (piece % 2))) & 15;
                    let high = (block[2 + piece / 4] >> (2 * (piece % 4))) & 3;
                    for half in 0..2 {
                        read.factors[2 * piece + half][0] *= f32::from(low + 16 * high) - 32.0;
                    }
                    for (i, byte) in bytes.iter().enumerate() {
                        read.quants[32 * piece + i] = IQ4_VALUES[usize::from(byte & 15)];
                        read.quants[32 * piece + 16 + i] = IQ4_VALUES[usize::from(byte >> 4)];
                    }
                }
            }
            TensorType::Mxfp4 => {
                read.factors = [[mxfp4_scale(block[0]), 0.0]; 16];
                read.nibbles(&block[1..], |q| MXFP4_VALUES[usize::from(q)] - MXFP4_ZERO as i8);
            }
        }
        read
    }

    /// 32 quants of the nibbles of 16 bytes: the low ones of all, then the high ones.
    fn nibbles(&mut self, bytes: &[u8], value: impl Fn(u8) -> i8) {
        let (low, high) = self.quants.split_at_mut(16);
        for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
            (*low, *high) = (value(byte & 15), value(byte >> 4));
        }
    }

    /// Adds 16 where quant i's bit i is set.
    fn fifth_bits(&mut self, bytes: &[u8]) {
        for (quants, byte) in self.quants.as_chunks_mut::<8>().0.iter_mut().zip(bytes) {
            for (i, quant) in quants.iter_mut().enumerate() {
                *quant += ((byte >> i & 1) << 4) as i8;
            }
        }
    }

    /// Adds N bits, moved to bit `at`, to each quant: 32 bytes have them of 32 quants, then of the next 32 above, until they are full.
    fn bits<const N: usize>(&mut self, bytes: &[u8], at: usize) {
        for (i, quants) in self.quants.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (bytes, shift) = (&bytes[i * N / 8 * 32..][..32], i * N % 8);
            for (quant, byte) in quants.iter_mut().zip(bytes) {
                *quant += ((byte >> shift & ((1 << N) - 1)) << at) as i8;
            }
        }
    }

    /// Scales and minima of Q4_K and Q5_K.
    fn sixes(&mut self, block: &[u8]) {
        for (i, two) in self.factors.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            let (scale, minimum) = sixes(&block[4..16], i);
            *two = [[half_at(block, 0) * f32::from(scale), -half_at(block, 2) * f32::from(minimum)]; 2];
        }
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
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
