//! Where a custom engine puts its answer: a head, then bytes. It heeds the client's pace.

use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use super::outlet::Outlet;
use super::{Error, Result};
use crate::abi::event_kind;
use crate::task::{CustomFinish, CustomHead, FinishReason};

/// Most bytes in one event: 64 KiB.
const BLOCK_BYTES: usize = 64 * 1024;
/// Statuses that end an answer.
const STATUSES: std::ops::RangeInclusive<u16> = 200..=599;

/// The answer of one custom request. A cheap handle: clones feed the same answer, from any thread.
#[derive(Clone, Debug)]
pub struct CustomOutput {
    outlet: Outlet,
    state: Arc<Mutex<CustomState>>,
}

#[derive(Debug, Default)]
struct CustomState {
    has_begun: bool,
    bytes: u64,
}

impl CustomOutput {
    pub(crate) fn new(outlet: Outlet) -> Self {
        Self { outlet, state: Arc::default() }
    }

    /// Begins the answer. Once, before the first byte.
    ///
    /// # Errors
    /// Once the client left: return it with `?`, it is a normal end. Internal if it has begun before, or the status is none
    /// that ends an answer (200 to 599).
    pub fn begin(&self, head: &CustomHead) -> Result<()> {
        if !STATUSES.contains(&head.status) {
            return Err(Error::internal(format!("status {} does not end an answer; 200 to 599 do", head.status)));
        }
        if std::mem::replace(&mut self.lock().has_begun, true) {
            return Err(Error::internal("the answer was begun twice"));
        }
        let json = serde_json::to_vec(head).map_err(Error::internal)?;
        self.outlet.push_paced(event_kind::JSON, &json)
    }

    /// Adds bytes of the body; each call is seen by the client as soon as it is there. Blocks while the client is too slow.
    ///
    /// # Errors
    /// As [`begin`](Self::begin); internal before it.
    pub fn write(&self, bytes: &[u8]) -> Result<()> {
        if !self.lock().has_begun {
            return Err(Error::internal("bytes were written before the answer was begun"));
        }
        for block in bytes.chunks(BLOCK_BYTES) {
            self.outlet.push_paced(event_kind::RAW, block)?;
            self.lock().bytes += block.len() as u64;
        }
        Ok(())
    }

    /// The whole answer as JSON, with status 200.
    ///
    /// # Errors
    /// As [`begin`](Self::begin).
    pub fn json(&self, value: &impl Serialize) -> Result<()> {
        let json = serde_json::to_vec(value).map_err(Error::internal)?;
        self.begin(&CustomHead::new(200, "application/json"))?;
        self.write(&json)
    }

    /// Says that `done` of `total` steps have been made; the client's progress bar shows it.
    ///
    /// # Errors
    /// Once the client left.
    pub fn progress(&self, done: u64, total: u64) -> Result<()> {
        self.outlet.progress(done, total)
    }

    pub(crate) fn finish(&self, result: Result<()>) -> Result<CustomFinish> {
        let reason = match result {
            Ok(()) => FinishReason::Stop,
            Err(error) => self.outlet.stopped(error).map(|()| FinishReason::Cancelled)?,
        };
        let CustomState { has_begun, bytes } = *self.lock();
        if reason == FinishReason::Stop && !has_begun {
            return Err(Error::internal("the engine ended without an answer"));
        }
        Ok(CustomFinish::new(reason, bytes))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, CustomState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
