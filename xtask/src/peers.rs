//! Where programs and models of others lie, that nothing here builds or fetches: a folder outside the repository.

use std::path::{Path, PathBuf};

/// Names the folder.
const VARIABLE: &str = "AIHOST_PEERS";
/// Its name in the user's cache, where nothing is named.
const FOLDER: &str = "aihost-peers";

/// A program of others: in `bin` of that folder, else as a shell finds it.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let own = folder().map(|folder| folder.join("bin").join(name));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = own.into_iter().chain(std::env::split_paths(&path).map(|folder| folder.join(name)));
    places.find(|place| place.is_file())
}

/// A file or folder of that folder.
pub(crate) fn file(name: &str) -> Option<PathBuf> {
    folder().map(|folder| folder.join(name)).filter(|file| file.exists())
}

/// What is missing, and where it would be found.
pub(crate) fn missing(what: &str) -> String {
    let folder = folder().unwrap_or_else(|| Path::new("~/.cache").join(FOLDER));
    format!("there is no {what} in {} ({VARIABLE} names another folder)", folder.display())
}

fn folder() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = || variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
    variable(VARIABLE).or_else(|| Some(cache()?.join(FOLDER)))
}
