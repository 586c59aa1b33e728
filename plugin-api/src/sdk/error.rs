//! The one error type of plugins: a kind the host can act on, and a sentence for people.

use std::fmt;

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

/// An error of a plugin. The message is one sentence that says what to do next where there is something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    kind: ErrorKind,
    message: String,
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
        Self { kind, message }
    }

    /// [`ErrorKind::Internal`].
    pub fn internal(message: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Internal, message.to_string())
    }

    /// [`ErrorKind::InvalidRequest`].
    pub fn invalid_request(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidRequest, message)
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
        Self { kind: RawErrorKind(error.kind.code()), message: message.into() }
    }
}

impl From<RawError> for Error {
    fn from(raw: RawError) -> Self {
        Self { kind: ErrorKind::from_code(raw.kind.0), message: raw.message.into() }
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
    fn a_backtrace_is_no_part_of_a_sentence() {
        let error =
            Error::internal("no room\n   0: candle_core::error::Error::bt\n   1: main\n             at ./main.rs:1");
        assert_eq!(error.message(), "no room");
        assert_eq!(Error::internal("two\nlines").message(), "two\nlines");
    }
}
