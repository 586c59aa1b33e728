//! What answers: a host with one text model under every name that suites ask for, by the engine that is tried.

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use clap::ValueEnum;
use serde::Deserialize;

use super::file;
use super::has;
use crate::bench::server::{Server, free_address};
use crate::error::{Doing, Error, Result};
use crate::workspace::{Profile, Workspace};
use crate::{stage, test};

/// Names that suites ask for; the first is what scripts of this repository use, the second its other name.
const NAMES: [&str; 10] = [
    "gpt-4o",
    "gpt-4o-mini",
    "gpt-6-astra",
    "gpt-3.5-turbo-instruct",
    "gpt-4.1",
    "gpt-4",
    "gpt-5.4",
    "claude-sonnet-4-5",
    "claude-haiku-4-5",
    "llama3.2",
];
/// Tokens of context that the small real model has: no suite needs more, and less is faster.
const CONTEXT: u32 = 1024;

/// Tokens that it answers with where nobody says how many: suites ask without a limit for what is short of other models.
const ANSWER: u32 = 64;

/// What answers behind the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Engine {
    /// The fixture plugin, which does what a message tells it to.
    Echo,
    /// SmolLM2-135M by our own plugin.
    CandleLlm,
    /// The fixture again, behind a server of others that has the chat route alone.
    Upstream,
    /// SmolLM2-135M by llama.cpp's server, as a model that others run.
    LlamaServer,
}

/// llama.cpp's own server, as a shell finds it. Building it takes half an hour, so nothing here does.
const LLAMA_SERVER: &str = "llama-server";

impl Engine {
    /// All of them.
    pub(super) const ALL: [Self; 4] = [Self::Echo, Self::CandleLlm, Self::Upstream, Self::LlamaServer];

    /// What it needs and this machine lacks.
    pub(super) fn lacks(self) -> Option<&'static str> {
        (self == Self::LlamaServer && !has(LLAMA_SERVER)).then_some("a llama-server of llama.cpp in PATH")
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Echo => "echo",
            Self::CandleLlm => "candle-llm",
            Self::Upstream => "upstream",
            Self::LlamaServer => "llama-server",
        })
    }
}

/// A host that answers.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) engine: Engine,
    url: String,
    /// The host, and what it asks. They end with this.
    _servers: Vec<Server>,
}

/// Builds what engines need, unless that is said to be done.
pub(super) fn build(workspace: &Workspace, profile: Profile) -> Result {
    if std::env::var_os(test::BUILT_VARIABLE).is_some() { Ok(()) } else { workspace.build_all(profile) }
}

impl Running {
    /// One that somebody else started.
    pub(super) fn there(engine: Engine, url: String) -> Self {
        Self { engine, url, _servers: Vec::new() }
    }

    /// A host of this workspace on a free port.
    pub(super) fn start(workspace: &Workspace, profile: Profile, engine: Engine) -> Result<Self> {
        if let Some(what) = engine.lacks() {
            return Err(Error(format!("the engine {engine} needs {what}")));
        }
        let starting = Starting { workspace, profile, folder: workspace.staging().join("conformance") };
        fs::create_dir_all(&starting.folder).doing(format_args!("create {}", starting.folder.display()))?;
        let mut servers = Vec::new();
        let entry = match engine {
            Engine::Echo => ECHO.to_owned(),
            Engine::CandleLlm => format!(
                "plugin: candle-llm, source: {{path: {}}}, options: {{context: {CONTEXT}}}, \
                 default_max_tokens: {ANSWER}",
                test::small_model(workspace, profile)?.display()
            ),
            Engine::Upstream => {
                let far = starting.host("far", ECHO)?;
                let gate = starting.chat_only(far.address)?;
                let entry = far_entry(gate.address);
                servers.extend([gate, far]);
                entry
            }
            Engine::LlamaServer => {
                let far = starting.llama_server()?;
                let entry = far_entry(far.address);
                servers.push(far);
                entry
            }
        };
        // The host ends first.
        servers.insert(0, starting.host(&engine.to_string(), &entry)?);
        Ok(Self { engine, url: format!("http://{}", servers[0].address), _servers: servers })
    }

    /// What a script is told.
    pub(super) fn variables(&self) -> [(&'static str, String); 4] {
        [
            ("CONFORMANCE_URL", self.url.clone()),
            ("CONFORMANCE_ENGINE", self.engine.to_string()),
            ("CONFORMANCE_MODEL", NAMES[0].to_owned()),
            ("CONFORMANCE_OTHER_MODEL", NAMES[1].to_owned()),
        ]
    }
}

/// The fixture as the model of a host.
const ECHO: &str = "plugin: aihost/echo, options: {script: true}";

/// A model that others run.
fn far_entry(address: SocketAddr) -> String {
    format!("url: 'http://{address}/v1', engine_model: {}", NAMES[0])
}

/// What is needed to start servers.
struct Starting<'a> {
    workspace: &'a Workspace,
    profile: Profile,
    folder: PathBuf,
}

impl Starting<'_> {
    /// A host whose only model has this in its entry.
    fn host(&self, name: &str, entry: &str) -> Result<Server> {
        let folder = self.folder.join(name);
        let wanted: Vec<_> = self
            .workspace
            .plugins()
            .into_iter()
            .filter(|plugin| entry.contains(&plugin.name().replace("fixture-", "aihost/")))
            .collect();
        stage::plugins(self.workspace, self.profile, &wanted, &folder.join("plugins"))?;
        let address = free_address()?;
        let config = folder.join("models.yaml");
        fs::create_dir_all(&folder).doing(format_args!("create {}", folder.display()))?;
        fs::write(&config, models_yaml(address, entry)).doing(format_args!("write {}", config.display()))?;
        let mut command = self.workspace.aihost(self.profile);
        command.args(["serve", "--log-format", "text", "--config"]).arg(&config).env("AIHOST_CONFIG", &config);
        Server::start(&mut command, address, &folder.join("host.log"))
    }

    /// A server that passes the chat route of another one on, and has nothing else.
    fn chat_only(&self, far: SocketAddr) -> Result<Server> {
        let address = free_address()?;
        let mut command = Command::new("python3");
        command.arg(file("chat_only.py")).args([address.to_string(), far.to_string()]);
        Server::start(&mut command, address, &self.folder.join("chat-only.log"))
    }

    /// llama.cpp's own server.
    fn llama_server(&self) -> Result<Server> {
        let address = free_address()?;
        let mut command = Command::new(LLAMA_SERVER);
        command.arg("--model").arg(test::small_model(self.workspace, self.profile)?);
        command.args(["--host", &address.ip().to_string(), "--port", &address.port().to_string()]);
        command.args([
            "--ctx-size",
            &(4 * CONTEXT).to_string(),
            "--parallel",
            "4",
            "--threads",
            "2",
            "--alias",
            NAMES[0],
            "--jinja",
        ]);
        Server::start(&mut command, address, &self.folder.join("llama-server.log"))
    }
}

fn models_yaml(listen: SocketAddr, entry: &str) -> String {
    format!(
        "listen: {listen}\n{}devices: [{{id: cpu, memory: 4GiB}}]\nlimits: {{queue: 1000}}\nmodels:\n  text:\n    \
         {{type: text, endpoint: /v1/chat/completions, default: true, aliases: [{}], {entry}}}\n",
        stage::FOLDERS_BESIDE,
        NAMES.join(", ")
    )
}
