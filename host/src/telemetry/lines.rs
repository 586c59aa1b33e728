//! The log's way to stderr: a bounded queue and a thread that writes, so that whoever logs never waits and never fails.
//!
//! Nobody reads stderr, its disk is full, its pipe is closed: lines are lost then, and counted; the log itself says how
//! many once it can be written again. It knows nothing of what the lines say.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tracing_subscriber::fmt::MakeWriter;

/// Lines that may wait to be written.
pub(super) const LINES_MAX: usize = 8_192;
/// Bytes that may wait to be written.
pub(super) const BYTES_MAX: usize = 4 << 20;
/// How long the thread sleeps once everything is written: lines that come one after another wake it once, not each.
const NAP: Duration = Duration::from_millis(5);
/// Between two looks at a stderr that takes nothing at the moment.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Lines on their way. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Lines(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// There is something to write.
    news: Condvar,
    /// Everything is written.
    rest: Condvar,
    /// Lines that were never written, since the start.
    lost: AtomicU64,
}

#[derive(Debug, Default)]
struct Queue {
    lines: VecDeque<Line>,
    bytes: usize,
    /// Lines that found no room since the last one that did.
    dropped: u64,
    /// Whether the thread holds a line that is not written yet.
    writing: bool,
}

/// What is written at once.
#[derive(Debug, Default)]
struct Line {
    /// Lines that were dropped before it.
    dropped_before: u64,
    text: Vec<u8>,
}

impl Lines {
    /// Starts the thread that writes to stderr. `notice` is the line that says how many were lost.
    pub(super) fn to_stderr(notice: fn(u64) -> String) -> io::Result<Self> {
        Self::to(Stderr, notice)
    }

    fn to(sink: impl Write + Send + 'static, notice: fn(u64) -> String) -> io::Result<Self> {
        let lines = Self::default();
        let writer = SinkThread { lines: lines.clone(), sink, notice, untold: 0, torn: false };
        thread::Builder::new().name("log-writer".into()).spawn(move || writer.run())?;
        Ok(lines)
    }

    /// Takes a line, its end included, or counts it as lost. Never waits for whoever reads.
    pub(super) fn push(&self, text: &[u8]) {
        let mut queue = self.0.queue();
        if queue.lines.len() >= LINES_MAX || queue.bytes.saturating_add(text.len()) > BYTES_MAX {
            queue.dropped += 1;
            self.0.lost.fetch_add(1, Ordering::Relaxed);
        } else {
            queue.bytes += text.len();
            let dropped_before = std::mem::take(&mut queue.dropped);
            queue.lines.push_back(Line { dropped_before, text: text.to_vec() });
        }
        drop(queue);
        self.0.news.notify_one();
    }

    /// Waits until everything is written, no longer than this.
    pub(super) fn flush(&self, limit: Duration) {
        let mut queue = self.0.queue();
        let busy = |queue: &mut Queue| queue.writing || !queue.is_told();
        let _ = self.0.rest.wait_while_for(&mut queue, busy, limit);
    }

    /// Lines that were never written, since the start.
    pub(super) fn lost(&self) -> u64 {
        self.0.lost.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock()
    }

    /// Whether the line that the thread holds was the last.
    fn is_done(&self) -> bool {
        let mut queue = self.queue();
        queue.writing = !queue.is_told();
        if !queue.writing {
            self.rest.notify_all();
        }
        !queue.writing
    }

    /// The next line, once there is one; an empty one where there is only a loss to tell.
    fn next(&self) -> Line {
        let mut queue = self.queue();
        queue.writing = false;
        while queue.is_told() {
            self.rest.notify_all();
            self.news.wait(&mut queue);
        }
        queue.writing = true;
        let line = queue.lines.pop_front().unwrap_or_default();
        queue.bytes -= line.text.len();
        let dropped_before =
            if line.text.is_empty() { std::mem::take(&mut queue.dropped) } else { line.dropped_before };
        Line { dropped_before, ..line }
    }
}

impl Queue {
    fn is_told(&self) -> bool {
        self.lines.is_empty() && self.dropped == 0
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = QueueWriter<'a>;

    fn make_writer(&'a self) -> QueueWriter<'a> {
        QueueWriter(self)
    }
}

/// Takes each write as one line, which is how a log's records are written.
#[derive(Debug)]
pub(super) struct QueueWriter<'a>(&'a Lines);

impl Write for QueueWriter<'_> {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.0.push(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The thread's side.
struct SinkThread<S> {
    lines: Lines,
    sink: S,
    notice: fn(u64) -> String,
    /// Lost lines that the log does not tell of yet.
    untold: u64,
    /// Whether the last write broke off within a line.
    torn: bool,
}

impl<S: Write> SinkThread<S> {
    fn run(mut self) {
        loop {
            let line = self.lines.0.next();
            self.write_line(&line);
            if self.lines.0.is_done() {
                thread::sleep(NAP);
            }
        }
    }

    /// Writes a line, and before it how many are missing there.
    fn write_line(&mut self, line: &Line) {
        self.untold += line.dropped_before;
        let notice = if self.untold > 0 { (self.notice)(self.untold) } else { String::new() };
        if self.write(notice.as_bytes()).is_ok() {
            self.untold = 0;
            if self.write(&line.text).is_ok() {
                return;
            }
        }
        if !line.text.is_empty() {
            self.untold += 1;
            self.lines.0.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn write(&mut self, mut text: &[u8]) -> io::Result<()> {
        if self.torn && !text.is_empty() {
            self.sink.write_all(b"\n")?;
            self.torn = false;
        }
        while !text.is_empty() {
            match self.sink.write(text) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    text = &text[written..];
                    self.torn = !text.is_empty();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The descriptor, without the lock that the standard library puts around it: a write that waits would keep everybody else
/// from that lock, a panic's message among them. One that would not wait waits all the same.
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let stderr = io::stderr();
        loop {
            match rustix::io::write(stderr.as_fd(), text) {
                Err(rustix::io::Errno::AGAIN) => {
                    // Whatever it says, the next write says it better.
                    let _ =
                        poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], Timespec::try_from(LOOK_AGAIN).ok().as_ref());
                }
                written => return Ok(written?),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    /// Each write waits for its outcome, and hands over what it wrote.
    struct Scripted {
        outcomes: Receiver<io::Result<usize>>,
        written: SyncSender<String>,
    }

    impl Write for Scripted {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            let most = self.outcomes.recv().unwrap_or(Ok(usize::MAX))?;
            let (now, _) = text.split_at(most.min(text.len()));
            self.written.send(String::from_utf8_lossy(now).into_owned()).unwrap();
            Ok(now.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn notice(lost: u64) -> String {
        format!("({lost} lost)\n")
    }

    fn scripted() -> (Lines, SyncSender<io::Result<usize>>, Receiver<String>) {
        let (outcome, outcomes) = sync_channel(LINES_MAX * 3);
        let (written, text) = sync_channel(LINES_MAX * 3);
        (Lines::to(Scripted { outcomes, written }, notice).unwrap(), outcome, text)
    }

    /// All that is written once the script has ended.
    fn all(lines: &Lines, outcome: SyncSender<io::Result<usize>>, text: &Receiver<String>) -> String {
        drop(outcome);
        lines.flush(LIMIT);
        text.try_iter().collect()
    }

    #[test]
    fn lines_come_in_their_order() {
        let (lines, outcome, text) = scripted();
        (0..1000).for_each(|n| lines.push(format!("{n}\n").as_bytes()));
        let wanted: String = (0..1000).map(|n| format!("{n}\n")).collect();
        assert_eq!(all(&lines, outcome, &text), wanted);
        assert_eq!(lines.lost(), 0);
    }

    #[test]
    fn nobody_waits_for_one_who_does_not_read_and_what_is_missing_is_told_where_it_is() {
        let (lines, outcome, text) = scripted();
        // The thread is busy with the first, and no outcome comes: a write that blocks for ever.
        lines.push(b"first\n");
        outcome.send(Ok(usize::MAX)).unwrap();
        assert_eq!(text.recv_timeout(LIMIT).unwrap(), "first\n");
        for n in 0..LINES_MAX + 10 {
            lines.push(format!("{n}\n").as_bytes());
        }
        // One more or less, as the thread holds one or does not yet.
        let lost = lines.lost();
        assert!((9..=10).contains(&lost), "{lost}");
        lines.flush(Duration::ZERO);
        // One is read, there is room again.
        outcome.send(Ok(usize::MAX)).unwrap();
        text.recv_timeout(LIMIT).unwrap();
        outcome.send(Ok(usize::MAX)).unwrap();
        text.recv_timeout(LIMIT).unwrap();
        lines.push(b"after\n");
        let rest = all(&lines, outcome, &text);
        assert!(rest.ends_with(&format!("({lost} lost)\nafter\n")), "{}", &rest[rest.len() - 60..]);
        assert_eq!(rest.matches("lost)").count(), 1);
    }

    #[test]
    fn a_loss_is_told_even_if_nothing_follows() {
        let (lines, outcome, text) = scripted();
        lines.push(&vec![b'x'; BYTES_MAX + 1]);
        assert_eq!(all(&lines, outcome, &text), "(1 lost)\n");
        assert_eq!(lines.lost(), 1);
    }

    #[test]
    fn bytes_are_bounded_too() {
        let (lines, _outcome, _text) = scripted();
        let line = vec![b'x'; BYTES_MAX / 4];
        (0..6).for_each(|_| lines.push(&line));
        assert!((1..=2).contains(&lines.lost()), "{}", lines.lost());
    }

    #[test]
    fn a_write_that_fails_costs_its_line_and_the_next_one_tells() {
        let full = || io::Error::from_raw_os_error(28);
        let (lines, outcome, text) = scripted();
        // `one` fails; the notice before `two` fails; `three` breaks off after two bytes; then all is well.
        for result in [Err(full()), Err(full()), Ok(usize::MAX), Ok(2), Err(full())] {
            outcome.send(result).unwrap();
        }
        ["one\n", "two\n", "three\n", "four\n"].iter().for_each(|line| lines.push(line.as_bytes()));
        assert_eq!(all(&lines, outcome, &text), "(2 lost)\nth\n(1 lost)\nfour\n");
        assert_eq!(lines.lost(), 3);
    }
}
