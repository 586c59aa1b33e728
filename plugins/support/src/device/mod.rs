//! Layers in candle tensors, for a device: weights that are kept there or brought there as they are used, attention, and
//! the T5 text encoder.
//!
//! The same code runs on candle's CPU device, which is how it is tested. Knows no model but T5 and no task.

mod attention;
mod linear;
mod t5;

use aihost_engine::candle::{Result, activated};
use aihost_plugin_api::Error;
use candle_core::{DType, Device, Tensor};

use crate::dense::Residency;
use aihost_engine::cpu::rows::Activation;

pub use attention::{attention, attention_bytes};
pub use linear::{Linear, Weight, to_host_f32};
pub use t5::T5Encoder;

/// The device that tensors are on, and their data types there.
#[derive(Clone, Debug)]
pub struct Place {
    /// A CUDA device, or candle's CPU device.
    pub device: Device,
    /// The type of hidden states, and of weights while they are used.
    pub dtype: DType,
    /// The type of dense weights that stay on the device.
    pub kept: DType,
}

impl Place {
    /// A place with one data type for states and weights.
    pub fn new(device: Device, dtype: DType) -> Self {
        Self { device, dtype, kept: dtype }
    }

    /// The same place with states of another type.
    #[must_use]
    pub fn computing(&self, dtype: DType) -> Self {
        Self { dtype, ..self.clone() }
    }

    /// `values` in row-major order as a tensor of this shape, in the place's type.
    ///
    /// # Errors
    /// If the device is out of memory, or the shape does not fit.
    pub fn tensor(&self, values: &[f32], shape: impl Into<candle_core::Shape>) -> Result<Tensor> {
        Ok(Tensor::from_slice(values, shape, &self.device)?.to_dtype(self.dtype)?)
    }
}

/// How weights are uploaded to a device.
#[derive(Clone, Copy)]
pub struct UploadOptions<'a> {
    /// The device and the types that weights are uploaded to.
    pub place: &'a Place,
    /// Whether matrices stay on the device.
    pub residency: Residency,
    /// Called with the bytes of each matrix that was uploaded; an error ends the upload.
    pub on_progress: &'a (dyn Fn(u64) -> Result<(), Error> + Sync),
}

impl std::fmt::Debug for UploadOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UploadOptions")
            .field("place", self.place)
            .field("residency", &self.residency)
            .finish_non_exhaustive()
    }
}

/// An activation, computed in f32 as PyTorch's kernels do, in the type of `x`, which is freed on the way.
///
/// # Errors
/// If the device is out of memory.
pub fn activate(activation: Activation, x: Tensor) -> Result<Tensor> {
    let dtype = x.dtype();
    let wide = x.to_dtype(DType::F32)?;
    drop(x);
    let made = activated(&wide, activation)?;
    drop(wide);
    Ok(made.to_dtype(dtype)?)
}
