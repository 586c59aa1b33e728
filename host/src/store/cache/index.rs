//! What is known of the copies of one folder, noted beside them: which file each is a copy of, as that was, and when it was
//! last used. A copy without a note is none.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::super::digest::{exact, hex, stamp};
use super::lease::{CopyId, Uses};

/// Its name in the folder of an entry.
const FILE: &str = "copies.json";
/// Raised when its meaning changes; what another version noted is copied anew.
const VERSION: u32 = 1;
/// Bytes of a note.
const BYTES_MAX: u64 = 4 << 20;
/// Beginnings of the names of copies that are not whole.
const PART: &str = "part-";
/// Hexadecimal digits of an entry's name.
const NAME_CHARS: usize = 16;

/// The copies of a folder.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Index {
    version: u32,
    /// What the folder is called, under which plugins see it.
    pub(super) name: String,
    /// The folder that it shows.
    original: PathBuf,
    /// By their paths in the folder.
    pub(super) copies: BTreeMap<String, CopyNote>,
}

/// One copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CopyNote {
    /// The original as it was.
    pub(super) original: String,
    pub(super) bytes: u64,
    /// The copy as it was made.
    inode: u64,
    stamp: String,
    /// What its bytes hashed to on their way, where somebody wanted to know.
    pub(super) sha256: Option<String>,
    /// When it was last used, in milliseconds of the wall clock.
    pub(super) used_ms: u64,
}

impl CopyNote {
    /// A copy that was just made.
    pub(super) fn new(original: String, copy: &Metadata, sha256: Option<String>, used_ms: u64) -> Self {
        Self { original, bytes: copy.len(), inode: copy.ino(), stamp: stamp(copy), sha256, used_ms }
    }

    pub(super) fn inode(&self) -> u64 {
        self.inode
    }

    /// Whether it lies there as it was made.
    fn is_intact(&self, path: &Path) -> bool {
        let found = path.symlink_metadata();
        found.is_ok_and(|found| found.is_file() && found.ino() == self.inode && stamp(&found) == self.stamp)
    }
}

/// What tells a file from what it was, or from another in its place.
pub(super) fn identity(found: &Metadata) -> String {
    format!("{:x} {}", found.ino(), exact(found))
}

impl Index {
    pub(super) fn new(original: &Path) -> Self {
        let name = original.file_name().unwrap_or("root".as_ref()).to_string_lossy().into_owned();
        Self { version: VERSION, name, original: original.to_owned(), copies: BTreeMap::new() }
    }

    pub(super) fn original(&self) -> &Path {
        &self.original
    }

    /// Takes over when copies were last used. Whether that is news.
    pub(super) fn used(&mut self, uses: &Uses, entry: &str) -> bool {
        let mut is_news = false;
        for (name, note) in &mut self.copies {
            let last = uses.last_ms(&CopyId::new(entry, name));
            is_news |= last > note.used_ms;
            note.used_ms = note.used_ms.max(last);
        }
        is_news
    }

    /// Where plugins see it, in the folder of the entry.
    pub(super) fn view(&self, entry: &Path) -> PathBuf {
        entry.join(&self.name)
    }

    /// The note of a copy of this name, if it is whole.
    pub(super) fn intact(&self, entry: &Path, name: &str) -> Option<&CopyNote> {
        let view = self.view(entry);
        self.copies.get(name).filter(|note| note.is_intact(&view.join(name)))
    }

    /// Writes it, whole or not at all.
    pub(super) fn write(&self, entry: &Path) -> io::Result<()> {
        // Somebody may have removed all of it.
        DirBuilder::new().recursive(true).mode(0o700).create(entry)?;
        let fresh = entry.join(format!("{FILE}.fresh"));
        let mut file = File::create(&fresh)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.sync_all()?;
        fs::rename(&fresh, entry.join(FILE))?;
        File::open(entry)?.sync_all()
    }

    fn read(entry: &Path) -> Option<Self> {
        let mut json = Vec::new();
        File::open(entry.join(FILE)).ok()?.take(BYTES_MAX).read_to_end(&mut json).ok()?;
        // Of what cannot be read nothing counts.
        let index: Self = serde_json::from_slice(&json).unwrap_or_default();
        let is_name = |name: &str| !name.is_empty() && !name.contains('/') && !matches!(name, "." | "..");
        Some(if index.version == VERSION && is_name(&index.name) { index } else { Self::default() })
    }
}

/// Where the part of a copy lies that is not whole.
pub(super) fn part(entry: &Path, name: &str) -> PathBuf {
    entry.join(format!("{PART}{}", name.replace('/', "%")))
}

/// Every entry of the cache as it is: what is half or nobody's is removed. What lies there and is no entry stays.
pub(super) fn scan(folder: &Path) -> io::Result<BTreeMap<String, Index>> {
    let mut entries = BTreeMap::new();
    for found in fs::read_dir(folder)? {
        let found = found?;
        let (name, path) = (found.file_name().to_string_lossy().into_owned(), found.path());
        let Some(mut index) = is_entry(&path).then(|| Index::read(&path)).flatten() else { continue };
        let whole: Vec<String> =
            index.copies.keys().filter(|copy| index.intact(&path, copy).is_some()).cloned().collect();
        index.copies.retain(|copy, _| whole.contains(copy));
        if index.copies.is_empty() {
            fs::remove_dir_all(&path)?;
            continue;
        }
        for inside in fs::read_dir(&path)?.flatten() {
            if inside.file_name().to_string_lossy().starts_with(PART) {
                fs::remove_file(inside.path())?;
            }
        }
        sweep(&index.view(&path), "", &index.copies)?;
        entries.insert(name, index);
    }
    Ok(entries)
}

/// What a folder of models is called in the cache.
pub(super) fn entry_name(folder: &Path) -> String {
    let mut name = hex(&Sha256::digest(folder.as_os_str().as_encoded_bytes()));
    name.truncate(NAME_CHARS);
    name
}

/// Whether a folder has copies of a cache.
pub(super) fn is_entry(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    let is_named = name.len() == NAME_CHARS && name.iter().all(u8::is_ascii_hexdigit);
    is_named && path.symlink_metadata().is_ok_and(|found| found.is_dir()) && path.join(FILE).is_file()
}

/// Removes files that are no copies.
fn sweep(view: &Path, below: &str, copies: &BTreeMap<String, CopyNote>) -> io::Result<()> {
    for found in fs::read_dir(view)? {
        let found = found?;
        let (kind, inside) = (found.file_type()?, format!("{below}{}", found.file_name().to_string_lossy()));
        if kind.is_dir() {
            sweep(&found.path(), &format!("{inside}/"), copies)?;
        } else if kind.is_file() && !copies.contains_key(&inside) {
            fs::remove_file(found.path())?;
        }
    }
    Ok(())
}
