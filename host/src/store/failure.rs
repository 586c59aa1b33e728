//! Why a mirror did not give what was asked of it: one sentence that says what to do, and whether asking again may help.

use std::error::Error;
use std::time::Duration;

/// One mirror's failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// For people.
    pub(super) sentence: String,
    pub(super) kind: Kind,
}

/// What follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Asking again cannot help.
    Final,
    /// It may; after this long, if the server said so.
    Passing(Option<Duration>),
    /// There was no connection; there may be one later.
    Unreachable,
    /// Nothing came for as long as one waits. Asking again would cost that time again.
    Silent,
}

impl Failure {
    pub(super) fn last(sentence: impl Into<String>) -> Self {
        Self { sentence: sentence.into(), kind: Kind::Final }
    }

    pub(super) fn passing(sentence: impl Into<String>) -> Self {
        Self { sentence: sentence.into(), kind: Kind::Passing(None) }
    }

    /// Whether asking again may help, soon.
    pub(super) fn is_passing(&self) -> bool {
        matches!(self.kind, Kind::Passing(_) | Kind::Unreachable)
    }

    /// Whether the network is to blame rather than the mirror.
    pub(super) fn is_of_the_network(&self) -> bool {
        matches!(self.kind, Kind::Unreachable | Kind::Silent)
    }
}

/// The error and its causes, outermost first, each cause once.
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    causes(error)
        .skip(1)
        .map(ToString::to_string)
        .fold(error.to_string(), |text, words| if text.contains(&words) { text } else { format!("{text}: {words}") })
}

/// The innermost cause, which is the one that says something.
pub fn innermost(error: &(dyn Error + 'static)) -> String {
    causes(error).last().unwrap_or(error).to_string()
}

/// An error and all that led to it, outermost first.
pub fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&cause| {
        // An `io::Error` gives its content's source as its own, and so hides the content.
        let content = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        content.map(|content| content as &(dyn Error + 'static)).or_else(|| cause.source())
    })
}
