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
    known: Known,
    order: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    models: BTreeMap<String, Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    /// Of plugin, weights and options: another of them may be the mended one. `None` if the plugin is not there.
    digest: Option<String>,
    why: String,
}

impl Quarantine {
    /// Reads `state_dir/quarantine.json`, or begins with none.
    pub(super) fn open(state_dir: &Path) -> Self {
        let (file, known) = StateFile::open(state_dir, FILE_NAME, FORMAT_VERSION);
        Self { file: Arc::new(file), known, order: 0 }
    }

    /// What happened to this very model, if it is quarantined.
    pub(super) fn recall(&self, model: &ModelId, key: &Key) -> Option<Failure> {
        let entry = self.known.models.get(&model.0).filter(|entry| entry.digest.as_deref() == Some(key.digest()))?;
        Some(Failure::new(FailureKind::WorkerDied, &entry.why))
    }

    /// Who is quarantined, in the order of their names.
    pub(super) fn models(&self) -> impl Iterator<Item = &str> {
        self.known.models.keys().map(String::as_str)
    }

    /// Remembers these and no others. Writes in the background.
    fn keep(&mut self, models: BTreeMap<String, Entry>) {
        self.known = Known { models };
        self.order += 1;
        let (file, order, known) = (Arc::clone(&self.file), self.order, self.known.clone());
        tokio::task::spawn_blocking(move || file.write(order, &known));
    }
}

impl Loop {
    /// At the start: whoever was quarantined is so still, unless it is made of something else now.
    pub(super) fn recall_quarantine(&mut self) {
        let recalled: Vec<(ModelId, Failure)> = (self.config.models.keys())
            .filter_map(|model| Some((model.clone(), self.quarantine.recall(model, &self.model_key(model)?)?)))
            .collect();
        for (model, failure) in recalled {
            tracing::warn!(%model, "still quarantined: {failure}");
            self.step(Event::Quarantine(model, failure));
        }
        self.remember_quarantine();
    }

    /// After each step: writes what changed.
    pub(super) fn remember_quarantine(&mut self) {
        if self.state.quarantined().map(|(model, _)| model.0.as_str()).eq(self.quarantine.models()) {
            return;
        }
        let entry = |(model, failure): (&ModelId, &Failure)| {
            let digest = self.model_key(model).map(|key| key.digest().to_owned());
            (model.0.clone(), Entry { digest, why: failure.message.clone() })
        };
        let models = self.state.quarantined().map(entry).collect();
        self.quarantine.keep(models);
    }
}
