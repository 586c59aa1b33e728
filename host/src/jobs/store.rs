//! What is asked of whoever keeps jobs. Here it is a database of this host's own; a fleet has another.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::job::{AnswerFacts, Job, JobEvent, JobId, OutOfTurn};
use crate::domain::ByteSize;

/// What a job asks, as it is asked again when its turn comes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobRequest {
    /// Headers that its answer depends on, by name.
    pub headers: Vec<(String, String)>,
    /// Its body, JSON.
    pub body: String,
}

/// What an attempt came to.
#[derive(Clone, Debug)]
pub struct JobAnswer {
    /// The attempt.
    pub attempt: u32,
    /// What is known of it without reading it.
    pub facts: AnswerFacts,
    /// All of it.
    pub bytes: Bytes,
}

/// How much is kept, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobLimits {
    /// Jobs that may wait or run (`jobs`).
    pub unfinished: u32,
    /// Jobs that run at once (`jobs_at_once`).
    pub at_once: u32,
    /// How long an answer is kept, and how long a job waits for its turn (`job_ttl`).
    pub ttl: Duration,
    /// Requests and answers together; the oldest answers make room (`job_bytes`).
    pub bytes: ByteSize,
}

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no such job.
    #[error("there is no such job")]
    Unknown,
    /// Something else came before.
    #[error(transparent)]
    OutOfTurn(#[from] OutOfTurn),
    /// As many jobs wait and run as may (`jobs`).
    #[error("{0} jobs wait or run, as many as may (`limits: jobs:`)")]
    TooMany(u32),
    /// More than all that is kept may be together (`job_bytes`).
    #[error("{0} are kept for jobs, as much as may be (`limits: job_bytes:`)")]
    NoRoom(ByteSize),
    /// The disk is full.
    #[error("the disk of {} is full", .0.display())]
    Full(PathBuf),
    /// Jobs cannot be kept, or what is kept cannot be read.
    #[error("{0}")]
    Unavailable(String),
}

/// Keeps jobs. Everything blocks on the disk or on others, and each call is done as a whole or not at all, also if the host ends
/// in its midst.
pub trait JobStore: Send + Sync + std::fmt::Debug {
    /// Keeps a new job with its request, if there is room for it.
    fn create(&self, job: &Job, request: &JobRequest, limits: &JobLimits) -> Result<(), StoreError>;

    /// A job.
    fn get(&self, id: &JobId) -> Result<Job, StoreError>;

    /// What it asks.
    fn request(&self, id: &JobId) -> Result<JobRequest, StoreError>;

    /// The newest jobs of an owner, at most so many; only those before this one, if one is given.
    fn list(&self, owner: Option<&str>, before: Option<&JobId>, most: usize) -> Result<Vec<Job>, StoreError>;

    /// All jobs that wait or run, in the order in which they came.
    fn unfinished(&self) -> Result<Vec<Job>, StoreError>;

    /// The job after this event, which is kept. Between what it was and what it is nothing else happens to it.
    fn change(&self, id: &JobId, event: &JobEvent, now_s: u64) -> Result<Job, StoreError>;

    /// The same for an attempt that has its answer, which is kept with it; older ones make room.
    fn answer(&self, id: &JobId, answer: &JobAnswer, limits: &JobLimits, now_s: u64) -> Result<Job, StoreError>;

    /// The answer of a job that is done, to be read to its end whatever becomes of the job.
    fn open_answer(&self, id: &JobId) -> Result<File, StoreError>;

    /// Forgets a job and all that it has.
    fn remove(&self, id: &JobId) -> Result<(), StoreError>;

    /// Lets go of answers whose time is up or that are too much together, the oldest first, and of what is known of jobs whose
    /// answers have long been gone. Those that expired while they waited.
    fn sweep(&self, limits: &JobLimits, now_s: u64) -> Result<Vec<Job>, StoreError>;

    /// Lets go of all that is kept, for another process: no call is done any more.
    fn close(&self);
}
