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
    /// Instances that were told of, until their end was.
    instances: BTreeMap<InstanceId, ToldInstance>,
    /// Quarantined models that stand in the log.
    pub(super) quarantined: BTreeSet<ModelId>,
    /// Requests that were answered when their worker was lost already, and not yet known to be gone.
    broken: VecDeque<(InstanceId, AccessEntry)>,
}

/// What the log knows of an instance.
#[derive(Debug, Default)]
pub(super) struct ToldInstance {
    /// Its failure stands in the log: its exit is the consequence.
    pub(super) has_failed: bool,
    /// When it began to come up, or to wake.
    pub(super) coming: Option<Instant>,
    pub(super) leaving: Option<Leaving>,
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
    /// A lease on this instance ended whose worker is lost.
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

    /// What the log knows of this instance.
    pub(super) fn of(&mut self, id: InstanceId) -> &mut ToldInstance {
        self.instances.entry(id).or_default()
    }

    /// Nothing more is to be told of it.
    pub(super) fn forget(&mut self, id: InstanceId) {
        self.instances.remove(&id);
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
