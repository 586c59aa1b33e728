//! What the log was told of models, and what is still to be told of at its end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tokio::time::Instant;

use super::access::AccessEntry;
use crate::domain::{Device, EvictionCause, InstanceId, ModelId};

/// Requests that lost their worker, remembered until its exit is heard; the oldest goes first.
const BROKEN_MAX: usize = 256;

/// What was told, and what is still to be told of at its end.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Instances whose failure stands in the log: their exit is its consequence.
    pub(super) told: BTreeSet<InstanceId>,
    /// Quarantined models that stand in the log.
    pub(super) quarantined: BTreeSet<ModelId>,
    /// When each instance began to come up, or to wake.
    pub(super) coming: BTreeMap<InstanceId, Instant>,
    pub(super) leaving: BTreeMap<InstanceId, Leaving>,
    /// Requests that were answered already when their worker was known to be gone.
    broken: VecDeque<(InstanceId, AccessEntry)>,
}

/// An instance on its way off its device.
#[derive(Debug)]
pub(super) struct Leaving {
    pub(super) cause: EvictionCause,
    /// Who needs its memory.
    pub(super) whom: Option<ModelId>,
    /// What it gives back.
    pub(super) bytes: u64,
    pub(super) device: Device,
    pub(super) since: Instant,
}

impl Told {
    /// A lease on this instance ended whose worker had died.
    pub(super) fn broke(&mut self, instance: InstanceId, access: AccessEntry) {
        if self.broken.len() >= BROKEN_MAX {
            self.broken.pop_front();
        }
        self.broken.push_back((instance, access));
    }

    /// This quarantine is told of elsewhere.
    pub(super) fn knows_quarantined(&mut self, model: &ModelId) {
        self.quarantined.insert(model.clone());
    }

    /// It is up: how many milliseconds that took.
    pub(super) fn came(&mut self, id: InstanceId) -> u64 {
        milliseconds_since(self.coming.remove(&id).unwrap_or_else(Instant::now))
    }

    /// The requests that lost this worker.
    pub(super) fn take_broken(&mut self, id: InstanceId) -> Vec<AccessEntry> {
        let (these, others): (VecDeque<_>, VecDeque<_>) =
            self.broken.drain(..).partition(|(instance, _)| *instance == id);
        self.broken = others;
        these.into_iter().map(|(_, access)| access).collect()
    }
}

/// Milliseconds since then.
pub(super) fn milliseconds_since(then: Instant) -> u64 {
    u64::try_from(then.elapsed().as_millis()).unwrap_or(u64::MAX)
}
