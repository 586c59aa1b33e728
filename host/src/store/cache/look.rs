//! What commands say of a cache that they do not use.

use std::fs;
use std::path::{Path, PathBuf};

use super::index;
use crate::config::Config;
use crate::domain::ByteSize;

/// The folders of copies in a cache that no host uses.
pub fn entries(cache: &Path) -> Vec<PathBuf> {
    let found = fs::read_dir(cache).into_iter().flatten().flatten().map(|entry| entry.path());
    found.filter(|path| index::is_entry(path)).collect()
}

/// Why a `cache_size` is of no use: no file of any model fits. Nothing while none is there.
pub fn too_small(config: &Config) -> Option<String> {
    let size = config.paths.cache.as_ref()?.size?;
    let files = config.models.values().flat_map(|model| model.files.values());
    let sizes = files.filter_map(|file| file.path.metadata().ok()).filter(|found| found.is_file());
    let least = sizes.map(|found| found.len()).min()?;
    (least > size.0).then(|| {
        format!(
            "cache_size: no file of any model fits in {size}, the smallest has {}: all are opened where they lie; give it more, or leave out `cache_dir`",
            ByteSize(least)
        )
    })
}
