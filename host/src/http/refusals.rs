//! Who was turned away at the door, in the log: by the name of a key, or by address where there is none, and so many lines a
//! second at most, for whoever has no key may ask as often as they like.

use std::time::Duration;

use axum::http::Method;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::bucket::Bucket;
use super::caller::Caller;
use super::connections::Peer;
use super::error::ApiError;
use crate::config::Rate;
use crate::domain::excerpt;

/// Lines of refusals in the log, and their largest burst.
const LINES: Rate = Rate { requests: 60, per: Duration::from_secs(60) };
/// Bytes of a path that stand in such a line.
const PATH_BYTES: usize = 200;

/// What was not logged for want of room.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<Unlogged>);

#[derive(Debug, Default)]
struct Unlogged {
    bucket: Bucket,
    count: u64,
}

/// A request that was turned away.
pub(super) struct TurnedAway<'a> {
    pub(super) caller: &'a Caller,
    pub(super) peer: Peer,
    pub(super) method: &'a Method,
    pub(super) path: &'a str,
}

impl Refusals {
    /// Writes a line, if there is room for one.
    pub(super) fn log(&self, turned_away: &TurnedAway<'_>, why: &ApiError) {
        let Some(unlogged) = self.room(Instant::now()) else { return };
        let TurnedAway { caller, peer, method, path } = turned_away;
        let (key, path) = (caller.name(), excerpt(path, PATH_BYTES));
        let (status, code) = (why.status().as_u16(), why.code_name());
        tracing::info!(key, %peer, %method, path, status, unlogged, "refused: {code}");
    }

    /// How many were not logged since the last line; nothing if this one is not either.
    fn room(&self, now: Instant) -> Option<u64> {
        let mut unlogged = self.0.lock();
        if unlogged.bucket.take(LINES, now).is_err() {
            unlogged.count += 1;
            return None;
        }
        Some(std::mem::take(&mut unlogged.count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_counted_where_there_are_too_many_to_log() {
        let (refusals, now) = (Refusals::default(), Instant::now());
        let logged = (0..1000).filter(|_| refusals.room(now) == Some(0)).count();
        assert_eq!(logged, 60);
        assert_eq!(refusals.room(now + Duration::from_secs(1)), Some(940));
    }
}
