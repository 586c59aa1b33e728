//! Registered plugins: each file copied aside once, hashed on the way.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aihost_plugin_api::abi::Manifest;

/// A registered plugin file.
#[derive(Clone, Debug)]
pub struct PluginFile {
    /// From the descriptor.
    pub manifest: Manifest,
    /// Where the operator put it.
    pub source: PathBuf,
    /// The private copy that is opened.
    pub shadow: PathBuf,
    /// SHA-256 of the file, lower-case hex.
    pub sha256: String,
}

/// All plugins of a folder.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    /// Usable ones.
    pub plugins: Vec<Arc<PluginFile>>,
    /// Files that are not usable, and why in one sentence.
    pub rejected: Vec<Rejected>,
}

/// A `.so` file that is not a usable plugin.
#[derive(Clone, Debug)]
pub struct Rejected {
    /// The file.
    pub file: PathBuf,
    /// One sentence: wanted, found, what to do.
    pub reason: String,
}

/// Why no plugin fits an entry.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct RegistryError(pub String);

impl Registry {
    /// Describes every `.so` in `plugins` and copies usable ones to `state/shadow`.
    pub fn scan(_plugins: &Path, _state: &Path) -> Result<Self, RegistryError> {
        unimplemented!()
    }

    /// The newest plugin of this id that satisfies the range; else a sentence that names what was found and what to do.
    pub fn find(&self, _id: &str, _version: Option<&semver::VersionReq>) -> Result<Arc<PluginFile>, RegistryError> {
        unimplemented!()
    }
}
