//! An entry's `options:`, and what can be wrong with them before anything is started.

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use super::known::{self, Known};
use super::template::{self, Template};

/// Most words of a command.
const WORDS_MAX: usize = 4096;
/// Longest time between SIGTERM and SIGKILL: the host waits for 30 s in all.
const STOP_TIMEOUT_MAX_S: u64 = 25;
const STOP_TIMEOUT_S: u64 = 10;
const HEALTH: &str = "/health";
const PYTHON: &str = "python3";

/// What an entry of models.yaml may say under `options:`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// What kind of engine it is: `http`, a program that answers HTTP on a port of this machine; or one that is known by name, which
    /// needs no `command`: `vllm`, `sglang`, or `llama-server`, llama.cpp's.
    pub(crate) engine: EngineKind,
    /// The program and its arguments: a list, or one text that is split into words as a shell would, quotes heeded; no shell is
    /// run. `{port}`, `{model_path}` (the file of role `model`, or a folder with those of all roles), `{device}` (`cpu`, `cuda:0`),
    /// `{memory}` (bytes granted), `{memory_share}` (the same as a part of the device, `0.450`), `{kv_gib}` (whole GiB of it that the
    /// files leave for a cache), `{name}` (of the model, as the engine is asked for it) and `{cache}` (a folder that is there again
    /// the next time) stand for what they say, also in `env`; `{{` and `}}` are braces.
    pub(crate) command: Option<Words>,
    /// Instead of `command`: the absolute path of a Python script, run in an environment with its requirements and
    /// `aihost-service`.
    pub(crate) service_script: Option<PathBuf>,
    /// The program of an engine that is known by name, as a shell finds it. Default: its own name.
    pub(crate) binary: Option<String>,
    /// More arguments of an engine that is known by name, a word each, with what stands for something in `command`.
    pub(crate) args: Vec<String>,
    /// Whether `llama-server` writes what its slots have read into files when it is unloaded, and reads them when it is loaded again.
    pub(crate) keep_slots: bool,
    /// How deep `vllm` and `sglang` sleep when the model is parked: 1 keeps the weights in the host's memory, 2 drops them and reads
    /// them again. Left out, it is ended instead.
    #[schemars(range(min = 1, max = 2))]
    pub(crate) sleep: Option<u8>,
    /// Its port on 127.0.0.1; left out, one that is free. It is told by `{port}` and the variable `PORT`, a script also by
    /// `AIHOST_PORT`.
    pub(crate) port: Option<NonZeroU16>,
    /// The path that answers 2xx once it can serve.
    pub(crate) health: String,
    /// A path that is put before that of each request; not of `health`.
    pub(crate) prefix: String,
    /// Variables of the process, beside those that workers have.
    pub(crate) env: BTreeMap<String, String>,
    /// Packages that it needs, a line of pip's requirements each.
    pub(crate) requirements: Vec<String>,
    /// The absolute path of a file of such lines.
    pub(crate) requirements_file: Option<PathBuf>,
    /// The interpreter that makes its environment.
    pub(crate) python: String,
    /// The absolute path of the folder that it is started in; left out, the script's own, or the plugin's.
    pub(crate) working_dir: Option<PathBuf>,
    /// How it is asked to give its memory back while nobody uses it, and stays: it is parked so instead of being ended.
    pub(crate) free: Option<FreeCall>,
    /// Seconds from SIGTERM to SIGKILL.
    #[schemars(range(max = 25))]
    pub(crate) stop_timeout: u64,
}

/// A request to an engine that gives its memory back.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct FreeCall {
    /// Where it is sent, as a POST.
    pub(crate) path: String,
    /// What it says, as JSON.
    #[serde(default)]
    pub(crate) body: serde_json::Value,
}

/// Kinds of engines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum EngineKind {
    /// Any server.
    #[default]
    Http,
    /// llama.cpp's.
    LlamaServer,
    /// vLLM's.
    Vllm,
    /// SGLang's.
    Sglang,
}

impl EngineKind {
    /// What is known of it by its name.
    pub(crate) fn known(self) -> Option<&'static Known> {
        match self {
            Self::Http => None,
            Self::LlamaServer => Some(&known::LLAMA_SERVER),
            Self::Vllm => Some(&known::VLLM),
            Self::Sglang => Some(&known::SGLANG),
        }
    }
}

/// A command as it is typed.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Words {
    /// To be split.
    Text(String),
    /// As they are.
    List(Vec<String>),
}

impl Default for Options {
    fn default() -> Self {
        Self {
            engine: EngineKind::Http,
            command: None,
            service_script: None,
            binary: None,
            args: Vec::new(),
            keep_slots: true,
            sleep: None,
            port: None,
            health: HEALTH.to_owned(),
            prefix: String::new(),
            env: BTreeMap::new(),
            requirements: Vec::new(),
            requirements_file: None,
            python: PYTHON.to_owned(),
            working_dir: None,
            free: None,
            stop_timeout: STOP_TIMEOUT_S,
        }
    }
}

/// What is to be run.
#[derive(Debug)]
pub(crate) enum Program {
    /// The words of a command.
    Command(Vec<Template>),
    /// A script.
    Script(PathBuf),
    /// An engine that is known by name, and the entry's arguments for it.
    Known(&'static Known, Vec<Template>),
}

impl Options {
    /// Whether all of it can be meant; one sentence if not.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.program()?;
        self.variables()?;
        let paths = [
            ("service_script", self.service_script.as_deref()),
            ("requirements_file", self.requirements_file.as_deref()),
            ("working_dir", self.working_dir.as_deref()),
        ];
        for (name, path) in paths {
            if path.is_some_and(|path| !path.is_absolute()) {
                return Err(format!("`{name}` is not an absolute path"));
            }
        }
        let free = self.free.iter().map(|free| ("free", free.path.as_str()));
        for (name, path) in [("health", self.health.as_str()), ("prefix", self.prefix.as_str())].into_iter().chain(free)
        {
            let is_plain = path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
            if !is_plain || !(path.starts_with('/') || (name == "prefix" && path.is_empty())) {
                return Err(format!("`{name}` is `{}`; it is a path, from `/` on", path.escape_debug()));
            }
        }
        if let Some(level) = self.sleep {
            let sleep = self.engine.known().and_then(|known| known.sleep.as_ref());
            let Some(deepest) = sleep.map(|sleep| sleep.deepest) else {
                return Err("`sleep` is for engines that can, `vllm` and `sglang`; see `free` for others".to_owned());
            };
            if !(1..=deepest).contains(&level) {
                return Err(format!("`sleep` is {level}; this engine has levels 1 to {deepest}"));
            }
            if self.free.is_some() {
                return Err("`sleep` and `free` are both there; leave one of them out".to_owned());
            }
        }
        if self.stop_timeout > STOP_TIMEOUT_MAX_S {
            return Err(format!("`stop_timeout` is {} seconds, of at most {STOP_TIMEOUT_MAX_S}", self.stop_timeout));
        }
        if self.python.is_empty() || self.python.contains('\0') {
            return Err("`python` names no interpreter; leave it out for python3".to_owned());
        }
        match self.requirements.iter().find(|line| line.contains(['\n', '\r', '\0'])) {
            Some(line) => Err(format!("`requirements` has `{}`, which is more than one line", line.escape_debug())),
            None => Ok(()),
        }
    }

    /// Whether a command of the entry's own has this name in it.
    pub(crate) fn names(&self, name: &str) -> bool {
        let words = match &self.command {
            Some(Words::Text(text)) => std::slice::from_ref(text),
            Some(Words::List(words)) => words.as_slice(),
            None => &[],
        };
        words.iter().chain(self.env.values()).any(|word| word.contains(name))
    }

    /// What is to be run.
    pub(crate) fn program(&self) -> Result<Program, String> {
        if let Some(known) = self.engine.known() {
            if self.command.is_some() || self.service_script.is_some() {
                let name = known.name;
                return Err(format!(
                    "`engine: {name}` is started without `command` or `service_script`; what it is to be told goes into `args`"
                ));
            }
            let args = self.args.iter().map(|word| Template::parse(word).map_err(|why| format!("in `args` {why}")));
            return Ok(Program::Known(known, args.collect::<Result<_, _>>()?));
        }
        if self.binary.is_some() || !self.args.is_empty() {
            return Err("`binary` and `args` are for an engine that is known by name; say which by `engine`, or write a `command`".to_owned());
        }
        match (&self.command, &self.service_script) {
            (Some(_), Some(_)) => {
                Err("`command` and `service_script` are both there; leave one of them out".to_owned())
            }
            (None, None) => Err("neither `command` nor `service_script` says what to start".to_owned()),
            (None, Some(script)) => Ok(Program::Script(script.clone())),
            (Some(words), None) => Ok(Program::Command(words.parse()?)),
        }
    }

    /// Its own variables.
    pub(crate) fn variables(&self) -> Result<BTreeMap<&str, Template>, String> {
        let parsed = self.env.iter().map(|(name, value)| {
            if name.is_empty() || name.contains(['=', '\0']) {
                return Err(format!("`env` has `{}`, which is no name of a variable", name.escape_debug()));
            }
            Ok((name.as_str(), Template::parse(value).map_err(|why| format!("`env` has {name}, where {why}"))?))
        });
        parsed.collect()
    }

    pub(crate) fn stop_timeout(&self) -> Duration {
        Duration::from_secs(self.stop_timeout)
    }

    /// The folder in which it is started, if one is known.
    pub(crate) fn folder(&self) -> Option<&Path> {
        self.working_dir.as_deref().or_else(|| self.service_script.as_deref()?.parent())
    }
}

impl Words {
    fn parse(&self) -> Result<Vec<Template>, String> {
        let words = match self {
            Self::Text(text) => template::words(text)
                .ok_or_else(|| "`command` has a quote that does not end; close it, or write a list".to_owned())?,
            Self::List(words) => words.clone(),
        };
        if words.first().is_none_or(String::is_empty) {
            return Err("`command` names no program".to_owned());
        }
        if words.len() > WORDS_MAX {
            return Err(format!("`command` has {} words, of at most {WORDS_MAX}", words.len()));
        }
        words.iter().map(|word| Template::parse(word).map_err(|why| format!("in `command` {why}"))).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::Options;

    fn check(options: Value) -> Result<(), String> {
        serde_json::from_value::<Options>(options).map_err(|error| error.to_string())?.check()
    }

    #[test]
    fn what_can_be_meant_passes() {
        for options in [
            json!({"command": "serve --port {port} --model '{model_path}' \"--json={{}}\""}),
            json!({"command": ["serve", "{memory}"], "env": {"A": "{device}", "B": ""}, "prefix": "/v1"}),
            json!({"engine": "llama-server"}),
            json!({"engine": "vllm", "sleep": 2, "requirements": ["vllm==0.32.0"], "args": ["--max-model-len", "8192"]}),
            json!({"engine": "llama-server", "binary": "/opt/llama-server", "args": ["--ctx-size", "8192"], "keep_slots": false}),
            json!({"engine": "http", "service_script": "/a/server.py", "port": 8004, "requirements": ["x==1"]}),
        ] {
            check(options.clone()).unwrap_or_else(|why| panic!("{options}: {why}"));
        }
    }

    #[test]
    fn what_cannot_is_refused_in_one_sentence() {
        for (options, words) in [
            (json!({}), "neither `command` nor `service_script`"),
            (json!({"command": "a", "service_script": "/b"}), "leave one of them out"),
            (json!({"command": ""}), "names no program"),
            (json!({"command": []}), "names no program"),
            (json!({"command": "a 'b"}), "a quote that does not end"),
            (json!({"command": "a {prot}"}), "`{prot}`"),
            (json!({"command": "a {port"}), "a brace that does not end"),
            (json!({"command": "a", "env": {"A": "}"}}), "`env` has A"),
            (json!({"command": "a", "env": {"A=B": "x"}}), "no name of a variable"),
            (json!({"service_script": "server.py"}), "`service_script` is not an absolute path"),
            (json!({"command": "a", "health": "health"}), "`health` is `health`"),
            (json!({"command": "a", "health": "/h\r\nx: y"}), "`health` is `/h\\r\\nx: y`"),
            (json!({"command": "a", "prefix": "v1"}), "`prefix` is `v1`"),
            (json!({"command": "a", "free": {"path": "x"}}), "`free` is `x`"),
            (json!({"command": "a", "stop_timeout": 26}), "of at most 25"),
            (json!({"command": "a", "requirements": ["a\n-e b"]}), "more than one line"),
            (json!({"command": "a", "port": 0}), "nonzero"),
            (json!({"command": "a", "port": 65536}), "65536"),
            (json!({"command": "a", "engine": "openai"}), "expected one of `http`, `llama-server`, `vllm`, `sglang`"),
            (json!({"engine": "llama-server", "command": "a"}), "goes into `args`"),
            (json!({"engine": "llama-server", "args": ["{prot}"]}), "in `args`"),
            (json!({"command": "a", "args": ["b"]}), "are for an engine that is known by name"),
            (json!({"command": "a", "sleep": 1}), "see `free` for others"),
            (json!({"engine": "llama-server", "sleep": 1}), "see `free` for others"),
            (json!({"engine": "vllm", "sleep": 3}), "levels 1 to 2"),
            (json!({"engine": "vllm", "sleep": 0}), "levels 1 to 2"),
            (json!({"engine": "sglang", "sleep": 2}), "levels 1 to 1"),
            (json!({"engine": "vllm", "sleep": 1, "free": {"path": "/f"}}), "leave one of them out"),
            (json!({"command": "a", "comand": "b"}), "unknown field `comand`"),
        ] {
            let why = check(options.clone()).expect_err(&options.to_string());
            assert!(why.contains(words) && !why.contains('\n'), "{options}: {why}");
        }
    }
}
