//! The hot loops: products of quantised weight rows with quantised activations, and of f32 with f16.
//!
//! Each has a portable version and, on x86-64, one chosen when the CPU has what it needs. Every result element is summed in an order
//! that does not depend on how many rows are asked for at once, so that batching never changes a result.

mod scalar;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::sync::LazyLock;

/// Elements of a block of Q4_1, Q8_0 and of the quantised activations.
pub const BLOCK: usize = 32;
/// Bytes of a Q4_1 block: scale and minimum (f16), 32 nibbles.
pub const Q4_1_BYTES: usize = 20;
/// Bytes of a Q8_0 block: scale (f16), 32 signed bytes.
pub const Q8_0_BYTES: usize = 34;

/// Weight formats with a kernel here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// 4-bit with scale and minimum per 32.
    Q4_1,
    /// 8-bit with scale per 32.
    Q8_0,
}

impl Format {
    /// Bytes of a row of `columns` elements.
    pub fn row_bytes(self, columns: usize) -> usize {
        columns / BLOCK * if self == Self::Q4_1 { Q4_1_BYTES } else { Q8_0_BYTES }
    }
}

/// Activations, `[rows, columns]`, quantised to 16 bits per block of 32: x = scale * q, with q from -32767 to 32767.
///
/// Eight bits, as llama.cpp has, are faster but move the log-probabilities of small models by 0.2 and more: greedy decoding then
/// leaves the reference after a few dozen tokens. Sixteen give the tokens of f32 activations.
#[derive(Clone, Debug, Default)]
pub struct Q16Rows {
    rows: usize,
    blocks: usize,
    quants: Vec<[i16; BLOCK]>,
    /// Per block: the scale, and scale times the sum of the quants (what a weight block's minimum is multiplied with).
    scales: Vec<[f32; 2]>,
}

/// One row of [`Q16Rows`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Q16Row<'a> {
    quants: &'a [[i16; BLOCK]],
    scales: &'a [[f32; 2]],
}

impl Q16Rows {
    /// Quantises `values`, `[values.len() / columns, columns]`. `columns` must be a multiple of 32.
    pub fn quantise(values: &[f32], columns: usize) -> Self {
        let mut out = Self { rows: values.len() / columns.max(1), blocks: columns / BLOCK, ..Self::default() };
        let blocks = values.as_chunks::<BLOCK>().0;
        out.quants.reserve_exact(blocks.len());
        out.scales.reserve_exact(blocks.len());
        for block in blocks {
            let (quants, scales) = quantise_block(block);
            out.quants.push(quants);
            out.scales.push(scales);
        }
        out
    }

    /// How many rows of activations there are.
    pub fn rows(&self) -> usize {
        self.rows
    }

    fn row(&self, row: usize) -> Q16Row<'_> {
        let range = row * self.blocks..(row + 1) * self.blocks;
        Q16Row { quants: &self.quants[range.clone()], scales: &self.scales[range] }
    }
}

fn quantise_block(block: &[f32; BLOCK]) -> ([i16; BLOCK], [f32; 2]) {
    let mut largest = [0f32; 8];
    for eight in block.as_chunks::<8>().0 {
        for (l, x) in largest.iter_mut().zip(eight) {
            *l = l.max(x.abs());
        }
    }
    let scale = largest.iter().fold(0f32, |a, b| a.max(*b)) / 32767.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    // Adding and taking away 1.5 * 2^23 rounds to the nearest whole number, ties to even, in two additions.
    const ROUND: f32 = 12_582_912.0;
    let quants = block.map(|x| ((x * inverse + ROUND) - ROUND) as i32 as i16);
    let sum: i32 = quants.iter().map(|q| i32::from(*q)).sum();
    (quants, [scale, scale * sum as f32])
}

/// Products of weight rows with activations.
///
/// `weights` holds `out.len() / x.rows()` whole rows of `format`, as wide as `x`; `out` is `[weight rows, x rows]`.
pub fn products(format: Format, weights: &[u8], x: &Q16Rows, out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if let Some(kernels) = x86::Kernels::detected() {
        return kernels.products(format, weights, x, out);
    }
    scalar::products(format, weights, x, out);
}

/// Sum of `a[i] * b[i]`, `b` being f16 bits.
pub fn dot_f16(a: &[f32], b: &[u16]) -> f32 {
    #[cfg(target_arch = "x86_64")]
    if let Some(kernels) = x86::Kernels::detected() {
        return kernels.dot_f16(a, b);
    }
    scalar::dot_f16(a, b)
}

/// `sum[i] += scale * b[i]`, `b` being f16 bits.
pub fn add_scaled_f16(sum: &mut [f32], scale: f32, b: &[u16]) {
    #[cfg(target_arch = "x86_64")]
    if let Some(kernels) = x86::Kernels::detected() {
        return kernels.add_scaled_f16(sum, scale, b);
    }
    scalar::add_scaled_f16(sum, scale, b);
}

/// The kernels in use, for logs.
pub fn description() -> &'static str {
    static NAME: LazyLock<&str> = LazyLock::new(|| {
        #[cfg(target_arch = "x86_64")]
        if let Some(kernels) = x86::Kernels::detected() {
            return kernels.name();
        }
        "portable"
    });
    &NAME
}

#[cfg(test)]
mod tests {
    use super::{BLOCK, Format, Q16Rows, scalar};

    /// A small generator, so that a failure repeats.
    fn noise(seed: u32) -> impl FnMut() -> u32 {
        let mut state = seed | 1;
        move || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state
        }
    }

    fn weights(format: Format, rows: usize, columns: usize) -> Vec<u8> {
        let mut next = noise(7);
        let mut out = Vec::new();
        for _ in 0..rows * columns / BLOCK {
            let mut float = || half::f16::from_f32(next() as f32 / u32::MAX as f32 - 0.5).to_le_bytes();
            out.extend(float());
            if format == Format::Q4_1 {
                out.extend(float());
            }
            out.extend((0..if format == Format::Q4_1 { 16 } else { 32 }).map(|_| next() as u8));
        }
        out
    }

    #[test]
    fn vector_kernels_equal_the_portable_ones() {
        for format in [Format::Q4_1, Format::Q8_0] {
            for (rows, columns, m) in [(1, 32, 1), (9, 576, 1), (7, 1536, 5), (5, 64, 13), (6, 96, 4)] {
                let mut next = noise(3);
                let x: Vec<f32> = (0..m * columns).map(|_| next() as f32 / u32::MAX as f32 * 4.0 - 2.0).collect();
                let x = Q16Rows::quantise(&x, columns);
                let weights = weights(format, rows, columns);
                let (mut fast, mut slow) = (vec![0.0; rows * m], vec![0.0; rows * m]);
                super::products(format, &weights, &x, &mut fast);
                scalar::products(format, &weights, &x, &mut slow);
                for (fast, slow) in fast.iter().zip(&slow) {
                    assert!(
                        (fast - slow).abs() <= 1e-3 * slow.abs().max(1.0),
                        "{format:?} {rows}x{columns}x{m}: {fast} {slow}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_batch_gives_what_its_rows_give_alone() {
        for format in [Format::Q4_1, Format::Q8_0] {
            let (rows, columns, m) = (7, 576, 6);
            let mut next = noise(5);
            let x: Vec<f32> = (0..m * columns).map(|_| next() as f32 / u32::MAX as f32 - 0.5).collect();
            let weights = weights(format, rows, columns);
            let mut together = vec![0.0; rows * m];
            super::products(format, &weights, &Q16Rows::quantise(&x, columns), &mut together);
            for (i, row) in x.chunks(columns).enumerate() {
                let mut alone = vec![0.0; rows];
                super::products(format, &weights, &Q16Rows::quantise(row, columns), &mut alone);
                let column: Vec<f32> = together.chunks(m).map(|r| r[i]).collect();
                assert_eq!(column, alone);
            }
        }
    }

    #[test]
    fn halves_equal_the_portable_ones() {
        let mut next = noise(11);
        for len in [1, 8, 31, 64, 100] {
            let a: Vec<f32> = (0..len).map(|_| next() as f32 / u32::MAX as f32 - 0.5).collect();
            let b: Vec<u16> = a.iter().map(|x| half::f16::from_f32(x * 3.0).to_bits()).collect();
            assert!((super::dot_f16(&a, &b) - scalar::dot_f16(&a, &b)).abs() < 1e-4);
            let (mut fast, mut slow) = (a.clone(), a.clone());
            super::add_scaled_f16(&mut fast, 0.7, &b);
            scalar::add_scaled_f16(&mut slow, 0.7, &b);
            assert!(fast.iter().zip(&slow).all(|(x, y)| (x - y).abs() < 1e-5));
        }
    }

    #[test]
    fn quantising_is_close() {
        let x: Vec<f32> = (0..64).map(|i| (i as f32 - 30.0) / 7.0).collect();
        let q = Q16Rows::quantise(&x, 64);
        for (i, value) in x.iter().enumerate() {
            let back = f32::from(q.quants[i / 32][i % 32]) * q.scales[i / 32][0];
            assert!((back - value).abs() <= q.scales[i / 32][0] * 0.51);
        }
        assert_eq!(Q16Rows::quantise(&[0.0; 32], 32).scales[0], [0.0, 0.0]);
    }
}
