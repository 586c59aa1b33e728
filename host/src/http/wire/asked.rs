//! What is known of a request for text before it is read.

use std::sync::Arc;

use super::Answerer;
use crate::http::conversations::Conversations;

/// What is known of a request for text before it is read.
#[derive(Clone, Debug)]
pub(in crate::http) struct Asked {
    pub(in crate::http) answerer: Answerer,
    /// Conversations that may go on.
    pub(in crate::http) conversations: Arc<Conversations>,
    /// The name of the key that it came with.
    pub(in crate::http) key: Option<String>,
}
