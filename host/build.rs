//! Packs the sources of the plugin SDK into this program, so that `aihost plugins new` needs nothing but it: a table of paths and
//! `include_bytes!`, of the files that its packages publish.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Where the SDK lies, from this package.
const SDK: &str = "../plugin-api";
/// What of it is packed: of these folders, everything below. Its tests are not: they want packages that an author has no use for.
const PACKED: [&str; 13] = [
    "Cargo.toml",
    "README.md",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "src",
    "examples",
    "abi/Cargo.toml",
    "abi/README.md",
    "abi/LICENSE-APACHE",
    "abi/LICENSE-MIT",
    "abi/abi.txt",
    "abi/build.rs",
    "abi/src",
];

fn main() {
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR")).join(SDK);
    let root = root.canonicalize().unwrap_or_else(|error| panic!("the plugin SDK is to lie at {SDK}: {error}"));
    let mut files = Vec::new();
    for name in PACKED {
        let path = root.join(name);
        println!("cargo::rerun-if-changed={}", path.display());
        collect(&path, &mut files);
    }
    files.sort();
    let mut table = Vec::new();
    let rows = files.iter().map(|file| (file.strip_prefix(&root).unwrap_or(file).display().to_string(), file));
    writeln!(table, "&[").expect("memory is written");
    rows.for_each(|(name, file)| writeln!(table, "({name:?}, include_bytes!({file:?})),").expect("memory is written"));
    writeln!(table, "]").expect("memory is written");
    let out = PathBuf::from(variable("OUT_DIR")).join("sdk_files.rs");
    fs::write(&out, table).unwrap_or_else(|error| panic!("{} cannot be written: {error}", out.display()));
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|error| panic!("cargo sets {name}: {error}"))
}

/// A file, or all files of a folder.
fn collect(path: &Path, files: &mut Vec<PathBuf>) {
    if !path.is_dir() {
        return files.push(path.to_owned());
    }
    let entries = fs::read_dir(path).unwrap_or_else(|error| panic!("{} cannot be read: {error}", path.display()));
    for entry in entries {
        let entry = entry.unwrap_or_else(|error| panic!("{} cannot be read: {error}", path.display()));
        // What editors leave behind is no source.
        if !entry.file_name().to_string_lossy().starts_with('.') {
            collect(&entry.path(), files);
        }
    }
}
