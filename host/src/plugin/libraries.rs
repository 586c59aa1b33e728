//! Which of the libraries that a plugin file needs are not on this machine: where the system's loader would look, nothing is
//! opened. A worker inherits the search path of the host, so that what is found here is found there.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Folders where the loader looks last.
const USUAL: [&str; 4] = ["/lib64", "/usr/lib64", "/lib", "/usr/lib"];
/// What the system keeps of the folders that it was told of.
const CACHE: &str = "/etc/ld.so.cache";
/// Largest cache of the system's loader that is read, in bytes. Real ones have some hundred KiB.
const CACHE_BYTES_MAX: u64 = 64 << 20;

/// `LD_LIBRARY_PATH`.
static SEARCHED: OnceLock<Vec<PathBuf>> = OnceLock::new();

/// Says where libraries are looked for first: `LD_LIBRARY_PATH`. Said once, before anyone asks.
pub fn search_libraries(path: Option<&str>) {
    let path = path.filter(|path| !path.is_empty());
    SEARCHED.get_or_init(|| path.into_iter().flat_map(|path| path.split([':', ';'])).map(PathBuf::from).collect());
}

/// A library that is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Missing {
    pub(super) name: String,
    /// The library that needs it; none where it is the plugin.
    pub(super) by: Option<PathBuf>,
}

/// Where libraries are.
#[derive(Debug)]
pub(super) struct Libraries {
    folders: Vec<PathBuf>,
    cache: Vec<u8>,
}

impl Libraries {
    /// Those of this machine.
    pub(super) fn here() -> Self {
        let folders = SEARCHED.get().into_iter().flatten().cloned().chain(USUAL.map(PathBuf::from)).collect();
        let is_small = std::fs::metadata(CACHE).is_ok_and(|cache| cache.len() <= CACHE_BYTES_MAX);
        Self { folders, cache: is_small.then(|| std::fs::read(CACHE).ok()).flatten().unwrap_or_default() }
    }

    /// Whether this machine has one of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        name.contains('/') || self.folders.iter().any(|folder| folder.join(name).exists()) || self.is_cached(name)
    }

    /// Whether the cache has a path that ends so, and the file is there. It keeps paths as text, each ended by a zero.
    fn is_cached(&self, name: &str) -> bool {
        self.cache.split(|byte| *byte == 0).any(|text| {
            let path = std::str::from_utf8(text).ok().filter(|path| path.starts_with('/'));
            path.map(Path::new).is_some_and(|path| path.file_name().is_some_and(|file| file == name) && path.exists())
        })
    }
}

/// What to do about libraries that are missing, in one sentence without the plugin's name. `beside`: the folder where those lie
/// that the plugin has beside it, if it looks for any.
pub(super) fn sentence(missing: &[Missing], beside: Option<&Path>) -> String {
    let name = |missing: &Missing| match &missing.by {
        None => missing.name.clone(),
        Some(library) => format!("{} (for its library {})", missing.name, library.display()),
    };
    let names: Vec<String> = missing.iter().map(name).collect();
    let are = if missing.len() == 1 { "which is" } else { "which are" };
    let starts = |starts: &[&str]| missing.iter().any(|one| starts.iter().any(|start| one.name.starts_with(start)));
    let advice = match beside {
        _ if starts(&["libcuda."]) => {
            "there is no NVIDIA driver here: install it, or put the build without CUDA in its place".to_owned()
        }
        _ if starts(&["libcu", "libnv"]) => {
            "install CUDA's libraries of that version, or add their folder to LD_LIBRARY_PATH".to_owned()
        }
        Some(folder) => {
            let them = if missing.len() == 1 { "it" } else { "them" };
            format!("put {them} into {}, or install {them}", folder.display())
        }
        None => "install them, or add their folder to LD_LIBRARY_PATH".to_owned(),
    };
    format!("it needs {}, {are} not on this machine; {advice}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_loader_would_not_find_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            std::fs::create_dir_all(folder.path().join(name).parent().unwrap()).unwrap();
            std::fs::write(folder.path().join(name), b"").unwrap();
            folder.path().join(name)
        };
        let (cached, _) = (file("cached/libc1.so"), file("named/libn.so"));
        let gone = folder.path().join("cached/libgone.so");
        let cache = format!("glibc-ld.so.cache1.1\0libc1.so\0{}\0{}\0", cached.display(), gone.display()).into_bytes();
        let libraries = Libraries { folders: vec![folder.path().join("named")], cache };
        for (name, is_here) in [
            ("libc1.so", true),
            ("libn.so", true),
            ("/abs/lib.so", true),
            ("libgone.so", false),
            ("libcuda.so.1", false),
            ("c1.so", false),
        ] {
            assert_eq!(libraries.has(name), is_here, "{name}");
        }
        for name in ["libc.so.6", "libm.so.6", "libgcc_s.so.1"] {
            assert!(Libraries::here().has(name), "what this very program runs on is here: {name}");
        }
    }

    #[test]
    fn what_to_do_is_said() {
        let folder = Path::new("/plugins/lib");
        for (missing, beside, wanted) in [
            (
                vec!["libcuda.so.1", "libcublas.so.13"],
                None,
                "libcuda.so.1, libcublas.so.13, which are not on this machine; there is no NVIDIA driver",
            ),
            (vec!["libcublas.so.13"], None, "libcublas.so.13, which is not on this machine; install CUDA's libraries"),
            (vec!["libx.so"], None, "install them, or add"),
            (vec!["libx.so"], Some(folder), "put it into /plugins/lib, or install it"),
        ] {
            let missing: Vec<Missing> =
                missing.into_iter().map(|name| Missing { name: name.into(), by: None }).collect();
            assert!(sentence(&missing, beside).contains(wanted), "{}", sentence(&missing, beside));
        }
        let missing = Missing { name: "liby.so".into(), by: Some("/plugins/libx.so".into()) };
        let said = sentence(&[missing], None);
        assert!(said.contains("liby.so (for its library /plugins/libx.so), which is not"), "{said}");
    }
}
