//! `soak`: a host under clients of every kind while its workers are made to die, and the count of what went wrong.
//!
//! It drives the built host over HTTP, with echo, faulty and the small real model, and fails if a bound is broken.

mod cache;
mod chaos;
mod client;
mod hostile;
pub(crate) mod process;
mod random;
mod tally;

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Args;
use serde_json::{Value, json};

use crate::bench::client as http;
use crate::bench::server::{Server, free_address};
use crate::error::{Doing, Error, Result};
use crate::workspace::{Profile, Workspace};
use crate::{stage, test};
use chaos::Chaos;
use client::{Manner, Model, Says};
use hostile::Hostile;
use process::{holdings, workers_of};
use random::Random;
use tally::{Death, Host, Line, Tally};

/// Minutes of a soak that is not told how long.
const MINUTES: f64 = 2.0;
/// Minutes of the hostile arm in the full run of continuous integration.
const HOSTILE_MINUTES: f64 = 2.0;
/// Minutes of the cache arm there.
const CACHE_MINUTES: f64 = 1.5;
/// Clients by their manner. The stalled ones read late, so there are few.
const CLIENTS: [Manner; 10] = [
    Manner::Patient,
    Manner::Patient,
    Manner::Patient,
    Manner::Patient,
    Manner::Streaming,
    Manner::Streaming,
    Manner::Streaming,
    Manner::Streaming,
    Manner::Impatient,
    Manner::Stalled,
];
/// A client's pause between requests, milliseconds.
const PAUSE_MS: (u64, u64) = (1, 20);
/// A stalled client's pause where swaps are counted: while it stalls, nobody may take its model's place.
const STALL_PAUSE: Duration = Duration::from_secs(60);
/// How long a host may take to end: its drain, and the release of its workers.
const END_LIMIT: Duration = Duration::from_secs(90);
/// How long threads and descriptors may take to come back.
const SETTLE_LIMIT: Duration = Duration::from_secs(30);
/// After the host's end nothing of it may live longer.
const ORPHAN_LIMIT: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(100);

const QUESTION: &str = "Who wrote Romeo and Juliet?";
const TOKENS: u32 = 6;

/// How long, and by which chance.
#[derive(Debug, Default, Args)]
pub(crate) struct Options {
    /// For this long; 2 if nothing else says when it is enough.
    #[arg(long, value_name = "M", conflicts_with_all = ["swaps", "deaths"])]
    minutes: Option<f64>,
    /// Until so many swaps: one place, models that load at once, the shortest quantum.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    swaps: Option<u64>,
    /// Until so many workers were made to die, of which there is about one a second.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), conflicts_with = "swaps")]
    deaths: Option<u64>,
    /// The seed of what clients do and who dies; from the clock if absent.
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Patient clients alone for half of the time, then beside hostile ones: bodies that were too much once, floods of
    /// connections, a plugin that leaks and one that shouts, a host that is stopped for a while, a log on a full disk.
    #[arg(long, conflicts_with_all = ["swaps", "deaths"])]
    hostile: bool,
    /// Instead: conversations of sixteen clients with one text model whose cache is too small for them, and what its worker holds.
    #[arg(long, conflicts_with_all = ["swaps", "deaths", "hostile"])]
    cache: bool,
    /// Build optimised.
    #[arg(long)]
    release: bool,
}

/// When it is enough.
#[derive(Clone, Copy, Debug)]
enum Goal {
    Time(Duration),
    Swaps(u64),
    /// Workers that were made to die.
    Deaths(u64),
    /// Half of it with hostile clients.
    Hostile(Duration),
}

/// A host and what is asked of it.
struct Soak {
    server: Server,
    folder: PathBuf,
    goal: Goal,
    seed: u64,
    models: Vec<(u64, Model)>,
}

/// Two minutes of it, as continuous integration runs it.
pub(crate) fn run_briefly() -> Result {
    run(&Options { minutes: Some(MINUTES), ..Options::default() })
}

/// The hostile arm, whose bounds are of a machine that does nothing else.
pub(crate) fn run_hostile() -> Result {
    run(&Options { minutes: Some(HOSTILE_MINUTES), hostile: true, ..Options::default() })
}

/// A minute of the cache arm.
pub(crate) fn run_cache() -> Result {
    run(&Options { minutes: Some(CACHE_MINUTES), cache: true, ..Options::default() })
}

/// Builds, soaks, reports.
pub(crate) fn run(options: &Options) -> Result {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let seed = options.seed.unwrap_or(clock);
    let goal = match (options.minutes, options.swaps, options.deaths) {
        (_, Some(swaps), _) => Goal::Swaps(swaps),
        (_, None, Some(deaths)) => Goal::Deaths(deaths),
        (minutes, None, None) => {
            let time = Duration::try_from_secs_f64(60.0 * minutes.unwrap_or(MINUTES));
            let time = time.doing("soak for so many --minutes")?;
            if options.hostile { Goal::Hostile(time) } else { Goal::Time(time) }
        }
    };
    let workspace = Workspace::read()?;
    let profile = Profile::of_flag(options.release);
    if let (true, Goal::Time(time)) = (options.cache, goal) {
        return verdict(seed, &cache::run(&workspace, profile, time, seed)?);
    }
    workspace.build_all(profile)?;
    let soak = Soak::start(&workspace, profile, goal, seed)?;
    eprintln!("soaking with --seed {seed}; the host's log is {}", soak.folder.join("host.log").display());
    soak.run()
}

impl Soak {
    fn start(workspace: &Workspace, profile: Profile, goal: Goal, seed: u64) -> Result<Self> {
        let model = test::small_model(workspace, profile)?;
        let folder = workspace.staging().join("soak");
        let doing = || format!("prepare {}", folder.display());
        if folder.exists() {
            fs::remove_dir_all(&folder).doing(doing())?;
        }
        fs::create_dir_all(&folder).doing(doing())?;
        let wanted: Vec<_> =
            workspace.plugins().into_iter().filter(|plugin| plugin.fixture || plugin.name() == "candle-llm").collect();
        stage::plugins(workspace, profile, &wanted, &folder.join("plugins"))?;
        let address = free_address()?;
        let config = folder.join("models.yaml");
        fs::write(&config, models_yaml(address, goal, &folder, &model)).doing(doing())?;
        fs::write(folder.join("once"), b"").doing(doing())?;
        let mut command = workspace.aihost(profile);
        command.args(["serve", "--log-format", "text", "--config"]).arg(&config).env("AIHOST_CONFIG", &config);
        // The log of a host under attack lies on a full disk.
        let log = if matches!(goal, Goal::Hostile(_)) { PathBuf::from("/dev/full") } else { folder.join("host.log") };
        let server = Server::start(&mut command, address, &log)?;
        let rare = if matches!(goal, Goal::Swaps(_)) { (98, 1) } else { (40, 10) };
        let fixed = |name, question, max_tokens| {
            let answer = first_answer(address, name, question, max_tokens)?;
            Ok((rare.1, Model { name, says: Says::Fixed { question, answer, max_tokens } }))
        };
        let echo = |name| (rare.0, Model { name, says: Says::NameAndMessage });
        let models = vec![
            echo("echo-a"),
            echo("echo-b"),
            fixed("faulty", "x", None)?,
            fixed("smollm2", QUESTION, Some(TOKENS))?,
        ];
        Ok(Self { server, folder, goal, seed, models })
    }

    fn run(self) -> Result {
        let (address, pid) = (self.server.address, self.server.pid());
        let mut host = Host::default();
        // One of each kind before the first reading, so that it has what every host has that served once.
        for (manner, stream) in CLIENTS.iter().zip(1000..) {
            client::ask(address, &self.models[0].1, *manner, &mut Random::new(self.seed, stream));
        }
        unload_all(address, &self.models)?;
        host.start = settled(pid, None);
        let before = counters(address)?.0;
        let begun = Instant::now();
        if let Goal::Hostile(time) = self.goal {
            let models = &self.models[..2];
            let arms = Hostile { address, host: pid, models, seed: self.seed, arm: time / 2 };
            let lines = arms.run()?;
            let status = self.server.end(END_LIMIT)?;
            return report(&self.folder, &self.goal, self.seed, &lines, status);
        }
        let (mut tally, deaths) = self.drive(before)?;
        host.took = begun.elapsed();
        let (loads, loaded) = counters(address)?;
        (host.loads, host.loaded) = (loads - before, loaded);
        unload_all(address, &self.models)?;
        host.end = settled(pid, Some(host.start));
        let status = self.server.end(END_LIMIT)?;
        let ended = Instant::now();
        while !workers_of(pid).is_empty() && ended.elapsed() < ORPHAN_LIMIT {
            std::thread::sleep(POLL);
        }
        host.orphans = workers_of(pid).len();
        let lines = tally.lines(&deaths, &host);
        for example in tally.examples(&deaths, 10) {
            println!("{example}");
        }
        report(&self.folder, &self.goal, self.seed, &lines, status)
    }

    /// Clients and deaths until the goal is reached.
    fn drive(&self, before: u64) -> Result<(Tally, Vec<Death>)> {
        let (stop, tally, deaths) = (AtomicBool::new(false), Mutex::new(Tally::default()), Mutex::new(Vec::new()));
        let chaos = Chaos {
            address: self.server.address,
            host: self.server.pid(),
            faulty: "faulty",
            once_file: self.folder.join("once"),
        };
        std::thread::scope(|scope| {
            for (manner, stream) in CLIENTS.iter().zip(1..) {
                let mut random = Random::new(self.seed, stream);
                let (tally, stop) = (&tally, &stop);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let record = self.ask(*manner, &mut random);
                        tally.lock().unwrap_or_else(PoisonError::into_inner).add(record);
                        std::thread::sleep(random.milliseconds(PAUSE_MS.0, PAUSE_MS.1));
                        let rests = *manner == Manner::Stalled && matches!(self.goal, Goal::Swaps(_));
                        let begun = Instant::now();
                        while rests && begun.elapsed() < STALL_PAUSE && !stop.load(Ordering::Relaxed) {
                            std::thread::sleep(POLL);
                        }
                    }
                });
            }
            scope.spawn(|| chaos.run(&mut Random::new(self.seed, 0), &stop, &deaths));
            let reached = self.wait(before, || deaths.lock().map_or(0, |deaths| deaths.len()));
            stop.store(true, Ordering::Relaxed);
            reached
        })?;
        let gone = "a thread of the soak panicked";
        Ok((tally.into_inner().doing(gone)?, deaths.into_inner().doing(gone)?))
    }

    fn ask(&self, manner: Manner, random: &mut Random) -> client::Record {
        // Only an echo has an answer long enough to stall in.
        let among = if manner == Manner::Stalled { &self.models[..2] } else { &self.models[..] };
        let model = random.pick(among).unwrap_or(&self.models[0].1);
        client::ask(self.server.address, model, manner, random)
    }

    fn wait(&self, before: u64, deaths: impl Fn() -> usize) -> Result {
        let begun = Instant::now();
        let mut told = begun;
        loop {
            std::thread::sleep(POLL);
            let loads = counters(self.server.address)?.0 - before;
            let enough = match self.goal {
                Goal::Time(time) | Goal::Hostile(time) => begun.elapsed() >= time,
                Goal::Swaps(swaps) => loads >= swaps + deaths() as u64,
                Goal::Deaths(wanted) => deaths() as u64 >= wanted,
            };
            if enough {
                return Ok(());
            }
            if told.elapsed() > Duration::from_secs(30) {
                told = Instant::now();
                let held = holdings(self.server.pid());
                eprintln!(
                    "{:.0} s: {loads} loads and wakes, {} KiB, {} descriptors, {} threads",
                    begun.elapsed().as_secs_f64(),
                    held.resident_kib,
                    held.descriptors,
                    held.threads
                );
            }
        }
    }
}

/// Prints the counts, keeps them as JSON, and fails if a bound is broken.
fn report(folder: &Path, goal: &Goal, seed: u64, lines: &[Line], status: ExitStatus) -> Result {
    let file = folder.join("soak.json");
    let result = json!({"seed": seed, "goal": format!("{goal:?}"), "counts": tally::json(lines)});
    fs::write(&file, format!("{result:#}\n")).doing(format_args!("write {}", file.display()))?;
    if !status.success() {
        return Err(Error(format!("the host ended with {status}")));
    }
    verdict(seed, lines)
}

fn verdict(seed: u64, lines: &[Line]) -> Result {
    println!("{}", tally::render(lines));
    match lines.iter().filter(|line| !line.kept).count() {
        0 => Ok(()),
        count => Err(Error(format!("{count} bounds are broken; again with: --seed {seed}"))),
    }
}

fn models_yaml(listen: SocketAddr, goal: Goal, folder: &Path, model: &Path) -> String {
    let (places, quantum, load_ms) = match goal {
        Goal::Time(_) | Goal::Deaths(_) => (2, "200ms", 20),
        Goal::Swaps(_) => (1, "1ms", 0),
        // Room for all: what one model costs another is to be seen, not what swaps cost.
        Goal::Hostile(_) => (6, "200ms", 20),
    };
    let mut yaml = format!(
        "listen: {listen}\n{}devices: [{{id: cpu, memory: 4GiB, max_loaded: {places}}}]\n\
         limits: {{queue: 1000, stream_stall_timeout: 2s, body_limit: 32MiB}}\ndefaults: {{quantum: {quantum}, max_wait: 5s}}\nmodels:\n",
        stage::FOLDERS_BESIDE
    );
    // One of them parks, so that swaps of both kinds are seen.
    for (name, park) in [("echo-a", true), ("echo-b", false)] {
        let _ = writeln!(
            yaml,
            "  {name}:\n    type: text\n    plugin: aihost/echo\n    park: {park}\n    options: {{preface: \"{name}: \", latency_ms: 1, load_ms: {load_ms}}}"
        );
    }
    let once = folder.join("once");
    let _ = writeln!(
        yaml,
        "  faulty:\n    type: text\n    plugin: aihost/faulty\n    options: {{fault: segfault, after_tokens: 3, once_file: {}}}",
        once.display()
    );
    let _ = writeln!(
        yaml,
        "  smollm2:\n    type: text\n    plugin: candle-llm\n    source: {{path: {}}}\n    options: {{context: 256}}",
        model.display()
    );
    if matches!(goal, Goal::Hostile(_)) {
        yaml += hostile::MODELS;
    }
    yaml
}

/// What a model answers before anything is done to it: right for all later answers, as it is greedy.
fn first_answer(address: SocketAddr, model: &str, question: &str, max_tokens: Option<u32>) -> Result<String> {
    let mut task = json!({"model": model, "temperature": 0, "messages": [{"role": "user", "content": question}]});
    if let Some(max_tokens) = max_tokens {
        task["max_tokens"] = json!(max_tokens);
    }
    let answer = http::post(address, "/v1/chat/completions", &task)?;
    let body: Value = serde_json::from_str(&answer.body).doing(format_args!("read the first answer of {model}"))?;
    let text = body["choices"][0]["message"]["content"].as_str();
    text.map(ToOwned::to_owned).ok_or_else(|| Error(format!("{model} does not answer: {body}")))
}

fn unload_all(address: SocketAddr, models: &[(u64, Model)]) -> Result {
    for (_, model) in models {
        let answer = http::post(address, "/models/unload", &json!({"model": model.name}))?;
        if answer.status != 200 {
            return Err(Error(format!("{} cannot be unloaded: {}", model.name, answer.body)));
        }
    }
    Ok(())
}

/// How often models became hot since the start of the host, loaded or woken, and how many are.
fn counters(address: SocketAddr) -> Result<(u64, u64)> {
    let answer = http::get(address, "/admin/status")?;
    let status: Value = serde_json::from_str(&answer.body).doing("read GET /admin/status")?;
    let models = status.as_array().ok_or_else(|| Error(format!("GET /admin/status says {}", answer.body)))?;
    let count = |model: &Value| Some(model["loads"].as_u64()? + model["wakes"].as_u64()?);
    let loads = models.iter().filter_map(count).sum();
    let loaded = models.iter().filter(|model| model["state"] == "hot" || model["state"] == "draining").count();
    Ok((loads, loaded as u64))
}

/// What a host holds once that no longer changes, and is back to what it was at the start if that is known.
fn settled(pid: u32, start: Option<process::Holdings>) -> process::Holdings {
    let begun = Instant::now();
    let mut last = holdings(pid);
    let mut same = 0;
    loop {
        std::thread::sleep(POLL);
        let now = holdings(pid);
        let counts = |held: process::Holdings| (held.descriptors, held.threads, held.zombies);
        same = if counts(now) == counts(last) { same + 1 } else { 0 };
        last = now;
        let back = start.is_none_or(|start| now.descriptors <= start.descriptors && now.threads <= start.threads);
        // Idle threads of tokio's blocking pool end after 10 s: before that, the first reading would hide a leak.
        let quiet = if start.is_some() { 5 } else { 120 };
        if (same > quiet && back) || begun.elapsed() > SETTLE_LIMIT {
            return now;
        }
    }
}
