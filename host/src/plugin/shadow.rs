//! Private copies of plugin files: an operator may overwrite a plugin with a plain `cp` while the old code is still mapped.
//!
//! A copy is named by its SHA-256, made once, and never changed. A plugin that has libraries beside it lies with them in a folder
//! that is named by all of theirs. Whoever uses a copy holds a shared lock on it, and what nobody holds and no plugin is made of
//! is swept away in time. It knows no descriptors.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use rustix::fs::{FlockOperation, StatVfsMountFlags, flock, statvfs};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::companions::{Companions, folded};
use super::copy::{FileCopy, Identity, PluginCopy, copy_hashing, locked, open_source, private_folder, temporary};
use crate::config::Sharing;

/// How long the copy of a plugin that is no longer there is kept: it may come back.
const COPY_AGE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// Bytes of copies beyond which those of absent plugins go before their time.
const COPIES_BYTES_MAX: u64 = 2 << 30;
/// How long a copy that was never finished is kept: someone may still be at it.
const UNFINISHED_AGE_MAX: Duration = Duration::from_secs(24 * 3600);

/// A folder that stands for one above a plugin's own in which a library of it lies.
const FOLDER_ABOVE: &str = "p";
/// Why there is no copy of what somebody was still writing, which is of this kind and no other error is.
pub(super) const CHANGED: io::ErrorKind = io::ErrorKind::ResourceBusy;
/// Its name in `state_dir`.
const FOLDER: &str = "shadow";

/// A file's identity and what it hashed to.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct KnownCopy {
    identity: Identity,
    sha256: String,
    /// The folder in which it lies with others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    folder: Option<String>,
}

/// A file of a plugin: where it lies, and where its copy does below their folder.
struct Part {
    source: PathBuf,
    place: PathBuf,
}

/// The folder of copies and its index.
#[derive(Debug)]
pub(super) struct Shadow {
    dir: PathBuf,
    sharing: Sharing,
    known: BTreeMap<PathBuf, KnownCopy>,
    /// Whether the index knows less than this.
    is_news: bool,
}

impl Shadow {
    /// Opens (or makes) `state/shadow`, for this user alone unless others may have it too.
    pub(super) fn open(state: &Path, sharing: Sharing) -> io::Result<Self> {
        let dir = state.join(FOLDER);
        usable(&dir, mount_flags(&dir))?;
        private_folder(&dir, sharing)?;
        // A lost or damaged index costs one more hashing, nothing else.
        let known = fs::read(dir.join("index.json")).ok().and_then(|json| serde_json::from_slice(&json).ok());
        Ok(Self { dir, sharing, known: known.unwrap_or_default(), is_news: false })
    }

    /// The private copy of a plugin, with the libraries beside it, and the SHA-256 of its file; reads only what changed since last
    /// time.
    pub(super) fn copy(&mut self, source: &Path, companions: &Companions) -> io::Result<(PluginCopy, String)> {
        if companions.found.is_empty() {
            return self.copy_alone(source);
        }
        let above = PathBuf::from_iter(std::iter::repeat_n(FOLDER_ABOVE, companions.folders_above()));
        let name = source.file_name().unwrap_or_default();
        let plugin = Part { source: source.to_owned(), place: above.join(name) };
        let part = |source: &Path, place: &Path| Part { source: source.to_owned(), place: folded(&above.join(place)) };
        let beside = companions.found.iter().map(|companion| part(&companion.source, &companion.place));
        self.copy_together(&std::iter::once(plugin).chain(beside).collect::<Vec<_>>())
    }

    fn copy_alone(&mut self, source: &Path) -> io::Result<(PluginCopy, String)> {
        let (mut file, identity) = open_source(source)?;
        if let Some(known) = self.known.get(source)
            && known.identity == identity
        {
            let path = self.path(&known.sha256);
            if path.symlink_metadata().is_ok_and(|meta| meta.is_file() && meta.len() == identity.size()) {
                // Hashed when it is first opened: a command that only looks opens none.
                let copy = FileCopy::new(path, source, &known.sha256, self.sharing);
                return Ok((PluginCopy::alone(copy), known.sha256.clone()));
            }
        }
        let temporary = temporary(&self.dir);
        let copied = copy_hashing(&mut file, &temporary);
        let unchanged = copied.is_ok() && Identity::of(&file.metadata()?) == identity;
        let sha256 = match copied {
            Ok(sha256) if unchanged => sha256,
            other => {
                let _ = fs::remove_file(&temporary);
                other?;
                return Err(changed());
            }
        };
        let path = self.path(&sha256);
        fs::rename(&temporary, &path)?;
        self.know(source, KnownCopy { identity, sha256: sha256.clone(), folder: None });
        let copy = FileCopy::new(path, source, &sha256, self.sharing).just_hashed();
        Ok((PluginCopy::alone(copy), sha256))
    }

    /// Copies that lie to one another as their files do, so that each finds the others where it looks for them.
    fn copy_together(&mut self, parts: &[Part]) -> io::Result<(PluginCopy, String)> {
        let files = match self.known_together(parts) {
            Some(known) => known,
            None => {
                let temporary = temporary(&self.dir);
                let placed = gather(&temporary, parts).and_then(|files| self.place(&temporary, parts, files));
                placed.inspect_err(|_| drop(fs::remove_dir_all(&temporary)))?
            }
        };
        let digest = digest(parts, &files);
        let folder = self.dir.join(&digest);
        let copy = |(part, (_, sha256)): (&Part, &(Identity, String))| {
            FileCopy::new(folder.join(&part.place), &part.source, sha256, self.sharing)
        };
        let copies = parts.iter().zip(&files).map(copy).collect();
        let copy = PluginCopy::in_folder(folder, digest, copies);
        Ok((copy, files.into_iter().next().map(|(_, sha256)| sha256).unwrap_or_default()))
    }

    /// What copies of these files hashed to, if all are there and none of the files has changed.
    fn known_together(&self, parts: &[Part]) -> Option<Vec<(Identity, String)>> {
        let known = |part: &Part| {
            let identity = Identity::of(&fs::metadata(&part.source).ok()?);
            let known = self.known.get(&part.source).filter(|known| known.identity == identity)?;
            Some((identity, known.sha256.clone()))
        };
        let files = parts.iter().map(known).collect::<Option<Vec<_>>>()?;
        is_whole(&self.dir.join(digest(parts, &files)), parts, &files).then_some(files)
    }

    /// Gives a folder of copies the name of what is in it.
    fn place(
        &mut self,
        made: &Path,
        parts: &[Part],
        files: Vec<(Identity, String)>,
    ) -> io::Result<Vec<(Identity, String)>> {
        let name = digest(parts, &files);
        let folder = self.dir.join(&name);
        if is_whole(&folder, parts, &files) {
            // Others may be using it. It is hashed when it is opened.
            remove(made)?;
        } else {
            if folder.symlink_metadata().is_ok() {
                let aside = temporary(&self.dir);
                fs::rename(&folder, &aside)?;
                remove(&aside)?;
            }
            fs::rename(made, &folder)?;
        }
        for (part, (identity, sha256)) in parts.iter().zip(&files) {
            let (identity, sha256) = (identity.clone(), sha256.clone());
            self.know(&part.source, KnownCopy { identity, sha256, folder: Some(name.clone()) });
        }
        Ok(files)
    }

    fn know(&mut self, source: &Path, copy: KnownCopy) {
        self.known.insert(source.to_owned(), copy);
        self.is_news = true;
    }

    /// Forgets files that are gone and writes the index.
    pub(super) fn save(&mut self) -> io::Result<()> {
        let before = self.known.len();
        self.known.retain(|source, _| source.exists());
        if !self.is_news && self.known.len() == before {
            return Ok(());
        }
        let temporary = temporary(&self.dir);
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

    /// Removes what [`superfluous`] names, unless someone holds it; how many files that were.
    fn sweep(&self, now: SystemTime) -> io::Result<usize> {
        let entries = fs::read_dir(&self.dir)?.flatten();
        let entries = entries.filter_map(|entry| {
            let meta = entry.metadata().ok()?;
            let age = now.duration_since(meta.modified().ok()?).unwrap_or_default();
            let name = entry.file_name().into_string().ok()?;
            let wanted = self.known.values().any(|known| match &known.folder {
                None => name == format!("{}.so", known.sha256),
                Some(folder) => name == *folder,
            });
            let bytes = if meta.is_dir() { bytes_below(&entry.path()) } else { meta.len() };
            Some(FolderEntry { name, bytes, age, wanted })
        });
        let removed = superfluous(entries.collect()).into_iter().filter(|name| self.remove(name));
        Ok(removed.count())
    }

    fn remove(&self, name: &str) -> bool {
        let path = self.dir.join(name);
        let removed = File::open(&path).is_ok_and(|file| {
            // Refused where the file system has no locks either: then nobody can know, and it stays.
            flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() && remove(&path).is_ok()
        });
        if removed {
            tracing::info!("removed {}, the copy of a plugin that is no longer there", path.display());
        }
        removed
    }
}

/// Removes copies of plugins that are no longer there: after seven days, or sooner where all copies take more than 2 GiB.
/// One that a live process uses stays.
pub fn sweep(state: &Path, sharing: Sharing) {
    let dir = state.join(FOLDER);
    if !dir.is_dir() {
        return;
    }
    let swept = Shadow::open(state, sharing).and_then(|mut shadow| {
        shadow.known.retain(|source, _| source.exists());
        shadow.sweep(SystemTime::now())
    });
    if let Err(error) = swept {
        tracing::warn!("old plugin copies in {} were not swept: {error}", dir.display());
    }
}

/// Holds a copy for the rest of this process's life, so that no other one sweeps it.
pub(super) fn hold(copy: &Path) {
    static HELD: Mutex<BTreeMap<PathBuf, File>> = Mutex::new(BTreeMap::new());
    let mut held = HELD.lock();
    if !held.contains_key(copy)
        && let Some(file) = locked(copy)
    {
        held.insert(copy.to_owned(), file);
    }
}

pub(super) fn changed() -> io::Error {
    io::Error::new(CHANGED, "it changed while it was being copied; it is looked at again in a moment")
}

/// Copies these files below a folder, hashing on the way: what each was, and its SHA-256. All of them are of one moment.
fn gather(folder: &Path, parts: &[Part]) -> io::Result<Vec<(Identity, String)>> {
    let mut copied: Vec<(Identity, String)> = Vec::new();
    for part in parts {
        let (mut file, identity) = open_source(&part.source)?;
        let copy = folder.join(&part.place);
        DirBuilder::new().recursive(true).mode(0o700).create(copy.parent().unwrap_or(folder))?;
        // One file by two names stays one, or it would be loaded twice.
        match copied.iter().position(|(known, _)| *known == identity) {
            Some(same) => {
                fs::hard_link(folder.join(&parts[same].place), &copy)?;
                copied.push(copied[same].clone());
            }
            None => copied.push((identity, copy_hashing(&mut file, &copy)?)),
        }
    }
    let unchanged = |(part, (identity, _)): (&Part, &(Identity, String))| {
        fs::metadata(&part.source).is_ok_and(|now| Identity::of(&now) == *identity)
    };
    match parts.iter().zip(&copied).all(unchanged) {
        true => Ok(copied),
        false => Err(changed()),
    }
}

/// Whether all of them are there, by their sizes.
fn is_whole(folder: &Path, parts: &[Part], files: &[(Identity, String)]) -> bool {
    let is_there = |(part, (identity, _)): (&Part, &(Identity, String))| {
        let copy = folder.join(&part.place).symlink_metadata();
        copy.is_ok_and(|copy| copy.is_file() && copy.len() == identity.size())
    };
    parts.iter().zip(files).all(is_there)
}

/// Of files and of how they lie to one another.
fn digest(parts: &[Part], files: &[(Identity, String)]) -> String {
    let mut hash = Sha256::new();
    for (part, (_, sha256)) in parts.iter().zip(files) {
        let name = part.place.as_os_str().as_encoded_bytes();
        hash.update(name.len().to_le_bytes());
        hash.update(name);
        hash.update(sha256);
    }
    crate::domain::hex(&hash.finalize())
}

fn remove(path: &Path) -> io::Result<()> {
    match path.symlink_metadata()?.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    }
}

/// Of the files below a folder of copies, which holds few.
fn bytes_below(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let bytes = entries.filter_map(|entry| {
        let meta = entry.metadata().ok()?;
        Some(if meta.is_dir() { bytes_below(&entry.path()) } else { meta.len() })
    });
    bytes.sum()
}

/// Whether it is named as a copy is: by a digest, and that of one file with `.so`.
fn is_copy(name: &str) -> bool {
    let digest = name.strip_suffix(".so").unwrap_or(name);
    name.len() > digest.len() || (digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// A file of the folder, or a folder of one plugin's.
struct FolderEntry {
    name: String,
    bytes: u64,
    age: Duration,
    /// A plugin that is there is made of it.
    wanted: bool,
}

/// What may go: copies too old or, oldest first, too many, and what was never finished.
fn superfluous(mut entries: Vec<FolderEntry>) -> Vec<String> {
    entries.sort_by_key(|entry| std::cmp::Reverse(entry.age));
    let mut total: u64 = entries.iter().filter(|entry| is_copy(&entry.name)).map(|entry| entry.bytes).sum();
    let goes = entries.into_iter().filter(|entry| {
        if !is_copy(&entry.name) {
            return entry.name.ends_with(".tmp") && entry.age > UNFINISHED_AGE_MAX;
        }
        let goes = !entry.wanted && (entry.age > COPY_AGE_MAX || total > COPIES_BYTES_MAX);
        total -= if goes { entry.bytes } else { 0 };
        goes
    });
    goes.map(|entry| entry.name).collect()
}

/// Where the folder is, or is to be made.
fn mount_flags(dir: &Path) -> StatVfsMountFlags {
    let there = dir.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/"));
    statvfs(there).map_or(StatVfsMountFlags::empty(), |mount| mount.f_flag)
}

/// Refuses a mount where a copy could be written but not opened as a library, which only a worker would find out.
fn usable(dir: &Path, mount: StatVfsMountFlags) -> io::Result<()> {
    if !mount.contains(StatVfsMountFlags::NOEXEC) {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "{} lies on a file system that is mounted noexec, where no plugin can be opened; set `state_dir:` in models.yaml \
         (or AIHOST_STATE_DIR) to a folder on another one",
        dir.display()
    )))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    #[test]
    fn an_unchanged_file_is_hashed_once_and_a_changed_one_again() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("a.so");
        fs::write(&source, b"abc").unwrap();
        let mut shadow = Shadow::open(dir.path(), Sharing::Refused).unwrap();
        let (copy, sha256) = shadow.copy(&source, &Companions::default()).unwrap();
        let copy = copy.path().to_owned();
        assert_eq!(sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(fs::read(&copy).unwrap(), b"abc");
        assert_eq!(dir.path().join("shadow").metadata().unwrap().permissions().mode() & 0o777, 0o700);
        shadow.save().unwrap();

        // Same identity: the index alone answers. A copy is read-only, so what stands there shows who wrote it.
        let mut again = Shadow::open(dir.path(), Sharing::Refused).unwrap();
        let inode = copy.metadata().unwrap().ino();
        let (same, digest) = again.copy(&source, &Companions::default()).unwrap();
        assert_eq!((same.path(), &digest), (copy.as_path(), &sha256));
        assert_eq!(copy.metadata().unwrap().ino(), inode, "it was copied again");

        fs::write(&source, b"abcd").unwrap();
        assert_ne!(again.copy(&source, &Companions::default()).unwrap().1, sha256);
        assert_eq!(fs::read(&copy).unwrap(), b"abc", "the old copy stays");
    }

    #[test]
    fn what_no_plugin_is_made_of_goes_when_it_is_old_or_too_much() {
        const DAY: Duration = Duration::from_secs(24 * 3600);
        let entry = |name: &str, gib: u64, days: u32, wanted| FolderEntry {
            name: name.to_owned(),
            bytes: gib << 30,
            age: days * DAY,
            wanted,
        };
        for (entries, goes) in [
            (
                vec![entry("old.so", 0, 8, false), entry("wanted.so", 1, 99, true), entry("new.so", 0, 6, false)],
                vec!["old.so"],
            ),
            // Three GiB: the older one makes room.
            (vec![entry("a.so", 1, 1, false), entry("b.so", 1, 2, false), entry("c.so", 1, 9, true)], vec!["b.so"]),
            (vec![entry("a.so", 1, 1, false), entry("c.so", 1, 9, true)], vec![]),
            (
                vec![entry(".7.tmp", 0, 2, false), entry(".8.tmp", 9, 0, false), entry("index.json", 0, 99, false)],
                vec![".7.tmp"],
            ),
        ] {
            assert_eq!(superfluous(entries), goes);
        }
    }

    #[test]
    fn a_copy_that_someone_holds_is_not_swept() {
        let dir = tempfile::tempdir().unwrap();
        let mut shadow = Shadow::open(dir.path(), Sharing::Refused).unwrap();
        let mut copy = |name: &str| {
            let source = dir.path().join(name);
            fs::write(&source, name).unwrap();
            shadow.copy(&source, &Companions::default()).unwrap().0
        };
        let (there, held) = (copy("there"), copy("held"));
        // As a host that is gone left it: no plugin, no holder.
        let left = dir.path().join("shadow/0000.so");
        fs::write(&left, b"left").unwrap();
        shadow.known.retain(|source, _| source.ends_with("there"));
        let later = SystemTime::now() + COPY_AGE_MAX + Duration::from_secs(60);
        assert_eq!(shadow.sweep(SystemTime::now()).unwrap(), 0, "it is too young");
        assert_eq!(shadow.sweep(later).unwrap(), 1);
        let is_there = |copy: &PluginCopy| copy.path().exists();
        assert_eq!((is_there(&there), is_there(&held), left.exists()), (true, true, false));
    }

    #[test]
    fn a_mount_without_execution_is_refused_by_name() {
        let dir = Path::new("/data/state/shadow");
        assert!(usable(dir, StatVfsMountFlags::NOSUID | StatVfsMountFlags::RDONLY).is_ok());
        let error = usable(dir, StatVfsMountFlags::NOSUID | StatVfsMountFlags::NOEXEC).unwrap_err().to_string();
        for part in ["/data/state/shadow", "noexec", "state_dir:"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_damaged_index_is_no_obstacle() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("a.so");
        fs::write(&source, b"abc").unwrap();
        fs::create_dir(dir.path().join("shadow")).unwrap();
        fs::write(dir.path().join("shadow/index.json"), b"{").unwrap();
        assert!(Shadow::open(dir.path(), Sharing::Refused).unwrap().copy(&source, &Companions::default()).is_ok());
    }
}
