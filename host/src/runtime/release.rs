//! Whether parked memory really came back: measured, not believed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::domain::{ByteSize, Device, Failure, FailureKind};
use crate::scheduler;
use crate::worker::awake::{Instant, sleep};
use crate::worker::{InstanceHandle, Placement};

/// How long released memory may take to come back.
const RELEASE_WAIT: Duration = Duration::from_secs(5);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Bytes that may stay out at least; 5 % of what was held if that is more.
const TOLERANCE_BYTES: u64 = 256 << 20;
/// Bytes of a device that a parked instance may say it keeps: what a driver takes of each process.
const STAYS_MAX: u64 = 1 << 30;

/// What a device looked like before an instance parked.
#[derive(Debug)]
pub(super) struct ReleaseCheck {
    device: Device,
    held: u64,
    free_before: Option<u64>,
    /// How often memory moved on the device, and how often that was before.
    moves: (Arc<AtomicU64>, u64),
}

impl ReleaseCheck {
    /// A look at the device before. `held`: bytes that the instance holds there; `quiet`: nothing else takes or gives
    /// memory there now; `moves` counts what begins to.
    pub(super) fn new(
        placement: &dyn Placement,
        known: &scheduler::Instance,
        held: u64,
        quiet: bool,
        moves: Arc<AtomicU64>,
    ) -> Self {
        // In the host's own memory a worker's holdings are read of its own process; elsewhere pods hide processes, and
        // only what is free on the device says something.
        let free_before = placement.capacity(known.device).filter(|_| quiet && !known.device.is_host_memory());
        let before = moves.load(Ordering::Relaxed);
        Self { device: known.device, held, free_before, moves: (moves, before) }
    }

    /// Waits until the memory is back, but for what stays by the plugin's account; bytes of host memory that the instance
    /// still holds.
    ///
    /// # Errors
    /// It did not come back in time.
    pub(super) async fn wait(
        mut self,
        placement: &dyn Placement,
        instance: &dyn InstanceHandle,
        stays: u64,
    ) -> Result<u64, Failure> {
        self.held = self.held.saturating_sub(stays.min(STAYS_MAX));
        let deadline = Instant::now() + RELEASE_WAIT;
        loop {
            let kept = self.kept(placement, instance);
            if kept <= self.tolerance() {
                return Ok(instance.usage().unwrap_or(0));
            }
            if !self.device.is_host_memory() && self.moves.0.load(Ordering::Relaxed) != self.moves.1 {
                // Others take or give memory there now: what is free says nothing of this one any more.
                return Ok(instance.usage().unwrap_or(0));
            }
            if Instant::now() >= deadline {
                let message = format!(
                    "it parked, but {} of its {} did not come back on {} within {} s",
                    ByteSize(kept),
                    ByteSize(self.held),
                    self.device,
                    RELEASE_WAIT.as_secs()
                );
                return Err(Failure::new(FailureKind::NotUsable, message));
            }
            sleep(LOOK_EVERY).await;
        }
    }

    fn tolerance(&self) -> u64 {
        TOLERANCE_BYTES.max(self.held / 20)
    }

    /// Bytes not given back, as far as anyone can tell.
    fn kept(&self, placement: &dyn Placement, instance: &dyn InstanceHandle) -> u64 {
        if self.device.is_host_memory() {
            return instance.usage().unwrap_or(0);
        }
        match (self.free_before, placement.capacity(self.device)) {
            (Some(before), Some(after)) => self.held.saturating_sub(after.saturating_sub(before)),
            _ => 0,
        }
    }
}
