//! Registered plugins: each file described, checked, and copied aside once, hashed on the way.
//!
//! It opens no plugin; a file that is not usable costs one sentence, never the scan.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use aihost_plugin_api::abi::Manifest;
use semver::Version;

use super::compatibility::incompatible;
use super::copy::PluginCopy;
use super::descriptor::describe;
use super::libraries::{self, Libraries};
use super::permission::permissions;
use super::shadow::Shadow;
use crate::config::Sharing;
use crate::domain::{Kind, excerpt, nearest};

/// Most bytes of the reason why a file is not usable.
const REASON_BYTES: usize = 1000;
/// The kind of plugins whose engines answer HTTP themselves, and so whatever is asked.
const UPSTREAM: &str = "upstream";
/// Most `.so` files of a folder that are looked at; other files do not count.
const MAX_FILES: usize = 1024;

/// A registered plugin file.
#[derive(Clone, Debug)]
pub struct PluginFile {
    /// From the descriptor.
    pub manifest: Manifest,
    /// Where the operator put it.
    pub source: PathBuf,
    /// The private copy that is opened.
    pub copy: Arc<PluginCopy>,
    /// SHA-256 of the file, lower-case hex.
    pub sha256: String,
    /// Folders beside the system's in which its libraries are looked for.
    pub library_folders: Vec<PathBuf>,
}

/// Among the formats of a manifest: a folder with files of the others.
const FOLDER: &str = "folder";

impl PluginFile {
    /// Whether it serves models of this kind, by its manifest.
    pub fn serves(&self, kind: Kind) -> bool {
        let is_upstream = |served: &String| served == UPSTREAM && kind == Kind::Custom;
        self.manifest.kinds.iter().any(|served| served == kind.name() || is_upstream(served))
    }

    /// Whether it may read a folder as a whole where others read a file, by its manifest. Of one that names no formats nobody
    /// knows.
    pub fn reads_folders(&self) -> bool {
        let formats = &self.manifest.formats;
        formats.is_empty() || formats.iter().any(|format| format == FOLDER)
    }

    /// Whether it runs on devices of this kind (`cpu`, `cuda`), by its manifest.
    pub fn runs_on(&self, device_kind: &str) -> bool {
        self.manifest.devices.iter().any(|served| served == device_kind)
    }
}

/// All plugins of the folders where they are looked for.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    /// Plugins that can be loaded.
    pub plugins: Vec<Arc<PluginFile>>,
    /// Files that are not usable, and why in one sentence.
    pub rejected: Vec<Rejected>,
    /// The folders that were scanned, for messages: the first is where one more would be put.
    pub folders: Vec<PathBuf>,
}

/// A `.so` file that is not a usable plugin.
#[derive(Clone, Debug)]
pub struct Rejected {
    /// The file that was found.
    pub file: PathBuf,
    /// One sentence: wanted, found, what to do.
    pub reason: String,
}

impl Rejected {
    /// The reason may quote the file, or its name: it is kept as it may be printed.
    fn new(file: PathBuf, reason: &str) -> Self {
        Self { file, reason: excerpt(reason, REASON_BYTES) }
    }
}

/// Why no plugin fits an entry.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct RegistryError(pub String);

/// A usable file before it is known whether another one takes its place.
struct Candidate {
    manifest: Manifest,
    version: Version,
    file: PathBuf,
    modified: SystemTime,
    library_folders: Vec<PathBuf>,
}

impl Registry {
    /// Describes every `.so` in these folders and copies usable ones to `state/shadow`. A missing folder has no plugins. What
    /// others may change is rejected, unless they may.
    ///
    /// # Errors
    /// When a folder cannot be read or `state` cannot be written, or others may write it; a bad file is merely rejected.
    pub fn scan(folders: &[PathBuf], state: &Path, sharing: Sharing) -> Result<Self, RegistryError> {
        let mut registry = Self { folders: folders.to_owned(), ..Self::default() };
        let mut files = Vec::new();
        for folder in folders {
            files.extend(libraries(folder)?);
        }
        if files.is_empty() {
            return Ok(registry);
        }
        sharing.check(state).map_err(RegistryError)?;
        let mut shadow = Shadow::open(state, sharing).map_err(|e| {
            RegistryError(format!(
                "cannot keep plugin copies in {}: {e}; make that folder writable, or name another as `state_dir:`",
                state.display()
            ))
        })?;
        let mut newest: BTreeMap<(String, Version), Candidate> = BTreeMap::new();
        let libraries = Libraries::here();
        for file in files {
            let ours = sharing.check_file(&file).map_err(|why| format!("{} is not opened: {why}", file.display()));
            match ours.and_then(|()| examine(&file, &libraries)) {
                Ok(candidate) => registry.compete(&mut newest, candidate),
                Err(reason) => registry.rejected.push(Rejected::new(file, &reason)),
            }
        }
        for candidate in newest.into_values() {
            match shadow.copy(&candidate.file) {
                Ok((copy, sha256)) => registry.plugins.push(Arc::new(PluginFile {
                    manifest: candidate.manifest,
                    source: candidate.file,
                    copy: Arc::new(copy),
                    sha256,
                    library_folders: candidate.library_folders,
                })),
                Err(e) => {
                    let reason = format!("cannot copy {} aside: {e}", candidate.file.display());
                    registry.rejected.push(Rejected::new(candidate.file, &reason));
                }
            }
        }
        if let Err(e) = shadow.save() {
            tracing::warn!("the index of plugin copies was not written, files are hashed again next time: {e}");
        }
        Ok(registry)
    }

    /// The newest plugin of this id that satisfies the range; else a sentence that names what was found and what to do.
    ///
    /// # Errors
    /// No such plugin, or none in the range.
    pub fn find(&self, id: &str, version: Option<&semver::VersionReq>) -> Result<Arc<PluginFile>, RegistryError> {
        let of_id: Vec<_> = self.plugins.iter().filter(|plugin| plugin.manifest.id == id).collect();
        if of_id.is_empty() {
            return Err(RegistryError(self.unknown(id)));
        }
        let parsed = of_id.iter().filter_map(|plugin| Version::parse(&plugin.manifest.version).ok().zip(Some(plugin)));
        let fits = parsed.filter(|(found, _)| version.is_none_or(|wanted| wanted.matches(found)));
        match fits.max_by(|(a, _), (b, _)| a.cmp(b)) {
            Some((_, plugin)) => Ok(Arc::clone(plugin)),
            None => {
                let found: Vec<_> = of_id.iter().map(|plugin| plugin.manifest.version.as_str()).collect();
                let wanted = version.map(ToString::to_string).unwrap_or_default();
                Err(RegistryError(format!(
                    "plugin `{id}` {wanted} was asked for, {} has {}; change the range in models.yaml or install that version",
                    self.searched(),
                    found.join(", ")
                )))
            }
        }
    }

    /// The folders, for a sentence.
    pub fn searched(&self) -> String {
        let folders: Vec<String> = self.folders.iter().map(|folder| folder.display().to_string()).collect();
        folders.join(" or ")
    }

    fn unknown(&self, id: &str) -> String {
        let folder = self.searched();
        let mut ids: Vec<&str> = self.plugins.iter().map(|plugin| plugin.manifest.id.as_str()).collect();
        ids.dedup();
        let bad = match self.rejected.as_slice() {
            [] => String::new(),
            [one] => format!(" (one file was rejected: {})", one.reason),
            [one, rest @ ..] => format!(" ({} files were rejected, the first: {})", rest.len() + 1, one.reason),
        };
        if ids.is_empty() {
            return format!(
                "no plugins in {folder}{bad}; put the file of plugin `{id}` there (a release has it, `cargo xtask build-plugins` builds it)"
            );
        }
        let guess =
            nearest(id, ids.iter().copied()).map(|name| format!("; did you mean `{name}`?")).unwrap_or_default();
        format!("no plugin `{id}` in {folder}, which has {}{bad}{guess}", ids.join(", "))
    }

    /// Of two files with the same id and version the newer one stays.
    fn compete(&mut self, newest: &mut BTreeMap<(String, Version), Candidate>, candidate: Candidate) {
        let key = (candidate.manifest.id.clone(), candidate.version.clone());
        let loser = match newest.remove(&key) {
            None => {
                newest.insert(key, candidate);
                return;
            }
            Some(other) => {
                let (winner, loser) =
                    if candidate.modified > other.modified { (candidate, other) } else { (other, candidate) };
                let reason = format!(
                    "{} {} is also in {}, which is newer; remove one of the two",
                    key.0,
                    key.1,
                    winner.file.display()
                );
                newest.insert(key, winner);
                Rejected::new(loser.file, &reason)
            }
        };
        self.rejected.push(loser);
    }
}

/// The `.so` files of a folder in name order; dotfiles are copies in progress.
fn libraries(folder: &Path) -> Result<Vec<PathBuf>, RegistryError> {
    let failed = |e| RegistryError(format!("cannot read the plugins folder {}: {e}", folder.display()));
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|ext| ext == "so") && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    if files.len() > MAX_FILES {
        tracing::warn!("{} has {} plugin files; only the first {MAX_FILES} count", folder.display(), files.len());
        files.truncate(MAX_FILES);
    }
    Ok(files)
}

fn examine(file: &Path, libraries: &Libraries) -> Result<Candidate, String> {
    let described = describe(file).map_err(|e| e.to_string())?;
    if let Some(why) = incompatible(&described) {
        return Err(format!("{} cannot be loaded: {why}", file.display()));
    }
    let missing = libraries.missing(&described.needed, &described.beside);
    if !missing.is_empty() {
        return Err(format!("{} cannot be loaded: {}", file.display(), libraries::sentence(&missing)));
    }
    let manifest = described.manifest;
    if let Err(why) = permissions(&manifest) {
        return Err(format!("{} cannot be loaded: {why}", file.display()));
    }
    let version = Version::parse(&manifest.version).map_err(|e| {
        format!(
            "{} states version `{}`, which is not semver ({e}); correct it and rebuild",
            file.display(),
            manifest.version
        )
    })?;
    let modified = fs::metadata(file).and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    Ok(Candidate { manifest, version, file: file.to_owned(), modified, library_folders: described.beside })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plugin(id: &str, version: &str) -> Arc<PluginFile> {
        let json = format!(r#"{{"id":"{id}","version":"{version}","kinds":["text"],"devices":["cpu"]}}"#);
        let manifest = Manifest::parse(json.as_bytes()).unwrap();
        Arc::new(PluginFile {
            manifest,
            source: "a".into(),
            copy: Arc::default(),
            sha256: String::new(),
            library_folders: Vec::new(),
        })
    }

    #[test]
    fn an_empty_or_missing_folder_has_no_plugins_and_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        for folder in [dir.path().to_owned(), dir.path().join("absent")] {
            let registry = Registry::scan(&[folder], dir.path(), Sharing::Refused).unwrap();
            let error = registry.find("candle-llm", None).unwrap_err().to_string();
            assert!(error.contains("no plugins in") && error.contains("cargo xtask build-plugins"), "{error}");
        }
    }

    #[test]
    fn a_bad_file_is_rejected_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("bad.so"), b"no").unwrap();
        fs::write(dir.path().join(".hidden.so"), b"no").unwrap();
        fs::write(dir.path().join("notes.txt"), b"no").unwrap();
        // However many other files there are.
        for number in 0..MAX_FILES {
            fs::write(dir.path().join(format!("note-{number}.txt")), b"no").unwrap();
        }
        let registry = Registry::scan(&[dir.path().to_owned()], dir.path(), Sharing::Refused).unwrap();
        assert_eq!(registry.rejected.len(), 1);
        assert!(registry.find("x", None).unwrap_err().to_string().contains("bad.so"));
    }

    #[test]
    fn the_newest_version_in_range_is_found() {
        let plugins =
            vec![plugin("a/b", "1.2.0"), plugin("a/b", "1.10.0"), plugin("a/b", "2.0.0"), plugin("llm", "1.0.0")];
        let registry = Registry { plugins, folders: vec!["plugins".into()], ..Registry::default() };
        let find = |id, range: &str| {
            let range = (!range.is_empty()).then(|| range.parse().unwrap());
            registry.find(id, range.as_ref()).map(|p| p.manifest.version.clone()).map_err(|e| e.to_string())
        };
        assert_eq!(find("a/b", "").unwrap(), "2.0.0");
        assert_eq!(find("a/b", "^1").unwrap(), "1.10.0");
        let error = find("a/b", "^3").unwrap_err();
        assert!(error.contains("^3") && error.contains("1.10.0"), "{error}");
        let error = find("lm", "").unwrap_err();
        assert!(error.contains("did you mean `llm`") && error.contains("a/b"), "{error}");
    }

    #[test]
    fn of_two_equal_versions_the_newer_file_stays() {
        let (mut registry, mut newest) = (Registry::default(), BTreeMap::new());
        for (file, age) in [("old.so", 1), ("new.so", 3), ("middle.so", 2)] {
            let manifest = plugin("a/b", "1.0.0").manifest.clone();
            let modified = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(age);
            let candidate = Candidate {
                manifest,
                version: Version::new(1, 0, 0),
                file: file.into(),
                modified,
                library_folders: Vec::new(),
            };
            registry.compete(&mut newest, candidate);
        }
        assert_eq!(newest.into_values().next().unwrap().file, Path::new("new.so"));
        let rejected: Vec<_> = registry.rejected.iter().map(|r| r.file.to_str().unwrap()).collect();
        assert_eq!(rejected, ["old.so", "middle.so"]);
    }
}
