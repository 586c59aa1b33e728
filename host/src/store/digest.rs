//! SHA-256 of files, remembered in the state folder so that a large file is hashed once: never beside the file, where whoever
//! can change the one can change the other.

use std::fs::{DirBuilder, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Bytes read at once.
const BLOCK: usize = 1 << 20;
/// Its name in `state_dir`.
const FOLDER: &str = "digests";
/// Files that are remembered; beyond that the one whose note is oldest is forgotten.
const NOTES_MAX: usize = 4096;

/// Bytes of a block, by which a file tells what it takes of its disk.
const DISK_BLOCK_BYTES: u64 = 512;

pub(super) use crate::domain::hex;

/// The path with `suffix` appended to its name.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// What files were found to hash to: a small note for each, which holds for a file as it was.
#[derive(Clone, Debug)]
pub struct Digests {
    folder: PathBuf,
}

impl Digests {
    /// Those of a state folder, which need not be there yet.
    pub fn of(state: &Path) -> Self {
        Self { folder: state.join(FOLDER) }
    }

    /// The digest that was found when the file, as it is now, was last hashed.
    pub fn remembered(&self, path: &Path) -> Option<String> {
        self.remembered_of(&std::fs::metadata(path).ok()?)
    }

    pub(super) fn remembered_of(&self, found: &Metadata) -> Option<String> {
        let note = std::fs::read_to_string(self.note(found)).ok()?;
        let (digest, known) = note.trim_end().split_once(' ')?;
        (known == exact(found)).then(|| digest.to_owned())
    }

    /// Notes the digest of a file that was like this before and after it was hashed. Failing to is no error: it would be
    /// hashed again.
    pub(super) fn remember(&self, found: &Metadata, digest: &str) {
        let note = self.note(found);
        let part = beside(&note, &format!(".{}.part", std::process::id()));
        let written = DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder)
            .and_then(|()| std::fs::write(&part, format!("{digest} {}\n", exact(found))))
            .and_then(|()| std::fs::rename(&part, &note));
        match written {
            Ok(()) => self.forget_old(),
            Err(error) => {
                // It may not even have been made.
                let _ = std::fs::remove_file(&part);
                tracing::debug!(note = %note.display(), %error, "a digest could not be noted");
            }
        }
    }

    /// The same of the file that lies here now.
    pub(super) fn remember_at(&self, path: &Path, digest: &str) {
        if let Ok(found) = std::fs::metadata(path) {
            self.remember(&found, digest);
        }
    }

    fn note(&self, found: &Metadata) -> PathBuf {
        self.folder.join(format!("{:x}-{:x}", found.dev(), found.ino()))
    }

    fn forget_old(&self) {
        let Ok(entries) = std::fs::read_dir(&self.folder) else { return };
        let mut notes: Vec<_> = entries
            .flatten()
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
            .collect();
        if notes.len() > NOTES_MAX {
            notes.sort();
            for (_, path) in &notes[..notes.len() - NOTES_MAX] {
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

/// Feeds what is left of `reader` to `hasher`, telling `progress` the bytes read so far.
pub(super) fn feed(mut reader: impl Read, hasher: &mut Sha256, mut progress: impl FnMut(u64)) -> io::Result<u64> {
    let mut block = vec![0; BLOCK];
    let mut total = 0;
    loop {
        match reader.read(&mut block) {
            Ok(0) => return Ok(total),
            Ok(count) => {
                hasher.update(&block[..count]);
                total += count as u64;
                progress(total);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The digest of a file.
pub(super) fn of_file(path: &Path, progress: impl FnMut(u64)) -> io::Result<String> {
    let mut hasher = Sha256::new();
    feed(File::open(path)?, &mut hasher, progress)?;
    Ok(hex(&hasher.finalize()))
}

/// Bytes that a file takes of its disk: one that grows at several places has holes.
pub(super) fn on_disk(found: &Metadata) -> u64 {
    found.len().min(found.blocks().saturating_mul(DISK_BLOCK_BYTES))
}

/// Size and time of a file: another content has another stamp.
pub(super) fn stamp(metadata: &Metadata) -> String {
    format!("{} {}.{:09}", metadata.len(), metadata.mtime(), metadata.mtime_nsec())
}

/// The same with the time of its last change of any sort, which nobody but the kernel sets.
pub(super) fn exact(metadata: &Metadata) -> String {
    format!("{} {}.{:09}", stamp(metadata), metadata.ctime(), metadata.ctime_nsec())
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn a_note_holds_for_a_file_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let (state, file) = (folder.path().join("state"), folder.path().join("weights"));
        let digests = Digests::of(&state);
        std::fs::write(&file, "weights").unwrap();
        assert_eq!(digests.remembered(&file), None);
        digests.remember_at(&file, "abc");
        assert_eq!(digests.remembered(&file).as_deref(), Some("abc"));
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert_eq!(digests.remembered(&link).as_deref(), Some("abc"), "the same file by another name");
        let only: Vec<_> = std::fs::read_dir(folder.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(only.len(), 3, "something lies beside the file: {only:?}");

        // Another content of the same size, with the old time put back, when the kernel's clock has moved on.
        let changed = |path: &Path| std::fs::metadata(path).map(|found| (found.ctime(), found.ctime_nsec())).unwrap();
        let now = folder.path().join("now");
        loop {
            std::fs::write(&now, "").unwrap();
            if changed(&now) != changed(&file) {
                break;
            }
        }
        let modified = std::fs::metadata(&file).unwrap().modified().unwrap();
        std::fs::write(&file, "WEIGHTS").unwrap();
        File::options().write(true).open(&file).unwrap().set_modified(modified).unwrap();
        assert_eq!(digests.remembered(&file), None);
        digests.remember_at(&file, "def");
        File::options().write(true).open(&file).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(digests.remembered(&file), None);
    }
}
