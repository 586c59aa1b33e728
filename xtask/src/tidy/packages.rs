//! Which package may depend on which, and what must never reach the host or the plugin interface.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use super::Finding;

const ABI: &str = "aihost-plugin-abi";
const API: &str = "aihost-plugin-api";
const ENGINE: &str = "aihost-engine";
const SUPPORT: &str = "aihost-support";
const LLM: &str = "aihost-candle-llm";

/// A folder, and the packages of this workspace that a package in it may use. The first match counts.
const EDGES: [(&str, &[&str]); 10] = [
    ("plugin-api/abi/", &[]),
    ("plugin-api/", &[ABI]),
    ("host/", &[API]),
    ("plugins/engine/", &[API]),
    ("plugins/support/", &[API, ENGINE]),
    ("plugins/", &[API, ENGINE, SUPPORT]),
    ("xtask/", &[]),
    ("tests/plugins/", &[API]),
    ("tests/devices/", &[]),
    // The fuzz targets are readers of the host's and of the engines'.
    ("tests/", &["aihost", API, ENGINE, SUPPORT, LLM]),
];

/// Packages that `aihost plugins new` copies into an author's folder.
const ALONE: [&str; 2] = [API, ABI];
const STAND_ALONE: [&str; 2] = ["plugin-api/Cargo.toml", "plugin-api/abi/Cargo.toml"];

/// What the published crate may use, tests apart.
const API_MAY: [&str; 9] =
    ["abi_stable", ABI, "llguidance", "schemars", "serde", "serde_json", "toktrie", "tracing", "tracing-subscriber"];

/// A package, and beginnings of package names that it must not reach, directly or not.
const NEVER: [(&str, &[&str]); 3] = [
    ("aihost", &["candle", "cudarc", "tokenizers"]),
    (API, &["tokio", "axum", "hyper", "candle", "cudarc"]),
    ("xtask", &["tokio", "axum", "hyper", "candle"]),
];

/// Checks `cargo metadata` of the whole tree.
pub(super) fn check(metadata: &Value, root: &Path) -> Vec<Finding> {
    let members: BTreeSet<&str> = array(&metadata["workspace_members"]).filter_map(Value::as_str).collect();
    let packages: Vec<&Value> =
        array(&metadata["packages"]).filter(|package| members.contains(text(&package["id"]))).collect();
    let names: BTreeSet<&str> = packages.iter().map(|package| text(&package["name"])).collect();
    let graph = graph(metadata);
    let mut findings = Vec::new();
    for package in packages.iter().copied() {
        let path = text(&package["manifest_path"]);
        let file = Path::new(path).strip_prefix(root).map_or(path.to_owned(), |file| file.display().to_string());
        findings.extend(edges(package, &file, &names));
        if STAND_ALONE.contains(&file.as_str()) {
            findings.extend(check_alone(package, &file, &packages));
        }
        let name = text(&package["name"]);
        for (_, never) in NEVER.iter().filter(|(of, _)| *of == name) {
            for reached in reach(&graph, text(&package["id"])) {
                if never.iter().any(|start| reached.starts_with(start)) {
                    findings.push(Finding::new(&file, 0, format!("`{name}` must not reach `{reached}`")));
                }
            }
        }
    }
    findings
}

/// Every package takes the workspace's lints. Those that are copied into an author's folder stand alone: they say in full what
/// the others inherit, and the same.
pub(super) fn check_lints(path: &str, manifest: &str, workspace: &str) -> Option<Finding> {
    if STAND_ALONE.contains(&path) {
        let inherits = manifest.lines().any(|line| !line.starts_with('#') && line.contains("workspace"));
        if inherits {
            return Some(Finding::new(
                path,
                0,
                "it is copied without the workspace, and inherits from it; say it in full",
            ));
        }
        let differ = ["rust", "clippy"].into_iter().find(|group| {
            section(manifest, &format!("[lints.{group}]")) != section(workspace, &format!("[workspace.lints.{group}]"))
        })?;
        let sentence = format!("its `[lints.{differ}]` are not the workspace's; copy them");
        return Some(Finding::new(path, 0, sentence));
    }
    let takes = section(manifest, "[lints]").iter().any(|line| line.replace(' ', "") == "workspace=true");
    (!takes && manifest.contains("[package]"))
        .then(|| Finding::new(path, 0, "it does not take the workspace's lints; add `[lints] workspace = true`"))
}

/// What a package that stands alone says of versions is what the others do.
fn check_alone(package: &Value, file: &str, packages: &[&Value]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let Some(host) = packages.iter().find(|other| other["name"] == "aihost") else { return findings };
    for key in ["edition", "license", "repository"] {
        if package[key] != host[key] {
            findings.push(Finding::new(file, 0, format!("its `{key}` is not the workspace's {}", text(&host[key]))));
        }
    }
    let others = packages.iter().filter(|other| !ALONE.contains(&text(&other["name"])));
    let wanted: BTreeMap<&str, &str> = others
        .flat_map(|other| array(&other["dependencies"]))
        .map(|dependency| (text(&dependency["name"]), text(&dependency["req"])))
        .collect();
    for dependency in array(&package["dependencies"]) {
        let (name, req) = (text(&dependency["name"]), text(&dependency["req"]));
        match wanted.get(name) {
            Some(wanted) if *wanted != req && !ALONE.contains(&name) => {
                findings.push(Finding::new(file, 0, format!("it wants `{name}` {req}, and the workspace {wanted}")));
            }
            _ => {}
        }
    }
    findings
}

/// The lines of a section of a manifest that say something.
fn section<'a>(manifest: &'a str, head: &str) -> Vec<&'a str> {
    let lines = manifest.lines().map(str::trim).skip_while(|line| *line != head).skip(1);
    let lines = lines.take_while(|line| !line.starts_with('['));
    lines.filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
}

fn edges(package: &Value, file: &str, names: &BTreeSet<&str>) -> Vec<Finding> {
    let Some((_, allowed)) = EDGES.iter().find(|(folder, _)| file.starts_with(folder)) else {
        return vec![Finding::new(file, 0, "a package in a folder that tidy's table does not know")];
    };
    let name = text(&package["name"]);
    let mut findings = Vec::new();
    for dependency in array(&package["dependencies"]) {
        let to = text(&dependency["name"]);
        if names.contains(to) && to != name && !allowed.contains(&to) {
            findings.push(Finding::new(file, 0, format!("`{name}` must not depend on `{to}`")));
        }
        if name == API && !names.contains(to) && dependency["kind"] != "dev" && !API_MAY.contains(&to) {
            let sentence = format!("`{to}` would reach every plugin; `{API}` uses only: {}", API_MAY.join(", "));
            findings.push(Finding::new(file, 0, sentence));
        }
    }
    findings
}

/// Package id to the ids it uses outside tests.
fn graph(metadata: &Value) -> BTreeMap<&str, Vec<&str>> {
    let used = |dependency: &&Value| array(&dependency["dep_kinds"]).any(|kind| kind["kind"] != "dev");
    array(&metadata["resolve"]["nodes"])
        .map(|node| {
            let ids = array(&node["deps"]).filter(used).map(|dependency| text(&dependency["pkg"])).collect();
            (text(&node["id"]), ids)
        })
        .collect()
}

/// Names of the packages that one reaches.
fn reach<'a>(graph: &BTreeMap<&'a str, Vec<&'a str>>, from: &'a str) -> BTreeSet<String> {
    let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
    while let Some(id) = open.pop() {
        for next in graph.get(id).into_iter().flatten() {
            if seen.insert(*next) {
                open.push(next);
            }
        }
    }
    seen.into_iter().map(package_name).collect()
}

/// The name in a package id: `registry+https://...#name@1.0.0`, or `path+file:...name#1.0.0`.
fn package_name(id: &str) -> String {
    let (place, fragment) = id.rsplit_once('#').unwrap_or(("", id));
    match fragment.rsplit_once('@') {
        Some((name, _)) => name.to_owned(),
        None => place.rsplit('/').next().unwrap_or_default().to_owned(),
    }
}

fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::{check, check_alone, check_lints, package_name};

    /// One package at a path below `/r`, with its dependencies by name and kind.
    fn metadata(name: &str, folder: &str, dependencies: &[(&str, &str)]) -> Value {
        let names = ["aihost", "aihost-plugin-api", "aihost-support"].into_iter().filter(|other| *other != name);
        let others = names.map(|other| {
            let folder = if other == "aihost" { "host" } else { other.trim_start_matches("aihost-") };
            let folder = if folder == "support" { "plugins/support" } else { folder };
            json!({"name": other, "id": format!("{other}@1"), "manifest_path": format!("/r/{folder}/Cargo.toml"), "dependencies": []})
        });
        let listed: Vec<Value> = dependencies
            .iter()
            .map(|(to, kind)| json!({"name": to, "kind": if *kind == "dev" { json!("dev") } else { Value::Null }}))
            .collect();
        let own = json!({"name": name, "id": format!("{name}@1"), "manifest_path": format!("/r/{folder}/Cargo.toml"), "dependencies": listed});
        let packages: Vec<Value> = others.chain([own]).collect();
        let deps: Vec<Value> = dependencies
            .iter()
            .map(|(to, kind)| json!({"pkg": format!("{to}@1"), "dep_kinds": [{"kind": if *kind == "dev" { json!("dev") } else { Value::Null }}]}))
            .collect();
        let ids: Vec<Value> = packages.iter().map(|package| package["id"].clone()).collect();
        json!({"packages": packages, "workspace_members": ids, "resolve": {"nodes": [{"id": format!("{name}@1"), "deps": deps}]}})
    }

    fn sentences(name: &str, folder: &str, dependencies: &[(&str, &str)]) -> Vec<String> {
        let found = check(&metadata(name, folder, dependencies), Path::new("/r"));
        found.into_iter().map(|finding| finding.to_string()).collect()
    }

    #[test]
    fn allowed_edges_pass() {
        let none = [""; 0];
        assert_eq!(sentences("aihost", "host", &[("aihost-plugin-api", ""), ("axum", "")]), none);
        assert_eq!(sentences("flux", "plugins/flux", &[("aihost-support", ""), ("candle-core", "")]), none);
        assert_eq!(sentences("aihost-plugin-api", "plugin-api", &[("serde", ""), ("proptest", "dev")]), none);
    }

    #[test]
    fn each_rule_is_seen_to_fail() {
        for (name, folder, to, wanted) in [
            ("flux", "plugins/flux", "aihost", "`flux` must not depend on `aihost`"),
            ("aihost", "host", "aihost-support", "`aihost` must not depend on `aihost-support`"),
            ("xtask", "xtask", "aihost", "`xtask` must not depend on `aihost`"),
            ("aihost", "host", "candle-core", "`aihost` must not reach `candle-core`"),
            ("aihost-plugin-api", "plugin-api", "rand", "`rand` would reach every plugin"),
            ("attic", "attic", "serde", "a folder that tidy's table does not know"),
        ] {
            let found = sentences(name, folder, &[(to, "")]);
            assert!(found.len() == 1 && found[0].contains(wanted), "{found:?} for {wanted}");
        }
        assert_eq!(sentences("aihost-plugin-api", "plugin-api", &[("tokio", "")]).len(), 2);
    }

    #[test]
    fn lints_are_the_workspaces() {
        let check = |path, manifest| check_lints(path, manifest, "[workspace.lints.rust]\nx = \"deny\"\n\n[other]\n");
        assert!(check("a/Cargo.toml", "[package]\nname = \"a\"\n[lints]\nworkspace = true\n").is_none());
        assert!(check("a/Cargo.toml", "[package]\n[dependencies]\nworkspace = true\n").is_some());
        assert!(check("Cargo.toml", "[workspace]\n").is_none());
        for (manifest, wanted) in [
            ("# no workspace\n[package]\n[lints.rust]\n# why\nx = \"deny\"\n", None),
            ("[package]\n[lints.rust]\nx = \"warn\"\n", Some("are not the workspace's")),
            ("[package]\n[lints.rust]\nx = \"deny\"\n[lints.clippy]\ny = \"deny\"\n", Some("are not the workspace's")),
            ("[package]\nversion.workspace = true\n[lints.rust]\nx = \"deny\"\n", Some("say it in full")),
        ] {
            let found = check("plugin-api/Cargo.toml", manifest).map(|finding| finding.sentence);
            assert_eq!(found.is_some(), wanted.is_some(), "{manifest}: {found:?}");
            assert!(found.unwrap_or_default().contains(wanted.unwrap_or_default()), "{manifest}");
        }
    }

    #[test]
    fn what_stands_alone_says_what_the_workspace_does() {
        let serde = |req: &str| json!([{"name": "serde", "req": req}]);
        let host = json!({"name": "aihost", "edition": "2024", "dependencies": serde("^1")});
        for (edition, req, findings) in [("2024", "^1", 0), ("2021", "^1", 1), ("2024", "^2", 1)] {
            let package = json!({"name": "aihost-plugin-api", "edition": edition, "dependencies": serde(req)});
            let found = check_alone(&package, "plugin-api/Cargo.toml", &[&host, &package]);
            assert_eq!(found.len(), findings, "{found:?}");
        }
    }

    #[test]
    fn names_in_ids() {
        assert_eq!(package_name("registry+https://x/y#serde@1.0.0"), "serde");
        assert_eq!(package_name("path+file:/r/xtask#0.1.0"), "xtask");
    }
}
