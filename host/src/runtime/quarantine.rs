//! Which models are quarantined, remembered across restarts: starting anew mends nothing.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::peaks::Key;
use super::run::Loop;
use super::state_file::StateFile;
use crate::config::Config;
use crate::domain::{Failure, FailureKind, ModelId};
use crate::plugin::Registry;
use crate::scheduler::Event;

/// The file's name in `state_dir`.
const FILE_NAME: &str = "quarantine.json";
/// Raised when the file's meaning changes; another version is not read.
const FORMAT_VERSION: u32 = 1;

/// The quarantined models of a host.
#[derive(Debug)]
pub(super) struct Quarantine {
    file: Arc<StateFile>,
    /// Those of this host.
    known: QuarantineFile,
    /// Those that this host cannot judge: they are not in its models.yaml, or their plugin is not there.
    foreign: Arc<QuarantineFile>,
    order: u64,
}

/// Models and what happened to them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct QuarantineFile {
    models: BTreeMap<String, QuarantineEntry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct QuarantineEntry {
    /// Of plugin, weights and options: another of them may be the mended one. `None` if the plugin is not there.
    digest: Option<String>,
    why: String,
}

impl Quarantine {
    /// Reads `state_dir/quarantine.json`, or begins with none.
    pub(super) fn open(state_dir: &Path) -> Self {
        let (file, foreign) = StateFile::open(state_dir, FILE_NAME, FORMAT_VERSION);
        Self { file: Arc::new(file), known: QuarantineFile::default(), foreign: Arc::new(foreign), order: 0 }
    }

    /// Those that this host cannot judge yet.
    pub(super) fn foreign(&self) -> Arc<QuarantineFile> {
        Arc::clone(&self.foreign)
    }

    /// What happened to a model, if it is quarantined and still made of the same. It is this host's from now on.
    fn recall(&mut self, model: &ModelId, key: &Key) -> Option<Failure> {
        let entry = Arc::make_mut(&mut self.foreign).models.remove(model.as_str())?;
        let same = entry.digest.as_deref() == Some(key.digest());
        same.then(|| Failure::new(FailureKind::WorkerDied, entry.why))
    }

    /// These and no others of this host's are quarantined. Writes in the background.
    fn keep(&mut self, models: BTreeMap<String, QuarantineEntry>) {
        self.known = QuarantineFile { models };
        self.order += 1;
        let mut all = QuarantineFile::clone(&self.foreign);
        all.models.extend(self.known.models.clone());
        let (file, order) = (Arc::clone(&self.file), self.order);
        tokio::task::spawn_blocking(move || file.write(order, &all));
    }
}

impl QuarantineFile {
    /// Those of its models that a configuration has, with what they are made of there.
    pub(super) fn found(&self, config: &Config, registry: &Registry) -> Vec<(ModelId, Key)> {
        let key = |model: ModelId| {
            let key = Key::of(config.models.get(&model)?, registry)?;
            Some((model, key))
        };
        self.models.keys().filter_map(ModelId::new).filter_map(key).collect()
    }
}

impl Loop {
    /// Whoever was quarantined is so still, unless it is made of something else now.
    pub(super) fn recall(&mut self, found: Vec<(ModelId, Key)>) {
        for (model, key) in found {
            if let Some(failure) = self.quarantine.recall(&model, &key) {
                self.records.told.knows_quarantined(&model);
                tracing::warn!(%model, "still quarantined: {failure}");
                self.step(Event::Quarantine(model, failure));
            }
        }
    }

    /// Others are quarantined than before.
    pub(super) fn remember_quarantine(&mut self) {
        let registry = self.plugins.registry();
        let key = |model: &ModelId| Key::of(self.config.models.get(model)?, &registry);
        let entry = |(model, failure): (&ModelId, &Failure)| {
            // Made of the same as when that was written down: whoever changes is forgotten.
            let known = self.quarantine.known.models.get(model.as_str()).map(|entry| entry.digest.clone());
            let digest = known.unwrap_or_else(|| key(model).map(|key| key.digest().to_owned()));
            (model.to_string(), QuarantineEntry { digest, why: failure.message.clone() })
        };
        let models = self.state.quarantined().map(entry).collect();
        self.quarantine.keep(models);
    }
}
