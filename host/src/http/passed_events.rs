//! What is remembered of a stream of events that is passed on, so that one that breaks ends with an event that says why.
//! Nothing of what the events tell.

use axum::http::{HeaderMap, header};
use bytes::Bytes;

use super::error::ApiError;
use super::error_form::ErrorForm;
use super::{sse, wire};
use crate::domain::{Failure, Kind};

/// Paths whose clients read events in this host's words for what went wrong.
const KNOWN_PATHS: &str = "/v1/";
/// How the first event begins where events have names.
const NAME: &[u8] = b"event:";
/// Bytes at the end of what was passed on that tell whether an event is whole.
const TAIL_BYTES: usize = 4;

/// A stream of events on its way.
#[derive(Debug)]
pub(super) struct PassedEvents {
    form: ErrorForm,
    /// As many bytes of the first event as tell whether it has a name.
    head: Vec<u8>,
    /// The last bytes.
    tail: Vec<u8>,
}

impl PassedEvents {
    /// Of an answer to a path of a model of this kind. Nothing where it is no stream of events, or where nobody knows how its
    /// clients would read another one.
    pub(super) fn of(kind: Kind, target: &str, headers: &HeaderMap) -> Option<Self> {
        let is_known = kind != Kind::Custom && target.starts_with(KNOWN_PATHS);
        let media = headers.get(header::CONTENT_TYPE)?.to_str().ok()?.split(';').next().unwrap_or_default().trim();
        let is_packed = headers.contains_key(header::CONTENT_ENCODING);
        let is_one = is_known && !is_packed && media.eq_ignore_ascii_case(sse::CONTENT_TYPE);
        is_one.then(|| Self { form: ErrorForm::of(target), head: Vec::new(), tail: Vec::new() })
    }

    /// These bytes were passed on.
    pub(super) fn see(&mut self, bytes: &[u8]) {
        let missing = NAME.len() - self.head.len();
        self.head.extend_from_slice(&bytes[..missing.min(bytes.len())]);
        self.tail.extend_from_slice(&bytes[bytes.len().saturating_sub(TAIL_BYTES)..]);
        self.tail.drain(..self.tail.len().saturating_sub(TAIL_BYTES));
    }

    /// Whether what was passed on is whole events: something else may be said.
    pub(super) fn is_between(&self) -> bool {
        self.tail.is_empty() || self.tail.ends_with(b"\n\n") || self.tail.ends_with(b"\r\n\r\n")
    }

    /// The event that says why there are no more. In the midst of another one nothing can be said.
    pub(super) fn failure(&self, failure: Failure) -> Option<Bytes> {
        if !self.is_between() {
            return None;
        }
        let mut out = Vec::new();
        match self.form {
            ErrorForm::Anthropic => {
                let error = ApiError::from(failure);
                sse::write_event(&mut out, "error", &wire::messages_error(error.status(), &error.message(), ""));
            }
            _ if self.head == NAME => sse::write_failure_event(&mut out, failure),
            _ => {
                sse::write_failure(&mut out, failure);
                sse::write_done(&mut out);
            }
        }
        Some(out.into())
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;
    use crate::domain::FailureKind;

    fn events(kind: Kind, target: &str, media: &'static str) -> Option<PassedEvents> {
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(media))]);
        PassedEvents::of(kind, target, &headers)
    }

    fn end(target: &str, pieces: &[&str]) -> Option<String> {
        let mut events = events(Kind::Text, target, "text/event-stream; charset=utf-8").unwrap();
        pieces.iter().for_each(|piece| events.see(piece.as_bytes()));
        let told = events.failure(Failure::new(FailureKind::Unreachable, "the engine is gone"))?;
        Some(String::from_utf8(told.to_vec()).unwrap())
    }

    #[test]
    fn what_breaks_between_two_events_ends_with_one_that_its_clients_read() {
        let chat = end("/v1/chat/completions?x", &["d", "ata: 1\n", "\n"]).unwrap();
        assert!(chat.starts_with("data: {\"error\":{") && chat.ends_with("\n\ndata: [DONE]\n\n"), "{chat}");
        assert!(chat.contains("engine_unreachable"), "{chat}");
        assert_eq!(end("/v1/completions", &[]).as_ref(), Some(&chat));
        let responses = end("/v1/responses", &["eve", "nt: x\r\ndata: 1\r\n\r\n"]).unwrap();
        assert!(
            responses.starts_with("event: error\ndata: {\"error\":{") && !responses.contains("[DONE]"),
            "{responses}"
        );
        let messages = end("/v1/messages", &["event: ping\ndata: {}\n\n"]).unwrap();
        assert!(messages.starts_with("event: error\ndata: {\"type\":\"error\","), "{messages}");
        for half in ["data: 1", "data: 1\n", "data: 1\r\n", ": x\n\ndata: {\"a\""] {
            assert_eq!(end("/v1/chat/completions", &[half]), None, "{half:?}");
        }
    }

    #[test]
    fn what_is_no_stream_of_a_known_path_says_nothing() {
        assert!(events(Kind::Image, "/v1/images/generations", "text/event-stream").is_some());
        assert!(events(Kind::Custom, "/v1/own", "text/event-stream").is_none());
        assert!(events(Kind::Text, "/clock", "text/event-stream").is_none());
        assert!(events(Kind::Text, "/v1/chat/completions", "application/json").is_none());
        let mut packed = HeaderMap::new();
        packed.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        packed.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        assert!(PassedEvents::of(Kind::Text, "/v1/completions", &packed).is_none());
    }
}
