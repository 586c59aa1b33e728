//! Whether parked memory really came back: measured, not believed.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::domain::{ByteSize, DeviceId, Failure, FailureKind};
use crate::scheduler;
use crate::worker::{Instance, Placement};

/// How long released memory may take to come back.
const RELEASE_WAIT: Duration = Duration::from_secs(5);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Bytes that may stay out at least; 5 % of what was reserved if that is more.
const TOLERANCE_BYTES: u64 = 256 << 20;

/// Whether a device's memory is the host's own.
pub(super) fn is_host_memory(device: &DeviceId) -> bool {
    device.0 == HOST_MEMORY
}

/// The device that stands for the host's own memory.
pub(super) const HOST_MEMORY: &str = "cpu";

/// What a device looked like before an instance parked.
#[derive(Debug)]
pub(super) struct ReleaseCheck {
    device: DeviceId,
    reserved: u64,
    free_before: Option<u64>,
}

impl ReleaseCheck {
    /// A look at the device before.
    pub(super) fn new(placement: &dyn Placement, known: &scheduler::Instance) -> Self {
        // In the host's own memory a worker's holdings are read of its own process; elsewhere pods hide processes, and
        // only what is free on the device says something.
        let free_before = if is_host_memory(&known.device) { None } else { placement.capacity(&known.device) };
        Self { device: known.device.clone(), reserved: known.reserved, free_before }
    }

    /// Waits until the memory is back; bytes of host memory that the instance still holds.
    ///
    /// # Errors
    /// It did not come back in time.
    pub(super) async fn wait(self, placement: &dyn Placement, instance: &dyn Instance) -> Result<u64, Failure> {
        let deadline = Instant::now() + RELEASE_WAIT;
        loop {
            let kept = self.kept(placement, instance);
            if kept <= self.tolerance() {
                return Ok(instance.usage().unwrap_or(0));
            }
            if Instant::now() >= deadline {
                let message = format!(
                    "it parked, but {} of its {} did not come back on {} within {} s",
                    ByteSize(kept),
                    ByteSize(self.reserved),
                    self.device,
                    RELEASE_WAIT.as_secs()
                );
                return Err(Failure::new(FailureKind::NotUsable, message));
            }
            sleep(LOOK_EVERY).await;
        }
    }

    fn tolerance(&self) -> u64 {
        TOLERANCE_BYTES.max(self.reserved / 20)
    }

    /// Bytes not given back, as far as anyone can tell.
    fn kept(&self, placement: &dyn Placement, instance: &dyn Instance) -> u64 {
        if is_host_memory(&self.device) {
            return instance.usage().unwrap_or(0);
        }
        match (self.free_before, placement.capacity(&self.device)) {
            (Some(before), Some(after)) => self.reserved.saturating_sub(after.saturating_sub(before)),
            _ => 0,
        }
    }
}
