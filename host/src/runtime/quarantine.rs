//! Which models are quarantined, remembered across restarts: starting anew mends nothing.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::peaks::Key;
use super::run::Loop;
use super::state_file::StateFile;
use crate::domain::{Failure, FailureKind, ModelId};
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
    foreign: QuarantineFile,
    order: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct QuarantineFile {
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
        Self { file: Arc::new(file), known: QuarantineFile::default(), foreign, order: 0 }
    }

    /// What happened to a model, if it is quarantined and still made of the same. It is this host's from now on.
    fn recall(&mut self, model: &ModelId, key: &Key) -> Option<Failure> {
        let entry = self.foreign.models.remove(model.as_str())?;
        let same = entry.digest.as_deref() == Some(key.digest());
        same.then(|| Failure::new(FailureKind::WorkerDied, entry.why))
    }

    /// Who is quarantined, in the order of their names.
    pub(super) fn models(&self) -> impl Iterator<Item = &str> {
        self.known.models.keys().map(String::as_str)
    }

    /// These and no others of this host's are quarantined. Writes in the background.
    fn keep(&mut self, models: BTreeMap<String, QuarantineEntry>) {
        self.known = QuarantineFile { models };
        self.order += 1;
        let mut all = self.foreign.clone();
        all.models.extend(self.known.models.clone());
        let (file, order) = (Arc::clone(&self.file), self.order);
        tokio::task::spawn_blocking(move || file.write(order, &all));
    }
}

impl Loop {
    /// At the start and with each new configuration: whoever was quarantined is so still, unless it is made of something
    /// else now.
    pub(super) fn recall_quarantine(&mut self) {
        let foreign = self.quarantine.foreign.models.keys().filter_map(ModelId::new);
        let models = foreign.filter(|model| self.config.models.contains_key(model));
        for model in models.collect::<Vec<_>>() {
            let Some(key) = self.model_key(&model) else { continue };
            if let Some(failure) = self.quarantine.recall(&model, &key) {
                tracing::warn!(%model, "still quarantined: {failure}");
                self.step(Event::Quarantine(model, failure));
            }
        }
    }

    /// After each step: writes what changed.
    pub(super) fn remember_quarantine(&mut self) {
        if self.state.quarantined().map(|(model, _)| model.as_str()).eq(self.quarantine.models()) {
            return;
        }
        let entry = |(model, failure): (&ModelId, &Failure)| {
            let digest = self.model_key(model).map(|key| key.digest().to_owned());
            (model.to_string(), QuarantineEntry { digest, why: failure.message.clone() })
        };
        let models = self.state.quarantined().map(entry).collect();
        self.quarantine.keep(models);
    }
}
