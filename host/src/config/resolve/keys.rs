//! `api_keys:`. No message here repeats a key.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::Checker;
use crate::config::api_key::{ApiKey, Rate, Scope};
use crate::config::env::Env;
use crate::config::locate::KeyPath;
use crate::config::raw::{KeyKeys, OneOrMany, RawKey, Text};
use crate::config::resolved::ModelConfig;
use crate::config::units::parse_rate;
use crate::domain::{Class, ModelId, nearest};

/// Longest key, bytes: a request's head has room for it many times over.
const SECRET_BYTES_MAX: usize = 4096;
/// Longest name of a key, bytes: it stands in lines of the log.
const NAME_BYTES_MAX: usize = 64;

/// Every key with what it may do. `models`: those that there are, if that is known.
pub(super) fn resolve(
    check: &mut Checker,
    typed: Option<&OneOrMany<RawKey>>,
    models: Option<&BTreeMap<ModelId, ModelConfig>>,
    env: &Env,
) -> Vec<Arc<ApiKey>> {
    let Some(typed) = typed else { return Vec::new() };
    let root = KeyPath::root().key("api_keys");
    if typed.items.is_empty() {
        check.fail(&root, None, "is an empty list").hint("leave the key out where no API key is asked for");
    }
    // Beside an entry that is wrong itself, it cannot be told which models there will be.
    let models = models.filter(|_| !check.has_problems()).map(ModelNames::new);
    let mut reader = Reader { check, env, models, secrets: HashSet::new() };
    let keys: Vec<(KeyPath, ApiKey)> = typed
        .items
        .iter()
        .enumerate()
        .map(|(position, RawKey(entry))| {
            let at = if typed.list { root.index(position) } else { root.clone() };
            let key = reader.key(&at, position, entry);
            (at, key)
        })
        .collect();
    let secrets = reader.secrets;
    check_names(check, &keys, &secrets);
    keys.into_iter().map(|(_, key)| Arc::new(key)).collect()
}

/// A name is of one key, and tells none.
fn check_names(check: &mut Checker, keys: &[(KeyPath, ApiKey)], secrets: &HashSet<String>) {
    let mut names = HashSet::new();
    for (at, key) in keys {
        if secrets.contains(&key.name) {
            check.fail(&at.key("name"), None, "is a key itself").hint("names are written to logs; choose another one");
        } else if !names.insert(key.name.as_str()) {
            check
                .fail(&at.key("name"), Some(&key.name), "is the name of two keys")
                .hint("give each key a name of its own, so that logs tell them apart");
        }
    }
}

/// The models by each of their names.
struct ModelNames<'a> {
    models: &'a BTreeMap<ModelId, ModelConfig>,
    by_alias: HashMap<&'a str, &'a ModelId>,
}

impl<'a> ModelNames<'a> {
    fn new(models: &'a BTreeMap<ModelId, ModelConfig>) -> Self {
        let aliases = models.values().flat_map(|model| model.aliases.iter().map(|alias| (alias.as_str(), &model.id)));
        Self { models, by_alias: aliases.collect() }
    }

    fn find(&self, name: &str) -> Option<&'a ModelId> {
        let by_id = self.models.get_key_value(name).map(|(id, _)| id);
        by_id.or_else(|| self.by_alias.get(name).copied())
    }

    fn nearest(&self, name: &str) -> Option<&str> {
        nearest(name, self.models.keys().map(ModelId::as_str).chain(self.by_alias.keys().copied()))
    }
}

/// Reads entries one after the other.
struct Reader<'c, 'a> {
    check: &'c mut Checker,
    env: &'a Env,
    models: Option<ModelNames<'a>>,
    /// Every key that was read.
    secrets: HashSet<String>,
}

impl Reader<'_, '_> {
    fn key(&mut self, at: &KeyPath, position: usize, entry: &KeyKeys) -> ApiKey {
        ApiKey {
            name: self.name(at, position, entry),
            secrets: self.secrets(at, &entry.key),
            scopes: self.scopes(&at.key("scope"), entry.scope.as_ref()),
            models: entry.models.as_ref().map(|typed| self.models(&at.key("models"), typed)),
            class: self.class(&at.key("class"), entry.class.as_ref()),
            rate: self.rate(&at.key("rate"), entry.rate.as_ref()),
            concurrency: self.check.count(&at.key("concurrency"), entry.concurrency.as_ref()),
        }
    }

    /// As typed, else that of its variable, else its place in the list.
    fn name(&mut self, at: &KeyPath, position: usize, entry: &KeyKeys) -> String {
        let Some(Text(name)) = &entry.name else {
            let variable = entry.key.0.strip_prefix("env:").map(str::to_owned);
            return variable.unwrap_or_else(|| format!("key-{}", position + 1));
        };
        let is_plain = name.trim() == name && name.chars().all(|c| c.is_ascii_graphic() || c == ' ');
        if !is_plain || !(1..=NAME_BYTES_MAX).contains(&name.len()) {
            self.check
                .fail(&at.key("name"), Some(name), "is not usable as the name of a key")
                .hint(format!("use letters, digits and signs of ASCII, at most {NAME_BYTES_MAX} of them"));
        }
        name.clone()
    }

    /// The keys that an entry stands for: several, where a variable holds several.
    fn secrets(&mut self, at: &KeyPath, Text(text): &Text) -> Vec<String> {
        let secrets = match text.strip_prefix("env:") {
            Some(name) => self.of_variable(at, text, name),
            None => vec![text.clone()],
        };
        for secret in &secrets {
            if let Some((wrong, hint)) = unsendable(secret) {
                self.check.fail(at, None, wrong).hint(hint);
            } else if !self.secrets.insert(secret.clone()) {
                self.check.fail(at, None, "is a key that is listed already").hint("list each key once");
            }
        }
        secrets
    }

    fn of_variable(&mut self, at: &KeyPath, text: &str, name: &str) -> Vec<String> {
        let Some(value) = self.env.named(name) else {
            self.check
                .fail(at, Some(text), "names an environment variable that is not set")
                .hint(format!("export {name}=... before starting the host"));
            return Vec::new();
        };
        let found: Vec<String> =
            value.split(',').map(|key| key.trim().to_owned()).filter(|key| !key.is_empty()).collect();
        if found.is_empty() {
            self.check
                .fail(at, Some(text), "names an environment variable that holds no key")
                .hint(format!("export {name}=KEY, or several with commas between them"));
        }
        found
    }

    /// What it is for. Whoever narrows a key by writing a mapping gets the narrowest, unless more is asked for.
    fn scopes(&mut self, at: &KeyPath, typed: Option<&OneOrMany<Text>>) -> BTreeSet<Scope> {
        let Some(typed) = typed else { return BTreeSet::from([Scope::Use]) };
        if typed.items.is_empty() {
            self.check.fail(at, None, "is an empty list").hint("say use, operate or metrics, or several of them");
        }
        let mut scopes = BTreeSet::new();
        for Text(name) in &typed.items {
            match Scope::ALL.into_iter().find(|scope| scope.name() == name) {
                Some(scope) => _ = scopes.insert(scope),
                None => self.check.fail(at, Some(name), "is not a scope").hint("say use, operate or metrics"),
            }
        }
        scopes
    }

    /// The models that are named, by name or alias.
    fn models(&mut self, at: &KeyPath, typed: &OneOrMany<Text>) -> BTreeSet<ModelId> {
        if typed.items.is_empty() {
            self.check.fail(at, None, "is an empty list").hint("name models, or leave it out for all of them");
        }
        let Some(names) = &self.models else { return BTreeSet::new() };
        let mut models = BTreeSet::new();
        for Text(name) in &typed.items {
            if let Some(id) = names.find(name) {
                models.insert(id.clone());
                continue;
            }
            // What is not told of needs no hint, which takes time.
            let near = if self.check.is_full() { None } else { names.nearest(name) };
            let hint = match near {
                Some(near) => format!("did you mean `{near}`?"),
                None => "name entries of `models:`, or aliases of them".to_owned(),
            };
            self.check.fail(at, Some(name), "is no model of this file").hint(hint);
        }
        models
    }

    fn class(&mut self, at: &KeyPath, typed: Option<&Text>) -> Class {
        let Some(Text(typed)) = typed else { return Class::default() };
        Class::ALL.into_iter().find(|class| class.name() == typed).unwrap_or_else(|| {
            self.check.fail(at, Some(typed), "is not a class").hint("say interactive or batch");
            Class::default()
        })
    }

    fn rate(&mut self, at: &KeyPath, typed: Option<&Text>) -> Option<Rate> {
        let Text(typed) = typed?;
        match parse_rate(typed) {
            Ok((requests, per)) => Some(Rate { requests, per }),
            Err(wrong) => {
                self.check.fail(at, Some(typed), wrong).hint("a rate is written like 60/min, 5/s or 1000/h");
                None
            }
        }
    }
}

/// Why no client can send this key in a header, and what to do.
fn unsendable(secret: &str) -> Option<(&'static str, &'static str)> {
    let quotes = "write the key as clients send it: printable ASCII, with no space at its ends";
    if secret.trim().is_empty() {
        Some(("is empty", "leave it out, or write a key"))
    } else if secret.len() > SECRET_BYTES_MAX {
        Some(("is longer than 4096 bytes", quotes))
    } else if !secret.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        Some(("has characters that no HTTP header carries, so no client can send it", quotes))
    } else if secret.trim() != secret {
        Some(("has spaces at its ends, which HTTP headers lose, so no client can send it", quotes))
    } else {
        None
    }
}
