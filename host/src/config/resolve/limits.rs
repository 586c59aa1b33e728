//! `limits:`, and what of `defaults:` bounds a request.

use std::time::Duration;

use super::{Checker, policy};
use crate::config::locate::KeyPath;
use crate::config::raw::{RawDefaults, RawLimits, Text};
use crate::config::resolved::Limits;
use crate::domain::ByteSize;

/// Silence after which a worker counts as stalled, where nothing else is said.
const WORKER_SILENCE: Duration = Duration::from_secs(10);
/// The least of it.
const WORKER_SILENCE_MIN: Duration = Duration::from_secs(2);

/// What a worker may be silent for: not less than it needs to be heard twice.
fn silence(check: &mut Checker, key: &KeyPath, typed: Option<&Text>) -> Duration {
    let silence = check.finite(key, typed, WORKER_SILENCE);
    if silence < WORKER_SILENCE_MIN {
        let least = WORKER_SILENCE_MIN.as_secs();
        check
            .fail(key, typed.map(|text| text.0.as_str()), format!("is less than {least} s"))
            .hint("a worker says that it is there once a second");
    }
    silence
}

/// The shortest `keep_alive` of a request; there is always one, or every request would pin its model.
fn keep_alive_min(check: &mut Checker, typed: Option<&Text>) -> Duration {
    let key = KeyPath::root().key("limits").key("keep_alive_min");
    check.duration(&key, typed).unwrap_or(Some(Duration::ZERO)).unwrap_or_else(|| {
        check
            .fail(&key, typed.map(|text| text.0.as_str()), "would keep every model that a request asks for")
            .hint("say how long at least, like 5m; `defaults: keep_alive: forever` keeps them all");
        Duration::ZERO
    })
}

/// Every limit, typed or usual, and those that must fit together.
pub(super) fn resolve(check: &mut Checker, typed: &RawLimits, defaults: &RawDefaults) -> Limits {
    let limits = KeyPath::root().key("limits");
    let common = KeyPath::root().key("defaults");
    let seconds = Duration::from_secs;
    let queue = check.number(&limits.key("queue"), typed.queue.as_ref(), 1..=100_000);
    let jobs = check.number(&limits.key("jobs"), typed.jobs.as_ref(), 1..=10_000);
    let jobs_at_once = check.number(&limits.key("jobs_at_once"), typed.jobs_at_once.as_ref(), 1..=256);
    let max_wait = check.finite(&common.key("max_wait"), defaults.max_wait.as_ref(), seconds(60));
    let quantum = check.finite(&common.key("quantum"), defaults.quantum.as_ref(), seconds(5).min(max_wait));
    let body_limit = check.size(&limits.key("body_limit"), typed.body_limit.as_ref());
    let usual_bodies = ByteSize(body_limit.map_or(0, |limit| limit.0.saturating_mul(2)).max(256 << 20));
    let limits = Limits {
        queue: queue.and_then(|n| u32::try_from(n).ok()).unwrap_or(128),
        max_wait,
        quantum,
        hold: check.finite(&limits.key("hold"), typed.hold.as_ref(), seconds(90)),
        request_timeout: check.finite(&limits.key("request_timeout"), typed.request_timeout.as_ref(), seconds(600)),
        first_output_timeout: check.finite(
            &limits.key("first_output_timeout"),
            typed.first_output_timeout.as_ref(),
            seconds(300),
        ),
        output_stall_timeout: check.finite(
            &limits.key("output_stall_timeout"),
            typed.output_stall_timeout.as_ref(),
            seconds(120),
        ),
        worker_silence: silence(check, &limits.key("worker_silence"), typed.worker_silence.as_ref()),
        stream_stall_timeout: check.finite(
            &limits.key("stream_stall_timeout"),
            typed.stream_stall_timeout.as_ref(),
            seconds(60),
        ),
        sse_ping: check.period(&limits.key("sse_ping"), typed.sse_ping.as_ref()),
        keep_alive: check.duration(&limits.key("keep_alive"), typed.keep_alive.as_ref()).flatten(),
        keep_alive_min: keep_alive_min(check, typed.keep_alive_min.as_ref()),
        drain_timeout: check.finite(&limits.key("drain_timeout"), typed.drain_timeout.as_ref(), seconds(60)),
        body_limit,
        bodies: check.size(&limits.key("bodies"), typed.bodies.as_ref()).unwrap_or(usual_bodies),
        connections: check.count(&limits.key("connections"), typed.connections.as_ref()),
        connections_per_peer: check.count(&limits.key("connections_per_peer"), typed.connections_per_peer.as_ref()),
        artifact_ttl: check.finite(&limits.key("artifact_ttl"), typed.artifact_ttl.as_ref(), seconds(3600)),
        artifact_bytes: check
            .size(&limits.key("artifact_bytes"), typed.artifact_bytes.as_ref())
            .unwrap_or(ByteSize(1 << 30)),
        jobs: jobs.and_then(|n| u32::try_from(n).ok()).unwrap_or(256),
        jobs_at_once: jobs_at_once.and_then(|n| u32::try_from(n).ok()).unwrap_or(8),
        job_ttl: check.finite(&limits.key("job_ttl"), typed.job_ttl.as_ref(), seconds(24 * 3600)),
        job_bytes: check.size(&limits.key("job_bytes"), typed.job_bytes.as_ref()).unwrap_or(ByteSize(4 << 30)),
    };
    policy::check_quantum(check, defaults.quantum.as_ref().map(|text| text.0.as_str()), &limits);
    policy::check_keep_alive(check, typed.keep_alive_min.as_ref().map(|text| text.0.as_str()), &limits);
    policy::check_bodies(check, typed.bodies.as_ref().map(|text| text.0.as_str()), &limits);
    limits
}
