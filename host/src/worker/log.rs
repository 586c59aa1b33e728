//! The last lines of a model's workers, the dead ones among them, and those who follow along; and how bytes become lines.

use std::collections::VecDeque;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::broadcast;

use super::limits::{HOST_LOG_RATE, LOG_FOLLOW_LINES, LOG_LINE_BYTES, LOG_LINES};
use super::throttle::{Admission, Throttle};
use crate::domain::excerpt;

/// What allocators print before their process aborts: Rust's, and C++'s. A sentence is read here because the standard libraries
/// leave nothing else: they abort, with the same signal as for any other reason.
const FAILED_ALLOCATIONS: [&str; 2] = ["memory allocation of ", "std::bad_alloc"];

/// What the workers of one model logged. It outlives them.
#[derive(Debug)]
pub struct ModelLog {
    lines: Mutex<VecDeque<String>>,
    news: broadcast::Sender<String>,
    /// Before the host's own log.
    gate: Mutex<Throttle>,
}

/// A log as it was, and every line after that. The end of `news` is the end of the model.
#[derive(Debug)]
pub struct Followed {
    /// The lines that are kept, oldest first.
    pub tail: Vec<String>,
    /// The lines that are logged from now on.
    pub news: broadcast::Receiver<String>,
}

impl Default for ModelLog {
    fn default() -> Self {
        let gate = Mutex::new(Throttle::new(HOST_LOG_RATE, Instant::now()));
        Self { lines: Mutex::default(), news: broadcast::Sender::new(LOG_FOLLOW_LINES), gate }
    }
}

impl ModelLog {
    /// The lines that are kept, oldest first.
    pub fn tail(&self) -> Vec<String> {
        self.lines.lock().iter().cloned().collect()
    }

    /// The lines so far and those to come, with none between.
    pub fn follow(&self) -> Followed {
        let lines = self.lines.lock();
        Followed { tail: lines.iter().cloned().collect(), news: self.news.subscribe() }
    }

    /// Appends a line, printable and cut if it is long.
    pub(super) fn push(&self, line: &str) {
        let line = excerpt(line, LOG_LINE_BYTES);
        let mut lines = self.lines.lock();
        if lines.len() >= LOG_LINES {
            lines.pop_front();
        }
        lines.push_back(line.clone());
        // Nobody may be following.
        let _ = self.news.send(line);
    }

    /// Whether a line of so many bytes goes into the host's own log too.
    pub(super) fn admit(&self, bytes: usize) -> Admission {
        self.gate.lock().admit(bytes, Instant::now())
    }
}

/// Whether a line says that a process could not allocate.
pub(super) fn tells_of_failed_allocation(line: &str) -> bool {
    FAILED_ALLOCATIONS.iter().any(|words| line.contains(words))
}

/// Cuts what a process writes into lines. A line without an end is cut when it is as long as a line may be.
#[derive(Debug, Default)]
pub(super) struct Lines {
    begun: Vec<u8>,
}

impl Lines {
    /// Takes what was read and gives each line that is whole. A carriage return ends one too, as bars of progress have it.
    pub(super) fn push(&mut self, bytes: &[u8], mut line: impl FnMut(&[u8])) {
        for piece in bytes.split_inclusive(|byte| matches!(byte, b'\n' | b'\r')) {
            let text = piece.strip_suffix(b"\n").or_else(|| piece.strip_suffix(b"\r")).unwrap_or(piece);
            let ended = text.len() < piece.len();
            for part in text.chunks(LOG_LINE_BYTES) {
                if self.begun.len() + part.len() > LOG_LINE_BYTES {
                    line(&std::mem::take(&mut self.begun));
                }
                self.begun.extend_from_slice(part);
            }
            if ended {
                self.end(&mut line);
            }
        }
    }

    /// Gives what is left, if anything is.
    pub(super) fn end(&mut self, mut line: impl FnMut(&[u8])) {
        if !self.begun.is_empty() {
            line(&std::mem::take(&mut self.begun));
        }
    }

    /// Whether a line lacks its end.
    pub(super) fn is_open(&self) -> bool {
        !self.begun.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_lines_are_kept_long_ones_cut_and_followers_miss_none() {
        let log = ModelLog::default();
        (0..LOG_LINES + 3).for_each(|n| log.push(&n.to_string()));
        let mut followed = log.follow();
        log.push(&"é".repeat(LOG_LINE_BYTES));
        let tail = log.tail();
        assert_eq!((tail.len(), tail[0].as_str()), (LOG_LINES, "4"));
        assert!(tail[LOG_LINES - 1].len() <= LOG_LINE_BYTES && tail[LOG_LINES - 1].ends_with("é…"));
        assert_eq!((followed.tail.len(), followed.tail[0].as_str()), (LOG_LINES, "3"));
        assert_eq!(followed.news.recv().await.unwrap(), tail[LOG_LINES - 1]);
        drop(log);
        assert!(followed.news.recv().await.is_err(), "it ends with its model");
    }

    #[test]
    fn no_line_forges_another_or_steers_a_terminal() {
        let log = ModelLog::default();
        log.push("x\n[99] ERROR aihost: forged\u{1b}[2J");
        assert_eq!(log.tail(), ["x\\n[99] ERROR aihost: forged\\u{1b}[2J"]);
    }

    #[test]
    fn lines_end_where_they_end_however_they_are_read() {
        let text = format!("one\n\ntwo\r\n10%\r20%\r{}\nend", "x".repeat(2 * LOG_LINE_BYTES + 5));
        for size in [1, 2, 3, 7, 4096, text.len()] {
            let (mut lines, mut found) = (Lines::default(), Vec::new());
            let mut keep = |line: &[u8]| found.push(String::from_utf8_lossy(line).into_owned());
            text.as_bytes().chunks(size).for_each(|piece| lines.push(piece, &mut keep));
            assert!(lines.is_open());
            lines.end(&mut keep);
            let (long, rest): (Vec<_>, Vec<_>) = found.into_iter().partition(|line| line.starts_with('x'));
            assert_eq!(rest, ["one", "two", "10%", "20%", "end"], "in pieces of {size}");
            assert_eq!(long.concat().len(), 2 * LOG_LINE_BYTES + 5);
            assert!(long.iter().all(|line| line.len() <= LOG_LINE_BYTES));
        }
    }
}
