//! The keys of entries that are served by a server of others: one that the host starts, or one that runs elsewhere.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::Checker;
use crate::config::env::Env;
use crate::config::http::{BusyProbe, HttpConfig, RemoteConfig, Secret};
use crate::config::locate::KeyPath;
use crate::config::raw::{OneOrMany, RawModel, Text};
use crate::config::raw_service::{BusyKeys, RawBusy, RawRoutes};
use crate::domain::nearest;

/// The plugin that starts servers, where an entry names none.
pub(super) const PLUGIN: &str = "vllm";
/// Requests at once at a server that runs elsewhere, where its entry says nothing.
const CONCURRENCY: u32 = 64;
/// How often a request that had no answer is sent again.
const RETRIES: i64 = 2;
/// Longest time from asking a server to end to ending it, seconds.
const STOP_TIMEOUT_MAX_S: i64 = 25;
/// The engine that can be asked for its memory.
const COMFYUI: &str = "comfyui";
/// The file beside a script that says what it needs.
const REQUIREMENTS: &str = "requirements.txt";

/// What stands in an entry, and where.
pub(super) struct Service<'c, 'a> {
    pub(super) check: &'c mut Checker,
    pub(super) key: &'a KeyPath,
    pub(super) raw: &'a RawModel,
    pub(super) base: &'a Path,
    pub(super) env: &'a Env,
}

/// Whether an entry is served by a server that the host starts.
pub(super) fn starts_one(raw: &RawModel) -> bool {
    raw.command.is_some() || raw.service_script.is_some()
}

impl Service<'_, '_> {
    /// How it is asked. What its plugin must know of it is added to its `options`.
    pub(super) fn resolve(&mut self, options: &mut Value) -> HttpConfig {
        let remote = self.remote(options);
        if remote.is_none() {
            self.started(options);
        }
        HttpConfig {
            has_endpoint: remote.is_some() || starts_one(self.raw),
            remote,
            busy: self.busy(),
            routes: self.routes(),
            engine_model: self.raw.engine_model.as_ref().map(|Text(name)| name.clone()),
        }
    }

    fn fail(&mut self, key: &str, value: Option<&str>, message: impl Into<String>, hint: &str) {
        self.check.fail(&self.key.key(key), value, message).hint(hint);
    }

    fn remote(&mut self, options: &mut Value) -> Option<RemoteConfig> {
        let raw = self.raw;
        let Some(urls) = &raw.url else {
            for (key, typed) in
                [("api_key", &raw.api_key), ("concurrency", &raw.concurrency), ("retries", &raw.retries)]
            {
                if typed.is_some() {
                    self.fail(
                        key,
                        None,
                        "belongs to a server that runs elsewhere, and no `url:` says where",
                        "add `url:`, or leave it out",
                    );
                }
            }
            return None;
        };
        let here = [
            ("command", raw.command.is_some()),
            ("service_script", raw.service_script.is_some()),
            ("port", raw.port.is_some()),
            ("health", raw.health.is_some()),
            ("env", raw.env.is_some()),
            ("requirements", raw.requirements.is_some()),
            ("source", raw.source.is_some()),
            ("files", raw.files.is_some()),
            ("memory", raw.memory.is_some()),
            ("devices", raw.devices.is_some()),
            ("replicas", raw.replicas.is_some()),
        ];
        for (key, _) in here.into_iter().filter(|(_, is_typed)| *is_typed) {
            self.fail(
                key,
                None,
                "stands beside `url`, and what runs elsewhere takes nothing here",
                "leave one of the two out",
            );
        }
        if raw.plugin.as_ref().is_some_and(|plugin| plugin.0 != PLUGIN) {
            let typed = raw.plugin.as_ref().map(|plugin| plugin.0.as_str());
            self.fail("plugin", typed, "stands beside `url`: no plugin serves what runs elsewhere", "leave it out");
        }
        if let Some(left) = options
            .as_object()
            .and_then(|options| options.iter().find(|(key, value)| *key != "engine" || *value != "openai"))
        {
            let key = left.0.clone();
            self.check
                .fail(&self.key.key("options").key(&key), None, "is no option of a server that runs elsewhere")
                .hint(
                    "leave it out; the keys beside `url:` are `api_key`, `concurrency`, `retries` and `engine_model`",
                );
        }
        *options = Value::Object(Map::new());
        if urls.items.is_empty() {
            self.fail("url", None, "is an empty list", "name the address at which the server answers");
        }
        let root = self.key.key("url");
        let mut read = Vec::new();
        for (position, Text(url)) in urls.items.iter().enumerate() {
            let at = if urls.list { root.index(position) } else { root.clone() };
            match read_url(url) {
                Ok(url) if read.contains(&url) => {
                    self.check.fail(&at, None, "is listed already").hint("list each address once")
                }
                Ok(url) => read.push(url),
                // It may hold a password.
                Err(wrong) => self.check.fail(&at, None, wrong).hint("write it like https://api.example.com/v1"),
            }
        }
        let key = self.key.clone();
        Some(RemoteConfig {
            urls: read,
            api_key: self.api_key(),
            concurrency: self.check.count(&key.key("concurrency"), raw.concurrency.as_ref()).unwrap_or(CONCURRENCY),
            retries: self
                .check
                .number(&key.key("retries"), raw.retries.as_ref(), 0..=10)
                .and_then(|count| u32::try_from(count).ok())
                .unwrap_or(RETRIES as u32),
        })
    }

    fn api_key(&mut self) -> Option<Secret> {
        let Text(typed) = self.raw.api_key.as_ref()?;
        let key = match typed.strip_prefix("env:") {
            Some(name) => {
                let Some(value) = self.env.named(name) else {
                    let hint = format!("export {name}=... before starting the host");
                    self.fail("api_key", Some(typed), "names an environment variable that is not set", &hint);
                    return None;
                };
                value.trim().to_owned()
            }
            None => typed.clone(),
        };
        if key.is_empty() || !key.chars().all(|c| c.is_ascii_graphic()) {
            self.fail(
                "api_key",
                None,
                "is no key that can be sent",
                "a key is of letters, digits and signs, without spaces",
            );
            return None;
        }
        Some(Secret(key))
    }

    /// A server that the host starts: what its plugin is told of it.
    fn started(&mut self, options: &mut Value) {
        let raw = self.raw;
        if raw.command.is_some() && raw.service_script.is_some() {
            self.fail(
                "command",
                None,
                "stands beside `service_script`",
                "say one of them: a script is run by Python, a command as it is",
            );
        }
        let is_started = starts_one(raw);
        let keys = [
            ("port", raw.port.is_some(), "is the port of a `service_script` or `command`, and there is none"),
            ("health", raw.health.is_some(), "is asked of a `service_script` or `command`, and there is none"),
            ("env", raw.env.is_some(), "is for a `service_script` or `command`, and there is none"),
            (
                "requirements",
                raw.requirements.is_some(),
                "is what a `service_script` or `command` needs, and there is none",
            ),
            ("stop_timeout", raw.stop_timeout.is_some(), "is for a `service_script` or `command`, and there is none"),
        ];
        for (key, _, message) in keys.into_iter().filter(|(_, is_typed, _)| *is_typed && !is_started) {
            self.fail(key, None, message, "leave it out, or say what is started");
        }
        if !is_started {
            return;
        }
        let mut told = Map::new();
        match (&raw.command, &raw.service_script) {
            (Some(command), _) => drop(told.insert("command".into(), self.command(command))),
            (None, Some(script)) => self.script(script, &mut told),
            (None, None) => {}
        }
        told.entry("working_dir").or_insert_with(|| json!(self.base));
        if let Some(port) = self.check.number(&self.key.key("port"), raw.port.as_ref(), 1..=65535) {
            told.insert("port".into(), json!(port));
        }
        if let Some(Text(path)) = &raw.health {
            if is_path(path) {
                told.insert("health".into(), json!(path));
            } else {
                self.fail("health", Some(path), "is not an HTTP path", "write it like /health");
            }
        }
        if let Some(env) = &raw.env {
            let env: Map<String, Value> = env.iter().map(|(name, Text(value))| (name.clone(), json!(value))).collect();
            told.insert("env".into(), Value::Object(env));
        }
        if let Some(lines) = &raw.requirements {
            told.insert("requirements".into(), json!(texts(lines)));
        }
        if let Some(seconds) =
            self.check.number(&self.key.key("stop_timeout"), raw.stop_timeout.as_ref(), 0..=STOP_TIMEOUT_MAX_S)
        {
            told.insert("stop_timeout".into(), json!(seconds));
        }
        let Some(options) = options.as_object_mut() else { return };
        if matches!(&raw.busy, Some(RawBusy::Known(Text(name))) if name == COMFYUI) && !options.contains_key("free") {
            // It keeps its process and gives back what it holds.
            let body = json!({"unload_models": true, "free_memory": true});
            told.insert("free".into(), json!({"path": "/free", "body": body}));
        }
        for (key, value) in told {
            if options.contains_key(&key) {
                self.check
                    .fail(&self.key.key("options").key(&key), None, "is said by a key of the entry itself")
                    .hint("leave it out of `options:`");
            }
            options.insert(key, value);
        }
    }

    fn command(&mut self, command: &OneOrMany<Text>) -> Value {
        if command.items.iter().all(|Text(word)| word.trim().is_empty()) {
            self.fail(
                "command",
                None,
                "is empty",
                "write the program and its arguments, `{port}` where its port stands",
            );
        }
        if command.list { json!(texts(command)) } else { json!(command.items.first().map(|text| &text.0)) }
    }

    /// A script lies beside the file, in the folder above it, or where the host was started: wherever there is one.
    fn script(&mut self, script: &Path, told: &mut Map<String, Value>) {
        let folders =
            [Some(self.base.to_owned()), self.base.parent().map(Path::to_owned), Some(self.env.current_dir())];
        let folders: Vec<PathBuf> = folders.into_iter().flatten().collect();
        let found = folders.iter().find(|folder| folder.join(script).is_file());
        // One that is not there is told of when it is to be started: it may come.
        let folder = found.unwrap_or(&folders[0]);
        let path = folder.join(script);
        let requirements = path.with_file_name(REQUIREMENTS);
        if requirements.is_file() {
            told.insert("requirements_file".into(), json!(requirements));
        }
        told.insert("service_script".into(), json!(path));
        told.insert("working_dir".into(), json!(folder));
    }

    fn busy(&mut self) -> Option<BusyProbe> {
        let at = self.key.key("busy");
        match self.raw.busy.as_ref()? {
            RawBusy::Known(Text(name)) => {
                let probe = BusyProbe::built_in(name);
                if probe.is_none() {
                    let known: Vec<_> = BusyProbe::built_ins().collect();
                    let hint = match nearest(name, known.iter().copied()) {
                        Some(near) => format!("did you mean `{near}`?"),
                        None => format!(
                            "known are {}; others are written `{{path: /queue, json: [running]}}`",
                            known.join(", ")
                        ),
                    };
                    self.check.fail(&at, Some(name), "is not an engine whose way to say so is known").hint(hint);
                }
                probe
            }
            RawBusy::Keys(BusyKeys { path, json, values }) => {
                let hint = "write it like {path: /queue, json: [queue_running, queue_pending]}";
                let path = path
                    .as_ref()
                    .filter(|Text(path)| path.starts_with('/') && path.chars().all(|c| c.is_ascii_graphic()));
                if path.is_none() {
                    self.check.fail(&at.key("path"), None, "is missing, or is not an HTTP path").hint(hint);
                }
                let json = json.as_ref().map(texts).unwrap_or_default();
                if json.is_empty() {
                    self.check.fail(&at.key("json"), None, "is missing: nothing says what means busy").hint(hint);
                }
                let values = values.as_ref().map(texts).unwrap_or_default();
                path.map(|Text(path)| BusyProbe { path: path.clone(), json, values })
            }
        }
    }

    fn routes(&mut self) -> Vec<String> {
        match &self.raw.upstream_routes {
            None | Some(RawRoutes::All(false)) => Vec::new(),
            Some(RawRoutes::All(true)) => vec!["/".to_owned()],
            Some(RawRoutes::These(paths)) => {
                for (position, Text(path)) in paths.iter().enumerate().filter(|(_, Text(path))| !is_path(path)) {
                    self.check
                        .fail(&self.key.key("upstream_routes").index(position), Some(path), "is not an HTTP path")
                        .hint("write it like /api, or `true` for every path");
                }
                paths.iter().map(|Text(path)| path.clone()).collect()
            }
        }
    }
}

fn texts(typed: &OneOrMany<Text>) -> Vec<String> {
    typed.items.iter().map(|Text(text)| text.clone()).collect()
}

fn is_path(path: &str) -> bool {
    path.starts_with('/') && path.chars().all(|c| c.is_ascii_graphic() && !"?#".contains(c))
}

/// An address without anything that is not part of where a server is.
fn read_url(typed: &str) -> Result<String, &'static str> {
    let url = typed.trim().trim_end_matches('/');
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    let Some(rest) = rest else { return Err("is not an address of HTTP") };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if authority.contains('@') {
        return Err("has a name or a password in it; a key goes into `api_key:`");
    }
    if url.contains(['?', '#']) || !url.chars().all(|c| c.is_ascii_graphic()) || url.contains('\\') {
        return Err("is not a plain address: it ends where the paths of its API begin");
    }
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let is_port = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
    if host.is_empty() || !is_port || path.contains("//") {
        return Err("is not an address of HTTP");
    }
    Ok(url.to_owned())
}

#[cfg(test)]
mod tests {
    use super::read_url;

    #[test]
    fn an_address_is_where_a_server_is_and_nothing_else() {
        for (typed, read) in [
            ("http://a", "http://a"),
            (" https://a.b:1/v1/ ", "https://a.b:1/v1"),
            ("http://[::1]:8000", "http://[::1]:8000"),
            ("http://[::1]", "http://[::1]"),
        ] {
            assert_eq!(read_url(typed).as_deref(), Ok(read));
        }
        for typed in [
            "",
            "a",
            "ftp://a",
            "http://",
            "http://:1",
            "http://a:0",
            "http://a:x",
            "http://u:p@a",
            "http://a/?k=1",
            "http://a b",
            "http://a//b",
        ] {
            assert!(read_url(typed).is_err(), "{typed}");
        }
    }
}
