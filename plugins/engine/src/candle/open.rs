//! Opening a device: what does not fit is one sentence that says what to do, and the code of kernels is there before the first
//! request.

use aihost_plugin_api::{Error, ErrorKind};
use candle_core::{DType, Device, DeviceLocation, Tensor};

use super::{Failure, Result};

/// The CUDA that kernels were compiled with, where `cargo xtask build-plugins --cuda` built them.
const TOOLKIT: Option<&str> = option_env!("AIHOST_CUDA_TOOLKIT");
/// The compute capability that they were compiled for, or the least of several.
const BUILT_FOR: Option<&str> = option_env!("CUDA_COMPUTE_CAP");
/// From this compute capability on, what was compiled for one runs on no other.
const EXACT_FROM: u32 = 90;

/// What the driver says if there is no such card, for this process.
const ABSENT: [&str; 3] = ["no_device", "invalid_device", "device_unavailable"];
/// What it says of code that it is too old for.
const OLD: [&str; 3] = ["insufficient_driver", "driver_mismatch", "unsupported_ptx_version"];
/// What is said where only the stand-in for its library is.
const STUB: [&str; 1] = ["stub_library"];
/// What it says of code for another card.
const FOREIGN: [&str; 3] = ["no_binary_for_gpu", "invalid_ptx", "invalid_image"];

/// Opens a device and brings the code of kernels to it.
///
/// # Errors
/// [`ErrorKind::OutOfMemory`] if it is full, [`ErrorKind::Device`] if it cannot be for another reason.
pub fn open(location: DeviceLocation) -> Result<Device, Error> {
    match location {
        DeviceLocation::Cpu => Ok(Device::Cpu),
        DeviceLocation::Cuda { gpu_id } => {
            let failed = |failure: Failure| refused(gpu_id, failure);
            let device = Device::new_cuda(gpu_id).map_err(|error| failed(error.into()))?;
            if let Some(why) = unfit(BUILT_FOR, capability(&device)) {
                return Err(Error::new(ErrorKind::Device, format!("cuda:{gpu_id} cannot be used: {why}")));
            }
            warm(&device).map_err(failed)?;
            Ok(device)
        }
        other => Err(Error::new(ErrorKind::Unsupported, format!("{other:?} is not served"))),
    }
}

/// A card's compute capability, ten times.
fn capability(device: &Device) -> Option<u32> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(cuda) = device {
        let (major, minor) = cuda.cuda_stream().context().compute_capability().ok()?;
        return u32::try_from(10 * major + minor).ok();
    }
    let _ = device;
    None
}

/// Why kernels that were compiled for one card do not run on another.
fn unfit(built_for: Option<&str>, card: Option<u32>) -> Option<String> {
    let (built_for, card) = (built_for?.parse::<u32>().ok()?, card?);
    let runs = card == built_for || card > built_for && built_for < EXACT_FROM;
    let shown = |cap: u32| format!("{}.{}", cap / 10, cap % 10);
    (!runs).then(|| {
        format!(
            "this plugin's kernels are for compute capability {}, and the card's is {}; build it with `cargo xtask build-plugins --cuda --cap {card}`",
            shown(built_for),
            shown(card)
        )
    })
}

fn refused(gpu_id: usize, failure: Failure) -> Error {
    let error = Error::from(failure);
    if error.kind() == ErrorKind::OutOfMemory {
        return error;
    }
    let text = error.message().to_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    let why = if says(&ABSENT) {
        "the driver has no such card for this process; is it there, and does CUDA_VISIBLE_DEVICES name it?".to_owned()
    } else if says(&STUB) {
        "there is no driver, only a stand-in for its library; install the driver, and take the stand-in off LD_LIBRARY_PATH".to_owned()
    } else if says(&OLD) {
        let toolkit = TOOLKIT.unwrap_or("the CUDA");
        format!(
            "the driver is older than {toolkit}, which this plugin was built with; update the driver, or build the plugin with a toolkit that it serves"
        )
    } else if says(&FOREIGN) {
        let cap = BUILT_FOR.unwrap_or("another compute capability");
        format!(
            "this plugin's kernels are for {cap}, and not for this card; build it with `cargo xtask build-plugins --cuda`"
        )
    } else {
        error.message().to_owned()
    };
    Error::new(ErrorKind::Device, format!("cuda:{gpu_id} cannot be opened: {why}"))
}

/// Uses each family of kernels once: their code comes to a device at their first use, compiled for it by its driver, which
/// would else be in the first request.
fn warm(device: &Device) -> Result<()> {
    let x = Tensor::ones((1, 2, 4, 4), DType::F32, device)?;
    let rows = x.flatten_from(1)?;
    let condition = rows.gt(&rows.zeros_like()?)?;
    let chosen = condition.where_cond(&rows, &rows.zeros_like()?)?;
    let made = chosen.affine(2.0, 1.0)?.gelu()?.to_dtype(DType::BF16)?.to_dtype(DType::F32)?;
    let made = made.matmul(&made.t()?.contiguous()?)?.sum_all()?;
    let picked = rows.index_select(&Tensor::zeros(1, DType::U32, device)?, 0)?;
    let seen = x.conv2d(&x, 1, 1, 1, 1)?.upsample_nearest2d(8, 8)?;
    let normed = candle_nn::ops::softmax_last_dim(&Tensor::cat(&[&picked, &rows], 0)?)?;
    let all = [made, seen.sum_all()?, normed.sum_all()?];
    for result in all {
        // Waits until the device has computed it.
        let result = result.to_vec0::<f32>()?;
        if !result.is_finite() {
            return Err(Error::new(ErrorKind::Device, "its first results are not finite numbers").into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_of_a_driver_says_what_to_do() {
        let said = |text: &str| {
            let error = refused(1, candle_core::Error::Msg(text.to_owned()).into());
            (error.kind(), error.message().to_owned())
        };
        for (driver, wanted) in [
            (
                r#"DriverError(CUDA_ERROR_NO_DEVICE, "no CUDA-capable device is detected")"#,
                "does CUDA_VISIBLE_DEVICES name it",
            ),
            (
                r#"DriverError(CUDA_ERROR_INVALID_DEVICE, "invalid device ordinal")"#,
                "does CUDA_VISIBLE_DEVICES name it",
            ),
            (r#"DriverError(CUDA_ERROR_UNSUPPORTED_PTX_VERSION, "the provided PTX was ...")"#, "update the driver"),
            (r#"DriverError(CUDA_ERROR_STUB_LIBRARY, "CUDA driver is a stub library")"#, "there is no driver"),
            (r#"DriverError(CUDA_ERROR_SYSTEM_DRIVER_MISMATCH, "...")"#, "update the driver"),
            (r#"DriverError(CUDA_ERROR_NO_BINARY_FOR_GPU, "no kernel image")"#, "build it with `cargo xtask"),
            (r#"DriverError(CUDA_ERROR_ECC_UNCORRECTABLE, "...")"#, "ecc_uncorrectable"),
        ] {
            let (kind, text) = said(driver);
            assert_eq!(kind, ErrorKind::Device);
            assert!(
                text.to_lowercase().contains(&wanted.to_lowercase()) && text.starts_with("cuda:1 cannot"),
                "{text}"
            );
        }
        let (kind, _) = said(r#"DriverError(CUDA_ERROR_OUT_OF_MEMORY, "out of memory")"#);
        assert_eq!(kind, ErrorKind::OutOfMemory);
    }

    #[test]
    fn kernels_fit_their_card_and_later_ones_only_before_9_0() {
        for (built_for, card, fits) in
            [(80, 80, true), (80, 90, true), (90, 90, true), (90, 80, false), (90, 100, false), (89, 80, false)]
        {
            let why = unfit(Some(&built_for.to_string()), Some(card));
            assert_eq!(why.is_none(), fits, "{built_for} on {card}: {why:?}");
            assert!(why.is_none_or(|why| why.contains(&format!("--cap {card}"))));
        }
        assert_eq!((unfit(None, Some(80)), unfit(Some("90"), None)), (None, None));
    }

    #[test]
    fn every_family_of_kernels_has_a_use() {
        warm(&Device::Cpu).unwrap();
    }
}
