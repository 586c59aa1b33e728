//! The last lines of a model's workers, the dead ones among them, and those who follow along.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::broadcast;

use super::limits::{LOG_FOLLOW_LINES, LOG_LINE_BYTES, LOG_LINES};

/// What the workers of one model logged. It outlives them.
#[derive(Debug)]
pub struct ModelLog {
    lines: Mutex<VecDeque<String>>,
    news: broadcast::Sender<String>,
}

/// A log as it was, and every line after that. The end of `news` is the end of the model.
#[derive(Debug)]
pub struct Followed {
    /// Oldest first.
    pub tail: Vec<String>,
    /// What comes.
    pub news: broadcast::Receiver<String>,
}

impl Default for ModelLog {
    fn default() -> Self {
        Self { lines: Mutex::default(), news: broadcast::Sender::new(LOG_FOLLOW_LINES) }
    }
}

impl ModelLog {
    /// Oldest first.
    pub fn tail(&self) -> Vec<String> {
        self.lines().iter().cloned().collect()
    }

    /// The lines so far and those to come, with none between.
    pub fn follow(&self) -> Followed {
        let lines = self.lines();
        Followed { tail: lines.iter().cloned().collect(), news: self.news.subscribe() }
    }

    /// Appends a line, cut if it is long.
    pub(super) fn push(&self, mut line: String) {
        line.truncate(line.floor_char_boundary(LOG_LINE_BYTES));
        let mut lines = self.lines();
        if lines.len() >= LOG_LINES {
            lines.pop_front();
        }
        lines.push_back(line.clone());
        // Nobody may be following.
        let _ = self.news.send(line);
    }

    fn lines(&self) -> MutexGuard<'_, VecDeque<String>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_lines_are_kept_long_ones_cut_and_followers_miss_none() {
        let log = ModelLog::default();
        (0..LOG_LINES + 3).for_each(|n| log.push(n.to_string()));
        let mut followed = log.follow();
        log.push("é".repeat(LOG_LINE_BYTES));
        let tail = log.tail();
        assert_eq!((tail.len(), tail[0].as_str()), (LOG_LINES, "4"));
        assert_eq!(tail[LOG_LINES - 1].len(), LOG_LINE_BYTES);
        assert_eq!((followed.tail.len(), followed.tail[0].as_str()), (LOG_LINES, "3"));
        assert_eq!(followed.news.recv().await.unwrap(), tail[LOG_LINES - 1]);
        drop(log);
        assert!(followed.news.recv().await.is_err(), "it ends with its model");
    }
}
