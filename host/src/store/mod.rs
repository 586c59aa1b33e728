//! Model files: where they lie, whether they are there, fetching them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::config::ModelConfig;
use crate::domain::Failure;

/// The files of a model by role, or a [`Failure`] of kind `NotPulled` that names the missing file and the command that fetches it.
pub fn locate(_model: &ModelConfig) -> Result<BTreeMap<String, PathBuf>, Failure> {
    unimplemented!()
}
