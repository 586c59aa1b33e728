//! The licences of everything that is linked in.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::error::{Doing, Result};
use crate::shell;
use crate::workspace::{PluginPackage, metadata};

/// Beginnings of the names of files that hold a licence's text.
const FILES: [&str; 5] = ["LICENSE", "LICENCE", "COPYING", "NOTICE", "UNLICENSE"];

/// Name, version and licence of every package, and each text once.
pub(super) fn text(plugins: &[PluginPackage]) -> Result<String> {
    let packages = metadata(&["--filter-platform", super::TARGET])?;
    let linked = linked(plugins)?;
    let mut texts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut out = String::from("aihost is linked with these packages.\n\n");
    for package in packages["packages"].as_array().into_iter().flatten() {
        let field = |name: &str| package[name].as_str().unwrap_or_default();
        let name = format!("{} {}", field("name"), field("version"));
        // A package of the workspace has no source.
        if package["source"].is_null() || !linked.contains(&name) {
            continue;
        }
        let _ = writeln!(out, "{name}: {}", licence(package));
        let folder = Path::new(field("manifest_path")).parent().unwrap_or(Path::new("."));
        for entry in fs::read_dir(folder).doing(format_args!("read {}", folder.display()))?.flatten() {
            let is_text =
                FILES.iter().any(|start| entry.file_name().to_string_lossy().to_uppercase().starts_with(start));
            if let Some(text) = Some(entry.path())
                .filter(|path| is_text && path.is_file())
                .and_then(|path| fs::read_to_string(path).ok())
            {
                texts.entry(text.trim().to_owned()).or_default().insert(name.clone());
            }
        }
    }
    for (text, names) in texts {
        let names: Vec<String> = names.into_iter().collect();
        let _ = write!(out, "\n{}\n{}\n\n{text}\n", "=".repeat(100), names.join(", "));
    }
    Ok(out)
}

fn licence(package: &Value) -> &str {
    package["license"].as_str().or_else(|| package["license_file"].as_str()).unwrap_or("unknown")
}

/// What the host and the plugins depend on, as `name version`.
fn linked(plugins: &[PluginPackage]) -> Result<BTreeSet<String>> {
    let mut command = shell::cargo();
    command.args(["tree", "--edges", "normal", "--prefix", "none", "--format", "{p}", "--target", super::TARGET]);
    command.args(["--package", "aihost"]);
    for plugin in plugins {
        command.args(["--package", &plugin.package]);
    }
    let tree = shell::output(&mut command)?;
    let name = |line: &str| {
        let mut words = line.split_whitespace();
        Some(format!("{} {}", words.next()?, words.next()?.strip_prefix('v')?))
    };
    Ok(tree.lines().filter_map(name).collect())
}
