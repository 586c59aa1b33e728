//! What a worker and its plugin say: it goes to the model's log and to `tracing`.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Pid;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use super::super::limits::LOG_LINE_BYTES;
use super::super::log::ModelLog;
use super::super::protocol::LogRecord;
use crate::domain::ModelId;

/// Bytes per read of a pipe.
const READ_BYTES: usize = 4 << 10;
/// What Rust's allocator prints before it aborts.
const ALLOCATION_FAILED: &str = "memory allocation of ";

/// The log of one worker, a part of its model's.
#[derive(Debug)]
pub(super) struct Log {
    model: ModelId,
    /// Before each of its lines: a model may have several workers at once, and had others before.
    prefix: String,
    lines: Arc<ModelLog>,
    allocation_failed: AtomicBool,
}

impl Log {
    pub(super) fn new(model: ModelId, pid: Pid, lines: Arc<ModelLog>) -> Self {
        Self { model, prefix: format!("[{}] ", pid.as_raw_pid()), lines, allocation_failed: AtomicBool::new(false) }
    }

    /// Whether the worker said that it could not allocate.
    pub(super) fn allocation_failed(&self) -> bool {
        self.allocation_failed.load(Ordering::Acquire)
    }

    /// Takes a record of the plugin.
    pub(super) fn record(&self, record: &LogRecord) {
        let LogRecord { level, target, message, fields, request } = record;
        let fields = fields.as_object().filter(|fields| !fields.is_empty());
        let fields = fields.map(|fields| format!(" {}", serde_json::Value::from(fields.clone()))).unwrap_or_default();
        let model = &self.model;
        macro_rules! forward {
            ($level:ident) => {
                tracing::$level!(target: "worker", %model, plugin_target = %target, request, "{message}{fields}")
            };
        }
        let name = match level {
            0 | 1 => {
                forward!(error);
                "ERROR"
            }
            2 => {
                forward!(warn);
                "WARN"
            }
            3 => {
                forward!(info);
                "INFO"
            }
            4 => {
                forward!(debug);
                "DEBUG"
            }
            _ => {
                forward!(trace);
                "TRACE"
            }
        };
        self.keep(&format!("{name} {target}: {message}{fields}"));
    }

    /// Takes what the process wrote to a pipe, until it is closed.
    pub(super) async fn capture(self: Arc<Self>, pipe: Option<OwnedFd>, name: &'static str) {
        let Some(pipe) = pipe else { return };
        if let Err(e) = self.read(pipe, name).await {
            tracing::warn!(target: "worker", model = %self.model, "its {name} cannot be read: {e}");
        }
    }

    async fn read(&self, pipe: OwnedFd, name: &str) -> io::Result<()> {
        let mut pipe = pipe::Receiver::from_owned_fd(pipe)?;
        let (mut buffer, mut line) = (vec![0; READ_BYTES], Vec::new());
        loop {
            let read = pipe.read(&mut buffer).await?;
            for byte in &buffer[..read] {
                if *byte == b'\n' || line.len() >= LOG_LINE_BYTES {
                    self.output(&std::mem::take(&mut line), name);
                }
                if *byte != b'\n' {
                    line.push(*byte);
                }
            }
            if read == 0 {
                if !line.is_empty() {
                    self.output(&line, name);
                }
                return Ok(());
            }
        }
    }

    fn output(&self, line: &[u8], name: &str) {
        let line = String::from_utf8_lossy(line);
        tracing::info!(target: "worker", model = %self.model, "{name}: {line}");
        self.keep(&format!("{name}: {line}"));
    }

    /// Appends a line to the model's log alone.
    pub(super) fn keep(&self, line: &str) {
        self.lines.push(format!("{}{line}", self.prefix));
        if line.contains(ALLOCATION_FAILED) {
            self.allocation_failed.store(true, Ordering::Release);
        }
    }
}
