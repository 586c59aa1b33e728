//! What lies where: the top level, and the rooms that docs/ARCHITECTURE.md lists.

use std::collections::BTreeSet;

use super::{File, Finding};

/// What the top level holds beside dotfiles; all of it must be there.
const TOP: [&str; 13] = [
    "Cargo.toml",
    "Cargo.lock",
    "host",
    "plugin-api",
    "plugins",
    "models.yaml",
    "xtask",
    "tests",
    "docs",
    "README.md",
    "LICENSE-MIT",
    "LICENSE-APACHE",
    "rust-toolchain.toml",
];

const ARCHITECTURE: &str = "docs/ARCHITECTURE.md";
/// Each folder in these is a room, and so is each file that stands beside them under a name of its own.
const HOUSES: [&str; 3] = ["host/src/", "plugin-api/src/", "plugins/"];

/// Checks the tree.
pub(super) fn check(files: &[File]) -> Vec<Finding> {
    let mut findings = top_level(files.iter().map(|file| file.path.as_str()));
    let page = files.iter().find(|file| file.path == ARCHITECTURE).and_then(|file| file.text.as_deref());
    findings.extend(rooms(page.unwrap_or_default(), files.iter().map(|file| file.path.as_str())));
    findings
}

fn top_level<'a>(paths: impl Iterator<Item = &'a str>) -> Vec<Finding> {
    let found: BTreeSet<&str> = paths.filter_map(|path| path.split('/').next()).collect();
    let unknown = found.iter().filter(|name| !name.starts_with('.') && !TOP.contains(name));
    let unknown = unknown.map(|name| Finding::new(name, 0, "the top level is settled; put it into one of its folders"));
    let missing = TOP.iter().filter(|name| !found.contains(*name));
    unknown.chain(missing.map(|name| Finding::new(name, 0, "it belongs to the top level and is not there"))).collect()
}

/// The table of ARCHITECTURE has one row per room, opening with its path in backquotes.
fn rooms<'a>(page: &str, paths: impl Iterator<Item = &'a str>) -> Vec<Finding> {
    let there: BTreeSet<String> = paths.filter_map(room).collect();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let listed: BTreeSet<String> = rows
        .map(|(path, _)| path.to_owned())
        .filter(|path| HOUSES.iter().any(|house| path.starts_with(house)))
        .collect();
    let missing = there.difference(&listed);
    let missing = missing.map(|room| Finding::new(ARCHITECTURE, 0, format!("the room map has no row for `{room}`")));
    let stale = listed.difference(&there);
    let stale =
        stale.map(|room| Finding::new(ARCHITECTURE, 0, format!("the room map has `{room}`, which is not there")));
    missing.chain(stale).collect()
}

fn room(path: &str) -> Option<String> {
    let house = HOUSES.iter().find(|house| path.starts_with(*house))?;
    let inside = &path[house.len()..];
    match inside.split_once('/') {
        Some((folder, _)) => Some(format!("{house}{folder}/")),
        None => (inside.ends_with(".rs") && inside != "lib.rs").then(|| path.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::{TOP, rooms, top_level};

    #[test]
    fn the_top_level_is_settled() {
        assert_eq!(top_level(TOP.into_iter().chain([".gitignore", "docs/x.md"])), []);
        let found = top_level(TOP.into_iter().chain(["notes.txt"]).filter(|name| *name != "models.yaml"));
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(found.len(), 2);
        assert!(found[0].starts_with("notes.txt: the top level") && found[1].starts_with("models.yaml: it belongs"));
    }

    #[test]
    fn the_room_map_equals_the_folders() {
        let page = "| `host/src/http/` | routes |\n| `host/src/domain.rs` | words |\n| `xtask/` | tools |\n";
        let paths = ["host/src/http/mod.rs", "host/src/http/openai/chat.rs", "host/src/domain.rs", "host/src/lib.rs"];
        assert_eq!(rooms(page, paths.into_iter()), []);
        let found = rooms(page, ["host/src/http/mod.rs", "plugins/flux/src/lib.rs"].into_iter());
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert!(
            found[0].contains("no row for `plugins/flux/`") && found[1].contains("`host/src/domain.rs`, which is not")
        );
    }
}
