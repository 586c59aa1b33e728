//! The plugin interface of `aihost`: what a model plugin implements, and the stable ABI that carries it.
//!
//! A plugin is a `cdylib` that implements [`Plugin`] and [`Engine`] and names itself with [`export_plugin!`]:
//! no `unsafe`, no FFI. Panics, cancellation, logging, stop strings and UTF-8 assembly are the SDK's business.
//!
//! This crate knows no HTTP, no scheduler and no engine. Rooms: [`abi`] is what crosses the boundary, [`task`] is what
//! is asked and answered, [`sdk`] is what authors use.

#![warn(missing_docs)]

pub use aihost_plugin_abi as abi;

pub mod sdk;
pub mod task;

pub use sdk::{
    Audio, AudioOutput, Context, Custom, CustomOutput, Engine, Error, ErrorDetails, ErrorKind, Flow, Image,
    ImageOutput, Job, LoadContext, LogitsProcessor, Plugin, PrepareContext, Reply, Result, Text, TextOutput, Upstream,
    testing,
};
pub use task::{
    AudioFinish, AudioFormat, AudioRequest, CustomFinish, CustomHead, CustomRequest, FinishReason, ImageFinish,
    ImageRequest, LoadRequest, MemoryPlan, MemoryUsage, Message, Metric, MetricKind, RequestInfo, Sampling, TextFinish,
    TextInput, TextRequest, UpstreamAddress, Usage,
};

#[doc(hidden)]
pub mod private {
    //! Paths that [`export_plugin!`](crate::export_plugin) needs. Not an API.
    pub use abi_stable;
    pub use schemars;
    pub use serde_json;
}
