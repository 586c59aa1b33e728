//! Where the files of a model are, for the plugin that is to read them, and what is done before it may: they are copied to a
//! fast disk where that is wanted, and hashed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::{ModelConfig, Paths};
use crate::domain::Failure;
use crate::plugin::PluginFile;
use crate::store::{self, Cache, CacheLease, Digests, Taken, Verification, Verifier};
use crate::worker::StartSpec;

/// The files of a model by role. Cheap: no file is read.
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

/// Makes the files of models ready.
#[derive(Clone, Debug)]
pub(super) struct WeightFiles {
    verifier: Arc<Verifier>,
    cache: Option<Arc<Cache>>,
}

impl WeightFiles {
    pub(super) fn new(paths: &Paths) -> Self {
        Self { verifier: Arc::new(Verifier::new(paths)), cache: Cache::of(paths).map(Arc::new) }
    }

    /// The copies that models are opened from, where there are such.
    pub(super) fn cache(&self) -> Option<Arc<Cache>> {
        self.cache.clone()
    }

    /// Copies and hashes what has to be, and has an instance open the copies, which `lease` holds.
    pub(super) async fn make_ready(
        self,
        entry: &ModelConfig,
        mut spec: StartSpec,
        check: Arc<Verification>,
        lease: CacheLease,
    ) -> Result<StartSpec, Failure> {
        let files = std::mem::take(&mut spec.load.files);
        let Taken { files, copied_from, hashed } = match self.cache {
            Some(cache) => cache.take(entry, files, Arc::clone(&check), lease).await?,
            None => Taken { files, ..Taken::default() },
        };
        self.verifier.verify(entry, &hashed, check).await?;
        (spec.load.files, spec.copied_from) = (files, copied_from);
        Ok(spec)
    }
}
