//! What plugins said of models when they last planned a load, and engines once they were up, remembered across restarts:
//! listings tell it, and load nothing.

use std::collections::BTreeMap;
use std::path::Path;

use aihost_plugin_api::ModelFacts;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::state_file::StateFile;
use crate::config::ModelConfig;

/// The file's name in `state_dir`.
const FILE_NAME: &str = "facts.json";
/// Raised when the file's meaning changes; another version is not read.
const FORMAT_VERSION: u32 = 1;
/// Models kept; the one learned longest ago goes first.
const MODELS_MAX: usize = 512;
/// Bytes of a chat template that is remembered: the file is small.
const TEMPLATE_BYTES_MAX: usize = 32 << 10;

/// What is known of all models.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// None: nothing outlives this host.
    file: Option<StateFile>,
    known: Mutex<FactsFile>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct FactsFile {
    models: BTreeMap<String, Known>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Known {
    /// For whoever reads the file.
    model: String,
    facts: ModelFacts,
    /// Counts lessons; the lowest is the oldest.
    order: u64,
}

/// What facts are of: this plugin, these files, these options, or this model of those who run it. What files hold is not
/// looked at.
fn digest(model: &ModelConfig) -> String {
    let mut options = model.options.clone();
    options.sort_all_objects();
    let files: Vec<_> = model.files.iter().map(|(role, file)| (role, &file.path)).collect();
    let remote = model.http.remote.as_ref().map(|remote| (&remote.urls, model.engine_name()));
    let parts = serde_json::json!([model.plugin, files, options, remote]);
    format!("{:x}", Sha256::digest(parts.to_string()))
}

impl Facts {
    /// Reads `state_dir/facts.json`, or begins with none.
    pub(super) fn open(state_dir: &Path) -> Self {
        let (file, known) = StateFile::open(state_dir, FILE_NAME, FORMAT_VERSION);
        Self { file: Some(file), known: Mutex::new(known) }
    }

    /// What is known of a model.
    pub(super) fn of(&self, model: &ModelConfig) -> ModelFacts {
        self.known.lock().models.get(&digest(model)).map(|known| known.facts.clone()).unwrap_or_default()
    }

    /// Its engine says this of it, beside what its plugin may have said. May block as [`Self::learn`] may.
    pub(super) fn add(&self, model: &ModelConfig, facts: ModelFacts) {
        self.learn(model, facts.or(self.of(model)));
    }

    /// Its plugin says this of it. Writes the file where that is news, so it may block for a moment.
    pub(super) fn learn(&self, model: &ModelConfig, mut facts: ModelFacts) {
        facts.chat_template = facts.chat_template.filter(|template| template.len() <= TEMPLATE_BYTES_MAX);
        let (order, news) = {
            let mut known = self.known.lock();
            let digest = digest(model);
            if known.models.get(&digest).is_some_and(|known| known.facts == facts) {
                return;
            }
            let order = known.models.values().map(|known| known.order).max().unwrap_or(0) + 1;
            known.models.insert(digest, Known { model: model.id.to_string(), facts, order });
            while known.models.len() > MODELS_MAX {
                let oldest = known.models.iter().min_by_key(|(_, known)| known.order).map(|(digest, _)| digest.clone());
                oldest.map(|digest| known.models.remove(&digest));
            }
            (order, known.clone())
        };
        if let Some(file) = &self.file {
            file.write(order, &news);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Env, Selection};

    #[test]
    fn what_was_said_outlives_the_host_until_the_entry_changes() {
        let dir = tempfile::tempdir().unwrap();
        let model = |options: &str| {
            let yaml = format!("models:\n  a: {{type: text, plugin: p, options: {options}}}\n");
            let config = config::parse(&yaml, Path::new("/etc/models.yaml"), &Selection::default(), &Env::default());
            config.unwrap().models.values().next().unwrap().clone()
        };
        let facts = ModelFacts::default().context_length(4096).abilities(vec!["tools".into()]);
        Facts::open(dir.path()).learn(&model("{context: 4096}"), facts.clone());
        let again = Facts::open(dir.path());
        assert_eq!(again.of(&model("{context: 4096}")), facts);
        assert_eq!(again.of(&model("{context: 8192}")), ModelFacts::default());
        let said = ModelFacts::default().context_length(512);
        again.add(&model("{context: 4096}"), said);
        assert_eq!(again.of(&model("{context: 4096}")), facts.clone().context_length(512), "an engine knows better");
        let far = |url: &str, name: &str| {
            let yaml = format!("models:\n  a: {{type: text, url: '{url}', engine_model: {name}}}\n");
            let config = config::parse(&yaml, Path::new("/etc/models.yaml"), &Selection::default(), &Env::default());
            config.unwrap().models.values().next().unwrap().clone()
        };
        again.add(&far("http://one:1", "m"), facts.clone());
        assert_eq!(again.of(&far("http://one:1", "m")), facts);
        for other in [far("http://two:1", "m"), far("http://one:1", "n")] {
            assert_eq!(again.of(&other), ModelFacts::default(), "another server or model");
        }
        let long = ModelFacts::default().chat_template("x".repeat(TEMPLATE_BYTES_MAX + 1));
        again.learn(&model("{}"), long);
        assert_eq!(again.of(&model("{}")).chat_template, None);
    }
}
