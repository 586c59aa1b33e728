//! How often each key asks, and how many of its requests run. What was counted stays through a new configuration: it is kept
//! by key, and a key whose time is up is as good as one that never asked.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::bucket::{Bucket, RateLeft};
use super::caller::Caller;
use super::error::ApiError;
use crate::config::ApiKey;

/// What every key has used, by one of its texts.
#[derive(Debug, Default)]
pub(super) struct Quotas(Mutex<HashMap<String, Arc<Usage>>>);

/// What one key has used.
#[derive(Debug, Default)]
struct Usage {
    running: AtomicU32,
    bucket: Mutex<Bucket>,
}

/// A request that was let in: it counts until this is dropped.
#[derive(Debug)]
pub(super) struct Place(Arc<Usage>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Leave to go on.
#[derive(Debug, Default)]
pub(super) struct Leave {
    /// Shared by the answer, whose end is the end of the request.
    pub(super) place: Option<Arc<Place>>,
    pub(super) rate: Option<RateLeft>,
}

impl Quotas {
    /// Counts a request of this caller.
    ///
    /// # Errors
    /// It is one too many, at once or for its rate.
    pub(super) fn admit(&self, caller: &Caller) -> Result<Leave, ApiError> {
        let Some(key) = caller.key().filter(|key| key.rate.is_some() || key.concurrency.is_some()) else {
            return Ok(Leave::default());
        };
        let place = self.place(caller, key)?;
        // What was taken of `place` goes back where the rate refuses.
        Ok(Leave { place: Some(place), rate: self.turn(key)? })
    }

    /// Counts a request of this caller that begins nothing.
    ///
    /// # Errors
    /// It is one too many for its rate.
    pub(super) fn admit_watching(&self, caller: &Caller) -> Result<Leave, ApiError> {
        let rate = caller.key().map(|key| self.turn(key)).transpose()?.flatten();
        Ok(Leave { place: None, rate })
    }

    /// Counts a job of this caller, which was counted for its rate when it came.
    ///
    /// # Errors
    /// It is one too many at once.
    pub(super) fn admit_job(&self, caller: &Caller) -> Result<Leave, ApiError> {
        let key = caller.key().filter(|key| key.concurrency.is_some());
        Ok(Leave { place: key.map(|key| self.place(caller, key)).transpose()?, rate: None })
    }

    fn place(&self, caller: &Caller, key: &ApiKey) -> Result<Arc<Place>, ApiError> {
        let too_many = || ApiError::too_many_at_once(key.concurrency).with_rate(self.left(caller));
        self.usage(key).begin(key.concurrency).map(Arc::new).ok_or_else(too_many)
    }

    fn turn(&self, key: &ApiKey) -> Result<Option<RateLeft>, ApiError> {
        let turn = key.rate.map(|rate| self.usage(key).bucket.lock().take(rate, Instant::now()));
        turn.transpose().map_err(|(wait, left)| ApiError::too_often(wait, left))
    }

    /// What is left of the rate of this caller's key, if it has one.
    pub(super) fn left(&self, caller: &Caller) -> Option<RateLeft> {
        let key = caller.key()?;
        let rate = key.rate?;
        Some(self.usage(key).bucket.lock().left(rate, Instant::now()))
    }

    fn usage(&self, key: &ApiKey) -> Arc<Usage> {
        let mut used = self.0.lock();
        let Some(secret) = key.secrets.first() else { return Arc::default() };
        if let Some(usage) = used.get(secret) {
            return Arc::clone(usage);
        }
        // A key is new once in its life, so this is seldom looked through.
        let now = Instant::now();
        used.retain(|_, usage| !usage.is_untouched(now));
        Arc::clone(used.entry(secret.clone()).or_default())
    }
}

impl Usage {
    fn begin(self: Arc<Self>, most: Option<u32>) -> Option<Place> {
        let most = most.unwrap_or(u32::MAX);
        let another = |running: u32| (running < most).then(|| running + 1);
        self.running.fetch_update(Ordering::Relaxed, Ordering::Relaxed, another).is_ok().then(|| Place(self))
    }

    fn is_untouched(&self, now: Instant) -> bool {
        self.running.load(Ordering::Relaxed) == 0 && self.bucket.lock().is_full(now)
    }
}
