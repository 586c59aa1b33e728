//! Plugin files: finding, describing, copying aside, checking and opening them. The only `dlopen` of the host is in `loader`.
//!
//! It knows nothing of models, scheduling or HTTP.

mod compatibility;
mod copy;
mod descriptor;
mod libraries;
mod loader;
mod permission;
mod registry;
mod shadow;

pub use compatibility::incompatible;
pub use copy::{Identity, PluginCopy};
pub use descriptor::{DescribeError, Described, describe};
pub use libraries::search_libraries;
pub use loader::{LoadError, OpenPlugin, open};
pub use permission::{Permission, permissions};
pub use registry::{PluginFile, Registry, RegistryError, Rejected};
pub use shadow::sweep as sweep_copies;
