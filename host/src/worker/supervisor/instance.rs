//! One instance in a worker, as the runtime sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aihost_plugin_api::{Metric, ModelFacts};
use futures_util::future::BoxFuture;
use parking_lot::{Mutex, MutexGuard};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};

use super::super::ask::Ask;
use super::super::awake::timeout;
use super::super::limits::{OUTPUT_QUEUE, PREPARE_BYTES, TERMINATE_GRACE, WorkerLimits};
use super::super::origin;
use super::super::placement::{Allowance, CancelCause, ExitReason, InstanceHandle, Loaded, Outputs};
use super::super::protocol::{PluginError, Task};
use super::failure;
use super::log::Log;
use super::process::Process;
use super::socket::WorkerSocket;
use super::step::InstanceStep;
use super::watch::{Watched, record_family};
use crate::config::BusyProbe;
use crate::domain::{Failure, FailureKind, ModelId, RequestId};

/// What the tasks of one worker share.
#[derive(Debug)]
pub(super) struct Supervised {
    pub(super) model: ModelId,
    pub(super) process: Process,
    pub(super) socket: WorkerSocket,
    pub(super) log: Arc<Log>,
    pub(super) limits: WorkerLimits,
    /// Held through a step: the worker does them one at a time, and answers carry no number.
    pub(super) step_lock: tokio::sync::Mutex<()>,
    /// Bytes of the requests that are open.
    pub(super) task_bytes: AtomicU64,
    /// What it may hold, and was seen to.
    pub(super) watched: Mutex<Watched>,
    /// How its engine is seen to work on once it has answered, if it answers HTTP itself.
    pub(super) busy: Option<BusyProbe>,
    /// Turns true when it is about to go.
    pub(super) leaving: watch::Sender<bool>,
    /// What is wrong with its plugin's metrics, as far as that stands in the log.
    pub(super) metrics_told: Mutex<BTreeSet<String>>,
}

/// The handle. Dropping it kills the worker.
#[derive(Debug)]
pub(super) struct WorkerInstance {
    pub(super) shared: Arc<Supervised>,
    pub(super) runtime: Handle,
}

impl Drop for WorkerInstance {
    fn drop(&mut self) {
        self.shared.process.kill(ExitReason::Asked);
    }
}

impl InstanceHandle for WorkerInstance {
    fn load(&self, granted: u64, deadline: Duration) -> BoxFuture<'static, Result<Loaded, Failure>> {
        self.step(InstanceStep::load(granted, deadline, &self.shared.limits), |used| Loaded { used })
    }

    fn park(&self) -> BoxFuture<'static, Result<Loaded, Failure>> {
        let parking = self.step(InstanceStep::park(&self.shared.limits), |used| Loaded { used });
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            let parked = parking.await;
            if shared.socket.engine().is_some() {
                // What is to come back is held by what it started.
                record_family(&shared);
            }
            parked
        })
    }

    fn unpark(&self) -> BoxFuture<'static, Result<Loaded, Failure>> {
        self.step(InstanceStep::unpark(&self.shared.limits), |used| Loaded { used })
    }

    fn health(&self) -> BoxFuture<'static, Result<(), Failure>> {
        self.step(InstanceStep::health(&self.shared.limits), |_| ())
    }

    fn cost(&self, task: Task) -> BoxFuture<'static, Result<u64, Failure>> {
        let cost = self.step(InstanceStep::cost(task, &self.shared.limits), |bytes| bytes);
        Box::pin(async move { cost.await.map_err(failure::of_request) })
    }

    fn prepare(&self, environment: BTreeMap<String, String>) -> BoxFuture<'static, Result<(), Failure>> {
        self.allow(Allowance { planned: PREPARE_BYTES, granted: PREPARE_BYTES, mapped: 0 });
        self.step(InstanceStep::prepare(environment), |_| ())
    }

    fn generate(&self, request: RequestId, ask: Ask, cancelled: oneshot::Receiver<CancelCause>) -> Outputs {
        let shared = Arc::clone(&self.shared);
        let is_task = ask.as_task().is_some();
        let serve = move |output| async move {
            let _open = OpenBytes::of(&shared, ask.size() as u64);
            shared.generate(request.0, ask, output, cancelled).await;
        };
        if !is_task {
            return Outputs::made_by(serve);
        }
        // In a task of its own: what a worker says is taken in however slowly it is read.
        let (output, outputs) = mpsc::channel(OUTPUT_QUEUE);
        self.runtime.spawn(serve(output));
        outputs.into()
    }

    fn facts(&self, name: String) -> BoxFuture<'static, Option<ModelFacts>> {
        let engine = self.shared.socket.engine();
        Box::pin(async move { origin::facts(&engine?, &name).await })
    }

    fn progress(&self) -> Option<u32> {
        let loading = *self.shared.socket.progress().borrow();
        let thousandths = (u128::from(loading.done) * 1000).checked_div(u128::from(loading.total))?;
        Some(thousandths.min(1000) as u32)
    }

    fn stop(&self, grace: Duration) -> BoxFuture<'static, ()> {
        let shared = Arc::clone(&self.shared);
        shared.leaving.send_replace(true);
        let task = self.runtime.spawn(async move {
            // Without a grace it is not even asked: its requests are to learn why they end, not that they were cancelled.
            if grace.is_zero() {
                shared.process.kill(ExitReason::Asked);
                shared.process.gone().await;
                return;
            }
            shared.process.expect_exit();
            let leave = async {
                shared.socket.shut_down().await;
                shared.process.gone().await
            };
            if timeout(grace, leave).await.is_some() {
                return;
            }
            shared.process.terminate(ExitReason::Stalled(shared.socket.doing().to_owned()));
            if timeout(TERMINATE_GRACE, shared.process.gone()).await.is_none() {
                shared.process.kill(ExitReason::Asked);
                shared.process.gone().await;
            }
        });
        Box::pin(async move {
            let _ = task.await;
        })
    }

    fn metrics(&self) -> BoxFuture<'static, Vec<Metric>> {
        let shared = Arc::clone(&self.shared);
        // In a task of its own, so that a caller who gives up leaves no half-written frame.
        let task = self.runtime.spawn(async move { shared.metrics().await });
        Box::pin(async move { task.await.unwrap_or_default() })
    }

    fn is_lost(&self) -> bool {
        self.shared.process.is_lost()
    }

    fn pid(&self) -> Option<u32> {
        self.shared.process.pid()
    }

    fn usage(&self) -> Option<u64> {
        self.shared.usage()
    }

    fn allow(&self, allowance: Allowance) {
        self.shared.watched().allow(allowance);
    }
}

/// The bytes of a request that is open.
struct OpenBytes<'a>(&'a Supervised, u64);

impl<'a> OpenBytes<'a> {
    fn of(shared: &'a Supervised, bytes: u64) -> Self {
        shared.task_bytes.fetch_add(bytes, Ordering::Relaxed);
        Self(shared, bytes)
    }
}

impl Drop for OpenBytes<'_> {
    fn drop(&mut self) {
        self.0.task_bytes.fetch_sub(self.1, Ordering::Relaxed);
    }
}

impl WorkerInstance {
    /// In a task of its own, so that a caller who gives up leaves no half-written frame.
    fn step<T: Send + 'static>(
        &self,
        step: InstanceStep,
        done: fn(u64) -> T,
    ) -> BoxFuture<'static, Result<T, Failure>> {
        let shared = Arc::clone(&self.shared);
        let task = self.runtime.spawn(async move { shared.bytes(step).await });
        Box::pin(async move { task.await.unwrap_or_else(|_| Err(gone_with_host())).map(done) })
    }
}

impl Supervised {
    pub(super) fn watched(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock()
    }

    /// What is told to whoever waits for a worker that ended for this reason. One that was asked to go owes nobody a reason.
    pub(super) fn exit_failure(&self, reason: &ExitReason) -> Failure {
        let reason = if self.process.is_asked() { &ExitReason::Asked } else { reason };
        failure::of_exit(&self.model, reason)
    }

    pub(super) fn plugin_failed(&self, error: PluginError) -> Failure {
        if let Some(reason) = failure::condemns(&error) {
            self.process.kill(reason);
        }
        failure::of_plugin(error)
    }

    /// The same of a step that is no client's. One that the host itself broke off is no fault.
    pub(super) fn step_failed(&self, error: PluginError) -> Failure {
        let failure = self.plugin_failed(error);
        if self.process.is_asked() { failure } else { failure::of_step(failure) }
    }
}

fn gone_with_host() -> Failure {
    Failure::new(FailureKind::ShuttingDown, "the host is shutting down")
}
