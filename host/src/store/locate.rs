//! Whether a model's files are there. Cheap: no file is read.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::digest::{self, Digests};
use crate::config::{FileConfig, ModelConfig};
use crate::domain::{Failure, FailureKind};

/// Whether a file is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It is, with this many bytes.
    Present(u64),
    /// A folder, which some plugins read as a whole, is where models.yaml names a place on this machine.
    Folder,
    /// It is not.
    Absent,
    /// It is, but what was found when it was last hashed is not what models.yaml asks for.
    WrongDigest(String),
    /// Something else is in its place, or it cannot be looked at.
    Unusable(String),
}

/// What is wrong with a folder where a file is wanted.
const IS_A_FOLDER: &str = "it is a folder, not a file";

/// Whether this file is there.
pub fn presence(file: &FileConfig, digests: &Digests) -> Presence {
    let metadata = match std::fs::metadata(&file.path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Presence::Absent,
        Err(error) => return Presence::Unusable(error.to_string()),
    };
    if metadata.is_dir() {
        return if file.sources.is_empty() { Presence::Folder } else { Presence::Unusable(IS_A_FOLDER.to_owned()) };
    }
    if !metadata.is_file() || metadata.len() == 0 {
        return Presence::Unusable("it is empty, or not a file".to_owned());
    }
    let wrong =
        file.sha256.as_ref().and_then(|wanted| digests.remembered_of(&metadata).filter(|found| found != wanted));
    wrong.map_or(Presence::Present(metadata.len()), Presence::WrongDigest)
}

/// What tells a file's content from another's without reading it: its digest where models.yaml says it, else its path,
/// size and time. Not for trust, only to notice a change.
pub fn fingerprint(file: &FileConfig) -> String {
    let path = file.path.display();
    match (&file.sha256, std::fs::metadata(&file.path)) {
        (Some(digest), _) => format!("sha256 {digest}"),
        (None, Ok(metadata)) => format!("{path} {}", digest::stamp(&metadata)),
        (None, Err(_)) => format!("{path} absent"),
    }
}

/// Refuses folders, for a plugin that reads none.
///
/// # Errors
/// A [`Failure`] of kind `NotUsable` that names the first.
pub fn refuse_folders(model: &ModelConfig) -> Result<(), Failure> {
    let folder = model.files.values().find(|file| file.path.is_dir());
    folder.map_or(Ok(()), |file| {
        let (id, path) = (&model.id, file.path.display());
        let message =
            format!("model `{id}`: {path} is a folder, not a file; name the file in it as `path:` in models.yaml");
        Err(Failure::new(FailureKind::NotUsable, message))
    })
}

/// The files of a model by role.
///
/// # Errors
/// A [`Failure`] of kind `NotPulled` that names the missing file and the command that fetches it, or of kind `NotUsable` for a file
/// that nothing can fetch.
pub fn locate(model: &ModelConfig, digests: &Digests) -> Result<BTreeMap<String, PathBuf>, Failure> {
    let found = model.files.iter().map(|(role, file)| {
        let path = file.path.display();
        let wrong = match presence(file, digests) {
            Presence::Present(_) | Presence::Folder => return Ok((role.clone(), file.path.clone())),
            Presence::Absent => format!("its file {path} is not there"),
            Presence::WrongDigest(found) => {
                format!("its file {path} has the digest {found}, not the one in models.yaml")
            }
            Presence::Unusable(why) => format!("its file {path} is not usable: {why}"),
        };
        let id = &model.id;
        Err(match file.sources.is_empty() {
            true => Failure::new(
                FailureKind::NotUsable,
                format!("model `{id}`: {wrong}; put it there, or correct `path:` in models.yaml"),
            ),
            false => Failure::new(
                FailureKind::NotPulled,
                format!("model `{id}` is not pulled: {wrong}; run `aihost models pull {id}`"),
            ),
        })
    });
    found.collect()
}
