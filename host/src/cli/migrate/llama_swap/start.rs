//! How a model of llama-swap's is started, asked and ended: `cmd`, `proxy`, `checkEndpoint`, `env`, `cmdStop`, `unloadTimeout`,
//! and the type that these tell.

use std::path::Path;

use serde_yaml::Value;

use super::command;
use super::keys::Keys;
use super::model::Common;
use super::proxy::Proxy;
use crate::cli::auto::braced;
use crate::cli::auto::weights::Weights;
use crate::cli::migrate::kind::{self, Guess};
use crate::cli::migrate::llama_server::{self, Server};
use crate::cli::migrate::local::located;
use crate::cli::migrate::plan::Entry;
use crate::cli::migrate::yaml;

/// Where llama-swap asks whether a model is ready, and the host does.
const HEALTH: &str = "/health";
/// Longest time that a server of llama-swap may take to end once it is asked by the host, seconds.
const STOP_TIMEOUT_MAX_S: i64 = 25;
/// How long the host and llama-swap let a server end where nothing is said, seconds.
const STOP_TIMEOUT_S: i64 = 10;
/// An engine that answers before its work is done, by a word of its command, as `busy:` knows it.
const COMFYUI: &str = "comfyui";
/// Arguments by which llama.cpp's server starts others of its kind.
const ROUTER: [&str; 2] = ["--models-dir", "--models-preset"];
/// Ends that are what the host does anyway.
const USUAL_STOPS: [&str; 4] = ["kill ${PID}", "kill -TERM ${PID}", "kill -15 ${PID}", "kill -s TERM ${PID}"];

/// A model whose command is known.
pub(super) struct Start<'a> {
    /// What was typed and not taken yet.
    pub(super) keys: &'a mut Keys,
    /// What becomes of it.
    pub(super) entry: &'a mut Entry,
    /// What holds where it says nothing.
    pub(super) common: &'a Common,
    /// The words of its command, at least one.
    pub(super) words: Vec<String>,
}

impl Start<'_> {
    /// How it is started and asked.
    pub(super) fn read(mut self, capabilities: Keys) {
        let proxy = match self.keys.text("proxy") {
            None => Proxy::usual(),
            Some(typed) => Proxy::read(&typed).unwrap_or_else(|| {
                self.entry.note(format!("`proxy: {typed}` is left out: it is no address of HTTP"));
                Proxy::usual()
            }),
        };
        self.read_at(&proxy, capabilities);
    }

    fn read_at(&mut self, proxy: &Proxy, capabilities: Keys) {
        self.kind(capabilities);
        if !proxy.is_here {
            return self.elsewhere(proxy);
        }
        if proxy.is_tls {
            self.entry.note("`proxy` speaks TLS, and what the host starts is asked without; let its command do so too");
        }
        if llama_server::is_one(&self.words[0]) {
            let server = llama_server::read(&self.words);
            let can_be_tried = !server.is_encoder && (server.model.is_some() || server.hub.is_some());
            match can_be_tried {
                true => self.known(server, proxy),
                false => self.server_command(server, proxy),
            }
        } else {
            self.command(proxy);
        }
        self.stop();
    }

    fn kind(&mut self, mut capabilities: Keys) {
        let (ins, outs) = (capabilities.texts("in"), capabilities.texts("out"));
        let has = |list: &[String], what: &str| list.iter().any(|item| item == what);
        let told = match () {
            () if capabilities.flag("reranker") == Some(true) => Some("embedding"),
            () if has(&outs, "image") && !has(&outs, "text") => Some("image"),
            () if has(&outs, "audio") && !has(&outs, "text") => Some("speech"),
            () if has(&ins, "audio") && !has(&ins, "text") && has(&outs, "text") => Some("transcription"),
            () => None,
        };
        let names = std::iter::once(self.entry.name.as_str()).chain(self.entry.aliases.iter().map(String::as_str));
        let guess = match told {
            Some(kind) => Guess { kind, from: Some("capabilities".to_owned()) },
            None => kind::guess(&self.words, names),
        };
        if let Some(from) = guess.from.filter(|from| from != "capabilities") {
            self.entry.remarks.push(format!("Its type is guessed from `{from}`."));
        }
        self.entry.set("type", yaml::text(guess.kind));
        if let Some(context) = capabilities.number("context").filter(|context| *context > 0) {
            self.entry
                .note(format!("`capabilities.context: {context}` is not carried over: engines say it themselves"));
        }
        if capabilities.flag("tools") == Some(true) {
            self.entry.note("`capabilities.tools` is not carried over: it is the engine that takes them or not");
        }
        let notes = capabilities.finish("capabilities.");
        self.entry.notes.extend(notes);
    }

    /// What answers on another machine is not started from here.
    fn elsewhere(&mut self, proxy: &Proxy) {
        self.entry.set("url", yaml::text(proxy.api()));
        let line = self.words.join(" ");
        self.entry
            .note(format!("`cmd: {line}` is not started: it answers at {}, which is not this machine", proxy.url));
        for key in ["cmdStop", "env", "checkEndpoint", "unloadTimeout"] {
            if let Some(shown) = self.keys.shown(key) {
                self.entry.note(format!("`{key}: {shown}` is left out with its command"));
            }
        }
    }

    /// llama.cpp's server, which the plugin knows by name.
    fn known(&mut self, server: Server, proxy: &Proxy) {
        let folder = self.common.folder.clone();
        self.entry.set("plugin", yaml::text("vllm"));
        self.source(&server);
        self.entry.option("engine", yaml::text("llama-server"));
        if !llama_server::is_usual(&server.binary) {
            self.entry.option("binary", yaml::text(server.binary.clone()));
        }
        if !server.args.is_empty() {
            self.entry.option("args", yaml::texts(command::templates(&server.args, None)));
        }
        if server.keeps_slots {
            self.entry.option("keep_slots", Value::Bool(false));
        }
        let health = self.health(proxy).filter(|health| health != HEALTH);
        for (name, path) in [("health", health), ("prefix", prefix(proxy))] {
            if let Some(path) = path {
                self.entry.option(name, yaml::text(path));
            }
        }
        if let Some(env) = self.env() {
            self.entry.option("env", env);
        }
        if let Some(seconds) = self.stop_timeout() {
            self.entry.option("stop_timeout", Value::from(seconds));
        }
        let is_relative = |word: &String| word.contains('/') && !word.starts_with(['/', '-']) && !word.contains("://");
        if is_relative(&server.binary) || server.args.iter().any(is_relative) {
            self.entry.option("working_dir", yaml::text(folder.display().to_string()));
        }
        self.entry.notes.extend(server.notes);
    }

    /// Where its weights are, and what they take.
    fn source(&mut self, server: &Server) {
        if let Some((repo, file)) = &server.hub {
            let pairs = [("hf", yaml::text(repo.clone())), ("file", yaml::text(file.clone()))];
            self.entry.remarks.push(
                "No `memory:` is estimated before its file is here: it plans the whole device until it was seen what it takes."
                    .to_owned(),
            );
            return self.entry.set("source", yaml::mapping(pairs));
        }
        let Some(model) = &server.model else { return };
        let path = self.common.folder.join(Path::new(model));
        self.entry.set("source", located(&path));
        let sizes = server.files.iter().map(|file| std::fs::metadata(self.common.folder.join(file)));
        let others = sizes.filter_map(Result::ok).map(|found| found.len()).sum();
        match Weights::look(&path).memory(server.context, server.cache, others) {
            Some((memory, how)) => self.entry.set_with("memory", yaml::size(memory), how),
            None => self.entry.remarks.push(format!(
                "{} is not here, so that no `memory:` is estimated: it plans the whole device until it was seen what it takes.",
                path.display()
            )),
        }
    }

    /// llama.cpp's server as any other: it makes vectors, and refuses the completion by which a known one is tried, or it finds
    /// its weights itself.
    fn server_command(&mut self, server: Server, proxy: &Proxy) {
        let mut words = vec![server.binary.clone()];
        if server.model.is_some() || server.hub.is_some() {
            words.extend(["--model", "{model_path}"].map(str::to_owned));
        }
        words.extend(["--host", "127.0.0.1", "--port", "{port}"].map(str::to_owned));
        words.extend(command::templates(&server.args, None));
        self.entry.set("command", yaml::texts(words));
        let is_router = server.args.iter().any(|word| ROUTER.contains(&word.as_str()));
        if is_router {
            self.entry.note("it serves several models itself, of which the host knows nothing; `aihost migrate DIR` makes an entry for each");
        } else if server.model.is_none() && server.hub.is_none() {
            self.entry.note(
                "its weights are fetched by llama-server itself; with `source: {hf: ORG/REPO, file: NAME.gguf}`, `plugin: vllm` and `options: {engine: llama-server}` the host fetches them, and knows their size",
            );
        }
        self.source(&server);
        self.entry.notes.extend(server.notes.iter().cloned());
        self.started(proxy);
    }

    /// Any other program.
    fn command(&mut self, proxy: &Proxy) {
        let alone = proxy.port.filter(|port| command::tells_port(&self.words, *port));
        let words = command::templates(&self.words, alone);
        let is_told = words.iter().any(|word| word.contains("{port}"));
        self.entry.set("command", yaml::texts(words));
        match proxy.port {
            Some(port) if alone.is_none() => self.entry.set("port", Value::from(port)),
            None if !is_told => self
                .entry
                .note("nothing in `cmd` tells it its port: put `{port}` there, or say by `port:` on which it answers"),
            _ => {}
        }
        if command::is_container(&self.words) {
            if command::is_detached(&self.words) {
                self.entry.note("its container is detached, so that its command ends at once: leave `-d` out");
            }
            self.entry.note(
                "what a container holds is not seen as its command's, its port among it: if the host refuses it for that, start it by itself and write `url:` instead of `command:`",
            );
        }
        if self.words.iter().any(|word| word.to_ascii_lowercase().contains(COMFYUI)) {
            // It answers before its work is done, and would be unloaded in the middle of it.
            self.entry.set("busy", yaml::text(COMFYUI));
        }
        self.entry
            .remarks
            .push("Without `memory:` it plans the whole device until it was seen what it takes.".to_owned());
        self.started(proxy);
    }

    /// The keys of a server that is started by a command.
    fn started(&mut self, proxy: &Proxy) {
        if let Some(health) = self.health(proxy).filter(|health| health != HEALTH) {
            self.entry.set("health", yaml::text(health));
        }
        if let Some(prefix) = prefix(proxy) {
            self.entry.option("prefix", yaml::text(prefix));
        }
        if let Some(env) = self.env() {
            self.entry.set("env", env);
        }
        if let Some(seconds) = self.stop_timeout() {
            self.entry.set("stop_timeout", Value::from(seconds));
        }
    }

    fn health(&mut self, proxy: &Proxy) -> Option<String> {
        let typed = self.keys.text("checkEndpoint").unwrap_or_else(|| HEALTH.to_owned());
        let path = match typed.trim() {
            "none" => {
                self.entry.note(
                    "`checkEndpoint: none` is not carried over: the host waits until `health` answers; name a path that does",
                );
                HEALTH
            }
            path => path,
        };
        let plain = path.split(['?', '#']).next().unwrap_or_default();
        if plain != path {
            self.entry.note(format!("`checkEndpoint: {path}` is asked as `{plain}`"));
        }
        Some(format!("{}/{}", proxy.path, plain.trim_start_matches('/')))
    }

    fn env(&mut self) -> Option<Value> {
        let mut pairs = Vec::new();
        for line in self.keys.texts("env") {
            match line.split_once('=') {
                Some((name, value)) if !name.is_empty() => {
                    if matches!(name, "CUDA_VISIBLE_DEVICES" | "HIP_VISIBLE_DEVICES") {
                        self.entry.note(format!(
                            "`{line}` is carried over, and the host does not know of it: `devices:` of an entry says on which card it counts"
                        ));
                    }
                    pairs.push((name.to_owned(), yaml::text(braced(value).replace("${{PORT}}", "{port}"))));
                }
                _ => self.entry.note(format!("`env` has `{line}`, which sets no variable, and is left out")),
            }
        }
        (!pairs.is_empty()).then(|| yaml::mapping(pairs))
    }

    fn stop_timeout(&mut self) -> Option<i64> {
        let typed = self.keys.number("unloadTimeout").filter(|seconds| *seconds > 0).or(self.common.unload_timeout)?;
        if typed > STOP_TIMEOUT_MAX_S {
            self.entry.note(format!("`unloadTimeout: {typed}` is {STOP_TIMEOUT_MAX_S}, which is the most there is"));
        }
        let seconds = typed.min(STOP_TIMEOUT_MAX_S);
        (seconds != STOP_TIMEOUT_S).then_some(seconds)
    }

    /// How it is ended.
    fn stop(&mut self) {
        let Some(typed) = self.keys.text("cmdStop") else { return };
        let stop = typed.split_whitespace().collect::<Vec<_>>().join(" ");
        if stop.is_empty() || USUAL_STOPS.contains(&stop.as_str()) {
            return;
        }
        let instead = match command::is_container(&self.words) {
            true if command::is_detached(&self.words) => "its container stays",
            true => "what runs a container passes the SIGTERM on that it is sent",
            false => "SIGTERM, and SIGKILL for all that it started after `stop_timeout`",
        };
        self.entry.note(format!("`cmdStop: {stop}` is not carried over: its process is ended by signals; {instead}"));
    }
}

/// What stands before each path, where something does.
fn prefix(proxy: &Proxy) -> Option<String> {
    (!proxy.path.is_empty()).then(|| proxy.path.clone())
}
