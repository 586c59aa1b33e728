//! The routes of engines that load a language model, as vLLM, SGLang and llama.cpp's server have them, with what can go wrong
//! behind a health that is good.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

use super::Stand;
use super::http::Asked;

/// What it says to any prompt.
const SAID: &str = " 8";
/// Slots that it has.
const SLOTS: u64 = 1;

/// A model that is loaded, asleep or lost.
#[derive(Debug, Default)]
pub(crate) struct Language {
    /// Its weights, as bytes that are really there.
    weights: Mutex<Vec<u8>>,
    is_asleep: AtomicBool,
    /// It has slept once.
    has_slept: AtomicBool,
    is_broken: AtomicBool,
    /// Prompts that its slot has read.
    read: AtomicU64,
    /// What it was asked for beside prompts, in this order.
    asked: Mutex<Vec<String>>,
}

impl Language {
    /// Takes `--weights MIB` of memory.
    pub(crate) fn load(&self, stand: &Stand) {
        let bytes = (stand.number("--weights").unwrap_or(0.0) as usize) << 20;
        *lock(&self.weights) = vec![1; bytes];
    }

    /// Status and body; nothing for paths that are none of these.
    pub(crate) fn answer(&self, stand: &Stand, asked: &Asked, sent: &Value) -> Option<(&'static str, Value)> {
        let path = asked.path.as_str();
        match path {
            "/v1/completions" | "/completion" | "/generate" => {
                return Some(self.complete(stand, path, sent));
            }
            "/break" => self.is_broken.store(true, Ordering::SeqCst),
            "/sleep" | "/release_memory_occupation" => {
                self.is_asleep.store(true, Ordering::SeqCst);
                if !stand.is("--keeps-memory") {
                    *lock(&self.weights) = Vec::new();
                }
            }
            "/wake_up" | "/resume_memory_occupation" if stand.is("--wake-fails") => {
                self.note(asked);
                return Some(("500 Internal Server Error", json!({"error": "CUDA Error: out of memory"})));
            }
            "/wake_up" | "/resume_memory_occupation" => {
                self.is_asleep.store(false, Ordering::SeqCst);
                self.has_slept.store(true, Ordering::SeqCst);
                self.load(stand);
            }
            "/collective_rpc" => {}
            "/props" => return Some(("200 OK", json!({"total_slots": SLOTS}))),
            "/asked" => {
                let asked = lock(&self.asked).clone();
                return Some(("200 OK", json!({"asked": asked, "read": self.read.load(Ordering::SeqCst)})));
            }
            _ => return self.slot(stand, asked, sent),
        }
        self.note(asked);
        Some(("200 OK", json!({})))
    }

    fn complete(&self, stand: &Stand, path: &str, sent: &Value) -> (&'static str, Value) {
        let is_lost = self.is_broken.load(Ordering::SeqCst) || self.is_asleep.load(Ordering::SeqCst);
        if is_lost {
            return (
                "500 Internal Server Error",
                json!({"error": {"message": "CUDA error: an illegal memory access"}}),
            );
        }
        let is_garbage = stand.is("--garbage-after-wake") && self.has_slept.load(Ordering::SeqCst);
        let text = if is_garbage { "\u{fffd}!" } else { SAID };
        self.read.fetch_add(1, Ordering::SeqCst);
        let model = &sent["model"];
        let body = match path {
            "/completion" => json!({"content": text}),
            "/generate" => json!({"text": text}),
            _ => json!({"object": "text_completion", "model": model, "choices": [{"index": 0, "text": text}]}),
        };
        ("200 OK", body)
    }

    /// `/slots/0`, of which there is one. As of llama.cpp's own, any other number is one of those that there are.
    fn slot(&self, stand: &Stand, asked: &Asked, sent: &Value) -> Option<(&'static str, Value)> {
        let number = asked.path.strip_prefix("/slots/")?;
        let file = stand.text("--slot-save-path").zip(sent["filename"].as_str());
        let (Some((folder, name)), Ok(_)) = (file, number.parse::<u64>()) else {
            return Some(("400 Bad Request", json!({"error": "invalid slot"})));
        };
        self.note(asked);
        let path = std::path::Path::new(folder).join(name);
        let done = match asked.query("action") {
            Some("save") => std::fs::write(path, self.read.load(Ordering::SeqCst).to_string()),
            Some("restore") => std::fs::read_to_string(path).map(|read| {
                self.read.store(read.parse().unwrap_or(0), Ordering::SeqCst);
            }),
            _ => return Some(("400 Bad Request", json!({"error": "invalid action"}))),
        };
        Some(match done {
            Ok(()) => ("200 OK", json!({"id_slot": 0})),
            Err(error) => ("500 Internal Server Error", json!({"error": error.to_string()})),
        })
    }

    fn note(&self, asked: &Asked) {
        let query = if asked.query.is_empty() { String::new() } else { format!("?{}", asked.query) };
        lock(&self.asked).push(format!("{}{query}", asked.path));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
