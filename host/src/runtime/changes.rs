//! What a new configuration changes.

use std::collections::BTreeSet;

use super::api::Changes;
use crate::config::Config;
use crate::domain::ModelId;

/// Which entries differ in what an instance is made of.
pub(super) fn changes(old: &Config, new: &Config) -> Changes {
    let differs = |id: &&ModelId| match (old.models.get(*id), new.models.get(*id)) {
        (Some(before), Some(after)) => !before.is_made_like(after),
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
