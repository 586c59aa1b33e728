//! Which room of the host may import which, docs/ARCHITECTURE.md.

use super::Finding;
use super::source::{line_of, words};

/// A room, and the rooms it may import beside itself.
const ROOMS: [(&str, &[&str]); 14] = [
    ("main", &["cli"]),
    (
        "cli",
        &["http", "runtime", "worker", "plugin", "device", "store", "media", "jobs", "config", "telemetry", "domain"],
    ),
    ("http", &["runtime", "worker", "plugin", "device", "store", "media", "jobs", "config", "telemetry", "domain"]),
    ("runtime", &["scheduler", "worker", "plugin", "device", "store", "config", "telemetry", "domain"]),
    ("scheduler", &["domain"]),
    ("worker", &["plugin", "device", "config", "telemetry", "domain"]),
    ("plugin", &["config", "telemetry", "domain"]),
    ("device", &["config", "telemetry", "domain"]),
    ("store", &["config", "telemetry", "domain"]),
    ("media", &["domain"]),
    ("jobs", &["domain"]),
    ("config", &["domain"]),
    ("telemetry", &["domain"]),
    ("domain", &[]),
];

/// What the scheduler must not name: it is a pure function, and what others show of it is theirs.
const IMPURE: [&str; 12] = [
    "tokio",
    "tracing",
    "serde",
    "serde_json",
    "std::time",
    "std::thread",
    "std::fs",
    "std::net",
    "HashMap",
    "HashSet",
    "f32",
    "f64",
];

/// Checks one file of the host; others pass.
pub(super) fn check(path: &str, code: &str) -> Vec<Finding> {
    let Some(inside) = path.strip_prefix("host/src/") else { return Vec::new() };
    let parts: Vec<&str> = inside.trim_end_matches(".rs").split('/').collect();
    let room = parts[0];
    if room == "lib" {
        return Vec::new();
    }
    let Some((_, allowed)) = ROOMS.iter().find(|(name, _)| *name == room) else {
        let sentence = format!("`{room}` is no room of the host; add it to docs/ARCHITECTURE.md and to tidy's table");
        return vec![Finding::new(path, 0, sentence)];
    };
    let mut findings = Vec::new();
    for (at, target) in targets(code, parts.len() - usize::from(parts.ends_with(&["mod"]))) {
        if target != room && !allowed.contains(&target) && ROOMS.iter().any(|(name, _)| *name == target) {
            let may = if allowed.is_empty() { "no room".to_owned() } else { allowed.join(", ") };
            let sentence = format!("room `{room}` must not import `{target}`; it may import: {may}");
            findings.push(Finding::new(path, line_of(code, at), sentence));
        }
    }
    if room == "scheduler" {
        for word in IMPURE {
            let sentence = || format!("the scheduler is pure and must not name `{word}`");
            findings.extend(words(code, word).map(|at| Finding::new(path, line_of(code, at), sentence())));
        }
    }
    findings
}

/// Every first name after `crate::`, `aihost::` or enough `super::`, in a path, a `use` or a group of either.
fn targets(code: &str, depth: usize) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    for root in ["crate", "aihost"] {
        for at in words(code, root) {
            if code[..at].ends_with('$') {
                continue;
            }
            if let Some(rest) = code[at + root.len()..].strip_prefix("::") {
                found.extend(first_names(rest).into_iter().map(|name| (at, name)));
            }
        }
    }
    let up = "super::".repeat(depth);
    for (at, _) in code.match_indices(&up) {
        found.extend(first_names(&code[at + up.len()..]).into_iter().map(|name| (at, name)));
    }
    found
}

/// The first name of a path, or of each path of a `{group}`.
fn first_names(rest: &str) -> Vec<&str> {
    let Some(group) = rest.strip_prefix('{') else { return name(rest).into_iter().collect() };
    let (mut depth, mut start, mut names) = (0usize, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                names.extend(name(&group[start..at]));
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                names.extend(name(&group[start..at]));
                start = at + 1;
            }
            _ => {}
        }
    }
    names
}

fn name(path: &str) -> Option<&str> {
    let path = path.trim_start();
    let end = path.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(path.len());
    (end > 0).then(|| &path[..end])
}

#[cfg(test)]
mod tests {
    use super::check;

    fn lines(path: &str, code: &str) -> Vec<usize> {
        check(path, code).into_iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn forbidden_edges_are_found_in_every_form() {
        for code in [
            "use crate::http::Router;",
            "use crate::{domain::ModelId, http};",
            "use crate::{domain::{ModelId, Kind}, http::{self}};",
            "fn f() { crate::http::serve() }",
            "use super::super::http;",
        ] {
            assert_eq!(lines("host/src/runtime/run.rs", code), [1], "in {code}");
        }
        assert_eq!(lines("host/src/worker/mod.rs", "\nuse super::runtime;"), [2]);
        assert_eq!(lines("host/src/main.rs", "aihost::http::serve()"), [1]);
        assert_eq!(lines("host/src/domain.rs", "use crate::config::Config;"), [1]);
    }

    #[test]
    fn allowed_edges_pass() {
        for (path, code) in [
            ("host/src/runtime/run.rs", "use crate::{domain::{ModelId, Kind}, scheduler, worker::Output};"),
            ("host/src/runtime/run.rs", "use super::api; use crate::runtime::api;"),
            ("host/src/plugin/mod.rs", "mod tests { use super::loader; }"),
            ("host/src/main.rs", "aihost::cli::main()"),
            ("host/src/lib.rs", "pub mod http;"),
            ("plugins/candle-llm/src/lib.rs", "use crate::http;"),
        ] {
            assert_eq!(lines(path, code), [0; 0], "in {path}");
        }
    }

    #[test]
    fn the_scheduler_is_pure() {
        assert_eq!(lines("host/src/scheduler/state.rs", "use std::collections::HashMap;\nx: f64"), [1, 2]);
        assert_eq!(lines("host/src/scheduler/explain.rs", "use serde::Serialize;\n#[serde(rename)]"), [1, 2]);
        assert_eq!(lines("host/src/runtime/run.rs", "use std::collections::HashMap;"), [0; 0]);
    }

    #[test]
    fn a_new_room_must_be_listed() {
        assert_eq!(lines("host/src/attic/mod.rs", ""), [0]);
    }
}
