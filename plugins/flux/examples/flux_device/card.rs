//! What only a driver can do. Without it (a build without CUDA, or candle's CPU device) the process stands for the device.

use aihost_support::counting::Counting;
use candle_core::Device;

/// Bytes of a device that is none.
const PAPER: u64 = 64 << 30;

/// Free and total bytes of a device; on candle's CPU device what this process did not allocate of a device on paper.
pub(crate) fn memory(device: &Device) -> (u64, u64) {
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        // What was freed is given back once the device is idle.
        let idle = device.synchronize();
        let read = candle_core::cuda_backend::cudarc::driver::result::mem_get_info();
        return match (idle, read) {
            (Ok(()), Ok((free, total))) => (free as u64, total as u64),
            _ => (0, 0),
        };
    }
    let _ = device;
    (PAPER.saturating_sub(Counting::now()), PAPER)
}

/// What a card says of itself, with the driver's version of CUDA and that of the build.
pub(crate) fn describe(device: &Device) -> serde_json::Value {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(cuda) = device {
        let stream = cuda.cuda_stream();
        let context = stream.context();
        return serde_json::json!({
            "name": context.name().unwrap_or_default(),
            "compute_capability": context.compute_capability().map(|(major, minor)| format!("{major}.{minor}")).ok(),
            "built_with": option_env!("AIHOST_CUDA_TOOLKIT"), "built_for": option_env!("CUDA_COMPUTE_CAP"),
        });
    }
    let _ = device;
    serde_json::json!("candle's CPU device")
}

/// Memory of the host that the card reads by itself.
pub(crate) enum Staging {
    #[cfg(feature = "cuda")]
    Pinned(candle_core::cuda_backend::cudarc::driver::PinnedHostSlice<u8>),
    Pageable(Vec<u8>),
}

impl Staging {
    /// Page-locked memory of a card, readable by the CPU at full speed; plain memory without a card.
    pub(crate) fn pinned(device: &Device, bytes: usize) -> Self {
        #[cfg(feature = "cuda")]
        if let Device::Cuda(cuda) = device {
            let stream = cuda.cuda_stream();
            // SAFETY: it is filled before anything reads it, by `fill`.
            #[expect(unsafe_code, reason = "page-locked memory comes uninitialised")]
            let slice = unsafe { stream.context().alloc_pinned_with_flags::<u8>(bytes, 0) };
            let mut slice = slice.unwrap();
            slice.as_mut_slice().unwrap().fill(7);
            return Self::Pinned(slice);
        }
        Self::pageable(device, bytes)
    }

    pub(crate) fn pageable(_device: &Device, bytes: usize) -> Self {
        Self::Pageable(vec![7; bytes])
    }

    /// Copies all of it to the device and waits until it is there.
    pub(crate) fn copy(&self, device: &Device) {
        #[cfg(feature = "cuda")]
        if let Device::Cuda(cuda) = device {
            let stream = cuda.cuda_stream();
            let made = match self {
                Self::Pinned(slice) => stream.clone_htod(slice),
                Self::Pageable(bytes) => stream.clone_htod(bytes),
            };
            let _there = made.unwrap();
            return stream.synchronize().unwrap();
        }
        let _ = device;
        #[cfg(feature = "cuda")]
        let Self::Pageable(bytes) = self else { return };
        #[cfg(not(feature = "cuda"))]
        let Self::Pageable(bytes) = self;
        drop(std::hint::black_box(bytes.clone()));
    }
}
