//! What a look at the folders of plugins found that was not so before, one line for each file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::registry::{PluginFile, Registry};

/// What became of a file.
#[derive(Clone, Debug)]
pub enum News {
    /// A plugin that was not there.
    Added(Arc<PluginFile>),
    /// Another plugin, or another build of it, in the place of this one.
    Replaced(Arc<PluginFile>, Arc<PluginFile>),
    /// A plugin that is there no more.
    Removed(Arc<PluginFile>),
    /// A file that is not usable, why, and the plugin that it was before, which is used on.
    Refused(PathBuf, String, Option<Arc<PluginFile>>),
    /// What should be known of a file that is usable.
    Doubted(PathBuf, String),
}

impl Registry {
    /// What is so and was not before.
    pub fn news(&self, before: &Self) -> Vec<News> {
        let at = |registry: &Self, file: &Path| registry.plugins.iter().find(|plugin| plugin.source == file).cloned();
        let changed = self.plugins.iter().filter_map(|plugin| match at(before, &plugin.source) {
            None => Some(News::Added(Arc::clone(plugin))),
            Some(was) if Arc::ptr_eq(&was, plugin) => None,
            Some(was) => Some(News::Replaced(Arc::clone(plugin), was)),
        });
        let removed = before.plugins.iter().filter(|was| {
            at(self, &was.source).is_none() && self.rejected.iter().all(|refused| refused.file != was.source)
        });
        let refused = self.rejected.iter().filter(|refused| !before.rejected.contains(refused));
        let refused =
            refused.map(|refused| News::Refused(refused.file.clone(), refused.reason.clone(), at(self, &refused.file)));
        let doubted = self.doubts.iter().filter(|doubt| !before.doubts.contains(doubt));
        let doubted = doubted.map(|doubt| News::Doubted(doubt.file.clone(), doubt.reason.clone()));
        let removed = removed.map(|was| News::Removed(Arc::clone(was)));
        changed.chain(removed).chain(refused).chain(doubted).collect()
    }
}
