//! Each format in each instruction set that is here, against readings of the same bytes.

use super::{Activations, BLOCK, InstructionSet, Q16Rows, Weights, products, scalar, takes_floats};
use crate::files::TensorType;

/// A small generator, so that a failure repeats.
pub(in crate::cpu) fn noise(seed: u32) -> impl FnMut() -> u32 {
    let mut state = seed | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    }
}

/// Between -`most` and `most`.
fn floats(count: usize, seed: u32, most: f32) -> Vec<f32> {
    let mut next = noise(seed);
    (0..count).map(|_| (next() as f32 / u32::MAX as f32 * 2.0 - 1.0) * most).collect()
}

/// Where a block has numbers of 16 bits that are floats.
fn halves(dtype: TensorType) -> &'static [usize] {
    match dtype {
        TensorType::Q40 | TensorType::Q50 | TensorType::Q80 | TensorType::Iq4Nl | TensorType::Iq4Xs => &[0],
        TensorType::Q41 | TensorType::Q51 | TensorType::Q4K | TensorType::Q5K => &[0, 2],
        TensorType::Q2K => &[80, 82],
        TensorType::Q3K => &[108],
        TensorType::Q6K => &[208],
        TensorType::F32 | TensorType::F16 | TensorType::Bf16 | TensorType::Mxfp4 => &[],
    }
}

/// Random blocks with scales between -1 and 1.
pub(in crate::cpu) fn weights(dtype: TensorType, elements: usize) -> Vec<u8> {
    let mut next = noise(7 + dtype as u32);
    let mut float = move || next() as f32 / u32::MAX as f32 * 2.0 - 1.0;
    match dtype {
        TensorType::F32 => (0..elements).flat_map(|_| float().to_le_bytes()).collect(),
        TensorType::F16 => (0..elements).flat_map(|_| half::f16::from_f32(float()).to_le_bytes()).collect(),
        TensorType::Bf16 => (0..elements).flat_map(|_| half::bf16::from_f32(float()).to_le_bytes()).collect(),
        _ => {
            let mut next = noise(11);
            let mut bytes: Vec<u8> = (0..dtype.bytes(elements)).map(|_| (next() >> 8) as u8).collect();
            for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
                for at in halves(dtype) {
                    block[*at..at + 2].copy_from_slice(&half::f16::from_f32(float()).to_le_bytes());
                }
                if dtype == TensorType::Mxfp4 {
                    block[0] = 120 + block[0] % 10;
                }
            }
            bytes
        }
    }
}

/// Products by the kernels: `[m, rows]`.
fn by_kernel(set: InstructionSet, dtype: TensorType, bytes: &[u8], x: &[f32], columns: usize) -> Vec<f32> {
    let rows = bytes.len() / dtype.bytes(columns);
    let mut out = vec![-1.0; rows * (x.len() / columns)];
    let quantised = Q16Rows::quantise(set, x, columns / BLOCK * BLOCK);
    let x = match &quantised {
        Some(quantised) if !takes_floats(dtype) => Activations::Quantised(quantised),
        _ => Activations::Floats(x),
    };
    products(set, Weights { dtype, bytes, columns }, x, &mut out);
    out
}

/// One product in f64, and how far off a kernel may be: what 16 bits for the activations cost at most, and roundings of f32.
fn in_f64(weights: &[f32], x: &[f32], rounded: bool) -> (f64, f64) {
    let heaviest = weights.iter().fold(0f32, |a, b| a.max(b.abs()));
    let (mut product, mut room) = (0.0, 0.0);
    for (weights, x) in weights.chunks(BLOCK).zip(x.chunks(BLOCK)) {
        let step = x.iter().fold(0f32, |a, b| a.max(b.abs())) / 32767.0;
        for (w, x) in weights.iter().zip(x) {
            product += f64::from(*w) * f64::from(*x);
            room += f64::from(heaviest * x.abs()) * 4e-6;
            room += if rounded { f64::from(w.abs() * step) * 0.51 } else { 0.0 };
        }
    }
    (product, room)
}

/// Checks all products of `rows` x `columns` weights with `m` rows.
fn check(set: InstructionSet, dtype: TensorType, bytes: &[u8], x: &[f32], columns: usize) {
    let (rows, m) = (bytes.len() / dtype.bytes(columns), x.len() / columns);
    let out = by_kernel(set, dtype, bytes, x, columns);
    let mut read = vec![0.0; columns];
    for (r, row) in bytes.chunks_exact(dtype.bytes(columns)).enumerate() {
        scalar::read_row(dtype, row, &mut read);
        for (i, x) in x.chunks_exact(columns).enumerate() {
            let (wanted, room) = in_f64(&read, x, !takes_floats(dtype));
            let found = out[i * rows + r];
            assert!(
                (f64::from(found) - wanted).abs() <= room,
                "{dtype} {set} {rows}x{columns}x{m}: row {r} of {i} is {found}, not {wanted} (+- {room})"
            );
        }
    }
}

#[test]
fn every_format_is_multiplied_right_in_every_instruction_set() {
    for set in InstructionSet::available() {
        for dtype in TensorType::all() {
            for (rows, blocks, m) in
                [(1, 1, 1), (16, 3, 1), (37, 2, 1), (16, 1, 4), (21, 3, 7), (5, 1, 65), (33, 2, 130)]
            {
                let columns = blocks * if takes_floats(dtype) { 96 } else { dtype.block() };
                check(set, dtype, &weights(dtype, rows * columns), &floats(m * columns, 3, 2.0), columns);
            }
        }
    }
}

#[test]
fn floats_need_no_whole_blocks() {
    for set in InstructionSet::available() {
        for dtype in TensorType::all().filter(|dtype| takes_floats(*dtype)) {
            for columns in [1, 15, 17, 50] {
                check(set, dtype, &weights(dtype, 13 * columns), &floats(9 * columns, 3, 2.0), columns);
            }
        }
    }
}

/// All bits of the quants set, and activations that are all as large as they get.
#[test]
fn the_largest_quants_do_not_overflow() {
    for set in InstructionSet::available() {
        for dtype in TensorType::all().filter(|dtype| !takes_floats(*dtype)) {
            for fill in [0xff, 0, 0x80, 0x7f] {
                let columns = dtype.block() * 2;
                let mut bytes = vec![fill; dtype.bytes(3 * columns)];
                for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
                    for at in halves(dtype) {
                        block[*at..at + 2].copy_from_slice(&half::f16::from_f32(0.5).to_le_bytes());
                    }
                    if dtype == TensorType::Mxfp4 {
                        block[0] = 127;
                    }
                }
                for x in [1000.0, -1000.0] {
                    check(set, dtype, &bytes, &vec![x; 2 * columns], columns);
                }
            }
        }
    }
}

#[test]
fn a_batch_gives_what_its_rows_give_alone() {
    for set in InstructionSet::available() {
        for dtype in TensorType::all() {
            let (rows, m) = (39, 67);
            let columns = 2 * dtype.block().max(48 * usize::from(takes_floats(dtype)) + 32);
            let columns = if takes_floats(dtype) { columns + 5 } else { columns };
            let (bytes, x) = (weights(dtype, rows * columns), floats(m * columns, 5, 1.0));
            let together = by_kernel(set, dtype, &bytes, &x, columns);
            for (i, row) in x.chunks_exact(columns).enumerate() {
                let alone = by_kernel(set, dtype, &bytes, row, columns);
                assert_eq!(together[i * rows..][..rows], alone, "{dtype} {set}: row {i}");
            }
            // Nor does it matter where a row stands among the weights.
            let stride = dtype.bytes(columns);
            let last = by_kernel(set, dtype, &bytes[(rows - 1) * stride..], &x, columns);
            assert!((0..m).all(|i| last[i] == together[i * rows + rows - 1]), "{dtype} {set}");
        }
    }
}

#[test]
fn a_scale_that_is_no_number_makes_results_that_are_none() {
    for set in InstructionSet::available() {
        for dtype in TensorType::all().filter(|dtype| !takes_floats(*dtype)) {
            let columns = 2 * dtype.block();
            for scale in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut bytes = weights(dtype, 18 * columns);
                let block = 17 * dtype.bytes(columns);
                match halves(dtype) {
                    [] => bytes[block] = 255,
                    all => {
                        for at in all {
                            bytes[block + at..][..2].copy_from_slice(&half::f16::from_f32(scale).to_le_bytes());
                        }
                    }
                }
                for m in [1, 5] {
                    let out = by_kernel(set, dtype, &bytes, &floats(m * columns, 3, 2.0), columns);
                    for out in out.chunks_exact(18) {
                        assert!(out[..17].iter().all(|x| x.is_finite()), "{dtype} {set} {scale}");
                        assert!(!out[17].is_finite(), "{dtype} {set} {scale}: {}", out[17]);
                        assert!(out[17].is_nan() || !scale.is_nan(), "{dtype} {set}: {}", out[17]);
                    }
                }
            }
        }
    }
}

#[test]
fn an_activation_that_is_no_number_makes_results_that_are_none() {
    for set in InstructionSet::available() {
        for dtype in TensorType::all() {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let columns = dtype.block().max(64);
                let mut x = floats(3 * columns, 3, 2.0);
                x[columns + 40] = bad;
                let out = by_kernel(set, dtype, &weights(dtype, 4 * columns), &x, columns);
                let finite: Vec<bool> = out.chunks_exact(4).map(|out| out.iter().all(|x| x.is_finite())).collect();
                assert_eq!(finite, [true, false, true], "{dtype} {set} {bad}");
                assert!(out[4..8].iter().all(|x| !x.is_finite()), "{dtype} {set} {bad}");
            }
        }
    }
}

/// The weights of F16 do not make the activations f16.
#[test]
fn activations_beyond_the_range_of_halves_stay_right() {
    for set in InstructionSet::available() {
        for dtype in TensorType::all() {
            let columns = dtype.block().max(64);
            check(set, dtype, &weights(dtype, 20 * columns), &floats(3 * columns, 3, 1e6), columns);
        }
    }
}

/// `tests/golden/engine/generate.py` writes them.
#[test]
fn blocks_are_read_as_llama_cpp_reads_them() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/engine/blocks.bin");
    let file = std::fs::read(path).unwrap();
    let mut rest = file.as_slice();
    let mut seen = Vec::new();
    while !rest.is_empty() {
        let dtype = TensorType::numbered(number(&mut rest)).unwrap();
        let len = number(&mut rest) as usize;
        let bytes = rest.split_off(..len).unwrap();
        let len = number(&mut rest) as usize;
        let values = rest.split_off(..4 * len).unwrap();
        let wanted: Vec<f32> = values.as_chunks::<4>().0.iter().map(|v| f32::from_le_bytes(*v)).collect();
        let mut found = vec![0.0; wanted.len()];
        assert_eq!(bytes.len(), dtype.bytes(found.len()), "{dtype}");
        scalar::read_row(dtype, bytes, &mut found);
        for (i, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
            assert!((found - wanted).abs() <= 1e-6 * wanted.abs(), "{dtype} {i}: {found}, not {wanted}");
        }
        // And the kernels of each set, by one weight at a time.
        let columns = found.len();
        for set in InstructionSet::available() {
            let mut x = vec![0.0; columns * columns];
            for i in 0..columns {
                x[i * columns + i] = 1.0;
            }
            let out = by_kernel(set, dtype, bytes, &x, columns);
            let largest = wanted.iter().fold(0f32, |a, b| a.max(b.abs()));
            for (i, (found, wanted)) in out.iter().zip(&wanted).enumerate() {
                assert!((found - wanted).abs() <= 1e-6 * largest, "{dtype} {set} {i}: {found}, not {wanted}");
            }
        }
        seen.push(dtype);
    }
    let missing: Vec<_> = TensorType::all().filter(|dtype| !takes_floats(*dtype) && !seen.contains(dtype)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

fn number(bytes: &mut &[u8]) -> u32 {
    u32::from_le_bytes(*bytes.split_off(..4).unwrap().first_chunk().unwrap())
}

#[test]
fn an_instruction_set_has_the_name_that_chooses_it() {
    for set in InstructionSet::available() {
        assert_eq!(InstructionSet::named(&set.to_string()), Some(set));
    }
    assert_eq!(InstructionSet::named("sse9"), None);
    assert!(InstructionSet::available().any(|set| set.to_string() == super::description()));
}
