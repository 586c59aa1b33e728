//! Which models stay together, which leave for others, and which are loaded first: groups, the matrix, priorities, hooks.
//!
//! llama-swap is told which models may be loaded together; the host finds out by their memory. What is left of groups is who must
//! stay, and what would be evicted last.

use serde_yaml::Value;

use super::keys::Keys;
use super::model::Model;
use crate::cli::migrate::plan::Plan;
use crate::cli::migrate::yaml;

/// The largest `priority:` that a cost of eviction becomes.
const PRIORITY_MAX: i64 = 1000;
/// The `priority:` of a model that other groups may not unload, and that is unloaded when it is idle.
const STAYS_PRIORITY: i64 = 100;
/// Said where it is told which models may be loaded together.
const BY_MEMORY: &str =
    "models are loaded together as memory allows; for one at a time say `devices: [{id: \"cuda:0\", max_loaded: 1}]`";

/// Reads the top-level keys `groups`, `matrix`, `routing` and `hooks`.
pub(super) fn read(top: &mut Keys, models: &mut [Model], plan: &mut Plan) {
    let mut routing = top.keys("routing");
    let mut router = routing.keys("router");
    let mut settings = router.keys("settings");
    let groups = [top.keys("groups"), settings.keys("groups")].map(|mut keys| keys.pairs()).concat();
    let uses = router.text("use");
    let matrix = [top.take("matrix"), settings.take("matrix")].into_iter().flatten().next();
    // Both may be there; one counts.
    let is_matrix = matrix.is_some() && uses.as_deref() != Some("group");
    if is_matrix {
        self::matrix(matrix.unwrap_or_default(), models, plan);
    }
    match (is_matrix, groups.is_empty()) {
        (false, false) => groups.into_iter().for_each(|(name, group)| self::group(&name, group, models, plan)),
        (false, true) if models.len() > 1 => {
            plan.notes.push(format!(
                "llama-swap kept one model loaded at a time, as no groups say otherwise; here {BY_MEMORY}"
            ));
        }
        (true, false) => plan.notes.push("`groups` is left out: `routing.router.use` is `matrix`".to_owned()),
        _ => {}
    }
    priorities(&mut routing, plan);
    preload(top, models, plan);
    for (keys, within) in [(settings, "routing.router.settings."), (router, "routing.router."), (routing, "routing.")] {
        plan.notes.extend(keys.finish(within));
    }
}

fn group(name: &str, group: Value, models: &mut [Model], plan: &mut Plan) {
    let Some(mut keys) = Keys::of(group) else {
        return plan.notes.push(format!("`groups.{name}` is left out: it is not a mapping"));
    };
    let members = keys.texts("members");
    let swaps = keys.flag("swap").unwrap_or(true);
    let exclusive = keys.flag("exclusive").unwrap_or(true);
    if keys.flag("persistent") == Some(true) {
        for member in &members {
            match models.iter_mut().find(|model| model.entry.name == *member) {
                Some(model) => stay(name, model),
                None => plan.notes.push(format!("`groups.{name}` has `{member}`, which is no model")),
            }
        }
    }
    let lost = match (swaps && members.len() > 1, exclusive) {
        (true, true) => "`swap: true` (one of it at a time) and `exclusive: true` (nobody beside it) are",
        (true, false) => "`swap: true` (one of it at a time) is",
        (false, true) => "`exclusive: true` (nobody beside it) is",
        (false, false) => "",
    };
    if !lost.is_empty() {
        plan.notes.push(format!("`groups.{name}` ({}): {lost} not carried over: {BY_MEMORY}", members.join(", ")));
    }
    plan.notes.extend(keys.finish(&format!("groups.{name}.")));
}

/// A model that other groups do not unload.
fn stay(group: &str, model: &mut Model) {
    let entry = &mut model.entry;
    if model.has_ttl {
        // What is pinned never leaves, not even when it is idle.
        entry.set("priority", Value::from(STAYS_PRIORITY));
        entry.note(format!(
            "`groups.{group}.persistent` is a high `priority:`: `pin: true` would keep it loaded beyond its `ttl`"
        ));
    } else {
        entry.set("pin", Value::Bool(true));
    }
}

/// What it costs to lose a model is how late it is evicted; which sets may be loaded together is up to memory.
fn matrix(matrix: Value, models: &mut [Model], plan: &mut Plan) {
    let Some(mut keys) = Keys::of(matrix) else {
        return plan.notes.push("`matrix` is left out: it is not a mapping".to_owned());
    };
    let vars: Vec<(String, String)> =
        keys.keys("vars").pairs().into_iter().map(|(name, model)| (name, yaml::plain_text(&model))).collect();
    for (name, cost) in keys.keys("evict_costs").pairs() {
        let meant = vars.iter().find(|(var, _)| *var == name).map_or(&name, |(_, model)| model);
        let model = models.iter_mut().find(|model| model.entry.name == *meant);
        match (model, cost.as_i64()) {
            (Some(model), Some(cost)) => {
                // Its least, which is what is not said, is 1.
                model.entry.set("priority", Value::from((cost - 1).clamp(0, PRIORITY_MAX)));
            }
            _ => plan.notes.push(format!("`matrix.evict_costs.{name}` is left out: it is of no model, or no number")),
        }
    }
    let sets = keys.keys("sets").pairs();
    let sets: Vec<String> = sets.iter().map(|(name, set)| format!("{name}: {}", yaml::plain_text(set))).collect();
    let vars: Vec<String> = vars.iter().map(|(name, model)| format!("{name} is {model}")).collect();
    let with = if vars.is_empty() { String::new() } else { format!(", where {}", vars.join(", ")) };
    plan.notes.push(format!("`matrix.sets` ({}{with}) is not carried over: {BY_MEMORY}", sets.join("; ")));
    plan.notes.extend(keys.finish("matrix."));
}

/// Whose requests are served first.
fn priorities(routing: &mut Keys, plan: &mut Plan) {
    let mut scheduler = routing.keys("scheduler");
    // There is one kind.
    scheduler.take("use");
    let mut settings = scheduler.keys("settings");
    let mut fifo = settings.keys("fifo");
    if let Some(shown) = fifo.shown("priority") {
        plan.notes.push(format!(
            "`routing.scheduler.settings.fifo.priority: {shown}` is not carried over: urgency is of a request or a key (`class: batch` of `api_keys:`), not of a model"
        ));
    }
    for (keys, within) in [(fifo, "fifo."), (settings, "settings."), (scheduler, "")] {
        plan.notes.extend(keys.finish(&format!("routing.scheduler.{within}")));
    }
}

fn preload(top: &mut Keys, models: &mut [Model], plan: &mut Plan) {
    let mut hooks = top.keys("hooks");
    let mut startup = hooks.keys("on_startup");
    for name in startup.texts("preload") {
        let name = name.trim();
        let is_it =
            |model: &&mut Model| model.entry.name == name || model.entry.aliases.iter().any(|alias| alias == name);
        match models.iter_mut().find(is_it) {
            Some(model) => model.entry.set("preload", Value::Bool(true)),
            None => plan.notes.push(format!("`hooks.on_startup.preload` has `{name}`, which is no model")),
        }
    }
    plan.notes.extend(startup.finish("hooks.on_startup."));
    plan.notes.extend(hooks.finish("hooks."));
}
