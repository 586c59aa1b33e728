//! `docgen`: the pages of docs/ that are written from the code. The host prints its metrics, keys and commands; the limits
//! that are no keys are read from the constants in the sources.

mod limits;

use std::fs;
use std::process::Command;

use clap::Args;

use crate::error::{Doing, Error, Result};
use crate::workspace::{Profile, Workspace, root};
use crate::{shell, test};

/// Pages, and what the host calls them.
const PAGES: [(&str, &str); 3] = [("docs/METRICS.md", "metrics"), ("docs/CONFIG.md", "config"), ("docs/CLI.md", "cli")];
/// The page that the table of limits closes.
const LIMITS_PAGE: &str = "docs/CONFIG.md";

/// Whether to write.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Write nothing; fail if a page is not what the code says.
    #[arg(long)]
    check: bool,
}

/// Writes the pages, or compares them.
pub(crate) fn run(options: &Options) -> Result {
    let workspace = Workspace::read()?;
    if std::env::var_os(test::BUILT_VARIABLE).is_none() {
        workspace.build_all(Profile::Dev)?;
    }
    let mut stale = Vec::new();
    for (path, name) in PAGES {
        let mut text = shell::output(Command::new(workspace.host(Profile::Dev)).args(["generated-page", name]))?;
        if path == LIMITS_PAGE {
            text += &limits::section(&sources()?)?;
        }
        let file = root().join(path);
        if fs::read_to_string(&file).is_ok_and(|there| there == text) {
            continue;
        }
        if options.check {
            stale.push(path);
        } else {
            fs::write(&file, text).doing(format_args!("write {path}"))?;
            println!("{path}");
        }
    }
    if stale.is_empty() {
        return Ok(());
    }
    Err(Error(format!("{} is not what the code says; run `cargo xtask docgen`", stale.join(", "))))
}

/// The pages as `ci` checks them.
pub(crate) fn check() -> Result {
    run(&Options { check: true })
}

/// Path and text of every source whose constants are limits of the host or of the SDK.
fn sources() -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    let mut folders = vec![root().join("host/src"), root().join("plugin-api/src/sdk")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).doing(format_args!("read {}", folder.display()))?.flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let text = fs::read_to_string(&path).doing(format_args!("read {}", path.display()))?;
                let relative = path.strip_prefix(root()).unwrap_or(&path).to_string_lossy().into_owned();
                found.push((relative, text));
            }
        }
    }
    found.sort();
    Ok(found)
}
