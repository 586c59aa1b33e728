//! The hostile arm of a soak: the same patient clients first alone, then beside everything that a hostile party can send.
//! What the patient ones see of it is measured; what the hostile ones get is only counted.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::client::{self, Manner, Model, Outcome, Record};
use super::process::{Holdings, holdings};
use super::random::Random;
use super::tally::{Line, bounded, grown, percentile, told};
use crate::bench::client as http;
use crate::error::{Doing, Result};
use crate::shell;

/// Clients that must not notice.
const CLIENTS: [Manner; 6] =
    [Manner::Patient, Manner::Patient, Manner::Patient, Manner::Streaming, Manner::Streaming, Manner::Streaming];
/// A patient client's pause between requests, milliseconds.
const PAUSE_MS: (u64, u64) = (5, 20);
/// Clients that send the worst bodies there are.
const BODY_CLIENTS: u64 = 4;
/// Bytes of a large field of such a body.
const FIELD_BYTES: usize = 1 << 20;
/// Connections of one flood, and how long it holds them.
const FLOOD: (usize, Duration) = (400, Duration::from_secs(2));
/// How long the host is stopped, once: longer than a worker may be silent.
const STOP: Duration = Duration::from_secs(11);
/// Between two requests that make a plugin misbehave. Each costs a worker, and an operator who loads the model again.
const PROVOKE_PAUSE: Duration = Duration::from_secs(1);
/// Between two probes of `/livez`.
const PROBE_PAUSE: Duration = Duration::from_millis(20);
/// How much longer the slowest in a hundred may wait beside hostile clients, and how long a probe may.
const MOST_SLOWDOWN: f64 = 2.0;
const MOST_PROBE_MS: f64 = 50.0;
/// Resident memory that may stay, ten seconds after the last hostile request.
const EXTRA_RESIDENT_KIB: u64 = 32 << 10;
const SETTLE: Duration = Duration::from_secs(10);
/// How long a hostile client waits for an answer.
const HOSTILE_READ_LIMIT: Duration = Duration::from_secs(30);

/// Models that misbehave, and one for bodies that are answered: the time in which a model works for one client is not the
/// host's. Entries of models.yaml.
pub(super) const MODELS: &str = "  busy:
    type: text
    plugin: aihost/echo
  leak:
    type: text
    plugin: aihost/faulty
    options: {fault: hoard_slowly, bytes: 1073741824}
  shout:
    type: text
    plugin: aihost/faulty
    options: {fault: shout, bytes: 67108864}
";

/// When the host was stopped, and when it went on.
type Pause = (Instant, Instant);

/// What one arm of patient clients came to.
#[derive(Debug, Default)]
struct Arm {
    /// When each request began and ended.
    requests: Vec<(Instant, Instant)>,
    pause: Option<Pause>,
    probes_ms: Vec<f64>,
    troubles: Vec<Record>,
}

/// How often the hostile clients got which answer.
type Answers = Mutex<BTreeMap<String, u64>>;

/// A host under both arms.
pub(super) struct Hostile<'a> {
    pub(super) address: SocketAddr,
    pub(super) host: u32,
    pub(super) models: &'a [(u64, Model)],
    pub(super) seed: u64,
    /// How long each arm lasts.
    pub(super) arm: Duration,
}

impl Hostile<'_> {
    /// Both arms, the quiet one first.
    pub(super) fn run(&self) -> Result<Vec<Line>> {
        let quiet = self.arm(None)?;
        let before = holdings(self.host);
        let answers = Answers::default();
        let hostile = self.arm(Some(&answers))?;
        std::thread::sleep(SETTLE);
        let after = holdings(self.host);
        let answers = answers.into_inner().doing("count the answers to hostile clients")?;
        Ok(lines(quiet, hostile, &answers, (before, after)))
    }

    /// Patient clients for as long as an arm lasts, with hostile ones beside them whose answers are counted.
    fn arm(&self, hostile: Option<&Answers>) -> Result<Arm> {
        let (stop, arm, paused) = (AtomicBool::new(false), Mutex::new(Arm::default()), Mutex::new(None));
        std::thread::scope(|scope| {
            let stop = &stop;
            for (manner, stream) in CLIENTS.iter().zip(1..) {
                let (mut random, arm) = (Random::new(self.seed, stream), &arm);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        arm.lock().unwrap_or_else(PoisonError::into_inner).add(self.ask(*manner, &mut random));
                        std::thread::sleep(random.milliseconds(PAUSE_MS.0, PAUSE_MS.1));
                    }
                });
            }
            scope.spawn(|| self.probe(stop, &arm));
            if let Some(answers) = hostile {
                for stream in 0..BODY_CLIENTS {
                    let mut random = Random::new(self.seed, 100 + stream);
                    scope.spawn(move || {
                        yield_to_all();
                        repeat(stop, || self.send_body(&mut random, answers));
                    });
                }
                scope.spawn(move || repeat(stop, || self.flood(stop)));
                for model in ["leak", "shout"] {
                    scope.spawn(move || repeat(stop, || self.provoke(model, answers)));
                }
                let paused = &paused;
                scope.spawn(move || self.stop_and_go_on(stop, paused));
            }
            let begun = Instant::now();
            while begun.elapsed() < self.arm {
                std::thread::sleep(PROBE_PAUSE);
            }
            stop.store(true, Ordering::Relaxed);
        });
        let mut arm = arm.into_inner().doing("read what an arm came to")?;
        arm.pause = paused.into_inner().doing("read when the host was stopped")?;
        Ok(arm)
    }

    fn ask(&self, manner: Manner, random: &mut Random) -> Record {
        let model = random.pick(self.models).unwrap_or(&self.models[0].1);
        client::ask(self.address, model, manner, random)
    }

    /// A probe's time counts whatever its answer, and so does a host that does not answer. While the host is stopped it
    /// cannot: one probe in a run waits for that.
    fn probe(&self, stop: &AtomicBool, arm: &Mutex<Arm>) {
        repeat(stop, || {
            let begun = Instant::now();
            let answered = http::get(self.address, "/livez").is_ok_and(|answer| answer.status == 200);
            let took = if answered { begun.elapsed().as_secs_f64() * 1e3 } else { f64::INFINITY };
            arm.lock().unwrap_or_else(PoisonError::into_inner).probes_ms.push(took);
            std::thread::sleep(PROBE_PAUSE);
        });
    }

    fn send_body(&self, random: &mut Random, answers: &Answers) {
        let (path, body) = worst_body(random.below(BODIES));
        count(answers, &status_of(self.address, path, &body));
    }

    /// Connections that send half a head and wait.
    fn flood(&self, stop: &AtomicBool) {
        let half = |_| {
            let mut socket = TcpStream::connect_timeout(&self.address, Duration::from_secs(1)).ok()?;
            socket.write_all(b"GET /livez HT").ok()?;
            Some(socket)
        };
        let held: Vec<TcpStream> = (0..FLOOD.0).filter_map(half).collect();
        let begun = Instant::now();
        while begun.elapsed() < FLOOD.1 && !stop.load(Ordering::Relaxed) {
            std::thread::sleep(PROBE_PAUSE);
        }
        drop(held);
    }

    /// Asks a model that misbehaves, and ends its quarantine as an operator would.
    fn provoke(&self, model: &str, answers: &Answers) {
        let body = json!({"model": model, "messages": [{"role": "user", "content": "x"}]}).to_string();
        count(answers, &format!("{model} {}", status_of(self.address, CHAT, &body)));
        // It may be refused: the next request tells.
        drop(http::post(self.address, "/models/load", &json!({"model": model})));
        std::thread::sleep(PROVOKE_PAUSE);
    }

    /// Stops the whole host once, in the middle of the arm, as a container that is paused.
    fn stop_and_go_on(&self, stop: &AtomicBool, paused: &Mutex<Option<Pause>>) {
        let begun = Instant::now();
        while begun.elapsed() < self.arm / 3 {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            std::thread::sleep(PROBE_PAUSE);
        }
        let begun = Instant::now();
        if shell::signal("STOP", self.host).is_ok() {
            std::thread::sleep(STOP);
            // If it cannot go on, every client says so.
            drop(shell::signal("CONT", self.host));
            *paused.lock().unwrap_or_else(PoisonError::into_inner) = Some((begun, Instant::now()));
        }
    }
}

impl Arm {
    fn add(&mut self, record: Record) {
        self.requests.push((record.begun, record.ended));
        if record.outcome != Outcome::Answered {
            self.troubles.push(record);
        }
    }

    /// A quantile of how long requests took, milliseconds, without the time in which the host was stopped.
    fn at(&self, quantile: f64) -> f64 {
        let took = |&(begun, ended): &(Instant, Instant)| {
            let stopped = self
                .pause
                .map_or(Duration::ZERO, |(from, to)| ended.min(to).saturating_duration_since(begun.max(from)));
            (ended - begun).saturating_sub(stopped).as_secs_f64() * 1e3
        };
        let mut latencies: Vec<f64> = self.requests.iter().map(took).collect();
        latencies.sort_by(f64::total_cmp);
        percentile(&latencies, quantile)
    }
}

const CHAT: &str = "/v1/chat/completions";
/// How many kinds of bodies there are.
const BODIES: u64 = 7;

/// The worst bodies there are: what made the host large or slow once.
fn worst_body(kind: u64) -> (&'static str, String) {
    let chat = |key: &str, value: Value| {
        let mut body = json!({"model": "echo-a", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]});
        body[key] = value;
        (CHAT, body.to_string())
    };
    let small = |item: &str| item.repeat(FIELD_BYTES / item.len());
    match kind {
        0 => (CHAT, format!(r#"{{"model":"echo-a","messages":[],"x":[{}0]}}"#, small(r#"{"a":0},"#))),
        1 => (CHAT, format!(r#"{{"model":"echo-a","messages":[],"x":[{}0]}}"#, small("[1],"))),
        2 => chat("model", json!("q".repeat(FIELD_BYTES / 16))),
        3 => {
            let prompts: Vec<&str> = vec!["a"; 1024];
            let body = json!({"model": "echo-a", "prompt": prompts, "stop": ["z".repeat(FIELD_BYTES)]});
            ("/v1/completions", body.to_string())
        }
        4 => chat(
            "logit_bias",
            (0..FIELD_BYTES / 16).map(|token| (token.to_string(), json!(1))).collect::<serde_json::Map<_, _>>().into(),
        ),
        5 => {
            let messages: Vec<Value> = vec![json!({"role": "user", "content": ""}); FIELD_BYTES / 32];
            (CHAT, json!({"model": "busy", "max_tokens": 1, "messages": messages}).to_string())
        }
        _ => (CHAT, "[".repeat(FIELD_BYTES)),
    }
}

/// From now on this thread runs when nothing else wants to: who sends such bodies does so from another machine, and what it
/// costs to make them is not the host's.
fn yield_to_all() {
    let thread = std::fs::read_link("/proc/thread-self").unwrap_or_default();
    let number = thread.file_name().unwrap_or_default();
    // Where it cannot be had, the bounds are only harder to keep.
    drop(shell::output(Command::new("chrt").args(["--idle", "--pid", "0"]).arg(number)));
}

/// The status of an answer, or how there was none.
fn status_of(address: SocketAddr, path: &str, body: &str) -> String {
    let answer = http::send(address, "POST", path, Some(body)).map_err(|error| error.to_string()).and_then(|socket| {
        socket.set_read_timeout(Some(HOSTILE_READ_LIMIT)).map_err(|error| error.to_string())?;
        let (status, mut body) = http::receive(socket).map_err(|error| error.to_string())?;
        std::io::copy(&mut body.by_ref().take(1 << 24), &mut std::io::sink()).map_err(|error| error.to_string())?;
        Ok(status)
    });
    answer.map_or_else(|_| "no answer".to_owned(), |status| status.to_string())
}

fn count(answers: &Answers, answer: &str) {
    *answers.lock().unwrap_or_else(PoisonError::into_inner).entry(answer.to_owned()).or_default() += 1;
}

fn repeat(stop: &AtomicBool, mut action: impl FnMut()) {
    while !stop.load(Ordering::Relaxed) {
        action();
    }
}

fn lines(quiet: Arm, mut hostile: Arm, answers: &BTreeMap<String, u64>, memory: (Holdings, Holdings)) -> Vec<Line> {
    let (alone, beside) = (quiet.at(0.99), hostile.at(0.99));
    hostile.probes_ms.sort_by(f64::total_cmp);
    let probe = percentile(&hostile.probes_ms, 0.99);
    let told_answers: Vec<String> = answers.iter().map(|(answer, count)| format!("{answer}: {count}")).collect();
    let mut lines = vec![
        told(
            "patient requests, alone and beside hostile clients",
            format!("{} and {}", quiet.requests.len(), hostile.requests.len()),
        ),
        bounded("patient requests that failed", (quiet.troubles.len() + hostile.troubles.len()) as u64, 0),
        told("p50 of a patient request, alone", format!("{:.1} ms", quiet.at(0.5))),
        told("p50 of a patient request, beside hostile clients", format!("{:.1} ms", hostile.at(0.5))),
        told("p99 of a patient request, alone", format!("{alone:.1} ms")),
        limited("p99 of a patient request, beside hostile clients", beside, MOST_SLOWDOWN * alone),
        limited("p99 of /livez beside hostile clients", probe, MOST_PROBE_MS),
        told("answers to hostile clients", told_answers.join(", ")),
        grown("resident KiB, 10 s later", memory.0.resident_kib, memory.1.resident_kib, EXTRA_RESIDENT_KIB),
    ];
    lines.extend(quiet.troubles.iter().chain(&hostile.troubles).take(10).map(|record| {
        let outcome: String = format!("{:?}", record.outcome).chars().take(200).collect();
        told(
            "a failed one",
            format!("{:?} {} after {:.1?}: {outcome}", record.manner, record.model, record.ended - record.begun),
        )
    }));
    lines
}

fn limited(name: &'static str, value: f64, most: f64) -> Line {
    Line { name, value: format!("{value:.1} ms"), bound: format!("{most:.1} ms"), kept: value <= most }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_within_the_usual_limit_and_all_kinds_are_there() {
        let paths: Vec<_> = (0..BODIES).map(worst_body).collect();
        for (path, body) in &paths {
            assert!(path.starts_with("/v1/") && (1 << 15..4 << 20).contains(&body.len()), "{path}: {}", body.len());
        }
    }

    #[test]
    fn a_failed_request_and_a_slow_one_break_their_bounds() {
        let begun = Instant::now();
        let at = |ms: f64| begun + Duration::from_secs_f64(ms / 1e3);
        let arm = |latency: f64| Arm {
            requests: vec![(begun, at(latency)); 200],
            probes_ms: vec![1.0; 200],
            ..Arm::default()
        };
        let held = Holdings::default();
        let broken = |quiet, hostile| {
            let lines = lines(quiet, hostile, &BTreeMap::new(), (held, held));
            lines.into_iter().filter(|line| !line.kept).map(|line| line.name).collect::<Vec<_>>()
        };
        assert_eq!(broken(arm(10.0), arm(19.0)), [""; 0]);
        assert_eq!(broken(arm(10.0), arm(21.0)), ["p99 of a patient request, beside hostile clients"]);
        let paused = Arm { pause: Some((at(5.0), at(11_000.0))), ..arm(11_010.0) };
        assert_eq!(broken(arm(10.0), paused), [""; 0], "the host was stopped meanwhile");
        let mut failed = arm(10.0);
        let now = Instant::now();
        failed.add(Record {
            manner: Manner::Patient,
            model: "a",
            begun: now,
            ended: now,
            wait: None,
            outcome: Outcome::Lost("reset".into()),
        });
        assert_eq!(broken(arm(10.0), failed), ["patient requests that failed"]);
    }
}
