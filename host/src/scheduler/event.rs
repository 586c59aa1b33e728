//! Everything that can happen to the scheduler.

use super::state::Policy;
use crate::domain::{Failure, InstanceId, ModelId, RequestId};

/// Something happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// Someone wants a model.
    Request {
        /// Its number, never used before.
        id: RequestId,
        /// A model of the policy.
        model: ModelId,
        /// What for.
        want: Want,
    },
    /// The client of a waiting request left. A granted one is not cancelled here: its lease ends with [`Event::Done`].
    Cancel(RequestId),
    /// `generate` returned: the lease is over.
    Done(RequestId),
    /// The worker is up and knows what the model needs.
    Planned {
        /// Which.
        instance: InstanceId,
        /// Bytes it cannot do without: weights, least caches and workspace.
        required: u64,
        /// Bytes it would take.
        preferred: u64,
    },
    /// Loaded and warm.
    Loaded(InstanceId),
    /// Starting or loading did not work; the worker is still to be stopped if it lives.
    Failed(InstanceId, Failure),
    /// The worker is gone.
    Exited(InstanceId, Failure),
    /// The operator wants a model cold once its leases have ended.
    Unload(ModelId),
    /// A new policy is in force.
    Configure(Policy),
    /// A deadline named by [`super::Effect::Wake`] has come.
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
    /// A lease with no other beside it, before everyone else: the request was on a worker that died.
    Solo,
}
