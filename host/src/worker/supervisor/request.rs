//! One request on a worker: its events to whoever reads them, its cancel, and the clock that runs while it shows nothing.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::super::awake::{Instant, sleep_until, timeout};
use super::super::limits::CREDIT_STEP_BYTES;
use super::super::placement::{ExitReason, Output, OutputLimits};
use super::super::protocol::{Loading, ToWorker};
use super::failure;
use super::instance::Shared;
use super::link::{Inbound, Incoming};
use crate::domain::{Failure, FailureKind};

impl Shared {
    /// Serves one request; the last thing on `output` is its end.
    pub(super) async fn generate(
        &self,
        request: u64,
        task: Bytes,
        output: mpsc::Sender<Output>,
        cancelled: CancellationToken,
    ) {
        let Some(mut incoming) = self.link.open(request) else {
            let reason = self.process.gone().await;
            return done(&output, Err(failure::of_exit(&self.model, &reason))).await;
        };
        self.link.send(&ToWorker::Generate(request, task)).await;
        let mut passed_on = 0;
        let mut clock = Clock::start(self.output_limits);
        loop {
            let next = tokio::select! {
                biased;
                () = output.closed() => return self.cancel(request, &mut incoming, "a cancelled request").await,
                () = cancelled.cancelled() => {
                    self.cancel(request, &mut incoming, "a cancelled request").await;
                    return done(&output, Err(Failure::new(FailureKind::Cancelled, "the request was cancelled"))).await;
                }
                Ok(()) = incoming.progress.changed() => {
                    let Loading { done, total } = *incoming.progress.borrow_and_update();
                    clock.sign_of_life();
                    // A reader who is behind does without: another one follows, or the end.
                    let _ = output.try_send(Output::Progress { done, total });
                    continue;
                }
                next = incoming.inbound.recv() => next,
                () = sleep_until(clock.until) => {
                    self.cancel(request, &mut incoming, "generate").await;
                    return done(&output, Err(clock.overrun())).await;
                }
            };
            match next {
                Some(Inbound::Event(event, cost)) => {
                    if let Some(event) = event
                        && output.send(event).await.is_err()
                    {
                        return self.cancel(request, &mut incoming, "a cancelled request").await;
                    }
                    // Only now, so that the time it took the reader to read is not the plugin's.
                    clock.sign_of_life();
                    incoming.passed_on(cost);
                    passed_on += cost;
                    if passed_on >= CREDIT_STEP_BYTES {
                        self.link.send(&ToWorker::Credit(request, std::mem::take(&mut passed_on))).await;
                    }
                }
                Some(Inbound::End(Ok(summary))) => return done(&output, Ok(summary)).await,
                Some(Inbound::End(Err(error))) => return done(&output, Err(self.plugin_failed(error))).await,
                None => {
                    let reason = self.process.gone().await;
                    return done(&output, Err(failure::of_exit(&self.model, &reason))).await;
                }
            }
        }
    }

    /// Tells the worker and waits until the request has ended; one that goes on for too long costs the worker.
    async fn cancel(&self, request: u64, incoming: &mut Incoming, doing: &str) {
        self.link.send(&ToWorker::Cancel(request)).await;
        let end = async {
            loop {
                match incoming.inbound.recv().await {
                    Some(Inbound::Event(_, cost)) => incoming.passed_on(cost),
                    Some(Inbound::End(end)) => return Some(end),
                    None => return None,
                }
            }
        };
        match timeout(self.limits.cancel_grace, end).await {
            Some(None) => {}
            Some(Some(Ok(summary))) => {
                let summary = String::from_utf8_lossy(&summary);
                tracing::debug!(target: "worker", model = %self.model, request, "a cancelled request ended: {summary}");
            }
            Some(Some(Err(error))) => {
                if let Some(reason) = failure::condemns(&error) {
                    self.process.kill(reason);
                }
            }
            None => self.process.kill(ExitReason::Stalled(doing.to_owned())),
        }
    }
}

/// Runs while a request shows nothing.
struct Clock {
    limits: OutputLimits,
    shown: bool,
    until: Instant,
}

impl Clock {
    fn start(limits: OutputLimits) -> Self {
        Self { limits, shown: false, until: Instant::now() + limits.first }
    }

    fn sign_of_life(&mut self) {
        self.shown = true;
        self.until = Instant::now() + self.limits.stall;
    }

    fn overrun(&self) -> Failure {
        let seconds = |limit: Duration| limit.as_secs_f32();
        let message = match self.shown {
            false => format!(
                "the model showed nothing for {} s (`limits: first_output_timeout:`)",
                seconds(self.limits.first)
            ),
            true => format!(
                "the model stopped half-way and showed nothing more for {} s (`limits: output_stall_timeout:`)",
                seconds(self.limits.stall)
            ),
        };
        Failure::new(FailureKind::TimedOut, message)
    }
}

async fn done(output: &mpsc::Sender<Output>, result: Result<Bytes, Failure>) {
    // Whoever asked may have left.
    let _ = output.send(Output::Done(result)).await;
}
