//! One call's way to its client: pushes, and heeds the client's pace. What the outputs of all kinds stand on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::context::{Context, Flow};
use super::{Error, ErrorKind, Result};
use crate::abi::RawSinkArc;
use crate::task::FinishReason;

/// How often a blocked push looks whether the client has caught up.
const PAUSE_POLL: Duration = Duration::from_millis(2);

/// A cheap handle: clones feed the same answer, from any thread.
#[derive(Clone)]
pub struct Outlet {
    sink: Arc<RawSinkArc>,
    ctx: Context,
    /// The host said that it is to end.
    is_stopped: Arc<AtomicBool>,
}

impl std::fmt::Debug for Outlet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outlet").field("ctx", &self.ctx).finish_non_exhaustive()
    }
}

impl Outlet {
    pub(super) fn new(sink: Arc<RawSinkArc>, ctx: Context) -> Self {
        Self { sink, ctx, is_stopped: Arc::default() }
    }

    /// Sends an event of this kind and says whether to go on. An error once the client left.
    pub(super) fn push(&self, kind: u32, payload: &[u8]) -> Result<Flow> {
        self.going_on(self.sink.push(kind, payload.into()).into())
    }

    /// [`push`](Self::push), and waits while the client is too slow.
    pub(super) fn push_paced(&self, kind: u32, payload: &[u8]) -> Result<()> {
        let flow = self.push(kind, payload)?;
        self.pace(flow)
    }

    /// Waits until the client has caught up, if that is what `flow` says.
    pub(super) fn pace(&self, mut flow: Flow) -> Result<()> {
        while flow == Flow::Pause {
            std::thread::sleep(PAUSE_POLL);
            flow = self.flow()?;
        }
        Ok(())
    }

    /// Whether to go on, without pushing. An error once the client left or the call is cancelled.
    pub(super) fn flow(&self) -> Result<Flow> {
        self.ctx.check()?;
        self.going_on(self.sink.flow().into())
    }

    /// Tells how many steps are done, and looks whether to go on.
    pub(super) fn progress(&self, done: u64, total: u64) -> Result<()> {
        self.ctx.progress(done, total);
        self.flow().map(|_| ())
    }

    /// What an error of the engine means: `Ok` if the call was stopped and the engine obeyed.
    ///
    /// # Errors
    /// The error itself; and an internal one in place of a stop that nobody asked for.
    pub(super) fn stopped(&self, error: Error) -> Result<()> {
        match error.kind() {
            ErrorKind::Stopped if self.is_stopped.load(Ordering::Acquire) || self.ctx.is_cancelled() => Ok(()),
            ErrorKind::Stopped => {
                Err(Error::internal("the engine ended the request as stopped, which nobody asked for"))
            }
            _ => Err(error),
        }
    }

    /// Why a call ended, by what its engine returned. That it was cancelled counts only if it was.
    ///
    /// # Errors
    /// As [`stopped`](Self::stopped).
    pub(super) fn reason(&self, result: Result<FinishReason>) -> Result<FinishReason> {
        match result {
            Ok(FinishReason::Cancelled) => self.stopped(Error::stopped())?,
            Ok(reason) => return Ok(reason),
            Err(error) => self.stopped(error)?,
        }
        Ok(FinishReason::Cancelled)
    }

    fn going_on(&self, flow: Flow) -> Result<Flow> {
        if flow == Flow::Stop {
            self.is_stopped.store(true, Ordering::Release);
            return Err(Error::stopped());
        }
        Ok(flow)
    }
}
