//! Plugin files: finding, describing, copying aside, checking and opening them. The only `dlopen` of the host is in `loader`.
//!
//! It knows nothing of models, scheduling or HTTP.

mod companions;
mod compatibility;
mod copy;
mod descriptor;
mod libraries;
mod loader;
mod news;
mod permission;
mod registry;
#[cfg(test)]
mod sample;
mod scan;
mod shadow;

pub use compatibility::{caution, incompatible};
pub use copy::{CopyIdentity, PluginCopy};
pub use descriptor::{DescribeError, Described, Linkage, describe};
pub use libraries::search_libraries;
pub use loader::{LoadError, OpenPlugin, open};
pub use news::News;
pub use permission::{Permission, permissions};
pub use registry::{PluginFile, Registry, RegistryError, Rejected, kind_served};
pub use scan::Seen;
pub use shadow::sweep as sweep_copies;
