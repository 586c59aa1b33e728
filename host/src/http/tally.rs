//! What is counted at the door: connections that are open, and answers that are refusals. It knows no request.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::http::StatusCode;
use parking_lot::Mutex;

use crate::telemetry::{Gauges, Metric, REFUSALS};

/// Counts since the host started.
#[derive(Debug, Default)]
pub(super) struct Tally {
    connections: AtomicU64,
    /// By status, of which there are as many as `error` picks.
    refusals: Mutex<BTreeMap<u16, u64>>,
}

/// A connection, counted until it is dropped.
#[derive(Debug)]
pub(super) struct Counted(Arc<Tally>);

impl Tally {
    /// A connection is open.
    pub(super) fn connected(self: &Arc<Self>) -> Counted {
        self.connections.fetch_add(1, Ordering::Relaxed);
        Counted(Arc::clone(self))
    }

    /// A request or a connection is answered with this status.
    pub(super) fn answered(&self, status: StatusCode) {
        if status.as_u16() >= 400 {
            *self.refusals.lock().entry(status.as_u16()).or_default() += 1;
        }
    }

    /// What a scraper is told of it.
    pub(super) fn tell(&self, gauges: &mut Gauges) {
        gauges.add(Metric::Connections, &[], self.connections.load(Ordering::Relaxed));
        REFUSALS.iter().for_each(|status| gauges.add(Metric::Refusals, &[status], 0));
        for (status, count) in &*self.refusals.lock() {
            gauges.add(Metric::Refusals, &[&status.to_string()], *count);
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}
