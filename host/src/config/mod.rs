//! models.yaml, parsed twice: what was typed, then what it means.

mod resolved;

pub use resolved::{Config, DeviceConfig, FileConfig, Limits, ModelConfig, Paths, Source};
