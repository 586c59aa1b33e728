//! What the loop learned of devices: how often memory moved on them, and the peaks seen there.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::peaks::Peaks;
use crate::domain::Device;

pub(super) struct Devices {
    pub(super) peaks: Arc<Peaks>,
    moves: HashMap<Device, Arc<AtomicU64>>,
}

impl Devices {
    pub(super) fn open(state_dir: &Path) -> Self {
        Self { peaks: Arc::new(Peaks::open(state_dir)), moves: HashMap::new() }
    }

    /// How often memory was taken or given there; it goes on counting.
    pub(super) fn moves(&mut self, device: Device) -> Arc<AtomicU64> {
        Arc::clone(self.moves.entry(device).or_default())
    }

    /// Memory is about to be taken or given there.
    pub(super) fn memory_moves(&mut self, device: Device) {
        self.moves(device).fetch_add(1, Ordering::Relaxed);
    }
}
