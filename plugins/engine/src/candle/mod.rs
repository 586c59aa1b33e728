//! Operations in candle tensors, for a GPU. The same code runs on candle's CPU device, which is how it is tested.

mod failure;
mod open;
mod ops;
mod recurrence;

use aihost_plugin_api::{Error, ErrorKind};
use candle_core::{DType, Device, DeviceLocation, Tensor};

pub use failure::{Failure, Result};
pub use open::open;
pub use ops::{CandleOps, KvCache, Matrix, activated, block_type, dtype_on};

/// The device that the host calls `cuda:N`, or `cuda`, which is the first. It is not opened.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for another name, and if this build has no CUDA.
pub fn locate(name: &str) -> Result<DeviceLocation, Error> {
    let unsupported = |text: String| Error::new(ErrorKind::Unsupported, text);
    let index = name.strip_prefix("cuda").map(|rest| rest.strip_prefix(':').unwrap_or("0"));
    let gpu_id: usize = index
        .and_then(|index| index.parse().ok())
        .ok_or_else(|| unsupported(format!("`{name}` is no device of this plugin; `cpu` and `cuda:N` are")))?;
    if !cfg!(feature = "cuda") {
        let text = format!(
            "this plugin was built without CUDA, so it cannot run on {name}; build it with `cargo xtask build-plugins --cuda`, or say `device: cpu`"
        );
        return Err(unsupported(text));
    }
    Ok(DeviceLocation::Cuda { gpu_id })
}

/// Does something that allocates on a device; if it is out of memory, once more when the device is idle: only then does the
/// driver give back what was freed.
///
/// # Errors
/// Those of `make`, and if the device fails.
pub fn retry_out_of_memory<T>(device: &Device, mut make: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
    match make() {
        Err(full) if full.kind() == ErrorKind::OutOfMemory => {
            device.synchronize().map_err(Failure::from)?;
            make()
        }
        made => made,
    }
}

/// A matrix product, or a batch of them, accumulated in f32.
///
/// # Errors
/// If the shapes do not fit, or the device is out of memory.
pub fn matmul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.device().is_cpu() && a.dtype() == DType::BF16 {
        // Candle's CPU device has no product of bf16. Rounded once, as a GPU does.
        return Ok(a.to_dtype(DType::F32)?.matmul(&b.to_dtype(DType::F32)?)?.to_dtype(DType::BF16)?);
    }
    Ok(a.matmul(b)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_out_of_memory_is_tried_once_more() {
        for (failures, kind, tries, made) in [
            (0, ErrorKind::OutOfMemory, 1, true),
            (1, ErrorKind::OutOfMemory, 2, true),
            (2, ErrorKind::OutOfMemory, 2, false),
            (1, ErrorKind::Internal, 1, false),
        ] {
            let mut tried = 0;
            let outcome = retry_out_of_memory(&Device::Cpu, || {
                tried += 1;
                if tried > failures { Ok(()) } else { Err(Error::new(kind, "no")) }
            });
            assert_eq!((tried, outcome.is_ok()), (tries, made), "{failures} failures of {kind:?}");
        }
    }
}
