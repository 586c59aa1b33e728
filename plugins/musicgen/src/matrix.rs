//! A dense weight matrix on the CPU and its product with a few vectors: what a decoder step spends its time in.
//!
//! A step multiplies every weight with one or two vectors, so its time is that of reading the weights once. They stay in
//! the type of the file (half precision halves the reading) and are widened to f32 in registers or a small buffer.

use aihost_plugin_api::{Error, Result};
use candle_core::{DType, Tensor};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Weights below which waking another thread costs more than it saves.
const PARALLEL_FROM: usize = 1 << 16;

/// Columns widened at a time: the buffer stays in the first-level cache.
const WIDEN: usize = 512;

/// Partial sums of one dot product: two registers of 8 lanes, enough to hide an addition's latency.
const LANES: usize = 16;

/// A row-major matrix (rows, columns).
#[derive(Debug)]
pub struct Matrix {
    rows: usize,
    columns: usize,
    data: Data,
}

#[derive(Debug)]
enum Data {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

impl Matrix {
    /// Stacks tensors (rows, columns) of one type on each other. Types other than f16 and bf16 become f32.
    ///
    /// # Errors
    /// If their widths or types differ.
    pub fn stack(parts: &[Tensor]) -> Result<Self> {
        Self::from_parts(parts).map_err(Error::internal)
    }

    fn from_parts(parts: &[Tensor]) -> candle_core::Result<Self> {
        let columns = parts.first().map_or(Ok(0), |part| part.dim(1))?;
        let mut rows = 0;
        for part in parts {
            let (height, width) = part.dims2()?;
            rows += height;
            if width != columns {
                candle_core::bail!("stacked matrices are {columns} and {width} wide");
            }
        }
        let data = match parts.first().map(Tensor::dtype) {
            Some(DType::F16) => Data::F16(join(parts, rows * columns)?),
            Some(DType::BF16) => Data::Bf16(join(parts, rows * columns)?),
            _ => Data::F32(join(parts, rows * columns)?),
        };
        Ok(Self { rows, columns, data })
    }

    /// Height: the width of a product.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Width of an input.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Bytes of the weights.
    pub fn bytes(&self) -> usize {
        let width = if let Data::F32(_) = self.data { 4 } else { 2 };
        self.rows * self.columns * width
    }

    /// Row `row`, widened and added to `out`.
    pub fn add_row(&self, row: usize, out: &mut [f32]) {
        let range = row * self.columns..(row + 1) * self.columns;
        match &self.data {
            Data::F32(data) => out.iter_mut().zip(&data[range]).for_each(|(out, weight)| *out += weight),
            Data::F16(data) => out.iter_mut().zip(&data[range]).for_each(|(out, weight)| *out += weight.to_f32()),
            Data::Bf16(data) => out.iter_mut().zip(&data[range]).for_each(|(out, weight)| *out += weight.to_f32()),
        }
    }

    /// `out` (n, rows) = `x` (n, columns) times the transpose, accumulated in f32.
    ///
    /// # Panics
    /// If the lengths are not multiples of columns and rows for one n.
    pub fn apply(&self, x: &[f32], out: &mut [f32]) {
        let n = x.len() / self.columns;
        assert!(x.len() == n * self.columns && out.len() == n * self.rows, "a product of the wrong size");
        let mut done = 0;
        while done < n {
            let width = match n - done {
                1 => 1,
                2 | 3 => 2,
                _ => 4,
            };
            let x = &x[done * self.columns..(done + width) * self.columns];
            let out = &mut out[done * self.rows..(done + width) * self.rows];
            match width {
                1 => self.rows_of::<1>(x, out),
                2 => self.rows_of::<2>(x, out),
                _ => self.rows_of::<4>(x, out),
            }
            done += width;
        }
    }

    fn rows_of<const N: usize>(&self, x: &[f32], out: &mut [f32]) {
        let inputs: [&[f32]; N] = std::array::from_fn(|i| &x[i * self.columns..(i + 1) * self.columns]);
        let mut outputs = split::<N>(out, self.rows);
        if self.rows * self.columns < PARALLEL_FROM {
            return self.block(&inputs, 0, &mut outputs);
        }
        // Each thread takes a stripe of rows and so a stripe of every output.
        let stripe = self.rows.div_ceil(rayon::current_num_threads()).max(1);
        let mut stripes: Vec<(usize, [&mut [f32]; N])> = Vec::with_capacity(self.rows.div_ceil(stripe));
        let mut start = 0;
        while start < self.rows {
            let height = stripe.min(self.rows - start);
            let taken = outputs.each_mut().map(|rest| {
                let (head, tail) = std::mem::take(rest).split_at_mut(height);
                *rest = tail;
                head
            });
            stripes.push((start, taken));
            start += height;
        }
        stripes.par_iter_mut().for_each(|(start, outputs)| self.block(&inputs, *start, outputs));
    }

    fn block<const N: usize>(&self, inputs: &[&[f32]; N], start: usize, outputs: &mut [&mut [f32]; N]) {
        let (columns, height) = (self.columns, outputs[0].len());
        let range = start * columns..(start + height) * columns;
        match &self.data {
            Data::F32(data) => dispatch(Block { weights: Plain(&data[range]), columns, inputs, outputs }),
            Data::F16(data) => dispatch(Block { weights: Half(&data[range]), columns, inputs, outputs }),
            Data::Bf16(data) => dispatch(Block { weights: Half(&data[range]), columns, inputs, outputs }),
        }
    }
}

fn join<T: candle_core::WithDType>(parts: &[Tensor], length: usize) -> candle_core::Result<Vec<T>> {
    let mut all = Vec::with_capacity(length);
    for part in parts {
        all.extend(part.to_dtype(T::DTYPE)?.flatten_all()?.to_vec1::<T>()?);
    }
    Ok(all)
}

fn split<const N: usize>(mut out: &mut [f32], rows: usize) -> [&mut [f32]; N] {
    std::array::from_fn(|_| {
        let (head, tail) = std::mem::take(&mut out).split_at_mut(rows);
        out = tail;
        head
    })
}

fn dispatch<W: Widen, const N: usize>(block: Block<'_, '_, W, N>) {
    Arch::new().dispatch(block);
}

/// Rows of weights as f32, whatever they are stored as.
trait Widen {
    /// Weights `from..to`, `buffer` long enough for them.
    fn widen<'a>(&'a self, from: usize, to: usize, buffer: &'a mut [f32; WIDEN]) -> &'a [f32];
}

struct Plain<'a>(&'a [f32]);

impl Widen for Plain<'_> {
    #[inline(always)]
    fn widen<'a>(&'a self, from: usize, to: usize, _buffer: &'a mut [f32; WIDEN]) -> &'a [f32] {
        &self.0[from..to]
    }
}

struct Half<'a, T>(&'a [T]);

impl<T> Widen for Half<'_, T>
where
    [T]: HalfFloatSliceExt,
{
    #[inline(always)]
    fn widen<'a>(&'a self, from: usize, to: usize, buffer: &'a mut [f32; WIDEN]) -> &'a [f32] {
        let out = &mut buffer[..to - from];
        self.0[from..to].convert_to_f32_slice(out);
        out
    }
}

/// Some rows of a product, compiled once for each instruction set and chosen at run time.
struct Block<'a, 'o, W, const N: usize> {
    weights: W,
    columns: usize,
    inputs: &'a [&'a [f32]; N],
    outputs: &'a mut [&'o mut [f32]; N],
}

impl<W: Widen, const N: usize> WithSimd for Block<'_, '_, W, N> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let mut buffer = [0.0; WIDEN];
        for row in 0..self.outputs[0].len() {
            let mut sums = [[0.0f32; LANES]; N];
            let mut tails = [0.0f32; N];
            let mut from = 0;
            while from < self.columns {
                let to = (from + WIDEN).min(self.columns);
                let weights = self.weights.widen(row * self.columns + from, row * self.columns + to, &mut buffer);
                dots(weights, self.inputs, from, &mut sums, &mut tails);
                from = to;
            }
            for i in 0..N {
                self.outputs[i][row] = sums[i].iter().sum::<f32>() + tails[i];
            }
        }
    }
}

/// Adds the products of `weights` with each input from `from` on; lane by lane, the remainder apart.
#[inline(always)]
fn dots<const N: usize>(
    weights: &[f32],
    inputs: &[&[f32]; N],
    from: usize,
    sums: &mut [[f32; LANES]; N],
    tails: &mut [f32; N],
) {
    let (chunks, rest) = weights.as_chunks::<LANES>();
    let inputs: [_; N] = std::array::from_fn(|i| inputs[i][from..from + weights.len()].as_chunks::<LANES>());
    for (c, chunk) in chunks.iter().enumerate() {
        for i in 0..N {
            let input = &inputs[i].0[c];
            for lane in 0..LANES {
                sums[i][lane] += chunk[lane] * input[lane];
            }
        }
    }
    for i in 0..N {
        tails[i] += rest.iter().zip(inputs[i].1).map(|(weight, input)| weight * input).sum::<f32>();
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// Every stored type, every number of vectors, sizes on both sides of the parallel threshold and of whole chunks.
    #[test]
    fn products_are_those_of_f64() {
        for (rows, columns, n) in [(3, 5, 1), (7, 33, 2), (300, 530, 3), (520, 128, 7)] {
            let weight = Tensor::randn(0f32, 1.0, (rows, columns), &Device::Cpu).unwrap();
            let x: Vec<f32> = (0..n * columns).map(|i| ((i * 37) % 101) as f32 / 101.0 - 0.5).collect();
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                let weight = weight.to_dtype(dtype).unwrap();
                let wide = weight.to_dtype(DType::F64).unwrap().to_vec2::<f64>().unwrap();
                let matrix = Matrix::stack(&[weight]).unwrap();
                let mut out = vec![0.0; n * rows];
                matrix.apply(&x, &mut out);
                for i in 0..n {
                    for row in 0..rows {
                        let wanted: f64 = (0..columns).map(|c| wide[row][c] * f64::from(x[i * columns + c])).sum();
                        assert!((f64::from(out[i * rows + row]) - wanted).abs() < 1e-4, "{dtype:?} {rows}x{columns}");
                    }
                }
            }
        }
    }
}
