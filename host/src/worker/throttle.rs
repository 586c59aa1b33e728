//! How much of what others write is passed on: so many lines and bytes a second, a burst at first, and a count of the rest.
//! Pure but for the time it is told.

use std::time::{Duration, Instant};

/// Thousandths, in which parts of a line or byte are counted.
const PARTS: u64 = 1000;

/// Lines and bytes that may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rate {
    /// Lines a second.
    pub(super) lines: u64,
    /// Bytes a second.
    pub(super) bytes: u64,
    /// Seconds' worth that may pass at once after a silence.
    pub(super) burst_s: u64,
}

/// A token bucket over lines and bytes.
#[derive(Debug)]
pub(super) struct Throttle {
    rate: Rate,
    /// Thousandths of lines and of bytes that may pass now.
    lines: u64,
    bytes: u64,
    refilled: Instant,
    dropped: u64,
}

/// Whether a line may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// It may, and so many before it did not.
    Pass { dropped: u64 },
    /// It may not, and is counted.
    Drop,
}

impl Throttle {
    pub(super) fn new(rate: Rate, now: Instant) -> Self {
        let full = rate.burst_s * PARTS;
        Self { rate, lines: rate.lines * full, bytes: rate.bytes * full, refilled: now, dropped: 0 }
    }

    /// Asks for a line of so many bytes.
    pub(super) fn admit(&mut self, bytes: usize, now: Instant) -> Admission {
        self.refill(now);
        let bytes = (bytes as u64).saturating_mul(PARTS);
        if self.lines < PARTS || self.bytes < bytes {
            self.dropped += 1;
            return Admission::Drop;
        }
        self.lines -= PARTS;
        self.bytes -= bytes;
        Admission::Pass { dropped: std::mem::take(&mut self.dropped) }
    }

    /// Lines that were dropped and not told of, once there is room for a line that tells.
    pub(super) fn overdue(&mut self, now: Instant) -> Option<u64> {
        self.refill(now);
        if self.dropped == 0 || self.lines < PARTS {
            return None;
        }
        self.lines -= PARTS;
        Some(std::mem::take(&mut self.dropped))
    }

    /// A line that was admitted could not be passed on after all.
    pub(super) fn lost(&mut self, lines: u64) {
        self.dropped += lines;
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.refilled);
        // Whole milliseconds, so that nothing is lost by asking often.
        let Ok(passed_ms) = u64::try_from(passed.as_millis()) else { return };
        self.refilled += Duration::from_millis(passed_ms);
        let Rate { lines, bytes, burst_s } = self.rate;
        let add = |have: u64, per_second: u64| {
            have.saturating_add(per_second.saturating_mul(passed_ms)).min(per_second * burst_s * PARTS)
        };
        (self.lines, self.bytes) = (add(self.lines, lines), add(self.bytes, bytes));
    }
}

/// What is said in the place of lines that did not pass.
pub(super) fn dropped_line(count: u64) -> String {
    let lines = if count == 1 { "line" } else { "lines" };
    format!("{count} {lines} dropped: there were more than its log takes")
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { lines: 10, bytes: 1000, burst_s: 2 };

    #[test]
    fn a_burst_passes_then_the_rate_and_the_rest_is_counted() {
        let begun = Instant::now();
        let at = |ms| begun + Duration::from_millis(ms);
        let mut throttle = Throttle::new(RATE, begun);
        let passed = |throttle: &mut Throttle, bytes, ms| {
            (0..1000).filter(|_| throttle.admit(bytes, at(ms)) != Admission::Drop).count()
        };
        assert_eq!(passed(&mut throttle, 10, 0), 20, "the burst in lines");
        assert_eq!(throttle.admit(10, at(99)), Admission::Drop);
        assert_eq!(throttle.admit(10, at(100)), Admission::Pass { dropped: 981 });
        assert_eq!(passed(&mut throttle, 10, 1100), 10, "a second's");
        assert_eq!(passed(&mut throttle, 500, 100_000), 4, "the burst in bytes");
        assert_eq!(throttle.admit(usize::MAX, at(1_000_000)), Admission::Drop, "larger than any burst");
    }

    #[test]
    fn what_was_dropped_is_told_of_once() {
        let begun = Instant::now();
        let mut throttle = Throttle::new(RATE, begun);
        assert_eq!(throttle.overdue(begun), None);
        assert_eq!((0..23).filter(|_| throttle.admit(1, begun) == Admission::Drop).count(), 3);
        assert_eq!(throttle.overdue(begun), None, "there is no room to tell");
        let later = begun + Duration::from_secs(1);
        assert_eq!((throttle.overdue(later), throttle.overdue(later)), (Some(3), None));
        throttle.lost(2);
        assert_eq!(throttle.admit(1, later), Admission::Pass { dropped: 2 });
    }

    #[test]
    fn asking_often_loses_no_part_of_a_line() {
        let begun = Instant::now();
        let mut throttle = Throttle::new(RATE, begun);
        while throttle.admit(0, begun) != Admission::Drop {}
        // Half a millisecond at a time.
        let asked =
            (1..=2000).filter(|n| throttle.admit(0, begun + Duration::from_micros(500) * *n) != Admission::Drop);
        assert_eq!(asked.count(), 10);
    }
}
