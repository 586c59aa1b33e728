//! Plugin `candle-llm`: decoder-only language models from GGUF files and from Hugging Face's folders, on the CPU and, in a build with the feature `cuda`, on NVIDIA
//! GPUs, where it has never run so far.
//!
//! A request goes [`engine`] -> [`prompt`] ([`template`] and [`tokenizer`]: text to ids, and how the answer is read) -> [`batch`] (which tokens pass together, by
//! [`sequence`], in which [`blocks`] of the cache and with which of its [`states`]) -> [`model`] (ids to logits) -> [`sampler`] (logits to an id) -> the SDK's
//! `TextOutput`. [`files`] opens a model: a GGUF file, or what [`hugging_face`] keeps, whose shapes `aihost_support::decoder` reads; [`options`] is what the user asked for.

pub mod batch;
pub mod blocks;
pub mod engine;
pub mod files;
#[cfg(test)]
mod host_lists;
pub mod hugging_face;
pub mod model;
pub mod options;
pub mod prompt;
pub mod sampler;
pub mod sequence;
pub mod states;
pub mod template;
pub mod tokenizer;

pub use engine::{LlmEngine, LlmPlugin};

/// Chat templates come with models: what they take is bounded.
#[global_allocator]
static ALLOCATOR: aihost_support::budget::Budgeted = aihost_support::budget::Budgeted;

#[cfg(not(feature = "cuda"))]
aihost_plugin_api::export_plugin! {
    plugin: LlmPlugin,
    id: "candle-llm",
    devices: ["cpu"],
    formats: ["gguf", "safetensors", "folder"],
    max_concurrency: 64,
    parks: true,
    grammar: true,
}

#[cfg(feature = "cuda")]
aihost_plugin_api::export_plugin! {
    plugin: LlmPlugin,
    id: "candle-llm",
    devices: ["cpu", "cuda"],
    formats: ["gguf", "safetensors", "folder"],
    max_concurrency: 64,
    parks: true,
    grammar: true,
}
