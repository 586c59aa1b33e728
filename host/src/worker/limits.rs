//! Every limit of the worker protocol and of a worker's life, by name and unit.

use std::time::Duration;

use super::throttle::Rate;

/// The environment variable that names the host's process to its worker.
pub(super) const PARENT_VARIABLE: &str = "AIHOST_WORKER_PARENT";
/// The environment variable by which a worker, and whatever it starts, is known to the guard.
pub(super) const WORKER_VARIABLE: &str = "AIHOST_WORKER_MARK";

/// The code a worker exits with that has lost its socket.
pub(super) const LOST_CONNECTION_CODE: i32 = 86;
/// With which a worker ends whose plugin panicked where there was nobody left to tell.
pub(super) const PANICKED_CODE: i32 = 87;

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
/// Between two looks at a worker's end where the system does not signal it.
pub(super) const EXIT_POLL: Duration = Duration::from_millis(50);

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
/// Most bytes of a log record's target.
pub(super) const LOG_TARGET_BYTES: usize = 128;
/// Lines a second that a worker logs, of each sort: its plugin's records from information up, those below, and what it and
/// all it starts write to their standard output and error. The rest is dropped and counted.
const LOG_RATE_LINES: u64 = 100;
/// Bytes a second of the same.
const LOG_RATE_BYTES: u64 = 64 << 10;
/// Lines a second of one model in the host's own log.
const HOST_LOG_RATE_LINES: u64 = 50;
/// Bytes a second of one model in the host's own log.
const HOST_LOG_RATE_BYTES: u64 = 16 << 10;
/// After a silence, so much of a log rate passes at once.
const LOG_BURST_S: u64 = 10;
/// How long a worker lets what was written to its output lie: the last words of a process that dies are left for the host.
pub(super) const OUTPUT_LINGER: Duration = Duration::from_millis(20);
/// Between two reads of an output that is full each time.
pub(super) const OUTPUT_FLOOD_PAUSE: Duration = Duration::from_millis(1);
/// Bytes that an output's pipe holds, where the system allows it, and that are read of it at once.
pub(super) const OUTPUT_PIPE_BYTES: usize = 256 << 10;
/// How long a line may lack its end before it is taken for whole.
pub(super) const OUTPUT_LINE_WAIT: Duration = Duration::from_millis(100);
/// Most bytes that are read of a dead worker's output.
pub(super) const LAST_OUTPUT_BYTES: usize = 256 << 10;
/// Most bytes of the sentence of a plugin's error.
pub(super) const ERROR_BYTES: usize = 800;
/// Most bytes of the JSON that ends an answer.
pub(super) const SUMMARY_BYTES: usize = 1 << 20;
/// Most bytes of the JSON of a plugin's metrics.
pub(super) const METRICS_BYTES: usize = 1 << 20;
/// Most series that one instance's plugin may have in /metrics.
pub(super) const METRICS_MAX: usize = 256;
/// Most labels of one series of a plugin.
pub(super) const METRIC_LABELS_MAX: usize = 8;
/// Most bytes of the name of a plugin's metric or label.
pub(super) const METRIC_NAME_BYTES: usize = 64;
/// Most bytes of what a plugin says of a metric, and of a label's value.
pub(super) const METRIC_TEXT_BYTES: usize = 200;
/// How long a scrape waits for a plugin to say what it counts.
pub(super) const METRICS_WAIT: Duration = Duration::from_millis(500);

/// Bytes of memory that a worker may hold before it has a grant: to start, to open its plugin, to plan.
pub(super) const START_BYTES: u64 = 256 << 20;
/// Bytes of memory that a worker may hold that prepares a model: installers, and the compilers that they start.
pub(super) const PREPARE_BYTES: u64 = 16 << 30;
/// How long that may take: large packages come over slow lines.
pub(super) const PREPARE_LIMIT: Duration = Duration::from_secs(24 * 60 * 60);
/// Bytes by which a worker may pass its grant at least; 10 % of it if that is more.
const GRANT_MARGIN_BYTES: u64 = 64 << 20;
/// One part in this many of a grant by which it may be passed.
const GRANT_MARGIN_PARTS: u64 = 10;
/// Times the bytes of its open requests that a worker may hold beside its grant: they are the clients', and their length is
/// bounded where they come in.
pub(super) const TASK_COPIES: u64 = 4;
/// Bytes of a graphics card that a driver takes of each process, and that no plan knows.
pub(super) const DRIVER_BYTES: u64 = 1 << 30;
/// Address space that a worker on the CPU may take beyond its grant and that margin without touching it: stacks, buffers of
/// libraries, what an allocator keeps.
pub(super) const DATA_SLACK_BYTES: u64 = 1 << 30;
/// Looks in a row that must find a worker and what it started beyond its grant, if it is not alone: a process that is just
/// being started shares its parent's memory for a moment.
pub(super) const FAMILY_LOOKS: u32 = 2;
/// Looks at a worker's memory for each look at who belongs to it, and for each question to a graphics card.
pub(super) const LOOKS_PER_CENSUS: u32 = 4;
/// What a worker adds to its `oom_score_adj`, so that the kernel chooses it before the host.
pub(super) const OOM_SCORE_ADDED: i32 = 500;
/// The kernel's highest `oom_score_adj`.
pub(super) const OOM_SCORE_MAX: i32 = 1000;

/// Bytes by which a grant may be passed.
pub(super) fn grant_margin(granted: u64) -> u64 {
    GRANT_MARGIN_BYTES.max(granted / GRANT_MARGIN_PARTS)
}

/// What a worker may log of each sort.
pub(super) const LOG_RATE: Rate = Rate { lines: LOG_RATE_LINES, bytes: LOG_RATE_BYTES, burst_s: LOG_BURST_S };
/// What one model may say in the host's own log.
pub(super) const HOST_LOG_RATE: Rate =
    Rate { lines: HOST_LOG_RATE_LINES, bytes: HOST_LOG_RATE_BYTES, burst_s: LOG_BURST_S };

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
    /// How long a cancelled request may go on before its worker is killed.
    pub cancel_grace: Duration,
    /// How long a park, an unpark, a health check or a cost may take.
    pub step: Duration,
    /// A load or unpark that keeps reporting progress may take this many times its limit.
    pub load_extension: u32,
}

impl WorkerLimits {
    /// What holds outside tests.
    pub const DEFAULT: Self = Self { cancel_grace: CANCEL_GRACE, step: STEP, load_extension: LOAD_EXTENSION };
}

impl Default for WorkerLimits {
    fn default() -> Self {
        Self::DEFAULT
    }
}
