//! Jobs from being asked for to their ends, over a real store and a dispatch that does as the test says.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, which is what it is for")]

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::domain::ByteSize;

const PATIENCE: Duration = Duration::from_secs(30);
const LIMITS: JobLimits =
    JobLimits { unfinished: 100, at_once: 1, ttl: Duration::from_secs(1000), bytes: ByteSize(1 << 20) };

type Work = dyn Fn(Attempt) -> BoxFuture<'static, Outcome> + Send + Sync;

struct Scripted {
    limits: JobLimits,
    work: Box<Work>,
}

impl Dispatch for Scripted {
    fn limits(&self) -> JobLimits {
        self.limits
    }

    fn run(&self, attempt: Attempt) -> BoxFuture<'static, Outcome> {
        (self.work)(attempt)
    }
}

fn answered(text: &str) -> Outcome {
    let bytes = Bytes::copy_from_slice(text.as_bytes());
    Outcome::Answered { content_type: "text/plain".into(), bytes, usage: None }
}

fn opened(folder: &tempfile::TempDir) -> Jobs {
    Jobs::over(Arc::new(EmbeddedStore::open(folder.path()).unwrap())).unwrap()
}

/// Runs jobs so.
fn run(
    jobs: &Jobs,
    limits: JobLimits,
    work: impl Fn(Attempt) -> BoxFuture<'static, Outcome> + Send + Sync + 'static,
) -> JoinHandle<()> {
    let (jobs, dispatch) = (jobs.clone(), Arc::new(Scripted { limits, work: Box::new(work) }));
    tokio::spawn(async move { jobs.run(dispatch).await })
}

async fn submit(jobs: &Jobs, owner: Option<&str>, body: &str) -> JobId {
    let new = NewJob {
        owner: owner.map(str::to_owned),
        endpoint: "/v1/images/generations".into(),
        model: "flux".into(),
        request: JobRequest { headers: Vec::new(), body: body.into() },
    };
    jobs.submit(new, LIMITS).await.unwrap().job.id
}

async fn until(jobs: &Jobs, owner: Option<&str>, id: &JobId, state: JobState) -> JobView {
    let mut follower = jobs.follow(owner, id).await.unwrap();
    let reached = follower.wait_for(|view| view.job.state == state);
    timeout(PATIENCE, reached).await.expect("it comes to that").unwrap().clone()
}

#[tokio::test]
async fn a_job_is_run_with_what_it_asks_and_its_answer_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let jobs = opened(&folder);
    let runner = run(&jobs, LIMITS, |attempt| {
        async move {
            attempt.progress.report((0, 1), 1, 2);
            answered(&attempt.request.body)
        }
        .boxed()
    });
    let id = submit(&jobs, Some("a"), "a prompt").await;
    let view = until(&jobs, Some("a"), &id, JobState::Done).await;
    assert_eq!((view.progress, view.job.attempts), (WHOLE, 1));
    assert_eq!(std::io::read_to_string(jobs.open_answer(&id).await.unwrap()).unwrap(), "a prompt");
    for stranger in [None, Some("b")] {
        assert!(matches!(jobs.get(stranger, &id).await, Err(StoreError::Unknown)));
        assert!(matches!(jobs.cancel(stranger, &id).await, Err(StoreError::Unknown)));
        assert!(matches!(jobs.remove(stranger, &id).await, Err(StoreError::Unknown)));
        assert!(jobs.follow(stranger, &id).await.is_err());
    }
    assert!(matches!(jobs.cancel(Some("a"), &id).await, Err(StoreError::OutOfTurn(_))));
    jobs.remove(Some("a"), &id).await.unwrap();
    assert!(matches!(jobs.get(Some("a"), &id).await, Err(StoreError::Unknown)));
    jobs.stop();
    timeout(PATIENCE, runner).await.unwrap().unwrap();
}

#[tokio::test]
async fn jobs_that_are_left_are_another_hosts_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let jobs = opened(&folder);
    let runner = run(&jobs, LIMITS, |_| std::future::pending().boxed());
    let (begun, waiting) = (submit(&jobs, None, "begun").await, submit(&jobs, None, "waiting").await);
    until(&jobs, None, &begun, JobState::Running).await;
    jobs.leave().await;
    let next = opened(&folder);
    for id in [&begun, &waiting] {
        let job = next.get(None, id).await.unwrap().job;
        assert_eq!((job.state, job.attempts), (JobState::Queued, 0));
    }
    assert!(matches!(jobs.list(None, None, 9).await, Err(StoreError::Unavailable(_))));
    timeout(PATIENCE, runner).await.unwrap().unwrap();
    let runner = run(&next, LIMITS, |attempt| async move { answered(&attempt.request.body) }.boxed());
    for id in [&begun, &waiting] {
        until(&next, None, id, JobState::Done).await;
    }
    next.stop();
    timeout(PATIENCE, runner).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_host_that_ends_twice_under_a_job_tries_it_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let mut jobs = opened(&folder);
    let id = submit(&jobs, None, "").await;
    for attempts in 1..=ATTEMPTS_MAX {
        let runner = run(&jobs, LIMITS, |_| std::future::pending().boxed());
        assert_eq!(until(&jobs, None, &id, JobState::Running).await.job.attempts, attempts);
        // It ends without a word.
        runner.abort();
        let _ended = runner.await;
        drop(jobs);
        jobs = reopened(&folder).await;
    }
    let view = jobs.get(None, &id).await.unwrap();
    assert_eq!((view.job.state, &view.job.error.unwrap().error["code"]), (JobState::Failed, &"job_interrupted".into()));
}

/// The store, once what is left of the host before has let it go.
async fn reopened(folder: &tempfile::TempDir) -> Jobs {
    let open = async {
        loop {
            match EmbeddedStore::open(folder.path()) {
                Ok(store) => return Jobs::over(Arc::new(store)).unwrap(),
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    timeout(PATIENCE, open).await.expect("it is let go")
}

#[tokio::test]
async fn a_host_that_stops_leaves_what_it_cuts_to_the_next_and_counts_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut jobs = opened(&folder);
    let id = submit(&jobs, None, "").await;
    for _ in 0..3 {
        let cut = Arc::new(Notify::new());
        let told = Arc::clone(&cut);
        let runner = run(&jobs, LIMITS, move |_| {
            let cut = Arc::clone(&told);
            async move {
                cut.notified().await;
                Outcome::Failed(JobError::new(500, "worker_died", "the host cut it"))
            }
            .boxed()
        });
        until(&jobs, None, &id, JobState::Running).await;
        jobs.stop();
        cut.notify_one();
        timeout(PATIENCE, runner).await.unwrap().unwrap();
        drop(jobs);
        jobs = reopened(&folder).await;
        let view = jobs.get(None, &id).await.unwrap();
        assert_eq!((view.job.state, view.job.attempts), (JobState::Queued, 0));
    }
}

#[tokio::test]
async fn a_job_that_finds_no_room_waits_and_has_not_been_tried() {
    let folder = tempfile::tempdir().unwrap();
    let jobs = opened(&folder);
    let tries = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&tries);
    let _runner = run(&jobs, LIMITS, move |_| {
        let number = counted.fetch_add(1, Ordering::Relaxed);
        async move { if number < 2 { Outcome::NotNow(Duration::ZERO) } else { answered("x") } }.boxed()
    });
    let id = submit(&jobs, None, "").await;
    assert_eq!(until(&jobs, None, &id, JobState::Done).await.job.attempts, 1);
    assert_eq!(tries.load(Ordering::Relaxed), 3);
}

/// Says when it is dropped.
struct Dropped(Arc<Notify>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

#[tokio::test]
async fn a_cancelled_job_is_worked_on_no_more_and_the_next_has_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let jobs = opened(&folder);
    let left = Arc::new(Notify::new());
    let dropped = Arc::clone(&left);
    let _runner = run(&jobs, LIMITS, move |attempt| {
        let held = Dropped(Arc::clone(&dropped));
        async move {
            if attempt.request.body == "long" {
                std::future::pending::<()>().await;
            }
            drop(held);
            answered("x")
        }
        .boxed()
    });
    let (long, short) = (submit(&jobs, None, "long").await, submit(&jobs, None, "short").await);
    until(&jobs, None, &long, JobState::Running).await;
    assert_eq!(jobs.cancel(None, &long).await.unwrap().job.state, JobState::Cancelled);
    timeout(PATIENCE, left.notified()).await.expect("it is dropped");
    until(&jobs, None, &short, JobState::Done).await;
    assert_eq!(jobs.get(None, &long).await.unwrap().job.state, JobState::Cancelled);
}

#[tokio::test]
async fn what_panics_is_its_job_alone() {
    let folder = tempfile::tempdir().unwrap();
    let jobs = opened(&folder);
    let _runner = run(&jobs, LIMITS, |attempt| {
        async move { if attempt.request.body == "bad" { panic!("as it should") } else { answered("x") } }.boxed()
    });
    let (bad, good) = (submit(&jobs, None, "bad").await, submit(&jobs, None, "good").await);
    assert_eq!(until(&jobs, None, &bad, JobState::Failed).await.job.error.unwrap().status, 500);
    until(&jobs, None, &good, JobState::Done).await;
}

#[tokio::test]
async fn whoever_sends_many_jobs_leaves_room_for_others() {
    let folder = tempfile::tempdir().unwrap();
    let jobs = opened(&folder);
    let mut many = Vec::new();
    for _ in 0..5 {
        many.push(submit(&jobs, Some("many"), "").await);
    }
    let one = submit(&jobs, Some("one"), "").await;
    let limits = JobLimits { at_once: 2, ..LIMITS };
    let _runner = run(&jobs, limits, |_| std::future::pending().boxed());
    until(&jobs, Some("many"), &many[0], JobState::Running).await;
    until(&jobs, Some("one"), &one, JobState::Running).await;
    assert_eq!(jobs.get(Some("many"), &many[1]).await.unwrap().job.state, JobState::Queued);
}

#[tokio::test]
async fn an_answer_that_is_larger_than_all_may_be_is_a_failure_that_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let jobs = opened(&folder);
    let limits = JobLimits { bytes: ByteSize(1000), ..LIMITS };
    let _runner = run(&jobs, limits, |_| async { answered(&"x".repeat(2000)) }.boxed());
    let id = submit(&jobs, None, "").await;
    let error = until(&jobs, None, &id, JobState::Failed).await.job.error.unwrap();
    assert_eq!((error.status, &error.error["code"]), (507, &"storage_full".into()));
}
