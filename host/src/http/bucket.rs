//! A token bucket: how often something may happen, and how the rest of it is told to clients. Pure but for the time it is told.

use std::fmt;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue};
use tokio::time::Instant;

use crate::config::Rate;

/// What a rate leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RateLeft {
    limit: u32,
    remaining: u32,
    /// Until all of it is there again.
    reset: Duration,
}

/// A token bucket, kept as the time at which it is full again (the generic cell rate algorithm).
#[derive(Debug, Default)]
pub(super) struct Bucket {
    full_at: Option<Instant>,
    rate: Option<Rate>,
}

impl Bucket {
    /// Takes one, or says how long it takes until there is one. A bucket of another rate than before is full.
    pub(super) fn take(&mut self, rate: Rate, now: Instant) -> Result<RateLeft, (Duration, RateLeft)> {
        let full_at = self.full_at(rate, now);
        let each = rate.per / rate.requests;
        let then = full_at + each;
        // Not `per`, which it may not divide: a burst is of so many requests and not one more.
        match (then - now).checked_sub(each * rate.requests) {
            Some(wait) if !wait.is_zero() => Err((wait, RateLeft::of(rate, full_at - now))),
            _ => {
                self.full_at = Some(then);
                Ok(RateLeft::of(rate, then - now))
            }
        }
    }

    /// What there is, and none of it is taken.
    pub(super) fn left(&mut self, rate: Rate, now: Instant) -> RateLeft {
        RateLeft::of(rate, self.full_at(rate, now) - now)
    }

    /// When all of it is there again, at this rate.
    fn full_at(&mut self, rate: Rate, now: Instant) -> Instant {
        if self.rate != Some(rate) {
            *self = Self { full_at: None, rate: Some(rate) };
        }
        self.full_at.map_or(now, |at| at.max(now))
    }

    /// Whether it is as good as new.
    pub(super) fn is_full(&self, now: Instant) -> bool {
        self.full_at.is_none_or(|at| at <= now)
    }
}

impl fmt::Display for RateLeft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} may come at once, and all of them again in {}", self.limit, shown(self.reset))
    }
}

impl RateLeft {
    /// What is there of a rate that is whole again in `reset`.
    fn of(Rate { requests, per }: Rate, reset: Duration) -> Self {
        let each = per / requests;
        let remaining = (each * requests).saturating_sub(reset).as_nanos() / each.as_nanos().max(1);
        Self { limit: requests, remaining: u32::try_from(remaining).unwrap_or(requests), reset }
    }

    /// Says it as OpenAI does.
    pub(super) fn tell(self, headers: &mut HeaderMap) {
        headers.insert("x-ratelimit-limit-requests", self.limit.into());
        headers.insert("x-ratelimit-remaining-requests", self.remaining.into());
        if let Ok(reset) = HeaderValue::try_from(shown(self.reset)) {
            headers.insert("x-ratelimit-reset-requests", reset);
        }
    }
}

/// `6m0s`, `1s`, `120ms`, rounded up: who waits so long waits long enough.
fn shown(duration: Duration) -> String {
    let milliseconds = duration.as_nanos().div_ceil(1_000_000);
    if milliseconds < 1000 {
        return format!("{milliseconds}ms");
    }
    let seconds = milliseconds.div_ceil(1000);
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds}s"),
        (0, minutes, seconds) => format!("{minutes}m{seconds}s"),
        (hours, minutes, seconds) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { requests: 3, per: Duration::from_secs(60) };

    #[test]
    fn a_bucket_gives_a_burst_and_then_one_at_a_time() {
        let (mut bucket, now) = (Bucket::default(), Instant::now());
        let at = |seconds| now + Duration::from_secs(seconds);
        let mut take = |seconds| {
            let taken = bucket.take(RATE, at(seconds));
            taken.map(|left| (left.remaining, left.reset.as_secs())).map_err(|(wait, left)| {
                assert_eq!(left.remaining, 0);
                wait.as_secs()
            })
        };
        assert_eq!([take(0), take(0), take(0)], [Ok((2, 20)), Ok((1, 40)), Ok((0, 60))]);
        assert_eq!([take(0), take(0), take(5)], [Err(20), Err(20), Err(15)]);
        assert_eq!([take(20), take(20)], [Ok((0, 60)), Err(20)]);
        // However long nobody asked, a burst is no larger.
        assert_eq!([take(9000), take(9000), take(9000), take(9000)], [Ok((2, 20)), Ok((1, 40)), Ok((0, 60)), Err(20)]);
    }

    #[test]
    fn a_rate_that_does_not_divide_its_time_still_gives_all_of_it() {
        for requests in [1, 7, 60, 999_983, 1_000_000] {
            for per in [1, 60, 86_400].map(Duration::from_secs) {
                let (mut bucket, now) = (Bucket::default(), Instant::now());
                let rate = Rate { requests, per };
                let tried = requests.min(100);
                // The last of a burst, without taking all before them.
                bucket.rate = Some(rate);
                bucket.full_at = Some(now + per / requests * (requests - tried));
                for number in 1..=tried {
                    let left = bucket.take(rate, now).unwrap_or_else(|_| panic!("{rate:?}: {number}"));
                    assert_eq!(left.remaining, tried - number, "{rate:?}");
                }
                let (wait, _) = bucket.take(rate, now).expect_err("it is empty");
                assert!(!wait.is_zero() && wait <= per, "{rate:?}: {wait:?}");
            }
        }
    }

    #[test]
    fn another_rate_begins_anew() {
        let (mut bucket, now) = (Bucket::default(), Instant::now());
        let once = Rate { requests: 1, ..RATE };
        assert!(bucket.take(once, now).is_ok() && bucket.take(once, now).is_err());
        assert!(bucket.take(RATE, now).is_ok());
    }

    #[test]
    fn times_are_written_as_openai_writes_them() {
        for (milliseconds, text) in [
            (0, "0ms"),
            (120, "120ms"),
            (1000, "1s"),
            (1001, "2s"),
            (60_000, "1m0s"),
            (360_000, "6m0s"),
            (3_661_000, "1h1m1s"),
            (86_400_000, "24h0m0s"),
        ] {
            assert_eq!(shown(Duration::from_millis(milliseconds)), text);
        }
        assert_eq!(shown(Duration::from_nanos(1)), "1ms");
    }
}
