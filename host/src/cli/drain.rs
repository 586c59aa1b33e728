//! What a host that was asked to end still waits for, said until there is nothing left.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::out;
use crate::domain::{ModelState, some_names};
use crate::runtime::{Handle, ModelStatus, StateClaim};

/// After how long it is said first.
const FIRST: Duration = Duration::from_millis(500);
/// How often it is said from then on.
const AGAIN: Duration = Duration::from_secs(10);

/// Says it until the host has ended, and to commands that ask. An end that comes at once needs no word.
pub(super) async fn tell(handle: Handle, claim: Arc<StateClaim>) {
    let asked = Instant::now();
    let mut ticks = interval_at(asked + FIRST, AGAIN);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Ok(models) = handle.models().await else { return };
        let left = handle.config().limits.drain_timeout.saturating_sub(asked.elapsed());
        if let Some(sentence) = sentence(&models, left) {
            out::note(&sentence);
            claim.say(Some(sentence));
        }
    }
}

fn sentence(models: &[ModelStatus], left: Duration) -> Option<String> {
    let requests: Vec<String> = models
        .iter()
        .filter(|model| model.active > 0)
        .map(|model| match model.active {
            1 => format!("a request of {}", model.id),
            more => format!("{more} requests of {}", model.id),
        })
        .collect();
    let workers: Vec<String> = models
        .iter()
        .filter(|model| model.active == 0 && model.state == ModelState::Stopping)
        .map(|model| format!("the worker of {}", model.id))
        .collect();
    let all: Vec<&str> = requests.iter().chain(&workers).map(String::as_str).collect();
    let limit = match requests.is_empty() {
        true => String::new(),
        false => format!("; what runs in {} s is cut", left.as_secs()),
    };
    (!all.is_empty()).then(|| format!("waiting for {}{limit}", some_names(all)))
}
