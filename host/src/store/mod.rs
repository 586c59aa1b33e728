//! Model files: where they lie, whether they are there, fetching them; and the files that answers name by URL. It knows nothing of plugins, scheduling or HTTP serving.
//!
//! A file appears under its final name only when it is whole and its digest is right: what is under way lies in `NAME.part`.

mod archive;
mod artifacts;
mod assembly;
mod cache;
mod caches;
mod client;
mod digest;
mod download;
mod failure;
mod fetch;
mod hub;
mod locate;
mod lock;
mod packages;
mod pull;
mod race;
mod route;
mod sniff;
mod strays;
mod survey;
#[cfg(test)]
pub(crate) mod tests;
mod tls;
mod verify;

pub use archive::unpack;
pub use artifacts::{ArtifactError, ArtifactLimits, Artifacts, Media};
pub use cache::{Cache, CacheLease, Taken, entries, too_small};
pub use digest::Digests;
pub use failure::{causes, innermost};
pub use hub::{Beginning, HubFile, Repository};
pub use locate::Presence;
pub use locate::{fingerprint, locate, presence, refuse_folders};
pub use pull::{AlreadyHere, Phase, Progress, ProgressSink, PullError, Pulled, Puller};
pub use strays::{Stray, remove_file, remove_stray, strays};
pub use survey::{Missing, enough_room};
pub use tls::Trust;
pub use verify::{COPYING, Verification, Verifier};
