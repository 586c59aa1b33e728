//! Makes workers die under their requests: killed from outside, or crashing by themselves.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::process::is_worker_of;
use super::random::Random;
use super::tally::Death;
use crate::bench::client;
use crate::shell;

/// Between two deaths, milliseconds.
const PAUSE_MS: (u64, u64) = (300, 1500);
/// One death in so many is a crash of the faulty plugin.
const CRASH_ONE_IN: u64 = 3;
/// What a death may take from the signal to the last word of its requests.
const REACTION: Duration = Duration::from_secs(2);
/// How often a crash is looked for.
const POLL: Duration = Duration::from_millis(20);

/// Whom to make die.
#[derive(Debug)]
pub(super) struct Chaos {
    pub(super) address: SocketAddr,
    pub(super) host: u32,
    /// The model whose next request crashes its worker while this file does not exist.
    pub(super) faulty: &'static str,
    pub(super) once_file: PathBuf,
}

impl Chaos {
    /// Goes on until told to stop, and notes the deaths that happened.
    pub(super) fn run(&self, random: &mut Random, stop: &AtomicBool, deaths: &Mutex<Vec<Death>>) {
        while !stop.load(Ordering::Relaxed) {
            std::thread::sleep(random.milliseconds(PAUSE_MS.0, PAUSE_MS.1));
            let death = if random.below(CRASH_ONE_IN) == 0 { self.crash(stop) } else { self.kill(random) };
            deaths.lock().unwrap_or_else(PoisonError::into_inner).extend(death);
        }
    }

    /// Kills a random worker that serves. One that still loads is left alone: its waiters are told that the load failed.
    fn kill(&self, random: &mut Random) -> Option<Death> {
        let answer = client::get(self.address, "/admin/status").ok()?;
        let status: Value = serde_json::from_str(&answer.body).ok()?;
        let serving: Vec<(&str, u64)> = status
            .as_array()?
            .iter()
            .filter(|model| model["state"] == "hot" || model["state"] == "draining")
            .filter_map(|model| Some((model["id"].as_str()?, model["pid"].as_u64()?)))
            .collect();
        let (model, pid) = *serving.get(random.below(serving.len() as u64) as usize)?;
        let from = Instant::now();
        // It may have left since, and its number be another's.
        let pid = u32::try_from(pid).ok()?;
        if !is_worker_of(pid, self.host) {
            return None;
        }
        shell::signal("KILL", pid).ok()?;
        Some(Death { model: model.to_owned(), from, until: Instant::now() + REACTION })
    }

    /// Lets the faulty model's next request crash its worker, and waits until it has.
    fn crash(&self, stop: &AtomicBool) -> Option<Death> {
        let from = Instant::now();
        std::fs::remove_file(&self.once_file).ok()?;
        while !self.once_file.exists() {
            if stop.load(Ordering::Relaxed) {
                // Nobody asks any more; what was asked for did not happen.
                std::fs::write(&self.once_file, b"").ok()?;
                return None;
            }
            std::thread::sleep(POLL);
        }
        Some(Death { model: self.faulty.to_owned(), from, until: Instant::now() + REACTION })
    }
}
