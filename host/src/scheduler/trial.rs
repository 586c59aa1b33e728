//! Requests that are served again because their worker died: on trial, for one of them may be what it died of.
//!
//! A trial keeps everyone else off the worker, so that a death costs nobody but those on trial, whose clients have seen nothing
//! yet, and who are tried once more. At first they are tried together: most deaths are no request's doing, and together they
//! take no longer than they did before. Each further death that a request was there for leaves it a quarter of the company,
//! so that the one that workers die of is alone after few deaths. Whoever has run for longer than it had when its worker died
//! is past that point, and the worker is open to all again; between two trials others are served for a quantum.

use super::event::Want;
use super::policy::Policy;
use super::state::{Instance, State, Waiter};
use crate::domain::{Millis, ModelState};

/// Deaths after which a trial lasts until the request ends, with nobody beside it: earlier trials have an end, so what kills
/// later than they last would never be found.
const DEATHS_BEFORE_CONFINED: u32 = 4;
/// Each further death leaves so small a part of the company.
const COMPANY_PARTS: usize = 4;
/// A trial lasts so many times as long as the request had run: a fresh worker may be slower at first.
const OUTLIVES_TIMES: u64 = 2;
/// And so much longer, milliseconds: it may not have run at all.
const OUTLIVES_MS: u64 = 1_000;

/// What a request has behind it whose workers died.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Again {
    /// Workers that died under it; at least 1.
    pub deaths: u32,
    /// Milliseconds for which it had run when they died, at least: were it the cause, it would be so after that long.
    pub ran_ms: u64,
}

/// A trial on an instance.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Trial {
    /// When everyone on it is past the point where its worker died.
    until: Millis,
    /// Leases that it may have at once.
    room: usize,
}

impl Again {
    /// Leases at once beside which it may run, its own counted.
    pub(super) fn room(self, leases_max: usize) -> usize {
        let further = self.deaths.saturating_sub(1).min(DEATHS_BEFORE_CONFINED);
        if self.deaths > DEATHS_BEFORE_CONFINED { 1 } else { (leases_max / COMPANY_PARTS.pow(further)).max(1) }
    }

    /// How long it keeps others off its worker, milliseconds: at most as long as a waiter of another model would wait before
    /// the gate closes for it.
    pub(super) fn trial_ms(self, policy: &Policy) -> u64 {
        if self.deaths > DEATHS_BEFORE_CONFINED {
            return u64::MAX;
        }
        self.ran_ms.saturating_mul(OUTLIVES_TIMES).saturating_add(OUTLIVES_MS).min(policy.max_wait_ms)
    }
}

impl Instance {
    /// Whether a request that is tried again may begin here: on an empty worker, or beside others on trial.
    pub(super) fn has_room_for(&self, again: Again, leases_max: usize) -> bool {
        match &self.trial {
            Some(trial) => self.leases.len() < again.room(leases_max).min(trial.room),
            None => self.leases.is_empty(),
        }
    }

    /// It begins: the trial lasts until it is past its point, too.
    pub(super) fn begin_trial(&mut self, again: Again, now: Millis, (leases_max, trial_ms): (usize, u64)) {
        let (until, room) = (now.after(trial_ms), again.room(leases_max));
        let trial = self.trial.get_or_insert(Trial { until, room });
        trial.until = trial.until.max(until);
        trial.room = trial.room.min(room);
    }
}

impl State {
    /// Trials that are over open their worker to all again.
    pub(super) fn end_trials(&mut self) {
        let now = self.now;
        for instance in self.instances.values_mut() {
            if instance.trial.as_ref().is_some_and(|trial| trial.until <= now || instance.leases.is_empty()) {
                instance.trial = None;
                self.history.entry(instance.model.clone()).or_default().tried = now;
            }
        }
    }

    /// Whether nobody else begins on this instance until a request that is tried again has. After its first death it goes
    /// before all others; after that, others are served for a quantum since the last trial.
    pub(super) fn is_trial_due(&self, instance: &Instance, waiter: &Waiter) -> bool {
        let Want::Again(again) = waiter.want else { return false };
        let tried = self.history.get(&instance.model).map_or(Millis::default(), |known| known.tried);
        (again.deaths <= 1 && instance.leases.is_empty())
            || self.now >= waiter.since.max(tried).after(self.policy.quantum_ms)
    }

    /// When the trials end that are under way.
    pub(super) fn trial_ends(&self) -> impl Iterator<Item = Millis> {
        let hot = self.instances.values().filter(|instance| instance.state == ModelState::Hot);
        hot.filter_map(|instance| instance.trial.as_ref()).map(|trial| trial.until).filter(|until| until.0 < u64::MAX)
    }
}
