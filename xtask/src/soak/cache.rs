//! The cache arm: conversations of many clients with one text model whose cache is too small for them, and what its worker holds.

use std::fs;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::process::{self, workers_of};
use super::random::Random;
use super::tally::{Line, bounded, grown, told};
use crate::bench::client as http;
use crate::error::{Doing, Error, Result};
use crate::workspace::{Profile, Workspace};
use crate::{stage, test};

/// Clients that converse at the same time.
const CLIENTS: u64 = 16;
/// Tokens of a conversation at most, and of the cache, which holds four of them.
const CONTEXT: u32 = 512;
const CACHE_TOKENS: u32 = 2048;
/// Tokens of an answer, and turns of a conversation.
const ANSWER: u32 = 16;
const TURNS: usize = 6;
/// How conversations begin: several clients are at the same one at any time.
const OPENINGS: [&str; 6] = [
    "Who wrote Romeo and Juliet?",
    "What is the capital of France, and what is it known for?",
    "Count from one to ten, in words.",
    "Tell me a short story about a fox and a crow.",
    "How do I boil an egg?",
    "Name three rivers in Europe.",
];
/// What is said then.
const FOLLOWING: [&str; 4] = ["Go on.", "Why is that?", "Say it in other words, please.", "And what came before?"];
/// Between two looks at what the worker holds.
const LOOK: Duration = Duration::from_secs(2);
/// The part of the time in which it takes what it will keep.
const WARM_UP: f64 = 0.25;
/// Most bytes, in KiB, that the line through what it holds may rise over the rest of the time.
const RISE_KIB: u64 = 2048;

/// What came of the requests.
#[derive(Default)]
struct Counts {
    answers: u64,
    wrong: u64,
    errors: u64,
    prompt_tokens: u64,
    cached_tokens: u64,
}

/// Builds, converses for so long, and counts.
pub(super) fn run(workspace: &Workspace, profile: Profile, time: Duration, seed: u64) -> Result<Vec<Line>> {
    let plugins = workspace.build_to_measure(profile, "candle-llm")?;
    let model = test::small_model(workspace, profile)?;
    let folder = workspace.staging().join("soak-cache");
    fs::create_dir_all(&folder).doing(format_args!("create {}", folder.display()))?;
    stage::plugins(workspace, profile, &plugins, &folder.join("plugins"))?;
    let address = crate::bench::server::free_address()?;
    let config = folder.join("models.yaml");
    let yaml = format!(
        "listen: {address}\n{}models:\n  a:\n    type: text\n    plugin: candle-llm\n    source: {{path: {}}}\n    \
         options: {{context: {CONTEXT}, cache_tokens: {CACHE_TOKENS}, slots: {CLIENTS}}}\n",
        stage::FOLDERS_BESIDE,
        model.display()
    );
    fs::write(&config, yaml).doing(format_args!("write {}", config.display()))?;
    let mut command = workspace.aihost(profile);
    command.args(["serve", "--log-format", "text", "--config"]).arg(&config).env("AIHOST_CONFIG", &config);
    let server = crate::bench::server::Server::start(&mut command, address, &folder.join("host.log"))?;

    // Alone, each of them is what it has to be in company.
    let alone = OPENINGS.iter().map(|opening| ask(address, &[user(opening)]).map(|said| said.0));
    let alone: Vec<String> = alone.collect::<Result<_>>()?;
    let worker = workers_of(server.pid()).first().copied().ok_or_else(|| Error::new("the model has no worker"))?;
    let (stop, counts) = (AtomicBool::new(false), Mutex::new(Counts::default()));
    let mut held = Vec::new();
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (stop, counts, alone) = (&stop, &counts, &alone);
            scope.spawn(move || converse(address, &mut Random::new(seed, client + 1), alone, stop, counts));
        }
        let begun = Instant::now();
        while begun.elapsed() < time {
            std::thread::sleep(LOOK);
            held.push((begun.elapsed().as_secs_f64(), process::anonymous_kib(worker)));
        }
        stop.store(true, Ordering::Relaxed);
    });
    let is_same = workers_of(server.pid()).contains(&worker);
    server.end(super::END_LIMIT)?;
    let counts = counts.into_inner().doing("count what clients were told")?;
    Ok(lines(&counts, &held, time, is_same))
}

fn lines(counts: &Counts, held: &[(f64, u64)], time: Duration, is_same: bool) -> Vec<Line> {
    let from = time.as_secs_f64() * WARM_UP;
    let warm: Vec<(f64, f64)> = held.iter().filter(|(at, _)| *at >= from).map(|(at, kib)| (*at, *kib as f64)).collect();
    let rise = slope(&warm) * (time.as_secs_f64() - from);
    let share = 100 * counts.cached_tokens / counts.prompt_tokens.max(1);
    let at_end = |pair: Option<&(f64, f64)>| pair.map_or(0, |(_, kib)| *kib as u64);
    vec![
        told("answers", counts.answers.to_string()),
        told("tokens of prompts that the cache had", format!("{share} %")),
        bounded("errors", counts.errors, 0),
        bounded("first answers that are not what they are alone", counts.wrong, 0),
        bounded("workers that were lost", u64::from(!is_same), 0),
        told("anonymous KiB of the worker", format!("{} -> {}", at_end(warm.first()), at_end(warm.last()))),
        grown("KiB that the line through it rises", 0, rise.max(0.0) as u64, RISE_KIB),
    ]
}

/// Of the line that fits best, units of the second per unit of the first.
fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let (mut together, mut alone) = (0.0, 0.0);
    for point in points {
        together += (point.0 - x) * (point.1 - y);
        alone += (point.0 - x).powi(2);
    }
    if alone > 0.0 { together / alone } else { 0.0 }
}

fn converse(address: SocketAddr, random: &mut Random, alone: &[String], stop: &AtomicBool, counts: &Mutex<Counts>) {
    while !stop.load(Ordering::Relaxed) {
        let at = random.below(OPENINGS.len() as u64) as usize;
        let mut messages = vec![user(OPENINGS[at])];
        for turn in 0..TURNS {
            let said = ask(address, &messages);
            let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
            let Ok((text, prompt, cached)) = said else {
                counts.errors += 1;
                break;
            };
            counts.answers += 1;
            counts.prompt_tokens += prompt;
            counts.cached_tokens += cached;
            counts.wrong += u64::from(turn == 0 && text != alone[at]);
            drop(counts);
            if stop.load(Ordering::Relaxed) {
                return;
            }
            messages.push(json!({"role": "assistant", "content": text}));
            messages.push(user(FOLLOWING[random.below(FOLLOWING.len() as u64) as usize]));
        }
    }
}

fn user(content: &str) -> Value {
    json!({"role": "user", "content": content})
}

/// What is answered, tokens of the prompt, and how many of them the cache had.
fn ask(address: SocketAddr, messages: &[Value]) -> Result<(String, u64, u64)> {
    let task = json!({"model": "a", "temperature": 0, "max_tokens": ANSWER, "messages": messages});
    let answer = http::post(address, "/v1/chat/completions", &task)?;
    let body: Value = serde_json::from_str(&answer.body).doing("read an answer")?;
    let text = body["choices"][0]["message"]["content"].as_str();
    let text = text.ok_or_else(|| Error(format!("there is no answer: {body}")))?;
    let usage = &body["usage"];
    let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0);
    Ok((text.to_owned(), usage["prompt_tokens"].as_u64().unwrap_or(0), cached))
}

#[cfg(test)]
mod tests {
    use super::slope;

    #[test]
    fn a_line_is_found_through_what_wavers() {
        assert_eq!(slope(&[(0.0, 3.0), (1.0, 5.0), (2.0, 7.0)]), 2.0);
        assert_eq!(slope(&[(0.0, 1.0), (1.0, 2.0), (2.0, 1.0)]), 0.0);
        assert_eq!(slope(&[(1.0, 9.0)]), 0.0);
    }
}
