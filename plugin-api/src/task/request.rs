//! What requests of all kinds have: bytes beside their JSON, and what the host says of whoever asked.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{AudioRequest, CustomRequest, EmbeddingRequest, ImageRequest, TextRequest};

/// A request: a header, read from JSON, and blocks of bytes, which it speaks of by number.
pub trait Request: DeserializeOwned + Send + 'static {
    /// The same request with the bytes that crossed beside it.
    #[must_use]
    fn with_blocks(self, blocks: Vec<Vec<u8>>) -> Self;
}

macro_rules! requests {
    ($($request:ty),*) => {$(
        impl Request for $request {
            fn with_blocks(mut self, blocks: Vec<Vec<u8>>) -> Self {
                self.blocks = blocks;
                self
            }
        }
    )*};
}

requests!(TextRequest, AudioRequest, ImageRequest, EmbeddingRequest, CustomRequest);

/// What the host says of a request beside what is asked. It crosses as JSON; members that a reader does not know are ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct RequestInfo {
    /// The client's own id of the request (`x-request-id`), or one that the host made.
    pub id: String,
    /// `interactive` or `batch`: whether other work goes first.
    pub class: String,
    /// For how long the host lets it run, from its start, in milliseconds.
    pub time_limit_ms: Option<u64>,
    /// The trace it belongs to, as W3C's `traceparent`; empty if its client named none.
    pub trace: String,
    /// Stands for whoever asked, and says nothing else: what is cached for one owner must not be shown to another.
    pub owner: String,
}
