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

    /// Those of these names that are not here. `beside` are folders that the file itself names.
    pub(super) fn missing<'a>(&self, needed: &'a [String], beside: &[PathBuf]) -> Vec<&'a str> {
        let is_here = |name: &str| {
            let in_folder = |folder: &PathBuf| folder.join(name).exists();
            name.contains('/') || beside.iter().chain(&self.folders).any(in_folder) || self.is_cached(name)
        };
        needed.iter().map(String::as_str).filter(|name| !is_here(name)).collect()
    }

    /// Whether the cache has a path that ends so, and the file is there. It keeps paths as text, each ended by a zero.
    fn is_cached(&self, name: &str) -> bool {
        self.cache.split(|byte| *byte == 0).any(|text| {
            let path = std::str::from_utf8(text).ok().filter(|path| path.starts_with('/'));
            path.map(Path::new).is_some_and(|path| path.file_name().is_some_and(|file| file == name) && path.exists())
        })
    }
}

/// What to do about libraries that are missing, in one sentence without the file's name.
pub(super) fn sentence(missing: &[&str]) -> String {
    let names = missing.join(", ");
    let are = if missing.len() == 1 { "which is" } else { "which are" };
    let advice = match () {
        () if missing.iter().any(|name| name.starts_with("libcuda.")) => {
            "there is no NVIDIA driver here: install it, or put the build without CUDA in its place"
        }
        () if missing.iter().any(|name| ["libcu", "libnv"].iter().any(|start| name.starts_with(start))) => {
            "install CUDA's libraries of that version, or add their folder to LD_LIBRARY_PATH"
        }
        () => "install them, or add their folder to LD_LIBRARY_PATH",
    };
    format!("it needs {names}, {are} not on this machine; {advice}")
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
        let (cached, _, _) = (file("cached/libc1.so"), file("named/libn.so"), file("own/libo.so"));
        let gone = folder.path().join("cached/libgone.so");
        let cache = format!("glibc-ld.so.cache1.1\0libc1.so\0{}\0{}\0", cached.display(), gone.display()).into_bytes();
        let libraries = Libraries { folders: vec![folder.path().join("named")], cache };
        let needed = ["libc1.so", "libn.so", "libo.so", "libgone.so", "libcuda.so.1", "c1.so", "/abs/lib.so"];
        let needed = needed.map(str::to_owned);
        assert_eq!(libraries.missing(&needed, &[folder.path().join("own")]), ["libgone.so", "libcuda.so.1", "c1.so"]);
        assert_eq!(libraries.missing(&needed[2..3], &[]), ["libo.so"]);
        let real = ["libc.so.6", "libm.so.6", "libgcc_s.so.1"].map(str::to_owned);
        assert_eq!(Libraries::here().missing(&real, &[]), [""; 0], "what this very program runs on is here");
    }

    #[test]
    fn what_to_do_is_said() {
        for (missing, wanted) in [
            (
                vec!["libcuda.so.1", "libcublas.so.13"],
                "libcuda.so.1, libcublas.so.13, which are not on this machine; there is no NVIDIA driver",
            ),
            (vec!["libcublas.so.13"], "libcublas.so.13, which is not on this machine; install CUDA's libraries"),
            (vec!["libx.so"], "install them, or add"),
        ] {
            assert!(sentence(&missing).contains(wanted), "{}", sentence(&missing));
        }
    }
}
