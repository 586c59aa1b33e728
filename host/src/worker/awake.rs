//! Time that counts only while this process ran: a host that was stopped and goes on, or whose container was, must not hold
//! against its workers what they could not say meanwhile. Every limit on a worker, and every wait of the runtime, is measured
//! here; times that are shown or kept on disk are not.
//!
//! A thread that looks at the workers ticks as long as there are any. Where a tick is late, the process stood still, and
//! what it is late by is left out.

use std::ops::{Add, Sub};
use std::time::Duration;

use parking_lot::Mutex;

/// Between two ticks.
pub(super) const TICK: Duration = Duration::from_millis(250);
/// What a tick may be late by; a pause costs a limit no more than that.
const LATE: Duration = Duration::from_millis(500);

static PAUSES: Mutex<Pauses> = Mutex::new(Pauses { last: None, lost: Duration::ZERO });

#[derive(Debug)]
struct Pauses {
    /// The last tick; nothing while nobody ticks, when no time is taken for lost.
    last: Option<std::time::Instant>,
    /// What was lost up to then.
    lost: Duration,
}

impl Pauses {
    fn lost_at(&self, now: std::time::Instant) -> Duration {
        let since = self.last.map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        self.lost + since.saturating_sub(LATE)
    }
}

/// This process runs now.
pub(super) fn tick() {
    let mut pauses = PAUSES.lock();
    let now = std::time::Instant::now();
    pauses.lost = pauses.lost_at(now);
    pauses.last = Some(now);
}

/// There will be no tick until the next one.
pub(super) fn rest() {
    tick();
    PAUSES.lock().last = None;
}

/// A moment of the time that counts. It moves with tokio's clock, so that tests can pause it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(tokio::time::Instant);

impl Instant {
    /// The moment of the call.
    pub fn now() -> Self {
        let lost = PAUSES.lock().lost_at(std::time::Instant::now());
        let now = tokio::time::Instant::now();
        Self(now.checked_sub(lost).unwrap_or(now))
    }

    /// How much of it has passed since.
    pub fn elapsed(self) -> Duration {
        Self::now() - self
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0 + duration)
    }
}

/// Nothing if it is not later.
impl Sub for Instant {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        self.0.saturating_duration_since(earlier.0)
    }
}

/// Waits until then.
pub async fn sleep_until(deadline: Instant) {
    loop {
        let left = deadline - Instant::now();
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left).await;
    }
}

/// Waits for so long.
pub async fn sleep(duration: Duration) {
    sleep_until(Instant::now() + duration).await;
}

/// What the future gives within the limit.
pub async fn timeout<T>(limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        output = future => Some(output),
        () = sleep(limit) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_tick_is_a_pause_and_no_tick_at_all_is_none() {
        let begun = std::time::Instant::now();
        let at = |ms| begun + Duration::from_millis(ms);
        let mut pauses = Pauses { last: None, lost: Duration::ZERO };
        assert_eq!(pauses.lost_at(at(60_000)), Duration::ZERO, "nobody ticks");
        pauses.last = Some(begun);
        for (now, lost) in [(250, 0), (500, 0), (600, 100), (12_500, 12_000)] {
            assert_eq!(pauses.lost_at(at(now)), Duration::from_millis(lost), "{now} ms after a tick");
        }
        pauses = Pauses { last: Some(at(12_500)), lost: pauses.lost_at(at(12_500)) };
        assert_eq!(pauses.lost_at(at(12_750)), Duration::from_secs(12), "a tick in time loses nothing more");
    }

    #[tokio::test(start_paused = true)]
    async fn without_workers_it_is_the_clock_of_all_others() {
        let (begun, other) = (Instant::now(), tokio::time::Instant::now());
        sleep(Duration::from_secs(60)).await;
        assert_eq!((begun.elapsed(), other.elapsed()), (Duration::from_secs(60), Duration::from_secs(60)));
        assert_eq!(timeout(Duration::from_secs(1), std::future::pending::<()>()).await, None);
        assert_eq!(timeout(Duration::ZERO, async { 5 }).await, Some(5));
    }
}
