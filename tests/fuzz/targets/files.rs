//! Inputs as files, for readers that open a path: one folder for each thread that reads.

use std::path::{Path, PathBuf};

/// A folder that is gone with this value.
pub(super) struct Folder(tempfile::TempDir);

impl Folder {
    /// A new one.
    pub(super) fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder for inputs"))
    }

    /// Puts a file into it.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path().join(name);
        std::fs::write(&path, bytes).expect("an input is written");
        path
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }
}
