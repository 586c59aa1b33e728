//! What requests take on top of a loaded model, kept together within what is set aside for that.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::domain::{ByteSize, Failure, FailureKind};

/// What is counted together, bytes.
const UNIT: u64 = 64 << 10;

/// The bytes beside one loaded model.
#[derive(Clone, Debug)]
pub(super) struct Workspace {
    bytes: u64,
    units: Arc<Semaphore>,
}

/// A request's part, until it is dropped.
#[derive(Debug)]
pub(super) struct Part {
    _units: OwnedSemaphorePermit,
}

impl Workspace {
    pub(super) fn new(bytes: u64) -> Self {
        Self { bytes, units: Arc::new(Semaphore::new(units(bytes / UNIT) as usize)) }
    }

    /// Takes a part, once those before have left enough.
    ///
    /// # Errors
    /// It is more than there is.
    pub(super) async fn take(self, cost: u64) -> Result<Part, Failure> {
        let refused = || {
            let (cost, bytes) = (ByteSize(cost), ByteSize(self.bytes));
            let message = format!(
                "the request needs {cost} beside the loaded model, where {bytes} are set aside; ask for less at once"
            );
            Failure::new(FailureKind::OutOfMemory, format!("{message}, or give its device more `memory:`"))
                .for_clients(message)
        };
        if cost > self.bytes {
            return Err(refused());
        }
        // What is set aside may be less than a unit, and a request that fits in it must not wait for ever.
        let wanted = units(cost.div_ceil(UNIT)).min(units(self.bytes / UNIT));
        let units = self.units.acquire_many_owned(wanted).await;
        units.map(|units| Part { _units: units }).map_err(|_| refused())
    }
}

fn units(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::poll;

    use super::*;

    #[tokio::test]
    async fn parts_are_never_more_than_the_whole() {
        let workspace = Workspace::new(10 << 20);
        let first = workspace.clone().take(6 << 20).await.unwrap();
        let beside = workspace.clone().take(4 << 20).await.unwrap();
        let mut next = pin!(workspace.clone().take(5 << 20));
        assert!(poll!(&mut next).is_pending());
        drop(beside);
        assert!(poll!(&mut next).is_pending(), "4 of the 5 are free");
        drop(first);
        let _next = next.await.unwrap();
        let refused = workspace.take((10 << 20) + 1).await.unwrap_err();
        assert_eq!(refused.kind, FailureKind::OutOfMemory);
    }

    #[tokio::test]
    async fn what_is_free_of_charge_needs_no_room() {
        let workspace = Workspace::new(0);
        let _one = workspace.clone().take(0).await.unwrap();
        let _other = workspace.clone().take(0).await.unwrap();
        let tiny = Workspace::new(10);
        let _part = tiny.take(10).await.unwrap();
    }
}
