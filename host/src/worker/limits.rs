//! Every limit of the worker protocol and of a worker's life, by name and unit.

use std::time::Duration;

/// The environment variable that names the host's process to its worker.
pub(super) const PARENT_VARIABLE: &str = "AIHOST_WORKER_PARENT";
/// The environment variable by which a worker, and whatever it starts, is known to the guard.
pub(super) const WORKER_VARIABLE: &str = "AIHOST_WORKER_MARK";

/// How often a worker says that it is there.
pub(super) const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// How long a worker that was asked to go may take to send its last words.
pub(super) const DRAIN_LIMIT: Duration = Duration::from_secs(1);
/// How long a worker may live on after its socket closed.
pub(super) const CLOSED_SOCKET_GRACE: Duration = Duration::from_secs(2);
/// Between SIGTERM and SIGKILL for a worker, and what it started, that did not leave when asked.
pub(super) const TERMINATE_GRACE: Duration = Duration::from_secs(2);
/// How often the process group of a worker that was sent SIGTERM is looked at.
pub(super) const TERMINATE_POLL: Duration = Duration::from_millis(20);
/// How long its captured output is awaited after its death.
pub(super) const LAST_OUTPUT_WAIT: Duration = Duration::from_millis(500);

/// Bytes of events a request may have on their way before its sink says Pause.
pub(super) const CREDIT_BYTES: u64 = 1 << 20;
/// Bytes beyond which a plugin that heeds no Pause is stopped.
pub(super) const HARD_CREDIT_BYTES: u64 = 4 * CREDIT_BYTES;
/// What an event costs beside its bytes, so that many tiny ones are bounded too.
const EVENT_OVERHEAD_BYTES: u64 = 64;
/// Bytes passed on after which the worker is told.
pub(super) const CREDIT_STEP_BYTES: u64 = CREDIT_BYTES / 16;
/// Events of one request that can be on their way within its credit.
pub(super) const MAX_EVENTS_ON_THE_WAY: usize = (HARD_CREDIT_BYTES / EVENT_OVERHEAD_BYTES) as usize + 64;
/// Outputs that wait for the reader of an answer.
pub(super) const OUTPUT_QUEUE: usize = 64;

/// Lines kept of what a model's workers log.
pub(super) const LOG_LINES: usize = 500;
/// Lines that someone who follows a log may be behind; what is older is skipped, and said to be.
pub(super) const LOG_FOLLOW_LINES: usize = 1024;
/// Most bytes of a log line.
pub(super) const LOG_LINE_BYTES: usize = 4 << 10;

/// Silence after which a worker counts as stalled.
const SILENCE: Duration = Duration::from_secs(10);
/// How long a cancelled request may go on before its worker is killed.
const CANCEL_GRACE: Duration = Duration::from_secs(10);
/// How long a park, a wake, a health check or a question for a cost may take.
const STEP: Duration = Duration::from_secs(30);
/// A load that keeps reporting progress may take this many times its deadline.
const LOAD_EXTENSION: u32 = 10;

/// Bytes of credit that an event takes.
pub(super) fn event_cost(payload_bytes: usize) -> u64 {
    payload_bytes as u64 + EVENT_OVERHEAD_BYTES
}

/// Time limits of a worker that a test shortens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerLimits {
    /// Silence after which a worker counts as stalled; it says something every second.
    pub silence: Duration,
    /// How long a cancelled request may go on before its worker is killed.
    pub cancel_grace: Duration,
    /// How long a park, an unpark, a health check or a cost may take.
    pub step: Duration,
    /// A load or unpark that keeps reporting progress may take this many times its limit.
    pub load_extension: u32,
}

impl WorkerLimits {
    /// What holds outside tests.
    pub const DEFAULT: Self =
        Self { silence: SILENCE, cancel_grace: CANCEL_GRACE, step: STEP, load_extension: LOAD_EXTENSION };
}

impl Default for WorkerLimits {
    fn default() -> Self {
        Self::DEFAULT
    }
}
