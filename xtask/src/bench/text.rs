//! `bench text`: how fast a text model reads and writes, alone and in company, beside llama.cpp's server in the same run.
//!
//! Prompts are random tokens, so that no cache helps; an answer ends after as many tokens as are asked for. Writing is measured from the
//! first token to the last, reading as the time until the first.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};

use super::client::{self, Written};
use super::server::{Server, free_address};
use super::statistics::Readings;
use crate::error::{Doing, Error, Result};
use crate::workspace::{PluginPackage, Profile, Workspace};
use crate::{shell, stage, table, test};

/// Tokens of an answer.
const ANSWER_TOKENS: usize = 64;
/// Tokens before the answer whose writing is measured.
const DEPTHS: [usize; 3] = [8, 512, 1900];
/// Tokens of the prompts whose reading is measured.
const PROMPTS: [usize; 3] = [128, 512, 1500];
/// Streams at a time, and tokens of the prompt of each.
const STREAMS: [usize; 4] = [1, 4, 8, 16];
const STREAM_PROMPT: usize = 32;
/// Between the arrivals of two streams.
const STAGGER: Duration = Duration::from_millis(50);
/// Ids of plain tokens in most vocabularies.
const TOKENS: std::ops::Range<u64> = 300..30_000;
const MODEL: &str = "a";
/// Who serves it.
const PLUGIN: &str = "candle-llm";

/// How much, of what, and beside what.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Rounds; the arms take turns, A B B A.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// llama.cpp's llama-server, measured as the other arm.
    #[arg(long, value_name = "PATH")]
    peer: Option<PathBuf>,
    /// A GGUF file; the small real model if absent.
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Build optimised.
    #[arg(long)]
    release: bool,
}

struct Arm {
    name: &'static str,
    version: String,
    server: Server,
    /// Tokens a second, or seconds, by what was measured.
    readings: Vec<Readings>,
}

/// What is measured, in the order of the readings.
#[derive(Clone, Copy, Debug, PartialEq)]
enum What {
    /// Tokens a second written behind so many.
    Writes(usize),
    /// Tokens a second of a prompt of so many.
    Reads(usize),
    /// Tokens a second that so many streams write together.
    Together(usize),
    /// Seconds until the first token of the last but few of them.
    FirstToken(usize),
    /// Seconds between two tokens, the longest but few.
    Gap(usize),
}

fn all() -> Vec<What> {
    let streams = STREAMS.iter().flat_map(|n| [What::Together(*n), What::FirstToken(*n), What::Gap(*n)]);
    DEPTHS.map(What::Writes).into_iter().chain(PROMPTS.map(What::Reads)).chain(streams).collect()
}

/// Runs the measure.
pub(crate) fn run(options: &Options) -> Result {
    let workspace = Workspace::read()?;
    let profile = Profile::of_flag(options.release);
    let plugins = workspace.build_to_measure(profile, PLUGIN)?;
    let model = match &options.model {
        Some(model) => model.clone(),
        None => test::small_model(&workspace, profile)?,
    };
    let folder = workspace.staging().join("bench-text");
    stage::copy_whole(&model, &folder.join("models").join("a.gguf"))?;
    let mut arms = vec![aihost(&workspace, profile, &plugins, &folder)?];
    if let Some(peer) = &options.peer {
        arms.push(llama_server(peer, &folder)?);
    }
    let mut random = Random(1);
    for arm in &arms {
        // The model is loaded.
        client::written(arm.server.address, &task(&mut random, 8, 8))?;
    }
    for round in 0..options.rounds {
        let mut order: Vec<usize> = (0..arms.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for index in order {
            arms[index].round(&mut random)?;
        }
        eprintln!("round {} of {}", round + 1, options.rounds);
    }
    report(options, &arms, &model, &folder)
}

impl Arm {
    fn new(name: &'static str, version: String, server: Server) -> Self {
        Self { name, version, server, readings: all().iter().map(|_| Readings::default()).collect() }
    }

    fn round(&mut self, random: &mut Random) -> Result {
        let address = self.server.address;
        let mut found = Vec::new();
        for depth in DEPTHS {
            let written = client::written(address, &task(random, depth, ANSWER_TOKENS))?;
            found.push((ANSWER_TOKENS - 1) as f64 / written.after_first.iter().sum::<f64>());
        }
        for prompt in PROMPTS {
            found.push(prompt as f64 / client::written(address, &task(random, prompt, 4))?.first);
        }
        for streams in STREAMS {
            let tasks: Vec<String> = (0..streams).map(|_| task(random, STREAM_PROMPT, ANSWER_TOKENS)).collect();
            found.extend(together(address, &tasks)?);
        }
        self.readings.iter_mut().zip(found).for_each(|(readings, found)| readings.0.push(found));
        Ok(())
    }

    fn json(&self) -> Value {
        let readings = all().into_iter().zip(&self.readings);
        let readings = readings
            .map(|(what, readings)| json!({"what": name(what), "median": readings.median(), "readings": readings.0}));
        json!({"arm": self.name, "version": self.version, "measured": readings.collect::<Vec<_>>()})
    }
}

/// Tokens a second, the 99th percentile of the time until the first token, and that of the gaps between two.
fn together(address: SocketAddr, tasks: &[String]) -> Result<[f64; 3]> {
    let begun = Instant::now();
    let ask = |number: usize, task: &str| -> Result<Written> {
        std::thread::sleep(STAGGER * u32::try_from(number).unwrap_or(u32::MAX));
        client::written(address, task)
    };
    let written: Vec<Result<Written>> = std::thread::scope(|scope| {
        let threads: Vec<_> = tasks.iter().enumerate().map(|(i, task)| scope.spawn(move || ask(i, task))).collect();
        let gone = || Err(Error::new("a client ended by a panic"));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| gone())).collect()
    });
    let written = written.into_iter().collect::<Result<Vec<_>>>()?;
    let seconds = begun.elapsed().as_secs_f64();
    let tokens: u64 = written.iter().map(|written| written.tokens).sum();
    let first = written.iter().map(|written| written.first).collect();
    let gaps = written.iter().flat_map(|written| written.after_first.clone()).collect();
    Ok([tokens as f64 / seconds, high(first), high(gaps)])
}

/// The 99th percentile.
fn high(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get((values.len() * 99).div_ceil(100).saturating_sub(1)).copied().unwrap_or(0.0)
}

/// A small generator (xorshift), so that both arms are asked the like and nothing twice.
struct Random(u64);

impl Random {
    fn token(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        TOKENS.start + self.0 % (TOKENS.end - TOKENS.start)
    }
}

fn task(random: &mut Random, prompt: usize, tokens: usize) -> String {
    let prompt: Vec<u64> = (0..prompt).map(|_| random.token()).collect();
    // The last three are llama.cpp's own keys, of which we take the first two.
    json!({
        "model": MODEL, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": true,
        "stream_options": {"include_usage": true}, "ignore_eos": true, "cache_prompt": false,
    })
    .to_string()
}

fn aihost(workspace: &Workspace, profile: Profile, plugins: &[PluginPackage], folder: &Path) -> Result<Arm> {
    let address = free_address()?;
    let config = folder.join("models.yaml");
    stage::plugins(workspace, profile, plugins, &folder.join("plugins"))?;
    let text = format!(
        "listen: {address}\n{}models:\n  {MODEL}: {{type: text, plugin: candle-llm, source: {{path: models/a.gguf}}}}\n",
        stage::FOLDERS_BESIDE
    );
    fs::write(&config, text).doing("write the models.yaml of the measure")?;
    let mut command = workspace.aihost(profile);
    command.args(["serve", "--log-format", "text", "--config"]).arg(&config).env("AIHOST_CONFIG", &config);
    let server = Server::start(&mut command, address, &folder.join("aihost.log"))?;
    let version = shell::probe(&workspace.host(profile).to_string_lossy(), &["--version"]).unwrap_or_default();
    Ok(Arm::new("aihost", version, server))
}

fn llama_server(binary: &Path, folder: &Path) -> Result<Arm> {
    let address = free_address()?;
    let mut command = Command::new(binary);
    command.arg("--model").arg(folder.join("models/a.gguf")).args(["--alias", MODEL, "--flash-attn", "on"]);
    command.args(["--parallel", "16", "--ctx-size", "65536", "--cont-batching"]);
    command.args(["--host", "127.0.0.1", "--port", &address.port().to_string()]);
    let server = Server::start(&mut command, address, &folder.join("llama-server.log"))?;
    let version = shell::probe(&binary.to_string_lossy(), &["--version"]).unwrap_or_default();
    let version = version.lines().find(|line| line.starts_with("version")).unwrap_or_default().to_owned();
    Ok(Arm::new("llama.cpp server", version, server))
}

fn name(what: What) -> String {
    match what {
        What::Writes(depth) => format!("writes behind {depth} tokens, tokens/s"),
        What::Reads(prompt) => format!("reads {prompt} tokens, tokens/s"),
        What::Together(streams) => format!("{streams} streams together, tokens/s"),
        What::FirstToken(streams) => format!("{streams} streams, first token p99, s"),
        What::Gap(streams) => format!("{streams} streams, gap p99, s"),
    }
}

fn report(options: &Options, arms: &[Arm], model: &Path, folder: &Path) -> Result {
    let digest = shell::probe("sha256sum", &[&model.to_string_lossy()]).unwrap_or_default();
    let digest = digest.split_whitespace().next().unwrap_or_default().to_owned();
    let result = json!({
        "measure": "text", "rounds": options.rounds, "model_sha256": digest,
        "build": if options.release { "release" } else { "dev" }, "arms": arms.iter().map(Arm::json).collect::<Vec<_>>(),
    });
    let file = folder.join("text.json");
    fs::write(&file, format!("{result:#}\n")).doing(format_args!("write {}", file.display()))?;
    println!("model sha256 {digest}; {} rounds; {}", options.rounds, file.display());
    let heads = ["measured".to_owned()].into_iter().chain(arms.iter().map(|arm| arm.name.to_owned()));
    let mut rows = vec![heads.chain((arms.len() > 1).then(|| "ratio".to_owned())).collect::<Vec<_>>()];
    for (i, what) in all().into_iter().enumerate() {
        let medians: Vec<f64> = arms.iter().map(|arm| arm.readings[i].median()).collect();
        let shown = arms.iter().map(|arm| {
            let (least, most) = arm.readings[i].range();
            format!("{:.3} ({least:.3}-{most:.3})", arm.readings[i].median())
        });
        let ratio = medians.get(1).map(|peer| format!("{:.2}", medians[0] / peer));
        rows.push([name(what)].into_iter().chain(shown).chain(ratio).collect());
    }
    print!("{}", table::render(&rows));
    arms.iter().for_each(|arm| println!("{}: {}", arm.name, arm.version));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_99th_percentile_of_few_is_the_largest() {
        assert!((high(vec![3.0, 1.0, 2.0]) - 3.0).abs() < 1e-9);
        assert!((high((0..200).map(f64::from).collect()) - 197.0).abs() < 1e-9);
        assert!(high(Vec::new()).abs() < 1e-9);
    }

    #[test]
    fn no_prompt_is_asked_twice() {
        let mut random = Random(1);
        let tasks: Vec<String> = (0..50).map(|_| task(&mut random, 8, 1)).collect();
        let distinct: std::collections::BTreeSet<&String> = tasks.iter().collect();
        assert_eq!(distinct.len(), tasks.len());
    }
}
