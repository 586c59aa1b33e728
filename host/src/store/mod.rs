//! Model files: where they lie, whether they are there, fetching them; and the files that answers name by URL. It knows nothing of plugins, scheduling or HTTP serving.
//!
//! A file appears under its final name only when it is whole and its digest is right: what is under way lies in `NAME.part`.

mod artifacts;
mod digest;
mod download;
mod locate;
mod lock;
mod pull;
#[cfg(test)]
mod tests;
mod wheel;

pub use artifacts::{ArtifactError, ArtifactLimits, Artifacts, Media};
pub use locate::Presence;
pub use locate::{fingerprint, locate, presence};
pub use pull::{Mirrors, Phase, Progress, ProgressSink, PullError, Pulled, Puller};
