//! What the loop learned of devices: how often memory moved on them, the peaks seen there, and what they had to give.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Mutex;

use super::facts::Facts;
use super::peaks::Peaks;
use super::policy::FoundBudgets;
use crate::domain::Device;

pub(super) struct Devices {
    pub(super) peaks: Arc<Peaks>,
    pub(super) facts: Arc<Facts>,
    /// Who holds it prepares a configuration: one at a time, so that each is compared with the one that it will replace.
    pub(super) found_budgets: Arc<Mutex<FoundBudgets>>,
    moves: HashMap<Device, Arc<AtomicU64>>,
}

impl Devices {
    pub(super) fn open(state_dir: &Path, found: FoundBudgets) -> Self {
        let (peaks, found_budgets) = (Arc::new(Peaks::open(state_dir)), Arc::new(Mutex::new(found)));
        Self { peaks, facts: Arc::new(Facts::open(state_dir)), found_budgets, moves: HashMap::new() }
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
