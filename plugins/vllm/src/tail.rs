//! What a process writes on its standard error: written on to our own, which is in its model's log, with the last lines kept
//! for an error that has to say why it ended.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::process::ChildStderr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// Lines that are kept.
const LINES: usize = 40;
/// Most bytes that are kept of a line.
const LINE_BYTES: usize = 400;
/// Between two lines that are told as one.
const SEPARATOR: &str = " | ";
/// Bytes that are read at once.
const PIECE_BYTES: usize = 8 << 10;

/// The last lines of a process.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tail(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<String>,
    begun: Vec<u8>,
    is_ended: bool,
}

impl Tail {
    /// Follows a pipe on a thread of its own.
    pub(crate) fn follow(pipe: ChildStderr) -> io::Result<Self> {
        let tail = Self::default();
        let following = tail.clone();
        thread::Builder::new().name("engine-stderr".to_owned()).spawn(move || following.read(pipe))?;
        Ok(tail)
    }

    /// The last lines, oldest first, once the pipe is at its end; at most so long is waited for that: what the process started
    /// may hold it open.
    pub(crate) fn lines(&self, wait: Duration) -> Vec<String> {
        let waited = self.0.ended.wait_timeout_while(self.lock(), wait, |state| !state.is_ended);
        let state = waited.unwrap_or_else(PoisonError::into_inner).0;
        let begun = (!state.begun.is_empty()).then(|| printed(&state.begun));
        state.lines.iter().cloned().chain(begun).collect()
    }

    /// The lines that are there now, oldest first.
    pub(crate) fn now(&self) -> Vec<String> {
        self.lock().lines.iter().cloned().collect()
    }

    fn read(&self, mut pipe: ChildStderr) {
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            match pipe.read(&mut piece) {
                Ok(0) => break,
                Ok(read) => {
                    // It is in nobody's log then, but the tail is still of use.
                    let _ = io::stderr().write_all(&piece[..read]);
                    self.lock().take(&piece[..read]);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        self.lock().is_ended = true;
        self.0.ended.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match byte {
                b'\n' | b'\r' => self.end_line(),
                // The beginning of a line says what it is about.
                byte if self.begun.len() < LINE_BYTES => self.begun.push(*byte),
                _ => {}
            }
        }
    }

    fn end_line(&mut self) {
        let line = printed(&std::mem::take(&mut self.begun));
        if line.is_empty() {
            return;
        }
        if self.lines.len() == LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }
}

fn printed(line: &[u8]) -> String {
    String::from_utf8_lossy(line).trim().to_owned()
}

/// The last of these lines in one, as many as fit into so many bytes; nothing if there is none.
pub(crate) fn last(lines: &[String], most: usize, bytes: usize) -> String {
    let mut told = String::new();
    for line in lines.iter().rev().take(most) {
        if !told.is_empty() && told.len() + SEPARATOR.len() + line.len() > bytes {
            break;
        }
        told = if told.is_empty() { line.clone() } else { format!("{line}{SEPARATOR}{told}") };
    }
    told.truncate(told.floor_char_boundary(bytes));
    told
}

#[cfg(test)]
mod tests {
    use super::{LINES, State, last};

    #[test]
    fn the_last_lines_are_kept_however_they_come_and_told_in_one() {
        let text = (0..LINES + 5).map(|n| format!("line {n}\r\n")).collect::<String>();
        for size in [1, 7, 4096] {
            let mut state = State::default();
            text.as_bytes().chunks(size).for_each(|piece| state.take(piece));
            let lines: Vec<String> = state.lines.into_iter().collect();
            assert_eq!((lines.len(), lines[0].as_str()), (LINES, "line 5"));
            assert_eq!(last(&lines, 2, 100), format!("line {} | line {}", LINES + 3, LINES + 4));
            assert_eq!(last(&lines, 9, 17), format!("line {} | line {}", LINES + 3, LINES + 4));
            assert_eq!(last(&lines, 9, 3), "lin");
        }
        let mut state = State::default();
        state.take(&vec![b'x'; 1 << 20]);
        assert!(state.begun.len() < 1 << 10);
        assert_eq!(last(&[], 9, 100), "");
    }
}
