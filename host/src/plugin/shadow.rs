//! Private copies of plugin files: an operator may overwrite a plugin with a plain `cp` while the old code is still mapped.
//!
//! A copy is named by its SHA-256, made once, and never changed. It knows no descriptors.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Bytes per read while copying.
const COPY_CHUNK_BYTES: usize = 1 << 20;

/// What tells a file apart without reading it. Any change of content changes one of these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Identity {
    fn of(meta: &fs::Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// A file's identity and what it hashed to.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Known {
    identity: Identity,
    sha256: String,
}

/// The folder of copies and its index.
#[derive(Debug)]
pub(super) struct Shadow {
    dir: PathBuf,
    known: BTreeMap<PathBuf, Known>,
}

impl Shadow {
    /// Opens (or makes) `state/shadow`, for this user alone.
    pub(super) fn open(state: &Path) -> io::Result<Self> {
        let dir = state.join("shadow");
        DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))?;
        // A lost or damaged index costs one more hashing, nothing else.
        let known = fs::read(dir.join("index.json")).ok().and_then(|json| serde_json::from_slice(&json).ok());
        Ok(Self { dir, known: known.unwrap_or_default() })
    }

    /// The private copy of `source` and its SHA-256; hashes only what changed since last time.
    pub(super) fn copy(&mut self, source: &Path) -> io::Result<(PathBuf, String)> {
        let mut file = File::open(source)?;
        let identity = Identity::of(&file.metadata()?);
        if let Some(known) = self.known.get(source)
            && known.identity == identity
        {
            let path = self.path(&known.sha256);
            if path.metadata().is_ok_and(|meta| meta.len() == identity.size) {
                return Ok((path, known.sha256.clone()));
            }
        }
        let temporary = self.dir.join(format!(".{}.tmp", std::process::id()));
        let copied = copy_hashing(&mut file, &temporary);
        let unchanged = copied.is_ok() && Identity::of(&file.metadata()?) == identity;
        let sha256 = match copied {
            Ok(sha256) if unchanged => sha256,
            other => {
                let _ = fs::remove_file(&temporary);
                other?;
                return Err(io::Error::other(
                    "it changed while it was being copied; it is read again at the next scan",
                ));
            }
        };
        let path = self.path(&sha256);
        fs::rename(&temporary, &path)?;
        self.known.insert(source.to_owned(), Known { identity, sha256: sha256.clone() });
        Ok((path, sha256))
    }

    /// Forgets files that are gone and writes the index.
    pub(super) fn save(&mut self) -> io::Result<()> {
        self.known.retain(|source, _| source.exists());
        let temporary = self.dir.join(format!(".index.{}.tmp", std::process::id()));
        let json = serde_json::to_vec_pretty(&self.known)?;
        let written = fs::write(&temporary, json).and_then(|()| fs::rename(&temporary, self.dir.join("index.json")));
        if written.is_err() {
            // On a full disk the part that was written would only take more of it.
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    fn path(&self, sha256: &str) -> PathBuf {
        self.dir.join(format!("{sha256}.so"))
    }
}

fn copy_hashing(from: &mut File, to: &Path) -> io::Result<String> {
    let mut out = OpenOptions::new().write(true).create(true).truncate(true).mode(0o500).open(to)?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; COPY_CHUNK_BYTES]);
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 {
            out.sync_all()?;
            return Ok(super::hex(&hash.finalize()));
        }
        hash.update(&buffer[..read]);
        out.write_all(&buffer[..read])?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unchanged_file_is_hashed_once_and_a_changed_one_again() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("a.so");
        fs::write(&source, b"abc").unwrap();
        let mut shadow = Shadow::open(dir.path()).unwrap();
        let (copy, sha256) = shadow.copy(&source).unwrap();
        assert_eq!(sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(fs::read(&copy).unwrap(), b"abc");
        assert_eq!(dir.path().join("shadow").metadata().unwrap().permissions().mode() & 0o777, 0o700);
        shadow.save().unwrap();

        // Same identity: the index alone answers. A copy is read-only, so what stands there shows who wrote it.
        let mut again = Shadow::open(dir.path()).unwrap();
        let inode = copy.metadata().unwrap().ino();
        assert_eq!(again.copy(&source).unwrap(), (copy.clone(), sha256.clone()));
        assert_eq!(copy.metadata().unwrap().ino(), inode, "it was copied again");

        fs::write(&source, b"abcd").unwrap();
        assert_ne!(again.copy(&source).unwrap().1, sha256);
        assert_eq!(fs::read(&copy).unwrap(), b"abc", "the old copy stays");
    }

    #[test]
    fn a_damaged_index_is_no_obstacle() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("a.so");
        fs::write(&source, b"abc").unwrap();
        fs::create_dir(dir.path().join("shadow")).unwrap();
        fs::write(dir.path().join("shadow/index.json"), b"{").unwrap();
        assert!(Shadow::open(dir.path()).unwrap().copy(&source).is_ok());
    }
}
