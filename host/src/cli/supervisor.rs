//! What a supervisor is told that gave this process a socket for it, as systemd does: that the host is ready, that it ends, and
//! now and then that it is alive. Without such a socket nothing is said.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::runtime::Handle;

/// How many times a host says that it is alive within the time that its supervisor gives it.
const BEATS: u32 = 3;
/// The least time between two of them, whatever the supervisor says.
const BEAT_LEAST: Duration = Duration::from_millis(10);

/// The host takes requests. It may be another process than the one that was started.
pub(super) fn ready(address: &str) {
    let pid = NotifyState::MainPid(std::process::id());
    say(&[NotifyState::Ready, pid, NotifyState::Status(&format!("listening on http://{address}"))]);
}

/// The host ends, once it has what it waits for.
pub(super) fn stopping() {
    say(&[NotifyState::Stopping]);
}

/// Says that the host is alive for as long as its loop answers. What hangs is started anew by who watches.
pub(super) async fn keep_alive(handle: Handle) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    let between = (limit / BEATS).max(BEAT_LEAST);
    let mut beats = interval(between);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        beats.tick().await;
        if matches!(timeout(limit, handle.models()).await, Ok(Ok(_))) {
            say(&[NotifyState::Watchdog]);
        }
    }
}

fn say(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!("the supervisor was not told of this host: {error}");
    }
}
