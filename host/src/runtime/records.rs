//! What the loop remembers of each model beyond the life of its instances.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::told::Told;
use crate::domain::ModelId;
use crate::worker::ModelLog;

/// What is remembered of models, and what the log was told of them.
#[derive(Debug, Default)]
pub(super) struct Records {
    /// Every model that had a worker or a reader of its log since the host started.
    models: BTreeMap<ModelId, Record>,
    pub(super) told: Told,
}

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
        self.models.get_mut(model).is_some_and(|record| std::mem::take(&mut record.died))
    }

    pub(super) fn count_load(&mut self, model: &ModelId) {
        self.of(model).loads += 1;
    }

    pub(super) fn count_wake(&mut self, model: &ModelId) {
        self.of(model).wakes += 1;
    }

    pub(super) fn loads(&self, model: &ModelId) -> u64 {
        self.models.get(model).map_or(0, |record| record.loads)
    }

    pub(super) fn wakes(&self, model: &ModelId) -> u64 {
        self.models.get(model).map_or(0, |record| record.wakes)
    }

    pub(super) fn log(&mut self, model: &ModelId) -> Arc<ModelLog> {
        Arc::clone(self.of(model).log.get_or_insert_default())
    }

    /// Models that were loaded or woken, or have a log.
    pub(super) fn models(&self) -> impl Iterator<Item = &ModelId> {
        self.models.keys()
    }

    /// Logs of models that are gone from the configuration, all of them and in order, are dropped. Takes as long as the
    /// shorter list is.
    pub(super) fn removed(&mut self, models: &[ModelId]) {
        if models.len() <= self.models.len() {
            for model in models {
                self.models.get_mut(model).into_iter().for_each(|record| record.log = None);
            }
        } else {
            for (_, record) in self.models.iter_mut().filter(|(model, _)| models.binary_search(model).is_ok()) {
                record.log = None;
            }
        }
    }

    fn of(&mut self, model: &ModelId) -> &mut Record {
        self.models.entry(model.clone()).or_default()
    }
}
