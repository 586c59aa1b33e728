//! `source:` and `files:`: where a model's files come from and where they lie.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use super::Checker;
use super::location::{self, Folders, Place, Reader};
use crate::config::locate::KeyPath;
use crate::config::raw::{OneOrMany, RawLocation, RawModel, Text};
use crate::config::resolved::{FileConfig, ModelConfig};

/// The role of a model's only file.
const ONLY_ROLE: &str = "model";

/// An entry's files by role.
pub(super) fn resolve(
    check: &mut Checker,
    entry: &KeyPath,
    raw: &RawModel,
    folders: &Folders<'_>,
) -> BTreeMap<String, FileConfig> {
    let mut files = BTreeMap::new();
    if let (Some(_), Some(_)) = (&raw.source, &raw.files) {
        check
            .fail(&entry.key("files"), None, "stands beside `source`")
            .hint("use `source` for one file, `files` for several");
    }
    if let Some(source) = &raw.source {
        let mut file = File { check, key: entry.key("source"), folders };
        let digest = raw.sha256.as_ref().map(|digest| (entry.key("sha256"), digest));
        files.extend(file.resolve(source, digest).map(|file| (ONLY_ROLE.to_owned(), file)));
    } else if let Some(Text(digest)) = &raw.sha256 {
        check
            .fail(&entry.key("sha256"), Some(digest), "has no `source` that it is the digest of")
            .hint("within `files:` each location has its own `sha256`");
    }
    for (role, locations) in raw.files.iter().flatten() {
        let mut file = File { check, key: entry.key("files").key(role), folders };
        files.extend(file.resolve(locations, None).map(|file| (role.clone(), file)));
    }
    files
}

/// Two entries that put different bytes at one path would overwrite each other.
pub(super) fn check_shared(check: &mut Checker, entries: &[(KeyPath, ModelConfig)]) {
    let mut seen: HashMap<&Path, (&ModelConfig, &FileConfig)> = HashMap::new();
    for (key, model) in entries {
        for (role, file) in &model.files {
            let Some((other, theirs)) = seen.insert(&file.path, (model, file)) else { continue };
            if theirs.sha256 != file.sha256 {
                let path = file.path.display();
                check
                    .fail(
                        key,
                        None,
                        format!("its file `{role}` and one of `{}` share {path} but not the same `sha256`", other.id),
                    )
                    .hint("give both the same digest, or one of them a `path:` of its own");
            }
        }
    }
}

/// One file while it is checked.
struct File<'c, 'a> {
    check: &'c mut Checker,
    key: KeyPath,
    folders: &'a Folders<'a>,
}

impl File<'_, '_> {
    fn resolve(&mut self, typed: &OneOrMany<RawLocation>, digest: Option<(KeyPath, &Text)>) -> Option<FileConfig> {
        let mut sources = Vec::new();
        let mut first = None;
        let mut path = None;
        let mut sha256 = digest.and_then(|(key, text)| location::digest(self.check, &key, text));
        if typed.items.is_empty() {
            self.check
                .fail(&self.key.clone(), None, "is an empty list")
                .hint("name one location, such as {hf: org/name, file: x.gguf}");
        }
        for (position, location) in typed.items.iter().enumerate() {
            let key = if typed.list { self.key.index(position) } else { self.key.clone() };
            match (Reader { check: self.check, folders: self.folders }).place(&key, location)? {
                Place::Here(_) if path.is_some() => {
                    self.check.fail(&key, None, "is a second `path`").hint("a file lies in one place");
                }
                Place::Here(here) => path = Some(here),
                Place::Remote(source, spot) => {
                    first.get_or_insert(spot);
                    sources.push(source);
                }
            }
            if let Some(typed) = &location.sha256 {
                let own = location::digest(self.check, &key.key("sha256"), typed);
                if sha256.is_some() && own != sha256 {
                    self.check
                        .fail(&key.key("sha256"), Some(&typed.0), "differs from the other digest of this file")
                        .hint("mirrors carry the same bytes");
                }
                sha256 = own;
            }
        }
        let path = path.or_else(|| Some(self.folders.models.join(first?.below_models(sha256.as_deref()))))?;
        Some(FileConfig { sources, sha256, path })
    }
}
