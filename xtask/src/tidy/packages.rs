//! Which package may depend on which, and what must never reach the host or the plugin interface.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use super::Finding;

const ABI: &str = "aihost-plugin-abi";
const API: &str = "aihost-plugin-api";
const SUPPORT: &str = "aihost-support";
const LLM: &str = "aihost-candle-llm";

/// A folder, and the packages of this workspace that a package in it may use. The first match counts.
const EDGES: [(&str, &[&str]); 9] = [
    ("plugin-api/abi/", &[]),
    ("plugin-api/", &[ABI]),
    ("host/", &[API]),
    ("plugins/support/", &[API]),
    ("plugins/", &[API, SUPPORT]),
    ("xtask/", &[]),
    ("tests/plugins/", &[API]),
    ("tests/devices/", &[]),
    // The fuzz targets are readers of the host's and of the engines'.
    ("tests/", &["aihost", API, SUPPORT, LLM]),
];

/// What the published crate may use, tests apart.
const API_MAY: [&str; 7] = ["abi_stable", ABI, "schemars", "serde", "serde_json", "tracing", "tracing-subscriber"];

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
    for package in packages {
        let path = text(&package["manifest_path"]);
        let file = Path::new(path).strip_prefix(root).map_or(path.to_owned(), |file| file.display().to_string());
        findings.extend(edges(package, &file, &names));
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

/// Every package takes the workspace's lints.
pub(super) fn check_lints(path: &str, manifest: &str) -> Option<Finding> {
    let mut section = "";
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            section = line;
        } else if section == "[lints]" && line.replace(' ', "") == "workspace=true" {
            return None;
        }
    }
    manifest
        .contains("[package]")
        .then(|| Finding::new(path, 0, "it does not take the workspace's lints; add `[lints] workspace = true`"))
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

    use super::{check, check_lints, package_name};

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
        assert!(check_lints("a/Cargo.toml", "[package]\nname = \"a\"\n[lints]\nworkspace = true\n").is_none());
        assert!(check_lints("a/Cargo.toml", "[package]\n[dependencies]\nworkspace = true\n").is_some());
        assert!(check_lints("Cargo.toml", "[workspace]\n").is_none());
    }

    #[test]
    fn names_in_ids() {
        assert_eq!(package_name("registry+https://x/y#serde@1.0.0"), "serde");
        assert_eq!(package_name("path+file:/r/xtask#0.1.0"), "xtask");
    }
}
