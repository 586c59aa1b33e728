//! One instance in a worker, as the runtime sees it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::super::limits::{CREDIT_STEP_BYTES, OUTPUT_QUEUE, WorkerLimits};
use super::super::placement::{ExitReason, Instance, Loaded, Output};
use super::super::protocol::{Loading, PluginError, ToWorker};
use super::failure;
use super::link::{Inbound, Incoming, Link};
use super::log::Log;
use super::process::Process;
use super::step::Step;
use crate::domain::{Failure, FailureKind, ModelId, RequestId};

/// What the tasks of one worker share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) model: ModelId,
    pub(super) process: Process,
    pub(super) link: Link,
    pub(super) log: Arc<Log>,
    pub(super) limits: WorkerLimits,
    /// Held through a step: the worker does them one at a time, and answers carry no number.
    pub(super) turn: tokio::sync::Mutex<()>,
    /// How each open request is cancelled.
    pub(super) cancels: Mutex<HashMap<u64, CancellationToken>>,
}

/// The handle. Dropping it kills the worker.
#[derive(Debug)]
pub(super) struct WorkerInstance {
    pub(super) shared: Arc<Shared>,
    pub(super) runtime: Handle,
}

impl Drop for WorkerInstance {
    fn drop(&mut self) {
        self.shared.process.kill(ExitReason::Asked);
    }
}

impl Instance for WorkerInstance {
    fn load(&self, granted: u64, deadline: Duration) -> BoxFuture<'static, Result<Loaded, Failure>> {
        self.step(Step::load(granted, deadline, &self.shared.limits), |used| Loaded { used })
    }

    fn park(&self) -> BoxFuture<'static, Result<(), Failure>> {
        self.step(Step::park(&self.shared.limits), |_| ())
    }

    fn unpark(&self) -> BoxFuture<'static, Result<Loaded, Failure>> {
        self.step(Step::unpark(&self.shared.limits), |used| Loaded { used })
    }

    fn health(&self) -> BoxFuture<'static, Result<(), Failure>> {
        self.step(Step::health(&self.shared.limits), |_| ())
    }

    fn cost(&self, task: Bytes) -> BoxFuture<'static, Result<u64, Failure>> {
        self.step(Step::cost(task, &self.shared.limits), |bytes| bytes)
    }

    fn generate(&self, request: RequestId, task: Bytes) -> mpsc::Receiver<Output> {
        let (sender, receiver) = mpsc::channel(OUTPUT_QUEUE);
        let shared = Arc::clone(&self.shared);
        let cancel = CancellationToken::new();
        self.shared.cancels().insert(request.0, cancel.clone());
        self.runtime.spawn(async move {
            shared.generate(request.0, task, sender, cancel).await;
            shared.cancels().remove(&request.0);
        });
        receiver
    }

    fn cancel(&self, request: RequestId) {
        if let Some(cancel) = self.shared.cancels().get(&request.0) {
            cancel.cancel();
        }
    }

    fn progress(&self) -> Option<u32> {
        let loading = *self.shared.link.progress().borrow();
        let thousandths = (u128::from(loading.done) * 1000).checked_div(u128::from(loading.total))?;
        Some(thousandths.min(1000) as u32)
    }

    fn stop(&self, grace: Duration) -> BoxFuture<'static, ()> {
        let shared = Arc::clone(&self.shared);
        let task = self.runtime.spawn(async move {
            shared.process.expect_exit();
            let leave = async {
                shared.link.send(&ToWorker::Shutdown).await;
                shared.process.gone().await
            };
            if timeout(grace, leave).await.is_err() {
                shared.process.kill(ExitReason::Asked);
                shared.process.gone().await;
            }
        });
        Box::pin(async move {
            let _ = task.await;
        })
    }

    fn pid(&self) -> Option<u32> {
        self.shared.process.pid()
    }

    fn usage(&self) -> Option<u64> {
        self.shared.process.charged()
    }

    fn log_tail(&self) -> Vec<String> {
        self.shared.log.tail()
    }
}

impl WorkerInstance {
    /// In a task of its own, so that a caller who gives up leaves no half-written frame.
    fn step<T: Send + 'static>(&self, step: Step, done: fn(u64) -> T) -> BoxFuture<'static, Result<T, Failure>> {
        let shared = Arc::clone(&self.shared);
        let task = self.runtime.spawn(async move { shared.bytes(step).await });
        Box::pin(async move { task.await.unwrap_or_else(|_| Err(gone_with_host())).map(done) })
    }
}

impl Shared {
    fn cancels(&self) -> MutexGuard<'_, HashMap<u64, CancellationToken>> {
        self.cancels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn generate(&self, request: u64, task: Bytes, output: mpsc::Sender<Output>, cancelled: CancellationToken) {
        let Some(Incoming { mut inbound, mut progress }) = self.link.open(request) else {
            let reason = self.process.gone().await;
            return done(&output, Err(failure::of_exit(&self.model, &reason))).await;
        };
        self.link.send(&ToWorker::Generate(request, task)).await;
        let mut passed_on = 0;
        loop {
            let next = tokio::select! {
                biased;
                () = output.closed() => return self.cancel(request, &mut inbound).await,
                () = cancelled.cancelled() => {
                    self.cancel(request, &mut inbound).await;
                    return done(&output, Err(Failure::new(FailureKind::Cancelled, "the request was cancelled"))).await;
                }
                Ok(()) = progress.changed() => {
                    let Loading { done, total } = *progress.borrow_and_update();
                    // A reader who is behind does without: another one follows, or the end.
                    let _ = output.try_send(Output::Progress { done, total });
                    continue;
                }
                next = inbound.recv() => next,
            };
            match next {
                Some(Inbound::Event(event, cost)) => {
                    if let Some(event) = event
                        && output.send(event).await.is_err()
                    {
                        return self.cancel(request, &mut inbound).await;
                    }
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
    async fn cancel(&self, request: u64, inbound: &mut mpsc::Receiver<Inbound>) {
        self.link.send(&ToWorker::Cancel(request)).await;
        let end = async {
            loop {
                match inbound.recv().await {
                    Some(Inbound::Event(..)) => {}
                    Some(Inbound::End(end)) => return end.err(),
                    None => return None,
                }
            }
        };
        match timeout(self.limits.cancel_grace, end).await {
            Ok(error) => {
                if let Some(reason) = error.as_ref().and_then(failure::condemns) {
                    self.process.kill(reason);
                }
            }
            Err(_) => self.process.kill(ExitReason::Stalled("a cancelled request".to_owned())),
        }
    }

    pub(super) fn plugin_failed(&self, error: PluginError) -> Failure {
        if let Some(reason) = failure::condemns(&error) {
            self.process.kill(reason);
        }
        failure::of_plugin(error)
    }
}

async fn done(output: &mpsc::Sender<Output>, result: Result<Bytes, Failure>) {
    // Whoever asked may have left.
    let _ = output.send(Output::Done(result)).await;
}

fn gone_with_host() -> Failure {
    Failure::new(FailureKind::ShuttingDown, "the host is shutting down")
}
