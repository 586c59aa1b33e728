//! What can go wrong with tensors: candle's errors and ours, told apart from a device that is full.

use aihost_plugin_api::{Error, ErrorKind};

/// The result of tensor code.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// An error of candle, of the driver below it, or of what weights are read from.
#[derive(Debug)]
pub enum Failure {
    /// An error of candle, or of the driver below it.
    Tensor(candle_core::Error),
    /// An error of this plugin, such as a weight file that cannot be read.
    Other(Error),
}

impl From<candle_core::Error> for Failure {
    fn from(error: candle_core::Error) -> Self {
        Self::Tensor(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

/// What the driver (`CUDA_ERROR_OUT_OF_MEMORY`, "out of memory") and cuBLAS (`CUBLAS_STATUS_ALLOC_FAILED`) say of a full device.
const FULL: [&str; 3] = ["out of memory", "out_of_memory", "alloc_failed"];

/// What the driver says after which every call of this process fails.
const LOST: [&str; 16] = [
    "illegal_address",
    "launch_failed",
    "launch_timeout",
    "misaligned_address",
    "illegal_instruction",
    "invalid_address_space",
    "hardware_stack_error",
    "ecc_uncorrectable",
    "nvlink_uncorrectable",
    "contained",
    "invalid_pc",
    "cuda_error_assert",
    "cuda_error_unknown",
    "context_is_destroyed",
    "device_unavailable",
    // Of cuBLAS, which meets a dead context first.
    "execution_failed",
];

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Other(error) => error,
            // The driver's error is wrapped several times, so its text is what there is to look at.
            Failure::Tensor(error) => {
                let text = error.to_string();
                let lower = text.to_lowercase();
                let says = |words: &[&str]| words.iter().any(|word| lower.contains(word));
                if says(&FULL) {
                    let text = format!("the device has no memory left for this; ask for less at once: {text}");
                    Self::new(ErrorKind::OutOfMemory, text)
                } else if says(&LOST) {
                    Self::new(ErrorKind::Device, format!("the device failed, and this worker with it: {text}"))
                } else {
                    Self::internal(text)
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_device_is_told_from_other_errors() {
        let kind = |text: &str| Error::from(Failure::from(candle_core::Error::Msg(text.to_owned()))).kind();
        // As cudarc and candle write them.
        let driver = r#"DriverError(CUDA_ERROR_OUT_OF_MEMORY, "out of memory")"#;
        assert_eq!(kind(driver), ErrorKind::OutOfMemory);
        assert_eq!(kind("CublasError(CUBLAS_STATUS_ALLOC_FAILED)"), ErrorKind::OutOfMemory);
        assert_eq!(kind(r#"DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, "an illegal memory access")"#), ErrorKind::Device);
        assert_eq!(kind("CublasError(CUBLAS_STATUS_EXECUTION_FAILED)"), ErrorKind::Device);
        assert_eq!(kind(r#"DriverError(CUDA_ERROR_INVALID_VALUE, "invalid argument")"#), ErrorKind::Internal);
        let wrapped = candle_core::Error::Cuda(driver.into()).context("block 3").bt();
        assert_eq!(Error::from(Failure::from(wrapped)).kind(), ErrorKind::OutOfMemory);
        let ours = Error::new(ErrorKind::CorruptFile, "cut out of memory");
        assert_eq!(Error::from(Failure::from(ours)).kind(), ErrorKind::CorruptFile);
    }
}
