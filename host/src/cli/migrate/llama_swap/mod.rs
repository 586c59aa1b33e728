//! llama-swap's YAML: variables and macros first, then what holds for all models, then each model, then what groups them.

mod command;
mod groups;
mod keys;
mod macros;
mod model;
mod peers;
mod proxy;
mod start;

use std::collections::BTreeSet;
use std::path::Path;

use serde_yaml::{Mapping, Value};

use self::keys::Keys;
use self::macros::Macros;
use self::model::{Common, Model};
use super::plan::Plan;
use super::yaml;
use crate::config::Env;

/// The load deadline of llama-swap, and of the host, where nothing is said, seconds.
const STARTUP_TIME: i64 = 120;
/// The shortest load deadline that llama-swap takes, seconds.
const STARTUP_TIME_MIN_S: i64 = 15;
/// Macros, of the file or of a model.
const MACROS: &str = "macros";

/// Keys that the host needs no counterpart of, with what is instead.
const NOT_NEEDED: [(&str, &str); 13] = [
    ("startPort", "every process gets a free port"),
    ("logLevel", "the variable AIHOST_LOG says how much is logged"),
    ("logTimeFormat", "`aihost serve --log-format` says how the log looks"),
    ("logToStdout", "the log goes to stderr, and `aihost logs NAME` has what a model's process prints"),
    ("logRequests", "requests are in the log, and counted in /metrics"),
    ("metricsMaxInMemory", "/metrics counts without end; nothing is kept of single requests"),
    ("captureBuffer", "bodies of requests are not kept"),
    ("store", "nothing is kept of single requests"),
    ("ui", "its page of activity is not here"),
    ("performance", "/metrics says how full devices are, whenever it is asked"),
    ("includeAliasesInList", "aliases answer, and are not listed as models"),
    (
        "upstream",
        "`upstream_routes:` of an entry says which of its engine's own paths are served, below /upstream/NAME",
    ),
    ("sendLoadingState", "`limits: sse_ping:` keeps a stream open while its model loads"),
];

/// Whether it is llama-swap's: models that have a `cmd`, or peers.
pub(super) fn is_one(config: &Value) -> bool {
    let has_command = |model: &Value| model.get("cmd").is_some();
    let models = config.get("models").and_then(Value::as_mapping);
    let has_models = models.is_some_and(|models| models.values().any(has_command));
    has_models || config.get("peers").and_then(Value::as_mapping).is_some_and(|peers| !peers.is_empty())
}

/// Reads it. `folder`: where relative paths in it are taken to begin.
///
/// # Errors
/// A variable that it names is not set: its name.
pub(super) fn read(mut config: Value, folder: &Path, env: &Env) -> Result<Plan, String> {
    let mut plan = Plan::default();
    peers::keep_keys_in_variables(&mut config, &mut plan);
    let mut used = BTreeSet::new();
    macros::expand_variables(&mut config, env, &mut used)?;
    if !used.is_empty() {
        let names = used.into_iter().collect::<Vec<_>>().join(", ");
        plan.notes.push(format!("variables are written out as they are set now: {names}"));
    }
    let mut top = Keys::of(config).unwrap_or_default();
    let macros = Macros::of(top.take(MACROS));
    let models = top.keys("models").pairs();
    plan.notes.append(&mut top.notes);
    let mut top = Keys::of(macros.expand(yaml::mapping(top.pairs()))).unwrap_or_default();
    let common = common(&mut top, folder, &mut plan);
    let mut read: Vec<Model> = Vec::new();
    for (name, value) in models {
        match expanded(&name, value, &macros) {
            Some(keys) => read.push(model::read(&name, keys, &common)),
            None => plan.notes.push(format!("`models.{name}` is left out: it is not a mapping")),
        }
    }
    groups::read(&mut top, &mut read, &mut plan);
    plan.entries.extend(read.into_iter().map(|model| model.entry));
    peers::peers(&mut top, &mut plan);
    peers::selectors(&mut top, &mut plan);
    peers::profiles(&mut top, &mut plan);
    for (key, instead) in NOT_NEEDED {
        if let Some(shown) = top.shown(key).filter(|shown| !matches!(shown.as_str(), "false" | "\"\"")) {
            plan.notes.push(format!("`{key}: {shown}` is not carried over: {instead}"));
        }
    }
    plan.notes.extend(top.finish(""));
    Ok(plan)
}

/// The keys of a model with what macros stand for.
fn expanded(name: &str, value: Value, macros: &Macros) -> Option<Keys> {
    let Value::Mapping(mut model) = value else { return None };
    let macros = macros.for_model(name, model.shift_remove(MACROS));
    // Comments of commands are no place for macros.
    for key in ["cmd", "cmdStop"] {
        if let Some(Value::String(text)) = model.get_mut(key) {
            let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
            *text = lines.collect::<Vec<_>>().join("\n");
        }
    }
    Keys::of(macros.expand(Value::Mapping(model)))
}

/// What holds for every model, and for the host.
fn common(top: &mut Keys, folder: &Path, plan: &mut Plan) -> Common {
    let keys = top.texts("apiKeys");
    if !keys.is_empty() {
        plan.settings.push(("api_keys".to_owned(), yaml::texts(keys)));
    }
    let mut defaults = Mapping::new();
    let startup_time = top.number("healthCheckTimeout").map(|seconds| seconds.max(STARTUP_TIME_MIN_S));
    if let Some(seconds) = startup_time.filter(|seconds| *seconds != STARTUP_TIME) {
        defaults.insert(yaml::text("startup_time"), yaml::text(format!("{seconds}s")));
    }
    let ttl = top.number("globalTTL").unwrap_or(0).max(0);
    if ttl > 0 {
        defaults.insert(yaml::text("keep_alive"), yaml::text(format!("{ttl}s")));
    }
    if !defaults.is_empty() {
        plan.settings.push(("defaults".to_owned(), Value::Mapping(defaults)));
    }
    let unload_timeout = top.number("unloadTimeout").filter(|seconds| *seconds > 0);
    Common { ttl, unload_timeout, folder: folder.to_owned() }
}
