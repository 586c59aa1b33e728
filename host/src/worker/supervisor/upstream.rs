//! A request to an engine that answers HTTP itself, under the eyes of the worker that runs it: it ends with the worker, and is
//! over when the engine works no more.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::sync::{mpsc, oneshot};

use super::super::ask::HttpAsk;
use super::super::awake::{Instant, sleep_until, timeout};
use super::super::origin::{self, Answered, NoAnswer, Origin, Outlet};
use super::super::placement::{CancelCause, HttpOutput, Output};
use super::instance::Supervised;
use crate::config::BusyProbe;
use crate::domain::{Failure, FailureKind};

/// How long after an engine's last word the end of its worker counts as the reason for it.
const DYING_LIMIT: Duration = Duration::from_secs(1);

impl Supervised {
    /// Serves one request; the last thing on `output` is its end.
    pub(super) async fn ask_engine(
        &self,
        engine: &Origin,
        ask: &HttpAsk,
        output: mpsc::Sender<Output>,
        cancelled: oneshot::Receiver<CancelCause>,
    ) {
        if let Some(reason) = self.process.gone().now_or_never() {
            // Nothing of it was sent, and a body that streams is still whole.
            let _ = output.send(Output::Http(HttpOutput::Unsent(self.exit_failure(&reason)))).await;
            return;
        }
        let until = Instant::now() + ask.time_limit;
        let outlet = Outlet { output: output.clone(), leaving: self.leaving.subscribe() };
        let asked = async {
            let answer = engine.ask(ask).await?;
            origin::forward(answer, &outlet).await
        };
        let mut asked = pin!(asked);
        let end = tokio::select! {
            biased;
            // Whoever drops the sender has left too.
            _ = cancelled => Err(NoAnswer::Broken(Failure::new(FailureKind::Cancelled, "the request was cancelled"))),
            reason = self.process.gone() => {
                let failure = self.exit_failure(&reason);
                // Its sockets close with it: what it never saw, and what it said to its end, are told from what it left half done.
                match timeout(DYING_LIMIT, asked).await {
                    Some(Ok(answered)) => Ok(answered),
                    Some(Err(NoAnswer::Unsent(_))) => Err(NoAnswer::Unsent(failure)),
                    Some(Err(NoAnswer::Broken(_))) | None => Err(NoAnswer::Broken(failure)),
                }
            }
            end = &mut asked => end,
        };
        let last = match end {
            Ok(Answered { summary, job }) => match self.busy.as_ref().filter(|_| ask.begins_work()) {
                Some(busy) => {
                    // Whoever asked may have left.
                    let _ = output.send(Output::Http(HttpOutput::Answered(summary))).await;
                    self.work_on(engine, busy, job.as_deref(), until).await;
                    Output::Done(Ok(Bytes::new()))
                }
                None => Output::Done(Ok(summary)),
            },
            Err(NoAnswer::Unsent(failure)) => Output::Http(HttpOutput::Unsent(self.or_its_death(failure).await)),
            Err(NoAnswer::Broken(failure)) => {
                let failure = self.or_its_death(failure).await;
                // One who left has left what was begun.
                if let Some(busy) = self.busy.as_ref().filter(|_| ask.begins_work()) {
                    self.work_on(engine, busy, None, until).await;
                }
                Output::Done(Err(failure))
            }
        };
        let _ = output.send(last).await;
    }

    /// Waits until the engine has done what it was asked for, and no longer than it may take.
    async fn work_on(&self, engine: &Origin, busy: &BusyProbe, job: Option<&str>, until: Instant) {
        tokio::select! {
            () = origin::until_idle(engine, busy, job) => {}
            () = sleep_until(until) => {}
            _ = self.process.gone() => {}
        }
    }

    /// Keeps the instance where it is until it is told otherwise.
    pub(super) async fn hold(&self, output: mpsc::Sender<Output>, cancelled: oneshot::Receiver<CancelCause>) {
        tokio::select! {
            _ = cancelled => {}
            _ = self.process.gone() => {}
            () = origin::wait(&output) => {}
        }
        let _ = output.send(Output::Done(Ok(Bytes::new()))).await;
    }

    /// Why the engine fell silent: its worker's end, if that comes at once, or what was seen of it.
    async fn or_its_death(&self, failure: Failure) -> Failure {
        if failure.kind != FailureKind::Unreachable {
            return failure;
        }
        match timeout(DYING_LIMIT, self.process.gone()).await {
            Some(reason) => self.exit_failure(&reason),
            None => failure,
        }
    }
}
