//! Everything that can happen to the scheduler.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::policy::{Keep, Mapped, Policy};
use super::trial::Again;
use crate::domain::{Device, Failure, InstanceId, ModelId, RequestId};

/// Something that happened outside, and that the scheduler must know.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// Someone wants a model.
    Request {
        /// Its number, never used before.
        id: RequestId,
        /// A model of the policy.
        model: ModelId,
        /// What the request is for.
        want: Want,
        /// How long its instance stays once idle, if the request says so.
        keep: Option<Keep>,
    },
    /// The client of a waiting request left. A granted one is not cancelled here: its lease ends with [`Event::Done`].
    Cancel(RequestId),
    /// `generate` returned: the lease is over.
    Done(RequestId),
    /// The worker is up and knows what the model needs.
    Planned {
        /// The instance that is meant.
        instance: InstanceId,
        /// Bytes it cannot do without: weights, least caches and workspace.
        required: u64,
        /// Bytes it would take.
        preferred: u64,
        /// The part of `required` that lies in mapped files.
        mapped: Mapped,
    },
    /// Loaded and warm.
    Loaded(InstanceId),
    /// Parked, and the device memory is known to be back.
    Parked {
        /// The instance that is meant.
        instance: InstanceId,
        /// Bytes of host memory it still holds.
        held: u64,
    },
    /// The instance is hot again.
    Unparked(InstanceId),
    /// What was asked of it last did not work; the worker is still to be stopped if it lives.
    Failed(InstanceId, Failure),
    /// The worker is gone.
    Exited(InstanceId, Failure),
    /// The operator wants a model cold once its leases have ended.
    Unload {
        /// The model that is meant.
        model: ModelId,
        /// Milliseconds after which leases that still run are cut; `None` lets them end by themselves.
        cut_after_ms: Option<u64>,
    },
    /// The operator wants a model parked once its leases have ended.
    Park(ModelId),
    /// The model does harm: nobody may have it until the operator says so.
    Quarantine(ModelId, Failure),
    /// Bytes of a device that instances may hold together as measured: what is free now, and what they hold.
    Measured(Device, u64),
    /// A new policy is in force. Instances of models that are gone or made of something else leave once their leases have
    /// ended. Whoever waits for one that is gone is refused, whoever waits for a new one gets that.
    Configure {
        /// What is in force from now on.
        policy: Arc<Policy>,
        /// Every model that is gone since the policy before, or made of something else: what was learned of it is forgotten.
        anew: Arc<BTreeSet<ModelId>>,
    },
    /// The next instances of these models are made of other files than those before. Those that are up stay; failures are
    /// forgotten.
    Renew(Arc<BTreeSet<ModelId>>),
    /// A deadline named by [`super::Effect::SetTimer`] has come.
    Timer,
    /// No new work; end when the leases have ended.
    Shutdown,
}

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Want {
    /// A lease, for someone who waits.
    Serve,
    /// A lease, after all interactive ones.
    ServeBatch,
    /// The model hot, without a lease.
    Load,
    /// A lease before everyone else, but on trial: the request was on a worker that died.
    Again(Again),
}
