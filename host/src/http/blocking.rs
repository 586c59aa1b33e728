//! Work that takes a while, on a thread that other requests do not share. Nothing of what the work is.

use std::thread;

use tokio::sync::{Semaphore, oneshot};

use super::error::ApiError;
use crate::device;
use crate::domain::{Failure, FailureKind};

/// Runs it on tokio's pool of blocking threads. What goes wrong there is the host's own fault.
pub(super) async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(error.to_string()));
    done.map_err(|message| Failure::new(FailureKind::Internal, message))
}

/// Runs it on a thread that comes after all that serve, once one of `turns` is free. It goes on if nobody waits for it any more,
/// and has its turn until it is over.
pub(super) async fn run_long<T: Send + 'static>(
    turns: &'static Semaphore,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    let turn = turns.acquire().await.map_err(|_| ApiError::internal("no such work is done any more"))?;
    let (result, done) = oneshot::channel();
    let worker = thread::Builder::new().name("long-work".into()).spawn(move || {
        device::work_long();
        let worked = work();
        drop(turn);
        // Who waits for it may have left.
        let _ = result.send(worked);
    });
    worker.map_err(|error| ApiError::internal(format!("no thread can be had: {error}")))?;
    done.await.map_err(|_| ApiError::internal("work on a thread of its own broke off"))
}
