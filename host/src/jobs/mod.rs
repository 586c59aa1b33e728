//! Work that outlives the connection it was asked on: a request is kept, answered when its turn comes, and its answer is kept
//! for a while. It is answered once; a host that ends in its midst tries it once more.
//!
//! It knows nothing of HTTP and nothing of models: whoever runs it says how a request is answered ([`Dispatch`]), which is the
//! way that the same request goes whose client waits. Who keeps jobs is behind [`JobStore`].

mod embedded;
mod job;
mod progress;
mod runner;
mod store;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use embedded::EmbeddedStore;
pub use job::{ATTEMPTS_MAX, AnswerFacts, Job, JobError, JobEvent, JobId, JobState, OutOfTurn};
pub use progress::{JobView, Progress, WHOLE};
pub use runner::{Attempt, Dispatch, Outcome};
pub use store::{JobAnswer, JobLimits, JobRequest, JobStore, StoreError};

/// All jobs of a host. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Jobs(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Why there is none, if there is none.
    store: Result<Arc<dyn JobStore>, String>,
    /// Those that wait or run.
    live: Mutex<BTreeMap<JobId, Live>>,
    /// That there may be something to do.
    due: Notify,
    stopping: CancellationToken,
}

/// A job that waits or runs.
#[derive(Debug)]
struct Live {
    told: watch::Sender<JobView>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// It is not begun before then.
    Waiting(Instant),
    /// What works on it.
    Running(AbortHandle),
}

/// A job that is asked for.
#[derive(Clone, Debug)]
pub struct NewJob {
    /// The name of the key that it comes with.
    pub owner: Option<String>,
    /// The route that it is for.
    pub endpoint: String,
    /// The model that it is for, by its entry.
    pub model: String,
    /// What it asks.
    pub request: JobRequest,
}

impl Jobs {
    /// Those that this store keeps. One that was running when its host ended waits again, or has failed. Blocks on the store.
    ///
    /// # Errors
    /// What is kept cannot be read.
    pub fn over(store: Arc<dyn JobStore>) -> Result<Self, StoreError> {
        let mut live = BTreeMap::new();
        for job in store.unfinished()? {
            let job = match job.state {
                JobState::Running => store.change(&job.id, &JobEvent::Orphaned, now_s())?,
                _ => job,
            };
            if job.state.is_over() {
                tracing::warn!(job = %job.id, "the host ended twice while it worked on a job, which is not tried again");
            } else {
                live.insert(job.id.clone(), Live::waiting(job, Instant::now()));
            }
        }
        Ok(Self(Arc::new(Shared { live: Mutex::new(live), ..Shared::of(Ok(store)) })))
    }

    /// None, and why.
    pub fn unavailable(why: impl Into<String>) -> Self {
        Self(Arc::new(Shared::of(Err(why.into()))))
    }

    /// Keeps a job, which runs when its turn comes.
    ///
    /// # Errors
    /// There is no room, or the disk does not take it: nothing is kept.
    pub async fn submit(&self, new: NewJob, limits: JobLimits) -> Result<JobView, StoreError> {
        let NewJob { owner, endpoint, model, request } = new;
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let now_ms = u64::try_from(now_ms).unwrap_or(u64::MAX);
        let job = Job::queued(now_ms, owner, endpoint, model);
        let jobs = self.clone();
        // Whoever asked may leave; what is kept is run.
        let kept = move |store: &dyn JobStore| {
            store.create(&job, &request, &limits)?;
            let view = JobView { job: job.clone(), progress: 0 };
            jobs.0.live.lock().insert(job.id.clone(), Live::waiting(job, Instant::now()));
            jobs.0.due.notify_one();
            Ok(view)
        };
        self.store(kept).await
    }

    /// A job of this owner.
    ///
    /// # Errors
    /// There is none.
    pub async fn get(&self, owner: Option<&str>, id: &JobId) -> Result<JobView, StoreError> {
        let live = self.0.live.lock().get(id).map(|live| live.told.borrow().clone());
        let view = match live {
            Some(view) => view,
            None => {
                let id = id.clone();
                JobView::over(self.store(move |store| store.get(&id)).await?)
            }
        };
        if view.job.owner.as_deref() == owner { Ok(view) } else { Err(StoreError::Unknown) }
    }

    /// A job of this owner, and what becomes of it; nothing more once it is over.
    ///
    /// # Errors
    /// There is none.
    pub async fn follow(&self, owner: Option<&str>, id: &JobId) -> Result<watch::Receiver<JobView>, StoreError> {
        let live = self.0.live.lock().get(id).map(|live| live.told.subscribe());
        let follower = match live {
            Some(follower) => follower,
            None => watch::channel(self.get(owner, id).await?).1,
        };
        let is_theirs = follower.borrow().job.owner.as_deref() == owner;
        if is_theirs { Ok(follower) } else { Err(StoreError::Unknown) }
    }

    /// The newest jobs of an owner, at most so many; only those before this one, if one is given.
    ///
    /// # Errors
    /// They cannot be read.
    pub async fn list(
        &self,
        owner: Option<String>,
        before: Option<JobId>,
        most: usize,
    ) -> Result<Vec<JobView>, StoreError> {
        let listed = self.store(move |store| store.list(owner.as_deref(), before.as_ref(), most)).await?;
        let live = self.0.live.lock();
        let view =
            |job: Job| live.get(&job.id).map(|live| live.told.borrow().clone()).unwrap_or_else(|| JobView::over(job));
        Ok(listed.into_iter().map(view).collect())
    }

    /// The answer of a job that is done.
    ///
    /// # Errors
    /// There is none.
    pub async fn open_answer(&self, id: &JobId) -> Result<File, StoreError> {
        let id = id.clone();
        self.store(move |store| store.open_answer(&id)).await
    }

    /// Ends a job of this owner, whether it waits or runs.
    ///
    /// # Errors
    /// There is none, or it is over.
    pub async fn cancel(&self, owner: Option<&str>, id: &JobId) -> Result<JobView, StoreError> {
        self.get(owner, id).await?;
        let job = self.change(id, JobEvent::Cancelled).await?;
        Ok(JobView::over(job))
    }

    /// Forgets a job of this owner, with its answer; one that waits or runs ends before.
    ///
    /// # Errors
    /// There is none.
    pub async fn remove(&self, owner: Option<&str>, id: &JobId) -> Result<(), StoreError> {
        match self.cancel(owner, id).await {
            Ok(_) | Err(StoreError::OutOfTurn(_)) => {}
            Err(error) => return Err(error),
        }
        let id = id.clone();
        self.store(move |store| store.remove(&id)).await
    }

    /// Nothing is begun any more; what runs may end, and waits for the next start if it does not.
    pub fn stop(&self) {
        self.0.stopping.cancel();
    }

    /// Resolves once nothing is begun any more.
    pub async fn stopping(&self) {
        self.0.stopping.cancelled().await;
    }

    /// Leaves all of them to another host: what runs is put back, and this one keeps and begins nothing any more.
    pub async fn leave(&self) {
        self.stop();
        let running: Vec<Job> = {
            let live = self.0.live.lock();
            let works = live.values().filter_map(|entry| match &entry.stage {
                Stage::Running(work) => Some((work, entry.told.borrow().job.clone())),
                Stage::Waiting(_) => None,
            });
            works.map(|(work, job)| (work.abort(), job).1).collect()
        };
        for job in running {
            // One that has its answer by now is over.
            let _ = self.change(&job.id, JobEvent::PutBack(job.attempts)).await;
        }
        let left = self.store(|store| (store.close(), Ok(())).1).await;
        left.unwrap_or_else(|error| tracing::debug!(%error, "there were no jobs to leave"));
    }

    /// What becomes of a job, for the store and for whoever follows it.
    async fn change(&self, id: &JobId, event: JobEvent) -> Result<Job, StoreError> {
        let (key, jobs) = (id.clone(), self.clone());
        let change = move |store: &dyn JobStore| {
            let job = store.change(&key, &event, now_s())?;
            // Whoever asked for it may leave; the job has changed.
            jobs.tell(&job);
            Ok(job)
        };
        self.store(change).await
    }

    /// Tells whoever follows a job what became of it. What works on one that is over ends.
    fn tell(&self, job: &Job) {
        let mut live = self.0.live.lock();
        let Some(entry) = live.get(&job.id) else { return };
        let is_begun = job.state == JobState::Running;
        entry.told.send_modify(|view| {
            let progress = if is_begun { view.progress } else { progress_of(job) };
            *view = JobView { job: job.clone(), progress };
        });
        if job.state.is_over()
            && let Some(Live { stage: Stage::Running(work), .. }) = live.remove(&job.id)
            && job.state == JobState::Cancelled
        {
            work.abort();
        }
    }

    /// Asks the store, where that holds nobody up. What was begun is done whether or not somebody waits for it.
    async fn store<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&dyn JobStore) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = Arc::clone(self.0.store.as_ref().map_err(|why| StoreError::Unavailable(why.clone()))?);
        let asked = tokio::task::spawn_blocking(move || ask(&*store)).await;
        asked.unwrap_or_else(|error| Err(StoreError::Unavailable(error.to_string())))
    }
}

impl Shared {
    fn of(store: Result<Arc<dyn JobStore>, String>) -> Self {
        Self { store, live: Mutex::default(), due: Notify::new(), stopping: CancellationToken::new() }
    }
}

impl Live {
    fn waiting(job: Job, not_before: Instant) -> Self {
        let (told, _) = watch::channel(JobView { job, progress: 0 });
        Self { told, stage: Stage::Waiting(not_before) }
    }
}

impl JobView {
    /// Of a job on which nobody works.
    fn over(job: Job) -> Self {
        let progress = progress_of(&job);
        Self { job, progress }
    }
}

/// How far a job is on which nobody works.
fn progress_of(job: &Job) -> u16 {
    if job.answer.is_some() { WHOLE } else { 0 }
}

/// Seconds since 1970.
fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// So much later.
fn later(wait: Duration) -> Instant {
    Instant::now() + wait
}
