//! Work that takes a while, on a thread that other requests do not share. Nothing of what the work is.

use crate::domain::{Failure, FailureKind};

/// Runs it on tokio's pool of blocking threads. What goes wrong there is the host's own fault.
pub(super) async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(error.to_string()));
    done.map_err(|message| Failure::new(FailureKind::Internal, message))
}
