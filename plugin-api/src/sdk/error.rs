//! The one error type of plugins: a kind the host can act on, and a sentence for people.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::abi::{RawError, RawErrorKind};

/// What went wrong, in terms the host can act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A defect in the plugin, or a failure with no better name.
    Internal,
    /// The request cannot be served as asked; the client must change it.
    InvalidRequest,
    /// The prompt does not fit the context.
    ContextLength,
    /// The entry's `options:` are wrong.
    InvalidOptions,
    /// A file of the model is not there.
    MissingFile,
    /// A file of the model is damaged or of the wrong format.
    CorruptFile,
    /// The device or the host ran out of memory.
    OutOfMemory,
    /// The plugin cannot do this.
    Unsupported,
    /// Ended because the client left or a stop string was found.
    Stopped,
    /// The device failed and this process can no longer use it.
    Device,
    /// The plugin panicked.
    Panicked,
}

const KINDS: [(ErrorKind, u32); 11] = [
    (ErrorKind::Internal, 0),
    (ErrorKind::InvalidRequest, 1),
    (ErrorKind::ContextLength, 2),
    (ErrorKind::InvalidOptions, 3),
    (ErrorKind::MissingFile, 4),
    (ErrorKind::CorruptFile, 5),
    (ErrorKind::OutOfMemory, 6),
    (ErrorKind::Unsupported, 7),
    (ErrorKind::Stopped, 8),
    (ErrorKind::Device, 9),
    (ErrorKind::Panicked, 10),
];

impl ErrorKind {
    /// The number that crosses the ABI.
    pub fn code(self) -> u32 {
        KINDS.iter().find(|(kind, _)| *kind == self).map_or(0, |(_, code)| *code)
    }

    /// The kind of a number; one that this build does not know is [`ErrorKind::Internal`].
    pub fn from_code(code: u32) -> Self {
        KINDS.iter().find(|(_, known)| *known == code).map_or(Self::Internal, |(kind, _)| *kind)
    }
}

/// How a backtrace begins.
const BACKTRACE: &str = "\n   0: ";
/// Most bytes of a sentence on its way to the host, which cuts further.
const MESSAGE_BYTES: usize = 4 << 10;

/// An error of a plugin. The message is one sentence that says what to do next where there is something to do; what a program
/// can act on is said beside it.
///
/// ```
/// use aihost_plugin_api::{Error, ErrorKind};
///
/// let error = Error::invalid_request("size is 7 x 7; it makes multiples of 8").at("size");
/// assert_eq!((error.kind(), error.details().field.as_deref()), (ErrorKind::InvalidRequest, Some("size")));
///
/// let error = Error::new(ErrorKind::CorruptFile, "the file ends in the middle of tensor blk.3; fetch it again");
/// assert!(error.to_string().ends_with("fetch it again"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    details: Option<Box<ErrorDetails>>,
}

/// What is known of an error beyond its sentence. It crosses as JSON; members that a reader does not know are ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ErrorDetails {
    /// The field of the request that is to blame, as the client named it: `prompt`, `messages[2].content`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// A name for programs, such as `unsupported_size`: a-z, 0-9 and `_`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// After how many milliseconds the same request may succeed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// Bytes that were asked for and were not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_wanted: Option<u64>,
    /// Bytes that were there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_had: Option<u64>,
    /// Tokens of a prompt that does not fit, where they were counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_tokens: Option<u32>,
    /// Tokens that prompt and answer may have together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_tokens: Option<u32>,
}

impl ErrorDetails {
    fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    fn from_json(json: &[u8]) -> Option<Box<Self>> {
        serde_json::from_slice(json).ok().filter(|details| *details != Self::NONE).map(Box::new)
    }

    /// Nothing is known.
    const NONE: Self = Self {
        field: None,
        code: None,
        retry_after_ms: None,
        bytes_wanted: None,
        bytes_had: None,
        prompt_tokens: None,
        context_tokens: None,
    };
}

/// The result of plugin calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of this kind. A backtrace that a library appended to its own error goes to the log instead.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if let Some(at) = message.find(BACKTRACE) {
            tracing::debug!("{message}");
            message.truncate(at);
        }
        Self { kind, message, details: None }
    }

    /// [`ErrorKind::Internal`].
    pub fn internal(message: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Internal, message.to_string())
    }

    /// [`ErrorKind::InvalidRequest`].
    pub fn invalid_request(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidRequest, message)
    }

    /// [`ErrorKind::OutOfMemory`], with how many bytes were wanted and how many there were.
    pub fn out_of_memory(message: impl Into<String>, wanted: u64, had: u64) -> Self {
        let mut error = Self::new(ErrorKind::OutOfMemory, message);
        let details = error.known();
        (details.bytes_wanted, details.bytes_had) = (Some(wanted), Some(had));
        error
    }

    /// [`ErrorKind::ContextLength`], with how many tokens the prompt has, if they were counted, and how many prompt and answer
    /// may have together.
    pub fn context_length(message: impl Into<String>, prompt: Option<u32>, context: u32) -> Self {
        let mut error = Self::new(ErrorKind::ContextLength, message);
        let details = error.known();
        (details.prompt_tokens, details.context_tokens) = (prompt, Some(context));
        error
    }

    /// The same error, which blames this field of the request: `prompt`, `messages[2].content`.
    #[must_use]
    pub fn at(mut self, field: impl Into<String>) -> Self {
        self.known().field = Some(field.into());
        self
    }

    /// The same error, by a name for programs: a-z, 0-9 and `_`.
    #[must_use]
    pub fn with_code(mut self, code: impl Into<String>) -> Self {
        self.known().code = Some(code.into());
        self
    }

    /// The same error, which may be over after so long.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.known().retry_after_ms = Some(after.as_millis().try_into().unwrap_or(u64::MAX));
        self
    }

    pub(crate) fn stopped() -> Self {
        Self::new(ErrorKind::Stopped, "the request was stopped")
    }

    /// What the host acts on.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The sentence for people.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What is known beside the sentence.
    pub fn details(&self) -> &ErrorDetails {
        const NONE: &ErrorDetails = &ErrorDetails::NONE;
        self.details.as_deref().unwrap_or(NONE)
    }

    fn known(&mut self) -> &mut ErrorDetails {
        self.details.get_or_insert_default()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<Error> for RawError {
    fn from(error: Error) -> Self {
        let mut message = error.message;
        message.truncate(message.floor_char_boundary(MESSAGE_BYTES));
        message.shrink_to_fit();
        Self {
            kind: RawErrorKind(error.kind.code()),
            message: message.into(),
            details: error.details.map(|details| details.to_json()).unwrap_or_default().into(),
        }
    }
}

impl From<RawError> for Error {
    fn from(raw: RawError) -> Self {
        let details = ErrorDetails::from_json(&raw.details);
        Self { kind: ErrorKind::from_code(raw.kind.0), message: raw.message.into(), details }
    }
}

#[cfg(test)]
mod tests {
    use super::{Error, MESSAGE_BYTES};
    use crate::abi::RawError;

    #[test]
    fn a_sentence_of_any_length_crosses_as_a_short_one() {
        let raw = RawError::from(Error::internal("é".repeat(8 << 20)));
        assert_eq!(raw.message.len(), MESSAGE_BYTES);
    }

    #[test]
    fn what_is_known_crosses_beside_the_sentence() {
        let error = Error::out_of_memory("no room", 3, 2).at("size").with_code("too_large");
        assert_eq!(Error::from(RawError::from(error.clone())), error);
        assert!(RawError::from(Error::internal("x")).details.is_empty());
        let mut newer = RawError::from(error);
        newer.details = br#"{"field": "size", "colour": "red"}"#.to_vec().into();
        assert_eq!(Error::from(newer).details().field.as_deref(), Some("size"));
    }

    #[test]
    fn a_backtrace_is_no_part_of_a_sentence() {
        let error =
            Error::internal("no room\n   0: candle_core::error::Error::bt\n   1: main\n             at ./main.rs:1");
        assert_eq!(error.message(), "no room");
        assert_eq!(Error::internal("two\nlines").message(), "two\nlines");
    }
}
