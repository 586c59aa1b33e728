//! What becomes of a request whose worker died before it had sent anything: it is tried again, alone, so that it can harm
//! nobody else; if two workers died of it alone, it is refused for a while. Pure but for the clock.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::api::{KeepAlive, OutputMode, Submission};
use crate::domain::{Class, Failure, FailureKind, Kind, ModelId};
use crate::scheduler::Want;

/// Deaths of a worker with one request alone on it, after which the request is the suspect.
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
    pub(super) task: Bytes,
    class: Class,
    pub(super) keep_alive: Option<KeepAlive>,
    pub(super) delivery: OutputMode,
    /// `None` until a worker died under it; then how many died of it alone.
    deaths_alone: Option<u32>,
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
        let Submission { model, kind, task, class, keep_alive, delivery } = submission;
        Self { model, kind, task, class, keep_alive, delivery, deaths_alone: None }
    }

    pub(super) fn want(&self) -> Want {
        match (self.deaths_alone, self.class) {
            (Some(_), _) => Want::Solo,
            (None, Class::Interactive) => Want::Serve,
            (None, Class::Batch) => Want::ServeBatch,
        }
    }

    fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (&self.model, &self.task).hash(&mut hasher);
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

    /// The worker died under this request.
    pub(super) fn judge(&mut self, job: Job, failure: Failure) -> Verdict {
        let deaths_alone = job.deaths_alone.map_or(0, |deaths| deaths + 1);
        if deaths_alone < DEATHS_ALONE_MAX {
            return Verdict::Again(Job { deaths_alone: Some(deaths_alone), ..job });
        }
        if self.0.len() >= SUSPECTS_MAX
            && let Some(oldest) = self.0.iter().min_by_key(|(_, suspect)| suspect.until).map(|(hash, _)| *hash)
        {
            self.0.remove(&oldest);
        }
        let now = Instant::now();
        self.0.retain(|_, suspect| suspect.until > now);
        self.0.insert(job.hash(), Suspect { model: job.model.clone(), until: now + SUSPECT_FOR });
        let message = format!(
            "{failure}; {deaths_alone} workers died of this request alone, so it is refused for {} s",
            SUSPECT_FOR.as_secs()
        );
        let failure = Failure::new(FailureKind::Suspected, message);
        if self.0.values().filter(|suspect| suspect.model == job.model).count() < SUSPECTS_PER_MODEL_MAX {
            return Verdict::Refused(failure);
        }
        self.0.retain(|_, suspect| suspect.model != job.model);
        Verdict::Quarantined(job.model, failure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_request_is_tried_alone_twice_and_then_refused_for_a_while() {
        let mut suspects = Suspects::default();
        let submission = Submission {
            model: "a".into(),
            kind: Kind::Text,
            task: Bytes::from_static(b"{}"),
            class: Class::Batch,
            keep_alive: None,
            delivery: OutputMode::Streamed,
        };
        let died = Failure::new(FailureKind::WorkerDied, "it crashed");
        let mut job = Job::new(submission.clone());
        assert_eq!(job.want(), Want::ServeBatch);
        for _ in 0..2 {
            assert_eq!(suspects.refusal(&job), None);
            let Verdict::Again(again) = suspects.judge(job, died.clone()) else { panic!("refused too early") };
            assert_eq!(again.want(), Want::Solo);
            job = again;
        }
        let Verdict::Refused(failure) = suspects.judge(job, died) else { panic!("tried for ever") };
        assert!(failure.message.contains("it crashed"), "{failure}");
        assert!(suspects.refusal(&Job::new(submission.clone())).is_some());
        let other = Submission { task: Bytes::from_static(b"{\"x\":1}"), ..submission.clone() };
        assert_eq!(suspects.refusal(&Job::new(other)), None);
        tokio::time::advance(SUSPECT_FOR).await;
        assert_eq!(suspects.refusal(&Job::new(submission)), None);
    }
}
