//! GGUF files below a folder, each once, whatever links lead to it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::cli::auto::weights;

/// Folders within one another that are looked into for GGUF files.
const DEPTH_MAX: usize = 6;
/// Files and folders that are looked at for them.
const LOOKS_MAX: usize = 100_000;

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Paths below the folder, in order; of a split model, its first part.
    pub(super) files: Vec<PathBuf>,
    /// Later parts without their first.
    pub(super) orphans: Vec<PathBuf>,
    /// Whether there is more than was looked at.
    pub(super) is_cut: bool,
}

/// All GGUF files below a folder.
pub(super) fn gguf_files(root: &Path) -> Found {
    let mut walk = Walk { found: Vec::new(), looks: 0 };
    walk.folder(root, 0);
    let mut found = Found { is_cut: walk.looks >= LOOKS_MAX, ..Found::default() };
    walk.found.sort();
    let mut seen = BTreeSet::new();
    for path in walk.found {
        let same = path.canonicalize().unwrap_or_else(|_| path.clone());
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let later = weights::part_of(name).filter(|(_, number, _)| *number > 1);
        if let Some((stem, _, count)) = later {
            let first = path.with_file_name(format!("{stem}-00001-of-{count:05}.gguf"));
            if !first.exists() {
                found.orphans.push(path);
            }
        } else if seen.insert(same) {
            found.files.push(path);
        }
    }
    found
}

struct Walk {
    found: Vec<PathBuf>,
    looks: usize,
}

impl Walk {
    fn folder(&mut self, folder: &Path, depth: usize) {
        // A folder that cannot be read has nothing for its host either.
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            self.looks += 1;
            if self.looks >= LOOKS_MAX {
                return;
            }
            let path = entry.path();
            // Links to folders may lead in circles; links to files are how hubs keep theirs.
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_folder && depth < DEPTH_MAX {
                self.folder(&path, depth + 1);
            } else if is_gguf(&path) && path.is_file() {
                self.found.push(path);
            }
        }
    }
}

/// Whether a name is that of a GGUF file.
pub(in crate::cli) fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|end| end.eq_ignore_ascii_case("gguf"))
}

/// The name of a file without its end, and without its number of a split model.
pub(in crate::cli) fn stem(path: &Path) -> String {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let stem = weights::part_of(name).map(|(stem, ..)| stem);
    stem.or_else(|| path.file_stem()?.to_str()).unwrap_or_default().to_owned()
}

/// Whether a file is the projector of pictures of the models beside it, by its name.
pub(in crate::cli) fn is_projector(path: &Path) -> bool {
    stem(path).to_ascii_lowercase().contains("mmproj")
}
