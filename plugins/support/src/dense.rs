//! Linear layers for many rows at once (prompts, image tokens): weights stay as they are in their file, mapped or read piece
//! by piece, and are widened to f32 a panel at a time on the way into the product.
//!
//! With hundreds of rows the product outweighs the widening by two orders of magnitude, so half precision and quantised
//! weights cost their bytes in memory and nearly no time. For few rows see [`Linear`](aihost_engine::cpu::Linear).

use std::borrow::Cow;
use std::cell::RefCell;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use aihost_plugin_api::{Error, ErrorKind, Result};
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{CpuStorage, DType, Device, Tensor};
use half::f16;
use half::slice::HalfFloatSliceExt;
use memmap2::Mmap;
use rayon::prelude::*;

use crate::gemm::{View, ViewMut, matmul};
use aihost_engine::candle::Failure;

/// Elements of a widened panel: 1 MiB of f32, which stays in the second-level cache.
const PANEL: usize = 256 * 1024;

/// Fewest rows of a panel: below it the product re-reads its input too often.
const PANEL_ROWS: usize = 48;

/// f16 elements widened at a time.
const WIDEN: usize = 512;

/// Whether weights stay in memory. In host memory, resident ones are mapped from their file; on a device, they are copies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Residency {
    /// From loading on; in host memory shared with other maps of the same file.
    #[default]
    Resident,
    /// One matrix at a time, while it is used: read from its file, or uploaded.
    Streamed,
}

/// The bytes of a weight file: mapped where weights are resident, read at each use where they are streamed.
#[derive(Clone, Debug)]
pub(crate) enum Bytes {
    Mapped(Arc<Mmap>),
    Streamed(Arc<File>),
}

impl Bytes {
    /// The bytes of `range`, in `buffer` unless they are mapped.
    fn read<'a>(&'a self, range: Range<u64>, buffer: &'a mut Vec<u8>) -> Result<&'a [u8]> {
        match self {
            Self::Mapped(map) => Ok(&map[range.start as usize..range.end as usize]),
            Self::Streamed(file) => {
                buffer.resize((range.end - range.start) as usize, 0);
                let failed =
                    |error| Error::new(ErrorKind::CorruptFile, format!("a weight file cannot be read: {error}"));
                file.read_exact_at(buffer, range.start).map_err(failed)?;
                Ok(buffer)
            }
        }
    }
}

/// The data type that a weight is stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StorageType {
    /// 4 bytes.
    F32,
    /// 2 bytes, IEEE 754 half.
    F16,
    /// 2 bytes, bfloat16.
    Bf16,
    /// A block type of ggml.
    Quantised(GgmlDType),
}

impl StorageType {
    /// Bytes of `count` elements; `None` if they are no whole number of blocks, or more than can be counted.
    pub fn bytes(self, count: usize) -> Option<u64> {
        let (elements, bytes) = match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Quantised(block) => (block.block_size(), block.type_size()),
        };
        let blocks = count.is_multiple_of(elements).then_some(count / elements)?;
        blocks.checked_mul(bytes).map(|bytes| bytes as u64)
    }
}

#[derive(Clone, Debug)]
enum Store {
    /// In host memory, from row `at` on.
    Owned { values: Arc<Vec<f32>>, at: usize },
    /// In a file, from byte `at` on.
    File { bytes: Bytes, at: u64, stored: StorageType },
}

/// A weight matrix `[rows, columns]`, row-major.
#[derive(Clone, Debug)]
pub struct Dense {
    store: Store,
    rows: usize,
    columns: usize,
}

impl Dense {
    /// A matrix in host memory.
    ///
    /// # Panics
    /// If `values` are not `rows * columns`.
    pub fn owned(values: Vec<f32>, rows: usize, columns: usize) -> Self {
        assert_eq!(values.len(), rows * columns, "a matrix of the wrong size");
        Self { store: Store::Owned { values: Arc::new(values), at: 0 }, rows, columns }
    }

    /// A matrix that begins at byte `at`; `None` if its rows are no whole number of blocks.
    pub(crate) fn in_file(bytes: Bytes, at: u64, stored: StorageType, (rows, columns): (usize, usize)) -> Option<Self> {
        stored.bytes(columns)?;
        Some(Self { store: Store::File { bytes, at, stored }, rows, columns })
    }

    /// Rows, the width of what comes out.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns, the width of what goes in.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The matrix of rows `range`, which shares the weights.
    ///
    /// # Panics
    /// If the range reaches past its rows.
    #[must_use]
    pub fn part(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.rows, "a part of a matrix reaches past it");
        let store = match &self.store {
            Store::Owned { values, at } => Store::Owned { values: Arc::clone(values), at: at + range.start },
            Store::File { bytes, at, stored } => {
                let before = stored.bytes(range.start * self.columns).unwrap_or(0);
                Store::File { bytes: bytes.clone(), at: at + before, stored: *stored }
            }
        };
        Self { store, rows: range.len(), columns: self.columns }
    }

    /// Rows `range` as f32, written to `out`.
    ///
    /// # Errors
    /// If the file cannot be read.
    ///
    /// # Panics
    /// If the range reaches past the matrix, or `out` has another size.
    pub fn widen(&self, range: Range<usize>, out: &mut [f32]) -> Result<()> {
        assert!(range.end <= self.rows && out.len() == range.len() * self.columns, "a panel of the wrong size");
        match &self.store {
            Store::Owned { values, at } => {
                out.copy_from_slice(&values[(at + range.start) * self.columns..][..out.len()]);
            }
            Store::File { bytes, at, stored } => {
                let place = |row| at + stored.bytes(row * self.columns).unwrap_or(0);
                BYTES.with_borrow_mut(|buffer| {
                    widen(*stored, bytes.read(place(range.start)..place(range.end), buffer)?, out)
                })?;
            }
        }
        Ok(())
    }
}

/// A matrix on a device.
#[derive(Debug)]
pub enum Uploaded {
    /// In the stored type: f32, f16 or bf16.
    Dense(Tensor),
    /// In the blocks of a ggml type.
    Quantised(Arc<QTensor>),
}

impl Dense {
    /// The whole matrix on `device`, as it is stored. A mapped file is not copied in host memory on the way.
    ///
    /// # Errors
    /// If the file cannot be read, or the device is out of memory.
    pub fn upload(&self, device: &Device) -> Result<Uploaded, Failure> {
        let shape = [self.rows, self.columns];
        let (bytes, at, stored) = match &self.store {
            Store::Owned { values, at } => {
                let values = &values[at * self.columns..][..self.rows * self.columns];
                return Ok(Uploaded::Dense(Tensor::from_slice(values, &shape, device)?));
            }
            Store::File { bytes, at, stored } => (bytes, *at, *stored),
        };
        let range = at..at + stored.bytes(self.rows * self.columns).unwrap_or(0);
        let mut buffer = Vec::new();
        let bytes = bytes.read(range, &mut buffer)?;
        let dtype = match stored {
            StorageType::F32 => DType::F32,
            StorageType::F16 => DType::F16,
            StorageType::Bf16 => DType::BF16,
            StorageType::Quantised(block) => {
                let storage = QStorage::from_data(Cow::Borrowed(bytes), device, block)?;
                return Ok(Uploaded::Quantised(Arc::new(QTensor::new(storage, &shape[..])?)));
            }
        };
        Ok(Uploaded::Dense(Tensor::from_raw_buffer(bytes, dtype, &shape, device)?))
    }
}

thread_local! {
    /// What a thread has read of a file.
    static BYTES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    /// The panel a thread works on.
    static WIDE: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// `out` (m, sum of rows) = `x` (m, columns) times the transposes of `parts`, which stand beside each other.
///
/// Work is cut into panels of weights over the rayon pool that the caller is in.
///
/// # Errors
/// If a weight file cannot be read.
///
/// # Panics
/// If the sizes do not fit each other.
pub fn project(x: View<'_>, parts: &[&Dense], out: ViewMut<'_>) -> Result<()> {
    let total: usize = parts.iter().map(|part| part.rows).sum();
    assert_eq!(total, out.width(), "the parts of a matrix do not fill the product");
    let threads = rayon::current_num_threads();
    let mut panels: Vec<(&Dense, Range<usize>)> = Vec::new();
    for part in parts {
        let most = (PANEL / part.columns.max(1)).max(PANEL_ROWS).min(part.rows.div_ceil(threads).max(PANEL_ROWS));
        let count = part.rows.div_ceil(most).max(1);
        let height = part.rows.div_ceil(count).next_multiple_of(16);
        let starts = (0..part.rows).step_by(height.max(1));
        panels.extend(starts.map(|start| (*part, start..(start + height).min(part.rows))));
    }
    let pieces = out.split(panels.iter().map(|(_, range)| range.len()));
    let work: Vec<_> = panels.into_iter().zip(pieces).collect();
    work.into_par_iter().with_max_len(1).try_for_each(|((part, range), mut out)| {
        if let Store::Owned { values, at } = &part.store {
            let rows = &values[(at + range.start) * part.columns..(at + range.end) * part.columns];
            matmul(x, View::rows(rows, range.len(), part.columns, part.columns).transposed(), 1.0, &mut out);
            return Ok(());
        }
        // Taken out of its cell: a product on this thread may run another panel's while it waits.
        let mut wide = WIDE.take();
        wide.resize(range.len() * part.columns, 0.0);
        let widened = part.widen(range.clone(), &mut wide);
        if widened.is_ok() {
            matmul(x, View::rows(&wide, range.len(), part.columns, part.columns).transposed(), 1.0, &mut out);
        }
        WIDE.set(wide);
        widened
    })
}

/// Most bytes that [`project`] keeps for each thread, for matrices of `columns`.
pub fn panel_bytes(columns: usize) -> u64 {
    (2 * 4 * PANEL.max((PANEL_ROWS + 16) * columns)) as u64
}

/// Converts stored elements to f32: dequantises blocks, widens half precision. `bytes` holds as many as `out`.
pub(crate) fn widen(stored: StorageType, bytes: &[u8], out: &mut [f32]) -> Result<()> {
    match stored {
        StorageType::F32 => {
            out.iter_mut().zip(bytes.as_chunks::<4>().0).for_each(|(out, bytes)| *out = f32::from_le_bytes(*bytes));
        }
        StorageType::Bf16 => {
            let bits = bytes.as_chunks::<2>().0.iter().map(|bytes| u16::from_le_bytes(*bytes));
            out.iter_mut().zip(bits).for_each(|(out, bits)| *out = f32::from_bits(u32::from(bits) << 16));
        }
        StorageType::F16 => {
            let mut halves = [f16::ZERO; WIDEN];
            for (out, bytes) in out.chunks_mut(WIDEN).zip(bytes.chunks(2 * WIDEN)) {
                let bits = bytes.as_chunks::<2>().0.iter().map(|bytes| f16::from_le_bytes(*bytes));
                halves.iter_mut().zip(bits).for_each(|(half, bits)| *half = bits);
                halves[..out.len()].convert_to_f32_slice(out);
            }
        }
        StorageType::Quantised(block) => {
            // Copied: an offset in a file need not be aligned for the block type, an allocation is.
            let values = block.from_data(Cow::Owned(bytes.to_vec())).dequantize(out.len()).map_err(Error::internal)?;
            let CpuStorage::F32(values) = values else { return Err(Error::internal("blocks did not become f32")) };
            out.copy_from_slice(&values[..out.len()]);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use candle_core::quantized::QTensor;
    use candle_core::{DType, Device, Tensor};
    use half::bf16;

    use super::*;

    /// The bytes of a random matrix in each stored type, with the f32 values that they mean.
    fn stored(rows: usize, columns: usize) -> Vec<(StorageType, Vec<u8>, Vec<f32>)> {
        let weight = Tensor::randn(0f32, 1.0, (rows, columns), &Device::Cpu).unwrap();
        let to_f32 = |tensor: &Tensor| -> Vec<f32> {
            tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
        };
        let plain = to_f32(&weight);
        let mut all = vec![(StorageType::F32, plain.iter().flat_map(|x| x.to_le_bytes()).collect(), plain.clone())];
        let half = plain.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect();
        all.push((StorageType::F16, half, to_f32(&weight.to_dtype(DType::F16).unwrap())));
        let half = plain.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect();
        all.push((StorageType::Bf16, half, to_f32(&weight.to_dtype(DType::BF16).unwrap())));
        for block in [GgmlDType::Q4_0, GgmlDType::Q8_0, GgmlDType::Q4K, GgmlDType::Q6K] {
            if columns.is_multiple_of(block.block_size()) {
                let quantised = QTensor::quantize(&weight, block).unwrap();
                let wide = to_f32(&quantised.dequantize(&Device::Cpu).unwrap());
                all.push((StorageType::Quantised(block), quantised.data().unwrap().into_owned(), wide));
            }
        }
        all
    }

    #[test]
    fn products_do_not_depend_on_how_weights_are_stored_or_read() {
        for (rows, columns, m) in [(1, 8, 1), (70, 33, 5), (300, 256, 40)] {
            for (form, bytes, wide) in stored(rows, columns) {
                // An odd place, as a file may have.
                let mut file = tempfile::tempfile().unwrap();
                file.write_all(&[0; 7]).unwrap();
                file.write_all(&bytes).unwrap();
                let file = Arc::new(file);
                let streamed = Dense::in_file(Bytes::Streamed(file), 7, form, (rows, columns)).unwrap();
                let x: Vec<f32> = (0..m * columns).map(|i| ((i * 37) % 101) as f32 / 101.0 - 0.5).collect();
                for weight in [streamed, Dense::owned(wide.clone(), rows, columns)] {
                    let (first, second) = (weight.part(0..rows / 3), weight.part(rows / 3..rows));
                    let mut out = vec![0.0; m * rows];
                    let target = ViewMut::rows(&mut out, m, rows, rows);
                    project(View::rows(&x, m, columns, columns), &[&first, &second], target).unwrap();
                    for i in 0..m {
                        for row in 0..rows {
                            let of = |c| f64::from(wide[row * columns + c]) * f64::from(x[i * columns + c]);
                            let wanted: f64 = (0..columns).map(of).sum();
                            assert!(
                                (f64::from(out[i * rows + row]) - wanted).abs() < 1e-4,
                                "{form:?} {rows}x{columns}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_file_that_was_cut_is_an_error() {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let weight = Dense::in_file(Bytes::Streamed(file), 0, StorageType::F32, (2, 2)).unwrap();
        assert_eq!(weight.widen(0..2, &mut [0.0; 4]).unwrap_err().kind(), ErrorKind::CorruptFile);
    }
}
