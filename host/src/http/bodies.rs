//! How many bytes of requests the host holds, all of them together: what arrives is counted before it is kept, and until its
//! answer has ended. Nothing of what the bytes mean.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::domain::ByteSize;

/// How long a piece of a body waits for others to end.
const ROOM_WAIT: Duration = Duration::from_secs(2);
/// So much of each body, in bytes, may take the last of the room: large bodies that come slowly keep no short one out.
const RESERVED_BODY_BYTES: u64 = 64 << 10;
/// The share of the room that only short bodies may take, one part in so many.
const SHORT_BODIES_SHARE: u64 = 8;

/// The bytes of all requests.
#[derive(Debug, Default)]
pub(super) struct Bodies {
    held: AtomicU64,
    freed: Notify,
}

/// The bytes of one request; given back when it is dropped.
#[derive(Debug)]
pub(super) struct HeldBytes {
    bodies: Arc<Bodies>,
    bytes: AtomicU64,
}

/// There is no room for more.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

impl Bodies {
    /// A request that holds nothing yet.
    pub(super) fn begin(self: &Arc<Self>) -> HeldBytes {
        HeldBytes { bodies: Arc::clone(self), bytes: AtomicU64::new(0) }
    }

    fn take(&self, bytes: u64, most: u64) -> bool {
        let more = |held: u64| held.checked_add(bytes).filter(|held| *held <= most);
        self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }
}

impl HeldBytes {
    /// Counts what has arrived, as soon as there is room for it under `limit`.
    pub(super) async fn add(&self, bytes: usize, limit: ByteSize) -> Result<(), Full> {
        let bytes = bytes as u64;
        let short = self.bytes.load(Ordering::Relaxed) + bytes <= RESERVED_BODY_BYTES;
        let most = if short { limit.0 } else { limit.0 - limit.0 / SHORT_BODIES_SHARE };
        let deadline = Instant::now() + ROOM_WAIT;
        loop {
            let mut freed = std::pin::pin!(self.bodies.freed.notified());
            // Before the look, or what is given back between the two would not be heard of.
            freed.as_mut().enable();
            if self.bodies.take(bytes, most) {
                self.bytes.fetch_add(bytes, Ordering::Relaxed);
                return Ok(());
            }
            timeout_at(deadline, freed).await.map_err(|_| Full)?;
        }
    }
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        let bytes = *self.bytes.get_mut();
        if bytes > 0 {
            self.bodies.held.fetch_sub(bytes, Ordering::Relaxed);
            self.bodies.freed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: ByteSize = ByteSize(8 << 20);
    const LARGE: usize = 7 << 20;

    #[tokio::test(start_paused = true)]
    async fn what_does_not_fit_waits_and_is_refused() {
        let bodies = Arc::new(Bodies::default());
        let large = bodies.begin();
        assert_eq!(large.add(LARGE, LIMIT).await, Ok(()));
        let begun = Instant::now();
        assert_eq!(bodies.begin().add(LARGE, LIMIT).await, Err(Full));
        assert_eq!(begun.elapsed(), ROOM_WAIT);
        assert_eq!(bodies.begin().add(1 << 10, LIMIT).await, Ok(()), "a short body is kept out by a large one");
        drop(large);
        assert_eq!(bodies.held.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_given_back_is_taken_by_who_waits() {
        let bodies = Arc::new(Bodies::default());
        let (first, second) = (bodies.begin(), bodies.begin());
        assert_eq!(first.add(LARGE, LIMIT).await, Ok(()));
        let waiting = tokio::spawn(async move { second.add(LARGE, LIMIT).await });
        tokio::task::yield_now().await;
        drop(first);
        assert_eq!(waiting.await.expect("it ends"), Ok(()));
    }
}
