//! The private copy of a plugin, and of the libraries that it has beside it, while a host runs: each file is hashed once, and what
//! is opened from then on is the very file that was hashed, as long as nothing of it has changed. One that was changed or removed
//! is made anew.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::config::Sharing;

/// Bytes per read while copying and hashing.
const CHUNK_BYTES: usize = 1 << 20;

/// What tells a file apart without reading it. Any change of content changes one of these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Identity {
    /// Of what the system says of a file.
    pub(super) fn of(meta: &Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }
}

/// What must be found where a copy lies for it to be opened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyIdentity {
    pub(super) plugin: Identity,
    /// The file that it is a copy of: the one that people know.
    pub(super) source: PathBuf,
    /// The folder of a plugin that has libraries beside it: all of them lie below it, as they lay to one another.
    pub(super) folder: Option<PathBuf>,
    /// These libraries.
    pub(super) beside: Vec<LibraryIdentity>,
}

/// The same of a library beside a plugin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LibraryIdentity {
    /// Where its copy lies.
    pub(super) path: PathBuf,
    /// The file that it is a copy of.
    pub(super) source: PathBuf,
    pub(super) identity: Identity,
}

/// The private copy of a plugin, with the libraries beside it that it needs.
#[derive(Debug, Default)]
pub struct PluginCopy {
    plugin: FileCopy,
    folder: Option<PathBuf>,
    beside: Vec<FileCopy>,
    digest: String,
    /// Nobody sweeps what is locked.
    _lock: Option<File>,
}

impl PluginCopy {
    /// A plugin that needs nothing beside it.
    pub(super) fn alone(plugin: FileCopy) -> Self {
        let (digest, lock) = (plugin.sha256.clone(), locked(&plugin.path));
        Self { plugin, folder: None, beside: Vec::new(), digest, _lock: lock }
    }

    /// A plugin and its libraries, in a folder of their own that is named by what is in it.
    pub(super) fn in_folder(folder: PathBuf, digest: String, mut files: Vec<FileCopy>) -> Self {
        let plugin = files.remove(0);
        let lock = locked(&folder);
        Self { plugin, folder: Some(folder), beside: files, digest, _lock: lock }
    }

    /// Nothing but a digest.
    #[cfg(test)]
    pub(crate) fn of_digest(digest: &str) -> Self {
        Self { digest: digest.to_owned(), ..Self::default() }
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.plugin.path
    }

    /// What has to be readable for it to be opened: its file, or its folder.
    pub fn readable(&self) -> &Path {
        self.folder.as_deref().unwrap_or(&self.plugin.path)
    }

    /// Tells it, and the libraries beside it, from any other: the SHA-256 of its file, where it needs no libraries.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Where the libraries lie of which copies lie beside it.
    pub fn libraries(&self) -> impl Iterator<Item = &Path> {
        self.beside.iter().map(|library| library.source.as_path())
    }

    /// What must be found where it lies for it to be opened. The first time the copy is hashed; after that nothing is read as
    /// long as it is what it was. Blocks.
    ///
    /// # Errors
    /// It is not what was registered, and there is nothing to make it of: a sentence that says what to do.
    pub fn ready(&self) -> Result<CopyIdentity, String> {
        let plugin = self.plugin.ready()?;
        let beside = self.beside.iter().map(|library| {
            let (path, source) = (library.path.clone(), library.source.clone());
            Ok(LibraryIdentity { path, source, identity: library.ready()? })
        });
        Ok(CopyIdentity {
            plugin,
            source: self.plugin.source.clone(),
            folder: self.folder.clone(),
            beside: beside.collect::<Result<_, String>>()?,
        })
    }
}

/// Keeps others from sweeping a copy, until it is closed. The kernel lets go with the process.
pub(super) fn locked(path: &Path) -> Option<File> {
    let locked = File::open(path)
        .and_then(|file| flock(&file, FlockOperation::NonBlockingLockShared).map(|()| file).map_err(io::Error::from));
    locked.inspect_err(|error| tracing::debug!("{} could not be locked: {error}", path.display())).ok()
}

/// The private copy of one file.
#[derive(Debug, Default)]
pub(super) struct FileCopy {
    path: PathBuf,
    source: PathBuf,
    sha256: String,
    sharing: Sharing,
    hashed: Mutex<Option<Hashed>>,
}

/// A copy that was hashed in this process, and is held open: its number is not given to another file.
#[derive(Debug)]
pub(super) struct Hashed {
    file: File,
    identity: Identity,
}

impl FileCopy {
    /// The copy of `source` at `path`, whose content should have this digest.
    pub(super) fn new(path: PathBuf, source: &Path, sha256: &str, sharing: Sharing) -> Self {
        Self { path, source: source.into(), sha256: sha256.into(), sharing, hashed: Mutex::default() }
    }

    /// The same, which this process has just written and hashed on the way.
    pub(super) fn just_hashed(self) -> Self {
        let hashed = Hashed::unread(&self.path, self.sharing).ok();
        Self { hashed: Mutex::new(hashed), ..self }
    }

    fn ready(&self) -> Result<Identity, String> {
        let mut hashed = self.hashed.lock();
        if let Some(known) = &*hashed
            && known.is_at(&self.path)
        {
            return Ok(known.identity.clone());
        }
        let fresh = match Hashed::open(&self.path, &self.sha256, self.sharing) {
            Ok(fresh) => fresh,
            Err(why) => {
                tracing::warn!(
                    "the private copy {} of {} {why}; it is made anew",
                    self.path.display(),
                    self.source.display()
                );
                self.make_anew(hashed.as_ref()).map_err(|error| self.lost(&error))?
            }
        };
        let identity = fresh.identity.clone();
        *hashed = Some(fresh);
        Ok(identity)
    }

    /// Of what was held open, else of the file that the operator put there.
    fn make_anew(&self, held: Option<&Hashed>) -> io::Result<Hashed> {
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        private_folder(folder, self.sharing)?;
        let held = held.map(|held| {
            let mut file = held.file.try_clone()?;
            file.rewind().map(|()| file)
        });
        let sources = held.into_iter().chain(std::iter::once_with(|| open_source(&self.source).map(|(file, _)| file)));
        let mut last = io::Error::other("there is nothing to make it of");
        for source in sources {
            let temporary = temporary(folder);
            let made = source.and_then(|mut source| copy_hashing(&mut source, &temporary)).and_then(|sha256| {
                if sha256 != self.sha256 {
                    return Err(io::Error::other(format!("{} is another file by now", self.source.display())));
                }
                fs::rename(&temporary, &self.path)?;
                Hashed::unread(&self.path, self.sharing)
            });
            match made {
                Ok(made) => return Ok(made),
                Err(error) => {
                    let _ = fs::remove_file(&temporary);
                    last = error;
                }
            }
        }
        Err(last)
    }

    fn lost(&self, error: &io::Error) -> String {
        format!(
            "the private copy of {} is gone or was changed, and cannot be made anew: {error}; `aihost models load` uses the file that is there now",
            self.source.display()
        )
    }
}

impl Hashed {
    /// Hashes what lies there; a sentence's end if it is not what it should be.
    fn open(path: &Path, sha256: &str, sharing: Sharing) -> Result<Self, String> {
        let mut hashed = Self::unread(path, sharing).map_err(|error| format!("cannot be opened ({error})"))?;
        let found = hash(&mut hashed.file).map_err(|error| format!("cannot be read ({error})"))?;
        let still = hashed.file.metadata().is_ok_and(|meta| Identity::of(&meta) == hashed.identity);
        match found == sha256 && still {
            true => Ok(hashed),
            false => Err("was changed".to_owned()),
        }
    }

    /// What this process has just written and hashed on the way.
    fn unread(path: &Path, sharing: Sharing) -> io::Result<Self> {
        let file = open_plain(path)?;
        let meta = file.metadata()?;
        // Whoever owns it may change it at any time.
        let is_own = meta.uid() == geteuid().as_raw() && meta.mode() & 0o022 == 0;
        if !meta.is_file() || !is_own && sharing == Sharing::Refused {
            return Err(io::Error::other("it is not this user's alone"));
        }
        Ok(Self { identity: Identity::of(&meta), file })
    }

    /// Whether it is what lies there, as it was hashed.
    fn is_at(&self, path: &Path) -> bool {
        fs::symlink_metadata(path).is_ok_and(|meta| Identity::of(&meta) == self.identity)
    }
}

/// Opens a file, but no link to one.
pub(super) fn open_plain(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(OFlags::NOFOLLOW.bits().cast_signed()).open(path)
}

/// Opens a file that somebody put there, or that a link leads to, and says what it is. Whatever else is in its place, a pipe
/// say, is not waited for.
pub(super) fn open_source(path: &Path) -> io::Result<(File, Identity)> {
    let file = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    Ok((file, Identity::of(&found)))
}

/// Makes a folder for this user alone, or refuses what is in its place.
pub(super) fn private_folder(folder: &Path, sharing: Sharing) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let found = fs::symlink_metadata(folder)?;
    if !found.is_dir() {
        return Err(io::Error::other(format!("{} is a link, not a folder; remove it", folder.display())));
    }
    if sharing == Sharing::Allowed {
        return Ok(());
    }
    if found.uid() != geteuid().as_raw() {
        let (shown, owner, user) = (folder.display(), found.uid(), geteuid().as_raw());
        return Err(io::Error::other(format!(
            "{shown} belongs to user {owner}, who could put other code into it; remove it, or `chown -R {user} {shown}`"
        )));
    }
    if found.mode() & 0o077 != 0 {
        fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    }
    Ok(())
}

/// A name of a file in the making, which no other process uses, in whatever container.
pub(super) fn temporary(folder: &Path) -> PathBuf {
    folder.join(format!(".{}.{:016x}.tmp", std::process::id(), rand::random::<u64>()))
}

/// Copies a file, to one that may be read and run by this user; its SHA-256.
pub(super) fn copy_hashing(from: &mut File, to: &Path) -> io::Result<String> {
    let mut out = OpenOptions::new().write(true).create_new(true).mode(0o500).open(to)?;
    let sha256 = each_chunk(from, |chunk| out.write_all(chunk))?;
    out.sync_all()?;
    Ok(sha256)
}

fn hash(file: &mut File) -> io::Result<String> {
    each_chunk(file, |_| Ok(()))
}

fn each_chunk(file: &mut File, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<String> {
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; CHUNK_BYTES]);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(crate::domain::hex(&hash.finalize())),
            Ok(read) => {
                hash.update(&buffer[..read]);
                take(&buffer[..read])?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn digest(bytes: &[u8]) -> String {
        crate::domain::hex(&Sha256::digest(bytes))
    }

    /// A copy that a host before this one made, of a file that is still there.
    fn made(folder: &Path) -> FileCopy {
        let (path, source) = (folder.join("shadow/x.so"), folder.join("x.so"));
        private_folder(path.parent().unwrap(), Sharing::Refused).unwrap();
        fs::write(&source, b"code").unwrap();
        copy_hashing(&mut File::open(&source).unwrap(), &path).unwrap();
        FileCopy::new(path, &source, &digest(b"code"), Sharing::Refused)
    }

    /// Changes what lies there, as root may, and keeps its size. The kernel's clock has moved on since it was made.
    fn alter(path: &Path) {
        let changed = |path: &Path| fs::metadata(path).map(|meta| (meta.ctime(), meta.ctime_nsec())).unwrap();
        let now = path.with_extension("now");
        loop {
            fs::write(&now, b"").unwrap();
            if changed(&now) != changed(path) {
                break;
            }
        }
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(path, b"evil").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o500)).unwrap();
    }

    #[test]
    fn a_copy_is_hashed_once_and_what_is_opened_is_what_was_hashed() {
        let folder = tempfile::tempdir().unwrap();
        let copy = made(folder.path());
        let first = copy.ready().unwrap();
        let held = copy.hashed.lock().as_ref().unwrap().file.as_raw_fd();
        for _ in 0..3 {
            assert_eq!(copy.ready().unwrap(), first);
            assert_eq!(copy.hashed.lock().as_ref().unwrap().file.as_raw_fd(), held, "it was opened and hashed again");
        }
    }

    #[test]
    fn a_copy_that_was_changed_or_removed_is_made_anew() {
        for before in [true, false] {
            for harm in [
                alter as fn(&Path),
                |path| fs::remove_file(path).unwrap(),
                |path| {
                    fs::remove_dir_all(path.parent().unwrap()).unwrap();
                },
                |path| {
                    let other = path.with_extension("other");
                    fs::write(&other, b"evil").unwrap();
                    fs::remove_file(path).unwrap();
                    symlink(other, path).unwrap();
                },
            ] {
                let folder = tempfile::tempdir().unwrap();
                let copy = made(folder.path());
                let was = before.then(|| copy.ready().unwrap());
                harm(&copy.path);
                let now = copy.ready().unwrap();
                assert_ne!(Some(&now), was.as_ref());
                assert_eq!(fs::read(&copy.path).unwrap(), b"code");
                assert_eq!(now, Identity::of(&fs::symlink_metadata(&copy.path).unwrap()));
                assert_eq!(copy.ready().unwrap(), now);
            }
        }
    }

    #[test]
    fn what_was_held_open_outlives_both_files() {
        let folder = tempfile::tempdir().unwrap();
        let copy = made(folder.path());
        copy.ready().unwrap();
        fs::write(&copy.source, b"newer").unwrap();
        fs::remove_file(&copy.path).unwrap();
        copy.ready().unwrap();
        assert_eq!(fs::read(&copy.path).unwrap(), b"code");
        // Where neither is what was registered, nothing is opened.
        alter(&copy.path);
        let error = copy.ready().unwrap_err();
        assert!(error.contains("another file by now") && error.contains("aihost models load"), "{error}");
    }

    #[test]
    fn a_folder_that_is_not_ours_alone_is_refused_or_mended() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("own")).unwrap();
        private_folder(&at("own"), Sharing::Refused).unwrap();
        assert_eq!(fs::metadata(at("own")).unwrap().mode() & 0o777, 0o700);
        fs::create_dir(at("target")).unwrap();
        symlink(at("target"), at("link")).unwrap();
        let told = private_folder(&at("link"), Sharing::Refused).unwrap_err().to_string();
        assert!(told.contains("is a link"), "{told}");
        assert_ne!(fs::metadata(at("target")).unwrap().mode() & 0o777, 0o700, "the target of a link was touched");
        if geteuid().is_root() {
            std::os::unix::fs::chown(at("own"), Some(4242), None).unwrap();
            let told = private_folder(&at("own"), Sharing::Refused).unwrap_err().to_string();
            assert!(told.contains("user 4242") && told.contains("chown -R 0"), "{told}");
        }
    }
}
