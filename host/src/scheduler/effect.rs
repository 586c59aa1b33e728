//! Everything the scheduler can want done. The list is closed: nothing else happens.

use crate::domain::{DeviceId, Failure, InstanceId, Millis, ModelId, RequestId};

/// Something is to be done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Start a worker for a model and ask it for its plan.
    Start {
        /// Its number.
        instance: InstanceId,
        /// What it will hold.
        model: ModelId,
        /// Where.
        device: DeviceId,
    },
    /// Load, within this many bytes.
    Load {
        /// Which.
        instance: InstanceId,
        /// Bytes reserved for it.
        granted: u64,
    },
    /// The request holds a lease on the instance now.
    Grant(RequestId, InstanceId),
    /// The model a [`super::Want::Load`] asked for is hot.
    Ready(RequestId),
    /// The request is not served.
    Refuse(RequestId, Failure),
    /// Release and end the worker; [`super::Event::Exited`] follows.
    Stop(InstanceId),
    /// Send [`super::Event::Timer`] at this time; replaces the one before.
    Wake(Millis),
}
