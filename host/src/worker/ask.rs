//! What is asked of an instance: a task for its plugin, a request of HTTP for an engine that speaks it, or its lease alone.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Method};
use parking_lot::Mutex;

use super::protocol::Task;
use crate::domain::{Failure, FailureKind};

/// What a body is broken off by.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;
/// A body on its way.
pub type HttpBody = UnsyncBoxBody<Bytes, BodyError>;

/// What is asked. Cheap to clone.
#[derive(Clone, Debug)]
pub enum Ask {
    /// What its plugin is to do.
    Task(Task),
    /// What the engine that answers HTTP for it is sent.
    Http(Arc<HttpAsk>),
    /// Nothing: whoever asks keeps it where it is, until they leave.
    Hold,
}

/// A request as an engine gets it, but for where that is.
#[derive(Debug)]
pub struct HttpAsk {
    /// `GET`, `POST`, ...
    pub method: Method,
    /// Path and query, from `/` on.
    pub target: String,
    /// What is said of it, without what is between a client and this host alone.
    pub headers: HeaderMap,
    /// What it carries.
    pub body: AskBody,
    /// How long it may take, with all that it begins.
    pub time_limit: Duration,
}

/// What a request carries.
pub enum AskBody {
    /// All of it, which can be sent twice.
    Whole(Bytes),
    /// What comes while it is sent. It is there for the first who asks for it.
    Streamed(Mutex<Option<HttpBody>>),
}

impl Ask {
    /// The task, if it is one.
    pub fn as_task(&self) -> Option<&Task> {
        match self {
            Self::Task(task) => Some(task),
            Self::Http(_) | Self::Hold => None,
        }
    }

    /// Bytes that it holds.
    pub fn size(&self) -> usize {
        match self {
            Self::Task(task) => task.size(),
            Self::Http(ask) => match &ask.body {
                AskBody::Whole(bytes) => bytes.len(),
                AskBody::Streamed(_) => 0,
            },
            Self::Hold => 0,
        }
    }
}

impl From<Task> for Ask {
    fn from(task: Task) -> Self {
        Self::Task(task)
    }
}

impl From<Bytes> for Ask {
    fn from(header: Bytes) -> Self {
        Self::Task(header.into())
    }
}

impl Hash for Ask {
    /// Two that ask the same have the same; of a body that streams only its beginning is known, which is nothing.
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            Self::Task(task) => task.hash(state),
            Self::Http(ask) => {
                (&ask.method, &ask.target).hash(state);
                if let AskBody::Whole(bytes) = &ask.body {
                    bytes.hash(state);
                }
            }
            Self::Hold => {}
        }
    }
}

/// What was asked cannot be asked of what serves the model by now.
pub(super) fn misdirected() -> Failure {
    Failure::new(FailureKind::Busy, "the model is served in another way by now; send the request again")
}

impl HttpAsk {
    /// Whether something may be under way once it is answered.
    pub(super) fn begins_work(&self) -> bool {
        !self.method.is_safe()
    }
}

impl AskBody {
    /// What comes while it is sent.
    pub fn streamed(body: HttpBody) -> Self {
        Self::Streamed(Mutex::new(Some(body)))
    }

    /// To be sent; nothing if it streams and was sent before.
    pub(super) fn to_send(&self) -> Option<HttpBody> {
        match self {
            Self::Whole(bytes) => Some(Full::new(bytes.clone()).map_err(|never| match never {}).boxed_unsync()),
            Self::Streamed(body) => body.lock().take(),
        }
    }

    /// Nothing of it was sent.
    pub(super) fn put_back(&self, unsent: HttpBody) {
        if let Self::Streamed(body) = self {
            *body.lock() = Some(unsent);
        }
    }
}

impl fmt::Debug for AskBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(bytes) => write!(f, "{} bytes", bytes.len()),
            Self::Streamed(_) => f.write_str("a stream"),
        }
    }
}
