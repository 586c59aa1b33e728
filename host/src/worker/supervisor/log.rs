//! What a worker and its plugin say: all of it goes to the model's log, and as much as one model may say to `tracing`.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rustix::process::Pid;
use tracing::Level;

use super::super::limits::{LAST_OUTPUT_BYTES, LOG_LINE_BYTES, LOG_TARGET_BYTES};
use super::super::log::{Lines, ModelLog, tells_of_failed_allocation};
use super::super::protocol::{LogRecord, OUTPUT_LEVEL};
use super::super::throttle::{Admission, dropped_line};
use crate::domain::{ModelId, excerpt};

/// Bytes per read of a pipe.
const READ_BYTES: usize = 4 << 10;

/// The log of one worker, a part of its model's.
#[derive(Debug)]
pub(super) struct Log {
    model: ModelId,
    /// Before each of its lines: a model may have several workers at once, and had others before.
    prefix: String,
    lines: Arc<ModelLog>,
    allocation_failed: AtomicBool,
    /// What the plugin said last in the step under way.
    said: Mutex<String>,
}

/// Least urgent level of what is quoted of a plugin: information.
const QUOTED_LEVEL: u32 = 3;
/// Most bytes of that.
const QUOTED_BYTES: usize = 400;

/// Where the SDK logs that a plugin panicked.
const PANIC_TARGET: &str = "aihost_plugin_api::sdk::logging";

impl Log {
    pub(super) fn new(model: ModelId, pid: Pid, lines: Arc<ModelLog>) -> Self {
        let (allocation_failed, said) = (AtomicBool::new(false), Mutex::default());
        Self { model, prefix: format!("[{}] ", pid.as_raw_pid()), lines, allocation_failed, said }
    }

    /// What the plugin itself said last, for a sentence on a step that came to nothing; what it printed is not meant. Forgets it.
    pub(super) fn take_said(&self) -> String {
        std::mem::take(&mut self.said.lock())
    }

    /// Whether the worker said that it could not allocate.
    pub(super) fn allocation_failed(&self) -> bool {
        self.allocation_failed.load(Ordering::Acquire)
    }

    /// Takes a record of the plugin, or a line of its output. The worker has cut both, unless its plugin went around it.
    pub(super) fn record(&self, record: &LogRecord) {
        let LogRecord { level, target, message, fields, request } = record;
        let target = excerpt(target, LOG_TARGET_BYTES);
        if *level == OUTPUT_LEVEL {
            return self.output(message, &target);
        }
        let space = if fields.is_empty() { "" } else { " " };
        let text = excerpt(&format!("{message}{space}{fields}"), 2 * LOG_LINE_BYTES);
        if *level <= QUOTED_LEVEL {
            *self.said.lock() = excerpt(message, QUOTED_BYTES);
        }
        let model = &self.model;
        macro_rules! forward {
            ($level:ident) => {
                if self.admits(Level::$level, text.len()) {
                    tracing::event!(target: "worker", Level::$level, %model, plugin_target = %target, request, "{text}");
                }
            };
        }
        let name = match level {
            // What failed by it is told by the host, with the requests that it cost.
            0 | 1 if target == PANIC_TARGET => {
                forward!(DEBUG);
                "ERROR"
            }
            0 | 1 => {
                forward!(ERROR);
                "ERROR"
            }
            2 => {
                forward!(WARN);
                "WARN"
            }
            3 => {
                forward!(INFO);
                "INFO"
            }
            4 => {
                forward!(DEBUG);
                "DEBUG"
            }
            _ => {
                forward!(TRACE);
                "TRACE"
            }
        };
        self.keep(&format!("{name} {target}: {text}"));
    }

    /// Takes what a process that is gone left in a pipe. Who else holds the pipe's other end is not waited for.
    pub(super) fn last_words(&self, pipe: Option<OwnedFd>, name: &str) {
        let Some(pipe) = pipe else { return };
        let mut lines = Lines::default();
        let mut take = |line: &[u8]| self.output(&String::from_utf8_lossy(line), name);
        if let Err(e) = read_what_is_there(&pipe, |bytes| lines.push(bytes, &mut take)) {
            tracing::warn!(target: "worker", model = %self.model, "its {name} cannot be read: {e}");
        }
        lines.end(take);
    }

    fn output(&self, line: &str, name: &str) {
        let line = excerpt(line, LOG_LINE_BYTES);
        if self.admits(Level::INFO, line.len()) {
            tracing::info!(target: "worker", model = %self.model, "{name}: {line}");
        }
        self.keep(&format!("{name}: {line}"));
    }

    /// Whether a line goes into the host's own log, which all models share.
    fn admits(&self, level: Level, bytes: usize) -> bool {
        // What nobody would see takes nothing of what may be seen.
        let seen = match level {
            Level::ERROR => tracing::enabled!(target: "worker", Level::ERROR),
            Level::WARN => tracing::enabled!(target: "worker", Level::WARN),
            Level::INFO => tracing::enabled!(target: "worker", Level::INFO),
            Level::DEBUG => tracing::enabled!(target: "worker", Level::DEBUG),
            Level::TRACE => tracing::enabled!(target: "worker", Level::TRACE),
        };
        if !seen {
            return false;
        }
        match self.lines.admit(bytes) {
            Admission::Drop => false,
            Admission::Pass { dropped: 0 } => true,
            Admission::Pass { dropped } => {
                let model = &self.model;
                tracing::warn!(target: "worker", %model, "{}; `aihost logs {model}` shows the last ones", dropped_line(dropped));
                true
            }
        }
    }

    /// Appends a line to the model's log alone.
    pub(super) fn keep(&self, line: &str) {
        self.lines.push(&format!("{}{line}", self.prefix));
        if tells_of_failed_allocation(line) {
            self.allocation_failed.store(true, Ordering::Release);
        }
    }
}

fn read_what_is_there(pipe: &OwnedFd, mut take: impl FnMut(&[u8])) -> io::Result<()> {
    rustix::io::ioctl_fionbio(pipe.as_fd(), true)?;
    let (mut buffer, mut left) = ([0; READ_BYTES], LAST_OUTPUT_BYTES);
    while left > 0 {
        match rustix::io::retry_on_intr(|| rustix::io::read(pipe, &mut buffer)) {
            Ok(0) | Err(rustix::io::Errno::AGAIN) => return Ok(()),
            Ok(read) => {
                take(&buffer[..read]);
                left = left.saturating_sub(read);
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}
