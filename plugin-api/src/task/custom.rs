//! Kind `custom`: an HTTP request below the entry's `endpoint:` in, any body out.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::FinishReason;

/// One HTTP request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[non_exhaustive]
pub struct CustomRequest {
    /// `GET`, `POST`, ...
    pub method: String,
    /// What follows the endpoint, as it was sent: empty, or from `/` on.
    pub path: String,
    /// What follows `?`, as it was sent; empty if there is none.
    pub query: String,
    /// Headers that a plugin may see, by their names in lower case: `accept`, `accept-language`, `content-type`, and all that
    /// begin with `x-`. Never a key.
    pub headers: BTreeMap<String, String>,
    /// The body, as the only block.
    #[serde(skip)]
    pub blocks: Vec<Vec<u8>>,
}

builders! {
    CustomRequest:
    query(into String), headers(BTreeMap<String, String>),
}

impl CustomRequest {
    /// A request with this body, as a client would send it.
    pub fn new(method: &str, path: &str, body: impl Into<Vec<u8>>) -> Self {
        let (method, path, blocks) = (method.to_owned(), path.to_owned(), vec![body.into()]);
        Self { method, path, blocks, ..Self::default() }
    }

    /// The body; empty if there is none.
    pub fn body(&self) -> &[u8] {
        self.blocks.first().map_or(&[], Vec::as_slice)
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// [`InvalidRequest`](crate::ErrorKind::InvalidRequest) if it is not of that form.
    pub fn json<T: serde::de::DeserializeOwned>(&self) -> crate::Result<T> {
        serde_json::from_slice(self.body())
            .map_err(|e| crate::Error::invalid_request(format!("the body cannot be read as JSON: {e}")))
    }
}

/// How an answer begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CustomHead {
    /// The HTTP status, 200 to 599.
    pub status: u16,
    /// The media type of the body.
    pub content_type: String,
    /// More headers; the host drops those that are its own to say.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
}

impl CustomHead {
    /// An answer of this status and media type.
    pub fn new(status: u16, content_type: &str) -> Self {
        Self { status, content_type: content_type.to_owned(), headers: BTreeMap::new() }
    }

    /// The same answer with one more header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.insert(name.to_ascii_lowercase(), value.to_owned());
        self
    }
}

/// The result of one custom request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CustomFinish {
    /// [`FinishReason::Stop`], or [`FinishReason::Cancelled`] when the client left.
    pub reason: FinishReason,
    /// Bytes of the body.
    pub bytes: u64,
}

impl CustomFinish {
    /// An answer of so many bytes.
    pub fn new(reason: FinishReason, bytes: u64) -> Self {
        Self { reason, bytes }
    }
}
