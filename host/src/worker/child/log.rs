//! What the worker says for the log: its own words, its plugin's records, and what it and all it starts print. Cut and
//! throttled here, before the socket, so that nobody who shouts costs the host anything.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};

use super::super::limits::{LOG_LINE_BYTES, LOG_RATE, LOG_TARGET_BYTES};
use super::super::log::tells_of_failed_allocation;
use super::super::protocol::{LogRecord, OUTPUT_LEVEL};
use super::super::throttle::{Admission, Throttle, dropped_line};
use super::outbox::Outbox;
use crate::domain::excerpt;

/// The target of what the worker itself says.
const WORKER: &str = "aihost::worker";
/// Level of warnings.
const WARN: u32 = 2;
/// The level from which on records are the plugin's own matter; before it, an operator's.
const DETAIL: u32 = 4;

/// The way to the model's log.
#[derive(Debug)]
pub(super) struct Log {
    outbox: Arc<Outbox>,
    /// One for each sort, so that a loud one takes nothing of another.
    gates: Mutex<[Throttle; 3]>,
    allocation_failed: AtomicBool,
}

/// Sorts of lines.
#[derive(Clone, Copy, Debug)]
enum Sort {
    Record,
    Detail,
    Output,
}

impl Log {
    pub(super) fn new(outbox: Arc<Outbox>) -> Self {
        let now = Instant::now();
        let gates = Mutex::new(std::array::from_fn(|_| Throttle::new(LOG_RATE, now)));
        Self { outbox, gates, allocation_failed: AtomicBool::new(false) }
    }

    /// Says something of the worker's own, about a request or, with 0, in general.
    pub(super) fn say(&self, level: u32, message: &str, request: u64) {
        self.record(level, WORKER, message, &[], request);
    }

    /// Takes a record of the plugin; `fields` is a JSON object, or whatever the plugin takes for one.
    pub(super) fn record(&self, level: u32, target: &str, message: &str, fields: &[u8], request: u64) {
        let fields = String::from_utf8_lossy(&fields[..fields.len().min(LOG_LINE_BYTES + 1)]);
        let record = LogRecord {
            // Level 0 is taken.
            level: level.max(1),
            target: excerpt(target, LOG_TARGET_BYTES),
            message: excerpt(message, LOG_LINE_BYTES),
            fields: if fields == "{}" { String::new() } else { excerpt(&fields, LOG_LINE_BYTES) },
            request,
        };
        self.pass(if level < DETAIL { Sort::Record } else { Sort::Detail }, record);
    }

    /// Takes a line that was written to an output of this name.
    pub(super) fn output(&self, name: &str, line: &[u8]) {
        let line = String::from_utf8_lossy(line);
        let record = LogRecord { level: OUTPUT_LEVEL, message: excerpt(&line, LOG_LINE_BYTES), ..plain(name) };
        // The host tells an allocation that failed by this line, so the first one goes through whatever went before.
        if tells_of_failed_allocation(&line) && !self.allocation_failed.swap(true, Ordering::AcqRel) {
            self.outbox.log(record);
        } else {
            self.pass(Sort::Output, record);
        }
    }

    /// Tells of what was dropped and not told of yet. To be called now and then.
    pub(super) fn tick(&self) {
        for sort in [Sort::Record, Sort::Detail, Sort::Output] {
            let overdue = self.gates()[sort as usize].overdue(Instant::now());
            if let Some(dropped) = overdue {
                self.tell(sort, dropped);
            }
        }
    }

    fn pass(&self, sort: Sort, record: LogRecord) {
        let size = record.target.len() + record.message.len() + record.fields.len();
        let Admission::Pass { dropped } = self.gates()[sort as usize].admit(size, Instant::now()) else { return };
        // What is dropped is told of once there is room again, not each time that there is none.
        if !self.outbox.has_room_for(record.level) {
            return self.gates()[sort as usize].lost(dropped + 1);
        }
        if dropped > 0 {
            self.tell(sort, dropped);
        }
        if !self.outbox.log(record) {
            self.gates()[sort as usize].lost(1);
        }
    }

    fn tell(&self, sort: Sort, dropped: u64) {
        let what = match sort {
            Sort::Record | Sort::Detail => "log records",
            Sort::Output => "standard output and error",
        };
        let message = format!("{what}: {}", dropped_line(dropped));
        if !self.outbox.log(LogRecord { level: WARN, message, ..plain(WORKER) }) {
            self.gates()[sort as usize].lost(dropped);
        }
    }

    fn gates(&self) -> MutexGuard<'_, [Throttle; 3]> {
        self.gates.lock()
    }
}

fn plain(target: &str) -> LogRecord {
    LogRecord { level: WARN, target: target.to_owned(), message: String::new(), fields: String::new(), request: 0 }
}

#[cfg(test)]
mod tests {
    use super::super::outbox::tests::written;
    use super::*;
    use crate::worker::protocol::ToHost;

    fn records(outbox: &Outbox) -> Vec<LogRecord> {
        let log = |message| match message {
            ToHost::Log(record) => record,
            other => panic!("{other:?}"),
        };
        written(outbox).into_iter().map(log).collect()
    }

    #[test]
    fn a_flood_of_one_sort_is_counted_and_the_others_pass() {
        let outbox = Arc::<Outbox>::default();
        let log = Log::new(Arc::clone(&outbox));
        for _ in 0..5000 {
            log.output("stdout", b"noise");
            log.record(5, "t", "detail", b"{}", 0);
        }
        log.record(1, "t", "it matters", b"{\"n\":1}", 7);
        let records = records(&outbox);
        let passed = |message| records.iter().filter(|record| record.message == message).count();
        assert!((100..600).contains(&passed("noise")), "{} lines of a flood passed", passed("noise"));
        assert!((100..600).contains(&passed("detail")), "{} details of a flood passed", passed("detail"));
        let matters = records.iter().find(|record| record.message == "it matters").unwrap();
        assert_eq!((matters.level, matters.fields.as_str(), matters.request), (1, "{\"n\":1}", 7));
    }

    #[test]
    fn what_was_dropped_is_told_and_a_failed_allocation_is_not_dropped() {
        let outbox = Arc::<Outbox>::default();
        let log = Log::new(Arc::clone(&outbox));
        let line = vec![b'x'; LOG_LINE_BYTES];
        (0..1000).for_each(|_| log.output("stderr", &line));
        log.output("stderr", b"memory allocation of 5 bytes failed");
        let records = records(&outbox);
        let passed = records.iter().filter(|record| record.message.starts_with("xx")).count();
        assert!(passed < 200, "{passed} lines of 4 KiB");
        assert!(records.iter().any(|record| record.message.starts_with("memory allocation of 5")));
        log.gates()[Sort::Output as usize] = Throttle::new(LOG_RATE, Instant::now());
        log.gates()[Sort::Output as usize].lost(800);
        log.tick();
        let told = self::records(&outbox);
        assert!(told[0].message.contains("800 lines dropped"), "{told:?}");
    }

    #[test]
    fn records_are_cut_whatever_they_are_made_of() {
        let outbox = Arc::<Outbox>::default();
        let log = Log::new(Arc::clone(&outbox));
        let huge = "\u{1b}".repeat(1 << 20);
        log.record(0, &huge, &huge, huge.as_bytes(), 0);
        let record = &records(&outbox)[0];
        assert!(record.target.len() <= LOG_TARGET_BYTES && record.message.len() <= LOG_LINE_BYTES);
        assert!(record.fields.len() <= LOG_LINE_BYTES && record.level == 1);
        assert!(!record.message.contains('\u{1b}'), "it steers a terminal");
    }
}
