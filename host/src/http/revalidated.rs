//! The mark of an answer that a browser may keep, for the door that says of all others that nobody is to.

/// That an answer may be kept as long as it is asked for again each time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Revalidated;
