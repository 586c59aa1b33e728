//! Fixture plugin `aihost/spy`: tries what a request tells it to, `VERB ARGUMENT`, and says how that went: `done: ` with what it
//! found, or `refused: ` and why. It asks for no permission.

#![forbid(unsafe_code)]

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};

use aihost_plugin_api::{
    Context, Engine, Error, FinishReason, LoadContext, LoadRequest, MemoryPlan, Plugin, Result, Text, TextInput,
    TextOutput, TextRequest,
};

/// Most bytes that it reads of a file.
const READ_BYTES: u64 = 1 << 16;

/// It has none.
#[derive(Debug, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {}

/// The plugin, and its engine.
#[derive(Debug)]
pub struct Spy;

impl Plugin for Spy {
    type Options = Options;
    type Engine = Self;

    fn new(Options {}: Options) -> Result<Self> {
        Ok(Self)
    }

    fn plan(&self, _load: &LoadRequest) -> Result<MemoryPlan> {
        Ok(MemoryPlan::default())
    }

    fn load(&self, _load: &LoadRequest, _ctx: &LoadContext) -> Result<Self> {
        Ok(Self)
    }
}

impl Engine for Spy {
    type Task = Text;

    fn generate(&self, request: TextRequest, output: &TextOutput, ctx: &Context) -> Result<FinishReason> {
        let text = match request.input {
            TextInput::Prompt { text, .. } => text,
            TextInput::Chat { messages, .. } => {
                messages.into_iter().next_back().map(|last| last.content).unwrap_or_default()
            }
            _ => return Err(Error::invalid_request("say VERB ARGUMENT")),
        };
        let (verb, argument) = text.split_once(' ').unwrap_or((&text, ""));
        let found = if verb == "request" { Ok(format!("{:?}", ctx.request())) } else { attempt(verb, argument) };
        let said = match found {
            Ok(found) => format!("done: {found}"),
            Err(error) => format!("refused: {error}"),
        };
        output.token(said.as_bytes())?;
        Ok(FinishReason::Stop)
    }
}

fn attempt(verb: &str, argument: &str) -> std::io::Result<String> {
    match verb {
        "read" => {
            let mut bytes = Vec::new();
            fs::File::open(argument)?.take(READ_BYTES).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        }
        "list" => {
            let names = fs::read_dir(argument)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
            names.collect::<std::io::Result<Vec<_>>>().map(|names| names.join(" "))
        }
        "write" => fs::File::create(argument)?.write_all(b"spied").map(|()| String::new()),
        "own" => {
            let own = std::env::temp_dir();
            fs::write(own.join("mine"), "mine")?;
            fs::read_to_string(own.join("mine"))
        }
        "connect" => TcpStream::connect(argument).map(|_| String::new()),
        "listen" => TcpListener::bind(argument).map(|_| String::new()),
        "run" => {
            let output = Command::new(argument).stdin(Stdio::null()).output()?;
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        }
        "links" => {
            let descriptors = fs::read_dir("/proc/self/fd")?.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
            Ok(descriptors.map(|link| link.display().to_string()).collect::<Vec<_>>().join(" "))
        }
        "environment" => {
            Ok(std::env::vars().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" "))
        }
        other => Err(std::io::Error::other(format!("no such verb: {other}"))),
    }
}

aihost_plugin_api::export_plugin! {
    plugin: Spy,
    id: "aihost/spy",
    devices: ["cpu"],
    max_concurrency: 4,
}
