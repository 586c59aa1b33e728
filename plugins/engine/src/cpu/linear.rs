//! Linear layers whose weights stay in the mapped file.
//!
//! Q4_1 and Q8_0 use the kernels of this crate; the other types are seen in place as candle's block types and use candle's dot
//! products. Work is split over the rayon pool that the caller is in.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use aihost_plugin_api::{Error, ErrorKind, Result};
use candle_core::quantized::k_quants;
use k_quants::GgmlType;
use memmap2::Mmap;
use rayon::prelude::*;

use super::kernels::{self, BLOCK, Format, Q16Rows};
use crate::files::{Gguf, TensorType};

/// Pieces a product is cut into, per thread: enough that a thread that was interrupted does not hold up the others.
const PIECES_PER_THREAD: usize = 4;
/// Rows of a piece are a multiple of this, so that the kernels' tiles are full.
const PIECE_ROWS: usize = 16;

/// A weight matrix `[rows, columns]` in a mapped file.
#[derive(Clone, Debug)]
pub struct Linear {
    map: Arc<Mmap>,
    range: Range<usize>,
    dtype: TensorType,
    rows: usize,
    columns: usize,
}

impl Linear {
    /// The tensor `name`, which must be `[rows, columns]` (that is, `columns` is contiguous and stands first in the file).
    ///
    /// # Errors
    /// [`ErrorKind::CorruptFile`] if it is missing or of another shape, [`ErrorKind::Unsupported`] if its type has no product.
    pub fn open(gguf: &Gguf, name: &str, rows: usize, columns: usize) -> Result<Self> {
        let info = gguf.tensor(name)?;
        if info.dimensions != [columns, rows] {
            return Err(gguf.wrong_shape(name, &info.dimensions, &[columns, rows]));
        }
        let linear =
            Self { map: Arc::clone(gguf.map(info)), range: info.range.clone(), dtype: info.dtype, rows, columns };
        if linear.format().is_none() && !with_blocks(&linear, SoundBlocks).is_some_and(|sound| sound) {
            let message = format!(
                "{}: the tensor {name} is {}, which cannot be multiplied with here; use another quantisation",
                gguf.name(),
                info.dtype
            );
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        Ok(linear)
    }

    /// Rows, the width of what comes out.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns, the width of what goes in.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// One row as f32, for embeddings. `out` is `[columns]`.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        let _ = with_blocks(self, CopyRow { row, out });
    }

    fn bytes(&self) -> &[u8] {
        &self.map[self.range.clone()]
    }

    fn format(&self) -> Option<Format> {
        match self.dtype {
            TensorType::Q41 => Some(Format::Q4_1),
            TensorType::Q80 => Some(Format::Q8_0),
            _ => None,
        }
    }
}

/// Products of the same activations with several matrices, in one go.
///
/// `x` is `[m, columns]` f32; each target is a matrix and its `[m, rows]` f32 result.
pub fn project(x: &[f32], m: usize, targets: &mut [(&Linear, &mut [f32])]) {
    let quantised = OnceLock::new();
    let columns = x.len() / m.max(1);
    let prepared: Vec<Box<dyn Rows + '_>> = targets
        .iter()
        .map(|(linear, _)| -> Box<dyn Rows + '_> {
            match linear.format() {
                Some(format) => {
                    let x = quantised.get_or_init(|| Arc::new(quantise(x, columns)));
                    Box::new(Native { format, weights: linear.bytes(), columns, x: Arc::clone(x) })
                }
                None => with_blocks(linear, Prepare { x, m, columns }).unwrap_or_else(|| Box::new(Nothing)),
            }
        })
        .collect();

    let total: usize = targets.iter().map(|(linear, _)| linear.rows).sum();
    let threads = rayon::current_num_threads();
    let piece = total.div_ceil(threads * PIECES_PER_THREAD).next_multiple_of(PIECE_ROWS);
    if m == 1 {
        let pieces = targets.iter_mut().zip(&prepared).flat_map(|((_, out), rows)| cut(rows.as_ref(), out, piece, 1));
        run(pieces.collect());
        return;
    }
    // Pieces of rows of the matrix are columns of the result: computed as [rows, m], then transposed.
    let mut transposed: Vec<Vec<f32>> = targets.iter().map(|(linear, _)| vec![0.0; linear.rows * m]).collect();
    run(transposed.iter_mut().zip(&prepared).flat_map(|(out, rows)| cut(rows.as_ref(), out, piece, m)).collect());
    for ((linear, out), transposed) in targets.iter_mut().zip(&transposed) {
        out.par_chunks_mut(linear.rows).enumerate().for_each(|(i, row)| {
            for (out, values) in row.iter_mut().zip(transposed.chunks_exact(m)) {
                *out = values[i];
            }
        });
    }
}

/// A piece of a product: rows from `start`, as many as `out` (`[rows, m]`) holds.
struct Piece<'a> {
    rows: &'a dyn Rows,
    start: usize,
    out: &'a mut [f32],
}

fn cut<'a>(rows: &'a dyn Rows, out: &'a mut [f32], piece: usize, m: usize) -> impl Iterator<Item = Piece<'a>> {
    out.chunks_mut(piece * m).enumerate().map(move |(i, out)| Piece { rows, start: i * piece, out })
}

fn run(pieces: Vec<Piece<'_>>) {
    if rayon::current_num_threads() == 1 {
        pieces.into_iter().for_each(|piece| piece.rows.products(piece.start, piece.out));
    } else {
        pieces.into_par_iter().with_max_len(1).for_each(|piece| piece.rows.products(piece.start, piece.out));
    }
}

fn quantise(x: &[f32], columns: usize) -> Q16Rows {
    debug_assert!(columns.is_multiple_of(BLOCK), "rows are whole blocks");
    Q16Rows::quantise(x, columns)
}

/// A matrix with the activations in the form its product needs.
trait Rows: Send + Sync {
    /// Products of matrix rows from `start` with all activations; `out` is `[rows, m]`.
    fn products(&self, start: usize, out: &mut [f32]);
}

struct Native<'a> {
    format: Format,
    weights: &'a [u8],
    columns: usize,
    x: Arc<Q16Rows>,
}

impl Rows for Native<'_> {
    fn products(&self, start: usize, out: &mut [f32]) {
        let row = self.format.row_bytes(self.columns);
        let count = out.len() / self.x.rows().max(1);
        kernels::products(self.format, &self.weights[start * row..(start + count) * row], &self.x, out);
    }
}

struct Candle<'a, T: GgmlType> {
    weights: &'a [T],
    columns: usize,
    m: usize,
    x: Vec<T::VecDotType>,
}

impl<T: GgmlType> Rows for Candle<'_, T> {
    fn products(&self, start: usize, out: &mut [f32]) {
        let (row, x_row) = (self.columns / T::BLCK_SIZE, self.columns / <T::VecDotType as GgmlType>::BLCK_SIZE);
        let weights = self.weights[start * row..].chunks_exact(row);
        for (weights, out) in weights.zip(out.chunks_exact_mut(self.m)) {
            for (x, out) in self.x.chunks_exact(x_row).zip(out) {
                *out = T::vec_dot(self.columns, weights, x);
            }
        }
    }
}

/// Stands for a type that [`Linear::open`] has refused.
struct Nothing;

impl Rows for Nothing {
    fn products(&self, _start: usize, out: &mut [f32]) {
        out.fill(f32::NAN);
    }
}

/// An operation on a matrix once its block type is known.
trait WithBlocks<'a> {
    type Out;
    fn run<T: GgmlType + 'static>(self, linear: &Linear, blocks: &'a [T]) -> Self::Out;
}

struct SoundBlocks;

impl<'a> WithBlocks<'a> for SoundBlocks {
    type Out = bool;
    fn run<T: GgmlType + 'static>(self, linear: &Linear, blocks: &'a [T]) -> bool {
        let whole =
            linear.columns.is_multiple_of(T::BLCK_SIZE) && linear.columns.is_multiple_of(T::VecDotType::BLCK_SIZE);
        whole && blocks.len() == linear.rows * (linear.columns / T::BLCK_SIZE)
    }
}

struct CopyRow<'b> {
    row: usize,
    out: &'b mut [f32],
}

impl<'a> WithBlocks<'a> for CopyRow<'_> {
    type Out = ();
    fn run<T: GgmlType + 'static>(self, linear: &Linear, blocks: &'a [T]) {
        let width = linear.columns / T::BLCK_SIZE;
        T::to_float(&blocks[self.row * width..(self.row + 1) * width], self.out);
    }
}

struct Prepare<'x> {
    x: &'x [f32],
    m: usize,
    columns: usize,
}

impl<'a> WithBlocks<'a> for Prepare<'_> {
    type Out = Box<dyn Rows + 'a>;
    fn run<T: GgmlType + 'static>(self, _linear: &Linear, blocks: &'a [T]) -> Self::Out {
        let mut x = vec![T::VecDotType::zeros(); self.x.len() / T::VecDotType::BLCK_SIZE];
        T::VecDotType::from_float(self.x, &mut x);
        Box::new(Candle { weights: blocks, columns: self.columns, m: self.m, x })
    }
}

fn with_blocks<'a, W: WithBlocks<'a>>(linear: &'a Linear, what: W) -> Option<W::Out> {
    /// `None` if the bytes are not aligned for T, which a sound file's always are.
    fn seen<T: GgmlType>(bytes: &[u8]) -> Option<&[T]> {
        // SAFETY: `with_blocks` is the only caller and names only T that are plain numbers without padding or invalid bit patterns
        // (candle's `repr(C)` blocks, f32, f16, bf16); align_to itself keeps to the bytes and to T's alignment.
        #[expect(unsafe_code, reason = "weights are used in place")]
        let (before, blocks, after) = unsafe { bytes.align_to::<T>() };
        (before.is_empty() && after.is_empty()).then_some(blocks)
    }
    let bytes = linear.bytes();
    Some(match linear.dtype {
        TensorType::F32 => what.run(linear, seen::<f32>(bytes)?),
        TensorType::F16 => what.run(linear, seen::<half::f16>(bytes)?),
        TensorType::Bf16 => what.run(linear, seen::<half::bf16>(bytes)?),
        TensorType::Q40 => what.run(linear, seen::<k_quants::BlockQ4_0>(bytes)?),
        TensorType::Q41 => what.run(linear, seen::<k_quants::BlockQ4_1>(bytes)?),
        TensorType::Q50 => what.run(linear, seen::<k_quants::BlockQ5_0>(bytes)?),
        TensorType::Q51 => what.run(linear, seen::<k_quants::BlockQ5_1>(bytes)?),
        TensorType::Q80 => what.run(linear, seen::<k_quants::BlockQ8_0>(bytes)?),
        TensorType::Q2K => what.run(linear, seen::<k_quants::BlockQ2K>(bytes)?),
        TensorType::Q3K => what.run(linear, seen::<k_quants::BlockQ3K>(bytes)?),
        TensorType::Q4K => what.run(linear, seen::<k_quants::BlockQ4K>(bytes)?),
        TensorType::Q5K => what.run(linear, seen::<k_quants::BlockQ5K>(bytes)?),
        TensorType::Q6K => what.run(linear, seen::<k_quants::BlockQ6K>(bytes)?),
        TensorType::Iq4Nl | TensorType::Iq4Xs | TensorType::Mxfp4 => return None,
    })
}
