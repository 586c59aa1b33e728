//! One granted request: carries its outputs to the client, and keeps the lease until the plugin's `generate` has returned.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::meter::Metered;
use crate::domain::{Failure, FailureKind, RequestId};
use crate::worker::{Instance, Output};

/// How long a lease may run, and how long its client may not read.
#[derive(Clone, Copy, Debug)]
pub(super) struct LeaseLimits {
    pub(super) request_timeout: Duration,
    pub(super) stall_timeout: Duration,
}

/// How a lease ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// The client has its answer, or left.
    Answered,
    /// The worker died before it had sent anything: the client still waits behind this sender.
    Lost(mpsc::Sender<Output>, Failure),
}

/// Serves until the instance says it is done. The client leaving, stalling or running out of time cancels, but does not
/// end the lease: only the instance does.
pub(super) async fn carry(
    request: RequestId,
    instance: Arc<dyn Instance>,
    mut outputs: Metered,
    client: mpsc::Sender<Output>,
    limits: LeaseLimits,
) -> Ended {
    let deadline = Instant::now() + limits.request_timeout;
    let mut client = Some(client);
    let mut untouched = true;
    loop {
        let output = tokio::select! {
            output = outputs.recv() => output.unwrap_or_else(|| Output::Done(Err(silent()))),
            () = left(client.as_ref()) => {
                client = None;
                outputs.cut(FailureKind::Cancelled);
                instance.cancel(request);
                continue;
            }
            () = sleep_until(deadline), if client.is_some() => {
                outputs.cut(FailureKind::TimedOut);
                instance.cancel(request);
                let seconds = limits.request_timeout.as_secs();
                let failure = Failure::new(FailureKind::TimedOut, format!("the request ran longer than {seconds} s (`limits: request_timeout:`)"));
                tell(client.take(), Output::Done(Err(failure)), limits.stall_timeout).await;
                continue;
            }
        };
        match (output, client.as_ref()) {
            (Output::Done(Err(failure)), Some(waiting)) if untouched && failure.kind == FailureKind::WorkerDied => {
                return Ended::Lost(waiting.clone(), failure);
            }
            (output, _) => {
                untouched = false;
                let done = matches!(output, Output::Done(_));
                if !tell(client.clone(), output, limits.stall_timeout).await && client.take().is_some() && !done {
                    outputs.cut(FailureKind::Cancelled);
                    instance.cancel(request);
                }
                if done {
                    outputs.end();
                    return Ended::Answered;
                }
            }
        }
    }
}

fn silent() -> Failure {
    Failure::new(FailureKind::WorkerDied, "the model's worker ended without an answer")
}

/// Resolves when the client's receiver is gone; never, once that is known.
async fn left(client: Option<&mpsc::Sender<Output>>) {
    match client {
        Some(client) => client.closed().await,
        None => std::future::pending().await,
    }
}

/// Whether the client took it in time.
async fn tell(client: Option<mpsc::Sender<Output>>, output: Output, stall: Duration) -> bool {
    let Some(client) = client else { return false };
    timeout(stall, client.send(output)).await.is_ok_and(|sent| sent.is_ok())
}
