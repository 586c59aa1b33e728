//! What the loop keeps of each request: whether it waits, holds a lease, or lost its worker; and of operators who wait.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::oneshot;

use super::access::AccessEntry;
use super::relay::{Decision, Lost};
use super::replay::{Job, LostLease, Suspects};
use crate::domain::{Failure, InstanceId, Millis, ModelId, RequestId};

/// Every request that has not ended.
#[derive(Default)]
pub(super) struct Requests {
    pub(super) ids: RequestIds,
    pub(super) suspects: Suspects,
    /// Operators who wait until a model has left its device.
    pub(super) departing: Vec<Departing>,
    pending: HashMap<RequestId, Pending>,
    leased: HashMap<RequestId, Leased>,
    orphaned: Vec<Orphan>,
}

/// Numbers that no other request has.
#[derive(Clone, Debug, Default)]
pub(super) struct RequestIds(Arc<AtomicU64>);

impl RequestIds {
    pub(super) fn next(&self) -> RequestId {
        RequestId(self.0.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

/// Who waits, and for what.
pub(super) enum Pending {
    Serve { job: Job, decide: oneshot::Sender<Decision> },
    Load { model: ModelId, access: AccessEntry, reply: oneshot::Sender<Result<(), Failure>> },
}

/// Who holds a lease, and on what.
struct Leased {
    job: Job,
    instance: InstanceId,
    since: Millis,
    /// Whether nobody else ever had one beside it.
    alone: bool,
}

/// A request whose worker died, until its exit is known: before that it would be granted on it again.
pub(super) struct Orphan {
    pub(super) job: Job,
    pub(super) lost: Lost,
    pub(super) lease: LostLease,
    instance: InstanceId,
}

/// An operator who waits until these instances have left their device.
pub(super) struct Departing {
    pub(super) instances: Vec<InstanceId>,
    pub(super) goal: Goal,
    pub(super) access: AccessEntry,
    /// What went wrong on the way.
    pub(super) failure: Option<String>,
    pub(super) reply: oneshot::Sender<Result<(), Failure>>,
}

impl Departing {
    /// Whoever is told on `reply` once they have gone so far. Which instances they are is known when it is asked for.
    pub(super) fn to(goal: Goal, access: AccessEntry, reply: oneshot::Sender<Result<(), Failure>>) -> Self {
        Self { instances: Vec::new(), goal, access, failure: None, reply }
    }
}

/// How far they are to leave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    Cold,
    Parked,
}

impl Requests {
    pub(super) fn wait(&mut self, id: RequestId, pending: Pending) {
        self.pending.insert(id, pending);
    }

    /// It waits no more.
    pub(super) fn take_pending(&mut self, id: RequestId) -> Option<Pending> {
        self.pending.remove(&id)
    }

    /// Who waits under this number.
    pub(super) fn access_of(&self, id: RequestId) -> Option<&AccessEntry> {
        self.pending.get(&id).map(|known| match known {
            Pending::Serve { job, .. } => &job.access,
            Pending::Load { access, .. } => access,
        })
    }

    /// Whether a client waits for this model.
    pub(super) fn awaits(&self, model: &ModelId) -> bool {
        self.pending.values().any(|known| matches!(known, Pending::Serve { job, .. } if job.model == *model))
    }

    /// Whether a client or an operator waits for this model.
    pub(super) fn is_wanted(&self, model: &ModelId) -> bool {
        let loads = |known: &Pending| matches!(known, Pending::Load { model: other, .. } if other == model);
        self.awaits(model) || self.pending.values().any(loads)
    }

    /// Those who wait and are refused, and why.
    pub(super) fn refused(&self, why: impl Fn(&Job) -> Option<Failure>) -> Vec<(RequestId, Failure)> {
        let refusal = |(id, known): (&RequestId, &Pending)| match known {
            Pending::Serve { job, .. } => Some((*id, why(job)?)),
            Pending::Load { .. } => None,
        };
        self.pending.iter().filter_map(refusal).collect()
    }

    /// Clients and operators who wait for this model.
    pub(super) fn waiting_for(&self, model: &ModelId) -> Vec<AccessEntry> {
        let waiting = self.pending.values().filter_map(|known| match known {
            Pending::Serve { job, .. } if job.model == *model => Some(job.access.clone()),
            Pending::Load { model: wanted, access, .. } if wanted == model => Some(access.clone()),
            Pending::Serve { .. } | Pending::Load { .. } => None,
        });
        waiting.collect()
    }

    /// Who holds a lease on this instance, or held one when its worker died.
    pub(super) fn on_instance(&self, instance: InstanceId) -> Vec<AccessEntry> {
        let leased = self.leased.values().filter(|leased| leased.instance == instance).map(|leased| &leased.job);
        let orphaned = self.orphaned.iter().filter(|orphan| orphan.instance == instance).map(|orphan| &orphan.job);
        leased.chain(orphaned).map(|job| job.access.clone()).collect()
    }

    /// Operators who wait until this instance has left its device.
    pub(super) fn sending_away(&self, instance: InstanceId) -> Vec<AccessEntry> {
        let departing = self.departing.iter().filter(|departing| departing.instances.contains(&instance));
        departing.map(|departing| departing.access.clone()).collect()
    }

    /// It holds a lease on this instance from now on.
    pub(super) fn lease(&mut self, id: RequestId, job: Job, instance: InstanceId, now: Millis) {
        let mut alone = true;
        for beside in self.leased.values_mut().filter(|leased| leased.instance == instance) {
            (beside.alone, alone) = (false, false);
        }
        self.leased.insert(id, Leased { job, instance, since: now, alone });
    }

    /// Its lease is over; if its worker died under it, it is kept to be tried again. Who is not is returned.
    pub(super) fn end_lease(
        &mut self,
        id: RequestId,
        lost: Option<Lost>,
        now: Millis,
    ) -> Option<(InstanceId, AccessEntry)> {
        let Leased { job, instance, since, alone } = self.leased.remove(&id)?;
        let Some(lost) = lost else { return Some((instance, job.access)) };
        let lease = LostLease { ran_ms: now.since(since), alone };
        self.orphaned.push(Orphan { job, lost, lease, instance });
        None
    }

    /// The instances that serve.
    pub(super) fn serving(&self) -> HashSet<InstanceId> {
        self.leased.values().map(|leased| leased.instance).collect()
    }

    pub(super) fn any_leased(&self) -> bool {
        !self.leased.is_empty()
    }

    /// Takes out the orphans whose instance is gone.
    pub(super) fn orphans_of_the_gone(&mut self, is_known: impl Fn(InstanceId) -> bool) -> Vec<Orphan> {
        let orphaned = std::mem::take(&mut self.orphaned);
        let (waiting, ready) = orphaned.into_iter().partition(|orphan| is_known(orphan.instance));
        self.orphaned = waiting;
        ready
    }
}
