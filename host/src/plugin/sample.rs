//! Plugin files for tests: a descriptor in its section, by the compiler that builds need anyway, and nothing behind it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::descriptor::tests::section;
use super::registry::Registry;
use crate::config::Sharing;

/// A folder of plugins, and a state folder beside it.
pub(super) struct Folder(tempfile::TempDir);

impl Folder {
    pub(super) fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        for made in [folder.at(""), folder.state()] {
            fs::create_dir(made).unwrap();
        }
        folder
    }

    pub(super) fn at(&self, name: &str) -> PathBuf {
        self.0.path().join("plugins").join(name)
    }

    /// The same, for a command line.
    pub(super) fn arg(&self, name: &str) -> String {
        self.at(name).display().to_string()
    }

    pub(super) fn state(&self) -> PathBuf {
        self.0.path().join("state")
    }

    pub(super) fn scan(&self) -> Registry {
        Registry::scan(&[self.at("")], &self.state(), Sharing::Refused).unwrap()
    }

    /// Puts a plugin there, as one that moves a whole file into its place.
    pub(super) fn plugin(&self, file: &str, id: &str, version: &str, arguments: &[&str]) {
        let manifest =
            format!(r#"{{"id":"{id}","version":"{version}","kinds":["text"],"devices":["cpu"],"max_concurrency":1}}"#);
        let bytes = self.0.path().join("section");
        fs::write(&bytes, section(&manifest)).unwrap();
        let text = format!(
            ".section .aihost.plugin,\"a\",@progbits\n.incbin \"{}\"\n.section .note.GNU-stack,\"\",@progbits\n",
            bytes.display()
        );
        let source = self.0.path().join("plugin.s");
        fs::write(&source, text).unwrap();
        link(&source, &self.at(file), arguments);
    }
}

/// Puts a library there that has one symbol.
pub(super) fn library(file: &Path, symbol: &str, arguments: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("library.c");
    fs::write(&source, format!("int {symbol}(void) {{ return 1; }}\n")).unwrap();
    link(&source, file, arguments);
}

fn link(source: &Path, file: &Path, arguments: &[&str]) {
    let made = file.with_extension("made");
    let linked = Command::new("cc")
        .args(["-shared", "-fPIC", "-nostdlib", "-Wl,--no-as-needed", "-Wl,--enable-new-dtags", "-o"])
        .args([&made, source])
        .args(arguments)
        .output()
        .expect("a C compiler");
    assert!(linked.status.success(), "{}", String::from_utf8_lossy(&linked.stderr));
    fs::rename(&made, file).unwrap();
}
