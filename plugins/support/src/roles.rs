//! Files of a model that lie beside its weights, unless models.yaml names them.

use std::path::{Path, PathBuf};

use aihost_plugin_api::{LoadRequest, Result};

/// The file of a role, or the one called `name` in the folder that role `model` is or lies in.
///
/// # Errors
/// [`aihost_plugin_api::ErrorKind::MissingFile`] if there is neither.
pub fn beside(load: &LoadRequest, role: &str, name: &str) -> Result<PathBuf> {
    if let Some(named) = load.files.get(role) {
        return Ok(named.clone());
    }
    let model = load.file("model")?;
    let folder = if model.is_dir() { model } else { model.parent().unwrap_or(Path::new("")) };
    Ok(folder.join(name))
}
