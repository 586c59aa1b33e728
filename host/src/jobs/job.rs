//! A job, and what may become of it: a pure state machine. What a store keeps of a job is what [`Job::after`] made of it.
//!
//! ```text
//! queued ──> running ──> done ──────> expired
//!   │  ^        │ ├────> failed
//!   │  └────────┘ │      (once more after a crash; as often as the host is stopped, or cannot take it yet)
//!   ├────────────>├────> cancelled
//!   └──> expired (nobody took it in time)
//! ```

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Hosts that may end while a job runs before it is tried no more.
pub const ATTEMPTS_MAX: u32 = 2;
/// Hexadecimal digits of the time in an id: milliseconds since 1970, so that ids are in the order of their jobs.
const TIME_DIGITS: usize = 12;
/// Hexadecimal digits of an id that nobody can guess.
const RANDOM_DIGITS: usize = 20;
/// What ids begin with.
const PREFIX: &str = "job_";

/// Names a job. Ids are in the order in which their jobs came.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(String);

impl JobId {
    /// Of a job that comes at this time, in milliseconds since 1970. Nobody guesses it.
    pub fn new(now_ms: u64) -> Self {
        let time = now_ms & ((1 << (4 * TIME_DIGITS)) - 1);
        let random = rand::random::<u128>() >> (u128::BITS as usize - 4 * RANDOM_DIGITS);
        Self(format!("{PREFIX}{time:0TIME_DIGITS$x}{random:0RANDOM_DIGITS$x}"))
    }

    /// The id that a text is, if it can be one.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix(PREFIX)?;
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let is_one = digits.len() == TIME_DIGITS + RANDOM_DIGITS && digits.bytes().all(is_digit);
        is_one.then(|| Self(text.to_owned()))
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for JobId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// It waits for its turn.
    Queued,
    /// A host works on it, or did when it ended.
    Running,
    /// It has its answer, which is kept for a while.
    Done,
    /// It has none, and why is kept.
    Failed,
    /// Whoever asked does not want it any more.
    Cancelled,
    /// Its answer is kept no longer, or nobody took it in time.
    Expired,
}

impl JobState {
    /// Whether nothing is done for it any more.
    pub fn is_over(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }
}

/// What a store keeps of a job, beside its request and its answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Its name.
    pub id: JobId,
    /// The name of the key that it came with; nothing where keys are not asked for.
    pub owner: Option<String>,
    /// The route that it is for.
    pub endpoint: String,
    /// The model that it is for, by its entry.
    pub model: String,
    /// Where it stands.
    pub state: JobState,
    /// When it came, in seconds since 1970, as all times here.
    pub created_s: u64,
    /// When its last attempt began.
    pub started_s: Option<u64>,
    /// When it was over.
    pub ended_s: Option<u64>,
    /// Attempts that began, without those that a stop of the host cut short or that found no room.
    pub attempts: u32,
    /// Why it failed.
    pub error: Option<JobError>,
    /// What is known of its answer.
    pub answer: Option<AnswerFacts>,
}

/// Why a job failed, as whoever asked for it reads it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobError {
    /// The status that a client who waits would have been answered with.
    pub status: u16,
    /// The `error` of that answer.
    pub error: Value,
}

impl JobError {
    /// A failure of the host's own.
    pub fn new(status: u16, code: &str, message: &str) -> Self {
        let error = serde_json::json!({"message": message, "type": "server_error", "param": null, "code": code});
        Self { status, error }
    }
}

/// What is known of an answer without reading it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AnswerFacts {
    /// Its `Content-Type`.
    pub content_type: String,
    /// Its length.
    pub bytes: u64,
    /// Its `usage`, if it has one.
    pub usage: Option<Value>,
}

/// What happens to a job.
#[derive(Clone, Debug, PartialEq)]
pub enum JobEvent {
    /// A host begins to work on it. It counts before anything is done, so that a crash counts.
    Started,
    /// This attempt has an answer, which is kept.
    Answered(u32, AnswerFacts),
    /// This attempt failed for good.
    Failed(u32, JobError),
    /// This attempt did not take place: the host is stopped, or whoever serves has no room yet.
    PutBack(u32),
    /// The host that worked on it is gone.
    Orphaned,
    /// Whoever asked does not want it any more.
    Cancelled,
    /// Its time is up.
    Expired,
}

/// That an event comes too late, or twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a job that is {0:?} does not become that")]
pub struct OutOfTurn(pub JobState);

impl Job {
    /// One that is asked for now.
    pub fn queued(now_ms: u64, owner: Option<String>, endpoint: String, model: String) -> Self {
        Self {
            id: JobId::new(now_ms),
            owner,
            endpoint,
            model,
            state: JobState::Queued,
            created_s: now_ms / 1000,
            started_s: None,
            ended_s: None,
            attempts: 0,
            error: None,
            answer: None,
        }
    }

    /// The job after an event at this time. An attempt that is not the last one changes nothing any more, and what is over stays
    /// as it is: that is how a job is answered once.
    pub fn after(&self, event: &JobEvent, now_s: u64) -> Result<Self, OutOfTurn> {
        use JobState::{Cancelled, Done, Expired, Failed, Queued, Running};
        let is_last = |attempt: u32| self.state == Running && attempt == self.attempts;
        let over = |state| Self { state, ended_s: Some(now_s), ..self.clone() };
        let after = match event {
            JobEvent::Started if self.state == Queued => {
                Self { state: Running, started_s: Some(now_s), attempts: self.attempts + 1, ..self.clone() }
            }
            JobEvent::Answered(attempt, facts) if is_last(*attempt) => {
                Self { answer: Some(facts.clone()), ..over(Done) }
            }
            JobEvent::Failed(attempt, error) if is_last(*attempt) => {
                Self { error: Some(error.clone()), ..over(Failed) }
            }
            JobEvent::PutBack(attempt) if is_last(*attempt) => {
                Self { state: Queued, started_s: None, attempts: self.attempts - 1, ..self.clone() }
            }
            JobEvent::Orphaned if self.state == Running && self.attempts < ATTEMPTS_MAX => {
                Self { state: Queued, started_s: None, ..self.clone() }
            }
            JobEvent::Orphaned if self.state == Running => Self { error: Some(ended_under_it()), ..over(Failed) },
            JobEvent::Cancelled if !self.state.is_over() => over(Cancelled),
            JobEvent::Expired if self.state == Queued => over(Expired),
            JobEvent::Expired if self.state == Done => Self { state: Expired, ..self.clone() },
            _ => return Err(OutOfTurn(self.state)),
        };
        Ok(after)
    }
}

/// Said of a job that was running when its host ended, each time.
fn ended_under_it() -> JobError {
    let message = "this host ended twice while it worked on this job, which may be why: it is not tried again; send it anew if it is not";
    JobError::new(500, "job_interrupted", message)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A job that waits.
    pub(in crate::jobs) fn queued(now_ms: u64) -> Job {
        Job::queued(now_ms, None, "/v1/images/generations".into(), "flux".into())
    }

    pub(in crate::jobs) fn facts(bytes: u64) -> AnswerFacts {
        AnswerFacts { content_type: "image/png".into(), bytes, usage: None }
    }

    fn all(job: &Job, events: &[JobEvent]) -> Job {
        events.iter().fold(job.clone(), |job, event| job.after(event, 9).unwrap())
    }

    #[test]
    fn ids_are_in_the_order_of_their_jobs_and_nothing_else_is_one() {
        let (earlier, later) = (JobId::new(1_000), JobId::new(1_001));
        assert!(earlier < later && JobId::new(1_000) != earlier);
        assert_eq!(JobId::parse(earlier.as_str()), Some(earlier));
        for wrong in ["", "job_", "job_0", "job_../../../../etc/passwd", &format!("job_{}", "A".repeat(32))] {
            assert_eq!(JobId::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_second_crash_is_the_last_and_a_stop_is_none() {
        let crashed_once = all(&queued(0), &[JobEvent::Started, JobEvent::Orphaned]);
        assert_eq!((crashed_once.state, crashed_once.attempts), (JobState::Queued, 1));
        let mut stopped = crashed_once;
        for _ in 0..10 {
            stopped = all(&stopped, &[JobEvent::Started, JobEvent::PutBack(2)]);
            assert_eq!((stopped.state, stopped.attempts), (JobState::Queued, 1));
        }
        let crashed_twice = all(&stopped, &[JobEvent::Started, JobEvent::Orphaned]);
        assert_eq!((crashed_twice.state, crashed_twice.attempts), (JobState::Failed, 2));
        assert_eq!(crashed_twice.error.unwrap().error["code"], "job_interrupted");
    }

    #[test]
    fn an_attempt_that_is_not_the_last_answers_nothing() {
        let again = all(&queued(0), &[JobEvent::Started, JobEvent::Orphaned, JobEvent::Started]);
        assert_eq!(again.after(&JobEvent::Answered(1, facts(1)), 9), Err(OutOfTurn(JobState::Running)));
        assert_eq!(all(&again, &[JobEvent::Answered(2, facts(1))]).state, JobState::Done);
    }

    fn event() -> impl Strategy<Value = JobEvent> {
        prop_oneof![
            3 => Just(JobEvent::Started),
            1 => (0u32..4).prop_map(|attempt| JobEvent::Answered(attempt, facts(1))),
            1 => (0u32..4).prop_map(|attempt| JobEvent::Failed(attempt, JobError::new(500, "x", "y"))),
            1 => (0u32..4).prop_map(JobEvent::PutBack),
            1 => Just(JobEvent::Orphaned),
            1 => Just(JobEvent::Cancelled),
            1 => Just(JobEvent::Expired),
        ]
    }

    proptest! {
        #[test]
        fn a_job_is_answered_once_whatever_happens(events in prop::collection::vec(event(), 0..40)) {
            let mut job = queued(0);
            let (mut answers, mut crashes) = (0, 0);
            for event in &events {
                let before = job.clone();
                let Ok(after) = job.after(event, 9) else { continue };
                job = after;
                crashes += u32::from(*event == JobEvent::Orphaned);
                answers += u32::from(!before.state.is_over() && job.state.is_over());
                // What is over stays so, and of that only an answer's time can be up.
                prop_assert!(!before.state.is_over() || (before.state, job.state) == (JobState::Done, JobState::Expired));
                prop_assert_eq!(job.ended_s.is_some(), job.state.is_over());
                prop_assert!(job.error.is_some() == (job.state == JobState::Failed));
                prop_assert!(job.state != JobState::Done || job.answer.is_some());
            }
            prop_assert!(answers <= 1);
            prop_assert!(crashes <= ATTEMPTS_MAX && job.attempts <= ATTEMPTS_MAX);
        }
    }
}
