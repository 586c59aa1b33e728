//! Whether the entries of a valid models.yaml can work, by what is known of their plugins and files. Everything here blocks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::{Choice, Config, ConfigError, EntryFaults, ModelConfig, Refusal};
use crate::domain::ModelId;
use crate::plugin::{PluginFile, Registry};
use crate::worker::Schemas;

/// Entries and what is wrong with them.
pub(super) type Wrong = BTreeMap<ModelId, ConfigError>;

/// By what entries are judged.
#[derive(Clone, Debug)]
pub(super) struct Vet {
    registry: Arc<Registry>,
    schemas: Arc<Schemas>,
}

/// Whether plugins may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asking {
    /// Those that were not described yet.
    Plugins,
    /// None: nobody may wait for one.
    Nobody,
}

impl Vet {
    pub(super) fn new(registry: Arc<Registry>, config: &Config) -> Self {
        let executable = PathBuf::from("/proc/self/exe");
        let schemas = Schemas::new(&executable, &config.paths.state, config.paths.sharing);
        Self { registry, schemas: Arc::new(schemas) }
    }

    /// The same by the plugins that there are now.
    pub(super) fn by(&self, registry: Arc<Registry>) -> Self {
        Self { registry, schemas: Arc::clone(&self.schemas) }
    }

    fn plugin(&self, model: &ModelConfig) -> Option<Arc<PluginFile>> {
        self.registry.find(&model.plugin, model.plugin_version.as_ref()).ok()
    }

    /// What is wrong with options, and the plugins that cannot say what they take.
    pub(super) fn options(&self, config: &Config, asking: Asking) -> (EntryFaults, BTreeSet<String>) {
        let (mut faults, mut silent) = (EntryFaults::default(), BTreeSet::new());
        for model in config.models.values() {
            if let Some(Choice::Failed { key, why }) = &model.choice {
                faults.add(&model.id, key, why.clone());
            }
            let schema = self.plugin(model).and_then(|plugin| match asking {
                Asking::Plugins => Some(self.schemas.get(&plugin)),
                Asking::Nobody => self.schemas.known(&plugin),
            });
            match schema {
                Some(Ok(schema)) => faults.check_options(model, &schema),
                Some(Err(why)) => drop(silent.insert(why)),
                None => {}
            }
        }
        (faults, silent)
    }

    /// Refuses the entries whose options are wrong. Those of plugins that nobody has described yet pass if nobody may ask.
    pub(super) fn refuse_wrong(&self, config: &mut Config, asking: Asking) -> (Wrong, BTreeSet<String>) {
        let (faults, silent) = self.options(config, asking);
        let wrong = faults.placed(&text_of(config), file_of(config));
        for (id, error) in &wrong {
            if let Some(model) = config.models.get_mut(id) {
                model.refusal = Some(Refusal::Entry(error.sentence()));
            }
        }
        (wrong, silent)
    }

    /// Refuses what would break what serves: an entry that cannot work does not take the place of one that can.
    pub(super) fn on_reload(&self, config: &mut Config, running: &Config, text: &str) -> (Wrong, BTreeSet<String>) {
        let (mut faults, silent) = self.options(config, Asking::Plugins);
        for model in config.models.values() {
            let before = running.models.get(&model.id);
            // Files may be fetched later, and a plugin put there before the next start, where nothing is lost meanwhile.
            if before.is_some_and(|before| !before.is_made_like(model) && self.obstacle(before, running).is_none())
                && let Some((key, message)) = self.obstacle(model, config)
            {
                faults.add(&model.id, key, message);
            }
        }
        let wrong = faults.placed(text, file_of(config));
        for (id, error) in &wrong {
            let before = running.models.get(id).filter(|before| !matches!(before.refusal, Some(Refusal::Entry(_))));
            let Some(model) = config.models.get_mut(id) else { continue };
            match before.filter(|before| !before.is_made_like(model)) {
                Some(before) => model.keep(before, error.sentence()),
                None => model.refusal = Some(Refusal::Entry(error.sentence())),
            }
        }
        (wrong, silent)
    }

    /// The key by which an entry cannot work at all, and why: its plugin or its files.
    fn obstacle(&self, model: &ModelConfig, config: &Config) -> Option<(&'static str, String)> {
        if model.http.remote.is_some() {
            return None;
        }
        if let Some(why) = model.unchosen() {
            return Some(("plugin", why.to_owned()));
        }
        let plugin = match self.registry.find(&model.plugin, model.plugin_version.as_ref()) {
            Ok(plugin) => plugin,
            Err(error) => return Some(("plugin", error.to_string())),
        };
        if let Some(why) = wrong_kind(model, &plugin) {
            return Some(("type", why));
        }
        if !model.devices.is_empty() && !model.devices.iter().any(|device| plugin.runs_on(device.kind())) {
            let devices = plugin.manifest.devices.join(", ");
            return Some(("devices", format!("plugin `{}` runs on {devices} alone", model.plugin)));
        }
        let located = crate::runtime::locate_for(&plugin, model, &config.paths.state);
        located
            .err()
            .map(|failure| (if model.files.contains_key("model") { "source" } else { "files" }, failure.message))
    }
}

/// Why a plugin serves no models of this kind.
pub(super) fn wrong_kind(model: &ModelConfig, plugin: &PluginFile) -> Option<String> {
    let (kinds, kind) = (&plugin.manifest.kinds, model.kind);
    (!plugin.serves(kind))
        .then(|| format!("plugin `{}` serves {}, not {}", model.plugin, kinds.join(", "), kind.name()))
}

pub(super) fn file_of(config: &Config) -> &Path {
    config.file.as_deref().unwrap_or(Path::new("models.yaml"))
}

/// For the lines of what is wrong in it. What cannot be read again has none.
pub(super) fn text_of(config: &Config) -> String {
    config.file.as_deref().and_then(|file| crate::config::read_again(file).ok()).unwrap_or_default()
}

/// The names of keys that stand in the file as they are.
pub(super) fn typed_keys(config: &Config) -> Vec<String> {
    let text = text_of(config);
    let is_typed = |secret: &String| text.contains(secret.as_str());
    config.api_keys.iter().filter(|key| key.secrets.iter().any(is_typed)).map(|key| key.name.clone()).collect()
}

/// Logs what is wrong with entries, and was not before.
pub(super) fn tell(config: &Config, wrong: &Wrong, before: &Wrong) {
    for (id, error) in wrong.iter().filter(|(id, error)| before.get(*id) != Some(*error)) {
        match config.models.get(id).and_then(|model| model.refusal.as_ref()) {
            Some(Refusal::Change(why)) => {
                tracing::error!(model = %id, "its changed entry is refused, the one before serves on: {why}");
            }
            _ => tracing::error!(model = %id, "it cannot be loaded: {}", error.sentence()),
        }
    }
}
