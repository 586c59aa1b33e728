//! One place, a model of our own and an engine. No request is lost: each is answered 200, or, if its engine was killed under it,
//! by one clear error, and the next one is served. No process is left, and memory comes back.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde_json::{Value, json};

use super::{Peer, tree};
use crate::bench::client as http;
use crate::bench::server::{Server, free_address};
use crate::error::{Doing, Error, Result};
use crate::soak::process::workers_of;
use crate::workspace::{Profile, Workspace};
use crate::{shell, stage, table};

/// Names of the two models.
const OWN: &str = "own";
const ENGINE: &str = "engine";
/// What a kill needs: the engine in a phase.
const PHASE_LIMIT: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(2);
/// How long the host may take to end, and what came of it to be gone.
const END_LIMIT: Duration = Duration::from_secs(90);
const ORPHAN_LIMIT: Duration = Duration::from_secs(10);
/// How long a model rests whose load failed, with a little more: it answers what was wrong with it meanwhile.
const REST: Duration = Duration::from_secs(3);
/// Between two questions of a client that was told to come back.
const RETRY_WAIT: Duration = Duration::from_secs(1);
/// Most MiB that host and workers may hold more at the end than after the second turn.
const GROWTH_MIB: u64 = 48;
/// Tokens of an answer during which there is time to kill.
const LONG: u32 = 200;
const SHORT: u32 = 4;

/// Where an engine is in its life when it is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Phase {
    /// It starts, and a request waits for it.
    Starting,
    /// It computes an answer in one piece.
    Serving,
    /// It streams.
    Streaming,
    /// It streams, and the process in which it computes is killed.
    Inner,
    /// It is asked to write what its slots have read, for another model.
    Saving,
    /// It was told to end.
    Unloading,
    /// It was told to end, does not, and nobody here kills it.
    Stuck,
    /// Its host is killed while it serves.
    HostKilled,
}

/// The two models at work.
pub(super) struct Turns {
    server: Server,
    limit: Duration,
    into_start: Duration,
    command: Box<dyn Fn() -> std::process::Command>,
    log: PathBuf,
    /// After the second turn.
    resident_mib: Option<u64>,
    rows: Vec<Vec<String>>,
    faults: Vec<String>,
}

/// What there is to say at the end.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) rows: Vec<Vec<String>>,
    pub(super) faults: Vec<String>,
}

/// What came of a request.
#[derive(Debug)]
struct Said {
    /// 0 where there was no answer.
    status: u16,
    /// The text, or the error.
    text: String,
    seconds: f64,
    /// How often it was asked to come back.
    retries: u32,
}

impl Said {
    fn is_served(&self) -> bool {
        self.status == 200 && !self.text.is_empty()
    }

    /// One clear error: a status, or the framed end of a stream, with a sentence.
    fn is_clear_error(&self) -> bool {
        self.status >= 400 && self.text.contains(' ')
    }

    fn told(&self) -> String {
        let text = self.text.split_whitespace().collect::<Vec<_>>().join(" ");
        let text: String = text.chars().take(160).collect();
        format!("{} in {:.2} s ({} times told to come back): {text}", self.status, self.seconds, self.retries)
    }
}

impl Turns {
    pub(super) fn start(workspace: &Workspace, profile: Profile, peer: &Peer) -> Result<Self> {
        let folder = workspace.staging().join("engines");
        fs::create_dir_all(&folder).doing(format_args!("create {}", folder.display()))?;
        let wanted: Vec<_> = workspace
            .plugins()
            .into_iter()
            .filter(|plugin| ["candle-llm", "vllm"].contains(&&*plugin.name()))
            .collect();
        stage::plugins(workspace, profile, &wanted, &folder.join("plugins"))?;
        let address = free_address()?;
        let config = folder.join("models.yaml");
        let own = crate::test::small_model(workspace, profile)?;
        fs::write(&config, models_yaml(address, &own.display().to_string(), peer))
            .doing(format_args!("write {}", config.display()))?;
        let host = workspace.host(profile);
        let command = move || {
            let mut command = std::process::Command::new(&host);
            command.args(["serve", "--log-format", "text", "--config"]).arg(&config).env("AIHOST_CONFIG", &config);
            command
        };
        let log = folder.join(format!("{}.log", peer.name));
        let server = Server::start(&mut command(), address, &log)?;
        Ok(Self {
            server,
            limit: peer.limit,
            into_start: peer.into_start,
            command: Box::new(command),
            log,
            resident_mib: None,
            rows: vec![table::row(["what", "requests", "served", "seconds", "note"])],
            faults: Vec::new(),
        })
    }

    /// Asks one, then the other.
    pub(super) fn alternate(&mut self, turns: u32) -> Result {
        let begun = Instant::now();
        let (mut served, mut first_s, mut resident) = (0, Vec::new(), (0, 0));
        for turn in 0..turns {
            for model in [OWN, ENGINE] {
                let said = self.ask(model, SHORT);
                served += u32::from(said.is_served());
                first_s.push(said.seconds);
                self.must(said.is_served(), format!("turn {turn}: {model} answered {}", said.told()));
                if model == OWN {
                    self.no_engine(&format!("turn {turn}"));
                    let now = tree::resident_mib(self.host());
                    if turn == 1 {
                        self.resident_mib = Some(now);
                    }
                    resident.0 = now;
                } else {
                    resident.1 = tree::resident_mib(self.host());
                }
            }
            eprintln!("turn {} of {turns}: {} and {} MiB", turn + 1, resident.0, resident.1);
        }
        let least = first_s.iter().copied().fold(f64::INFINITY, f64::min);
        let most = first_s.iter().copied().fold(0.0, f64::max);
        let note = format!("{least:.2} to {most:.2} s each; {} MiB beside it, {} without", resident.1, resident.0);
        self.row("turns", 2 * turns, served, begun, note);
        Ok(())
    }

    /// Kills the engine in a phase, and sees that nothing is lost.
    pub(super) fn kill(&mut self, phase: Phase) -> Result {
        let begun = Instant::now();
        let (address, limit) = (self.server.address, self.limit);
        eprintln!("killed while: {phase:?}");
        // Each phase begins with our own model in the place, or with the engine.
        let first = self.ask(if phase == Phase::Starting { OWN } else { ENGINE }, SHORT);
        self.must(first.is_served(), format!("{phase:?}: before it {}", first.told()));
        let host = self.host();
        let (asked, tokens) = match phase {
            Phase::Saving | Phase::Unloading | Phase::Stuck => (OWN, SHORT),
            _ => (ENGINE, LONG),
        };
        let engine = tree::engine(host);
        if asked == OWN
            && let Some(engine) = engine
        {
            shell::signal("STOP", engine)?;
        }
        let streams = matches!(phase, Phase::Streaming | Phase::Inner | Phase::HostKilled);
        let client = thread::spawn(move || ask(address, asked, tokens, streams, limit));
        let killed = match phase {
            Phase::Starting => {
                let engine = wait_for("an engine that starts", || tree::engine(host))?;
                thread::sleep(self.into_start);
                Some(engine)
            }
            Phase::Serving | Phase::Streaming => {
                thread::sleep(Duration::from_millis(500));
                tree::engine(host)
            }
            Phase::Inner => {
                thread::sleep(Duration::from_millis(500));
                tree::inner(host)
            }
            Phase::Saving => {
                thread::sleep(Duration::from_secs(1));
                engine
            }
            Phase::Unloading => {
                let engine = engine.ok_or_else(|| Error::new("there is no engine to unload"))?;
                wait_for("an engine that is told to end", || tree::is_told_to_end(engine).then_some(engine))
                    .map(Some)?
            }
            Phase::Stuck => None,
            Phase::HostKilled => {
                thread::sleep(Duration::from_millis(500));
                Some(host)
            }
        };
        self.must(killed.is_some() || phase == Phase::Stuck, format!("{phase:?}: there was nobody to kill"));
        if let Some(pid) = killed {
            shell::signal("KILL", pid)?;
        }
        let said = client.join().map_err(|_| Error::new("a client panicked"))?;
        let may_fail = asked == ENGINE;
        let good = said.is_served() || (may_fail && (said.is_clear_error() || phase == Phase::HostKilled));
        self.must(good, format!("{phase:?}: {asked} answered {}", said.told()));
        if phase == Phase::HostKilled {
            let is_free = || std::net::TcpListener::bind(address).is_ok();
            let gone = wait_within(ORPHAN_LIMIT, || workers_of(host).is_empty() && is_free());
            self.must(gone, format!("{phase:?}: these are left of the host: {}", shown(&workers_of(host))));
            self.server = Server::start(&mut (self.command)(), address, &self.log.with_extension("second.log"))?;
        }
        if asked == OWN {
            self.no_engine(&format!("{phase:?}"));
        }
        let mut note = said.told();
        for model in [ENGINE, OWN] {
            let next = self.ask_rested(model);
            self.must(next.is_served(), format!("{phase:?}: after it {model} answered {}", next.told()));
            note += &format!("; then {model} {} in {:.2} s, {} retries", next.status, next.seconds, next.retries);
        }
        self.no_engine(&format!("after {phase:?}"));
        self.row(&format!("killed: {phase:?}"), 4, 3 + u32::from(said.is_served()), begun, note);
        Ok(())
    }

    /// Ends the host and looks what is left.
    pub(super) fn end(mut self) -> Result<Report> {
        let host = self.host();
        let now = tree::resident_mib(host);
        if let Some(before) = self.resident_mib {
            let words = format!("host and workers hold {now} MiB at the end, and {before} MiB after the second turn");
            eprintln!("{words}");
            self.must(now <= before + GROWTH_MIB, words);
        }
        self.server.end(END_LIMIT)?;
        if !wait_within(ORPHAN_LIMIT, || workers_of(host).is_empty()) {
            self.faults.push(format!("these are left of the host: {}", shown(&workers_of(host))));
        }
        Ok(Report { rows: self.rows, faults: self.faults })
    }

    fn host(&self) -> u32 {
        self.server.pid()
    }

    fn ask(&self, model: &'static str, tokens: u32) -> Said {
        ask(self.server.address, model, tokens, false, self.limit)
    }

    /// The same, once a model whose load failed may be loaded again.
    fn ask_rested(&self, model: &'static str) -> Said {
        let begun = Instant::now();
        loop {
            let said = self.ask(model, SHORT);
            if said.is_served() || begun.elapsed() > REST {
                return Said { seconds: begun.elapsed().as_secs_f64(), ..said };
            }
            thread::sleep(RETRY_WAIT / 10);
        }
    }

    /// While our own model has the place there is no engine.
    fn no_engine(&mut self, when: &str) {
        let left = tree::engines(self.host());
        self.must(left.is_empty(), format!("{when}: these are left of the engine: {}", shown(&left)));
    }

    fn must(&mut self, holds: bool, fault: String) {
        if !holds {
            eprintln!("fault: {fault}");
            self.faults.push(fault);
        }
    }

    fn row(&mut self, what: &str, requests: u32, served: u32, begun: Instant, note: String) {
        let seconds = format!("{:.1}", begun.elapsed().as_secs_f64());
        self.rows.push(vec![what.to_owned(), requests.to_string(), served.to_string(), seconds, note]);
    }
}

/// Asks, and comes back as often as it is told that the model loads.
fn ask(address: SocketAddr, model: &str, tokens: u32, streams: bool, limit: Duration) -> Said {
    let task = json!({
        "model": model, "messages": [{"role": "user", "content": "Tell me a long story about a fox and a crow."}],
        "temperature": 0, "max_tokens": tokens, "stream": streams,
    });
    let (begun, mut retries) = (Instant::now(), 0);
    loop {
        let (status, text) = match http::post(address, "/v1/chat/completions", &task) {
            Ok(answer) if answer.status == 200 && streams => streamed(&answer.body),
            Ok(answer) => in_one_piece(answer.status, &answer.body),
            Err(error) => (0, error.to_string()),
        };
        let loads = status == 503 && text.contains("model_loading");
        if !loads || begun.elapsed() > limit {
            return Said { status, text, seconds: begun.elapsed().as_secs_f64(), retries };
        }
        retries += 1;
        thread::sleep(RETRY_WAIT);
    }
}

fn in_one_piece(status: u16, body: &str) -> (u16, String) {
    let answer: Value = serde_json::from_str(body).unwrap_or_default();
    let text = answer["choices"][0]["message"]["content"].as_str();
    (status, text.filter(|_| status == 200).unwrap_or(if status == 200 { "" } else { body }).to_owned())
}

/// What a stream says. An error in it counts as a status of 500, a stream that is cut as none.
fn streamed(body: &str) -> (u16, String) {
    let (mut text, mut error, mut ended) = (String::new(), None, false);
    for data in body.lines().filter_map(|line| line.strip_prefix("data:")) {
        ended |= data.trim() == "[DONE]";
        let event: Value = serde_json::from_str(data.trim()).unwrap_or_default();
        text += event["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
        error = event.get("error").map(|error| format!("in the stream: {error}")).or(error);
    }
    match error {
        Some(error) => (500, error),
        None if ended => (200, text),
        None => (0, format!("the stream is cut behind {text:?}")),
    }
}

fn wait_for<T>(what: &str, look: impl Fn() -> Option<T>) -> Result<T> {
    let begun = Instant::now();
    while begun.elapsed() < PHASE_LIMIT {
        if let Some(found) = look() {
            return Ok(found);
        }
        thread::sleep(POLL);
    }
    Err(Error(format!("there was no {what}")))
}

fn wait_within(limit: Duration, is_so: impl Fn() -> bool) -> bool {
    let begun = Instant::now();
    while !is_so() {
        if begun.elapsed() > limit {
            return false;
        }
        thread::sleep(POLL);
    }
    true
}

fn shown(pids: &[u32]) -> String {
    let line = |pid: &u32| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        format!("{pid} ({})", String::from_utf8_lossy(&words).replace('\0', " ").trim())
    };
    pids.iter().map(line).collect::<Vec<_>>().join(", ")
}

fn models_yaml(listen: SocketAddr, own: &str, peer: &Peer) -> String {
    let Peer { name, binary, model, memory, args, env, limit, .. } = peer;
    format!(
        "listen: {listen}\n{}devices: [{{id: cpu, memory: 8GiB, max_loaded: 1}}]\nmodels:\n  \
         {OWN}: {{type: text, plugin: candle-llm, source: {{path: '{own}'}}, options: {{context: 2048}}}}\n  \
         {ENGINE}: {{type: text, plugin: vllm, source: {{path: '{}'}}, memory: {memory}, startup_time: {}, \
         options: {{engine: {name}, binary: '{}', args: {args}, env: {env}}}}}\n",
        stage::FOLDERS_BESIDE,
        model.display(),
        limit.as_secs(),
        binary.display(),
    )
}

#[cfg(test)]
mod tests {
    use super::{in_one_piece, streamed};

    #[test]
    fn what_came_of_a_request_is_told_apart() {
        let text = |words: &str| format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{words}\"}}}}]}}\n\n");
        assert_eq!(streamed(&(text("a") + &text("b") + "data: [DONE]\n\n")), (200, "ab".to_owned()));
        assert_eq!(streamed(&text("a")).0, 0);
        let (status, error) = streamed(&(text("a") + "data: {\"error\":{\"message\":\"gone\"}}\n\ndata: [DONE]\n\n"));
        assert_eq!((status, error.contains("gone")), (500, true));
        assert_eq!(in_one_piece(200, r#"{"choices":[{"message":{"content":"x"}}]}"#), (200, "x".to_owned()));
        assert_eq!(in_one_piece(200, "{}"), (200, String::new()));
        assert_eq!(in_one_piece(500, r#"{"error":{}}"#), (500, r#"{"error":{}}"#.to_owned()));
    }
}
