//! Server-sent events as bytes (WHATWG HTML, 9.2). Nothing of what they tell.

use serde::Serialize;

use super::error::ApiError;
use super::wire::write_json;
use crate::domain::Failure;

/// The type of a reply of events.
pub(super) const CONTENT_TYPE: &str = "text/event-stream";

/// Appends an event with a name.
pub(super) fn write_event(out: &mut Vec<u8>, name: &str, data: &impl Serialize) {
    out.extend_from_slice(format!("event: {name}\n").as_bytes());
    write_data(out, data);
}

/// Appends what tells a client of an answer with named events that it broke.
pub(super) fn write_failure_event(out: &mut Vec<u8>, failure: Failure) {
    out.extend_from_slice(b"event: error\n");
    write_failure(out, failure);
}

/// Appends the same for an answer whose events have no names.
pub(super) fn write_failure(out: &mut Vec<u8>, failure: Failure) {
    out.extend_from_slice(b"data: ");
    out.extend_from_slice(&ApiError::from(failure).json());
    out.extend_from_slice(b"\n\n");
}

/// Appends an event that has no name.
pub(super) fn write_data(out: &mut Vec<u8>, data: &impl Serialize) {
    out.extend_from_slice(b"data: ");
    write_json(out, data);
    out.extend_from_slice(b"\n\n");
}

/// Appends the end of an OpenAI stream.
pub(super) fn write_done(out: &mut Vec<u8>) {
    out.extend_from_slice(b"data: [DONE]\n\n");
}

/// Appends a comment, which clients skip and which keeps the connection from looking dead.
pub(super) fn write_ping(out: &mut Vec<u8>) {
    out.extend_from_slice(b": ping\n\n");
}
