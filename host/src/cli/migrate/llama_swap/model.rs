//! One model of llama-swap's: its keys, one by one.

use std::path::PathBuf;

use serde_yaml::Value;

use super::command;
use super::keys::{Keys, shown};
use super::start::Start;
use crate::cli::migrate::plan::Entry;
use crate::cli::migrate::yaml;

/// What holds for every model that does not say otherwise.
#[derive(Clone, Debug)]
pub(super) struct Common {
    /// Seconds of idleness after which a model is unloaded; 0 is never.
    pub(super) ttl: i64,
    /// Seconds that it may take to end.
    pub(super) unload_timeout: Option<i64>,
    /// Where relative paths began, as far as can be told: the folder of the file.
    pub(super) folder: PathBuf,
}

/// A model, and what groups must know of it.
#[derive(Debug)]
pub(super) struct Model {
    /// Its entry.
    pub(super) entry: Entry,
    /// Whether it is unloaded when it is idle.
    pub(super) has_ttl: bool,
}

/// Reads a model; its macros are expanded.
pub(super) fn read(name: &str, mut keys: Keys, common: &Common) -> Model {
    let mut model = Model { entry: Entry::named(name), has_ttl: false };
    let entry = &mut model.entry;
    entry.aliases = keys.texts("aliases");
    let filters = filters(name, &mut keys, entry);
    let capabilities = keys.keys("capabilities");
    let words = keys.text("cmd").ok_or_else(|| "is missing".to_owned()).and_then(|text| command::words(&text));
    match words {
        Ok(words) => Start { keys: &mut keys, entry: &mut *entry, common, words }.read(capabilities),
        Err(why) => {
            entry.set("type", yaml::text("text"));
            entry.refuse(format!("its `cmd` {why}"));
        }
    }
    entry.notes.extend(filters);
    let ttl = match keys.number("ttl").unwrap_or(-1) {
        -1 => common.ttl,
        ttl => {
            match ttl {
                1.. => entry.set("keep_alive", yaml::text(format!("{ttl}s"))),
                0 if common.ttl > 0 => entry.set("keep_alive", yaml::text("forever")),
                0 => {}
                _ => entry.note(format!("`ttl: {ttl}` is left out: it is no time")),
            }
            ttl
        }
    };
    model.has_ttl = ttl > 0;
    if let Some(engine_model) = keys.text("useModelName").filter(|name| !name.is_empty()) {
        model.entry.set("engine_model", yaml::text(engine_model));
    }
    listed(&mut keys, &mut model.entry);
    let notes = keys.finish("");
    model.entry.notes.extend(notes);
    model
}

/// What changes requests on their way, which the host does not do. A name that has parameters of its own is an alias.
fn filters(name: &str, keys: &mut Keys, entry: &mut Entry) -> Vec<String> {
    let mut filters = keys.keys("filters");
    let mut notes = Vec::new();
    let old = filters.shown("strip_params");
    if let Some(typed) = filters.shown("stripParams").or(old) {
        notes.push(format!("`filters.stripParams: {typed}`: requests are passed on as they are"));
    }
    if let Some(typed) = filters.shown("setParams") {
        notes.push(format!("`filters.setParams: {typed}`: requests are passed on as they are; let clients send it"));
    }
    for (id, params) in filters.keys("setParamsByID").pairs() {
        notes.push(format!(
            "`filters.setParamsByID: {{{id}: {}}}`: `{id}` answers, with what its client sends",
            shown(&params)
        ));
        if id != name && !entry.aliases.contains(&id) {
            entry.aliases.push(id);
        }
    }
    notes.extend(filters.finish("filters."));
    notes
}

/// What the host has nothing like.
fn listed(keys: &mut Keys, entry: &mut Entry) {
    let mut said = Vec::new();
    for key in ["name", "description", "metadata"] {
        said.extend(keys.shown(key).filter(|shown| shown != "\"\"").map(|shown| format!("`{key}: {shown}`")));
    }
    if !said.is_empty() {
        entry.note(format!("{} not carried over: listings have the model's name alone", are(&said)));
    }
    if keys.flag("unlisted") == Some(true) {
        entry.note(
            "`unlisted: true` is not carried over: every model is listed; a key of `api_keys:` may be given some",
        );
    }
    match keys.number("concurrencyLimit").filter(|limit| *limit > 0) {
        Some(limit) if entry.has("url") => entry.set("concurrency", Value::from(limit)),
        Some(limit) => entry.note(format!(
            "`concurrencyLimit: {limit}` is not carried over: what is too much waits in the model's queue (`limits: queue:`)"
        )),
        None => {}
    }
    if keys.flag("sendLoadingState") == Some(true) {
        entry.note(
            "`sendLoadingState: true` is not carried over: `limits: sse_ping:` keeps a stream open while its model loads",
        );
    }
    if let Some(shown) = keys.shown("timeouts") {
        entry.note(format!(
            "`timeouts: {shown}` is not carried over: `limits:` has `first_output_timeout` and others, for all models"
        ));
    }
    let mut compat = keys.keys("compat");
    if compat.flag("ignoreWebsockets") == Some(true) {
        entry.note("`compat.ignoreWebsockets: true` is not carried over: a socket that says nothing holds no model");
    }
    let notes = compat.finish("compat.");
    entry.notes.extend(notes);
}

fn are(said: &[String]) -> String {
    format!("{} {}", said.join(", "), if said.len() == 1 { "is" } else { "are" })
}
