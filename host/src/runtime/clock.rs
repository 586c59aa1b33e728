//! The loop's clock: milliseconds since it began, and when the scheduler wants to be woken.

use std::time::Duration;

use super::policy::milliseconds;
use crate::domain::Millis;
use crate::worker::awake::{Instant, sleep_until};

/// Tells the scheduler's time.
#[derive(Debug)]
pub(super) struct Clock {
    begun: Instant,
    wake: Option<Instant>,
}

impl Clock {
    pub(super) fn start() -> Self {
        Self { begun: Instant::now(), wake: None }
    }

    pub(super) fn now(&self) -> Millis {
        Millis(milliseconds(self.begun.elapsed()))
    }

    /// Replaces the time before. Rounded up: a timer that is a little early would find nothing due.
    pub(super) fn wake_at(&mut self, at: Millis) {
        self.wake = Some(self.begun + Duration::from_millis(at.0.saturating_add(1)));
    }

    /// The wake-up that was waited for has come.
    pub(super) fn woken(&mut self) {
        self.wake = None;
    }

    /// Resolves at the time to wake at; never, if there is none.
    pub(super) fn due(&self) -> impl Future<Output = ()> + use<> {
        let wake = self.wake;
        async move {
            match wake {
                Some(wake) => sleep_until(wake).await,
                None => std::future::pending().await,
            }
        }
    }
}
