//! Libraries that come with a plugin: those that it, or one of them, needs and looks for in folders that it names by where it lies
//! itself (`$ORIGIN`). Found as the system's loader would find them; nothing of them runs.

use std::collections::{BTreeSet, VecDeque};
use std::path::{Component, Path, PathBuf};

use super::descriptor::{Linkage, linkage};
use super::libraries::{Libraries, Missing};

/// Most libraries beside one plugin.
const COMPANIONS_MAX: usize = 64;
/// Most folders above a plugin's own in which one of them may lie.
const FOLDERS_ABOVE_MAX: usize = 4;
/// By these a file names the folder where it lies.
const ORIGINS: [&str; 2] = ["$ORIGIN", "${ORIGIN}"];

/// A library beside a plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Companion {
    /// Where it lies, by the plugin's folder; it may begin with `..`.
    pub(super) place: PathBuf,
    pub(super) source: PathBuf,
}

/// What a plugin needs beside the system's libraries.
#[derive(Clone, Debug, Default)]
pub(super) struct Companions {
    pub(super) found: Vec<Companion>,
    pub(super) missing: Vec<Missing>,
    /// Why one of them cannot be read.
    pub(super) unusable: Option<String>,
    /// Folders of other libraries, which are named by absolute path.
    pub(super) folders: Vec<PathBuf>,
    /// The first folder beside the plugin in which it looks.
    pub(super) looked_in: Option<PathBuf>,
}

/// A folder in which libraries are looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum SearchFolder {
    Absolute(PathBuf),
    /// By the plugin's own folder.
    Beside(PathBuf),
}

/// A file whose libraries are still to be found.
struct Open {
    /// Its folder, by the plugin's own.
    folder: PathBuf,
    /// `None` for the plugin.
    library: Option<PathBuf>,
    linkage: Linkage,
    /// What it is told to look in by whoever needs it.
    inherited: Vec<SearchFolder>,
}

impl Companions {
    /// Of a plugin file, by what it needs.
    pub(super) fn of(plugin: &Path, needs: &Linkage, libraries: &Libraries) -> Self {
        // As the loader sees it, and where a link leads: a build folder has its libraries there.
        let target = plugin.canonicalize().ok();
        let folders = [Some(plugin), target.as_deref()].into_iter().flatten().filter_map(Path::parent);
        let mut folders: Vec<PathBuf> = folders.map(Path::to_owned).collect();
        folders.dedup();
        let mut search = Search { folders, libraries, companions: Self::default(), names: BTreeSet::new() };
        let first = Open { folder: PathBuf::new(), library: None, linkage: needs.clone(), inherited: Vec::new() };
        let mut open = VecDeque::from([first]);
        // In the loader's order: what was found once is not looked for again.
        while let Some(next) = open.pop_front() {
            open.extend(search.look(&next));
        }
        search.companions
    }

    /// How many folders above the plugin's own the highest of them lies.
    pub(super) fn folders_above(&self) -> usize {
        self.found.iter().map(|companion| folders_above(&companion.place)).max().unwrap_or(0)
    }
}

struct Search<'a> {
    /// Those of the plugin.
    folders: Vec<PathBuf>,
    libraries: &'a Libraries,
    companions: Companions,
    /// What was found beside it.
    names: BTreeSet<String>,
}

impl Search<'_> {
    /// Finds what one file needs; the companions among it that were not known yet.
    fn look(&mut self, at: &Open) -> Vec<Open> {
        let rpath =
            || folders_of(&at.linkage.rpath, &at.folder).chain(at.inherited.iter().cloned()).collect::<Vec<_>>();
        let runpath: Vec<SearchFolder> = folders_of(&at.linkage.runpath, &at.folder).collect();
        let (folders, inherited) = match runpath.is_empty() {
            true => (rpath(), rpath()),
            false => (runpath, at.inherited.clone()),
        };
        for folder in &folders {
            match folder {
                SearchFolder::Absolute(folder) if at.library.is_none() => self.companions.folders.push(folder.clone()),
                SearchFolder::Beside(place) if self.companions.looked_in.is_none() => {
                    self.companions.looked_in =
                        self.folders.first().map(|folder| folder.join(place).components().collect());
                }
                _ => {}
            }
        }
        let mut fresh = Vec::new();
        for name in &at.linkage.needed {
            if self.names.contains(name) {
                continue;
            }
            match self.find(name, &folders, &at.folder) {
                Found::Elsewhere => {}
                Found::Beside(companion) if self.companions.found.len() < COMPANIONS_MAX => {
                    self.names.insert(name.clone());
                    let needs = linkage(&companion.source);
                    if let Err(why) = &needs {
                        self.companions.unusable.get_or_insert_with(|| why.to_string());
                    }
                    fresh.push(Open {
                        folder: companion.place.parent().map(Path::to_owned).unwrap_or_default(),
                        library: Some(companion.source.clone()),
                        linkage: needs.unwrap_or_default(),
                        inherited: inherited.clone(),
                    });
                    self.companions.found.push(companion);
                }
                _ => {
                    let missing = Missing { name: name.clone(), by: at.library.clone() };
                    if self.companions.missing.iter().all(|known| known.name != *name) {
                        self.companions.missing.push(missing);
                    }
                }
            }
        }
        fresh
    }

    fn find(&self, name: &str, folders: &[SearchFolder], own: &Path) -> Found {
        if let Some(SearchFolder::Beside(place)) = search_folder(name, own).filter(|_| name.starts_with('$')) {
            return self.beside(place).map_or(Found::Nowhere, Found::Beside);
        }
        // The loader takes a path as it is.
        if name.contains('/') {
            return Found::Elsewhere;
        }
        for folder in folders {
            match folder {
                SearchFolder::Absolute(folder) if folder.join(name).exists() => return Found::Elsewhere,
                SearchFolder::Beside(place) => {
                    if let Some(companion) = self.beside(place.join(name)) {
                        return Found::Beside(companion);
                    }
                }
                SearchFolder::Absolute(_) => {}
            }
        }
        if self.libraries.has(name) { Found::Elsewhere } else { Found::Nowhere }
    }

    /// The file at this place, by the plugin's folder.
    fn beside(&self, place: PathBuf) -> Option<Companion> {
        if folders_above(&place) > FOLDERS_ABOVE_MAX {
            return None;
        }
        let source = self.folders.iter().map(|folder| folder.join(&place)).find(|source| source.is_file())?;
        Some(Companion { place, source })
    }
}

enum Found {
    /// Where the loader finds it by itself.
    Elsewhere,
    Beside(Companion),
    Nowhere,
}

/// Where a file of this folder, by the plugin's own, looks for libraries. What is neither absolute nor by where it lies depends on
/// where the host was started, and does not count.
fn folders_of(named: &[String], own: &Path) -> impl Iterator<Item = SearchFolder> {
    named.iter().filter_map(|folder| search_folder(folder, own))
}

fn search_folder(named: &str, own: &Path) -> Option<SearchFolder> {
    if named.starts_with('/') {
        return (!named.contains('$')).then(|| SearchFolder::Absolute(named.into()));
    }
    let below = ORIGINS.iter().find_map(|origin| named.strip_prefix(origin))?;
    let is_folder = below.is_empty() || below.starts_with('/');
    (is_folder && !below.contains('$')).then(|| SearchFolder::Beside(folded(&own.join(below.trim_start_matches('/')))))
}

/// Without `.`, and without `..` but at its beginning.
pub(super) fn folded(path: &Path) -> PathBuf {
    let mut folded = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir if folded.file_name().is_some() => _ = folded.pop(),
            Component::CurDir => {}
            other => folded.push(other),
        }
    }
    folded
}

fn folders_above(place: &Path) -> usize {
    place.components().take_while(|component| *component == Component::ParentDir).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_absolute_or_by_where_a_file_lies() {
        let beside = |place: &str| Some(SearchFolder::Beside(place.into()));
        for (named, own, wanted) in [
            ("$ORIGIN", "", beside("")),
            ("${ORIGIN}/lib/./x", "", beside("lib/x")),
            ("$ORIGIN/../lib", "", beside("../lib")),
            ("$ORIGIN/../lib", "sub/deep", beside("sub/lib")),
            ("$ORIGIN/../..", "../lib", beside("../..")),
            ("/opt/lib", "sub", Some(SearchFolder::Absolute("/opt/lib".into()))),
            ("$ORIGINAL", "", None),
            ("$ORIGIN/$LIB", "", None),
            ("/usr/$LIB", "", None),
            ("lib", "", None),
            ("", "", None),
        ] {
            assert_eq!(search_folder(named, Path::new(own)), wanted, "{named} in {own}");
        }
        assert_eq!(folders_above(Path::new("../../lib/x.so")), 2);
    }
}
