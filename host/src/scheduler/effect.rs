//! Everything the scheduler can want done. The list is closed: nothing else happens.

use crate::domain::{Device, EvictionCause, Failure, InstanceId, Millis, ModelId, RequestId};

/// Something is to be done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Start a worker for a model and ask it for its plan.
    Start {
        /// The number of the new instance.
        instance: InstanceId,
        /// What it will hold.
        model: ModelId,
        /// The device that it is to be on.
        device: Device,
    },
    /// Load, within this many bytes.
    Load {
        /// The instance to load.
        instance: InstanceId,
        /// Bytes reserved for it.
        granted: u64,
    },
    /// Give the device memory back; [`super::Event::Parked`] or [`super::Event::Failed`] follows.
    Park(InstanceId, EvictionCause),
    /// Take the device memory again; [`super::Event::Unparked`] or [`super::Event::Failed`] follows.
    Unpark(InstanceId),
    /// The request holds a lease on the instance now.
    Grant(RequestId, InstanceId),
    /// The model a [`super::Want::Load`] asked for is hot.
    Ready(RequestId),
    /// The request is not served.
    Refuse(RequestId, Failure),
    /// Release and end the worker; [`super::Event::Exited`] follows. It holds no lease.
    Stop(InstanceId, EvictionCause),
    /// Kill the worker under its leases: the operator's deadline is over. [`super::Event::Exited`] follows.
    Kill(InstanceId),
    /// Write down who is quarantined ([`super::State::quarantined`]): they are others than before.
    RememberQuarantine,
    /// Send [`super::Event::Timer`] at this time; replaces the one before.
    SetTimer(Millis),
}
