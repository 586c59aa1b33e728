//! What a new configuration changes.

use std::collections::BTreeSet;

use super::api::Changes;
use crate::config::Config;
use crate::domain::ModelId;

/// Which entries differ in what an instance is made of. Names, limits and policy take effect without a reload.
pub(super) fn changes(old: &Config, new: &Config) -> Changes {
    let differs = |id: &&ModelId| match (old.models.get(*id), new.models.get(*id)) {
        (Some(before), Some(after)) => {
            before.kind != after.kind
                || (&before.plugin, &before.plugin_version) != (&after.plugin, &after.plugin_version)
                || (&before.files, &before.options) != (&after.files, &after.options)
                || (&before.memory, &before.devices) != (&after.memory, &after.devices)
        }
        _ => false,
    };
    Changes {
        added: new.models.keys().filter(|id| !old.models.contains_key(*id)).cloned().collect(),
        removed: old.models.keys().filter(|id| !new.models.contains_key(*id)).cloned().collect(),
        changed: new.models.keys().filter(differs).cloned().collect(),
    }
}

impl Changes {
    /// Entries that are gone or made of something else.
    pub(super) fn anew(&self) -> BTreeSet<ModelId> {
        self.removed.iter().chain(&self.changed).cloned().collect()
    }
}
