//! `bench host`: llama.cpp's server behind this host and behind its own router, with one command line, in turns.
//!
//! Latency: the first token of streams of a prompt that the engine has read before, asked of the server itself and of it behind either. Turns: two
//! models, room for one, clients that ask one after the other; what a swap is each says itself.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::client;
use super::server::{Server, free_address};
use super::statistics::Readings;
use crate::error::{Doing, Error, Result};
use crate::workspace::{PluginPackage, Profile, Workspace};
use crate::{peers, shell, stage, table, test};

/// The bar: at most this share of the router's swaps, and no request cut.
const BAR: f64 = 0.5;
const MODELS: [&str; 2] = ["a", "b"];
/// Who starts the engine here.
const PLUGIN: &str = "vllm";
/// The engine, in `options: engine` and as a program.
const LLAMA_SERVER: &str = "llama-server";
/// Streams at once, and requests of each in a round.
const STREAMS: [(usize, usize); 3] = [(1, 30), (16, 3), (64, 1)];
/// What a router says of each start of a model's server.
const ROUTER_START: &str = "spawning server instance with name=";
/// Tokens of an answer.
const ANSWER: u32 = 2;

/// How much, and beside what.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// What stands beside this host.
    #[arg(long, value_enum)]
    peer: Peer,
    /// llama.cpp's llama-server; looked for among the peers and in the PATH if absent.
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// Rounds of latency; the arms take turns, A B B A.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// How often each client asks one model and then the other.
    #[arg(long, default_value_t = 50)]
    alternations: u32,
    /// Clients that do so at once.
    #[arg(long, default_value_t = 16)]
    clients: u32,
    /// Parts into which the alternations of each arm are cut, so that the arms take turns.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    parts: u32,
    /// Build optimised.
    #[arg(long)]
    release: bool,
}

/// What can stand beside this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Peer {
    /// llama.cpp's server in router mode.
    LlamaServerRouter,
}

/// One side of the comparison.
#[derive(Debug)]
struct Arm {
    name: &'static str,
    address: SocketAddr,
    /// Nothing once it is measured: what stands beside others holds their folders.
    server: Option<Server>,
    log: PathBuf,
    /// First tokens, seconds, by how many streams there were.
    latency: Vec<Readings>,
    waits: Readings,
    swaps: u64,
    cut: Vec<String>,
    seconds: f64,
}

/// What is needed to start arms.
struct Stage<'a> {
    workspace: &'a Workspace,
    profile: Profile,
    binary: PathBuf,
    folder: PathBuf,
}

/// Runs the measure.
pub(crate) fn run(options: &Options) -> Result {
    let Peer::LlamaServerRouter = options.peer;
    let binary = options.binary.clone().or_else(|| peers::program(LLAMA_SERVER));
    let binary = binary.ok_or_else(|| Error(peers::missing("bin/llama-server (nor in the PATH)")))?;
    let workspace = Workspace::read()?;
    let profile = Profile::of_flag(options.release);
    let plugins = match std::env::var_os(test::BUILT_VARIABLE) {
        None => workspace.build_to_measure(profile, PLUGIN)?,
        Some(_) => workspace.plugins().into_iter().filter(|package| package.name() == PLUGIN).collect(),
    };
    let model = test::small_model(&workspace, profile)?;
    let folder = workspace.staging().join("bench-host");
    for name in MODELS {
        stage::copy_whole(&model, &folder.join("models").join(format!("{name}.gguf")))?;
    }
    let stage = Stage { workspace: &workspace, profile, binary, folder };
    let latency = latency(options, &stage, &plugins)?;
    let turns = turns(options, &stage, &plugins)?;
    report(options, &stage, &latency, &turns, &model)
}

fn latency(options: &Options, stage: &Stage<'_>, plugins: &[PluginPackage]) -> Result<Vec<Arm>> {
    if options.rounds == 0 {
        return Ok(Vec::new());
    }
    let most = STREAMS.map(|(streams, _)| streams).into_iter().max().unwrap_or(1);
    let mut arms = vec![stage.alone(most)?, stage.aihost(plugins, most)?, stage.router(most)?];
    for arm in &arms {
        // Every slot has read it once.
        ask_together(arm.address, most, 2)?;
    }
    for round in 0..options.rounds {
        for index in order(round, arms.len()) {
            let arm = &mut arms[index];
            for (position, (streams, each)) in STREAMS.into_iter().enumerate() {
                arm.latency[position].0.extend(ask_together(arm.address, streams, each)?);
            }
        }
        eprintln!("round {} of {}", round + 1, options.rounds);
    }
    arms.iter_mut().for_each(|arm| arm.server = None);
    Ok(arms)
}

/// A B C, C B A, ...: drift of the machine falls on all arms alike.
fn order(round: u32, arms: usize) -> Vec<usize> {
    let order = 0..arms;
    if round.is_multiple_of(2) { order.collect() } else { order.rev().collect() }
}

/// First tokens of so many streams at once, so many requests of each.
fn ask_together(address: SocketAddr, streams: usize, each: usize) -> Result<Vec<f64>> {
    let task = json!({
        "model": MODELS[0], "messages": [{"role": "user", "content": "Say one word about the number 1000."}], "stream": true,
        "temperature": 0, "max_tokens": ANSWER,
    });
    let ask = || (0..each).map(|_| client::first_token_of(address, &task)).collect::<Result<Vec<f64>>>();
    let found: Vec<Result<Vec<f64>>> = thread::scope(|scope| {
        let clients: Vec<_> = (0..streams).map(|_| scope.spawn(ask)).collect();
        clients
            .into_iter()
            .map(|client| client.join().unwrap_or_else(|_| Err(Error::new("a client panicked"))))
            .collect()
    });
    Ok(found.into_iter().collect::<Result<Vec<_>>>()?.concat())
}

fn turns(options: &Options, stage: &Stage<'_>, plugins: &[PluginPackage]) -> Result<Vec<Arm>> {
    if options.alternations == 0 {
        return Ok(Vec::new());
    }
    let slots = options.clients as usize;
    let mut arms = vec![stage.aihost(plugins, slots)?, stage.router(slots)?];
    for arm in &arms {
        for model in MODELS {
            client::first_token(arm.address, model, "Hello")?;
        }
    }
    let mut asked = 0;
    for part in 0..options.parts {
        let until = options.alternations * (part + 1) / options.parts;
        for index in order(part, arms.len()) {
            let arm = &mut arms[index];
            let (begun, before) = (std::time::Instant::now(), arm.starts()?);
            for said in arm.alternate(options.clients, asked..until) {
                match said {
                    Ok(seconds) => arm.waits.0.push(seconds),
                    Err(error) => arm.cut.push(error.to_string()),
                }
            }
            arm.seconds += begun.elapsed().as_secs_f64();
            arm.swaps += arm.starts()?.saturating_sub(before);
            eprintln!(
                "{}, {until} alternations: {} swaps, {} cut, {:.0} s",
                arm.name,
                arm.swaps,
                arm.cut.len(),
                arm.seconds
            );
        }
        asked = until;
    }
    Ok(arms)
}

impl Arm {
    fn new(name: &'static str, server: Server, log: PathBuf) -> Self {
        let latency = STREAMS.iter().map(|_| Readings::default()).collect();
        let address = server.address;
        Self {
            name,
            address,
            server: Some(server),
            log,
            latency,
            waits: Readings::default(),
            swaps: 0,
            cut: Vec::new(),
            seconds: 0.0,
        }
    }

    /// Each client asks one model and then the other, so often.
    fn alternate(&self, clients: u32, times: std::ops::Range<u32>) -> Vec<Result<f64>> {
        let address = self.address;
        let ask = |client: u32| {
            let prompt = |turn: u32| format!("Client {client} says {turn}. Say one word about it.");
            let turns = times.clone().flat_map(|turn| MODELS.map(|model| (turn, model)));
            turns.map(|(turn, model)| client::first_token(address, model, &prompt(turn))).collect::<Vec<_>>()
        };
        thread::scope(|scope| {
            let all: Vec<_> = (0..clients).map(|client| scope.spawn(move || ask(client))).collect();
            let joined = all.into_iter().map(|client| client.join());
            joined.flat_map(|said| said.unwrap_or_else(|_| vec![Err(Error::new("a client panicked"))])).collect()
        })
    }

    /// How often a model was started since the arm was.
    fn starts(&self) -> Result<u64> {
        if self.name != HOST {
            let log = fs::read_to_string(&self.log).doing(format_args!("read {}", self.log.display()))?;
            return Ok(log.matches(ROUTER_START).count() as u64);
        }
        let answer = client::get(self.address, "/admin/status")?;
        let status: Value = serde_json::from_str(&answer.body).doing("read GET /admin/status")?;
        super::swap::count_loads(&status).ok_or_else(|| Error::new("GET /admin/status has no `loads`"))
    }

    fn json(&self) -> Value {
        let latency = STREAMS.iter().zip(&self.latency).map(|((streams, _), readings)| {
            json!({"streams": streams, "p50_s": readings.percentile(50), "p99_s": readings.percentile(99), "count": readings.0.len()})
        });
        json!({
            "arm": self.name, "latency": latency.collect::<Vec<_>>(), "waits": self.waits.json(), "wait_p99_s": self.waits.percentile(99),
            "swaps": self.swaps, "cut": self.cut, "seconds": self.seconds,
        })
    }
}

const HOST: &str = "aihost";

impl Stage<'_> {
    /// What the engine is told wherever it runs: as many slots as there are clients, and enough context for each. Several threads of it wait for
    /// one another at each step, which beside anything else takes longer than what is measured.
    fn arguments(slots: usize) -> [String; 6] {
        let context = (128 * slots).to_string();
        ["--ctx-size".into(), context, "--parallel".into(), slots.to_string(), "--threads".into(), "1".into()]
    }

    fn aihost(&self, plugins: &[PluginPackage], slots: usize) -> Result<Arm> {
        let address = free_address()?;
        let config = self.folder.join("models.yaml");
        stage::plugins(self.workspace, self.profile, plugins, &self.folder.join("plugins"))?;
        fs::write(&config, models_yaml(address, &self.binary, &Self::arguments(slots))).doing("write a models.yaml")?;
        let mut command = self.workspace.aihost(self.profile);
        command.args(["serve", "--log-format", "text", "--config"]).arg(&config).env("AIHOST_CONFIG", &config);
        let log = self.folder.join("aihost.log");
        Ok(Arm::new(HOST, Server::start(&mut command, address, &log)?, log))
    }

    fn router(&self, slots: usize) -> Result<Arm> {
        let models = self.folder.join("models");
        self.peer(
            "router",
            slots,
            &["--models-dir".as_ref(), models.as_os_str(), "--models-max".as_ref(), "1".as_ref()],
        )
    }

    fn alone(&self, slots: usize) -> Result<Arm> {
        let model = self.folder.join("models/a.gguf");
        self.peer("alone", slots, &["--model".as_ref(), model.as_os_str(), "--alias".as_ref(), MODELS[0].as_ref()])
    }

    fn peer(&self, name: &'static str, slots: usize, arguments: &[&std::ffi::OsStr]) -> Result<Arm> {
        let address = free_address()?;
        let mut command = Command::new(&self.binary);
        command.args(arguments).args(Self::arguments(slots)).args(["--device", "none"]);
        command.args(["--host", "127.0.0.1", "--port", &address.port().to_string()]);
        let log = self.folder.join(format!("{name}.log"));
        Ok(Arm::new(name, Server::start(&mut command, address, &log)?, log))
    }
}

fn models_yaml(listen: SocketAddr, binary: &Path, arguments: &[String]) -> String {
    let arguments: Vec<String> = arguments.iter().map(|word| format!("'{word}'")).collect();
    let entry = |name: &str| {
        format!(
            "  {name}: {{type: text, plugin: {PLUGIN}, source: {{path: models/{name}.gguf}}, memory: 1GiB, options: {{engine: {LLAMA_SERVER}, \
             binary: '{}', args: [{}]}}}}\n",
            binary.display(),
            arguments.join(", ")
        )
    };
    format!(
        "listen: {listen}\n{}devices: [{{id: cpu, memory: 4GiB, max_loaded: 1}}]\nmodels:\n{}",
        stage::FOLDERS_BESIDE,
        MODELS.map(entry).concat()
    )
}

fn report(options: &Options, stage: &Stage<'_>, latency: &[Arm], turns: &[Arm], model: &Path) -> Result {
    let digest = shell::probe("sha256sum", &[&model.to_string_lossy()]).unwrap_or_default();
    let digest = digest.split_whitespace().next().unwrap_or_default().to_owned();
    let result = json!({
        "measure": "host", "rounds": options.rounds, "alternations": options.alternations, "clients": options.clients,
        "model_sha256": digest, "build": if options.release { "release" } else { "dev" }, "bar": BAR,
        "latency": latency.iter().map(Arm::json).collect::<Vec<_>>(), "turns": turns.iter().map(Arm::json).collect::<Vec<_>>(),
    });
    let file = stage.folder.join("host.json");
    fs::write(&file, format!("{result:#}\n")).doing(format_args!("write {}", file.display()))?;
    println!("model sha256 {digest}; {}", file.display());
    if let [alone, ours, router] = latency {
        print!("{}", table::render(&latency_rows(alone, ours, router)));
    }
    if let [ours, router] = turns {
        let heads = ["arm", "requests", "swaps", "wait p50", "wait p99", "cut", "seconds"];
        let row = |arm: &Arm| {
            let requests = arm.waits.0.len() + arm.cut.len();
            let [middle, most] = [50, 99].map(|share| format!("{:.3} s", arm.waits.percentile(share)));
            let (swaps, cut, seconds) =
                (arm.swaps.to_string(), arm.cut.len().to_string(), format!("{:.0}", arm.seconds));
            vec![arm.name.to_owned(), requests.to_string(), swaps, middle, most, cut, seconds]
        };
        print!("{}", table::render(&[table::row(heads), row(ours), row(router)]));
        let ratio = ours.swaps as f64 / router.swaps.max(1) as f64;
        let word = if ratio <= BAR && ours.cut.is_empty() { "reached" } else { "not reached" };
        println!("swaps are {ratio:.2}x the router's; at most {BAR}x with none cut is the aim: {word}");
        ours.cut.iter().chain(&router.cut).take(5).for_each(|why| println!("cut: {why}"));
    }
    Ok(())
}

fn latency_rows(alone: &Arm, ours: &Arm, router: &Arm) -> Vec<Vec<String>> {
    let mut rows = vec![table::row(["streams", "", "alone", HOST, "router", "added here", "added by the router"])];
    for (position, (streams, _)) in STREAMS.into_iter().enumerate() {
        for share in [50, 99] {
            let ms = |arm: &Arm| 1000.0 * arm.latency[position].percentile(share);
            let [alone, ours, router] = [alone, ours, router].map(ms);
            let figures = [alone, ours, router, ours - alone, router - alone].map(|ms| format!("{ms:.1} ms"));
            rows.push([streams.to_string(), format!("p{share}")].into_iter().chain(figures).collect());
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_arms_are_told_the_same() {
        let arguments = Stage::arguments(16);
        let text = models_yaml("127.0.0.1:1".parse().unwrap(), Path::new("/x/llama-server"), &arguments);
        assert!(text.contains("max_loaded: 1") && text.contains("binary: '/x/llama-server'"), "{text}");
        assert!(text.contains("args: ['--ctx-size', '2048', '--parallel', '16', '--threads', '1']"), "{text}");
        assert_eq!((order(0, 3), order(1, 3)), (vec![0, 1, 2], vec![2, 1, 0]));
    }
}
