//! What a worker and its plugin say: the last lines are kept, all of them go to `tracing`.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use super::super::limits::{LOG_LINE_BYTES, LOG_LINES};
use super::super::protocol::LogRecord;
use crate::domain::ModelId;

/// Bytes per read of a pipe.
const READ_BYTES: usize = 4 << 10;

/// The last lines of one worker.
#[derive(Debug)]
pub(super) struct Log {
    model: ModelId,
    lines: Mutex<VecDeque<String>>,
}

impl Log {
    pub(super) fn new(model: ModelId) -> Self {
        Self { model, lines: Mutex::default() }
    }

    /// Oldest first.
    pub(super) fn tail(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
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
        self.keep(format!("{name} {target}: {message}{fields}"));
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
        self.keep(format!("{name}: {line}"));
    }

    fn keep(&self, mut line: String) {
        let cut = line.char_indices().map(|(at, _)| at).find(|at| *at >= LOG_LINE_BYTES);
        line.truncate(cut.unwrap_or(line.len()));
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() >= LOG_LINES {
            lines.pop_front();
        }
        lines.push_back(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_and_long_ones_cut() {
        let log = Log::new("m".into());
        for n in 0..LOG_LINES + 3 {
            log.output(n.to_string().as_bytes(), "stdout");
        }
        log.output(&vec![b'x'; 2 * LOG_LINE_BYTES], "stderr");
        let tail = log.tail();
        assert_eq!((tail.len(), tail[0].as_str()), (LOG_LINES, "stdout: 4"));
        assert_eq!(tail[LOG_LINES - 1].len(), LOG_LINE_BYTES);
    }
}
