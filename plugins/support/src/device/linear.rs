//! Linear layers whose weights are kept on the device, or brought there each time they are used.

use std::sync::Arc;

use aihost_plugin_api::ErrorKind;
use candle_core::quantized::QTensor;
use candle_core::{DType, Device, Tensor};

use super::{Loading, Place, Result, product};
use crate::dense::{Dense, Uploaded};

/// Whether weights stay on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeping {
    /// From loading on.
    Resident,
    /// One matrix at a time, while it is used.
    Streamed,
}

/// A matrix; its rows may be several matrices of a file, one below the other.
#[derive(Debug)]
pub struct Weight {
    parts: Vec<Part>,
    place: Place,
}

#[derive(Debug)]
enum Part {
    /// In its file.
    File(Dense),
    /// On the device, in the place's `kept` type.
    Numbers(Tensor),
    /// On the device, quantised as in its file; widened when used.
    Blocks(Arc<QTensor>),
}

impl Weight {
    /// The matrix made of `parts`.
    ///
    /// # Errors
    /// If a file cannot be read, or the device has no room; those of `loading`'s listener.
    pub fn new(parts: &[Dense], loading: Loading<'_>) -> Result<Self> {
        let place = loading.place.clone();
        if loading.keeping == Keeping::Streamed {
            return Ok(Self { parts: parts.iter().cloned().map(Part::File).collect(), place });
        }
        let upload = |part: &Dense| -> Result<Part> {
            let uploaded = match part.upload(&place.device)? {
                Uploaded::Numbers(tensor) => Part::Numbers(tensor.to_dtype(place.kept)?),
                Uploaded::Blocks(blocks) => Part::Blocks(blocks),
            };
            (loading.heard)(uploaded.bytes())?;
            Ok(uploaded)
        };
        let mut parts = parts.iter().map(upload).collect::<Result<Vec<_>>>()?;
        let numbers: Option<Vec<&Tensor>> = parts.iter().map(Part::numbers).collect();
        if let Some(numbers) = numbers.filter(|numbers| numbers.len() > 1) {
            // One product instead of several.
            parts = vec![Part::Numbers(Tensor::cat(&numbers, 0)?)];
        }
        Ok(Self { parts, place })
    }

    /// The matrix (rows, columns) in the place's type.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn matrix(&self) -> Result<Tensor> {
        let Place { device, dtype, .. } = &self.place;
        let parts = self.parts.iter().map(|part| part.widened(device, *dtype)).collect::<Result<Vec<_>>>()?;
        Ok(match parts.as_slice() {
            [one] => one.clone(),
            parts => Tensor::cat(parts, 0)?,
        })
    }
}

impl Part {
    /// Bytes on the device.
    fn bytes(&self) -> u64 {
        match self {
            Self::File(_) => 0,
            Self::Numbers(tensor) => (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64,
            Self::Blocks(blocks) => blocks.storage_size_in_bytes() as u64,
        }
    }

    fn numbers(&self) -> Option<&Tensor> {
        if let Self::Numbers(tensor) = self { Some(tensor) } else { None }
    }

    fn widened(&self, device: &Device, dtype: DType) -> Result<Tensor> {
        let blocks = |blocks: &QTensor| -> Result<Tensor> { Ok(blocks.dequantize(device)?.to_dtype(dtype)?) };
        match self {
            Self::File(part) => match part.upload(device)? {
                Uploaded::Numbers(tensor) => Ok(tensor.to_dtype(dtype)?),
                Uploaded::Blocks(part) => blocks(&part),
            },
            Self::Numbers(tensor) => Ok(tensor.to_dtype(dtype)?),
            Self::Blocks(part) => blocks(part),
        }
    }
}

/// A linear layer.
#[derive(Debug)]
pub struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
}

impl Linear {
    /// The layer of `parts`, with no bias if `bias` is empty.
    ///
    /// # Errors
    /// As [`Weight::new`].
    pub fn new(parts: &[Dense], bias: &[f32], loading: Loading<'_>) -> Result<Self> {
        let bias = (!bias.is_empty()).then(|| loading.place.tensor(bias, bias.len())).transpose()?;
        Ok(Self { weight: Weight::new(parts, loading)?, bias })
    }

    /// `x` (rows, columns) to (rows, width).
    ///
    /// # Errors
    /// If a file cannot be read, or the device has no room.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let out = product(x, &self.weight.matrix()?.t()?)?;
        Ok(match &self.bias {
            Some(bias) => out.broadcast_add(bias)?,
            None => out,
        })
    }
}

/// The numbers of a tensor in row-major order, in host memory.
///
/// # Errors
/// If the device failed before: this is where the host waits for it.
pub fn vector(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}

impl Place {
    /// Rows of a table for `tokens`, (tokens, width). The table stays in its file.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] if there are no tokens or one is past the table.
    pub fn embed(&self, table: &Dense, tokens: &[u32]) -> Result<Tensor> {
        if tokens.is_empty() || tokens.iter().any(|token| *token as usize >= table.rows()) {
            let text = format!("the text is empty or has a token past {}", table.rows());
            return Err(aihost_plugin_api::Error::new(ErrorKind::Internal, text).into());
        }
        let width = table.columns();
        let mut rows = vec![0.0; tokens.len() * width];
        for (token, row) in tokens.iter().zip(rows.chunks_exact_mut(width)) {
            table.widen(*token as usize..*token as usize + 1, row)?;
        }
        self.tensor(&rows, (tokens.len(), width))
    }
}
