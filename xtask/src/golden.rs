//! `golden`: plugin files as authors ship them, which every later host of this ABI is to load. Made once for each layout, and
//! committed: what a test builds anew is no proof of that.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::error::{Doing, Error, Result};
use crate::shell;
use crate::variants::{self, Variant};
use crate::workspace::{self, Workspace};

/// Examples of the SDK that are kept.
const EXAMPLES: [&str; 2] = ["text", "image"];
/// Where, below the root.
const FOLDER: &str = "tests/golden/plugins";
/// Their digests, as `sha256sum --check` reads them.
const DIGESTS: &str = "SHA256SUMS";
/// Most bytes of one.
const BYTES_MAX: u64 = 1_000_000;
/// As small as they get.
const SMALL: Variant = Variant {
    name: "golden",
    profile: "release",
    settings: &[
        ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "s"),
        ("CARGO_PROFILE_RELEASE_LTO", "fat"),
        ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1"),
        ("CARGO_PROFILE_RELEASE_DEBUG", "0"),
        ("CARGO_PROFILE_RELEASE_STRIP", "symbols"),
    ],
};

/// Builds them, looks that they tell nothing of this machine, and writes them and their digests.
pub(crate) fn run() -> Result {
    let target = Workspace::read()?.staging().join("golden");
    let folder = workspace::root().join(FOLDER);
    fs::create_dir_all(&folder).doing(format_args!("make {}", folder.display()))?;
    let home = std::env::var("CARGO_HOME").or_else(|_| std::env::var("HOME").map(|home| format!("{home}/.cargo")));
    let home = home.doing("find cargo's folder: neither CARGO_HOME nor HOME is set")?;
    // The last that fits counts: sources of a registry lie in a folder that is named by it.
    let mut places = vec![(home.clone(), "/cargo"), (workspace::root().display().to_string(), "/aihost")];
    let registries = Path::new(&home).join("registry/src");
    let entries = fs::read_dir(&registries).doing(format_args!("read {}", registries.display()))?;
    places.extend(entries.flatten().map(|entry| (entry.path().display().to_string(), "/crates")));
    let flags: Vec<String> = places.iter().map(|(from, to)| format!("--remap-path-prefix={from}={to}")).collect();
    let mut files = Vec::new();
    for example in EXAMPLES {
        let built = variants::build(SMALL, example, &target, &flags)?;
        let bytes = fs::read(&built).doing(format_args!("read {}", built.display()))?;
        if bytes.len() as u64 > BYTES_MAX {
            return Err(Error(format!("{} has {} bytes, of at most {BYTES_MAX}", built.display(), bytes.len())));
        }
        if let Some((place, _)) = places.iter().find(|(place, _)| holds(&bytes, place)) {
            return Err(Error(format!("{} names a folder of this machine, {place}", built.display())));
        }
        let name = format!("{example}.so");
        write(&folder.join(&name), &bytes)?;
        files.push(name);
    }
    let sums = shell::output(Command::new("sha256sum").args(&files).current_dir(&folder))?;
    write(&folder.join(DIGESTS), sums.as_bytes())?;
    println!("wrote {FOLDER}: {}", files.join(", "));
    Ok(())
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

fn write(path: &Path, bytes: &[u8]) -> Result {
    fs::write(path, bytes).doing(format_args!("write {}", path.display()))
}
