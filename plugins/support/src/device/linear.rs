//! Linear layers whose weights are kept on the device, or brought there each time they are used.

use std::sync::Arc;

use aihost_plugin_api::ErrorKind;
use candle_core::quantized::QTensor;
use candle_core::{DType, Device, Tensor};

use super::{Place, UploadOptions};
use crate::dense::{Dense, Residency, Uploaded};
use aihost_engine::candle::{Result, matmul};

/// A matrix; its rows may be several matrices of a file, one below the other.
#[derive(Debug)]
pub struct Weight {
    parts: Vec<Part>,
    place: Place,
}

#[derive(Debug)]
enum Part {
    /// In its file; uploaded at each use.
    File(Dense),
    /// On the device, in the place's `kept` type.
    Dense(Tensor),
    /// On the device, quantised as in its file; dequantised when used.
    Quantised(Arc<QTensor>),
}

impl Weight {
    /// The matrix made of `parts`.
    ///
    /// # Errors
    /// If a file cannot be read, or the device is out of memory; those of `on_progress`.
    pub fn new(parts: &[Dense], options: UploadOptions<'_>) -> Result<Self> {
        let place = options.place.clone();
        if options.residency == Residency::Streamed {
            return Ok(Self { parts: parts.iter().cloned().map(Part::File).collect(), place });
        }
        let upload = |part: &Dense| -> Result<Part> {
            let uploaded = match part.upload(&place.device)? {
                Uploaded::Dense(tensor) => Part::Dense(tensor.to_dtype(place.kept)?),
                Uploaded::Quantised(blocks) => Part::Quantised(blocks),
            };
            (options.on_progress)(uploaded.bytes())?;
            Ok(uploaded)
        };
        let mut parts = parts.iter().map(upload).collect::<Result<Vec<_>>>()?;
        let dense: Option<Vec<&Tensor>> = parts.iter().map(Part::dense).collect();
        if let Some(dense) = dense.filter(|dense| dense.len() > 1) {
            // One product instead of several.
            parts = vec![Part::Dense(Tensor::cat(&dense, 0)?)];
        }
        Ok(Self { parts, place })
    }

    /// The matrix (rows, columns) in the place's type.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn matrix(&self) -> Result<Tensor> {
        let Place { device, dtype, .. } = &self.place;
        let parts = self.parts.iter().map(|part| part.dequantised(device, *dtype)).collect::<Result<Vec<_>>>()?;
        Ok(match parts.as_slice() {
            [one] => one.clone(),
            parts => Tensor::cat(parts, 0)?,
        })
    }
}

impl Part {
    /// Bytes that the part takes on the device between its uses.
    fn bytes(&self) -> u64 {
        match self {
            Self::File(_) => 0,
            Self::Dense(tensor) => (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64,
            Self::Quantised(blocks) => blocks.storage_size_in_bytes() as u64,
        }
    }

    fn dense(&self) -> Option<&Tensor> {
        if let Self::Dense(tensor) = self { Some(tensor) } else { None }
    }

    fn dequantised(&self, device: &Device, dtype: DType) -> Result<Tensor> {
        let blocks = |blocks: &QTensor| -> Result<Tensor> { Ok(blocks.dequantize(device)?.to_dtype(dtype)?) };
        match self {
            Self::File(part) => match part.upload(device)? {
                Uploaded::Dense(tensor) => Ok(tensor.to_dtype(dtype)?),
                Uploaded::Quantised(part) => blocks(&part),
            },
            Self::Dense(tensor) => Ok(tensor.to_dtype(dtype)?),
            Self::Quantised(part) => blocks(part),
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
    pub fn new(parts: &[Dense], bias: &[f32], options: UploadOptions<'_>) -> Result<Self> {
        let bias = (!bias.is_empty()).then(|| options.place.tensor(bias, bias.len())).transpose()?;
        Ok(Self { weight: Weight::new(parts, options)?, bias })
    }

    /// `x` (rows, columns) to (rows, width).
    ///
    /// # Errors
    /// If a file cannot be read, or the device is out of memory.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let out = matmul(x, &self.weight.matrix()?.t()?)?;
        Ok(match &self.bias {
            Some(bias) => out.broadcast_add(bias)?,
            None => out,
        })
    }
}

/// A tensor's elements in row-major order, as f32 in host memory.
///
/// # Errors
/// If the device failed before: this is where the host waits for it.
pub fn to_host_f32(tensor: &Tensor) -> Result<Vec<f32>> {
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
