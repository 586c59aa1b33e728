//! `api_keys:`. No message here repeats a key.

use std::collections::HashMap;

use super::Checker;
use crate::config::env::Env;
use crate::config::locate::KeyPath;
use crate::config::raw::{KeyKeys, OneOrMany, RawKey, Text};
use crate::config::resolved::ApiKey;
use crate::domain::Class;

/// Every key with its class.
pub(super) fn resolve(check: &mut Checker, typed: Option<&OneOrMany<RawKey>>, env: &Env) -> Vec<ApiKey> {
    let mut keys: Vec<ApiKey> = Vec::new();
    let mut classes: HashMap<String, Class> = HashMap::new();
    let Some(typed) = typed else { return keys };
    let root = KeyPath::root().key("api_keys");
    for (position, RawKey(entry)) in typed.items.iter().enumerate() {
        let at = if typed.list { root.index(position) } else { root.clone() };
        let class = class(check, &at, entry);
        for key in secrets(check, &at, &entry.key, env) {
            match classes.insert(key.clone(), class) {
                Some(other) if other != class => check
                    .fail(&at, None, "is a key that is listed already, with another class")
                    .hint("list each key once"),
                Some(_) => {}
                None => keys.push(ApiKey { key, class }),
            }
        }
    }
    if typed.items.is_empty() {
        check.fail(&root, None, "is an empty list").hint("leave the key out where no API key is asked for");
    }
    keys
}

fn class(check: &mut Checker, at: &KeyPath, entry: &KeyKeys) -> Class {
    match entry.class.as_ref().map(|class| class.0.as_str()) {
        None | Some("interactive") => Class::Interactive,
        Some("batch") => Class::Batch,
        Some(other) => {
            check.fail(&at.key("class"), Some(other), "is not a class").hint("say interactive or batch");
            Class::Interactive
        }
    }
}

/// The keys that an entry stands for: several, where a variable holds several.
fn secrets(check: &mut Checker, at: &KeyPath, Text(text): &Text, env: &Env) -> Vec<String> {
    let Some(name) = text.strip_prefix("env:") else {
        if text.trim().is_empty() {
            check.fail(at, Some(text), "is empty").hint("leave it out, or write a key");
            return Vec::new();
        }
        return vec![text.clone()];
    };
    let Some(value) = env.named(name) else {
        check
            .fail(at, Some(text), "names an environment variable that is not set")
            .hint(format!("export {name}=... before starting the host"));
        return Vec::new();
    };
    let found: Vec<String> = value.split(',').map(|key| key.trim().to_owned()).filter(|key| !key.is_empty()).collect();
    if found.is_empty() {
        check
            .fail(at, Some(text), "names an environment variable that holds no key")
            .hint(format!("export {name}=KEY, or several with commas between them"));
    }
    found
}
