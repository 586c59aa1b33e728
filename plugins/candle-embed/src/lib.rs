//! Plugin `candle-embed`: vectors of texts, and scores of how well texts answer a query, from encoders and decoders as Hugging Face keeps
//! them, on the CPU.
//!
//! A request goes [`engine`] -> [`texts`] (text to ids) -> [`batch`] (which texts pass together) -> [`network`] (an encoder or a decoder of the engine
//! layer) -> [`pooling`] (the vectors of tokens to one of the text) -> [`dense`] layers, where there are any. [`files`] opens a model, whose shape [`config`] reads by the rows of
//! [`family`].

pub mod batch;
pub mod config;
pub mod dense;
pub mod engine;
pub mod family;
pub mod files;
pub mod network;
pub mod pooling;
pub mod texts;

pub use engine::{EmbedEngine, EmbedPlugin};

aihost_plugin_api::export_plugin! {
    plugin: EmbedPlugin,
    id: "candle-embed",
    devices: ["cpu"],
    formats: ["safetensors", "folder"],
    max_concurrency: 64,
}
