//! The configuration of a host that serves one plugin file and nothing else: what models.yaml would say, never written down.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::cli::failure::CliError;
use crate::config::{self, Config, ConfigError, Env, Paths, Problem, Selection, Sharing};
use crate::domain::{Device, Kind, ModelId, some_names};
use crate::plugin::{Described, kind_served};

/// What one plugin is tried with.
#[derive(Debug)]
pub(super) struct Trial<'a> {
    pub(super) file: &'a Path,
    pub(super) described: &'a Described,
    pub(super) options: Map<String, Value>,
    /// The model's files by role.
    pub(super) files: BTreeMap<String, PathBuf>,
    pub(super) port: u16,
    pub(super) device: Option<Device>,
}

impl Trial<'_> {
    /// The only model's name: that of the plugin, without its vendor.
    pub(super) fn model(&self) -> &str {
        let id = &self.described.manifest.id;
        id.rsplit_once('/').map_or(id, |(_, name)| name)
    }

    /// The endpoint of a kind that has none of its own.
    fn endpoint(&self) -> String {
        format!("/v1/{}", self.model())
    }

    /// What the plugin serves.
    pub(super) fn kind(&self) -> Result<Kind, CliError> {
        let manifest = &self.described.manifest;
        let kind = manifest.kinds.first().and_then(|kind| kind_served(kind));
        kind.ok_or_else(|| {
            CliError::failed(format!(
                "plugin `{}` serves {}, which this host does not know",
                manifest.id,
                manifest.kinds.join(", ")
            ))
            .hint("update the host, or take an older build of the plugin")
        })
    }

    /// A checked configuration with this state folder.
    pub(super) fn config(&self, state: &Path, env: &Env) -> Result<Config, CliError> {
        self.check_device(env)?;
        let kind = self.kind()?;
        let files: Map<String, Value> =
            self.files.iter().map(|(role, path)| (role.clone(), json!({"path": path}))).collect();
        let mut entry = json!({
            "type": kind.name(),
            "plugin": self.described.manifest.id,
            "options": self.options,
            "files": files,
        });
        if let Some(device) = self.device {
            entry["devices"] = json!([device.to_string()]);
        }
        if kind == Kind::Custom {
            entry["endpoint"] = json!(self.endpoint());
        }
        let typed = json!({"listen": format!("127.0.0.1:{}", self.port), "models": {self.model(): entry}});
        let base = env.current_dir().join("models.yaml");
        let mut config = config::parse(&typed.to_string(), &base, &Selection::default(), env)
            .map_err(|error| self.refused(&error))?;
        config.file = None;
        config.paths = Paths {
            // Whoever names a file has chosen it.
            sharing: Sharing::Allowed,
            cache: None,
            plugins: self.file.to_owned(),
            installed_plugins: None,
            models: state.join("models"),
            state: state.to_owned(),
        };
        Ok(config)
    }

    fn check_device(&self, env: &Env) -> Result<(), CliError> {
        let manifest = &self.described.manifest;
        match self.device {
            Some(device) if !manifest.devices.iter().any(|kind| kind == device.kind()) => Err(CliError::usage(
                format!("plugin `{}` runs on {}, not on {device}", manifest.id, manifest.devices.join(", ")),
            )),
            Some(device) if !env.devices().contains(&device) => {
                let here: Vec<String> = env.devices().iter().map(ToString::to_string).collect();
                Err(CliError::usage(format!(
                    "this machine has no {device}; it has {}",
                    some_names(here.iter().map(String::as_str))
                )))
            }
            _ => Ok(()),
        }
    }

    /// What is wrong with the configuration, in words of the command line.
    pub(super) fn refused(&self, error: &ConfigError) -> CliError {
        let Some(first) = error.problems.first() else { return CliError::usage(error.to_string()) };
        let entry = format!("models.{}.", self.model());
        let key = first.key.as_deref().map(|key| key.strip_prefix(&entry).unwrap_or(key).to_owned());
        let shown = Problem { key: None, hint: None, line: None, ..first.clone() };
        let place = key.map(|key| argument(&key)).unwrap_or_default();
        let more = match error.problems.len().saturating_sub(1) + error.more {
            0 => String::new(),
            more => format!(" (and {more} more problems)"),
        };
        let refused = CliError::usage(format!("{place}{shown}{more}"));
        match &first.hint {
            Some(hint) => refused.hint(hint),
            None => refused,
        }
    }

    /// The line that asks it.
    pub(super) fn curl(&self, kind: Kind, model: &ModelId, address: std::net::SocketAddr) -> String {
        let json = |path: &str, body: Value| {
            format!("curl -s http://{address}{path} -H 'content-type: application/json' -d '{body}'")
        };
        let prompt = "a red fox";
        match kind {
            Kind::Image => {
                let body = json!({"model": model.as_str(), "prompt": prompt, "size": "256x256"});
                let file = "sed 's/.*\"b64_json\":\"\\([^\"]*\\)\".*/\\1/' | base64 -d > out.png";
                format!("{} | {file}", json("/v1/images/generations", body))
            }
            Kind::Audio => {
                let body = json!({"model": model.as_str(), "prompt": "rain", "duration": 2});
                format!("{} -o out.wav", json("/v1/audio/generations", body))
            }
            Kind::Embedding => json("/v1/embeddings", json!({"model": model.as_str(), "input": "Hello there"})),
            Kind::Custom => json(&self.endpoint(), json!({"text": "Hello"})),
            _ => {
                let messages = json!([{"role": "user", "content": "Hello there"}]);
                json("/v1/chat/completions", json!({"model": model.as_str(), "messages": messages}))
            }
        }
    }
}

/// Which argument a key of the entry was made of.
fn argument(key: &str) -> String {
    match key.split_once('.').unwrap_or((key, "")) {
        ("options", "") => "--options: ".to_owned(),
        ("options", rest) => format!("--options {rest}: "),
        ("files", role) => format!("--file {role}: "),
        ("source", _) => "--file model: ".to_owned(),
        (key, _) if key.starts_with("devices") => "--device: ".to_owned(),
        ("listen", _) => "--port: ".to_owned(),
        _ => format!("{key}: "),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use aihost_plugin_api::abi::Manifest;

    use super::*;

    fn described(kind: &str) -> Described {
        let manifest = json!({"id": "acme/parrot", "version": "1.0.0", "kinds": [kind], "devices": ["cpu"]});
        Described {
            abi: (0, 0),
            fingerprint: [0; 32],
            rustc: String::new(),
            target: String::new(),
            panic: String::new(),
            sdk: String::new(),
            manifest: Manifest::parse(manifest.to_string().as_bytes()).unwrap(),
            linkage: Default::default(),
        }
    }

    fn trial(described: &Described) -> Trial<'_> {
        let (options, files) = (Map::new(), BTreeMap::new());
        Trial { file: Path::new("/p.so"), described, options, files, port: 0, device: None }
    }

    #[test]
    fn one_plugin_of_each_kind_is_a_whole_configuration_with_a_line_that_asks_it() {
        let address: SocketAddr = "127.0.0.1:1".parse().unwrap();
        for (kind, path) in [
            ("text", "/v1/chat/completions"),
            ("image", "/v1/images/generations"),
            ("audio", "/v1/audio/generations"),
            ("embedding", "/v1/embeddings"),
            ("custom", "/v1/parrot"),
            ("upstream", "/v1/parrot"),
        ] {
            let described = described(kind);
            let mut trial = trial(&described);
            trial.options.insert("greeting".to_owned(), json!("it's: {here}\n# \u{e9}"));
            trial.files.insert("model".to_owned(), "/some/file".into());
            let config = trial.config(Path::new("/state"), &Env::with("/here", [])).unwrap();
            let model = config.models.values().next().unwrap();
            assert_eq!((model.id.as_str(), model.plugin.as_str()), ("parrot", "acme/parrot"));
            assert_eq!(model.kind.name(), if kind == "upstream" { "custom" } else { kind });
            assert_eq!(model.options, Value::Object(trial.options.clone()));
            assert_eq!(model.files["model"].path, Path::new("/some/file"));
            assert_eq!(model.endpoint.as_deref(), Some(path));
            assert_eq!(config.paths.plugin_folders(), [PathBuf::from("/p.so")]);
            let curl = trial.curl(model.kind, &model.id, address);
            assert!(curl.starts_with(&format!("curl -s http://127.0.0.1:1{path} ")) && !curl.contains('\n'), "{curl}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_in_words_of_the_command_line() {
        let unknown = described("video");
        let error = trial(&unknown).config(Path::new("/state"), &Env::with("/here", [])).unwrap_err();
        assert!(error.to_string().contains("video, which this host does not know"), "{error}");
        let known = described("text");
        let elsewhere = Trial { device: Some(Device::Cuda(0)), ..trial(&known) };
        let error = elsewhere.config(Path::new("/state"), &Env::with("/here", [])).unwrap_err();
        assert_eq!(error.to_string(), "plugin `acme/parrot` runs on cpu, not on cuda:0");
        for (key, wanted) in [
            ("options.a.b", "--options a.b: "),
            ("options", "--options: "),
            ("files.vae", "--file vae: "),
            ("devices[0]", "--device: "),
            ("listen", "--port: "),
            ("type", "type: "),
        ] {
            assert_eq!(argument(key), wanted);
        }
    }
}
