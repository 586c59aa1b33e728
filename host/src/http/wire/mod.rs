//! The shapes on the wire: what clients may send, checked field by field, and what they get. Nothing outside `http` sees them.

mod audio;
mod chat;
mod completion;
mod fields;
mod image;
mod reply;
mod sampling;
mod terms;

use serde::Serialize;

use crate::runtime::{Class, KeepAlive};
use aihost_plugin_api::task::TextRequest;

pub(super) use audio::{AudioCarrier, AudioDelivery, AudioFiles, AudioJob, AudioStreaming, parse as parse_audio};
pub(super) use chat::parse as parse_chat;
pub(super) use completion::parse as parse_completion;
pub(super) use fields::Fields;
pub(super) use image::{ImageDelivery, ImageJob, parse as parse_image};
pub(super) use reply::{ChatShape, Choice, CompletionShape, Shape};

/// Most choices one request may ask for, over all its prompts.
pub(super) const MAX_CHOICES: usize = 1024;

/// A request for text, of either endpoint.
#[derive(Clone, Debug)]
pub(super) struct TextJob {
    /// The model's name, if one was given.
    pub(super) model: Option<String>,
    /// One per prompt, at least one.
    pub(super) requests: Vec<TextRequest>,
    /// Choices per prompt.
    pub(super) n: usize,
    /// How the answer is sent.
    pub(super) delivery: Delivery,
    /// Whether other work goes first.
    pub(super) class: Class,
    /// How long the model stays afterwards, if the request says so.
    pub(super) keep_alive: Option<KeepAlive>,
}

/// How an answer is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    /// In one piece.
    Whole,
    /// As server-sent events.
    Stream,
    /// As server-sent events, with a last one for usage.
    StreamWithUsage,
}

/// How JSON leads to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carrier {
    /// It has the file, as base64.
    Base64,
    /// It has the address of the file, which lies on the host.
    Url,
}

/// JSON bytes. Our own shapes have string keys only, which is all that could fail.
pub(super) fn json(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(256);
    write_json(&mut bytes, value);
    bytes
}

/// Appends JSON.
pub(super) fn write_json(out: &mut Vec<u8>, value: &impl Serialize) {
    let start = out.len();
    if serde_json::to_writer(&mut *out, value).is_err() {
        out.truncate(start);
        out.extend_from_slice(b"null");
    }
}

/// A new random id with this prefix.
pub(super) fn new_id(prefix: &str) -> String {
    format!("{prefix}{:032x}", rand::random::<u128>())
}
