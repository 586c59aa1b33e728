//! What is asked of a model and what it answers: serde types, one file per kind of model.
//!
//! They cross the ABI as JSON bytes, so a new field is a change of data, never of layout. Every field that may be absent
//! has a default; unknown fields are ignored, so an older plugin reads a newer host's request.

/// Methods that carry the names of a type's fields and give the same value with that field changed, since a type that may grow
/// cannot be written as a literal elsewhere. `some T` is for an `Option<T>`, and takes either; `into T` takes what becomes one.
macro_rules! builders {
    ($owner:ident: $($field:ident($($form:tt)+)),+ $(,)?) => {
        impl $owner {
            $(builders! { @ $field $($form)+ })+
        }
    };
    (@ $field:ident some $of:ty) => {
        builders! { @ $field [impl Into<Option<$of>>] [$field.into()] }
    };
    (@ $field:ident into $of:ty) => {
        builders! { @ $field [impl Into<$of>] [$field.into()] }
    };
    (@ $field:ident [$($taken:tt)+] [$value:expr]) => {
        #[doc = concat!("The same with this [`", stringify!($field), "`](field@Self::", stringify!($field), ").")]
        #[must_use]
        pub fn $field(mut self, $field: $($taken)+) -> Self {
            self.$field = $value;
            self
        }
    };
    (@ $field:ident $of:ty) => {
        builders! { @ $field [$of] [$field] }
    };
}

mod audio;
mod block;
mod custom;
mod embedding;
mod facts;
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
pub use embedding::{
    EmbeddingBlock, EmbeddingFinish, EmbeddingForm, EmbeddingHeader, EmbeddingInput, EmbeddingRequest,
};
pub use facts::ModelFacts;
pub use image::{ImageBlock, ImageFinish, ImageHeader, ImageRequest};
pub use metric::{Metric, MetricKind};
pub use request::{Request, RequestInfo};
pub use text::{
    FinishReason, LogprobEntry, Message, Sampling, TextEvent, TextFinish, TextFormat, TextInput, TextRequest, Token,
    TokenLogprob, ToolChoice, Usage,
};
pub use upstream::UpstreamAddress;

/// What the host hands to a plugin that is to load a model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
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
    /// Bytes of `device` in all; 0 where nobody knows.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub device_memory: u64,
    /// The name by which an engine that answers HTTP itself will be asked for the model.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
}

builders! {
    LoadRequest:
    files(BTreeMap<String, PathBuf>), device(into String), threads(usize), granted(u64), device_memory(u64), name(into String),
}

impl LoadRequest {
    /// A load of these files, by role, on this device, with one thread and nothing granted yet.
    pub fn new(device: impl Into<String>, files: BTreeMap<String, PathBuf>) -> Self {
        Self { files, device: device.into(), threads: one(), ..Self::default() }
    }

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

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(bytes: &u64) -> bool {
    *bytes == 0
}

fn one() -> usize {
    1
}

/// What the host hands to a plugin that is to prepare a model. It crosses as JSON; members that a reader does not know are
/// ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PrepareRequest {
    /// The model's files, and the device on which it will be loaded; nothing is granted.
    pub load: LoadRequest,
    /// Variables of whoever asked that say where things are fetched from: proxies, certificates, indexes of packages.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
}

builders! {
    PrepareRequest:
    load(LoadRequest), environment(BTreeMap<String, String>),
}

/// Bytes an instance needs, known before anything is allocated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
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
    /// Bytes of page-locked host memory beside the device: staging buffers, weights that are streamed from there. On a CPU the
    /// device is the host's memory, and such bytes are part of `required`.
    #[serde(default)]
    pub pinned: u64,
    /// Bytes on other devices, by their names (`cuda:1`). A host that gives an instance one device refuses the plan, with the
    /// numbers.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub others: BTreeMap<String, u64>,
    /// What is known of the model, for listings.
    #[serde(default, skip_serializing_if = "ModelFacts::is_unknown")]
    pub facts: ModelFacts,
}

builders! {
    MemoryPlan:
    required(u64), preferred(u64), workspace_max(u64), mapped(u64), pinned(u64), others(BTreeMap<String, u64>),
    facts(ModelFacts),
}

impl MemoryPlan {
    /// So many bytes, which more would not help.
    pub fn new(required: u64) -> Self {
        Self { required, preferred: required, ..Self::default() }
    }
}

/// Bytes an instance holds now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct MemoryUsage {
    /// Bytes on the device.
    pub device: u64,
    /// Bytes of host memory (equal to `device` on a CPU).
    pub host: u64,
}

impl MemoryUsage {
    /// So many bytes on the device and of the host's memory; on a CPU, the same number twice.
    pub fn new(device: u64, host: u64) -> Self {
        Self { device, host }
    }
}

/// What a plugin says of itself beyond its manifest.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Description {
    /// JSON Schema of the plugin's `options:`.
    pub options_schema: serde_json::Value,
}
