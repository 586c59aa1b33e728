//! Where the files of a model are, for the plugin that is to read them. Cheap: no file is read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::config::ModelConfig;
use crate::domain::Failure;
use crate::plugin::PluginFile;
use crate::store::{self, Digests};

/// The files of a model by role.
///
/// # Errors
/// One is not there, is another one, or is a folder where this plugin reads none: what to do.
pub fn locate_for(
    plugin: &PluginFile,
    model: &ModelConfig,
    state_dir: &Path,
) -> Result<BTreeMap<String, PathBuf>, Failure> {
    let files = store::locate(model, &Digests::of(state_dir))?;
    if !plugin.reads_folders() {
        store::refuse_folders(model)?;
    }
    Ok(files)
}
