//! Putting built plugins where a host looks for them.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Doing, Result};
use crate::workspace::{PluginPackage, Profile, Workspace};

/// Keys of a models.yaml that has everything beside it.
pub(crate) const FOLDERS_BESIDE: &str = "plugins_dir: plugins\nmodels_dir: models\nstate_dir: state\n";

/// A plugin file in its place.
#[derive(Debug)]
pub(crate) struct Staged {
    /// Where it lies.
    pub(crate) path: PathBuf,
    /// Bytes.
    pub(crate) size: u64,
}

/// Copies these plugins into `folder` under their plain names. A host that watches the folder never sees half a file.
pub(crate) fn plugins(
    workspace: &Workspace,
    profile: Profile,
    plugins: &[PluginPackage],
    folder: &Path,
) -> Result<Vec<Staged>> {
    plugins
        .iter()
        .map(|plugin| {
            let built = workspace.built(profile, &format!("lib{}.so", plugin.library));
            let path = folder.join(plugin.file_name());
            let size = copy_whole(&built, &path)?;
            Ok(Staged { path, size })
        })
        .collect()
}

/// Copies to a temporary name beside the goal and renames, so that the goal is always a whole file.
pub(crate) fn copy_whole(from: &Path, to: &Path) -> Result<u64> {
    let folder = to.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).doing(format_args!("create {}", folder.display()))?;
    let name = to.file_name().unwrap_or_default().to_string_lossy();
    let temporary = folder.join(format!(".{name}.{}.part", std::process::id()));
    let size = fs::copy(from, &temporary).doing(format_args!("copy {} to {}", from.display(), folder.display()))?;
    fs::rename(&temporary, to).doing(format_args!("rename to {}", to.display()))?;
    Ok(size)
}

/// The first file under `folder` whose name ends so, in name order.
pub(crate) fn find(folder: &Path, ending: &str) -> Option<PathBuf> {
    let mut entries: Vec<PathBuf> = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).collect();
    entries.sort();
    entries.iter().find_map(|path| {
        if path.is_dir() {
            find(path, ending)
        } else {
            path.to_string_lossy().to_lowercase().ends_with(ending).then(|| path.clone())
        }
    })
}
