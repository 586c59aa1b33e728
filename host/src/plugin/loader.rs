//! The only `dlopen` of the host: opens a plugin file, checks its layout, and hands out its root module as plain functions.
//!
//! A library is never closed: neither glibc nor Rust can unload one safely (thread-local destructors, running threads),
//! so its code lives as long as the process. It knows no registry: the path is the shadow copy someone else made.

use std::error::Error as _;
use std::fs::File;
use std::os::fd::IntoRawFd;
use std::path::{Path, PathBuf};

use abi_stable::abi_stability::abi_checking::{CheckingGlobals, check_layout_compatibility_with_globals};
use abi_stable::library::lib_header_from_path;
use abi_stable::{StableAbi, type_layout::TypeLayout};
use aihost_plugin_api::Error;
use aihost_plugin_api::abi::{RawHostArc, RawModelBox, Root_Ref};
use aihost_plugin_api::task::Description;
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use super::copy::{CopyIdentity, Identity, open_plain};
use super::shadow;

/// Longest part of a foreign message that goes into a sentence, in bytes.
const MAX_QUOTED_BYTES: usize = 400;

/// Why a plugin file could not be opened: one sentence, and the whole story for `--explain`.
#[derive(Debug, thiserror::Error)]
#[error("{sentence}")]
pub struct LoadError {
    sentence: String,
    full: String,
}

impl LoadError {
    fn new(sentence: String, full: String) -> Self {
        Self { sentence, full }
    }

    /// Everything that is known, on as many lines as it takes.
    pub fn explain(&self) -> &str {
        &self.full
    }
}

/// An opened plugin. It stays mapped until the process ends.
#[derive(Clone, Debug)]
pub struct OpenPlugin {
    root: Root,
    file: PathBuf,
}

#[derive(Clone, Copy)]
struct Root(Root_Ref);

impl std::fmt::Debug for Root {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Root")
    }
}

impl OpenPlugin {
    /// What it says of itself beyond its manifest.
    ///
    /// # Errors
    /// When it is not the JSON it should be.
    pub fn describe(&self) -> Result<Description, Error> {
        let json = (self.root.0.describe())();
        serde_json::from_slice(&json)
            .map_err(|e| Error::internal(format!("{} describes itself unreadably: {e}", self.file.display())))
    }

    /// A new instance from its `options:` as JSON. No device is touched.
    ///
    /// # Errors
    /// The plugin's own.
    pub fn instantiate(&self, host: RawHostArc, options: &[u8]) -> Result<RawModelBox, Error> {
        (self.root.0.instantiate())(host, options.into()).into_result().map_err(Error::from)
    }
}

/// Opens a plugin file that has this identity. Runs its constructors, so only a worker (or a placement that was asked for) may
/// call it.
///
/// # Errors
/// When it is another file, the system cannot load it, or its layout is not this host's.
pub fn open(file: &Path, identity: &CopyIdentity) -> Result<OpenPlugin, LoadError> {
    let mut names = Names::of(file, identity);
    let root = map_copy(file, identity, &mut names).and_then(|opened| root_of(&opened, file));
    let root = root.map_err(|error| LoadError::new(names.shown(&error.sentence), names.shown(&error.full)))?;
    Ok(OpenPlugin { root, file: identity.source.clone() })
}

/// What private copies are called for people: by the files that they were made of.
struct Names(Vec<(String, String)>);

impl Names {
    fn of(file: &Path, identity: &CopyIdentity) -> Self {
        let mut names = Self(Vec::new());
        for library in &identity.beside {
            names.are(&library.path, &library.source);
        }
        names.are(file, &identity.source);
        if let Some(folder) = &identity.folder {
            names.are(folder, &origin(folder, file, &identity.source));
        }
        names
    }

    /// The first that fits counts, so files come before the folder that they lie in.
    fn are(&mut self, path: &Path, shown: &Path) {
        self.0.push((path.display().to_string(), shown.display().to_string()));
    }

    /// The same where the copy, or its folder, was opened by another path.
    fn are_opened(&mut self, path: &Path, opened: &Path) {
        self.0.insert(0, (opened.display().to_string(), path.display().to_string()));
    }

    fn shown(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, (path, shown)| text.replace(path, shown))
    }
}

/// The folder that the folder of a copy stands for.
fn origin(folder: &Path, file: &Path, source: &Path) -> PathBuf {
    let depth = file.strip_prefix(folder).map_or(1, |place| place.components().count());
    source.ancestors().nth(depth).or(source.parent()).unwrap_or(source).to_owned()
}

/// Maps the copy, and keeps it: the path by which it was opened.
fn map_copy(file: &Path, identity: &CopyIdentity, names: &mut Names) -> Result<PathBuf, LoadError> {
    let Some(folder) = &identity.folder else {
        let opened = descriptor(file, &identity.plugin)?;
        names.are_opened(file, &opened);
        map(file, &opened)?;
        return Ok(opened);
    };
    let kept = kept_open(folder)?;
    names.are_opened(folder, &kept);
    let opened = look_below(&kept, folder, file, identity)?;
    map(file, &opened)?;
    // What was reached by a name while it was opened is looked at once more; a descriptor is what it is.
    look_below(&kept, folder, file, identity)
}

/// The root module of what is mapped, if its layout is this host's.
fn root_of(opened: &Path, file: &Path) -> Result<Root, LoadError> {
    // Mapped and kept already: this finds the same object, whatever flags it asks for.
    let header = lib_header_from_path(opened).map_err(|e| {
        let full = format!("{e:#?}");
        LoadError::new(
            format!(
                "{} does not export a plugin this host understands: {}; rebuild it",
                file.display(),
                first_line(&e.to_string())
            ),
            full,
        )
    })?;
    let theirs = header.layout().ok_or_else(|| {
        let sentence = format!("{} carries no layout to check; rebuild it with `export_plugin!`", file.display());
        LoadError::new(sentence.clone(), sentence)
    })?;
    let mine = <Root_Ref as StableAbi>::LAYOUT;
    if let (Err(older), Err(newer)) = (fits(mine, theirs), fits(theirs, mine)) {
        return Err(LoadError::new(
            format!(
                "{} was built for another layout of the plugin interface; rebuild it with this host's SDK, which `aihost plugins new` writes into `vendor/`",
                file.display()
            ),
            format!("as a newer plugin: {older}\nas an older plugin: {newer}"),
        ));
    }
    // SAFETY: the layouts of the two root modules were compared just above and one contains the other, which is what
    // the call asks of its caller; a field the plugin lacks is refused by its accessor.
    #[expect(unsafe_code, reason = "abi_stable's own check accepts only one direction and caches across plugins")]
    let root = unsafe { header.init_root_module_with_unchecked_layout::<Root_Ref>() };
    let root = root.map_err(|e| {
        LoadError::new(
            format!("{} could not be initialised: {}; rebuild it", file.display(), first_line(&e.to_string())),
            format!("{e:#?}"),
        )
    })?;
    Ok(Root(root))
}

/// Opens the file and keeps it open for good: a path by which the system's loader opens what was looked at, whatever lies
/// under the file's name by then.
fn descriptor(file: &Path, identity: &Identity) -> Result<PathBuf, LoadError> {
    let opened = looked_at(file, file, identity)?;
    shadow::hold(file);
    Ok(PathBuf::from(format!("/proc/self/fd/{}", opened.into_raw_fd())))
}

/// The same of the folder of a plugin that has libraries beside it: the loader looks for those by the path that it is given for
/// the plugin, and finds what was looked at.
fn kept_open(folder: &Path) -> Result<PathBuf, LoadError> {
    let opened = open_plain(folder).map_err(|e| unusable(folder, e.to_string()))?;
    shadow::hold(folder);
    Ok(PathBuf::from(format!("/proc/self/fd/{}", opened.into_raw_fd())))
}

/// Whether the plugin and its libraries are what they should be. The path of the plugin below `kept`.
fn look_below(kept: &Path, folder: &Path, file: &Path, identity: &CopyIdentity) -> Result<PathBuf, LoadError> {
    let below = |path: &Path| kept.join(path.strip_prefix(folder).unwrap_or(path));
    for library in &identity.beside {
        looked_at(&below(&library.path), &library.path, &library.identity)?;
    }
    let plugin = below(file);
    looked_at(&plugin, file, &identity.plugin)?;
    Ok(plugin)
}

/// Opens what has this identity. `shown` is its name for people.
fn looked_at(file: &Path, shown: &Path, identity: &Identity) -> Result<File, LoadError> {
    let opened = open_plain(file).map_err(|e| unusable(shown, e.to_string()))?;
    let found = opened.metadata().map_err(|e| unusable(shown, e.to_string()))?;
    match Identity::of(&found) == *identity {
        true => Ok(opened),
        false => Err(unusable(shown, "it was changed after it was hashed; load the model again".to_owned())),
    }
}

fn unusable(file: &Path, why: String) -> LoadError {
    LoadError::new(format!("the system cannot load {}: {why}", file.display()), why)
}

/// Maps the library with our flags and keeps it for good.
fn map(file: &Path, opened: &Path) -> Result<(), LoadError> {
    let flags = RTLD_NOW | RTLD_LOCAL | libc::RTLD_NODELETE;
    // SAFETY: loading runs the file's constructors. The path is a file the operator put into the plugins folder and whose
    // descriptor was read; running its code is what it is there for. It is never unloaded, so nothing can dangle.
    #[expect(unsafe_code, reason = "dlopen")]
    let library = unsafe { Library::open(Some(opened), flags) };
    let library = library.map_err(|e| {
        // The error itself only says that it is one; its source names the library, say, that is not there.
        let full = e.source().map_or_else(|| e.to_string(), ToString::to_string);
        let why = full.strip_prefix(&format!("{}: ", opened.display())).unwrap_or(&full);
        LoadError::new(
            format!(
                "the system cannot load {}: {}; if a library is missing, install it or add its folder to LD_LIBRARY_PATH",
                file.display(),
                first_line(why)
            ),
            full.clone(),
        )
    })?;
    // The handle is leaked on purpose: closing would only lower a count that NODELETE ignores.
    let _ = library.into_raw();
    Ok(())
}

/// Whether `implementation` can be used as `interface`, by a check that remembers no other plugin.
fn fits(interface: &'static TypeLayout, implementation: &'static TypeLayout) -> Result<(), String> {
    check_layout_compatibility_with_globals(interface, implementation, &CheckingGlobals::new())
        .map_err(|e| e.to_string())
}

fn first_line(text: &str) -> String {
    let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("no reason given");
    let cut = line.char_indices().map(|(at, _)| at).find(|at| *at >= MAX_QUOTED_BYTES).unwrap_or(line.len());
    line[..cut].trim_end_matches(['.', ';']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::copy::LibraryIdentity;
    use super::*;

    /// What nobody but the host knows lies under `shadow`, `kept` or a number.
    #[test]
    fn what_is_no_library_is_one_sentence_that_names_the_file_people_know() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, source) = (dir.path().join("kept"), Path::new("/plugins/sub/own.so"));
        std::fs::create_dir_all(folder.join("sub")).unwrap();
        let alone = dir.path().join("shadow.so");
        let below = folder.join("sub/own.so");
        for (file, folder) in [(&alone, None), (&below, Some(folder.clone()))] {
            std::fs::write(file, b"no library").unwrap();
            let plugin = Identity::of(&file.metadata().unwrap());
            let identity = CopyIdentity { plugin, source: source.into(), folder, ..CopyIdentity::default() };
            let is_known = |text: &str| !["shadow", "kept", "/fd/"].iter().any(|private| text.contains(private));
            let error = open(file, &identity).unwrap_err();
            let sentence = error.to_string();
            assert!(sentence.contains("cannot load /plugins/sub/own.so: file too short"), "{sentence}");
            assert!(is_known(&sentence) && sentence.lines().count() == 1, "{sentence}");
            assert!(is_known(error.explain()) && !error.explain().is_empty(), "{}", error.explain());
            std::fs::write(file, b"another").unwrap();
            let sentence = open(file, &identity).unwrap_err().to_string();
            assert!(
                sentence.contains("own.so: it was changed after it was hashed") && is_known(&sentence),
                "{sentence}"
            );
        }
    }

    #[test]
    fn a_copy_is_called_by_what_it_was_made_of() {
        let (folder, file) = (Path::new("/state/shadow/ab"), Path::new("/state/shadow/ab/plugins/a.so"));
        let library = LibraryIdentity {
            path: folder.join("lib/libdeep.so"),
            source: "/srv/plugins/../lib/libdeep.so.1".into(),
            identity: Identity::default(),
        };
        let identity = CopyIdentity {
            source: "/srv/plugins/a.so".into(),
            folder: Some(folder.into()),
            beside: vec![library],
            ..CopyIdentity::default()
        };
        let mut names = Names::of(file, &identity);
        names.are_opened(folder, Path::new("/proc/self/fd/7"));
        for (told, wanted) in [
            ("/proc/self/fd/7/plugins/a.so: no", "/srv/plugins/a.so: no"),
            ("/state/shadow/ab/lib/libdeep.so: no", "/srv/plugins/../lib/libdeep.so.1: no"),
            ("/proc/self/fd/7/plugins/../lib/libdeep.so: no", "/srv/plugins/../lib/libdeep.so: no"),
            ("libother.so: no", "libother.so: no"),
        ] {
            assert_eq!(names.shown(told), wanted);
        }
    }

    #[test]
    fn the_host_fits_itself() {
        let mine = <Root_Ref as StableAbi>::LAYOUT;
        assert_eq!(fits(mine, mine), Ok(()));
    }
}
