//! Plain data that the rest of the scheduler is told and decides by. It decides nothing.

use std::collections::BTreeMap;

use crate::domain::{Device, ModelId};

/// How long a model waits for memory that others than this host take up, before its waiters are told, milliseconds.
pub(super) const OTHERS_WAIT_MS: u64 = 5_000;

/// What the scheduler must know of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Policy {
    /// Models by name.
    pub models: BTreeMap<ModelId, ModelPolicy>,
    /// Devices by name.
    pub devices: BTreeMap<Device, DevicePolicy>,
    /// The device whose memory is the host's own: what is parked lies there.
    pub host_memory: Device,
    /// Most waiting requests per model.
    pub queue_max: usize,
    /// A waiter this old closes the gate of the model in its way, milliseconds.
    pub max_wait_ms: u64,
    /// The least time a model serves before it yields, milliseconds.
    pub quantum_ms: u64,
    /// Longest wait for a load, milliseconds.
    pub hold_ms: u64,
    /// Longest wait for a lease on a model that is hot, milliseconds.
    pub slot_wait_ms: u64,
}

/// Policy of one model.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ModelPolicy {
    /// Devices it may use, in order of preference; at least one.
    pub devices: Vec<Device>,
    /// Most instances at once; at least 1.
    pub replicas: usize,
    /// Leases at once and instance; at least 1.
    pub leases_max: usize,
    /// Whether its instances can park.
    pub parks: bool,
    /// Whether it is never evicted.
    pub pin: bool,
    /// Higher is evicted later.
    pub priority: i32,
    /// How long it stays hot once idle.
    pub keep: Keep,
}

/// Policy of one device.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DevicePolicy {
    /// Bytes that instances may hold together.
    pub budget: u64,
    /// Hot instances at once; parked ones do not count.
    pub loaded_max: Option<usize>,
}

/// How long an idle instance stays hot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Keep {
    /// Milliseconds after its last lease; 0 is until then.
    For(u64),
    /// Until its memory is needed.
    Forever,
}

/// Weight files that an instance maps. Whoever maps the same files on a device shares their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Mapped {
    /// Tells these files from others.
    pub files: u64,
    /// Bytes of them in memory.
    pub bytes: u64,
}

/// Bytes that an instance must have on a device, the mapped ones among them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Need {
    pub(super) bytes: u64,
    pub(super) mapped: Mapped,
}
