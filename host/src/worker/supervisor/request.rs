//! One request on a worker: its frames become outputs, and its cancel becomes a frame. Its clocks are the runtime's; only
//! the grace of a cancelled one is counted here.

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::super::ask::{Ask, misdirected};
use super::super::awake::timeout;
use super::super::limits::CREDIT_STEP_BYTES;
use super::super::placement::{CancelCause, ExitReason, Output};
use super::super::protocol::{Loading, ToWorker};
use super::failure;
use super::instance::Supervised;
use super::socket::{Inbound, Incoming};
use crate::domain::{Failure, FailureKind};

impl Supervised {
    /// Serves one request; the last thing on `output` is its end.
    pub(super) async fn generate(
        &self,
        request: u64,
        ask: Ask,
        output: mpsc::Sender<Output>,
        mut cancelled: oneshot::Receiver<CancelCause>,
    ) {
        let task = match (ask, self.socket.engine()) {
            (Ask::Hold, _) => return self.hold(output, cancelled).await,
            (Ask::Http(ask), Some(engine)) => return self.ask_engine(&engine, &ask, output, cancelled).await,
            (Ask::Task(task), None) => task,
            // The plugin was replaced meanwhile by one of another kind.
            (Ask::Http(_), None) | (Ask::Task(_), Some(_)) => return done(&output, Err(misdirected())).await,
        };
        let Some(mut incoming) = self.socket.open(request) else {
            let reason = self.process.gone().await;
            return done(&output, Err(self.exit_failure(&reason))).await;
        };
        self.socket.send(&ToWorker::Generate(request, task)).await;
        let mut passed_on = 0;
        loop {
            let next = tokio::select! {
                biased;
                // Whoever drops the sender has left too.
                cause = &mut cancelled => {
                    let cause = cause.unwrap_or(CancelCause::ClientLeft);
                    self.cancel(request, &mut incoming, cause).await;
                    return done(&output, Err(Failure::new(FailureKind::Cancelled, "the request was cancelled"))).await;
                }
                Ok(()) = incoming.progress.changed() => {
                    let _read = tell_progress(&mut incoming, &output);
                    continue;
                }
                next = incoming.inbound.recv() => next,
            };
            match next {
                Some(Inbound::Event(event, cost)) => {
                    let taken = match event {
                        Some(event) => output.send(event).await.is_ok(),
                        // Of a kind that this host does not know: a sign of life all the same.
                        None => tell_progress(&mut incoming, &output),
                    };
                    if !taken {
                        return self.cancel(request, &mut incoming, CancelCause::ClientLeft).await;
                    }
                    incoming.passed_on(cost);
                    passed_on += cost;
                    if passed_on >= CREDIT_STEP_BYTES {
                        self.socket.send(&ToWorker::Credit(request, std::mem::take(&mut passed_on))).await;
                    }
                }
                Some(Inbound::End(Ok(summary))) => return done(&output, Ok(summary)).await,
                Some(Inbound::End(Err(error))) => {
                    return done(&output, Err(failure::of_request(self.plugin_failed(error)))).await;
                }
                None => {
                    let reason = self.process.gone().await;
                    return done(&output, Err(self.exit_failure(&reason))).await;
                }
            }
        }
    }

    /// Tells the worker and waits until the request has ended; one that goes on for too long costs the worker.
    async fn cancel(&self, request: u64, incoming: &mut Incoming, cause: CancelCause) {
        let doing = match cause {
            CancelCause::ClientLeft | CancelCause::Overdue => "a cancelled request",
            CancelCause::Silent => "generate",
        };
        self.socket.send(&ToWorker::Cancel(request)).await;
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

/// Says how far it is; whether anybody reads. A reader who is behind does without: another one follows, or the end.
fn tell_progress(incoming: &mut Incoming, output: &mpsc::Sender<Output>) -> bool {
    let Loading { done, total } = *incoming.progress.borrow_and_update();
    output.try_send(Output::Progress { done, total }).is_ok() || !output.is_closed()
}

async fn done(output: &mpsc::Sender<Output>, result: Result<Bytes, Failure>) {
    // Whoever asked may have left.
    let _ = output.send(Output::Done(result)).await;
}
