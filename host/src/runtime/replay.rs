//! What becomes of a request whose worker died before it had sent anything: it is tried again, on trial, so that it can harm
//! nobody else; if two workers died of it alone, it is refused for a while. Pure but for the clock.

use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use aihost_plugin_api::RequestInfo;
use tokio::time::Instant;

use super::access::AccessEntry;
use super::api::{KeepAlive, OutputMode, Submission};
use crate::domain::{Class, Failure, FailureKind, Kind, ModelId};
use crate::scheduler::{Again, Want};
use crate::worker::{Ask, Task};

/// Deaths of a worker with one request that was tried again alone on it, after which the request is the suspect.
const DEATHS_ALONE_MAX: u32 = 2;
/// How long a suspect is refused.
const SUSPECT_FOR: Duration = Duration::from_secs(600);
/// Different suspects of one model at a time, after which the model is at fault.
const SUSPECTS_PER_MODEL_MAX: usize = 3;
/// Suspects remembered; the oldest goes first.
const SUSPECTS_MAX: usize = 1024;

/// A request on its way to an answer.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) model: ModelId,
    pub(super) kind: Kind,
    ask: Ask,
    class: Class,
    pub(super) keep_alive: Option<KeepAlive>,
    pub(super) delivery: OutputMode,
    pub(super) access: AccessEntry,
    /// `None` until a worker died under it.
    again: Option<Again>,
    /// How many workers died of it alone since.
    deaths_alone: u32,
}

/// The lease under which a worker died.
#[derive(Clone, Copy, Debug)]
pub(super) struct LostLease {
    /// How long it lasted, milliseconds.
    pub(super) ran_ms: u64,
    /// Whether nobody else had one beside it at any time.
    pub(super) alone: bool,
}

/// What to do with a request that lost its worker.
#[derive(Debug)]
pub(super) enum Verdict {
    Again(Job),
    Refused(Failure),
    /// Too many different requests were too much for this model: it is at fault, not they.
    Quarantined(ModelId, Failure),
}

/// Requests that made workers die, by hash of model and task.
#[derive(Debug, Default)]
pub(super) struct Suspects(HashMap<u64, Suspect>);

#[derive(Debug)]
struct Suspect {
    model: ModelId,
    until: Instant,
}

impl Job {
    pub(super) fn new(submission: Submission) -> Self {
        let Submission { model, kind, ask, class, keep_alive, delivery, access } = submission;
        access.asks_for(&model);
        Self { model, kind, ask, class, keep_alive, delivery, access, again: None, deaths_alone: 0 }
    }

    /// What is asked, as its plugin gets it: with what is said of whoever asks and of how long it may run.
    pub(super) fn ask(&self, time_limit: Duration) -> Ask {
        let Ask::Task(task) = &self.ask else { return self.ask.clone() };
        let (trace, owner) = self.access.origin();
        let mut info = RequestInfo::default();
        (info.id, info.class) = (self.access.id().to_owned(), self.class.name().to_owned());
        (info.trace, info.owner) = (trace.to_owned(), owner.to_owned());
        info.time_limit_ms = u64::try_from(time_limit.as_millis()).ok();
        // Plain data, for which serialising cannot fail.
        let info = serde_json::to_vec(&info).unwrap_or_default().into();
        Task { info, ..task.clone() }.into()
    }

    /// Whether it asks for nothing but its lease.
    pub(super) fn is_hold(&self) -> bool {
        matches!(self.ask, Ask::Hold)
    }

    pub(super) fn want(&self) -> Want {
        match (self.again, self.class) {
            (Some(again), _) => Want::Again(again),
            (None, Class::Interactive) => Want::Serve,
            (None, Class::Batch) => Want::ServeBatch,
        }
    }

    fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (&self.model, &self.ask).hash(&mut hasher);
        hasher.finish()
    }
}

impl Suspects {
    /// Why a request is not even queued.
    pub(super) fn refusal(&mut self, job: &Job) -> Option<Failure> {
        if self.0.is_empty() {
            return None;
        }
        let now = Instant::now();
        self.0.retain(|_, suspect| suspect.until > now);
        let left = self.0.get(&job.hash())?.until.duration_since(now).as_secs();
        let message = format!(
            "this very request made the worker of `{}` die {DEATHS_ALONE_MAX} times; it is refused for another {left} s",
            job.model
        );
        Some(Failure::new(FailureKind::Suspected, message))
    }

    /// These models are made of something else now.
    pub(super) fn forget(&mut self, models: &BTreeSet<ModelId>) {
        self.0.retain(|_, suspect| !models.contains(&suspect.model));
    }

    /// The worker died under this request.
    pub(super) fn judge(&mut self, job: Job, lease: LostLease, failure: Failure) -> Verdict {
        // The first death may be anything's doing, also of one that was alone.
        let deaths_alone = job.deaths_alone + u32::from(lease.alone && job.again.is_some());
        if deaths_alone < DEATHS_ALONE_MAX {
            let before = job.again.unwrap_or(Again { deaths: 0, ran_ms: lease.ran_ms });
            let again = Again { deaths: before.deaths + 1, ran_ms: before.ran_ms.min(lease.ran_ms) };
            return Verdict::Again(Job { again: Some(again), deaths_alone, ..job });
        }
        if self.0.len() >= SUSPECTS_MAX
            && let Some(oldest) = self.0.iter().min_by_key(|(_, suspect)| suspect.until).map(|(hash, _)| *hash)
        {
            self.0.remove(&oldest);
        }
        let now = Instant::now();
        self.0.retain(|_, suspect| suspect.until > now);
        self.0.insert(job.hash(), Suspect { model: job.model.clone(), until: now + SUSPECT_FOR });
        let sentence = |failure: &str| {
            let seconds = SUSPECT_FOR.as_secs();
            format!("{failure}; {deaths_alone} workers died of this request alone, so it is refused for {seconds} s")
        };
        let whole = Failure::new(FailureKind::Suspected, sentence(&failure.message));
        let failure = whole.for_clients(sentence(failure.client_message()));
        if self.0.values().filter(|suspect| suspect.model == job.model).count() < SUSPECTS_PER_MODEL_MAX {
            return Verdict::Refused(failure);
        }
        self.0.retain(|_, suspect| suspect.model != job.model);
        Verdict::Quarantined(job.model, failure)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_request_that_two_workers_die_of_alone_is_refused_for_a_while() {
        let mut suspects = Suspects::default();
        let submission = Submission {
            model: "a".into(),
            kind: Kind::Text,
            ask: Bytes::from_static(b"{}").into(),
            class: Class::Batch,
            keep_alive: None,
            delivery: OutputMode::Streamed,
            access: AccessEntry::default(),
        };
        let died = Failure::new(FailureKind::WorkerDied, "it crashed");
        let mut job = Job::new(submission.clone());
        assert_eq!(job.want(), Want::ServeBatch);
        // The first death does not count, nor those in company.
        for (deaths, ran_ms, alone, least_ms) in
            [(1, 500, true, 500), (2, 700, false, 500), (3, 20, true, 20), (4, 30, false, 20)]
        {
            assert_eq!(suspects.refusal(&job), None);
            let judged = suspects.judge(job, LostLease { ran_ms, alone }, died.clone());
            let Verdict::Again(again) = judged else { panic!("refused too early") };
            assert_eq!(again.want(), Want::Again(Again { deaths, ran_ms: least_ms }));
            job = again;
        }
        let judged = suspects.judge(job, LostLease { ran_ms: 1, alone: true }, died);
        let Verdict::Refused(failure) = judged else { panic!("tried for ever") };
        assert!(failure.message.contains("it crashed"), "{failure}");
        assert!(suspects.refusal(&Job::new(submission.clone())).is_some());
        let other = Submission { ask: Bytes::from_static(b"{\"x\":1}").into(), ..submission.clone() };
        assert_eq!(suspects.refusal(&Job::new(other)), None);
        tokio::time::advance(SUSPECT_FOR).await;
        assert_eq!(suspects.refusal(&Job::new(submission)), None);
    }
}
