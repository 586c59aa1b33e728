//! What the loop remembers of each model beyond the life of its instances.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::config::Config;
use crate::domain::ModelId;
use crate::worker::ModelLog;

/// Every model that had a worker or a reader of its log since the host started.
#[derive(Debug, Default)]
pub(super) struct Records(BTreeMap<ModelId, Record>);

#[derive(Debug, Default)]
struct Record {
    /// Whether its last worker died by itself.
    died: bool,
    loads: u64,
    wakes: u64,
    /// What its workers logged.
    log: Option<Arc<ModelLog>>,
}

impl Records {
    /// A worker died by itself.
    pub(super) fn died(&mut self, model: &ModelId) {
        self.of(model).died = true;
    }

    /// Whether its last worker died by itself; said once.
    pub(super) fn take_died(&mut self, model: &ModelId) -> bool {
        self.0.get_mut(model).is_some_and(|record| std::mem::take(&mut record.died))
    }

    pub(super) fn count_load(&mut self, model: &ModelId) {
        self.of(model).loads += 1;
    }

    pub(super) fn count_wake(&mut self, model: &ModelId) {
        self.of(model).wakes += 1;
    }

    pub(super) fn loads(&self, model: &ModelId) -> u64 {
        self.0.get(model).map_or(0, |record| record.loads)
    }

    pub(super) fn wakes(&self, model: &ModelId) -> u64 {
        self.0.get(model).map_or(0, |record| record.wakes)
    }

    pub(super) fn log(&mut self, model: &ModelId) -> Arc<ModelLog> {
        Arc::clone(self.of(model).log.get_or_insert_default())
    }

    /// Logs of models that are gone from the configuration are dropped.
    pub(super) fn configured(&mut self, config: &Config) {
        for (model, record) in &mut self.0 {
            if !config.models.contains_key(model) {
                record.log = None;
            }
        }
    }

    fn of(&mut self, model: &ModelId) -> &mut Record {
        self.0.entry(model.clone()).or_default()
    }
}
