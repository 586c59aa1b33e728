//! Models that others run, and names that stand for models: `peers`, `selectors`, `profiles`.

use std::collections::{BTreeMap, BTreeSet};

use serde_yaml::Value;

use super::keys::{Keys, shown};
use super::macros::only_variable;
use super::proxy::Proxy;
use crate::cli::migrate::kind;
use crate::cli::migrate::plan::{Entry, Plan};
use crate::cli::migrate::yaml;

/// How the host names a key that is in a variable.
const IN_VARIABLE: &str = "env:";

/// Puts `env:NAME` where a key is a variable and nothing else, before variables are written out.
pub(super) fn keep_keys_in_variables(config: &mut Value, plan: &mut Plan) {
    let mut keep = |value: &mut Value| {
        if let Some(name) = only_variable(value) {
            *value = Value::from(format!("{IN_VARIABLE}{name}"));
            plan.variables.insert(name);
        }
    };
    if let Some(Value::Sequence(keys)) = config.get_mut("apiKeys") {
        keys.iter_mut().for_each(&mut keep);
    }
    if let Some(Value::Mapping(peers)) = config.get_mut("peers") {
        peers.iter_mut().filter_map(|(_, peer)| peer.get_mut("apiKey")).for_each(keep);
    }
}

/// The models of peers, each an entry.
pub(super) fn peers(top: &mut Keys, plan: &mut Plan) {
    let peers: Vec<(String, Keys)> =
        top.keys("peers").pairs().into_iter().map(|(name, peer)| (name, Keys::of(peer).unwrap_or_default())).collect();
    let mut read = Vec::new();
    for (peer, mut keys) in peers {
        let models = keys.texts("models");
        let proxy = keys.text("proxy").unwrap_or_default();
        let Some(proxy) = Proxy::read(&proxy) else {
            plan.notes.push(format!("`peers.{peer}` is left out: its `proxy: {proxy}` is no address of HTTP"));
            continue;
        };
        let api_key = keys.text("apiKey").filter(|key| !key.is_empty());
        for key in ["filters", "timeouts"] {
            if let Some(shown) = keys.shown(key) {
                plan.notes.push(format!(
                    "`peers.{peer}.{key}: {shown}` is not carried over: the host has nothing like it for one server"
                ));
            }
        }
        plan.notes.extend(keys.finish(&format!("peers.{peer}.")));
        read.extend(models.into_iter().map(|model| (peer.clone(), model, proxy.clone(), api_key.clone())));
    }
    // The name alone is that of the only peer that has it.
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    for (_, model, ..) in &read {
        *times.entry(model.clone()).or_default() += 1;
    }
    let local: BTreeSet<String> =
        plan.entries.iter().flat_map(|entry| entry.aliases.iter().chain([&entry.name])).cloned().collect();
    for (peer, model, proxy, api_key) in read {
        let mut entry = Entry::named(format!("{peer}/{model}"));
        if times.get(&model) == Some(&1) && !local.contains(&model) {
            entry.aliases.push(model.clone());
        }
        let guess = kind::of_names([model.as_str()]);
        if guess.from.is_some() {
            entry.remarks.push("Its type is guessed from its name.".to_owned());
        }
        entry.set("type", yaml::text(guess.kind));
        entry.set("url", yaml::text(proxy.api()));
        if let Some(api_key) = api_key {
            entry.set("api_key", yaml::text(api_key));
        }
        entry.set("engine_model", yaml::text(model));
        plan.entries.push(entry);
    }
}

/// Names that stand for one of several models: for the first that there is.
pub(super) fn selectors(top: &mut Keys, plan: &mut Plan) {
    for (name, selector) in top.keys("selectors").pairs() {
        let mut keys = Keys::of(selector).unwrap_or_default();
        let targets = keys.texts("targets");
        let strategy = keys.text("strategy").unwrap_or_default();
        let has = |entry: &Entry, target: &String| entry.name == *target || entry.aliases.contains(target);
        let owner = targets.iter().find_map(|target| plan.entries.iter().position(|entry| has(entry, target)));
        let Some(entry) = owner.and_then(|at| plan.entries.get_mut(at)) else {
            plan.notes.push(format!("`selectors.{name}` is left out: none of its targets is a model"));
            continue;
        };
        let first = entry.name.clone();
        entry.aliases.push(name.clone());
        if strategy != "pin" && targets.len() > 1 {
            plan.notes.push(format!(
                "`selectors.{name}` ({strategy} of {}): the name is an alias of `{first}`; nothing chooses among models, and `replicas:` are of one",
                targets.join(", ")
            ));
        }
        for key in ["settings", "name", "description", "unlisted", "metadata"] {
            if let Some(shown) = keys.shown(key) {
                plan.notes.push(format!("`selectors.{name}.{key}: {shown}` is not carried over"));
            }
        }
        plan.notes.extend(keys.finish(&format!("selectors.{name}.")));
    }
}

/// Names that are switched while it runs.
pub(super) fn profiles(top: &mut Keys, plan: &mut Plan) {
    for (name, profile) in top.keys("profiles").pairs() {
        plan.notes.push(format!(
            "`profiles.{name}: {}` is not carried over: names are not switched while the host runs; an alias that is moved in models.yaml counts at once",
            shown(&profile)
        ));
    }
}
