//! Small JSON files in `state_dir`: what a host learned and should not have to learn again.
//!
//! Losing one costs another lesson, so nothing about it is ever an error: what cannot be read is empty, what cannot be
//! written is a warning.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::claim;

/// A file beyond this many bytes is none of ours.
pub(super) const FILE_BYTES_MAX: u64 = 1 << 20;

/// A file of the state folder, written whole and in order.
#[derive(Debug)]
pub(super) struct StateFile {
    path: PathBuf,
    /// Raised when the file's meaning changes; another version is not read.
    version: u32,
    /// The newest order that was written: of two writers the later one wins.
    written: Mutex<u64>,
}

#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    version: u32,
    #[serde(flatten)]
    content: T,
}

impl StateFile {
    /// The file of this name with its content, which is empty if it cannot be read.
    pub(super) fn open<T: DeserializeOwned + Default>(state_dir: &Path, name: &str, version: u32) -> (Self, T) {
        let file = Self { path: state_dir.join(name), version, written: Mutex::new(0) };
        let content = file.read().unwrap_or_else(|why| {
            tracing::warn!("{} is not used, and begins anew: {why}", file.path.display());
            T::default()
        });
        (file, content)
    }

    /// Writes the whole content, unless one of a later order was written before. Blocks for a moment.
    pub(super) fn write(&self, order: u64, content: &impl Serialize) {
        let mut written = self.written.lock();
        if order <= *written {
            return;
        }
        *written = order;
        // Another host has read the folder and goes on with it: what this one still learns would undo what that one does.
        if self.path.parent().is_some_and(claim::is_anothers) {
            return;
        }
        if let Err(why) = self.replace(content) {
            tracing::warn!("{} was not written, and is forgotten with this host: {why}", self.path.display());
        }
    }

    /// Empty if there is no file.
    fn read<T: DeserializeOwned + Default>(&self) -> Result<T, String> {
        // A pipe would be waited for as long as nobody writes into it.
        if self.path.metadata().is_ok_and(|found| !found.is_file()) {
            return Err("it is no regular file".to_owned());
        }
        let file = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(T::default()),
            file => file.map_err(|e| e.to_string())?,
        };
        let mut json = Vec::new();
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut json).map_err(|e| e.to_string())?;
        if json.len() as u64 > FILE_BYTES_MAX {
            return Err(format!("it is larger than {FILE_BYTES_MAX} bytes"));
        }
        let Versioned { version, content } = serde_json::from_slice(&json).map_err(|e| e.to_string())?;
        if version == self.version {
            Ok(content)
        } else {
            Err(format!("it has version {version}, this host writes {}", self.version))
        }
    }

    /// Whole or not at all.
    fn replace(&self, content: &impl Serialize) -> io::Result<()> {
        let json = serde_json::to_vec_pretty(&Versioned { version: self.version, content })?;
        let temporary = self.path.with_extension(format!("{}.tmp", std::process::id()));
        let written = File::create(&temporary).and_then(|mut file| {
            file.write_all(&json)?;
            file.sync_all()?;
            std::fs::rename(&temporary, &self.path)
        });
        if written.is_err() {
            // It may not even have been made.
            let _ = std::fs::remove_file(&temporary);
        }
        written
    }
}
