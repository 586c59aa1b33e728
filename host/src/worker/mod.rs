//! Instances in child processes: the placement trait, the protocol, the supervisor and the child's side.

mod placement;

pub use placement::{Exit, ExitReason, Instance, Loaded, Output, Placement, StartSpec, Started};

use std::path::PathBuf;

/// Runs each instance in a worker process (`aihost worker`, the same binary).
#[derive(Clone, Debug)]
pub struct WorkerPlacement {
    /// The host's binary; `/proc/self/exe` outside tests.
    pub executable: PathBuf,
}
