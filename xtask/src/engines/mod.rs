//! `engines`: a real engine of others and a model of our own take turns for one place, and the engine is killed in every phase of
//! its life. What must hold is in [`turns`]; what is known of each engine is a row here.

mod tree;
mod turns;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};

use crate::error::{Error, Result};
use crate::workspace::{Profile, Workspace};
use crate::{peers, table, test};
use turns::{Phase, Turns};

/// Which, and how often.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The engine.
    #[arg(value_enum)]
    engine: Engine,
    /// How often our own model and the engine take turns; 20 for llama-server and 4 for vllm, which takes minutes to start.
    #[arg(long, value_name = "N")]
    turns: Option<u32>,
    /// Build optimised.
    #[arg(long)]
    release: bool,
    /// Only these phases.
    #[arg(long, value_enum, value_delimiter = ',')]
    phases: Option<Vec<Phase>>,
}

/// An engine of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Engine {
    /// llama.cpp's server.
    LlamaServer,
    /// vLLM, on the processor's cores.
    Vllm,
}

/// What an engine is asked and does here.
#[derive(Debug)]
pub(super) struct Peer {
    /// Its name in `options: engine`.
    pub(super) name: &'static str,
    pub(super) binary: PathBuf,
    /// What it serves.
    pub(super) model: PathBuf,
    pub(super) memory: &'static str,
    /// As YAML.
    pub(super) args: &'static str,
    /// As YAML.
    pub(super) env: &'static str,
    /// How long after its start it is killed while it starts.
    pub(super) into_start: Duration,
    /// How long one answer may take, with a start before it.
    pub(super) limit: Duration,
    pub(super) phases: &'static [Phase],
}

impl Engine {
    /// What is needed of it, or what is missing.
    fn find(self, workspace: &Workspace, profile: Profile) -> Result<std::result::Result<Peer, String>> {
        let name = match self {
            Self::LlamaServer => "llama-server",
            Self::Vllm => "vllm",
        };
        let Some(binary) = peers::program(name) else {
            return Ok(Err(peers::missing(&format!("bin/{name} (nor in the PATH)"))));
        };
        Ok(match self {
            Self::LlamaServer => Ok(Peer {
                name,
                binary,
                model: test::small_model(workspace, profile)?,
                memory: "1GiB",
                args: "['--ctx-size', '2048', '--parallel', '2', '--threads', '2']",
                env: "{}",
                into_start: Duration::from_millis(20),
                limit: Duration::from_secs(60),
                phases: &[
                    Phase::Starting,
                    Phase::Serving,
                    Phase::Streaming,
                    Phase::Saving,
                    Phase::Unloading,
                    Phase::Stuck,
                    Phase::HostKilled,
                ],
            }),
            Self::Vllm => match peers::file(VLLM_MODEL) {
                Some(model) => Ok(Peer {
                    name,
                    binary,
                    model,
                    memory: "6GiB",
                    args: "['--max-model-len', '2048', '--enforce-eager']",
                    env: "{HF_HUB_OFFLINE: '1'}",
                    into_start: Duration::from_secs(20),
                    limit: Duration::from_secs(600),
                    phases: &[Phase::Starting, Phase::Streaming, Phase::Inner, Phase::Unloading, Phase::HostKilled],
                }),
                None => Err(peers::missing(VLLM_MODEL)),
            },
        })
    }

    fn turns(self) -> u32 {
        match self {
            Self::LlamaServer => 20,
            Self::Vllm => 4,
        }
    }
}

/// SmolLM2-135M-Instruct as a folder of Hugging Face's form.
const VLLM_MODEL: &str = "smollm2-hf";

/// Runs one.
pub(crate) fn run(options: &Options) -> Result {
    let profile = Profile::of_flag(options.release);
    match run_one(options, profile)? {
        None => Ok(()),
        Some(why) => Err(Error(why)),
    }
}

/// Runs one as continuous integration does. Says why it cannot run here.
pub(crate) fn run_if_there(engine: Engine) -> Result<Option<String>> {
    run_one(&Options { engine, turns: None, release: false, phases: None }, Profile::Dev)
}

fn run_one(options: &Options, profile: Profile) -> Result<Option<String>> {
    let workspace = Workspace::read()?;
    if std::env::var_os(test::BUILT_VARIABLE).is_none() {
        workspace.build_all(profile)?;
    }
    let peer = match options.engine.find(&workspace, profile)? {
        Ok(peer) => peer,
        Err(why) => return Ok(Some(why)),
    };
    let begun = Instant::now();
    let mut turns = Turns::start(&workspace, profile, &peer)?;
    let phases = options.phases.as_deref().unwrap_or(peer.phases).to_vec();
    turns.alternate(options.turns.unwrap_or(options.engine.turns()))?;
    for phase in phases {
        turns.kill(phase)?;
    }
    let report = turns.end()?;
    println!("{} at {}; {:.0} s", peer.name, peer.binary.display(), begun.elapsed().as_secs_f64());
    print!("{}", table::render(&report.rows));
    if report.faults.is_empty() { Ok(None) } else { Err(Error(report.faults.join("\n"))) }
}
