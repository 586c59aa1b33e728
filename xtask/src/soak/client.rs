//! The clients of a soak, and what each request came to.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::random::Random;
use crate::bench::client::{receive, send};

/// How long a stalled client does not read: beyond the host's `stream_stall_timeout` of a soak.
pub(super) const STALL: Duration = Duration::from_secs(4);
/// Words of a stalled client's answer and bytes of each: more than the sockets between the two take in.
const STALL_WORDS: (usize, usize) = (2500, 4 << 10);

/// How a client behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    /// Waits for an answer in one piece.
    Patient,
    /// Reads a stream to its end.
    Streaming,
    /// Leaves at any moment.
    Impatient,
    /// Stops reading a long stream, and goes on too late.
    Stalled,
}

/// A model and how its answers are known.
#[derive(Clone, Debug)]
pub(super) struct Model {
    /// Its name.
    pub(super) name: &'static str,
    /// What it says to a message.
    pub(super) says: Says,
}

/// What a model says.
#[derive(Clone, Debug)]
pub(super) enum Says {
    /// Its own name and the message.
    NameAndMessage,
    /// This, to this question.
    Fixed {
        /// The question.
        question: &'static str,
        /// The answer.
        answer: String,
        /// Its length.
        max_tokens: Option<u32>,
    },
}

/// A request and what it came to.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) manner: Manner,
    pub(super) model: &'static str,
    pub(super) begun: Instant,
    pub(super) ended: Instant,
    /// Until the first byte of a stream's answer.
    pub(super) wait: Option<Duration>,
    pub(super) outcome: Outcome,
}

/// What a request came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// All of it, from the right model.
    Answered,
    /// The client left, as it meant to.
    Left,
    /// An HTTP error with its code: nothing of an answer was sent.
    Refused(u16, String),
    /// A framed error after a part of the answer.
    Broken(String),
    /// Neither an answer nor an error.
    Lost(String),
    /// Another model's answer, or another request's.
    Wrong(String),
}

/// Asks once.
pub(super) fn ask(address: SocketAddr, model: &Model, manner: Manner, random: &mut Random) -> Record {
    let begun = Instant::now();
    let (task, wanted) = task(model, manner, random);
    let mut wait = None;
    let outcome = match manner {
        Manner::Patient => patient(address, &task, model.name, &wanted),
        Manner::Impatient => impatient(address, &task, random.milliseconds(0, 150)),
        Manner::Streaming | Manner::Stalled => {
            let stall = if manner == Manner::Stalled { STALL } else { Duration::ZERO };
            stream(address, &task, &wanted, stall, &mut wait).unwrap_or_else(Outcome::Lost)
        }
    };
    Record { manner, model: model.name, begun, ended: Instant::now(), wait, outcome }
}

/// The request's body and the text that is right.
fn task(model: &Model, manner: Manner, random: &mut Random) -> (String, String) {
    let number = random.below(1 << 40);
    let message = match &model.says {
        Says::Fixed { question, .. } => (*question).to_owned(),
        Says::NameAndMessage if manner == Manner::Stalled => {
            format!("{number} {}", format!("{} ", "x".repeat(STALL_WORDS.1)).repeat(STALL_WORDS.0))
        }
        Says::NameAndMessage => format!("to be or not to be is number {number}"),
    };
    // A greedy answer does not depend on the seed, but no two requests are the same: one that three workers died under is
    // refused for a while, and so is its like.
    let mut task = json!({
        "model": model.name, "messages": [{"role": "user", "content": message}],
        "temperature": 0, "stream": manner != Manner::Patient, "seed": number,
    });
    match &model.says {
        Says::NameAndMessage => {
            // A word is a token; some are the model's name.
            task["max_tokens"] = json!(STALL_WORDS.0 + 16);
            (task.to_string(), format!("{}: {message}", model.name))
        }
        Says::Fixed { answer, max_tokens, .. } => {
            if let Some(max_tokens) = max_tokens {
                task["max_tokens"] = json!(max_tokens);
            }
            (task.to_string(), answer.clone())
        }
    }
}

fn patient(address: SocketAddr, task: &str, model: &str, wanted: &str) -> Outcome {
    let mut text = String::new();
    let answer = send(address, "POST", PATH, Some(task)).map_err(|error| error.to_string()).and_then(|socket| {
        let (status, mut body) = receive(socket).map_err(|error| error.to_string())?;
        body.read_to_string(&mut text).map_err(|error| error.to_string())?;
        Ok(status)
    });
    let status = match answer {
        Ok(status) => status,
        Err(error) => return Outcome::Lost(error),
    };
    match serde_json::from_str::<Value>(&text) {
        Ok(body) if status != 200 => Outcome::Refused(status, code(&body["error"])),
        Ok(body) => match body["choices"][0]["message"]["content"].as_str() {
            Some(said) if said == wanted && body["model"] == model => Outcome::Answered,
            Some(said) => Outcome::Wrong(format!("{} said: {said}", body["model"])),
            None => Outcome::Lost(format!("an answer without text: {body}")),
        },
        Err(_) => Outcome::Lost(format!("status {status}, but no JSON: {text}")),
    }
}

fn impatient(address: SocketAddr, task: &str, patience: Duration) -> Outcome {
    match send(address, "POST", PATH, Some(task)) {
        Ok(socket) => {
            std::thread::sleep(patience);
            drop(socket);
            Outcome::Left
        }
        Err(error) => Outcome::Lost(error.to_string()),
    }
}

fn stream(
    address: SocketAddr,
    task: &str,
    wanted: &str,
    stall: Duration,
    wait: &mut Option<Duration>,
) -> Result<Outcome, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let begun = Instant::now();
    let socket = send(address, "POST", PATH, Some(task)).map_err(|e| text(&e))?;
    let (status, mut body) = receive(socket).map_err(|e| text(&e))?;
    if status != 200 {
        let mut said = String::new();
        body.read_to_string(&mut said).map_err(|e| text(&e))?;
        let json: Value = serde_json::from_str(&said).map_err(|_| format!("status {status}, but no JSON: {said}"))?;
        return Ok(Outcome::Refused(status, code(&json["error"])));
    }
    *wait = Some(begun.elapsed());
    std::thread::sleep(stall);
    let mut said = String::new();
    let (mut error, mut finished) = (None, false);
    for line in BufReader::new(body).lines() {
        let line = line.map_err(|e| text(&e))?;
        match line.strip_prefix("data: ") {
            Some("[DONE]") => {
                return Ok(match error {
                    Some(code) => Outcome::Broken(code),
                    None if !finished => Outcome::Lost("an end without a reason".to_owned()),
                    None if said == wanted => Outcome::Answered,
                    None => Outcome::Wrong(format!("it said: {said}")),
                });
            }
            Some(data) => {
                let event: Value = serde_json::from_str(data).map_err(|e| format!("{e} in an event: {data}"))?;
                if event["error"].is_object() {
                    error = Some(code(&event["error"]));
                }
                said += event["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
                finished |= event["choices"][0]["finish_reason"].is_string();
            }
            None => {}
        }
    }
    Err(format!("a stream without its end, after {} bytes of text", said.len()))
}

fn code(error: &Value) -> String {
    error["code"].as_str().or(error["message"].as_str()).unwrap_or("no code").to_owned()
}

const PATH: &str = "/v1/chat/completions";
