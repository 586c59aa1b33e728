//! Registered plugins: which there are, which of them fits an entry, and what is said where none does.
//!
//! It opens no plugin, and reads no file: `scan` does.

use std::path::PathBuf;
use std::sync::Arc;

use aihost_plugin_api::abi::Manifest;
use semver::Version;

use super::copy::PluginCopy;
use super::scan::Seen;
use crate::domain::{Kind, excerpt, nearest, some_names};

/// Most bytes of the reason why a file is not usable.
const REASON_BYTES: usize = 1000;
/// The kind of plugins whose engines answer HTTP themselves: what is asked is between them and their clients, as with custom ones.
const UPSTREAM: &str = "upstream";
/// Digits of a digest that tell it from others, for people.
const SHORT_DIGITS: usize = 8;

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
        self.answers_http() || self.manifest.kinds.iter().any(|served| kind_served(served) == Some(kind))
    }

    /// Whether its engines answer HTTP themselves, whatever they serve, by its manifest.
    pub fn answers_http(&self) -> bool {
        self.manifest.kinds.iter().any(|served| served == UPSTREAM)
    }

    /// Whether its engines are programs of their own, of whose memory it knows nothing.
    pub fn runs_programs(&self) -> bool {
        self.answers_http() && self.manifest.permissions.iter().any(|name| name == "subprocess")
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

    /// The beginning of what tells it, and the libraries beside it, from any other.
    pub fn short_digest(&self) -> &str {
        let digest = self.copy.digest();
        digest.get(..SHORT_DIGITS).unwrap_or(digest)
    }

    /// Whether it is made of the very same bytes, wherever these lie.
    pub fn is_same(&self, other: &Self) -> bool {
        self.copy.digest() == other.copy.digest() && self.manifest == other.manifest
    }

    /// Its version and what tells it from other builds of that, for a sentence.
    pub fn build(&self) -> String {
        format!("{} ({})", self.manifest.version, self.short_digest())
    }
}

/// The kind of models that a kind of a manifest serves, if this host knows it.
pub fn kind_served(name: &str) -> Option<Kind> {
    match name {
        UPSTREAM => Some(Kind::Custom),
        name => Kind::ALL.into_iter().find(|kind| kind.name() == name),
    }
}

/// All plugins of the folders where they are looked for.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    /// Plugins that can be loaded.
    pub plugins: Vec<Arc<PluginFile>>,
    /// Files that are not usable, and why in one sentence.
    pub rejected: Vec<Rejected>,
    /// What an operator should know of plugins that are usable, and the files that it is about.
    pub doubts: Vec<Rejected>,
    /// The folders that were scanned, for messages: the first is where one more would be put.
    pub folders: Vec<PathBuf>,
    /// What was read of each file, for the next look.
    #[doc(hidden)]
    pub seen: Seen,
}

/// A `.so` file that is not a usable plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The file that was found.
    pub file: PathBuf,
    /// The plugin that it would be, if it says so.
    pub id: Option<String>,
    /// One sentence: wanted, found, what to do.
    pub reason: String,
}

impl Rejected {
    /// The reason may quote the file, or its name: it is kept as it may be printed.
    pub(super) fn new(file: PathBuf, id: Option<String>, reason: &str) -> Self {
        Self { file, id, reason: excerpt(reason, REASON_BYTES) }
    }
}

/// Why no plugin fits an entry.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct RegistryError(pub String);

impl Registry {
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
                    "plugin `{id}` {wanted} was asked for, {} has {}{}; change the range in models.yaml or install that version",
                    self.searched(),
                    found.join(", "),
                    self.rejected_of(id).map(|one| format!(" ({})", one.reason)).unwrap_or_default()
                )))
            }
        }
    }

    /// The folders, for a sentence.
    pub fn searched(&self) -> String {
        let folders: Vec<String> = self.folders.iter().map(|folder| folder.display().to_string()).collect();
        folders.join(" or ")
    }

    /// The file that would be this plugin, were it usable.
    fn rejected_of(&self, id: &str) -> Option<&Rejected> {
        self.rejected.iter().find(|one| one.id.as_deref() == Some(id))
    }

    /// Why the file at this place is not usable, if it is not.
    pub fn refusal_of(&self, file: &std::path::Path) -> Option<&str> {
        self.rejected.iter().find(|one| one.file == file).map(|one| one.reason.as_str())
    }

    /// Whether it says the same as another one.
    pub fn is_same(&self, other: &Self) -> bool {
        let same = |(one, other): (&Arc<PluginFile>, &Arc<PluginFile>)| Arc::ptr_eq(one, other);
        self.plugins.len() == other.plugins.len()
            && self.plugins.iter().zip(&other.plugins).all(same)
            && (&self.rejected, &self.doubts) == (&other.rejected, &other.doubts)
    }

    fn unknown(&self, id: &str) -> String {
        let folder = self.searched();
        // Whoever wants this very plugin has no use for what is wrong with others.
        if let Some(one) = self.rejected_of(id) {
            return format!("no usable plugin `{id}` in {folder}: {}", one.reason);
        }
        let mut ids: Vec<&str> = self.plugins.iter().map(|plugin| plugin.manifest.id.as_str()).collect();
        ids.dedup();
        let bad = match self.rejected.as_slice() {
            [] => String::new(),
            [one] => format!(" (one file was rejected: {})", one.reason),
            [one, rest @ ..] => format!(" ({} files were rejected, the first: {})", rest.len() + 1, one.reason),
        };
        if ids.is_empty() {
            // A bare name is one of ours; whoever wrote another's knows where it is from.
            let from = if id.contains('/') { "" } else { " (a release has it, `cargo xtask build-plugins` builds it)" };
            return format!("no plugins in {folder}{bad}; put the file of plugin `{id}` there{from}");
        }
        let guess =
            nearest(id, ids.iter().copied()).map(|name| format!("; did you mean `{name}`?")).unwrap_or_default();
        format!("no plugin `{id}` in {folder}, which has {}{bad}{guess}", some_names(ids))
    }
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
    fn a_file_with_the_very_id_is_named_before_others() {
        let rejected = [
            Rejected::new("first.so".into(), None, "first.so is damaged"),
            Rejected::new("other.so".into(), Some("a/other".into()), "other.so is old"),
            Rejected::new("wanted.so".into(), Some("a/ver".into()), "wanted.so is of another ABI"),
        ];
        let registry =
            Registry { rejected: rejected.into(), plugins: vec![plugin("a/b", "1.0.0")], ..Registry::default() };
        let error = registry.find("a/ver", None).unwrap_err().to_string();
        assert!(error.contains("wanted.so is of another ABI") && !error.contains("first.so"), "{error}");
        let error = registry.find("a/none", None).unwrap_err().to_string();
        assert!(error.contains("3 files were rejected"), "{error}");
        // The same where another version of it is there.
        let rejected = vec![Rejected::new("two.so".into(), Some("a/b".into()), "two.so is of another ABI")];
        let registry = Registry { rejected, ..registry };
        let error = registry.find("a/b", Some(&"^2".parse().unwrap())).unwrap_err().to_string();
        assert!(error.contains("^2") && error.contains("two.so is of another ABI"), "{error}");
    }
}
