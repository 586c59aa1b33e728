//! What the host tells a running call, and what the call tells the host.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use abi_stable::sabi_trait::TD_Opaque;

use super::{Error, Result};
use crate::abi::{RawCallback, RawCallback_TO, RawContextArc, RawFlow};
use crate::task::RequestInfo;

/// What to do after pushing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// The client keeps up: go on.
    Continue,
    /// The client reads slowly: hold this sequence until [`Flow::Continue`] comes, others may go on.
    Pause,
    /// The client left: end this sequence.
    Stop,
}

impl From<RawFlow> for Flow {
    fn from(raw: RawFlow) -> Self {
        match raw.0 {
            0 => Self::Continue,
            1 => Self::Pause,
            _ => Self::Stop,
        }
    }
}

/// A call's cancellation, and what is known of its request. Cheap to clone; may be asked from any thread.
#[derive(Clone)]
pub struct Context {
    raw: Arc<RawContextArc>,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("request_id", &self.request_id()).finish()
    }
}

impl Context {
    pub(crate) fn new(raw: RawContextArc) -> Self {
        Self { raw: Arc::new(raw) }
    }

    /// Whether the client left or the host wants the call to end.
    pub fn is_cancelled(&self) -> bool {
        self.raw.is_cancelled() != 0
    }

    /// An error to return with `?` once the call is cancelled.
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() { Err(Error::stopped()) } else { Ok(()) }
    }

    /// Steps of a long request, for progress bars. `total` 0 means unknown.
    pub fn progress(&self, done: u64, total: u64) {
        self.raw.progress(done, total);
    }

    /// The host's number of the request; 0 outside requests.
    pub fn request_id(&self) -> u64 {
        self.raw.request_id()
    }

    /// What the host says of the request: its client's id, class, trace and owner. All of it is empty outside requests.
    pub fn request(&self) -> RequestInfo {
        serde_json::from_slice(&self.raw.about()).unwrap_or_default()
    }

    /// How long the client waits at most, from the start of the request; `None` if it says nothing of that.
    pub fn time_limit(&self) -> Option<Duration> {
        self.request().time_limit_ms.map(Duration::from_millis)
    }

    /// Calls back once when this call is cancelled, on a thread of the host; at once if it is already. It must not block. One
    /// for each call: another takes its place.
    pub fn on_cancel(&self, callback: impl FnOnce() + Send + 'static) {
        let once = Once(Mutex::new(Some(Box::new(callback))));
        self.raw.on_cancel(RawCallback_TO::from_value(once, TD_Opaque));
    }
}

/// A callback that is used up by its first call.
struct Once(Mutex<Option<Box<dyn FnOnce() + Send>>>);

impl RawCallback for Once {
    fn call(&self) {
        let callback = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        // A panic must not leave through the host's frames.
        let _caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| callback.map(|call| call())));
    }
}

/// What is known to a plugin that prepares a model. What it prints and logs is shown to whoever waits for it.
#[derive(Clone, Debug, Default)]
pub struct PrepareContext {
    pub(crate) environment: BTreeMap<String, String>,
}

impl PrepareContext {
    /// Variables of whoever asked that say where things are fetched from (proxies, certificates, indexes of packages): for the
    /// programs that are started to fetch them.
    pub fn environment(&self) -> &BTreeMap<String, String> {
        &self.environment
    }
}

/// A load's progress and cancellation.
#[derive(Clone, Debug)]
pub struct LoadContext(pub(crate) Context);

impl LoadContext {
    /// Bytes (or any other unit) done of a total. The load deadline moves only while this grows.
    pub fn progress(&self, done: u64, total: u64) {
        self.0.raw.progress(done, total);
    }

    /// An error to return with `?` once the host gives up on the load.
    pub fn check(&self) -> Result<()> {
        self.0.check()
    }
}
