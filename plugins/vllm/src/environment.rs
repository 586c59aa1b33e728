//! Environments of Python packages. Each lies in a folder that is named by a hash of what was resolved, so that models which
//! need the same share one; it is made where it stays, beside a marker that is there until it is whole.
//!
//! ```text
//! venvs/HASH/             an environment; its `.used` is as young as its last use, and locked while it is in use
//! venvs/HASH.incomplete   there while that is made or removed
//! needs/KEY               the hash of the environment that fits what an entry says
//! wheels/HASH/            the wheel of aihost-service
//! lock                    held by whoever makes or removes
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use aihost_plugin_api::{Error, ErrorKind, Result};
use rustix::fs::statvfs;
use sha2::{Digest, Sha256};

use super::installer::{self, Installer, Python};
use super::options::{Options, Program};
use super::wheel;

/// Environments that are kept, the youngest by their use.
const KEPT: usize = 8;
/// Digits of a hash in a name: interpreters' paths stand in first lines, which must be short.
const DIGITS: usize = 16;
/// Most bytes of a file of requirements.
const FILE_BYTES: u64 = 1 << 20;
/// Bytes that even the smallest environment takes and more.
const ROOM_BYTES: u64 = 64 << 20;
/// How deep files of requirements may name one another.
const DEPTH_MAX: usize = 8;
/// When an environment was used last; locked by who uses it.
const USED: &str = ".used";
/// What is installed in it, a line each.
const LOCK_FILE: &str = "lock.txt";

/// What an entry needs.
#[derive(Debug)]
pub(crate) struct Needs {
    python: String,
    /// Lines of requirements, as they are typed.
    lines: Vec<String>,
    /// A file of such.
    file: Option<PathBuf>,
    /// That file's text, with the texts of files that it names.
    text: String,
    /// Where relative paths begin.
    folder: Option<PathBuf>,
    /// Whether `aihost-service` is among them.
    is_service: bool,
}

/// An environment that is whole. It is not removed while this is there.
#[derive(Debug)]
pub(crate) struct Environment {
    folder: PathBuf,
    _used: File,
}

impl Environment {
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }
}

/// All environments of this plugin.
#[derive(Debug)]
pub(crate) struct Environments {
    folder: PathBuf,
}

impl Needs {
    /// Of an entry; nothing if it needs no environment.
    pub(crate) fn of(options: &Options) -> Result<Option<Self>> {
        let is_service = matches!(options.program(), Ok(Program::Script(_)));
        if !is_service && options.requirements.is_empty() && options.requirements_file.is_none() {
            return Ok(None);
        }
        let file = options.requirements_file.clone();
        let text = file.as_deref().map(|file| text_of(file, 0)).transpose()?.unwrap_or_default();
        let beside = file.as_deref().and_then(Path::parent);
        let folder = beside.or_else(|| options.folder()).map(Path::to_path_buf);
        let lines = options.requirements.clone();
        Ok(Some(Self { python: options.python.clone(), lines, file, text, folder, is_service }))
    }

    /// What is hashed: the same for entries that need the same.
    fn stated(&self) -> Result<String> {
        let mut lines: Vec<&str> =
            self.lines.iter().map(String::as_str).chain(self.text.lines()).map(str::trim).collect();
        lines.retain(|line| !line.is_empty() && !line.starts_with('#'));
        lines.sort_unstable();
        lines.dedup();
        // What is said of other files is said of those from this folder on.
        let is_relative = lines.iter().any(|line| line.starts_with(['.', '-']));
        let folder = self.folder.as_deref().filter(|_| is_relative).map(|folder| folder.display().to_string());
        let wheel = if self.is_service { hash(&wheel::bytes()?) } else { String::new() };
        Ok(format!("{wheel}\n{}\n{}", folder.unwrap_or_default(), lines.join("\n")))
    }

    fn key(&self) -> Result<String> {
        Ok(hash(format!("{}\n{}", self.python, self.stated()?).as_bytes()))
    }
}

/// The text of a file of requirements and of those that it names.
fn text_of(file: &Path, depth: usize) -> Result<String> {
    let wrong = |why: String| Error::new(ErrorKind::MissingFile, format!("the requirements {}: {why}", file.display()));
    if depth > DEPTH_MAX {
        return Err(wrong("such files name one another in a circle".to_owned()));
    }
    let size = fs::metadata(file).map_err(|e| wrong(format!("cannot be read: {e}")))?.len();
    if size > FILE_BYTES {
        return Err(wrong(format!("the file has {size} bytes, of at most {FILE_BYTES}")));
    }
    let text = fs::read_to_string(file).map_err(|e| wrong(format!("cannot be read: {e}")))?;
    let folder = file.parent().unwrap_or(Path::new("/"));
    let named = text.lines().filter_map(|line| {
        let (option, rest) = line.trim().split_once([' ', '='])?;
        let names = matches!(option, "-r" | "--requirement" | "-c" | "--constraint");
        names.then(|| folder.join(rest.trim()))
    });
    let others = named.map(|other| text_of(&other, depth + 1)).collect::<Result<Vec<_>>>()?;
    Ok(std::iter::once(text.clone()).chain(others).collect::<Vec<_>>().join("\n"))
}

impl Environments {
    /// Those in a folder, which is made when there is something to put there.
    pub(crate) fn within(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// The environment of an entry.
    ///
    /// # Errors
    /// It is not made: what makes it.
    pub(crate) fn find(&self, needs: &Needs) -> Result<Environment> {
        self.known(needs)?.ok_or_else(|| {
            let why =
                "the environment that it needs is not there, or not whole; `aihost models pull` of this model makes it";
            Error::new(ErrorKind::MissingFile, why)
        })
    }

    /// Makes the environment of an entry, unless there is one. `environment` says where packages are fetched from.
    pub(crate) fn make(&self, needs: &Needs, environment: &BTreeMap<String, String>) -> Result<()> {
        let _held = self.lock().map_err(|e| self.unwritable(&e))?;
        if let Some(made) = self.known(needs)? {
            tracing::info!("its environment is there: {}", made.folder.display());
            return Ok(());
        }
        let temporary = self.folder.join("tmp");
        // What a killed pull left of it is of no use.
        let cleared = remove(&temporary).and_then(|()| fs::create_dir_all(&temporary));
        cleared.map_err(|e| self.unwritable(&e))?;
        let installer = Installer { environment, folder: needs.folder.as_deref(), temporary: &temporary };
        let made = self.install(needs, &installer).map_err(|error| self.for_want_of_room(error, self.room()));
        // It is cleared the next time as well.
        let _ = remove(&temporary);
        let hash = made?;
        let (folder, key) = (self.folder.join("needs"), needs.key()?);
        let noted = fs::create_dir_all(&folder).and_then(|()| replace(&folder.join(key), &hash));
        noted.map_err(|e| self.unwritable(&e))?;
        self.sweep();
        Ok(())
    }

    /// Resolves, and installs unless the same is there. The environment's hash.
    fn install(&self, needs: &Needs, installer: &Installer<'_>) -> Result<String> {
        let python = installer.python(&needs.python)?;
        let wanted = self.write_requirements(needs, installer.temporary)?;
        let uv = installer::in_path("uv");
        let (lock, hash) = match &uv {
            Some(uv) => {
                let lock = installer.temporary.join(LOCK_FILE);
                let arguments =
                    ["pip", "compile", "--no-header", "--no-annotate", "--quiet", "--python", &python.program];
                let files = ["--output-file", text(&lock)?, text(&wanted)?];
                installer.run(uv, &[&arguments[..], &files].concat()).map_err(|why| uninstallable(&python, &why))?;
                let resolved = fs::read(&lock).map_err(|e| self.unwritable(&e))?;
                (lock, hash(&[python.identity.as_bytes(), &resolved].concat()))
            }
            None => (wanted, hash(format!("{}\n{}", python.identity, needs.stated()?).as_bytes())),
        };
        let folder = self.environment(&hash);
        if self.is_whole(&hash) {
            tracing::info!("an environment of the same packages is there: {}", folder.display());
            return Ok(hash);
        }
        tracing::info!("making an environment with Python {}: {}", python.version(), folder.display());
        self.begin(&hash).map_err(|e| self.unwritable(&e))?;
        match &uv {
            Some(uv) => with_uv(installer, uv, &python, &folder, &lock)?,
            None => with_pip(installer, &python, &folder, &lock)?,
        }
        let ended = File::create(folder.join(USED)).and_then(|_| fs::remove_file(self.marker(&hash)));
        ended.map_err(|e| self.unwritable(&e))?;
        tracing::info!("the environment is made");
        Ok(hash)
    }

    /// One file with all that is wanted.
    fn write_requirements(&self, needs: &Needs, temporary: &Path) -> Result<PathBuf> {
        let mut lines = needs.lines.clone();
        if let Some(file) = &needs.file {
            lines.push(format!("-r {}", file.display()));
        }
        if needs.is_service {
            let bytes = wheel::bytes()?;
            let folder = self.folder.join("wheels").join(hash(&bytes));
            let wheel = folder.join(wheel::FILE_NAME);
            fs::create_dir_all(&folder).and_then(|()| replace(&wheel, &bytes)).map_err(|e| self.unwritable(&e))?;
            lines.push(wheel.display().to_string());
        }
        let file = temporary.join("requirements.txt");
        fs::write(&file, lines.join("\n") + "\n").map_err(|e| self.unwritable(&e))?;
        Ok(file)
    }

    /// An environment that is made and fits.
    fn known(&self, needs: &Needs) -> Result<Option<Environment>> {
        let Ok(hash) = fs::read_to_string(self.folder.join("needs").join(needs.key()?)) else { return Ok(None) };
        Ok(Some(hash).filter(|hash| is_hash(hash) && self.is_whole(hash)).and_then(|hash| self.open(&hash).ok()))
    }

    fn open(&self, hash: &str) -> io::Result<Environment> {
        let folder = self.environment(hash);
        let used = File::options().write(true).open(folder.join(USED))?;
        used.try_lock_shared().map_err(|_| io::ErrorKind::WouldBlock)?;
        // As good as its age is known.
        let _ = used.set_modified(SystemTime::now());
        Ok(Environment { folder, _used: used })
    }

    fn is_whole(&self, hash: &str) -> bool {
        // Its interpreter is a link to the system's, which may have gone.
        self.environment(hash).join("bin/python").is_file() && !self.marker(hash).exists()
    }

    /// What lies there is not whole from now on, and then gone.
    fn begin(&self, hash: &str) -> io::Result<()> {
        fs::create_dir_all(self.folder.join("venvs"))?;
        File::create(self.marker(hash))?;
        remove(&self.environment(hash))
    }

    /// Removes the environments that were used longest ago, those in use apart.
    fn sweep(&self) {
        let entries = fs::read_dir(self.folder.join("venvs")).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| is_hash(name));
        let mut aged: Vec<(SystemTime, String)> = names.map(|name| (self.used(&name), name)).collect();
        aged.sort();
        let surplus = aged.len().saturating_sub(KEPT);
        for (_, hash) in aged.into_iter().take(surplus) {
            let free = File::options().write(true).open(self.environment(&hash).join(USED));
            if free.as_ref().is_ok_and(|used| used.try_lock().is_err()) {
                continue;
            }
            match self.begin(&hash).and_then(|()| fs::remove_file(self.marker(&hash))) {
                Ok(()) => tracing::info!("an environment that was used longest ago is removed: {hash}"),
                Err(e) => tracing::warn!("an environment that was used longest ago stays: {hash}: {e}"),
            }
        }
    }

    fn used(&self, hash: &str) -> SystemTime {
        let modified = fs::metadata(self.environment(hash).join(USED)).and_then(|metadata| metadata.modified());
        modified.unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// Waits for whoever makes or removes environments now.
    fn lock(&self) -> io::Result<File> {
        fs::create_dir_all(&self.folder)?;
        let lock = File::create(self.folder.join("lock"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                tracing::info!("another pull makes an environment; this one waits for it");
                lock.lock()?;
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        Ok(lock)
    }

    fn environment(&self, hash: &str) -> PathBuf {
        self.folder.join("venvs").join(hash)
    }

    fn marker(&self, hash: &str) -> PathBuf {
        self.folder.join("venvs").join(format!("{hash}.incomplete"))
    }

    /// Bytes that are free where environments are kept.
    fn room(&self) -> Option<u64> {
        let disk = statvfs(&self.folder).ok()?;
        Some(disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    /// An installer's failure on a disk that is as good as full, whose own words are of what it came to and not of why.
    fn for_want_of_room(&self, error: Error, free: Option<u64>) -> Error {
        let Some(free) = free.filter(|free| *free < ROOM_BYTES) else { return error };
        let (folder, free) = (self.folder.display(), free >> 20);
        let why = format!(
            "{folder} has {free} MiB free, too little for an environment: free some, or give another `state_dir:`; {error}"
        );
        Error::new(error.kind(), why)
    }

    fn unwritable(&self, error: &io::Error) -> Error {
        let why =
            format!("environments cannot be kept in {}: {error}; see its disk and who owns it", self.folder.display());
        Error::new(ErrorKind::Unsupported, why)
    }
}

fn with_uv(installer: &Installer<'_>, uv: &Path, python: &Python, folder: &Path, lock: &Path) -> Result<()> {
    let (shown, interpreter) = (text(folder)?, folder.join("bin/python"));
    let failed = |why: String| uninstallable(python, &why);
    installer.run(uv, &["venv", "--python", &python.program, shown]).map_err(failed)?;
    installer.run(uv, &["pip", "install", "--python", text(&interpreter)?, "-r", text(lock)?]).map_err(failed)?;
    fs::copy(lock, folder.join(LOCK_FILE)).map(drop).map_err(|e| uninstallable(python, &e.to_string()))
}

fn with_pip(installer: &Installer<'_>, python: &Python, folder: &Path, wanted: &Path) -> Result<()> {
    let interpreter = folder.join("bin/python");
    installer.run(Path::new(&python.program), &["-m", "venv", text(folder)?]).map_err(|why| {
        let advice = "install the system's package for Python environments (python3-venv), or name another `python:`";
        Error::new(ErrorKind::Unsupported, format!("`{}` makes no environment: {why}; {advice}", python.program))
    })?;
    let install = ["-m", "pip", "install", "--no-input", "--progress-bar", "off", "-r", text(wanted)?];
    installer.run(&interpreter, &install).map_err(|why| uninstallable(python, &why))?;
    let frozen = installer.output(&interpreter, &["-m", "pip", "freeze"]).map_err(|why| uninstallable(python, &why))?;
    fs::write(folder.join(LOCK_FILE), frozen).map_err(|e| uninstallable(python, &e.to_string()))
}

fn uninstallable(python: &Python, why: &str) -> Error {
    let version = python.version();
    let (why, advice) =
        (why.trim_end_matches('.'), "correct its requirements, or see that the package index can be reached");
    Error::new(
        ErrorKind::Unsupported,
        format!("what it needs cannot be installed with Python {version}: {why}; {advice}"),
    )
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| Error::new(ErrorKind::Unsupported, format!("{} is not UTF-8", path.display())))
}

fn hash(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().take(DIGITS / 2).map(|byte| format!("{byte:02x}")).collect()
}

fn is_hash(name: &str) -> bool {
    name.len() == DIGITS && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Removes a folder, which may not be there.
fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Writes a file that is there whole or as it was.
fn replace(file: &Path, bytes: impl AsRef<[u8]>) -> io::Result<()> {
    let beside = file.with_extension("part");
    fs::write(&beside, bytes)?;
    fs::rename(beside, file)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;

    fn needs(options: Value) -> Needs {
        Needs::of(&serde_json::from_value(options).unwrap()).unwrap().unwrap()
    }

    #[test]
    fn a_full_disk_is_told_before_what_its_installer_makes_of_it() {
        let environments = Environments::within("/state".into());
        let said = || Error::new(ErrorKind::Unsupported, "install python3-venv");
        let told = environments.for_want_of_room(said(), Some(3 << 20));
        assert!(told.message().starts_with("/state has 3 MiB free") && told.message().contains("state_dir"), "{told}");
        for free in [None, Some(ROOM_BYTES)] {
            assert_eq!(environments.for_want_of_room(said(), free).message(), said().message());
        }
    }

    #[test]
    fn who_needs_the_same_has_the_same_key() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("requirements.txt");
        fs::write(&file, "b==2\n# of its own\n\na==1\n").unwrap();
        let key = |options: Value| needs(options).key().unwrap();
        let listed = key(json!({"command": "x", "requirements": ["a==1", "b==2"]}));
        assert_eq!(listed, key(json!({"command": "y", "requirements": ["b==2", " a==1"]})));
        assert_eq!(listed, key(json!({"command": "z", "requirements_file": file})));
        for other in [
            json!({"command": "x", "requirements": ["a==1"]}),
            json!({"service_script": "/s.py", "requirements": ["a==1", "b==2"]}),
            json!({"command": "x", "requirements": ["a==1", "b==2"], "python": "python3.9"}),
        ] {
            assert_ne!(listed, key(other));
        }
        let local = |folder: &str| key(json!({"command": "x", "requirements": ["./own"], "working_dir": folder}));
        assert_ne!(local("/a"), local("/b"), "paths from different folders");
        // What it names counts with it.
        fs::write(&file, "-r more.txt\n").unwrap();
        fs::write(folder.path().join("more.txt"), "c==1\n").unwrap();
        let nested = || key(json!({"command": "x", "requirements_file": file}));
        let before = nested();
        fs::write(folder.path().join("more.txt"), "c==2\n").unwrap();
        assert_ne!(before, nested());
        fs::write(folder.path().join("more.txt"), "-r requirements.txt\n").unwrap();
        let circle = Needs::of(&serde_json::from_value(json!({"command": "x", "requirements_file": file})).unwrap());
        assert!(circle.unwrap_err().message().contains("in a circle"));
        assert!(Needs::of(&serde_json::from_value(json!({"command": "x"})).unwrap()).unwrap().is_none());
    }

    /// An environment as it lies there, used so many seconds after the first.
    fn lay(all: &Environments, number: u64) -> String {
        let hash = hash(&number.to_le_bytes());
        fs::create_dir_all(all.environment(&hash).join("bin")).unwrap();
        fs::write(all.environment(&hash).join("bin/python"), "").unwrap();
        let used = File::create(all.environment(&hash).join(USED)).unwrap();
        used.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1 + number)).unwrap();
        hash
    }

    #[test]
    fn the_oldest_are_swept_and_none_that_is_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let all = Environments::within(folder.path().to_owned());
        let hashes: Vec<String> = (0..KEPT as u64 + 3).map(|number| lay(&all, number)).collect();
        let held = File::options().write(true).open(all.environment(&hashes[1]).join(USED)).unwrap();
        held.lock_shared().unwrap();
        all.sweep();
        let left: Vec<bool> = hashes.iter().map(|hash| all.is_whole(hash)).collect();
        assert_eq!(left[..4], [false, true, false, true]);
        assert!(left[4..].iter().all(|there| *there) && !all.marker(&hashes[0]).exists());
    }

    #[test]
    fn what_is_half_made_is_not_found() {
        let folder = tempfile::tempdir().unwrap();
        let all = Environments::within(folder.path().to_owned());
        let needs = needs(json!({"command": "x", "requirements": ["a==1"]}));
        assert!(all.find(&needs).unwrap_err().message().contains("aihost models pull"));
        let hash = lay(&all, 1);
        fs::create_dir_all(folder.path().join("needs")).unwrap();
        fs::write(folder.path().join("needs").join(needs.key().unwrap()), &hash).unwrap();
        assert_eq!(all.find(&needs).unwrap().folder(), all.environment(&hash));
        fs::write(all.marker(&hash), "").unwrap();
        all.find(&needs).unwrap_err();
        all.begin(&hash).unwrap();
        fs::remove_file(all.marker(&hash)).unwrap();
        all.find(&needs).unwrap_err();
    }
}
