//! The one error of this tool: a sentence for the developer.

use std::fmt;

/// A sentence that says what failed.
#[derive(Debug)]
pub(crate) struct Error(pub(crate) String);

/// The result of every task.
pub(crate) type Result<T = ()> = std::result::Result<T, Error>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error {
    /// An error of this text.
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

/// Says what was being done when a lower layer failed.
pub(crate) trait Doing<T> {
    /// `doing` completes "cannot ...".
    fn doing(self, doing: impl fmt::Display) -> Result<T>;
}

impl<T, E: fmt::Display> Doing<T> for std::result::Result<T, E> {
    fn doing(self, doing: impl fmt::Display) -> Result<T> {
        self.map_err(|error| Error(format!("cannot {doing}: {error}")))
    }
}
