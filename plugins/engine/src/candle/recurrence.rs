//! What layers without keys and values remember of sequences, in candle tensors.

use candle_core::{D, DType, Device, Tensor};

use super::Failure;
use crate::ops::{Convolution, DeltaRule, StateShape};

/// Added to the squared length of keys and queries.
const LENGTH_EPSILON: f64 = 1e-6;

/// Of each layer: `[places, taps, channels]`, and `[places, heads, key_width, value_width]`, both f32.
#[derive(Debug)]
pub struct States {
    shape: StateShape,
    convolutions: Vec<Tensor>,
    matrices: Vec<Tensor>,
}

/// A part of a layer's memory: the place's, or nothing for a sequence that starts.
fn remembered(memory: &Tensor, place: u32, start: usize) -> Result<Tensor, Failure> {
    let remembered = memory.narrow(0, place as usize, 1)?;
    Ok(if start == 0 { remembered.zeros_like()? } else { remembered.copy()? })
}

impl States {
    pub(super) fn new(shape: StateShape, places: usize, device: &Device) -> Result<Self, Failure> {
        let [convolution, matrices] = shape.sizes();
        let layers = |size: usize| if size == 0 { 0 } else { shape.layers };
        let empty = |sizes: &[usize]| Ok::<_, Failure>(Tensor::zeros(sizes, DType::F32, device)?);
        let of_convolution = [places, shape.taps, shape.channels];
        let of_matrices = [places, shape.heads, shape.key_width, shape.value_width];
        Ok(Self {
            shape,
            convolutions: (0..layers(convolution)).map(|_| empty(&of_convolution)).collect::<Result<_, _>>()?,
            matrices: (0..layers(matrices)).map(|_| empty(&of_matrices)).collect::<Result<_, _>>()?,
        })
    }

    pub(super) fn copy(&mut self, from: usize, to: usize) -> Result<(), Failure> {
        for memory in self.convolutions.iter().chain(&self.matrices) {
            memory.slice_set(&memory.narrow(0, from, 1)?.copy()?, 0, to)?;
        }
        Ok(())
    }

    pub(super) fn convolve(&mut self, pass: &Convolution<'_, Tensor, Tensor>) -> Result<Tensor, Failure> {
        let StateShape { channels, taps, .. } = self.shape;
        let memory = &self.convolutions[pass.layer];
        let kernel = pass.kernel.to_dtype(DType::F32)?.reshape((taps + 1, channels))?;
        let (mut first, mut all) = (0, Vec::with_capacity(pass.spans.len()));
        for span in pass.spans {
            let past = remembered(memory, span.state, span.start)?.squeeze(0)?;
            let new = pass.x.narrow(0, first, span.rows)?.to_dtype(DType::F32)?;
            let inputs = Tensor::cat(&[&past, &new], 0)?;
            let mut sum = new.zeros_like()?;
            for tap in 0..=taps {
                sum = (sum + inputs.narrow(0, tap, span.rows)?.broadcast_mul(&kernel.narrow(0, tap, 1)?)?)?;
            }
            let kept = inputs.narrow(0, span.rows, taps)?.contiguous()?.unsqueeze(0)?;
            memory.slice_set(&kept, 0, span.state as usize)?;
            all.push(sum);
            first += span.rows;
        }
        Ok(Tensor::cat(&all, 0)?.to_dtype(pass.x.dtype())?)
    }

    pub(super) fn delta_rule(&mut self, pass: &DeltaRule<'_, Tensor>) -> Result<Tensor, Failure> {
        let StateShape { heads, key_width, value_width, .. } = self.shape;
        let (memory, keys) = (&self.matrices[pass.layer], pass.key_heads * key_width);
        let each = heads / pass.key_heads;
        // `[rows, heads, width, 1]`: what of a key is for several heads is there for each.
        let of_keys = |mixed: &Tensor, from: usize| -> Result<Tensor, Failure> {
            let rows = mixed.dim(0)?;
            let vectors = mixed.narrow(1, from, keys)?.reshape((rows, pass.key_heads, key_width))?;
            let length = (vectors.sqr()?.sum_keepdim(D::Minus1)? + LENGTH_EPSILON)?.sqrt()?;
            let vectors = vectors.broadcast_div(&length)?;
            let vectors = match pass.is_grouped {
                true => vectors.unsqueeze(2)?.broadcast_as((rows, pass.key_heads, each, key_width))?.contiguous()?,
                false => vectors.unsqueeze(1)?.broadcast_as((rows, each, pass.key_heads, key_width))?.contiguous()?,
            };
            Ok(vectors.reshape((rows, heads, key_width, 1))?)
        };
        let of_heads = |values: &[f32]| Tensor::from_slice(values, (1, heads), memory.device());
        let alpha = pass.alpha.to_dtype(DType::F32)?.broadcast_add(&of_heads(pass.bias)?)?;
        // ln(1 + exp(x)), without an overflow.
        let softplus = (alpha.relu()? + ((alpha.abs()?.neg()?.exp()? + 1.0)?.log())?)?;
        let decays = softplus.broadcast_mul(&of_heads(pass.rate)?)?.exp()?;
        let betas = pass.beta.to_dtype(DType::F32)?;
        let (mut first, mut all) = (0, Vec::with_capacity(pass.spans.len()));
        for span in pass.spans {
            let mixed = pass.mixed.narrow(0, first, span.rows)?.to_dtype(DType::F32)?;
            let queries = (of_keys(&mixed, 0)? * (1.0 / (key_width as f64).sqrt()))?;
            let found_by = of_keys(&mixed, keys)?;
            let values = mixed.narrow(1, 2 * keys, heads * value_width)?.reshape((span.rows, heads, 1, value_width))?;
            let of_row = |x: &Tensor, row: usize| -> Result<Tensor, Failure> {
                Ok(x.narrow(0, first + row, 1)?.reshape((heads, 1, 1))?)
            };
            let mut matrix = remembered(memory, span.state, span.start)?.squeeze(0)?;
            for row in 0..span.rows {
                let (query, key, value) = (queries.get(row)?, found_by.get(row)?, values.get(row)?);
                matrix = matrix.broadcast_mul(&of_row(&decays, row)?)?;
                let found = super::matmul(&key.transpose(1, 2)?.contiguous()?, &matrix)?;
                let change = (value - found)?.broadcast_mul(&of_row(&betas, row)?)?;
                matrix = (matrix + key.broadcast_mul(&change)?)?;
                all.push(
                    super::matmul(&query.transpose(1, 2)?.contiguous()?, &matrix)?.reshape((1, heads * value_width))?,
                );
            }
            memory.slice_set(&matrix.contiguous()?.unsqueeze(0)?, 0, span.state as usize)?;
            first += span.rows;
        }
        Ok(Tensor::cat(&all, 0)?.to_dtype(pass.mixed.dtype())?)
    }
}
