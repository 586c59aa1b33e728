//! `source:` and `files:`: where a model's files come from and where they lie.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use super::Checker;
use crate::config::locate::KeyPath;
use crate::config::paths::absolute;
use crate::config::raw::{OneOrMany, RawLocation, RawModel, Text};
use crate::config::resolved::{FileConfig, ModelConfig, Source};

/// What paths are relative to.
pub(super) struct Folders<'a> {
    pub(super) models: &'a Path,
    pub(super) base: &'a Path,
}

/// The role of a model's only file.
const ONLY_ROLE: &str = "model";

/// An entry's files by role.
pub(super) fn resolve(
    check: &mut Checker<'_>,
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
pub(super) fn check_shared(check: &mut Checker<'_>, entries: &[(KeyPath, ModelConfig)]) {
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
struct File<'c, 'a, 't> {
    check: &'c mut Checker<'t>,
    key: KeyPath,
    folders: &'a Folders<'a>,
}

impl File<'_, '_, '_> {
    fn resolve(&mut self, typed: &OneOrMany<RawLocation>, digest: Option<(KeyPath, &Text)>) -> Option<FileConfig> {
        let mut sources = Vec::new();
        let mut path = None;
        let mut sha256 = digest.and_then(|(key, text)| self.digest(&key, text));
        if typed.items.is_empty() {
            self.check
                .fail(&self.key.clone(), None, "is an empty list")
                .hint("name one location, such as {hf: org/name, file: x.gguf}");
        }
        for (position, location) in typed.items.iter().enumerate() {
            let key = if typed.list { self.key.index(position) } else { self.key.clone() };
            match self.location(&key, location)? {
                Place::Here(_) if path.is_some() => {
                    self.check.fail(&key, None, "is a second `path`").hint("a file lies in one place");
                }
                Place::Here(here) => path = Some(here),
                Place::Remote(source) => sources.push(source),
            }
            if let Some(typed) = &location.sha256 {
                let own = self.digest(&key.key("sha256"), typed);
                if sha256.is_some() && own != sha256 {
                    self.check
                        .fail(&key.key("sha256"), Some(&typed.0), "differs from the other digest of this file")
                        .hint("mirrors carry the same bytes");
                }
                sha256 = own;
            }
        }
        let path = path.or_else(|| {
            sources.first().map(|first| self.folders.models.join(below_models(first, sha256.as_deref())))
        })?;
        Some(FileConfig { sources, sha256, path })
    }

    fn digest(&mut self, key: &KeyPath, Text(typed): &Text) -> Option<String> {
        let digest = typed.trim().to_ascii_lowercase();
        if digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Some(digest);
        }
        self.check
            .fail(key, Some(typed), "is not a SHA-256 digest")
            .hint("it has 64 hexadecimal digits; `sha256sum FILE` prints one (quote it if it is all digits)");
        None
    }

    fn location(&mut self, key: &KeyPath, typed: &RawLocation) -> Option<Place> {
        let file = typed.file.as_ref().map(|file| file.0.as_str());
        let revision = typed.revision.as_ref().map(|revision| revision.0.as_str());
        match (&typed.hf, &typed.pip, &typed.url, &typed.path) {
            (Some(Text(repo)), None, None, None) => self.hugging_face(key, repo, file, revision),
            (None, Some(Text(requirement)), None, None) => self.pip(key, requirement, file, revision),
            (None, None, Some(Text(url)), None) => self.url(key, url, file, revision),
            (None, None, None, Some(path)) => {
                self.unused(key, file, revision);
                Some(Place::Here(absolute(self.folders.base, path)))
            }
            _ => {
                self.check.fail(key, None, "must say exactly one of `hf`, `pip`, `url` and `path`");
                None
            }
        }
    }

    fn hugging_face(&mut self, key: &KeyPath, repo: &str, file: Option<&str>, revision: Option<&str>) -> Option<Place> {
        let good = |part: &str| {
            !part.is_empty() && part != ".." && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        if repo.split('/').count() != 2 || !repo.split('/').all(good) {
            self.check
                .fail(&key.key("hf"), Some(repo), "is not a Hugging Face repository")
                .hint("write it like org/name");
            return None;
        }
        let file = self.inner_file(key, file)?;
        let revision = revision.unwrap_or("main").to_owned();
        Some(Place::Remote(Source::HuggingFace { repo: repo.to_owned(), file, revision }))
    }

    fn pip(&mut self, key: &KeyPath, requirement: &str, file: Option<&str>, revision: Option<&str>) -> Option<Place> {
        self.unused(key, None, revision);
        let good =
            |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.+!".contains(c));
        let pinned = requirement.split_once("==").filter(|(name, version)| good(name.trim()) && good(version.trim()));
        let Some((name, version)) = pinned.filter(|(name, _)| !name.starts_with('-')) else {
            self.check
                .fail(&key.key("pip"), Some(requirement), "does not pin a package's version")
                .hint("write it like name==1.0, so that the bytes stay the same");
            return None;
        };
        let file = self.inner_file(key, file)?;
        Some(Place::Remote(Source::Pip { requirement: format!("{}=={}", name.trim(), version.trim()), file }))
    }

    fn url(&mut self, key: &KeyPath, url: &str, file: Option<&str>, revision: Option<&str>) -> Option<Place> {
        self.unused(key, file, revision);
        let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
        if rest.is_none_or(|rest| {
            rest.starts_with('/') || url_file_name(rest).is_none() || rest.contains(char::is_whitespace)
        }) {
            self.check
                .fail(&key.key("url"), Some(url), "is not the URL of a file")
                .hint("write it like https://host/folder/file.gguf");
            return None;
        }
        Some(Place::Remote(Source::Url(url.to_owned())))
    }

    fn inner_file(&mut self, key: &KeyPath, file: Option<&str>) -> Option<String> {
        let Some(file) = file else {
            self.check.fail(&key.key("file"), None, "is missing").hint("say which file of the repository or package");
            return None;
        };
        if file.starts_with('/') || file.ends_with('/') || file.split('/').any(|part| matches!(part, "" | "." | "..")) {
            self.check
                .fail(&key.key("file"), Some(file), "is not a path inside")
                .hint("write it like folder/file.gguf");
            return None;
        }
        Some(file.to_owned())
    }

    fn unused(&mut self, key: &KeyPath, file: Option<&str>, revision: Option<&str>) {
        for (name, value) in [("file", file), ("revision", revision)] {
            if let Some(value) = value {
                self.check.fail(&key.key(name), Some(value), "has no meaning here").hint("leave it out");
            }
        }
    }
}

/// What one location says.
enum Place {
    Here(PathBuf),
    Remote(Source),
}

/// Where a pulled file lies below `models_dir`: by digest where there is one, so that entries of the same bytes share one file;
/// by source where there is none.
fn below_models(source: &Source, sha256: Option<&str>) -> PathBuf {
    let name = |file: &str| file.rsplit('/').next().unwrap_or(file).to_owned();
    let (folder, file) = match source {
        Source::HuggingFace { repo, file, revision } => {
            (format!("hf/{repo}/{}", revision.replace('/', "-")), file.clone())
        }
        Source::Pip { requirement, file } => (format!("pip/{requirement}"), file.clone()),
        Source::Url(url) => {
            let rest = url.split_once("://").map_or(url.as_str(), |(_, rest)| rest);
            let rest = rest.split(['?', '#']).next().unwrap_or(rest);
            let (host, path) = rest.split_once('/').unwrap_or((rest, "file"));
            let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | "." | "..")).collect();
            (format!("url/{}", host.replace(':', "-")), parts.join("/"))
        }
    };
    match sha256 {
        Some(sha256) => PathBuf::from(format!("sha256-{}", &sha256[..16])).join(name(&file)),
        None => PathBuf::from(folder).join(file),
    }
}

fn url_file_name(rest: &str) -> Option<&str> {
    let path = rest.split(['?', '#']).next()?;
    path.split_once('/')?.1.rsplit('/').next().filter(|name| !name.is_empty() && !matches!(*name, "." | ".."))
}
