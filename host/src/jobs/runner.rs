//! Whose turn it is, and what becomes of an attempt.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use super::job::{AnswerFacts, Job, JobError, JobEvent, JobId, JobState};
use super::progress::Progress;
use super::store::{JobAnswer, JobLimits, JobRequest, StoreError};
use super::{Jobs, Live, Stage, later, now_s};

/// Between two looks for what is kept too long.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);
/// Between two tries to keep what became of a job.
const STORE_RETRY: Duration = Duration::from_secs(1);
/// How long an answer waits for a disk to take it before its job has failed.
const STORE_PATIENCE: Duration = Duration::from_secs(60);
/// The least and the most time for which a job is left alone that found no room.
const NOT_NOW: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));

/// Answers what jobs ask, as it is answered whose client waits.
pub trait Dispatch: Send + Sync + 'static {
    /// What is in force.
    fn limits(&self) -> JobLimits;

    /// Works on a job. Dropping it ends that.
    fn run(&self, attempt: Attempt) -> BoxFuture<'static, Outcome>;
}

/// An attempt at a job.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// The job.
    pub job: Job,
    /// What it asks.
    pub request: JobRequest,
    /// Where it is said how far it is.
    pub progress: Progress,
}

/// What an attempt comes to.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// An answer.
    Answered {
        /// Its `Content-Type`.
        content_type: String,
        /// All of it.
        bytes: Bytes,
        /// Its `usage`, if it has one.
        usage: Option<serde_json::Value>,
    },
    /// None, and there will be none.
    Failed(JobError),
    /// Whoever serves has no room, or is not ready yet: again after this long. It does not count as an attempt.
    NotNow(Duration),
}

impl Jobs {
    /// Runs jobs until [`Jobs::stop`], and those that were begun to their end.
    pub async fn run(&self, dispatch: Arc<dyn Dispatch>) {
        if self.0.store.is_err() {
            return self.stopping().await;
        }
        let mut running = JoinSet::new();
        let mut sweeps = interval(SWEEP_INTERVAL);
        sweeps.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let at_once = usize::try_from(dispatch.limits().at_once).unwrap_or(usize::MAX);
            while running.len() < at_once && self.begin(&dispatch, &mut running) {}
            let has_room = running.len() < at_once;
            let next = self.next_turn();
            tokio::select! {
                biased;
                () = self.0.stopping.cancelled() => break,
                Some(_) = running.join_next() => {}
                () = self.0.due.notified() => {}
                () = at(next), if has_room => {}
                _ = sweeps.tick() => self.sweep(dispatch.limits()).await,
            }
        }
        while running.join_next().await.is_some() {}
    }

    /// Begins the job whose turn it is, if it is any one's: of those that may begin the oldest of whoever has the fewest that run.
    fn begin(&self, dispatch: &Arc<dyn Dispatch>, running: &mut JoinSet<()>) -> bool {
        let now = Instant::now();
        let mut live = self.0.live.lock();
        let owner = |entry: &Live| entry.told.borrow().job.owner.clone();
        let mut busy: HashMap<Option<String>, usize> = HashMap::new();
        for entry in live.values().filter(|entry| matches!(entry.stage, Stage::Running(_))) {
            *busy.entry(owner(entry)).or_default() += 1;
        }
        let may_begin = live.iter().filter(|(_, entry)| matches!(entry.stage, Stage::Waiting(at) if at <= now));
        let next = may_begin.min_by_key(|(_, entry)| busy.get(&owner(entry)).copied().unwrap_or_default());
        let Some(id) = next.map(|(id, _)| id.clone()) else { return false };
        let work = running.spawn(self.clone().attempt(id.clone(), Arc::clone(dispatch)));
        if let Some(entry) = live.get_mut(&id) {
            entry.stage = Stage::Running(work);
        }
        true
    }

    /// When the next one may begin.
    fn next_turn(&self) -> Option<Instant> {
        let live = self.0.live.lock();
        let turns = live.values().filter_map(|entry| match entry.stage {
            Stage::Waiting(at) => Some(at),
            Stage::Running(_) => None,
        });
        turns.min()
    }

    async fn sweep(&self, limits: JobLimits) {
        match self.store(move |store| store.sweep(&limits, now_s())).await {
            Ok(expired) => expired.iter().for_each(|job| self.tell(job)),
            Err(error) => tracing::warn!(%error, "jobs that are kept too long stay"),
        }
    }

    async fn attempt(self, id: JobId, dispatch: Arc<dyn Dispatch>) {
        let (job, request) = match self.take(&id).await {
            Ok(taken) => taken,
            // Somebody ended it first.
            Err(StoreError::Unknown | StoreError::OutOfTurn(_)) => return,
            Err(error) => {
                tracing::warn!(job = %id, %error, "a job cannot be begun; it is tried again");
                return self.wait(&id, STORE_RETRY);
            }
        };
        let told = self.0.live.lock().get(&id).map(|live| live.told.clone());
        let progress = told.map_or_else(Progress::default, Progress::of);
        let attempt = Attempt { job: job.clone(), request, progress };
        let limits = dispatch.limits();
        let outcome = match AbortOnDropHandle::new(tokio::spawn(dispatch.run(attempt))).await {
            Ok(outcome) => outcome,
            Err(error) => Outcome::Failed(JobError::new(500, "internal_error", &error.to_string())),
        };
        self.settle(&job, outcome, limits).await;
    }

    /// The job, which has begun, and what it asks.
    async fn take(&self, id: &JobId) -> Result<(Job, JobRequest), StoreError> {
        let key = id.clone();
        let request = self.store(move |store| store.request(&key)).await?;
        Ok((self.change(id, JobEvent::Started).await?, request))
    }

    /// Keeps what an attempt came to.
    async fn settle(&self, job: &Job, outcome: Outcome, limits: JobLimits) {
        let attempt = job.attempts;
        match outcome {
            Outcome::Answered { content_type, bytes, usage } => {
                let facts = AnswerFacts { content_type, bytes: bytes.len() as u64, usage };
                if let Err(error) = self.keep(job, JobAnswer { attempt, facts, bytes }, limits).await {
                    self.record(job, JobEvent::Failed(attempt, error)).await;
                }
            }
            Outcome::Failed(error) if self.0.stopping.is_cancelled() && is_by_stopping(&error) => {
                self.record(job, JobEvent::PutBack(attempt)).await;
            }
            Outcome::Failed(error) => self.record(job, JobEvent::Failed(attempt, error)).await,
            Outcome::NotNow(wait) => {
                self.record(job, JobEvent::PutBack(attempt)).await;
                self.wait(&job.id, wait.clamp(NOT_NOW.0, NOT_NOW.1));
            }
        }
    }

    /// Keeps an answer; why it cannot be, if the disk has not taken it for long.
    async fn keep(&self, job: &Job, answer: JobAnswer, limits: JobLimits) -> Result<(), JobError> {
        let patience = Instant::now() + STORE_PATIENCE;
        loop {
            let (id, answer, jobs) = (job.id.clone(), answer.clone(), self.clone());
            let keep = move |store: &dyn super::JobStore| {
                let job = store.answer(&id, &answer, &limits, now_s())?;
                jobs.tell(&job);
                Ok(())
            };
            match self.store(keep).await {
                Ok(()) => return Ok(()),
                // It was ended meanwhile, or it is kept already.
                Err(StoreError::OutOfTurn(_) | StoreError::Unknown) => {
                    self.refresh(&job.id).await;
                    return Ok(());
                }
                Err(StoreError::NoRoom(most)) => {
                    let message = format!(
                        "the answer was made, and is larger than all that is kept for jobs may be, {most}; ask for less"
                    );
                    return Err(JobError::new(507, "storage_full", &message));
                }
                Err(error) if Instant::now() >= patience => {
                    tracing::warn!(job = %job.id, %error, "the answer of a job is lost");
                    let message =
                        "the answer was made but the disk did not take it; send the job anew once there is room";
                    return Err(JobError::new(507, "storage_full", message));
                }
                Err(error) => tracing::warn!(job = %job.id, %error, "the answer of a job cannot be kept yet"),
            }
            sleep(STORE_RETRY).await;
        }
    }

    /// Keeps what became of an attempt, however long the disk does not take it.
    async fn record(&self, job: &Job, event: JobEvent) {
        loop {
            match self.change(&job.id, event.clone()).await {
                Ok(_) => return,
                Err(StoreError::OutOfTurn(_) | StoreError::Unknown) => return self.refresh(&job.id).await,
                Err(error) => tracing::warn!(job = %job.id, %error, "what became of a job cannot be kept yet"),
            }
            if self.0.stopping.is_cancelled() {
                return;
            }
            sleep(STORE_RETRY).await;
        }
    }

    /// A change may have been kept though its call failed: whoever follows the job is told what is kept.
    async fn refresh(&self, id: &JobId) {
        let key = id.clone();
        match self.store(move |store| store.get(&key)).await {
            Ok(job) => self.tell(&job),
            Err(_) => _ = self.0.live.lock().remove(id),
        }
    }

    /// Its turn comes again after this long, if it still waits.
    fn wait(&self, id: &JobId, wait: Duration) {
        if let Some(entry) = self.0.live.lock().get_mut(id)
            && entry.told.borrow().job.state == JobState::Queued
        {
            entry.stage = Stage::Waiting(later(wait));
        }
        self.0.due.notify_one();
    }
}

/// Whether it says nothing of the request itself.
fn is_by_stopping(error: &JobError) -> bool {
    !matches!(error.status, 400..=428 | 430..=498)
}

/// Never, if there is no such time.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}
