//! The entries of `models:`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::time::Duration;

use super::endpoint::{self, Unusable};
use super::service::{self, Service};
use super::{Checker, files, location, policy};
use crate::config::env::Env;
use crate::config::http::REMOTE;
use crate::config::locate::KeyPath;
use crate::config::raw::{OneOrMany, RawDefaults, RawModel, RawModels, Text};
use crate::config::resolved::{Choice, DeviceConfig, ModelConfig, Paths};
use crate::domain::{ByteSize, Device, Kind, ModelId, nearest, some_names};

/// The load deadline where none is typed.
const STARTUP_TIME: Duration = Duration::from_secs(120);
/// Tokens of an answer where neither its request nor anything here says how many: few enough for a client that forgot to.
const MAX_TOKENS: u32 = 1024;

/// In place of a plugin's id: the host chooses one.
const AUTO: &str = "auto";

/// What the entries are read against.
pub(super) struct Surroundings<'a> {
    defaults: &'a RawDefaults,
    devices: &'a [DeviceConfig],
    /// What each may hold; nothing where that is measured.
    budgets: HashMap<Device, Option<ByteSize>>,
    paths: &'a Paths,
    base: &'a Path,
    env: &'a Env,
}

impl<'a> Surroundings<'a> {
    pub(super) fn new(
        defaults: &'a RawDefaults,
        devices: &'a [DeviceConfig],
        paths: &'a Paths,
        base: &'a Path,
        env: &'a Env,
    ) -> Self {
        let budgets = devices.iter().map(|device| (device.id, device.memory)).collect();
        Self { defaults, devices, budgets, paths, base, env }
    }
}

/// Checks every entry, and then what entries say together.
pub(super) fn resolve(
    check: &mut Checker,
    raw: RawModels,
    around: &Surroundings<'_>,
) -> BTreeMap<ModelId, ModelConfig> {
    let root = KeyPath::root().key("models");
    let common = KeyPath::root().key("defaults");
    let startup_time = check.finite(&common.key("startup_time"), around.defaults.startup_time.as_ref(), STARTUP_TIME);
    let keep_alive = check.duration(&common.key("keep_alive"), around.defaults.keep_alive.as_ref()).flatten();
    let typed = around.defaults.default_max_tokens.as_ref();
    let max_tokens = check.count(&common.key("default_max_tokens"), typed).unwrap_or(MAX_TOKENS);
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut entries = Vec::new();
    for (position, (name, model)) in raw.entries.into_iter().enumerate() {
        let occurrence = name.clone().map_or(0, |name| {
            let count = seen.entry(name).or_default();
            *count += 1;
            *count - 1
        });
        let key = match &name {
            Some(name) if !raw.list => root.nth_key(name, occurrence),
            _ => root.index(position),
        };
        let Some(name) = entry_name(check, &key, name, &model) else { continue };
        if occurrence > 0 {
            check
                .fail(&key, None, format!("a model called `{name}` is there already"))
                .hint("give each model its own name");
            continue;
        }
        let mut entry = Entry { check, key: key.clone(), around, startup_time, keep_alive, max_tokens };
        let resolved = entry.resolve(name, model);
        entries.push((key, resolved));
    }
    names(check, &entries);
    defaults(check, &entries);
    policy::check_pins(check, &entries, around.devices);
    files::check_shared(check, &entries);
    entries.into_iter().map(|(_, model)| (model.id.clone(), model)).collect()
}

fn entry_name(check: &mut Checker, key: &KeyPath, name: Option<String>, model: &RawModel) -> Option<ModelId> {
    let Some(name) = name else {
        check.fail(key, None, "has no name").hint("an entry of a list says `name: ...`");
        return None;
    };
    if model.name.as_ref().is_some_and(|inner| inner.0 != name) {
        check.fail(
            &key.key("name"),
            model.name.as_ref().map(|n| n.0.as_str()),
            format!("is not the entry's name, `{name}`"),
        );
    }
    if !is_name(&name) {
        check
            .fail(key, Some(&name), "is not usable as a model's name")
            .hint("use letters, digits, `.`, `_`, `-`, `:` and `/`, at most 128 of them");
        return None;
    }
    ModelId::new(name)
}

fn is_name(name: &str) -> bool {
    (1..=128).contains(&name.len()) && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-:/@".contains(c))
}

/// No alias is a model's name, and no two models share one.
fn names(check: &mut Checker, entries: &[(KeyPath, ModelConfig)]) {
    let models: HashSet<&str> = entries.iter().map(|(_, model)| model.id.as_str()).collect();
    let mut owners: HashMap<&str, &ModelId> = HashMap::new();
    for (key, model) in entries {
        let key = key.key("aliases");
        for (position, alias) in model.aliases.iter().enumerate() {
            let at = key.index(position);
            if !is_name(alias) {
                check.fail(&at, Some(alias), "is not usable as a model's name");
            } else if models.contains(alias.as_str()) {
                check
                    .fail(&at, Some(alias), "is the name of a model")
                    .hint("an alias is another name; choose a free one");
            } else if let Some(owner) = owners.insert(alias, &model.id) {
                check
                    .fail(&at, Some(alias), format!("is an alias of `{owner}` already"))
                    .hint("give it to one model only");
            }
        }
    }
}

/// At most one model is the default of an endpoint.
fn defaults(check: &mut Checker, entries: &[(KeyPath, ModelConfig)]) {
    let mut owners: HashMap<&str, &ModelId> = HashMap::new();
    for (key, model) in entries.iter().filter(|(_, model)| model.default) {
        let Some(endpoint) = &model.endpoint else { continue };
        if let Some(owner) = owners.insert(endpoint, &model.id) {
            check
                .fail(
                    &key.key("default"),
                    Some("true"),
                    format!("is one too many: `{owner}` is the default of {endpoint} already"),
                )
                .hint("say `default: true` on one of them");
        }
    }
}

/// One entry while it is checked.
struct Entry<'c, 'a> {
    check: &'c mut Checker,
    key: KeyPath,
    around: &'a Surroundings<'a>,
    startup_time: Duration,
    keep_alive: Option<Duration>,
    max_tokens: u32,
}

impl Entry<'_, '_> {
    fn resolve(&mut self, id: ModelId, raw: RawModel) -> ModelConfig {
        let key = self.key.clone();
        let typed_kind = self.kind(raw.kind.as_ref());
        // One that is none is told already.
        let kind = typed_kind.unwrap_or(Kind::Custom);
        let (plugin, plugin_version) = self.plugin(&raw);
        let choice = (plugin == AUTO).then(|| self.choice(&raw, typed_kind));
        let mut options = self.options(&raw);
        let Surroundings { base, env, .. } = *self.around;
        let http = Service { check: self.check, key: &key, raw: &raw, base, env }.resolve(&mut options);
        let replicas = self
            .check
            .number(&key.key("replicas"), raw.replicas.as_ref(), 1..=64)
            .map_or(1, |n| u32::try_from(n).unwrap_or(1));
        if let Some(Text(port)) = raw.port.as_ref().filter(|_| replicas > 1) {
            self.check
                .fail(
                    &key.key("port"),
                    Some(port),
                    format!("is one port for {replicas} replicas, of which one can listen on it"),
                )
                .hint("leave it out: each gets a free one, said by `{port}` and the variable PORT");
        }
        let keep_alive = match self.check.duration(&key.key("keep_alive"), raw.keep_alive.as_ref()) {
            Some(typed) => typed,
            None => self.keep_alive,
        };
        if let Some(Text(typed)) = raw.keep_alive.as_ref().filter(|_| raw.pin && keep_alive.is_some()) {
            self.check
                .fail(&key.key("keep_alive"), Some(typed), "contradicts `pin: true`: a pinned model is never unloaded")
                .hint("leave one of the two out");
        }
        let typed = raw.default_max_tokens.as_ref();
        let max_tokens = self.check.count(&key.key("default_max_tokens"), typed).unwrap_or(self.max_tokens);
        let priority = self.check.number(&key.key("priority"), raw.priority.as_ref(), -1000..=1000).unwrap_or(0);
        let devices = self.devices(raw.devices.as_ref());
        ModelConfig {
            id,
            kind,
            plugin,
            plugin_version,
            replicas,
            park: raw.park.unwrap_or(true),
            endpoint: typed_kind.and_then(|kind| self.endpoint(raw.endpoint.as_ref(), kind)),
            default: raw.default,
            load_timeout: self.check.finite(&key.key("startup_time"), raw.startup_time.as_ref(), self.startup_time),
            files: files::resolve(
                self.check,
                &key,
                &raw,
                &location::Folders { models: &self.around.paths.models, base: self.around.base },
            ),
            options,
            http,
            aliases: raw
                .aliases
                .map(|aliases| aliases.items.into_iter().map(|alias| alias.0).collect())
                .unwrap_or_default(),
            keep_alive,
            default_max_tokens: max_tokens,
            pin: raw.pin,
            priority: i32::try_from(priority).unwrap_or(0),
            preload: raw.preload,
            memory: self.memory(raw.memory.as_ref(), &devices),
            devices,
            choice,
            refusal: None,
        }
    }

    fn kind(&mut self, typed: Option<&Text>) -> Option<Kind> {
        let key = self.key.key("type");
        let names = || Kind::ALL.into_iter().map(Kind::name);
        let all = || format!("say one of {}", names().collect::<Vec<_>>().join(", "));
        let Some(Text(typed)) = typed else {
            self.check.fail(&key, None, "is missing").hint(all());
            return None;
        };
        let kind = Kind::ALL.into_iter().find(|kind| kind.name() == typed);
        if kind.is_none() {
            let hint = nearest(typed, names()).map_or_else(all, |name| format!("did you mean `{name}`?"));
            self.check.fail(&key, Some(typed), "is not a type").hint(hint);
        }
        kind
    }

    fn plugin(&mut self, raw: &RawModel) -> (String, Option<semver::VersionReq>) {
        let key = self.key.key("plugin");
        if raw.url.is_some() {
            return (REMOTE.to_owned(), None);
        }
        let Some(Text(typed)) = &raw.plugin else {
            if service::starts_one(raw) {
                return (service::PLUGIN.to_owned(), None);
            }
            let hint = "name a plugin; `aihost plugins list` shows them";
            self.check.fail(&key, None, "is missing: nothing says what runs this model").hint(hint);
            return (String::new(), None);
        };
        let (id, range) = typed.split_once('@').map_or((typed.as_str(), None), |(id, range)| (id, Some(range)));
        let id = id.trim();
        let part = |part: &str| {
            !part.starts_with('.')
                && !part.is_empty()
                && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c))
        };
        if id.split('/').count() > 2 || !id.split('/').all(part) {
            self.check
                .fail(&key, Some(typed), "is not a plugin's id")
                .hint("write `name`, `vendor/name` or `name@^1.2`");
        }
        let version = range.and_then(|range| match semver::VersionReq::parse(range) {
            Ok(version) => Some(version),
            Err(error) => {
                self.check
                    .fail(&key, Some(typed), format!("has a version range that is not one: {error}"))
                    .hint("write it like candle-llm@^1.2 or candle-llm@=1.2.3");
                None
            }
        });
        (id.to_owned(), version)
    }

    /// Whether there is something to choose, and something to choose by.
    fn choice(&mut self, raw: &RawModel, kind: Option<Kind>) -> Choice {
        let typed = raw.plugin.as_ref().map(|Text(typed)| typed.as_str());
        let (message, hint) = match () {
            () if typed != Some(AUTO) => ("has a range of versions, and no plugin that has them", "write `auto` alone"),
            () if service::starts_one(raw) => (
                "stands beside a `command` or `service_script`, which says itself what serves the model",
                "leave it out",
            ),
            () if kind.is_some_and(|kind| kind != Kind::Text) => {
                ("chooses for models of `type: text` alone", "name a plugin; `aihost plugins list` shows them")
            }
            () if raw.source.is_none() && raw.files.is_none() => {
                ("chooses by a model's files, and there are none", "add `source:`, or name a plugin")
            }
            () => ("", ""),
        };
        if !message.is_empty() {
            self.check.fail(&self.key.key("plugin"), typed, message).hint(hint);
        }
        Choice::Open("its files were not looked at yet".to_owned())
    }

    fn options(&mut self, raw: &RawModel) -> serde_json::Value {
        let key = self.key.key("options");
        match &raw.options {
            None | Some(serde_json::Value::Null) => {}
            Some(options @ serde_json::Value::Object(_)) => return options.clone(),
            Some(other) => {
                let hint = "write `options: {name: value}`";
                self.check.fail(&key, Some(&other.to_string()), "is not a mapping").hint(hint);
            }
        }
        serde_json::Value::Object(serde_json::Map::new())
    }

    fn endpoint(&mut self, typed: Option<&Text>, kind: Kind) -> Option<String> {
        let key = self.key.key("endpoint");
        match typed {
            Some(Text(path)) if kind == Kind::Custom => match endpoint::of_its_own(path) {
                Ok(path) => Some(path.to_owned()),
                Err(Unusable { message, hint }) => {
                    self.check.fail(&key, Some(path), message).hint(hint);
                    None
                }
            },
            None if kind == Kind::Custom => {
                let message = "is missing: a custom model is asked at a path of its own";
                self.check.fail(&key, None, message).hint("write it like /v1/NAME/generate");
                None
            }
            Some(Text(path)) if path.starts_with('/') && !path.contains([' ', '?', '#']) => Some(path.clone()),
            Some(Text(path)) => {
                self.check.fail(&key, Some(path), "is not an HTTP path").hint("write it like /v1/chat/completions");
                None
            }
            None => standard_endpoint(kind).map(str::to_owned),
        }
    }

    fn devices(&mut self, typed: Option<&OneOrMany<Text>>) -> Vec<Device> {
        let Some(typed) = typed else { return Vec::new() };
        let root = self.key.key("devices");
        let mut devices = Vec::new();
        let mut seen = HashSet::new();
        for (position, Text(name)) in typed.items.iter().enumerate() {
            let key = || if typed.list { root.index(position) } else { root.clone() };
            match name.parse::<Device>() {
                Err(e) => self.check.fail(&key(), Some(name), "is not a device").hint(e.to_string()),
                Ok(device) if !self.around.budgets.contains_key(&device) => {
                    let known: Vec<String> = self.around.devices.iter().map(|device| device.id.to_string()).collect();
                    let known = some_names(known.iter().map(String::as_str));
                    self.check
                        .fail(&key(), Some(name), format!("is not among the host's devices ({known})"))
                        .hint("add it to `devices:` at the top of the file");
                }
                Ok(device) if seen.insert(device) => devices.push(device),
                Ok(_) => {}
            }
        }
        devices
    }

    /// What it may take, which must fit somewhere.
    fn memory(&mut self, typed: Option<&Text>, devices: &[Device]) -> Option<ByteSize> {
        let key = self.key.key("memory");
        let memory = self.check.size(&key, typed)?;
        let budgets = &self.around.budgets;
        // A budget that is measured may be of any size.
        let largest = match devices {
            [] => budgets.values().copied().collect::<Option<Vec<_>>>(),
            named => named.iter().map(|device| budgets.get(device).copied().flatten()).collect(),
        };
        let largest = largest.and_then(|budgets| budgets.into_iter().max());
        if let Some(largest) = largest.filter(|largest| memory > *largest) {
            self.check
                .fail(
                    &key,
                    typed.map(|text| text.0.as_str()),
                    format!("can never fit: the largest budget it may use is {largest}"),
                )
                .hint("raise the device's `memory:`, or lower this one");
        }
        Some(memory)
    }
}

/// Where OpenAI's API (and ours, for music) has this type.
fn standard_endpoint(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Text => Some("/v1/chat/completions"),
        Kind::Image => Some("/v1/images/generations"),
        Kind::Audio => Some("/v1/audio/generations"),
        Kind::Embedding => Some("/v1/embeddings"),
        Kind::Speech => Some("/v1/audio/speech"),
        Kind::Transcription => Some("/v1/audio/transcriptions"),
        Kind::Custom => None,
    }
}
