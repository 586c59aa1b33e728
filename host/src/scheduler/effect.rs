//! Everything the scheduler can want done. The list is closed: nothing else happens.

use crate::domain::{Device, Failure, InstanceId, Millis, ModelId, RequestId};

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
    Park(InstanceId, Cause),
    /// Take the device memory again; [`super::Event::Unparked`] or [`super::Event::Failed`] follows.
    Unpark(InstanceId),
    /// The request holds a lease on the instance now.
    Grant(RequestId, InstanceId),
    /// The model a [`super::Want::Load`] asked for is hot.
    Ready(RequestId),
    /// The request is not served.
    Refuse(RequestId, Failure),
    /// Release and end the worker; [`super::Event::Exited`] follows. It holds no lease.
    Stop(InstanceId, Cause),
    /// Kill the worker under its leases: the operator's deadline is over. [`super::Event::Exited`] follows.
    Cut(InstanceId),
    /// Send [`super::Event::Timer`] at this time; replaces the one before.
    Wake(Millis),
}

/// Why an instance leaves the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cause {
    /// Another model needs its memory.
    Memory,
    /// Nobody asked for it for `keep_alive`.
    Idle,
    /// The operator or a shutdown wants it so.
    Asked,
    /// Its entry changed or is gone.
    Reload,
    /// Whoever waited for it left while it came up.
    Unwanted,
    /// It failed, and cannot be used any more.
    Failed,
}

impl Cause {
    /// The name in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "room",
            Self::Idle => "idle",
            Self::Asked => "asked",
            Self::Reload => "reload",
            Self::Unwanted => "unwanted",
            Self::Failed => "failed",
        }
    }
}
