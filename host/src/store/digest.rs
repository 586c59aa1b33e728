//! SHA-256 of files, remembered beside them so that a large file is hashed once: `NAME.sha256` holds digest, size and mtime.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Bytes read at once.
const BLOCK: usize = 1 << 20;

pub(super) use crate::domain::hex;

/// The path with `suffix` appended to its name.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// The digest that was found when the file, as it is now, was last hashed.
pub(super) fn remembered(path: &Path) -> Option<String> {
    let note = std::fs::read_to_string(beside(path, ".sha256")).ok()?;
    let (digest, stamp) = note.trim_end().split_once(' ')?;
    (stamp == self::stamp(&std::fs::metadata(path).ok()?)).then(|| digest.to_owned())
}

/// Notes the digest of the file as it is now. Failing to is no error: it would be hashed again.
pub(super) fn remember(path: &Path, digest: &str) {
    if let Ok(metadata) = std::fs::metadata(path) {
        let part = beside(path, ".sha256.part");
        let note = format!("{digest} {}\n", stamp(&metadata));
        if std::fs::write(&part, note).and_then(|()| std::fs::rename(&part, beside(path, ".sha256"))).is_err() {
            tracing::debug!(path = %path.display(), "its digest could not be noted");
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

/// Size and time of a file: another content has another stamp.
pub(super) fn stamp(metadata: &Metadata) -> String {
    format!("{} {}.{:09}", metadata.len(), metadata.mtime(), metadata.mtime_nsec())
}
