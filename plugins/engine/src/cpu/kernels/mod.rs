//! The hot loops: products of weight rows in any format with rows of activations.
//!
//! They are written once (`tiles`, `formats`) over sixteen lanes (`simd`), which are sixteen weight rows, and compiled for each
//! [`InstructionSet`]. The best one of the CPU is used, or the one that `AIHOST_KERNELS` names. The portable one reads rows to f32
//! (`scalar`) and multiplies those.
//!
//! Every result element is summed in an order that does not depend on how many rows are asked for at once, so that batching never
//! changes a result; nor do threads, which have rows of their own.
//!
//! Float weights are multiplied with the f32 activations themselves, all others with activations of 16 bits and a scale per 32
//! (`Q16Rows`). Eight bits would save half of the multiplications, and drift by 0.14 to 0.18 nats in log-probability
//! (Q4_0, Q5_0, Q5_1), by 5 to 7 where one channel of the activations is 300 times the rest; sixteen keep within 0.003 and 0.07
//! (Q4_1, Q8_0). In decoding unpacking and memory cost more than multiplying, so no format has eight.

mod formats;
mod portable;
pub(crate) mod scalar;
mod simd;
mod tiles;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::fmt;
use std::marker::PhantomData;
use std::sync::LazyLock;

use simd::{Job, LANES, Lanes, LanesJob, Simd};

use crate::files::TensorType;

/// Elements of a block of quantised activations.
pub const BLOCK: usize = 32;
/// Groups of four elements of a block.
const QUADS: usize = BLOCK / 4;
/// Rows of activations that an unpacked weight is used for, at most: as many as stay in the second cache beside the weights.
const CHUNK: usize = 64;
/// The variable that names the instruction set to use.
pub const VARIABLE: &str = "AIHOST_KERNELS";

/// Bytes of 32 elements of sixteen rows, four elements of each row in a vector.
type Quads<S> = [<S as Lanes>::Ints; QUADS];

/// What a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstructionSet {
    /// Whatever the build is for.
    Portable,
    /// AVX2, FMA and F16C.
    Avx2,
    /// Those and AVX-VNNI.
    AvxVnni,
    /// AVX-512 with BW, VL and VNNI.
    Avx512Vnni,
}

impl InstructionSet {
    /// Those that this CPU has, the best one last.
    pub fn available() -> impl Iterator<Item = Self> {
        [Self::Portable, Self::Avx2, Self::AvxVnni, Self::Avx512Vnni].into_iter().filter(|set| set.is_available())
    }

    /// The one that products are made with: the best one, or what `AIHOST_KERNELS` names if the CPU has it.
    pub fn in_use() -> Self {
        static IN_USE: LazyLock<InstructionSet> = LazyLock::new(|| {
            let best = InstructionSet::available().last().unwrap_or(InstructionSet::Portable);
            let Some(named) = std::env::var_os(VARIABLE) else { return best };
            let named = named.to_string_lossy();
            InstructionSet::named(&named).unwrap_or_else(|| {
                let available: Vec<String> = InstructionSet::available().map(|set| set.to_string()).collect();
                tracing::warn!(
                    asked = &*named,
                    used = %best,
                    "{VARIABLE} names no instruction set that is here; it may be {}",
                    available.join(", ")
                );
                best
            })
        });
        *IN_USE
    }

    /// The one with this name; `None` if there is none or the CPU has not got it.
    fn named(name: &str) -> Option<Self> {
        Self::available().find(|set| set.to_string() == name)
    }

    fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        match self {
            Self::Portable => true,
            Self::Avx2 => x86::Avx2::detected().is_some(),
            Self::AvxVnni => x86::AvxVnni::detected().is_some(),
            Self::Avx512Vnni => x86::Avx512Vnni::detected().is_some(),
        }
        #[cfg(not(target_arch = "x86_64"))]
        return self == Self::Portable;
    }

    /// Runs `job` with these instructions; with portable ones if the CPU has not got them.
    fn run<J: Job>(self, job: J) -> J::Out {
        #[cfg(target_arch = "x86_64")]
        match self {
            Self::Portable => {}
            Self::Avx2 => {
                if let Some(simd) = x86::Avx2::detected() {
                    return simd.run(job);
                }
            }
            Self::AvxVnni => {
                if let Some(simd) = x86::AvxVnni::detected() {
                    return simd.run(job);
                }
            }
            Self::Avx512Vnni => {
                if let Some(simd) = x86::Avx512Vnni::detected() {
                    return simd.run(job);
                }
            }
        }
        portable::Portable.run(job)
    }

    /// The same for what there is no portable way to do: `None` then.
    fn run_lanes<J: LanesJob>(self, job: J) -> Option<J::Out> {
        #[cfg(target_arch = "x86_64")]
        return match self {
            Self::Portable => None,
            Self::Avx2 => x86::Avx2::detected().map(|simd| simd.run_lanes(job)),
            Self::AvxVnni => x86::AvxVnni::detected().map(|simd| simd.run_lanes(job)),
            Self::Avx512Vnni => x86::Avx512Vnni::detected().map(|simd| simd.run_lanes(job)),
        };
        #[cfg(not(target_arch = "x86_64"))]
        None
    }
}

impl fmt::Display for InstructionSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avx-vnni",
            Self::Avx512Vnni => "avx512-vnni",
        })
    }
}

/// Activations, `[rows, columns]`, quantised to 16 bits per block of 32: x = scale * q, with q from -32767 to 32767.
///
/// Eight bits, as llama.cpp has, are faster but move the log-probabilities of small models by 0.2 and more: greedy decoding then
/// leaves the reference after a few dozen tokens. Sixteen give the tokens of f32 activations.
#[derive(Clone, Debug)]
pub(crate) struct Q16Rows {
    rows: usize,
    blocks: usize,
    /// `[blocks, rows]` of each [`CHUNK`] of rows in turn.
    all: Vec<XBlock>,
}

/// 32 activations of one row.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct XBlock {
    /// Two quants, or the upper or lower halves of four, in the order of the instruction set.
    quants: [i32; 2 * QUADS],
    scale: f32,
    /// Scale times the sum of the quants: what a weight's minimum is multiplied with.
    total: f32,
    /// The same of the first and the last 16.
    halves: [f32; 2],
    /// -128 times the sum of the quants' upper bytes.
    high: i32,
}

impl Q16Rows {
    /// Quantises `values`, `[values.len() / columns, columns]`, for products with `set`; `None` if that one takes f32 for all types.
    /// `columns` must be a multiple of 32.
    pub(crate) fn quantise(set: InstructionSet, values: &[f32], columns: usize) -> Option<Self> {
        set.run_lanes(tiles::Quantise { values, columns })
    }

    /// The blocks of each chunk, `[blocks, rows]`, and its first row.
    fn chunks(&self) -> impl Iterator<Item = (usize, &[XBlock])> {
        let chunks = self.all.chunks((CHUNK * self.blocks).max(1));
        chunks.enumerate().map(|(chunk, blocks)| (chunk * CHUNK, blocks))
    }
}

/// Activations in the form that a format's products need.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Activations<'a> {
    /// For quantised weights.
    Quantised(&'a Q16Rows),
    /// `[rows, columns]`, for weights that are floats, and for others where they are not [`Q16Rows::quantise`]d.
    Floats(&'a [f32]),
}

/// Whether products with this type take [`Activations::Floats`] in every instruction set.
pub(crate) fn takes_floats(dtype: TensorType) -> bool {
    matches!(dtype, TensorType::F32 | TensorType::F16 | TensorType::Bf16)
}

/// Weight rows of one type.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weights<'a> {
    pub(crate) dtype: TensorType,
    /// Whole rows.
    pub(crate) bytes: &'a [u8],
    /// Elements of a row: whole blocks of `dtype`, and of activations if those are quantised.
    pub(crate) columns: usize,
}

/// Products of weight rows with activations: `out` is `[x rows, weight rows]`. NaN all over if `x` is in a form that the type
/// or `set` does not take.
///
/// # Panics
/// If the sizes do not fit one another.
pub(crate) fn products(set: InstructionSet, weights: Weights<'_>, x: Activations<'_>, out: &mut [f32]) {
    let Weights { dtype, bytes, columns } = weights;
    let stride = dtype.bytes(columns);
    if out.is_empty() || stride == 0 {
        return out.fill(0.0);
    }
    assert!(bytes.len().is_multiple_of(stride), "weights are whole rows");
    let rows = bytes.len() / stride;
    match x {
        Activations::Floats(x) => {
            assert!(x.len().is_multiple_of(columns) && out.len() == x.len() / columns * rows, "sizes fit");
            match dtype {
                TensorType::F32 => floats::<tiles::F32>(set, weights, x, out),
                TensorType::F16 => floats::<tiles::F16>(set, weights, x, out),
                TensorType::Bf16 => floats::<tiles::Bf16>(set, weights, x, out),
                _ => read_first(set, weights, x, out),
            }
        }
        Activations::Quantised(x) => {
            assert!(x.blocks * BLOCK == columns && out.len() == x.rows * rows, "sizes fit");
            match dtype {
                TensorType::F32 | TensorType::F16 | TensorType::Bf16 => out.fill(f32::NAN),
                TensorType::Q40 => quantised::<formats::Q40>(set, bytes, stride, x, out),
                TensorType::Q41 => quantised::<formats::Q41>(set, bytes, stride, x, out),
                TensorType::Q50 => quantised::<formats::Q50>(set, bytes, stride, x, out),
                TensorType::Q51 => quantised::<formats::Q51>(set, bytes, stride, x, out),
                TensorType::Q80 => quantised::<formats::Q80>(set, bytes, stride, x, out),
                TensorType::Q2K => quantised::<formats::Q2K>(set, bytes, stride, x, out),
                TensorType::Q3K => quantised::<formats::Q3K>(set, bytes, stride, x, out),
                TensorType::Q4K => quantised::<formats::Q4K>(set, bytes, stride, x, out),
                TensorType::Q5K => quantised::<formats::Q5K>(set, bytes, stride, x, out),
                TensorType::Q6K => quantised::<formats::Q6K>(set, bytes, stride, x, out),
                TensorType::Iq4Nl => quantised::<formats::Iq4Nl>(set, bytes, stride, x, out),
                TensorType::Iq4Xs => quantised::<formats::Iq4Xs>(set, bytes, stride, x, out),
                TensorType::Mxfp4 => quantised::<formats::Mxfp4>(set, bytes, stride, x, out),
            }
        }
    }
}

fn quantised<F: formats::Format>(set: InstructionSet, weights: &[u8], stride: usize, x: &Q16Rows, out: &mut [f32]) {
    let job = tiles::Quantised::<F> { weights, stride, x, out: &mut *out, format: PhantomData };
    if set.run_lanes(job).is_none() {
        out.fill(f32::NAN);
    }
}

/// Products with quantised rows that are read to f32 before, some at a time: once for all activations.
fn read_first(set: InstructionSet, weights: Weights<'_>, x: &[f32], out: &mut [f32]) {
    let Weights { dtype, bytes, columns } = weights;
    let stride = dtype.bytes(columns);
    let (rows, m) = (bytes.len() / stride, x.len() / columns);
    let (mut read, mut as_bytes) = (vec![0.0; LANES * columns], Vec::with_capacity(4 * LANES * columns));
    let mut products = vec![0.0; m * LANES];
    for (at, some) in bytes.chunks(LANES * stride).enumerate() {
        let count = some.len() / stride;
        scalar::read_row(dtype, some, &mut read[..count * columns]);
        as_bytes.clear();
        as_bytes.extend(read[..count * columns].iter().flat_map(|x| x.to_le_bytes()));
        let products = &mut products[..m * count];
        floats::<tiles::F32>(set, Weights { dtype: TensorType::F32, bytes: &as_bytes, columns }, x, products);
        for (out, products) in out.chunks_exact_mut(rows).zip(products.chunks_exact(count)) {
            out[at * LANES..][..count].copy_from_slice(products);
        }
    }
}

fn floats<E: tiles::Float>(set: InstructionSet, weights: Weights<'_>, x: &[f32], out: &mut [f32]) {
    let Weights { dtype, bytes: weights, columns } = weights;
    set.run(tiles::Floats::<E> { weights, stride: dtype.bytes(columns), x, columns, out, element: PhantomData });
}

/// The kernels in use, for logs.
pub fn description() -> &'static str {
    static NAME: LazyLock<String> = LazyLock::new(|| InstructionSet::in_use().to_string());
    &NAME
}

#[cfg(test)]
pub(super) mod tests;
