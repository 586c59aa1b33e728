//! Linear layers whose weights stay in the mapped file, in any of its types.
//!
//! Work is split over the rayon pool that the caller is in, by rows of the matrices.

use std::ops::Range;
use std::sync::Arc;

use aihost_plugin_api::Result;
use memmap2::Mmap;
use rayon::prelude::*;

use super::kernels::{self, Activations, BLOCK, InstructionSet, Q16Rows, Weights, scalar};
use crate::files::{TensorType, Tensors};

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
    /// [`ErrorKind::CorruptFile`](aihost_plugin_api::ErrorKind) if it is missing, of another shape or of another size than its shape has, or if its rows are no
    /// whole number of blocks.
    pub fn open(tensors: &Tensors, name: &str, rows: usize, columns: usize) -> Result<Self> {
        Self::open_rows(tensors, name, &[rows, columns], 0..rows)
    }

    /// Rows of the tensor `name`, which must be of this shape, `[.., columns]`: all before the last size counts rows.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_rows(tensors: &Tensors, name: &str, shape: &[usize], part: Range<usize>) -> Result<Self> {
        let info = tensors.tensor(name)?;
        if !info.dimensions.iter().eq(shape.iter().rev()) {
            let wanted: Vec<usize> = shape.iter().rev().copied().collect();
            return Err(tensors.wrong_shape(name, &info.dimensions, &wanted));
        }
        let columns = shape.last().copied().unwrap_or(0);
        let rows = shape.iter().rev().skip(1).product();
        let whole =
            Self { map: Arc::clone(tensors.map(info)), range: info.range.clone(), dtype: info.dtype, rows, columns };
        whole.check().map_err(|what| tensors.corrupt(format!("the tensor {name} {what}; convert the model again")))?;
        let stride = whole.dtype.bytes(columns);
        let start = whole.range.start + part.start * stride;
        Ok(Self { range: start..start + part.len() * stride, rows: part.len(), ..whole })
    }

    /// Rows, the width of what comes out.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns, the width of what goes in.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// How its elements are stored.
    pub fn dtype(&self) -> TensorType {
        self.dtype
    }

    /// Its rows as they are stored.
    pub fn bytes(&self) -> &[u8] {
        &self.map[self.range.clone()]
    }

    /// One row as f32, for embeddings. `out` is `[columns]`.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        scalar::read_row(self.dtype, self.weights(row..row + 1).bytes, out);
    }

    /// Whether the products can be made, or what is wrong.
    fn check(&self) -> std::result::Result<(), String> {
        let block = if kernels::takes_floats(self.dtype) { 1 } else { self.dtype.block().max(BLOCK) };
        if !self.columns.is_multiple_of(block) {
            return Err(format!(
                "is {} and has rows of {} elements, which are no whole number of blocks of {block}",
                self.dtype, self.columns
            ));
        }
        let (bytes, wanted) = (self.range.len(), self.dtype.bytes(self.columns).checked_mul(self.rows));
        if wanted != Some(bytes) || self.range.end > self.map.len() {
            return Err(format!(
                "has {bytes} bytes, which is not what {} rows of {} {} take",
                self.rows, self.columns, self.dtype
            ));
        }
        Ok(())
    }

    fn weights(&self, rows: Range<usize>) -> Weights<'_> {
        let stride = self.dtype.bytes(self.columns);
        let bytes = &self.map[self.range.clone()][rows.start * stride..rows.end * stride];
        Weights { dtype: self.dtype, bytes, columns: self.columns }
    }
}

/// Products of the same activations with several matrices, in one go.
///
/// `x` is `[m, columns]` f32; each target is a matrix and its `[m, rows]` f32 result.
pub fn project(x: &[f32], m: usize, targets: &mut [(&Linear, &mut [f32])]) {
    project_with(InstructionSet::in_use(), x, m, targets);
}

fn project_with(set: InstructionSet, x: &[f32], m: usize, targets: &mut [(&Linear, &mut [f32])]) {
    if m == 0 {
        return;
    }
    let needed = targets.iter().any(|(linear, _)| !kernels::takes_floats(linear.dtype));
    let quantised = needed.then(|| Q16Rows::quantise(set, x, x.len() / m)).flatten();
    let operands: Vec<(&Linear, Activations<'_>)> = targets
        .iter()
        .map(|(linear, _)| match &quantised {
            Some(quantised) if !kernels::takes_floats(linear.dtype) => (*linear, Activations::Quantised(quantised)),
            _ => (*linear, Activations::Floats(x)),
        })
        .collect();

    let total: usize = targets.iter().map(|(linear, _)| linear.rows).sum();
    let piece = total.div_ceil(rayon::current_num_threads() * PIECES_PER_THREAD).next_multiple_of(PIECE_ROWS);
    if m == 1 {
        run(set, targets.iter_mut().zip(&operands).flat_map(|((_, out), operand)| cut(*operand, out, piece)).collect());
        return;
    }
    // A piece has some columns of the result, so it is computed by itself, [m, its rows], and put together at the end.
    let mut apart: Vec<Vec<f32>> = targets.iter().map(|(linear, _)| vec![0.0; linear.rows * m]).collect();
    run(set, apart.iter_mut().zip(&operands).flat_map(|(out, operand)| cut(*operand, out, piece * m)).collect());
    for ((linear, out), apart) in targets.iter_mut().zip(&apart) {
        out.par_chunks_mut(linear.rows).enumerate().for_each(|(i, row)| {
            for (out, piece) in row.chunks_mut(piece).zip(apart.chunks(piece * m)) {
                out.copy_from_slice(&piece[i * out.len()..][..out.len()]);
            }
        });
    }
}

/// Products of groups of rows of `x`, each with its own matrix, into the same rows of `out`.
///
/// `groups` says how many rows follow, and whose they are; all matrices are of one shape. Each row gives what it gives by
/// [`project`].
pub fn project_grouped(x: &[f32], groups: &[(usize, &Linear)], out: &mut [f32]) {
    let (mut x, mut out, mut parts) = (x, out, Vec::with_capacity(groups.len()));
    for (rows, linear) in groups {
        let (own_x, own_out);
        (own_x, x) = x.split_at(rows * linear.columns);
        (own_out, out) = out.split_at_mut(rows * linear.rows);
        parts.push((own_x, *rows, *linear, own_out));
    }
    // Each group's own product is spread over the threads too, where there are fewer groups than these.
    let product = |(x, rows, linear, out): (&[f32], usize, &Linear, &mut [f32])| project(x, rows, &mut [(linear, out)]);
    if rayon::current_num_threads() == 1 {
        parts.into_iter().for_each(product);
    } else {
        parts.into_par_iter().with_max_len(1).for_each(product);
    }
}

/// A piece of a product: rows from `start`, as many as `out` (`[m, rows]`) holds.
struct Piece<'a> {
    linear: &'a Linear,
    x: Activations<'a>,
    rows: Range<usize>,
    out: &'a mut [f32],
}

/// Pieces of `size` results of one matrix.
fn cut<'a>(
    (linear, x): (&'a Linear, Activations<'a>),
    out: &'a mut [f32],
    size: usize,
) -> impl Iterator<Item = Piece<'a>> {
    let m = (out.len() / linear.rows.max(1)).max(1);
    out.chunks_mut(size).enumerate().map(move |(i, out)| {
        let start = i * (size / m);
        Piece { linear, x, rows: start..start + out.len() / m, out }
    })
}

fn run(set: InstructionSet, pieces: Vec<Piece<'_>>) {
    let product = |piece: Piece<'_>| kernels::products(set, piece.linear.weights(piece.rows), piece.x, piece.out);
    if rayon::current_num_threads() == 1 {
        pieces.into_iter().for_each(product);
    } else {
        pieces.into_par_iter().with_max_len(1).for_each(product);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use super::{Linear, project_grouped, project_with};
    use crate::cpu::kernels::tests::{noise, weights};
    use crate::cpu::kernels::{InstructionSet, scalar, takes_floats};
    use crate::files::{TensorType, map};

    /// A matrix of random weights in a file of its own, some bytes from the file's start.
    fn linear(dtype: TensorType, rows: usize, columns: usize) -> Linear {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let bytes = weights(dtype, rows * columns);
        file.write_all(&[1; 7]).unwrap();
        file.write_all(&bytes).unwrap();
        let map = Arc::new(map::map_file(file.path()).unwrap());
        Linear { map, range: 7..7 + bytes.len(), dtype, rows, columns }
    }

    fn activations(count: usize) -> Vec<f32> {
        let mut next = noise(5);
        (0..count).map(|_| next() as f32 / u32::MAX as f32 - 0.5).collect()
    }

    #[test]
    fn threads_and_company_change_nothing() {
        let pools = [1, 2, 5].map(|n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap());
        for dtype in TensorType::all() {
            let columns = dtype.block().max(64);
            let (one, other) = (linear(dtype, 203, columns), linear(TensorType::F16, 21, columns));
            for m in [1, 6] {
                let x = activations(m * columns);
                let results: Vec<Vec<f32>> = pools
                    .iter()
                    .map(|pool| {
                        let (mut out, mut out_of_other) = (vec![0.0; m * 203], vec![0.0; m * 21]);
                        let mut targets = [(&other, out_of_other.as_mut_slice()), (&one, out.as_mut_slice())];
                        pool.install(|| project_with(InstructionSet::in_use(), &x, m, &mut targets));
                        out
                    })
                    .collect();
                let mut alone = vec![0.0; m * 203];
                for (x, out) in x.chunks_exact(columns).zip(alone.chunks_exact_mut(203)) {
                    pools[0].install(|| project_with(InstructionSet::in_use(), x, 1, &mut [(&one, out)]));
                }
                assert!(results.iter().all(|result| *result == alone), "{dtype} with {m}");
                assert!(alone.iter().all(|x| *x != 0.0), "{dtype} with {m}");
            }
        }
    }

    #[test]
    fn a_group_gives_what_its_rows_give_alone() {
        let experts = [linear(TensorType::Q4K, 19, 256), linear(TensorType::F16, 19, 256)];
        let groups = [(3, &experts[0]), (1, &experts[1]), (2, &experts[0])];
        let x = activations(6 * 256);
        let mut alone = vec![0.0; 6 * 19];
        let matrices = groups.iter().flat_map(|(rows, matrix)| vec![*matrix; *rows]);
        for ((x, out), matrix) in x.chunks_exact(256).zip(alone.chunks_exact_mut(19)).zip(matrices) {
            project_with(InstructionSet::in_use(), x, 1, &mut [(matrix, out)]);
        }
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut out = vec![0.0; 6 * 19];
            pool.install(|| project_grouped(&x, &groups, &mut out));
            assert_eq!(out, alone);
        }
    }

    #[test]
    fn a_row_is_the_one_that_was_asked_for() {
        for dtype in TensorType::all() {
            let columns = dtype.block().max(64);
            let linear = linear(dtype, 5, columns);
            let mut all = vec![0.0; 5 * columns];
            scalar::read_row(dtype, &weights(dtype, 5 * columns), &mut all);
            for (i, wanted) in all.chunks_exact(columns).enumerate() {
                let mut row = vec![0.0; columns];
                linear.row(i, &mut row);
                assert_eq!(row, wanted, "{dtype} {i}");
            }
        }
    }

    #[test]
    fn what_cannot_be_multiplied_is_refused() {
        for dtype in TensorType::all() {
            let sound = linear(dtype, 4, 256);
            assert_eq!(sound.check(), Ok(()), "{dtype}");
            let message = |linear: Linear| linear.check().unwrap_err();
            for range in [7..sound.range.end - 1, 8..sound.range.end + 1] {
                assert!(message(Linear { range, ..sound.clone() }).contains("4 rows of 256"), "{dtype}");
            }
            assert!(message(Linear { rows: 3, ..sound.clone() }).contains("3 rows of 256"), "{dtype}");
            assert!(message(Linear { rows: usize::MAX, ..sound.clone() }).contains("bytes"), "{dtype}");
            if !takes_floats(dtype) {
                let columns = dtype.block() + 16;
                let text = message(Linear { columns, ..sound });
                assert!(text.contains("no whole number of blocks"), "{dtype}: {text}");
            }
        }
    }
}
