//! The operations in candle tensors.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use aihost_plugin_api::{Error, ErrorKind, Result};
use candle_core::quantized::{GgmlDType, QMatMul, QStorage, QTensor};
use candle_core::{D, DType, Device, Module, Tensor};
use candle_nn::{ops, rotary_emb};

use super::Failure;
use super::recurrence::States;
use crate::cpu::Linear;
use crate::files::{TensorType, Tensors};
use crate::ops::{
    Activation, Attention, BLOCK_TOKENS, CacheShape, Convolution, DeltaRule, Ops, RotaryOrder, SelfAttention, Span,
    StateShape,
};

/// Rows from which on candle widens quantised weights for a product, instead of multiplying with them as they are.
const WIDENED_FROM: usize = 9;

/// What gpt-oss keeps activations below.
const CLAMP: f32 = 7.0;

/// A device of candle's, and the type of activations there.
#[derive(Clone, Debug)]
pub struct CandleOps {
    device: Device,
    dtype: DType,
    /// Whether quantised weights stay as they are. The products of candle's CPU device round activations to 8 bits for them: there
    /// they are widened.
    keeps_blocks: bool,
}

/// A matrix on the device.
#[derive(Clone, Debug)]
pub enum Matrix {
    /// `[rows, columns]` in the type of activations.
    Dense(Tensor),
    /// As in its file.
    Quantised(QMatMul),
}

/// Keys and values of each layer, `[blocks * BLOCK_TOKENS, kv_heads * width]` in the type of activations.
#[derive(Debug)]
pub struct KvCache {
    shape: CacheShape,
    layers: Vec<[Tensor; 2]>,
}

impl CandleOps {
    /// On this device, with activations of this type.
    pub fn new(device: Device, dtype: DType) -> Self {
        let keeps_blocks = !device.is_cpu();
        Self { device, dtype, keeps_blocks }
    }

    /// As on a GPU that is not opened, with activations of this type: for what depends on sizes alone.
    pub fn planned(dtype: DType) -> Self {
        Self { device: Device::Cpu, dtype, keeps_blocks: true }
    }

    /// What candle calls a type that stays as it is.
    fn kept(&self, stored: TensorType) -> Option<GgmlDType> {
        block_type(stored).filter(|_| self.keeps_blocks)
    }

    fn size(&self) -> u64 {
        self.dtype.size_in_bytes() as u64
    }

    fn upload(&self, values: Vec<f32>, shape: &[usize]) -> Result<Tensor, Failure> {
        Ok(Tensor::from_vec(values, shape, &self.device)?.to_dtype(self.dtype)?)
    }

    /// Attention of the queries of one of a pass's sequences, `[rows, heads * width]`, over its part of the cache.
    fn attend(
        &self,
        q: &Tensor,
        pass: &Attention<'_, Tensor, Tensor>,
        cache: &KvCache,
        span: &Span<'_>,
    ) -> Result<Tensor, Failure> {
        let ([keys, values], CacheShape { kv_heads, width, .. }) = (&cache.layers[pass.layer], cache.shape);
        let (rows, hidden) = q.dims2()?;
        // What a query at this position does not see any more.
        let passed = |position: usize| pass.window.map_or(0, |window| (position + 1).saturating_sub(window));
        let (first, end) = (passed(span.start), span.start + span.rows);
        let (len, group) = (end - first, hidden / (kv_heads * width));
        let places = (first..end)
            .map(|token| span.blocks[token / BLOCK_TOKENS] * BLOCK_TOKENS as u32 + (token % BLOCK_TOKENS) as u32);
        let places = Tensor::from_iter(places, &self.device)?;
        let seen = |of: &Tensor| -> Result<Tensor, Failure> {
            Ok(of.index_select(&places, 0)?.reshape((len, kv_heads, width))?.transpose(0, 1)?.contiguous()?)
        };
        let (keys, values) = (seen(keys)?, seen(values)?);
        // The query heads of a key head are more rows of it.
        let q = q.reshape((rows, kv_heads, group, width))?.transpose(0, 1)?.reshape((kv_heads, rows * group, width))?;
        let mut scores = (super::matmul(&q.contiguous()?, &keys.t()?)?.to_dtype(DType::F32)? * f64::from(pass.scale))?;
        if let Some(cap) = pass.cap {
            scores = ((scores / f64::from(cap))?.tanh()? * f64::from(cap))?;
        }
        if rows > 1 {
            let visible = |row: usize, token: usize| {
                let position = span.start + row;
                if (passed(position)..=position).contains(&token) { 0f32 } else { f32::NEG_INFINITY }
            };
            let mask = (0..rows)
                .flat_map(|row| (0..group).flat_map(move |_| (first..end).map(move |token| visible(row, token))));
            let mask = Tensor::from_iter(mask, &self.device)?.reshape((1, rows * group, len))?;
            scores = scores.broadcast_add(&mask)?;
        }
        if let Some(sinks) = pass.sinks {
            let sinks = sinks.to_dtype(DType::F32)?.reshape((kv_heads, 1, group, 1))?;
            let sinks = sinks.broadcast_as((kv_heads, rows, group, 1))?.reshape((kv_heads, rows * group, 1))?;
            scores = Tensor::cat(&[&scores, &sinks], D::Minus1)?;
        }
        let weights = ops::softmax_last_dim(&scores)?.narrow(D::Minus1, 0, len)?.contiguous()?;
        let weights = weights.to_dtype(values.dtype())?;
        let attended = super::matmul(&weights, &values)?.reshape((kv_heads, rows, group, width))?;
        Ok(attended.transpose(0, 1)?.reshape((rows, hidden))?)
    }
}

impl Ops for CandleOps {
    type Tensor = Tensor;
    type Matrix = Matrix;
    type Table = Linear;
    type Vector = Tensor;
    type Angles = [Tensor; 2];
    type Cache = KvCache;
    type States = States;

    fn table(&self, file: &Tensors, name: &str, rows: usize, columns: usize) -> Result<Linear> {
        // Few rows are read at a time: it stays in its file.
        Linear::open(file, name, rows, columns)
    }

    fn matrix_rows(&self, file: &Tensors, name: &str, shape: &[usize], part: Range<usize>) -> Result<Matrix> {
        let linear = Linear::open_rows(file, name, shape, part)?;
        let (rows, columns) = (linear.rows(), linear.columns());
        let placed = || -> Result<Matrix, Failure> {
            let bytes = linear.bytes();
            if let Some(plain) = float_type(linear.dtype()) {
                // As it is stored: half of what f32 would take on the way.
                let stored = Tensor::from_raw_buffer(bytes, plain, &[rows, columns], &self.device)?;
                return Ok(Matrix::Dense(stored.to_dtype(self.dtype)?));
            }
            if let Some(blocks) = self.kept(linear.dtype()) {
                let storage = QStorage::from_data(Cow::Borrowed(bytes), &self.device, blocks)?;
                return Ok(Matrix::Quantised(QMatMul::from_arc(Arc::new(QTensor::new(storage, (rows, columns))?))?));
            }
            let mut values = vec![0.0; rows * columns];
            values.chunks_exact_mut(columns).enumerate().for_each(|(row, out)| linear.row(row, out));
            Ok(Matrix::Dense(self.upload(values, &[rows, columns])?))
        };
        super::retry_out_of_memory(&self.device, || placed().map_err(Error::from))
    }

    fn vector(&self, values: Vec<f32>) -> Result<Tensor> {
        let len = values.len();
        Ok(self.upload(values, &[len])?)
    }

    fn cache(&self, shape: CacheShape, blocks: usize) -> Result<KvCache> {
        let sizes = (blocks * BLOCK_TOKENS, shape.kv_heads * shape.width);
        let empty = || -> Result<Tensor, Failure> { Ok(Tensor::zeros(sizes, self.dtype, &self.device)?) };
        let layers = (0..shape.layers).map(|_| Ok([empty()?, empty()?])).collect::<Result<_, Failure>>()?;
        Ok(KvCache { shape, layers })
    }

    fn states(&self, shape: StateShape, places: usize) -> Result<States> {
        Ok(States::new(shape, places, &self.device)?)
    }

    fn copy_state(&self, states: &mut States, from: usize, to: usize) -> Result<()> {
        Ok(states.copy(from, to)?)
    }

    fn angles(&self, table: &[[f32; 2]], pairs: usize) -> Result<[Tensor; 2]> {
        let part = |which: usize| {
            let values: Vec<f32> = table.iter().map(|pair| pair[which]).collect();
            self.upload(values, &[table.len() / pairs.max(1), pairs])
        };
        Ok([part(0)?, part(1)?])
    }

    fn embedding(&self, table: &Linear, tokens: &[u32]) -> Result<Tensor> {
        let width = table.columns();
        let mut values = vec![0.0; tokens.len() * width];
        values.chunks_exact_mut(width.max(1)).zip(tokens).for_each(|(row, token)| table.row(*token as usize, row));
        Ok(self.upload(values, &[tokens.len(), width])?)
    }

    fn rms_norm(&self, x: &Tensor, scale: &Tensor, epsilon: f32) -> Result<Tensor> {
        let normed = || -> Result<Tensor, Failure> {
            let heads = x.reshape(((), scale.dim(0)?))?;
            Ok(ops::rms_norm(&heads, scale, epsilon)?.reshape(x.shape())?)
        };
        Ok(normed()?)
    }

    fn layer_norm(&self, x: &Tensor, scale: &Tensor, shift: Option<&Tensor>, epsilon: f32) -> Result<Tensor> {
        let normed = || -> Result<Tensor, Failure> {
            let shift = shift.map_or_else(|| scale.zeros_like(), |shift| Ok(shift.clone()))?;
            Ok(ops::layer_norm(x, scale, &shift, epsilon)?)
        };
        Ok(normed()?)
    }

    fn linear<const N: usize>(&self, x: &Tensor, matrices: [&Matrix; N]) -> Result<[Tensor; N]> {
        let wide = x.to_dtype(DType::F32).map_err(Failure::from)?;
        let product = |matrix: &Matrix| -> Result<Tensor, Failure> {
            match matrix {
                Matrix::Dense(weights) => super::matmul(x, &weights.t()?),
                Matrix::Quantised(weights) => Ok(weights.forward(&wide)?.to_dtype(self.dtype)?),
            }
        };
        let products = matrices.into_iter().map(product).collect::<Result<Vec<_>, _>>()?;
        products.try_into().map_err(|_| Error::internal("another number of products than of matrices"))
    }

    fn linear_grouped(&self, x: &Tensor, groups: &[(usize, &Matrix)]) -> Result<Tensor> {
        let (mut first, mut products) = (0, Vec::with_capacity(groups.len()));
        for (rows, matrix) in groups {
            let group = x.narrow(0, first, *rows).map_err(Failure::from)?;
            let [product] = self.linear(&group, [matrix])?;
            products.push(product);
            first += rows;
        }
        Ok(Tensor::cat(&products, 0).map_err(Failure::from)?)
    }

    fn rotate(&self, x: &mut Tensor, width: usize, [cos, sin]: &[Tensor; 2], order: RotaryOrder) -> Result<()> {
        let rotated = || -> Result<Tensor, Failure> {
            let ((rows, hidden), pairs) = (x.dims2()?, cos.dim(1)?);
            if pairs == 0 {
                return Ok(x.clone());
            }
            // (1, heads, rows, width), of which the first elements of a head are rotated.
            let heads = x.reshape((1, rows, hidden / width, width))?.transpose(1, 2)?;
            let turned = heads.narrow(D::Minus1, 0, 2 * pairs)?.contiguous()?;
            let turned = match order {
                RotaryOrder::Interleaved => rotary_emb::rope_i(&turned, cos, sin)?,
                RotaryOrder::Halves => rotary_emb::rope(&turned, cos, sin)?,
            };
            let rest = width - 2 * pairs;
            let all = if rest == 0 {
                turned
            } else {
                Tensor::cat(&[&turned, &heads.narrow(D::Minus1, 2 * pairs, rest)?], D::Minus1)?
            };
            Ok(all.transpose(1, 2)?.reshape((rows, hidden))?)
        };
        *x = rotated()?;
        Ok(())
    }

    fn attention(&self, pass: Attention<'_, Tensor, Tensor>, cache: &mut KvCache) -> Result<Tensor> {
        let attended = || -> Result<Tensor, Failure> {
            let layer = &cache.layers[pass.layer];
            let mut first = 0;
            for span in pass.spans {
                for (row, rows, place) in runs(span) {
                    for (kept, new) in layer.iter().zip(pass.added.into_iter().flatten()) {
                        kept.slice_set(&new.narrow(0, first + row, rows)?.contiguous()?, 0, place)?;
                    }
                }
                first += span.rows;
            }
            let (mut first, mut all) = (0, Vec::with_capacity(pass.spans.len()));
            for span in pass.spans {
                let q = pass.queries.narrow(0, first, span.rows)?;
                all.push(self.attend(&q, &pass, cache, span)?);
                first += span.rows;
            }
            Ok(Tensor::cat(&all, 0)?)
        };
        Ok(attended()?)
    }

    fn self_attention(&self, pass: SelfAttention<'_, Tensor>) -> Result<Tensor> {
        let attended = || -> Result<Tensor, Failure> {
            let (mut first, mut all) = (0, Vec::with_capacity(pass.lengths.len()));
            for rows in pass.lengths {
                let part = |of: &Tensor, count: usize| -> Result<Tensor, Failure> {
                    let width = of.dim(1)? / count;
                    let heads = of.narrow(0, first, *rows)?.reshape((*rows, count, 1, width))?;
                    let each = heads.broadcast_as((*rows, count, pass.heads / count, width))?.contiguous()?;
                    Ok(each.reshape((*rows, pass.heads, width))?.transpose(0, 1)?.contiguous()?)
                };
                let q = part(pass.queries, pass.heads)?;
                let (k, v) = (part(pass.keys, pass.kv_heads)?, part(pass.values, pass.kv_heads)?);
                let mut scores = (super::matmul(&q, &k.t()?)?.to_dtype(DType::F32)? * f64::from(pass.scale))?;
                if let Some(reach) = pass.reach {
                    let is_seen = |i: usize, j: usize| if i.abs_diff(j) <= reach { 0f32 } else { f32::NEG_INFINITY };
                    let mask = (0..*rows).flat_map(|i| (0..*rows).map(move |j| is_seen(i, j)));
                    let mask = Tensor::from_iter(mask, &self.device)?.reshape((1, *rows, *rows))?;
                    scores = scores.broadcast_add(&mask)?;
                }
                let weights = ops::softmax_last_dim(&scores)?.to_dtype(v.dtype())?;
                let attended = super::matmul(&weights, &v)?.transpose(0, 1)?;
                all.push(attended.reshape((*rows, pass.queries.dim(1)?))?);
                first += rows;
            }
            Ok(Tensor::cat(&all, 0)?)
        };
        Ok(attended()?)
    }

    fn convolve(&self, pass: Convolution<'_, Tensor, Tensor>, states: &mut States) -> Result<Tensor> {
        Ok(states.convolve(&pass)?)
    }

    fn delta_rule(&self, pass: DeltaRule<'_, Tensor>, states: &mut States) -> Result<Tensor> {
        Ok(states.delta_rule(&pass)?)
    }

    fn columns(&self, x: &Tensor, columns: Range<usize>) -> Result<Tensor> {
        let part = || -> Result<Tensor, Failure> { Ok(x.narrow(1, columns.start, columns.len())?.contiguous()?) };
        Ok(part()?)
    }

    fn halves(&self, x: &Tensor, width: usize) -> Result<[Tensor; 2]> {
        let half = |which: usize| -> Result<Tensor, Failure> {
            let (rows, all) = x.dims2()?;
            let pieces = x.reshape((rows, all / (2 * width), 2, width))?.narrow(2, which, 1)?;
            Ok(pieces.contiguous()?.reshape((rows, all / 2))?)
        };
        Ok([half(0)?, half(1)?])
    }

    fn activate(&self, x: Tensor, activation: Activation) -> Result<Tensor> {
        Ok(activated(&x, activation)?)
    }

    fn gated(&self, gate: Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
        let gated = || -> Result<Tensor, Failure> {
            let gate = activated(&gate, activation)?;
            if activation == Activation::ClampedSwish {
                return Ok((gate * (up.clamp(-CLAMP, CLAMP)? + 1.0)?)?);
            }
            Ok((gate * up)?)
        };
        Ok(gated()?)
    }

    fn add(&self, x: &mut Tensor, delta: &Tensor) -> Result<()> {
        *x = (&*x + delta).map_err(Failure::from)?;
        Ok(())
    }

    fn add_grouped(&self, x: &mut Tensor, groups: &[(usize, &Tensor)]) -> Result<()> {
        let added = || -> Result<Tensor, Failure> {
            let (mut first, mut all) = (0, Vec::with_capacity(groups.len()));
            for (rows, vector) in groups {
                all.push(x.narrow(0, first, *rows)?.broadcast_add(vector)?);
                first += rows;
            }
            Ok(Tensor::cat(&all, 0)?)
        };
        *x = added()?;
        Ok(())
    }

    fn add_vector(&self, x: &mut Tensor, vector: &Tensor) -> Result<()> {
        *x = x.broadcast_add(vector).map_err(Failure::from)?;
        Ok(())
    }

    fn scale(&self, x: &mut Tensor, factor: f32) -> Result<()> {
        if factor != 1.0 {
            *x = (&*x * f64::from(factor)).map_err(Failure::from)?;
        }
        Ok(())
    }

    fn weighted_sums(&self, x: &Tensor, places: &[(usize, f32)], rows: usize) -> Result<Tensor> {
        let sums = || -> Result<Tensor, Failure> {
            let weights = Tensor::from_iter(places.iter().map(|(_, weight)| *weight), &self.device)?;
            let weighted = x.broadcast_mul(&weights.to_dtype(self.dtype)?.unsqueeze(1)?)?;
            let rows_of = places.iter().map(|(row, _)| u32::try_from(*row).unwrap_or(u32::MAX));
            let rows_of = Tensor::from_iter(rows_of, &self.device)?;
            let empty = Tensor::zeros((rows, x.dim(1)?), self.dtype, &self.device)?;
            Ok(empty.index_add(&rows_of, &weighted, 0)?)
        };
        Ok(sums()?)
    }

    fn select(&self, x: &Tensor, rows: &[usize]) -> Result<Tensor> {
        let selected = || -> Result<Tensor, Failure> {
            let rows = Tensor::from_iter(rows.iter().map(|row| u32::try_from(*row).unwrap_or(u32::MAX)), &self.device)?;
            Ok(x.index_select(&rows, 0)?)
        };
        Ok(selected()?)
    }

    fn to_host(&self, x: &Tensor) -> Result<Vec<f32>> {
        let values = || -> Result<Vec<f32>, Failure> { Ok(x.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?) };
        Ok(values()?)
    }

    fn is_in_place(&self) -> bool {
        false
    }

    fn weight_bytes(&self, file: &Tensors, tables: &[&str]) -> u64 {
        let on_device = file.iter().filter(|(name, _)| !tables.contains(name));
        let bytes = on_device.map(|(_, info)| {
            let elements: usize = info.dimensions.iter().product();
            let is_kept = info.dimensions.len() > 1 && self.kept(info.dtype).is_some();
            if is_kept { info.range.len() as u64 } else { elements as u64 * self.size() }
        });
        bytes.sum()
    }

    fn tensor_bytes(&self, rows: usize, width: usize) -> u64 {
        self.size() * rows as u64 * width as u64
    }

    fn linear_bytes(&self, rows: usize, columns: usize, outputs: usize) -> u64 {
        // In f32, and of many rows the weights widened; its results are there in both types for a moment.
        let widened = if rows >= WIDENED_FROM { 4 * columns * outputs } else { 0 };
        4 * (rows * columns + rows * outputs) as u64 + widened as u64
    }

    fn attention_bytes(&self, rows: usize, heads: usize, width: usize, context: usize) -> u64 {
        // Gathered keys and values, twice while they are brought into order; scores, their mask and their weights.
        let gathered = 4 * self.size() * (context * heads * width) as u64;
        gathered + (4 * 4 * rows * heads * context) as u64
    }

    fn self_attention_bytes(&self, rows: usize, heads: usize, width: usize, longest: usize) -> u64 {
        // Queries, keys and values in another order, scores, their mask and their weights of a sequence; results of all.
        let sequence = 4 * longest * heads * width;
        self.size() * (sequence + rows * heads * width) as u64 + (4 * 4 * heads * longest * longest) as u64
    }

    fn recurrence_bytes(&self, rows: usize, shape: StateShape) -> u64 {
        // Queries, keys and values in f32 and for each head, results; a sequence's matrices as they change.
        let row = shape.channels + shape.heads * (2 * shape.key_width + 2 * shape.value_width);
        let [convolution, matrices] = shape.sizes();
        4 * (2 * rows * row + convolution + 3 * matrices) as u64
    }

    fn block_bytes(&self, shape: CacheShape) -> u64 {
        2 * self.size() * (shape.layers * shape.kv_heads * shape.width * BLOCK_TOKENS) as u64
    }

    fn state_bytes(&self, shape: StateShape) -> u64 {
        4 * (shape.layers * shape.sizes().iter().sum::<usize>()) as u64
    }
}

/// `activation(x)`.
///
/// # Errors
/// Those of the device.
pub fn activated(x: &Tensor, activation: Activation) -> Result<Tensor, Failure> {
    Ok(match activation {
        Activation::Relu => x.relu()?,
        Activation::GeluTanh => x.gelu()?,
        Activation::QuickGelu => (ops::sigmoid(&(x * 1.702)?)? * x)?,
        Activation::Silu => x.silu()?,
        Activation::Gelu => x.gelu_erf()?,
        Activation::Tanh => x.tanh()?,
        Activation::Sigmoid => ops::sigmoid(x)?,
        Activation::Identity => x.clone(),
        Activation::ClampedSwish => {
            let x = x.minimum(CLAMP)?;
            (ops::sigmoid(&(&x * 1.702)?)? * x)?
        }
    })
}

/// The rows of a span that lie in one block each: the first of them, how many, and their place in the cache.
fn runs(span: &Span<'_>) -> Vec<(usize, usize, usize)> {
    let (mut runs, mut row) = (Vec::new(), 0);
    while row < span.rows {
        let position = span.start + row;
        let (block, slot) = (span.blocks[position / BLOCK_TOKENS] as usize, position % BLOCK_TOKENS);
        let rows = (BLOCK_TOKENS - slot).min(span.rows - row);
        runs.push((row, rows, block * BLOCK_TOKENS + slot));
        row += rows;
    }
    runs
}

/// What candle calls a type of plain floats.
fn float_type(stored: TensorType) -> Option<DType> {
    match stored {
        TensorType::F32 => Some(DType::F32),
        TensorType::F16 => Some(DType::F16),
        TensorType::Bf16 => Some(DType::BF16),
        _ => None,
    }
}

/// What candle calls a type of blocks that it multiplies with.
pub fn block_type(stored: TensorType) -> Option<GgmlDType> {
    Some(match stored {
        TensorType::Q40 => GgmlDType::Q4_0,
        TensorType::Q41 => GgmlDType::Q4_1,
        TensorType::Q50 => GgmlDType::Q5_0,
        TensorType::Q51 => GgmlDType::Q5_1,
        TensorType::Q80 => GgmlDType::Q8_0,
        TensorType::Q2K => GgmlDType::Q2K,
        TensorType::Q3K => GgmlDType::Q3K,
        TensorType::Q4K => GgmlDType::Q4K,
        TensorType::Q5K => GgmlDType::Q5K,
        TensorType::Q6K => GgmlDType::Q6K,
        _ => return None,
    })
}

/// The type of activations on a device whose host gave it this name: what its products take, and what the cache keeps without an
/// overflow.
///
/// # Errors
/// [`ErrorKind::Unsupported`] if there is none.
pub fn dtype_on(device: &Device) -> Result<DType> {
    match device {
        Device::Cuda(_) => Ok(DType::BF16),
        Device::Cpu => Ok(DType::F32),
        Device::Metal(_) => Err(Error::new(ErrorKind::Unsupported, "Metal devices are not served")),
    }
}
