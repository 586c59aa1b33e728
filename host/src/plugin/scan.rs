//! Looking at the folders of plugins: each file described, checked, and copied aside once, hashed on the way. What did not change
//! since the last look is not read again, and stays the very plugin that it was.
//!
//! It opens no plugin; a file that is not usable costs one sentence, never the scan. Everything here blocks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aihost_plugin_api::abi::Manifest;
use semver::Version;

use super::companions::Companions;
use super::compatibility::incompatible;
use super::copy::Identity;
use super::descriptor::{DescribeError, Described, describe};
use super::libraries::{self, Libraries};
use super::permission::permissions;
use super::registry::{PluginFile, Registry, RegistryError, Rejected};
use super::shadow::{CHANGED, Shadow, changed};
use crate::config::Sharing;

/// Most `.so` files of a folder that are looked at; other files do not count.
const MAX_FILES: usize = 1024;
/// How long a file that is new while a host runs must stay what it is: someone may be writing it.
const SETTLE: Duration = Duration::from_millis(200);

/// What was read of files at the last look.
#[derive(Clone, Debug, Default)]
pub struct Seen(BTreeMap<PathBuf, SeenFile>);

impl Seen {
    /// Whether a file is not what it was, or was not there.
    fn is_news(&self, file: &Path, now: Option<&Identity>) -> bool {
        now != self.0.get(file).map(|seen| &seen.identity)
    }
}

#[derive(Clone, Debug)]
struct SeenFile {
    identity: Identity,
    /// `None` if it was not read.
    described: Option<Arc<Result<Described, Unusable>>>,
}

/// Why a file is not usable.
#[derive(Clone, Debug)]
struct Unusable {
    id: Option<String>,
    reason: String,
    /// It is a library, and may be another file's.
    is_library: bool,
}

impl Unusable {
    fn new(id: Option<&str>, reason: String) -> Self {
        Self { id: id.map(str::to_owned), reason, is_library: false }
    }
}

impl From<DescribeError> for Unusable {
    fn from(error: DescribeError) -> Self {
        let is_library = matches!(error, DescribeError::NotAPlugin { .. });
        let reason = error.to_string();
        let id = if let DescribeError::Manifest { id, .. } = error { id } else { None };
        Self { id, reason, is_library }
    }
}

/// A usable file before it is known whether another one takes its place.
struct Candidate {
    manifest: Manifest,
    version: Version,
    file: PathBuf,
    /// Of the file of which the manifest was read.
    identity: Identity,
    modified: SystemTime,
    companions: Companions,
}

/// A look that is under way.
struct Look<'a> {
    before: &'a Registry,
    sharing: Sharing,
    libraries: Libraries,
    seen: Seen,
    newest: BTreeMap<(String, Version), Candidate>,
    rejected: Vec<Rejected>,
    /// Whether it is not the first.
    is_again: bool,
    /// Whether nobody was writing anything.
    settled: bool,
    /// Files that may be somebody's libraries.
    libraries_found: BTreeSet<PathBuf>,
    /// Files that were found to be somebody's libraries.
    companions: BTreeSet<PathBuf>,
}

impl Registry {
    /// Describes every `.so` in these folders and copies usable ones to `state/shadow`. A missing folder has no plugins. What
    /// others may change is rejected, unless they may.
    ///
    /// # Errors
    /// When a folder cannot be read or `state` cannot be written, or others may write it; a bad file is merely rejected.
    pub fn scan(folders: &[PathBuf], state: &Path, sharing: Sharing) -> Result<Self, RegistryError> {
        let nothing = Self { folders: folders.to_owned(), ..Self::default() };
        let mut look = Look::new(&nothing, sharing);
        look.examine(files(folders)?);
        look.end(state).map(|(registry, _)| registry)
    }

    /// Looks again at the same folders. What did not change is what it was. A file that is not usable any more does not end the
    /// plugin that it was: that is used on, by its copy, until the file is gone or another usable one. A file that someone may
    /// still be writing is as if it had not been touched yet; `false` then, for it is to be looked at again soon.
    ///
    /// # Errors
    /// As [`Self::scan`].
    pub fn look_again(&self, state: &Path, sharing: Sharing) -> Result<(Self, bool), RegistryError> {
        let files = files(&self.folders)?;
        let unsettled = self.unsettled(&files);
        let mut look = Look { is_again: true, settled: unsettled.is_empty(), ..Look::new(self, sharing) };
        look.examine(files.into_iter().filter(|file| !unsettled.contains(file)).collect());
        for file in unsettled {
            look.spare(file);
        }
        look.end(state)
    }

    /// The plugins that are there as copies only, because the folder is gone where they lay.
    pub fn lost(&self) -> impl Iterator<Item = &PluginFile> {
        self.plugins.iter().map(Arc::as_ref).filter(|plugin| is_lost(plugin))
    }

    /// What a plugin's file said of itself when it was looked at.
    pub fn described(&self, plugin: &PluginFile) -> Option<&Described> {
        self.seen.0.get(&plugin.source)?.described.as_deref()?.as_ref().ok()
    }

    /// Files that are not what they were at the last look, or were not there.
    pub fn changed(&self) -> Vec<PathBuf> {
        let now = files(&self.folders).unwrap_or_default();
        let is_news = |file: &&PathBuf| self.seen.is_news(file, identity(file).as_ref());
        let gone = self.seen.0.keys().filter(|file| file.symlink_metadata().is_err());
        now.iter().filter(is_news).chain(gone).cloned().collect()
    }

    /// Files that were not so before, and change while they are looked at.
    fn unsettled(&self, files: &[PathBuf]) -> BTreeSet<PathBuf> {
        let now = files.iter().map(|file| (file, identity(file)));
        let news: Vec<_> = now.filter(|(file, now)| self.seen.is_news(file, now.as_ref())).collect();
        if !news.is_empty() {
            std::thread::sleep(SETTLE);
        }
        news.into_iter().filter(|(file, was)| identity(file) != *was).map(|(file, _)| file.clone()).collect()
    }
}

impl<'a> Look<'a> {
    fn new(before: &'a Registry, sharing: Sharing) -> Self {
        Self {
            before,
            is_again: false,
            settled: true,
            sharing,
            libraries: Libraries::here(),
            seen: Seen::default(),
            newest: BTreeMap::new(),
            rejected: Vec::new(),
            libraries_found: BTreeSet::new(),
            companions: BTreeSet::new(),
        }
    }

    fn examine(&mut self, files: Vec<PathBuf>) {
        for file in files {
            match self.candidate(&file) {
                Ok(candidate) => self.compete(candidate),
                Err(Unusable { id, reason, is_library }) => {
                    if is_library {
                        self.libraries_found.insert(file.clone());
                    }
                    self.rejected.push(Rejected::new(file, id, &reason));
                }
            }
        }
        self.rejected.retain(|one| {
            let target = one.file.canonicalize();
            !self.libraries_found.contains(&one.file) || !target.is_ok_and(|target| self.companions.contains(&target))
        });
    }

    /// What the last look found of a file stands.
    fn spare(&mut self, file: PathBuf) {
        if let Some(seen) = self.before.seen.0.get(&file) {
            // Of the same content as then, so that it is news as long as it is none.
            self.seen.0.insert(file.clone(), seen.clone());
        }
        self.rejected.extend(self.before.rejected.iter().filter(|one| one.file == file).cloned());
    }

    fn candidate(&mut self, file: &Path) -> Result<Candidate, Unusable> {
        let found = fs::metadata(file).map_err(|e| {
            let is_link = file.symlink_metadata().is_ok_and(|meta| meta.is_symlink());
            let what = if is_link { "is a link that leads nowhere" } else { "cannot be read" };
            Unusable::new(None, format!("{} {what} ({e}); remove it, or put the file there", file.display()))
        })?;
        let identity = Identity::of(&found);
        self.seen.0.insert(file.to_owned(), SeenFile { identity: identity.clone(), described: None });
        if !found.is_file() {
            return Err(Unusable::new(None, format!("{} is no regular file; remove it", file.display())));
        }
        self.sharing
            .check_file(file)
            .map_err(|why| Unusable::new(None, format!("{} is not opened: {why}", file.display())))?;
        let described = self.described(file, identity.clone());
        let described = Result::as_ref(&described).map_err(Clone::clone)?;
        let refused = |why: String| {
            Unusable::new(Some(&described.manifest.id), format!("{} cannot be loaded: {why}", file.display()))
        };
        let companions = Companions::of(file, &described.linkage, &self.libraries);
        let targets = companions.found.iter().filter_map(|companion| companion.source.canonicalize().ok());
        self.companions.extend(targets);
        if let Some(why) = incompatible(described) {
            return Err(refused(why));
        }
        if let Some(why) = &companions.unusable {
            return Err(refused(format!("of a library beside it: {why}")));
        }
        if !companions.missing.is_empty() {
            return Err(refused(libraries::sentence(&companions.missing, companions.looked_in.as_deref())));
        }
        for companion in &companions.found {
            self.sharing
                .check_file(&companion.source)
                .map_err(|why| refused(format!("its library {} is not opened: {why}", companion.source.display())))?;
        }
        let manifest = &described.manifest;
        permissions(manifest).map_err(&refused)?;
        let version = Version::parse(&manifest.version).map_err(|e| {
            let stated = &manifest.version;
            let why = format!(
                "{} states version `{stated}`, which is not semver ({e}); correct it and rebuild",
                file.display()
            );
            Unusable::new(Some(&manifest.id), why)
        })?;
        let modified = found.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        Ok(Candidate { manifest: manifest.clone(), version, file: file.to_owned(), identity, modified, companions })
    }

    /// What a file says of itself. It is read if it is not what it was.
    fn described(&mut self, file: &Path, identity: Identity) -> Arc<Result<Described, Unusable>> {
        let known = self.before.seen.0.get(file).filter(|seen| seen.identity == identity);
        let known = known.and_then(|known| known.described.clone());
        let described = known.unwrap_or_else(|| Arc::new(describe(file).map_err(Unusable::from)));
        self.seen.0.insert(file.to_owned(), SeenFile { identity, described: Some(Arc::clone(&described)) });
        described
    }

    /// Of two files with the same id and version the newer one stays.
    fn compete(&mut self, candidate: Candidate) {
        let key = (candidate.manifest.id.clone(), candidate.version.clone());
        let Some(other) = self.newest.remove(&key) else {
            self.newest.insert(key, candidate);
            return;
        };
        let (winner, loser) = if candidate.modified > other.modified { (candidate, other) } else { (other, candidate) };
        let reason = format!(
            "{}: {} {} is also in {}, which is used because it is the newer file; remove one of the two",
            loser.file.display(),
            key.0,
            key.1,
            winner.file.display()
        );
        self.rejected.push(Rejected::new(loser.file, Some(key.0.clone()), &reason));
        self.newest.insert(key, winner);
    }

    /// Copies what is usable aside.
    fn end(mut self, state: &Path) -> Result<(Registry, bool), RegistryError> {
        let mut plugins = Vec::new();
        if !self.newest.is_empty() {
            self.sharing.check(state).map_err(RegistryError)?;
            let mut shadow = Shadow::open(state, self.sharing).map_err(|e| {
                RegistryError(format!(
                    "cannot keep plugin copies in {}: {e}; make that folder writable, or name another as `state_dir:`",
                    state.display()
                ))
            })?;
            for candidate in std::mem::take(&mut self.newest).into_values() {
                let copied = shadow.copy(&candidate.file, &candidate.companions);
                // Another file may have taken its place since: of that one nothing is known.
                let is_same = || identity(&candidate.file).as_ref() == Some(&candidate.identity);
                match copied.and_then(|copied| if is_same() { Ok(copied) } else { Err(changed()) }) {
                    Ok((copy, sha256)) => plugins.push(self.registered(candidate, copy, sha256)),
                    Err(e) if e.kind() == CHANGED && self.is_again => self.settled = false,
                    Err(e) => {
                        let reason = format!("cannot copy {} aside: {e}", candidate.file.display());
                        self.rejected.push(Rejected::new(candidate.file, Some(candidate.manifest.id), &reason));
                    }
                }
            }
            if let Err(e) = shadow.save() {
                tracing::warn!("the index of plugin copies was not written, files are hashed again next time: {e}");
            }
        }
        self.keep(&mut plugins);
        self.rejected.sort_by(|one, other| one.file.cmp(&other.file));
        let doubts = doubts(&plugins);
        let (rejected, folders, seen) = (self.rejected, self.before.folders.clone(), self.seen);
        Ok((Registry { plugins, rejected, doubts, folders, seen }, self.settled))
    }

    /// The very plugin that it was, if it is that.
    fn registered(&self, candidate: Candidate, copy: super::copy::PluginCopy, sha256: String) -> Arc<PluginFile> {
        let plugin = PluginFile {
            manifest: candidate.manifest,
            source: candidate.file,
            copy: Arc::new(copy),
            sha256,
            library_folders: candidate.companions.folders,
        };
        let is_it = |was: &&Arc<PluginFile>| {
            was.source == plugin.source && was.is_same(&plugin) && was.library_folders == plugin.library_folders
        };
        self.before.plugins.iter().find(is_it).map_or_else(|| Arc::new(plugin.clone()), Arc::clone)
    }

    /// What a file was before it was replaced by what is not usable, or is being written, is used on. So is all that lay in a
    /// folder that is gone: nobody removes plugins so, but disks and networks fail.
    fn keep(&self, plugins: &mut Vec<Arc<PluginFile>>) {
        let is_of = |one: &Arc<PluginFile>, other: &Arc<PluginFile>| {
            (&one.manifest.id, &one.manifest.version) == (&other.manifest.id, &other.manifest.version)
        };
        let is_kept = |was: &&Arc<PluginFile>| {
            (was.source.symlink_metadata().is_ok() || is_lost(was))
                && plugins.iter().all(|now| now.source != was.source && !is_of(now, was))
        };
        let kept: Vec<Arc<PluginFile>> = self.before.plugins.iter().filter(is_kept).cloned().collect();
        plugins.extend(kept);
        let version = |plugin: &PluginFile| Version::parse(&plugin.manifest.version).ok();
        plugins.sort_by(|a, b| a.manifest.id.cmp(&b.manifest.id).then_with(|| version(a).cmp(&version(b))));
    }
}

/// Whether the folder is gone where it lay.
fn is_lost(plugin: &PluginFile) -> bool {
    plugin.source.parent().is_some_and(|folder| !folder.is_dir())
}

/// What a file is, where a link leads to one.
fn identity(file: &Path) -> Option<Identity> {
    fs::metadata(file).ok().map(|meta| Identity::of(&meta))
}

/// A bare name is one of aihost's own, and the newest version of it is used: of two files that have it, one may be somebody else's.
fn doubts(plugins: &[Arc<PluginFile>]) -> Vec<Rejected> {
    let pairs = plugins.windows(2).filter(|pair| {
        let [lower, higher] = pair else { return false };
        lower.manifest.id == higher.manifest.id && !higher.manifest.id.contains('/')
    });
    let doubt = |pair: &[Arc<PluginFile>]| {
        let [lower, higher] = pair else { return None };
        let (id, file) = (&higher.manifest.id, higher.source.display());
        let reason = format!(
            "{file} is used as `{id}`, a name of aihost's own, before {} because {} is newer than {}; remove it if it is not aihost's, or ask for `{id}@={}`",
            lower.source.display(),
            higher.manifest.version,
            lower.manifest.version,
            lower.manifest.version
        );
        Some(Rejected::new(higher.source.clone(), Some(id.clone()), &reason))
    };
    pairs.filter_map(doubt).collect()
}

/// What is named as a library in these folders, in name order; dotfiles are copies in progress.
fn files(folders: &[PathBuf]) -> Result<Vec<PathBuf>, RegistryError> {
    let mut files = Vec::new();
    for folder in folders {
        files.extend(files_of(folder)?);
    }
    Ok(files)
}

/// The same of one folder; what is a file itself is the only one.
fn files_of(folder: &Path) -> Result<Vec<PathBuf>, RegistryError> {
    if folder.is_file() {
        return Ok(vec![folder.to_owned()]);
    }
    let failed = |e| RegistryError(format!("cannot read the plugins folder {}: {e}", folder.display()));
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|ext| ext == "so") && !path.is_dir() {
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

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::plugin::News;
    use crate::plugin::sample::{Folder, library};

    fn ids(registry: &Registry) -> Vec<String> {
        registry.plugins.iter().map(|plugin| format!("{} {}", plugin.manifest.id, plugin.manifest.version)).collect()
    }

    fn again(folder: &Folder, before: &Registry) -> Registry {
        let (now, settled) = before.look_again(&folder.state(), Sharing::Refused).unwrap();
        assert!(settled);
        now
    }

    fn said(news: &[News]) -> String {
        let said = news.iter().map(|one| match one {
            News::Added(plugin) => format!("added {}", plugin.build()),
            News::Replaced(plugin, was) => format!("{} replaced {}", plugin.build(), was.build()),
            News::Removed(was) => format!("removed {}", was.build()),
            News::Refused(_, why, kept) => format!("refused {why} kept {}", kept.as_ref().map_or("none", |_| "one")),
            News::Doubted(_, why) => format!("doubted {why}"),
        });
        said.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn an_empty_or_missing_folder_has_no_plugins_and_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        for folder in [dir.path().to_owned(), dir.path().join("absent")] {
            let registry = Registry::scan(&[folder], dir.path(), Sharing::Refused).unwrap();
            let error = registry.find("candle-llm", None).unwrap_err().to_string();
            assert!(error.contains("no plugins in") && error.contains("cargo xtask build-plugins"), "{error}");
            // Nobody else's plugin is in our releases.
            let error = registry.find("acme/parrot", None).unwrap_err().to_string();
            assert!(error.ends_with("put the file of plugin `acme/parrot` there"), "{error}");
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
    fn what_is_no_file_is_named_and_not_waited_for() {
        let folder = Folder::new();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            folder.at("pipe.so"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RWXU,
            0,
        )
        .unwrap();
        symlink("nowhere", folder.at("dangling.so")).unwrap();
        symlink("loop.so", folder.at("loop.so")).unwrap();
        fs::create_dir(folder.at("folder.so")).unwrap();
        let registry = folder.scan();
        let reasons: Vec<&str> = registry.rejected.iter().map(|one| one.reason.as_str()).collect();
        assert_eq!(reasons.len(), 3, "{reasons:?}");
        for (reason, wanted) in reasons.iter().zip(["leads nowhere", "leads nowhere", "no regular file"]) {
            assert!(reason.contains(wanted), "{reasons:?}");
        }
        // Nothing of it is news at the next look.
        assert!(registry.changed().is_empty(), "{:?}", registry.changed());
        assert!(again(&folder, &registry).is_same(&registry));
    }

    #[test]
    fn a_file_that_is_added_replaced_or_removed_is_seen_and_nothing_else_is_touched() {
        let folder = Folder::new();
        folder.plugin("a.so", "a/one", "1.0.0", &[]);
        let first = folder.scan();
        assert_eq!(ids(&first), ["a/one 1.0.0"]);
        // Nothing changed: it is the very same.
        let same = again(&folder, &first);
        assert!(same.is_same(&first) && Arc::ptr_eq(&same.plugins[0], &first.plugins[0]));
        assert!(same.news(&first).is_empty());

        folder.plugin("b.so", "b/two", "1.0.0", &[]);
        assert_eq!(first.changed(), [folder.at("b.so")]);
        let added = again(&folder, &first);
        assert_eq!(ids(&added), ["a/one 1.0.0", "b/two 1.0.0"]);
        assert!(Arc::ptr_eq(&added.plugins[0], &first.plugins[0]), "it was made anew");
        assert!(said(&added.news(&first)).starts_with("added 1.0.0"), "{}", said(&added.news(&first)));

        folder.plugin("b.so", "b/two", "1.1.0", &[]);
        let replaced = again(&folder, &added);
        assert_eq!(ids(&replaced), ["a/one 1.0.0", "b/two 1.1.0"]);
        assert!(said(&replaced.news(&added)).contains("replaced 1.0.0"), "{}", said(&replaced.news(&added)));
        assert!(added.plugins[1].copy.ready().is_ok(), "what runs on it may be started again");

        fs::remove_file(folder.at("b.so")).unwrap();
        let removed = again(&folder, &replaced);
        assert_eq!(ids(&removed), ["a/one 1.0.0"]);
        assert!(said(&removed.news(&replaced)).starts_with("removed 1.1.0"));
        let error = removed.find("b/two", None).unwrap_err().to_string();
        assert!(error.contains("b/two") && error.contains(&*folder.at("").to_string_lossy()), "{error}");
    }

    #[test]
    fn a_file_that_is_replaced_once_its_manifest_was_read_is_not_taken_for_it() {
        let folder = Folder::new();
        folder.plugin("a.so", "a/one", "1.0.0", &[]);
        let first = folder.scan();
        let replace = || {
            fs::write(folder.at("fresh"), "no library at all").unwrap();
            fs::rename(folder.at("fresh"), folder.at("a.so")).unwrap();
        };
        folder.plugin("a.so", "a/one", "1.1.0", &[]);
        let mut look = Look { is_again: true, ..Look::new(&first, Sharing::Refused) };
        look.examine(vec![folder.at("a.so")]);
        replace();
        let (now, settled) = look.end(&folder.state()).unwrap();
        assert_eq!(ids(&now), ["a/one 1.0.0"], "what it was before is used on");
        assert!(!settled && Arc::ptr_eq(&now.plugins[0], &first.plugins[0]));

        folder.plugin("a.so", "a/one", "1.1.0", &[]);
        let nothing = Registry { folders: first.folders.clone(), ..Registry::default() };
        let mut look = Look::new(&nothing, Sharing::Refused);
        look.examine(vec![folder.at("a.so")]);
        replace();
        let (now, _) = look.end(&folder.state()).unwrap();
        assert_eq!(ids(&now), Vec::<String>::new());
        assert!(now.rejected[0].reason.contains("changed while it was being copied"), "{}", now.rejected[0].reason);
    }

    #[test]
    fn what_a_bad_file_was_is_used_on_until_it_is_gone() {
        let folder = Folder::new();
        folder.plugin("a.so", "a/one", "1.0.0", &[]);
        let first = folder.scan();
        let whole = fs::read(folder.at("a.so")).unwrap();
        type Harm = fn(&Folder, &[u8]);
        let harms: [(Harm, &str); 4] = [
            (
                |folder, whole| fs::write(folder.at("a.so"), &whole[..whole.len() / 2]).unwrap(),
                "not a whole shared library",
            ),
            (|folder, _| folder.plugin("a.so", "not an id", "1.0.0", &[]), "not an id"),
            (|folder, _| fs::set_permissions(folder.at("a.so"), Permissions::from_mode(0o666)).unwrap(), "chmod go-w"),
            (
                |folder, _| {
                    fs::remove_file(folder.at("a.so")).unwrap();
                    symlink("nowhere", folder.at("a.so")).unwrap();
                },
                "leads nowhere",
            ),
        ];
        for (harm, wanted) in harms {
            harm(&folder, &whole);
            let now = again(&folder, &first);
            assert!(Arc::ptr_eq(&now.plugins[0], &first.plugins[0]), "{wanted}");
            let said = said(&now.news(&first));
            assert!(said.contains(wanted) && said.ends_with("kept one"), "{said}");
            assert!(now.refusal_of(&folder.at("a.so")).unwrap().contains(wanted));
            // It is told once.
            assert!(again(&folder, &now).news(&now).is_empty());
            // And mended by what is whole.
            fs::remove_file(folder.at("a.so")).unwrap();
            fs::write(folder.at("a.so"), &whole).unwrap();
            let mended = again(&folder, &now);
            assert!(mended.rejected.is_empty() && Arc::ptr_eq(&mended.plugins[0], &first.plugins[0]));
        }
        fs::remove_file(folder.at("a.so")).unwrap();
        assert!(again(&folder, &first).plugins.is_empty());
        // A host that starts has nothing to go on with.
        fs::write(folder.at("a.so"), b"bad").unwrap();
        assert!(folder.scan().plugins.is_empty());
    }

    #[test]
    fn a_state_folder_that_fails_for_a_while_loses_nothing() {
        let folder = Folder::new();
        folder.plugin("a.so", "a/one", "1.0.0", &[]);
        let first = folder.scan();
        let shadow = folder.state().join("shadow");
        let aside = folder.state().join("aside");
        fs::rename(&shadow, &aside).unwrap();
        fs::write(&shadow, b"").unwrap();
        folder.plugin("a.so", "a/one", "1.1.0", &[]);
        assert!(first.look_again(&folder.state(), Sharing::Refused).is_err());
        fs::remove_file(&shadow).unwrap();
        fs::rename(&aside, &shadow).unwrap();
        assert_eq!(ids(&again(&folder, &first)), ["a/one 1.1.0"]);
    }

    #[test]
    fn a_folder_that_is_made_again_or_leads_elsewhere_is_seen() {
        let folder = Folder::new();
        for version in ["1.0.0", "2.0.0"] {
            fs::create_dir(folder.at(version)).unwrap();
            folder.plugin(&format!("{version}/a.so"), "a/one", version, &[]);
        }
        symlink("1.0.0", folder.at("now")).unwrap();
        let first = Registry::scan(&[folder.at("now")], &folder.state(), Sharing::Refused).unwrap();
        symlink("2.0.0", folder.at("next")).and_then(|()| fs::rename(folder.at("next"), folder.at("now"))).unwrap();
        let switched = again(&folder, &first);
        assert_eq!((ids(&first), ids(&switched)), (vec!["a/one 1.0.0".into()], vec!["a/one 2.0.0".into()]));
        fs::remove_file(folder.at("now")).unwrap();
        // A folder that is gone may come back: its plugins are used on, by their copies.
        let gone = again(&folder, &switched);
        assert!(Arc::ptr_eq(&gone.plugins[0], &switched.plugins[0]) && gone.lost().count() == 1);
        symlink("1.0.0", folder.at("now")).unwrap();
        assert_eq!(ids(&again(&folder, &gone)), ["a/one 1.0.0"]);
    }

    #[test]
    fn of_two_equal_versions_the_newer_file_stays_and_a_bare_name_twice_is_told() {
        let folder = Folder::new();
        for (file, age) in [("old.so", 1), ("new.so", 3), ("middle.so", 2)] {
            folder.plugin(file, "a/b", "1.0.0", &[]);
            let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(age);
            fs::File::options().write(true).open(folder.at(file)).and_then(|f| f.set_modified(modified)).unwrap();
        }
        folder.plugin("ours.so", "llm", "0.1.0", &[]);
        folder.plugin("theirs.so", "llm", "99.0.0", &[]);
        let registry = folder.scan();
        assert_eq!(ids(&registry), ["a/b 1.0.0", "llm 0.1.0", "llm 99.0.0"]);
        assert_eq!(registry.plugins[0].source, folder.at("new.so"));
        let reasons: Vec<&str> = registry.rejected.iter().map(|one| one.reason.as_str()).collect();
        assert!(
            reasons.len() == 2 && reasons.iter().all(|reason| reason.contains("new.so, which is used")),
            "{reasons:?}"
        );
        let [doubt] = registry.doubts.as_slice() else { panic!("{:?}", registry.doubts) };
        assert!(doubt.file == folder.at("theirs.so") && doubt.reason.contains("`llm@=0.1.0`"), "{doubt:?}");
    }

    #[test]
    fn libraries_beside_a_plugin_are_its_own_and_change_with_it() {
        let folder = Folder::new();
        fs::create_dir(folder.at("lib")).unwrap();
        library(&folder.at("lib/libdeep.so.1"), "deep", &["-Wl,-soname,libdeep.so.1"]);
        library(
            &folder.at("libnear.so"),
            "near",
            &["-Wl,-soname,libnear.so", "-Wl,-rpath,$ORIGIN/lib", &folder.arg("lib/libdeep.so.1")],
        );
        folder.plugin("a.so", "a/one", "1.0.0", &["-Wl,-rpath,$ORIGIN", &folder.arg("libnear.so")]);
        let first = folder.scan();
        assert!(first.rejected.is_empty(), "a plugin's library was taken for a plugin: {:?}", first.rejected);
        let libraries: Vec<&Path> = first.plugins[0].copy.libraries().collect();
        assert_eq!(libraries, [folder.at("libnear.so"), folder.at("lib/libdeep.so.1")]);
        // They are found where the copy lies, though those that the operator put there are gone by now.
        let copy = &first.plugins[0].copy;
        let identity = copy.ready().unwrap();
        let moved = folder.at("").join("moved");
        fs::create_dir(&moved).unwrap();
        for file in ["lib", "libnear.so"] {
            fs::rename(folder.at(file), moved.join(file)).unwrap();
        }
        let error = crate::plugin::open(copy.path(), &identity).unwrap_err().to_string();
        assert!(error.contains("does not export a plugin"), "its libraries were not found: {error}");
        assert!(error.starts_with(&folder.arg("a.so")), "it names what nobody knows: {error}");
        for file in ["lib", "libnear.so"] {
            fs::rename(moved.join(file), folder.at(file)).unwrap();
        }

        // One library changes: it is another plugin, though its own file is the same.
        library(&folder.at("lib/libdeep.so.1"), "deeper", &["-Wl,-soname,libdeep.so.1"]);
        let now = again(&folder, &first);
        assert!(!now.plugins[0].is_same(&first.plugins[0]) && now.plugins[0].sha256 == first.plugins[0].sha256);
        assert!(first.plugins[0].copy.ready().is_ok(), "the copies before are whole");
        // A copy that was changed is made anew, and is not opened as it is.
        let identity = now.plugins[0].copy.ready().unwrap();
        let copied = identity.beside[1].path.clone();
        fs::remove_file(&copied).and_then(|()| fs::write(&copied, b"evil")).unwrap();
        let error = crate::plugin::open(now.plugins[0].copy.path(), &identity).unwrap_err().to_string();
        let named = format!("{}: it was changed", folder.arg("lib/libdeep.so.1"));
        assert!(error.contains(&named) && !error.contains(&folder.state().display().to_string()), "{error}");
        now.plugins[0].copy.ready().unwrap();
        assert_eq!(fs::read(&copied).unwrap(), fs::read(folder.at("lib/libdeep.so.1")).unwrap());

        // What others may change is not taken, nor what is half written; what is missing is named with who needs it.
        fs::set_permissions(folder.at("libnear.so"), Permissions::from_mode(0o666)).unwrap();
        let reason = |registry: &Registry| registry.rejected.iter().map(|one| one.reason.clone()).collect::<String>();
        let refused = reason(&folder.scan());
        assert!(refused.contains("libnear.so is not opened") && refused.contains("chmod go-w"), "{refused}");
        fs::set_permissions(folder.at("libnear.so"), Permissions::from_mode(0o644)).unwrap();
        let whole = fs::read(folder.at("lib/libdeep.so.1")).unwrap();
        fs::write(folder.at("lib/libdeep.so.1"), &whole[..whole.len() / 2]).unwrap();
        let refused = reason(&folder.scan());
        assert!(refused.contains("libdeep.so.1 is not a whole shared library"), "{refused}");
        fs::remove_file(folder.at("lib/libdeep.so.1")).unwrap();
        let refused = reason(&folder.scan());
        let by = format!("libdeep.so.1 (for its library {})", folder.at("libnear.so").display());
        assert!(refused.contains(&by) && refused.contains("put it into"), "{refused}");
    }

    #[test]
    fn libraries_above_a_plugin_and_under_two_names_are_found() {
        let folder = Folder::new();
        for made in ["plugins", "lib"] {
            fs::create_dir(folder.at(made)).unwrap();
        }
        library(&folder.at("lib/libdeep.so.1"), "deep", &["-Wl,-soname,libdeep.so.1"]);
        symlink("libdeep.so.1", folder.at("lib/libdeep.so")).unwrap();
        folder.plugin("plugins/a.so", "a/one", "1.0.0", &["-Wl,-rpath,$ORIGIN/../lib", &folder.arg("lib/libdeep.so")]);
        let registry = Registry::scan(&[folder.at("plugins")], &folder.state(), Sharing::Refused).unwrap();
        let copy = &registry.plugins[0].copy;
        assert_eq!(copy.libraries().collect::<Vec<_>>(), [folder.at("plugins/../lib/libdeep.so.1")]);
        let error = crate::plugin::open(copy.path(), &copy.ready().unwrap()).unwrap_err().to_string();
        assert!(error.contains("does not export a plugin"), "{error}");
        // A look that finds nothing new makes no copy.
        assert!(again_in(&folder, &registry).is_same(&registry));
    }

    fn again_in(folder: &Folder, before: &Registry) -> Registry {
        before.look_again(&folder.state(), Sharing::Refused).unwrap().0
    }
}
