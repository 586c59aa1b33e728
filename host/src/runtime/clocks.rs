//! The clocks of one request, all of them: how long it may run, how long its worker may show nothing, how long its client
//! may not read. They count only while this process was awake.

use std::time::Duration;

use super::api::OutputMode;
use crate::domain::{Failure, FailureKind};
use crate::worker::awake::{Instant, sleep_until};

/// What a lease is held to.
#[derive(Clone, Copy, Debug)]
pub struct LeaseTerms {
    /// From the grant to the end (`request_timeout`).
    pub request_timeout: Duration,
    /// How long its client may leave an output unread (`stream_stall_timeout`).
    pub stall_timeout: Duration,
    /// How long its worker may show nothing.
    pub output: OutputLimits,
    /// When its client is told.
    pub delivery: OutputMode,
}

/// How long a request may show nothing, neither an event nor progress. Overrun, it is cancelled and fails; if it does not
/// even end then, its worker is killed. Time in which its client does not read is not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutputLimits {
    /// Before anything was shown (`first_output_timeout`).
    pub first: Duration,
    /// After that (`output_stall_timeout`).
    pub stall: Duration,
}

/// The clocks that run while a request is served.
pub(super) struct Clocks {
    terms: LeaseTerms,
    deadline: Instant,
    shown: bool,
    silent_until: Instant,
}

impl Clocks {
    /// The request has its lease.
    pub(super) fn start(terms: LeaseTerms) -> Self {
        let now = Instant::now();
        Self { terms, deadline: now + terms.request_timeout, shown: false, silent_until: now + terms.output.first }
    }

    /// Its worker was asked only now.
    pub(super) fn worker_asked(&mut self) {
        self.silent_until = Instant::now() + self.terms.output.first;
    }

    /// Its worker showed something, and its client has it: the time that took is not the plugin's.
    pub(super) fn sign_of_life(&mut self) {
        self.shown = true;
        self.silent_until = Instant::now() + self.terms.output.stall;
    }

    /// Resolves when it has run for too long.
    pub(super) async fn overdue(&self) -> Failure {
        sleep_until(self.deadline).await;
        let seconds = self.terms.request_timeout.as_secs();
        let message = format!("the request ran longer than {seconds} s");
        Failure::new(FailureKind::TimedOut, format!("{message} (`limits: request_timeout:`)")).for_clients(message)
    }

    /// Resolves when it has shown nothing for too long.
    pub(super) async fn silent(&self) -> Failure {
        sleep_until(self.silent_until).await;
        let OutputLimits { first, stall } = self.terms.output;
        let (message, limit) = match self.shown {
            false => (format!("the model showed nothing for {} s", first.as_secs_f32()), "first_output_timeout"),
            true => (
                format!("the model stopped half-way and showed nothing more for {} s", stall.as_secs_f32()),
                "output_stall_timeout",
            ),
        };
        Failure::new(FailureKind::TimedOut, format!("{message} (`limits: {limit}:`)")).for_clients(message)
    }
}
