//! How many bytes of requests the host holds, all of them together: what arrives is counted before it is kept, and until its
//! answer has ended. Nothing of what the bytes mean.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::connections::Peer;
use crate::domain::ByteSize;

/// How long a piece of a body waits for others to end.
const ROOM_WAIT: Duration = Duration::from_secs(2);
/// So much of each body, in bytes, may take the last of the room: large bodies that come slowly keep no short one out.
const RESERVED_BODY_BYTES: u64 = 64 << 10;
/// The share of the room that only short bodies may take, one part in so many.
const SHORT_BODIES_SHARE: u64 = 8;

/// The share of the room that one address may take, unless it has a single body.
const PEER_PERCENT: u64 = 50;
/// The share up to which its short bodies may go.
const PEER_SHORT_PERCENT: u64 = 75;

/// The bytes of all requests.
#[derive(Debug, Default)]
pub(super) struct Bodies {
    held: Mutex<AllHeld>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct AllHeld {
    bytes: u64,
    by_peer: HashMap<Peer, u64>,
}

/// The bytes of one request; given back when it is dropped.
#[derive(Debug)]
pub(super) struct HeldBytes {
    bodies: Arc<Bodies>,
    peer: Peer,
    bytes: AtomicU64,
}

/// There is no room for more.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

impl Bodies {
    /// A request from this address that holds nothing yet.
    pub(super) fn begin(self: &Arc<Self>, peer: Peer) -> HeldBytes {
        HeldBytes { bodies: Arc::clone(self), peer, bytes: AtomicU64::new(0) }
    }

    /// Takes more for a body, if there is room for it and its address has not more than its share.
    fn take(&self, body: &HeldBytes, bytes: u64, limit: u64) -> bool {
        let has = body.bytes.load(Ordering::Relaxed);
        let (most, percent) = match has + bytes <= RESERVED_BODY_BYTES {
            true => (limit, PEER_SHORT_PERCENT),
            false => (limit - limit / SHORT_BODIES_SHARE, PEER_PERCENT),
        };
        let mut held = self.held.lock();
        let own = held.by_peer.get(&body.peer).copied().unwrap_or_default();
        let has_others = own > has;
        if (has_others && own.saturating_add(bytes) > limit / 100 * percent) || held.bytes.saturating_add(bytes) > most
        {
            return false;
        }
        held.bytes += bytes;
        *held.by_peer.entry(body.peer).or_default() += bytes;
        true
    }

    fn give_back(&self, peer: Peer, bytes: u64) {
        let mut held = self.held.lock();
        held.bytes -= bytes;
        if let Some(own) = held.by_peer.get_mut(&peer) {
            *own -= bytes;
            if *own == 0 {
                held.by_peer.remove(&peer);
            }
        }
    }
}

impl HeldBytes {
    /// Counts what has arrived, as soon as there is room for it under `limit`.
    pub(super) async fn add(&self, bytes: usize, limit: ByteSize) -> Result<(), Full> {
        let bytes = bytes as u64;
        let deadline = Instant::now() + ROOM_WAIT;
        loop {
            let mut freed = std::pin::pin!(self.bodies.freed.notified());
            // Before the look, or what is given back between the two would not be heard of.
            freed.as_mut().enable();
            if self.bodies.take(self, bytes, limit.0) {
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
            self.bodies.give_back(self.peer, bytes);
            self.bodies.freed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: ByteSize = ByteSize(8 << 20);
    /// Two of them leave what only short bodies may take.
    const LARGE: usize = 7 << 19;

    fn peer(number: u8) -> Peer {
        Peer::of([127, 0, 0, number].into())
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_fit_waits_and_is_refused() {
        let bodies = Arc::new(Bodies::default());
        let large = [1, 2].map(|number| bodies.begin(peer(number)));
        for body in &large {
            assert_eq!(body.add(LARGE, LIMIT).await, Ok(()));
        }
        let begun = Instant::now();
        assert_eq!(bodies.begin(peer(3)).add(LARGE, LIMIT).await, Err(Full));
        assert_eq!(begun.elapsed(), ROOM_WAIT);
        assert_eq!(bodies.begin(peer(3)).add(1 << 10, LIMIT).await, Ok(()), "a short body is kept out by large ones");
        drop(large);
        assert_eq!(bodies.held.lock().bytes, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_given_back_is_taken_by_who_waits() {
        let bodies = Arc::new(Bodies::default());
        let (first, second) = (bodies.begin(peer(1)), bodies.begin(peer(1)));
        assert_eq!(first.add(LARGE, LIMIT).await, Ok(()));
        let waiting = tokio::spawn(async move { second.add(LARGE, LIMIT).await });
        tokio::task::yield_now().await;
        drop(first);
        assert_eq!(waiting.await.expect("it ends"), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn one_address_keeps_no_other_out() {
        let bodies = Arc::new(Bodies::default());
        let mut held = Vec::new();
        // Bodies of every size, until the last gap that this address may fill is filled.
        for size in [LARGE, 1 << 18, 1 << 16, 1 << 12, 1 << 8, 1] {
            for _ in 0..64 {
                let body = bodies.begin(peer(1));
                if body.add(size, LIMIT).await.is_err() {
                    break;
                }
                held.push(body);
            }
        }
        assert!(bodies.held.lock().bytes >= LIMIT.0 / 2 - (1 << 8));
        for size in [70, 1 << 19] {
            let body = bodies.begin(peer(2));
            let begun = Instant::now();
            assert_eq!(body.add(size, LIMIT).await, Ok(()));
            assert_eq!(begun.elapsed(), Duration::ZERO, "it waited");
            drop(body);
        }
        drop(held);
        assert!(bodies.held.lock().by_peer.is_empty());
    }
}
