//! `cache_dir:` and `cache_size:`. A folder in which the host removes what is too much must hold nothing of anybody else.

use std::path::Path;

use super::Checker;
use crate::config::locate::KeyPath;
use crate::config::paths::absolute;
use crate::config::raw::Text;
use crate::config::resolved::{CacheConfig, Paths};

/// The cache that is wanted, if one is.
pub(super) fn resolve(
    check: &mut Checker,
    folder: Option<&Path>,
    size: Option<&Text>,
    base: &Path,
    paths: &Paths,
) -> Option<CacheConfig> {
    let (folder_key, size_key) = (KeyPath::root().key("cache_dir"), KeyPath::root().key("cache_size"));
    let bytes = check.size(&size_key, size);
    let Some(typed) = folder else {
        if let Some(Text(typed)) = size {
            check
                .fail(&size_key, Some(typed), "bounds a folder that is not named")
                .hint("name a folder on a fast local disk as `cache_dir:`, or leave this out");
        }
        return None;
    };
    let folder = absolute(base, typed);
    let others = [("models_dir", &paths.models), ("state_dir", &paths.state), ("plugins_dir", &paths.plugins)];
    for (key, other) in others {
        let wrong = match () {
            () if folder == *other => "is the same folder as",
            () if folder.starts_with(other) => "lies in",
            () if other.starts_with(&folder) => "holds",
            () => continue,
        };
        check
            .fail(&folder_key, Some(&typed.display().to_string()), format!("{wrong} `{key}` ({})", other.display()))
            .hint("name a folder of its own on a fast local disk, like /tmp/aihost-cache");
    }
    Some(CacheConfig { folder, size: bytes })
}
