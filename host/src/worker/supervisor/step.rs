//! Steps of an instance's life: one at a time, each with a limit whose overrun costs the worker.

use std::collections::BTreeMap;
use std::time::Duration;

use aihost_plugin_api::MemoryPlan;

use super::super::awake::{Instant, sleep_until};
use super::super::limits::{PREPARE_LIMIT, WorkerLimits};
use super::super::placement::ExitReason;
use super::super::protocol::{Start, Task, ToWorker};
use super::instance::Supervised;
use super::socket::StepReply;
use crate::domain::{Failure, FailureKind};

/// What the worker is to do, and how long that may take.
#[derive(Debug)]
pub(super) struct InstanceStep {
    message: ToWorker,
    /// Its name in reports.
    name: &'static str,
    limit: Duration,
    /// The limit begins anew while reported progress grows, up to this many times; 1 where there is no progress.
    extension: u32,
    /// Where to turn when it took too long.
    advice: &'static str,
}

impl InstanceStep {
    pub(super) fn start(start: Start, limit: Duration) -> Self {
        Self::plain(ToWorker::Start(Box::new(start)), "start", limit)
    }

    pub(super) fn load(granted: u64, limit: Duration, limits: &WorkerLimits) -> Self {
        let advice = "; raise `startup_time` if it is merely slow";
        let extension = limits.load_extension;
        Self { extension, advice, ..Self::plain(ToWorker::Load(granted), "load", limit) }
    }

    pub(super) fn park(limits: &WorkerLimits) -> Self {
        Self::plain(ToWorker::Park, "park", limits.step)
    }

    pub(super) fn unpark(limits: &WorkerLimits) -> Self {
        Self { extension: limits.load_extension, ..Self::plain(ToWorker::Unpark, "unpark", limits.step) }
    }

    pub(super) fn health(limits: &WorkerLimits) -> Self {
        Self::plain(ToWorker::Health, "health", limits.step)
    }

    pub(super) fn cost(task: Task, limits: &WorkerLimits) -> Self {
        Self::plain(ToWorker::Cost(task), "cost", limits.step)
    }

    pub(super) fn prepare(environment: BTreeMap<String, String>) -> Self {
        Self::plain(ToWorker::Prepare(environment), "prepare", PREPARE_LIMIT)
    }

    fn takes_memory(&self) -> bool {
        matches!(self.message, ToWorker::Start(_) | ToWorker::Load(_) | ToWorker::Unpark)
    }

    /// Whether there is a client whose request it is about.
    fn is_for_a_request(&self) -> bool {
        matches!(self.message, ToWorker::Cost(_))
    }

    fn plain(message: ToWorker, name: &'static str, limit: Duration) -> Self {
        Self { message, name, limit, extension: 1, advice: "" }
    }
}

impl Supervised {
    /// Starts the instance.
    pub(super) async fn plan(&self, step: InstanceStep) -> Result<MemoryPlan, Failure> {
        match self.step(step).await? {
            StepReply::Planned(plan) => Ok(*plan),
            StepReply::Bytes(_) => Err(self.misbehaved("answered a start with a number")),
        }
    }

    /// Takes any other step.
    pub(super) async fn bytes(&self, step: InstanceStep) -> Result<u64, Failure> {
        match self.step(step).await? {
            StepReply::Bytes(bytes) => Ok(bytes),
            StepReply::Planned(_) => Err(self.misbehaved("answered another step with a plan")),
        }
    }

    /// Sends a step and waits for its answer, for the worker's end, or until it has taken too long.
    async fn step(&self, step: InstanceStep) -> Result<StepReply, Failure> {
        let _one_at_a_time = self.step_lock.lock().await;
        if step.extension > 1 {
            self.socket.reset_progress();
        }
        self.log.take_said();
        let mut progress = self.socket.progress();
        let started = Instant::now();
        let last = started + step.limit * step.extension;
        let (mut until, mut best) = (started + step.limit, progress.borrow_and_update().done);
        let answer = async { self.socket.step(&step.message, step.name).await.await };
        tokio::pin!(answer);
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => return match answer {
                    // What took memory is measured before anyone counts on it.
                    Ok(Ok(answer)) if step.takes_memory() => self.within_grant(answer).await,
                    Ok(Ok(answer)) => Ok(answer),
                    Ok(Err(error)) if step.is_for_a_request() => Err(self.plugin_failed(error)),
                    Ok(Err(error)) => Err(self.step_failed(error)),
                    Err(_) => Err(self.exit_failure(&self.process.gone().await)),
                },
                Ok(()) = progress.changed() => {
                    let done = progress.borrow_and_update().done;
                    if done > best {
                        best = done;
                        until = last.min(Instant::now() + step.limit);
                    }
                }
                () = sleep_until(until) => return Err(self.overran(&step, started).await),
            }
        }
    }

    async fn within_grant(&self, answer: StepReply) -> Result<StepReply, Failure> {
        // It may have been found out, and ended, just before.
        match self.look().or_else(|| self.process.verdict()) {
            None => Ok(answer),
            Some(reason) => {
                self.process.gone().await;
                Err(self.exit_failure(&reason))
            }
        }
    }

    async fn overran(&self, step: &InstanceStep, started: Instant) -> Failure {
        self.process.kill(ExitReason::Stalled(step.name.to_owned()));
        self.process.gone().await;
        let message = format!(
            "model `{model}` did not finish its {name}: no progress for {limit} s ({took} s in all)",
            model = self.model,
            name = step.name,
            limit = step.limit.as_secs_f32(),
            took = started.elapsed().as_secs(),
        );
        let said = match self.log.take_said() {
            said if said.is_empty() => said,
            said => format!("; it said last: {said}"),
        };
        Failure::new(FailureKind::TimedOut, format!("{message}{said}{}", step.advice)).for_clients(message)
    }

    fn misbehaved(&self, what: &str) -> Failure {
        let reason = ExitReason::Misbehaved(what.to_owned());
        self.process.kill(reason.clone());
        self.exit_failure(&reason)
    }
}
