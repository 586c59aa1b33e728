//! What is asked of a model and what it answers: serde types, one file per kind of model.
//!
//! They cross the ABI as JSON bytes, so a new field is a change of data, never of layout. Every field that may be absent
//! has a default; unknown fields are ignored, so an older plugin reads a newer host's request.

mod audio;
mod block;
mod custom;
mod image;
mod metric;
mod request;
mod text;
mod upstream;

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use audio::{AudioBlock, AudioFinish, AudioFormat, AudioHeader, AudioRequest};
pub use custom::{CustomFinish, CustomHead, CustomRequest};
pub use image::{ImageBlock, ImageFinish, ImageHeader, ImageRequest};
pub use metric::{Metric, MetricKind};
pub use request::{Request, RequestInfo};
pub use text::{
    FinishReason, LogprobEntry, Message, Sampling, TextEvent, TextFinish, TextInput, TextRequest, TokenLogprob, Usage,
};
pub use upstream::UpstreamAddress;

/// What the host hands to a plugin that is to load a model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LoadRequest {
    /// The model's files by role. A model of one file has the single role `model`.
    pub files: BTreeMap<String, PathBuf>,
    /// `cpu` or `cuda:N`.
    pub device: String,
    /// Threads the engine may keep busy.
    #[serde(default = "one")]
    pub threads: usize,
    /// Bytes on `device` the host has set aside for this instance; 0 while planning.
    #[serde(default)]
    pub granted: u64,
}

impl LoadRequest {
    /// The path of a role, or an error that names it.
    pub fn file(&self, role: &str) -> crate::Result<&std::path::Path> {
        self.files.get(role).map(PathBuf::as_path).ok_or_else(|| {
            crate::Error::new(
                crate::ErrorKind::MissingFile,
                format!("the model has no file `{role}`; add it under `files:` or `source:` in models.yaml"),
            )
        })
    }
}

fn one() -> usize {
    1
}

/// Bytes an instance needs on its device, known before anything is allocated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MemoryPlan {
    /// The least it can load with: weights and the smallest caches. Bytes on the device.
    pub required: u64,
    /// What it would take if granted (larger caches). At least `required`.
    #[serde(default)]
    pub preferred: u64,
    /// The most that `generate` calls may allocate on top, all together. Bytes on the device.
    #[serde(default)]
    pub workspace_max: u64,
    /// Part of `required` that is a file mapped in place, shared with other instances of the same file.
    #[serde(default)]
    pub mapped: u64,
}

/// Bytes an instance holds now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MemoryUsage {
    /// Bytes on the device.
    pub device: u64,
    /// Bytes of host memory (equal to `device` on a CPU).
    pub host: u64,
}

/// What a plugin says of itself beyond its manifest.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// JSON Schema of the plugin's `options:`.
    pub options_schema: serde_json::Value,
}
