//! Plugin files: finding, describing, copying aside, checking and opening them. The only `dlopen` of the host is in `loader`.
//!
//! It knows nothing of models, scheduling or HTTP.

mod registry;

pub use registry::{PluginFile, Registry, RegistryError, Rejected};
