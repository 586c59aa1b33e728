//! The swaps that are told of: those under way, by instance, and the last that are over. It knows no scheduler.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::watched::{Swap, SwapKind, SwapOutcome, SwapStep};
use crate::domain::{Device, InstanceId, ModelId, ModelState};
use crate::telemetry::unix_ms;

/// Swaps that are over and still told of; the oldest goes first.
pub(super) const SWAPS_MAX: usize = 64;

/// The swaps that are under way, and those that are over.
#[derive(Debug, Default)]
pub(super) struct Swaps {
    last: u64,
    /// Instances as they were after the step before.
    pub(super) seen: BTreeMap<InstanceId, SeenInstance>,
    over: VecDeque<Arc<Swap>>,
}

#[derive(Debug)]
pub(super) struct SeenInstance {
    pub(super) model: ModelId,
    pub(super) device: Device,
    pub(super) state: ModelState,
    pub(super) step: &'static str,
    pub(super) since: Instant,
    /// What is under way with it.
    pub(super) swap: Option<Swap>,
}

/// What there is to see of an instance.
pub(super) struct InstanceSight {
    pub(super) model: ModelId,
    pub(super) device: Device,
    pub(super) state: ModelState,
    pub(super) step: &'static str,
}

impl Swaps {
    /// Those that are over and those under way, by their numbers.
    pub(super) fn told(&self) -> Vec<Arc<Swap>> {
        let now = Instant::now();
        let underway = self.seen.values().filter_map(|seen| {
            let mut swap = seen.swap.clone()?;
            swap.add(seen.step, now.saturating_duration_since(seen.since));
            Some(Arc::new(swap))
        });
        let mut told: Vec<Arc<Swap>> = self.over.iter().cloned().chain(underway).collect();
        told.sort_by_key(|swap| swap.number);
        told
    }

    pub(super) fn begin(&mut self, kind: SwapKind, sight: &InstanceSight, cause: &'static str) -> Swap {
        self.last += 1;
        Swap {
            number: self.last,
            model: sight.model.clone(),
            device: sight.device,
            kind,
            cause,
            whom: None,
            requests: None,
            began_ms: unix_ms(),
            steps: Vec::new(),
            outcome: SwapOutcome::Underway,
            failure: None,
        }
    }

    pub(super) fn end(&mut self, swap: Option<Swap>, outcome: SwapOutcome) {
        let Some(mut swap) = swap else { return };
        swap.outcome = outcome;
        if self.over.len() >= SWAPS_MAX {
            self.over.pop_front();
        }
        self.over.push_back(Arc::new(swap));
    }
}

impl Swap {
    pub(super) fn add(&mut self, step: &'static str, took: Duration) {
        match self.steps.last_mut().filter(|last| last.name == step) {
            Some(last) => last.took += took,
            None => self.steps.push(SwapStep { name: step, took }),
        }
    }

    pub(super) fn is_coming(&self) -> bool {
        matches!(self.kind, SwapKind::Load | SwapKind::Wake)
    }
}
