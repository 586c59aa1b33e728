//! One location of a file: what it must say, and where the file then lies. It knows nothing of the model that wants it.

use std::path::{Path, PathBuf};

use super::Checker;
use crate::config::locate::KeyPath;
use crate::config::paths::absolute;
use crate::config::raw::{RawLocation, Text};
use crate::config::source::{Location, Part, Source, shown_url};

/// Stands between the zip in a wheel and the file in the zip.
const INSIDE_ZIP: &str = "!/";

/// What paths are relative to.
pub(super) struct Folders<'a> {
    pub(super) models: &'a Path,
    pub(super) base: &'a Path,
}

/// What one location says.
pub(super) enum Place {
    Here(PathBuf),
    Remote(Source, Spot),
}

/// Where a pulled file lies below `models_dir`.
pub(super) struct Spot {
    /// What tells its source from others.
    folder: String,
    /// Its path inside the source.
    file: String,
}

impl Spot {
    /// By digest where there is one, so that entries of the same bytes share one file; by source where there is none, and for the
    /// parts of a split model, which must lie beside each other under their own names.
    pub(super) fn below_models(&self, sha256: Option<&str>) -> PathBuf {
        match sha256.filter(|_| !is_part(last_name(&self.file))) {
            Some(sha256) => PathBuf::from(format!("sha256-{}", &sha256[..16])).join(last_name(&self.file)),
            None => PathBuf::from(&self.folder).join(&self.file),
        }
    }
}

/// A SHA-256 digest, in lower case.
pub(super) fn digest(check: &mut Checker, key: &KeyPath, Text(typed): &Text) -> Option<String> {
    let digest = typed.trim().to_ascii_lowercase();
    if digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Some(digest);
    }
    check
        .fail(key, Some(typed), "is not a SHA-256 digest")
        .hint("it has 64 hexadecimal digits; `sha256sum FILE` prints one (quote it if it is all digits)");
    None
}

/// Reads locations.
pub(super) struct Reader<'c, 'a> {
    pub(super) check: &'c mut Checker,
    pub(super) folders: &'a Folders<'a>,
}

impl Reader<'_, '_> {
    /// What a location says, if it says one thing.
    pub(super) fn place(&mut self, key: &KeyPath, typed: &RawLocation) -> Option<Place> {
        let file = typed.file.as_ref().map(|file| file.0.as_str());
        let revision = typed.revision.as_ref().map(|revision| revision.0.as_str());
        let one =
            |location: Option<(Location, Spot)>| location.map(|(at, spot)| Place::Remote(Source::Whole(at), spot));
        match (&typed.hf, &typed.pip, &typed.url, &typed.path, &typed.parts) {
            (Some(Text(repo)), None, None, None, None) => one(self.hugging_face(key, repo, file, revision)),
            (None, Some(Text(requirement)), None, None, None) => one(self.pip(key, requirement, file, revision)),
            (None, None, Some(Text(url)), None, None) => one(self.url(key, url, file, revision)),
            (None, None, None, Some(path), None) => {
                self.unused(key, file, revision);
                Some(Place::Here(absolute(self.folders.base, path)))
            }
            (None, None, None, None, Some(parts)) => {
                self.unused(key, None, revision);
                self.parts(key, parts, file)
            }
            _ => {
                self.check.fail(key, None, "must say exactly one of `hf`, `pip`, `url`, `path` and `parts`");
                None
            }
        }
    }

    /// All parts, or nothing and what is wrong with each.
    fn parts(&mut self, key: &KeyPath, typed: &[RawLocation], file: Option<&str>) -> Option<Place> {
        let whole = match file {
            Some(file) => Some(self.path_inside(key, file)?),
            None => None,
        };
        if typed.is_empty() {
            self.check.fail(&key.key("parts"), None, "is an empty list").hint(
                "name its pieces in order, such as [{pip: name-1==1.0, file: x.0}, {pip: name-2==1.0, file: x.1}]",
            );
        }
        let mut parts = Vec::new();
        let mut first = None;
        for (position, part) in typed.iter().enumerate() {
            let key = key.key("parts").index(position);
            let sha256 = part.sha256.as_ref().and_then(|typed| digest(self.check, &key.key("sha256"), typed));
            match self.place(&key, part) {
                Some(Place::Remote(Source::Whole(location), spot)) => {
                    first.get_or_insert(spot);
                    parts.push(Part { location, sha256 });
                }
                Some(Place::Remote(Source::Parts(_), _)) => {
                    self.check
                        .fail(&key.key("parts"), None, "stands within `parts`")
                        .hint("list all parts in one list");
                }
                Some(Place::Here(_)) => {
                    self.check
                        .fail(&key.key("path"), None, "stands within `parts`")
                        .hint("parts are fetched: use `pip`, `hf` or `url`; join local pieces with `cat`");
                }
                None => {}
            }
        }
        let Spot { folder, file } = first.filter(|_| parts.len() == typed.len())?;
        let spot =
            Spot { folder: format!("parts/{folder}"), file: whole.unwrap_or_else(|| without_part_number(&file)) };
        Some(Place::Remote(Source::Parts(parts), spot))
    }

    fn hugging_face(
        &mut self,
        key: &KeyPath,
        repo: &str,
        file: Option<&str>,
        revision: Option<&str>,
    ) -> Option<(Location, Spot)> {
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
        if file.contains(INSIDE_ZIP) {
            self.check
                .fail(&key.key("file"), Some(&file), "is in a zip, which only a wheel (`pip`) may hold")
                .hint("name a file of the repository itself");
            return None;
        }
        let revision = revision.unwrap_or("main").to_owned();
        let spot = Spot { folder: format!("hf/{repo}/{}", revision.replace('/', "-")), file: file.clone() };
        Some((Location::HuggingFace { repo: repo.to_owned(), file, revision }, spot))
    }

    fn pip(
        &mut self,
        key: &KeyPath,
        requirement: &str,
        file: Option<&str>,
        revision: Option<&str>,
    ) -> Option<(Location, Spot)> {
        self.unused(key, None, revision);
        let good =
            |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.+!".contains(c));
        let pinned = requirement.split_once("==").map(|(name, version)| (name.trim(), version.trim()));
        let Some((package, version)) =
            pinned.filter(|(name, version)| good(name) && good(version) && !name.starts_with('-'))
        else {
            self.check
                .fail(&key.key("pip"), Some(requirement), "does not pin a package's version")
                .hint("write it like name==1.0, so that the bytes stay the same");
            return None;
        };
        let typed = self.inner_file(key, file)?;
        let (file, inside) = match typed.split_once(INSIDE_ZIP) {
            Some((zip, inside)) => (self.path_inside(key, zip)?, Some(self.path_inside(key, inside)?)),
            None => (typed.clone(), None),
        };
        if inside.as_ref().is_some_and(|inside| inside.contains(INSIDE_ZIP)) {
            self.check
                .fail(&key.key("file"), Some(&typed), "is in a zip within a zip")
                .hint("write it like a.zip!/folder/file.gguf: one zip, in the wheel");
            return None;
        }
        let spot = Spot { folder: format!("pip/{package}=={version}"), file: typed.replace(INSIDE_ZIP, "/") };
        Some((Location::Pip { package: package.to_owned(), version: version.to_owned(), file, inside }, spot))
    }

    fn url(
        &mut self,
        key: &KeyPath,
        url: &str,
        file: Option<&str>,
        revision: Option<&str>,
    ) -> Option<(Location, Spot)> {
        self.unused(key, file, revision);
        let shown = shown_url(url);
        let rest = shown.split_once("://").filter(|(scheme, _)| matches!(*scheme, "http" | "https"));
        let spot = rest.and_then(|(_, rest)| url_spot(rest)).filter(|_| !url.contains(char::is_whitespace));
        let Some(spot) = spot else {
            self.check
                .fail(&key.key("url"), Some(&shown), "is not the URL of a file")
                .hint("write it like https://host/folder/file.gguf");
            return None;
        };
        Some((Location::Url(url.to_owned()), spot))
    }

    fn inner_file(&mut self, key: &KeyPath, file: Option<&str>) -> Option<String> {
        let Some(file) = file else {
            self.check.fail(&key.key("file"), None, "is missing").hint("say which file of the repository or package");
            return None;
        };
        self.path_inside(key, file)
    }

    fn path_inside(&mut self, key: &KeyPath, file: &str) -> Option<String> {
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

/// `host/folder/file` of a URL that names a file.
fn url_spot(rest: &str) -> Option<Spot> {
    let (host, path) = rest.split_once('/')?;
    let named = path.rsplit('/').next().is_some_and(|name| !matches!(name, "" | "." | ".."));
    let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | "." | "..")).collect();
    (named && !host.is_empty())
        .then(|| Spot { folder: format!("url/{}", host.replace(':', "-")), file: parts.join("/") })
}

fn last_name(file: &str) -> &str {
    file.rsplit('/').next().unwrap_or(file)
}

/// Whether a file is one of several by its name: `model-00001-of-00002.safetensors`.
fn is_part(name: &str) -> bool {
    let is_number = |digits: &str| digits.len() == 5 && digits.bytes().all(|digit| digit.is_ascii_digit());
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    let numbers = stem.rsplit_once("-of-").and_then(|(rest, count)| Some((rest.rsplit_once('-')?.1, count)));
    numbers.is_some_and(|(number, count)| is_number(number) && is_number(count))
}

/// What the whole is called if it does not say: as its first part, without `.part0` or `.001`.
fn without_part_number(file: &str) -> String {
    let number = |ending: &str| {
        let ending = ending.strip_prefix("part").unwrap_or(ending);
        ending.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-')
    };
    match file.rsplit_once('.') {
        Some((stem, ending)) if !last_name(stem).is_empty() && number(ending) => stem.to_owned(),
        _ => file.to_owned(),
    }
}
