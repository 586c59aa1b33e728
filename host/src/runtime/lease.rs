//! One granted request: carries its outputs to the client, and keeps the lease until the plugin's `generate` has returned.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::api::Delivery;
use super::meter::Metered;
use crate::domain::{Failure, FailureKind, RequestId};
use crate::worker::awake::{Instant, sleep_until, timeout};
use crate::worker::{Instance, Output};

/// How long a lease may run, how long its client may not read, and when it is told.
#[derive(Clone, Copy, Debug)]
pub(super) struct LeaseTerms {
    pub(super) request_timeout: Duration,
    pub(super) stall_timeout: Duration,
    pub(super) delivery: Delivery,
}

/// Bytes of an answer that are held back until all of it is there; beyond that it is passed on as it comes.
const GATHERED_BYTES_MAX: usize = 256 << 20;

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
    terms: LeaseTerms,
) -> Ended {
    let deadline = Instant::now() + terms.request_timeout;
    let mut client = Some(client);
    let mut untouched = true;
    // What is not told before all of it is there.
    let mut held = Vec::new();
    let mut held_bytes = 0;
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
                let seconds = terms.request_timeout.as_secs();
                let failure = Failure::new(FailureKind::TimedOut, format!("the request ran longer than {seconds} s (`limits: request_timeout:`)"));
                tell(client.take(), Output::Done(Err(failure)), terms.stall_timeout).await;
                continue;
            }
        };
        match (output, client.as_ref()) {
            (Output::Done(Err(failure)), Some(waiting)) if untouched && failure.kind == FailureKind::WorkerDied => {
                return Ended::Lost(waiting.clone(), failure);
            }
            (Output::Progress { done, total }, client) => {
                // Not part of the answer: a request that only told how far it is can be tried again, and a client who is
                // behind does without.
                if let Some(client) = client {
                    let _ = client.try_send(Output::Progress { done, total });
                }
            }
            (output, _) => {
                let done = matches!(output, Output::Done(_));
                held_bytes += size(&output);
                held.push(output);
                if !done && terms.delivery == Delivery::Gathered && held_bytes <= GATHERED_BYTES_MAX {
                    continue;
                }
                untouched = false;
                for output in held.drain(..) {
                    if !tell(client.clone(), output, terms.stall_timeout).await && client.take().is_some() && !done {
                        outputs.cut(FailureKind::Cancelled);
                        instance.cancel(request);
                    }
                }
                if done {
                    outputs.end();
                    return Ended::Answered;
                }
            }
        }
    }
}

fn size(output: &Output) -> usize {
    match output {
        Output::Event(bytes) | Output::Bytes(bytes) => bytes.len(),
        Output::Progress { .. } | Output::Done(_) => 0,
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
    timeout(stall, client.send(output)).await.is_some_and(|sent| sent.is_ok())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::future::BoxFuture;

    use super::*;
    use crate::worker::Loaded;

    /// Does nothing; its outputs are handed to `carry` by the test.
    #[derive(Debug)]
    struct Still;

    impl Instance for Still {
        fn load(&self, _granted: u64, _deadline: Duration) -> BoxFuture<'static, Result<Loaded, Failure>> {
            Box::pin(async { Ok(Loaded::default()) })
        }

        fn generate(&self, _request: RequestId, _task: Bytes) -> mpsc::Receiver<Output> {
            mpsc::channel(1).1
        }

        fn cancel(&self, _request: RequestId) {}

        fn progress(&self) -> Option<u32> {
            None
        }

        fn stop(&self, _grace: Duration) -> BoxFuture<'static, ()> {
            Box::pin(async {})
        }

        fn pid(&self) -> Option<u32> {
            None
        }
    }

    /// Whether a worker that sent this and died leaves its request to be tried again.
    async fn is_lost_after(output: Output) -> bool {
        let (sender, outputs) = mpsc::channel(4);
        let (client, mut received) = mpsc::channel(4);
        sender.send(output).await.unwrap();
        sender.send(Output::Done(Err(silent()))).await.unwrap();
        let hour = Duration::from_secs(3600);
        let terms = LeaseTerms { request_timeout: hour, stall_timeout: hour, delivery: Delivery::Streamed };
        let ended = carry(RequestId(1), Arc::new(Still), Metered::new(outputs, None), client, terms).await;
        assert!(received.try_recv().is_ok(), "the client was not told");
        matches!(ended, Ended::Lost(..))
    }

    #[tokio::test]
    async fn progress_is_no_part_of_the_answer_but_bytes_are() {
        assert!(is_lost_after(Output::Progress { done: 1, total: 2 }).await);
        assert!(!is_lost_after(Output::Bytes(Bytes::from_static(b"pcm"))).await);
        assert!(!is_lost_after(Output::Event(Bytes::from_static(b"{}"))).await);
    }
}
