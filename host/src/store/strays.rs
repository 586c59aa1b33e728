//! Files that leave the store: those of a model that is not wanted any more, and those that no model names. What is being fetched
//! stays, and so does everything that the store did not put there itself.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::digest::{beside, on_disk};
use super::lock::Lock;

/// What fetching leaves beside a file, the longest first.
const BESIDE: [&str; 10] = [
    ".part.from.new",
    ".part.parts.part",
    ".wheel.from.new",
    ".part.parts",
    ".part.from",
    ".wheel.from",
    ".part",
    ".wheel",
    ".link",
    ".zip",
];
/// What is taken while a file is fetched.
const LOCK: &str = ".lock";
/// Folders below `models_dir` that the store makes by the kind of a source; and how those by digest begin.
const BY_SOURCE: [&str; 4] = ["hf", "pip", "url", "parts"];
const BY_DIGEST: &str = "sha256-";

/// A file that no model names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stray {
    /// Where it lies.
    pub path: PathBuf,
    /// Bytes that its disk has again without it; none of a link.
    pub bytes: u64,
}

/// Removes a file of the store, with what fetching left beside it: the bytes that this gives back. A link goes, and what it leads
/// to stays.
///
/// # Errors
/// Another process fetches it, or it cannot be removed; a sentence.
pub fn remove_file(models: &Path, path: &Path) -> Result<u64, String> {
    if fs::symlink_metadata(path).is_err() && !BESIDE.iter().any(|suffix| beside(path, suffix).exists()) {
        return Ok(0);
    }
    let lock = beside(path, LOCK);
    let failed = |path: &Path, error: io::Error| format!("{} cannot be removed: {error}", path.display());
    let Some(_held) = Lock::try_take(&lock).map_err(|error| failed(&lock, error))? else {
        return Err(format!("{} is being fetched by another process; wait for it, or stop it first", path.display()));
    };
    let mut freed = 0;
    for one in [path.to_owned()].into_iter().chain(BESIDE.map(|suffix| beside(path, suffix))) {
        let Ok(found) = fs::symlink_metadata(&one) else { continue };
        fs::remove_file(&one).map_err(|error| failed(&one, error))?;
        freed += bytes_of(&found);
    }
    let _ = fs::remove_file(&lock);
    remove_empty_folders(models, path);
    Ok(freed)
}

/// Removes a file that was found to be astray, unless it has begun to be fetched since.
///
/// # Errors
/// As of [`remove_file`].
pub fn remove_stray(models: &Path, stray: &Stray) -> Result<u64, String> {
    let base = base(&stray.path);
    if is_fetched(&base) {
        return Ok(0);
    }
    match fs::remove_file(&stray.path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(format!("{} cannot be removed: {error}", stray.path.display())),
    }
    remove_empty_folders(models, &stray.path);
    Ok(stray.bytes)
}

/// The files in the store's own folders that are none of these, nor on the way to one of them.
pub fn strays(models: &Path, wanted: &BTreeSet<PathBuf>) -> Vec<Stray> {
    let mut found = Vec::new();
    for entry in fs::read_dir(models).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if BY_SOURCE.contains(&name.as_ref()) || name.starts_with(BY_DIGEST) {
            walk(&entry.path(), wanted, &mut found);
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// A link to a folder is somebody's own, and not followed.
fn walk(folder: &Path, wanted: &BTreeSet<PathBuf>, found: &mut Vec<Stray>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if wanted.contains(&path) {
            continue;
        }
        if metadata.is_dir() {
            walk(&path, wanted, found);
            continue;
        }
        let is_link_to_folder = metadata.is_symlink() && path.is_dir();
        let base = base(&path);
        if !is_link_to_folder && !wanted.contains(&base) && !is_fetched(&base) {
            found.push(Stray { bytes: bytes_of(&metadata), path });
        }
    }
}

/// The file that something lies beside.
fn base(path: &Path) -> PathBuf {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let suffix = BESIDE.iter().chain([&LOCK]).find_map(|suffix| name.strip_suffix(suffix));
    suffix.map_or_else(|| path.to_owned(), |stem| path.with_file_name(stem))
}

/// Whether another process has a file's lock. Where there is no lock, nobody has.
fn is_fetched(path: &Path) -> bool {
    let lock = beside(path, LOCK);
    lock.exists() && matches!(Lock::try_take(&lock), Ok(None))
}

fn bytes_of(found: &fs::Metadata) -> u64 {
    if found.is_file() { on_disk(found) } else { 0 }
}

fn remove_empty_folders(models: &Path, path: &Path) {
    let above = path.ancestors().skip(1).take_while(|folder| *folder != models && folder.starts_with(models));
    for folder in above {
        // One that is not empty stays, and so do those above it.
        if fs::remove_dir(folder).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lay(root: &Path, path: &str, bytes: usize) -> PathBuf {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, vec![7; bytes]).unwrap();
        path
    }

    #[test]
    fn strays_are_what_the_store_put_there_and_nobody_names() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let kept = lay(root, "hf/o/r/main/kept.gguf", 10);
        for beside_kept in ["hf/o/r/main/kept.gguf.lock", "hf/o/r/main/kept.gguf.part"] {
            lay(root, beside_kept, 3);
        }
        let own = lay(root, "own/by-hand.gguf", 10);
        lay(root, "by-hand.gguf", 10);
        let whole = lay(root, "sha256-0123456789abcdef/a.gguf", 100);
        let part = lay(root, "url/h/b.gguf.part", 50);
        lay(root, "url/h/c.gguf.part", 50);
        let lock = lay(root, "url/h/c.gguf.lock", 0);
        let elsewhere = lay(root, "own/cache/blob", 1000);
        let link = root.join("pip/p==1/x.gguf");
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &link).unwrap();
        let held = Lock::try_take(&lock).unwrap().expect("free");

        let wanted = BTreeSet::from([kept.clone()]);
        let found = strays(root, &wanted);
        let paths: Vec<&Path> = found.iter().map(|stray| stray.path.as_path()).collect();
        assert_eq!(paths, [link.as_path(), &whole, &part], "{found:?}");
        assert_eq!(found.iter().map(|stray| stray.bytes).sum::<u64>(), 150, "a link takes nothing");
        for stray in &found {
            remove_stray(root, stray).unwrap();
        }
        assert!(elsewhere.exists() && own.exists() && kept.exists() && root.join("url/h/c.gguf.part").exists());
        assert!(!root.join("pip").exists() && !whole.parent().unwrap().exists(), "empty folders go too");
        drop(held);
        assert_eq!(strays(root, &wanted).len(), 2, "once nobody fetches it, what is left of it is astray");
    }

    #[test]
    fn a_file_goes_with_all_that_lies_beside_it_unless_it_is_being_fetched() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let file = lay(root, "hf/o/r/main/x.gguf", 10);
        lay(root, "hf/o/r/main/x.gguf.part", 5);
        let lock = lay(root, "hf/o/r/main/x.gguf.lock", 0);
        let held = Lock::try_take(&lock).unwrap().expect("free");
        let told = remove_file(root, &file).unwrap_err();
        assert!(told.contains("is being fetched") && file.exists(), "{told}");
        drop(held);
        assert_eq!(remove_file(root, &file), Ok(15));
        assert!(!root.join("hf").exists() && root.exists());
        assert_eq!(remove_file(root, &file), Ok(0), "it is gone already");
    }
}
