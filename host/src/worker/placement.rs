//! Where plugin code runs, behind one trait: the runtime knows instances, not processes.

use std::collections::BTreeMap;
use std::fmt;
use std::future::poll_fn;
use std::path::PathBuf;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use aihost_plugin_api::{LoadRequest, MemoryPlan, Metric, ModelFacts};
use bytes::Bytes;
use futures_util::future::{BoxFuture, ready};
use hyper::upgrade::Upgraded;
use hyper::{HeaderMap, StatusCode};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};

use super::ask::Ask;
use super::limits::{OUTPUT_QUEUE, grant_margin};
use super::log::ModelLog;
use super::protocol::Task;
use super::quiet;
use crate::config::{BusyProbe, RemoteConfig};
use crate::domain::{ByteSize, Device, Failure, FailureKind, InstanceId, ModelId, RequestId};
use crate::plugin::PluginFile;

/// What is needed to bring an instance up.
#[derive(Clone, Debug)]
pub struct StartSpec {
    /// The instance's number.
    pub instance: InstanceId,
    /// The model that it holds.
    pub model: ModelId,
    /// The plugin, registered: shadow copy and manifest.
    pub plugin: Arc<PluginFile>,
    /// `options:` as JSON.
    pub options: serde_json::Value,
    /// Files and device; `granted` is filled in at load.
    pub load: LoadRequest,
    /// What the files of `load` are copies of, where they are: what lies beside these is read where it lies.
    pub copied_from: Vec<PathBuf>,
    /// A folder in which its plugin may do as it likes, and which outlives the instance; made if it is not there.
    pub own_folder: Option<PathBuf>,
    /// How long the worker may take from spawn to plan.
    pub start_timeout: Duration,
    /// Silence after which the worker counts as stalled; it says something every second.
    pub silence: Duration,
    /// Where the worker and its plugin log to.
    pub log: Arc<ModelLog>,
    /// How an engine that answers HTTP itself is seen to work on, once it has answered.
    pub busy: Option<BusyProbe>,
}

/// What an instance may hold on its device, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// What its plugin says it takes at most.
    pub planned: u64,
    /// What is set aside for it. It is ended when it holds a tenth more, or 64 MiB if that is more.
    pub granted: u64,
    /// The part of it that lies in mapped files, which count whole.
    pub mapped: u64,
}

impl Allowance {
    /// The most that does not end it, beside what a device's driver takes.
    pub fn most(self) -> u64 {
        self.granted.saturating_add(grant_margin(self.granted))
    }
}

/// An instance that is up, and what it plans; or why not.
pub type Started = Result<(Arc<dyn InstanceHandle>, MemoryPlan), Failure>;

/// Brings instances up.
pub trait Placement: Send + Sync + 'static {
    /// Starts a worker, opens the plugin, instantiates, plans. The instance holds no device memory yet.
    ///
    /// When its process is gone, for whatever reason and even if `start` fails, `Exit` is sent on `exits` exactly once.
    fn start(&self, spec: StartSpec, exits: mpsc::Sender<Exit>) -> BoxFuture<'static, Started>;

    /// Brings up a model that others run, which takes nothing here. `Exit` is sent once it is let go.
    fn reach(
        &self,
        _instance: InstanceId,
        _remote: RemoteConfig,
        _exits: mpsc::Sender<Exit>,
    ) -> BoxFuture<'static, Started> {
        Box::pin(ready(Err(Failure::new(FailureKind::NotUsable, "models that others run cannot be reached from here"))))
    }

    /// Bytes of a device that are free now, as measured; nothing if they cannot be.
    fn capacity(&self, _device: Device) -> Option<u64> {
        None
    }
}

/// What an instance gives to one request.
pub struct Outputs {
    outputs: mpsc::Receiver<Output>,
    /// What makes them, if whoever reads them does that.
    work: Option<BoxFuture<'static, ()>>,
}

impl Outputs {
    /// Those of a request that is served by whoever reads them: there is no task between the two that would have to be woken for
    /// each. Dropping them ends it.
    pub(super) fn made_by<F: Future<Output = ()> + Send + 'static>(
        work: impl FnOnce(mpsc::Sender<Output>) -> F,
    ) -> Self {
        let (output, outputs) = mpsc::channel(OUTPUT_QUEUE);
        Self { outputs, work: Some(Box::pin(work(output))) }
    }

    /// The next one; nothing behind the last.
    pub async fn recv(&mut self) -> Option<Output> {
        poll_fn(|cx| {
            let Some(work) = &mut self.work else { return self.outputs.poll_recv(cx) };
            // All that is sent is sent while this is polled.
            if let Poll::Ready(output) = quiet::look(cx, |quiet| self.outputs.poll_recv(quiet)) {
                return Poll::Ready(output);
            }
            if work.as_mut().poll(cx).is_ready() {
                self.work = None;
                return self.outputs.poll_recv(cx);
            }
            quiet::look(cx, |quiet| self.outputs.poll_recv(quiet))
        })
        .await
    }
}

impl From<mpsc::Receiver<Output>> for Outputs {
    fn from(outputs: mpsc::Receiver<Output>) -> Self {
        Self { outputs, work: None }
    }
}

impl fmt::Debug for Outputs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outputs").field("outputs", &self.outputs).finish_non_exhaustive()
    }
}

/// One instance. Dropping the last handle kills it.
pub trait InstanceHandle: Send + Sync + std::fmt::Debug {
    /// Loads within `granted` bytes and warms up. Fails with the plugin's own reason, or after `deadline` without progress.
    fn load(&self, granted: u64, deadline: Duration) -> BoxFuture<'static, Result<Loaded, Failure>>;

    /// Serves one request, as far as that is read on. The last of what it gives is [`Output::Done`], once `generate` of the
    /// plugin has returned, or an engine has answered and works no more. A cause on `cancelled`, or dropping its sender, asks
    /// the plugin to end early; one that does not within 10 s costs the worker.
    fn generate(&self, request: RequestId, ask: Ask, cancelled: oneshot::Receiver<CancelCause>) -> Outputs;

    /// Has the plugin give device memory back, keeping what makes waking quick; no request may be open. Not done within
    /// 30 s, the worker is killed.
    fn park(&self) -> BoxFuture<'static, Result<Loaded, Failure>> {
        Box::pin(ready(Err(Failure::new(FailureKind::NotUsable, "this plugin cannot park"))))
    }

    /// Undoes [`Self::park`]. Not done within 30 s of its last progress, the worker is killed.
    fn unpark(&self) -> BoxFuture<'static, Result<Loaded, Failure>> {
        Box::pin(ready(Err(Failure::new(FailureKind::NotUsable, "this plugin cannot park"))))
    }

    /// Whether the plugin can still serve, by its own account. Requests may run meanwhile. Not answered within 30 s, the
    /// worker is killed.
    fn health(&self) -> BoxFuture<'static, Result<(), Failure>> {
        Box::pin(ready(Ok(())))
    }

    /// Bytes on the device that a request needs beyond the plan. Requests may run meanwhile. Not answered within 30 s,
    /// the worker is killed.
    fn cost(&self, _task: Task) -> BoxFuture<'static, Result<u64, Failure>> {
        Box::pin(ready(Ok(0)))
    }

    /// Has its plugin make what a load needs beside the model's files. These variables say where things are fetched from. It may
    /// take a day; dropping the handle kills the worker.
    fn prepare(&self, _environment: BTreeMap<String, String>) -> BoxFuture<'static, Result<(), Failure>> {
        Box::pin(ready(Ok(())))
    }

    /// What its plugin counts now; nothing if it does not say at once. Whatever else is under way.
    fn metrics(&self) -> BoxFuture<'static, Vec<Metric>> {
        Box::pin(ready(Vec::new()))
    }

    /// What its engine says of the model, which it knows by this name: nothing if it is none that answers HTTP itself, or does
    /// not say. Requests may run meanwhile.
    fn facts(&self, _name: String) -> BoxFuture<'static, Option<ModelFacts>> {
        Box::pin(ready(None))
    }

    /// Share of the load or unpark done, in thousandths, if known.
    fn progress(&self) -> Option<u32>;

    /// Asks the worker to release and exit. After `grace` it and what it started get SIGTERM, 2 s later SIGKILL; with no
    /// grace at all, SIGKILL at once. Resolves when the process is gone.
    fn stop(&self, grace: Duration) -> BoxFuture<'static, ()>;

    /// Whether its worker is gone, or is ended for what it did: its exit is on the way.
    fn is_lost(&self) -> bool;

    /// The operating system's number of the worker.
    fn pid(&self) -> Option<u32>;

    /// What it may hold from now on. Until this is said, it may hold little more than a process that starts.
    fn allow(&self, _allowance: Allowance) {}

    /// Bytes of host memory charged to the worker and what it started now, as the operating system counts them: anonymous and
    /// shared pages, without mapped files.
    fn usage(&self) -> Option<u64> {
        None
    }
}

/// Why a request is to end early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelCause {
    /// Nobody reads its outputs any more.
    ClientLeft,
    /// It has run for too long.
    Overdue,
    /// It has shown nothing for too long.
    Silent,
}

/// What a load, a wake or a park came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Bytes on the device by the plugin's own account.
    pub used: u64,
}

/// What a request gives.
#[derive(Clone, Debug)]
pub enum Output {
    /// JSON of the task's event type.
    Event(Bytes),
    /// Samples or pixels (a `u32` LE header length, a JSON header, raw bytes), or more of a body (raw bytes alone).
    Bytes(Bytes),
    /// How far it is, in the plugin's own steps. Only the newest is kept for a reader who is behind; `total` 0 is unknown.
    Progress {
        /// Steps that are made.
        done: u64,
        /// Of this many.
        total: u64,
    },
    /// What an engine that answers HTTP itself gives beside the bytes of its body.
    Http(HttpOutput),
    /// The end: the task's summary as JSON, or why there is none.
    Done(Result<Bytes, Failure>),
}

/// What an engine that answers HTTP itself gives beside the bytes of its body.
#[derive(Clone, Debug)]
pub enum HttpOutput {
    /// How its answer begins.
    Head(HttpHead),
    /// What it says behind the body.
    Trailers(HeaderMap),
    /// From here on it speaks something else.
    Switched(EngineConnection),
    /// The client has its whole answer, of which this is the summary, and the engine works on: the lease goes on without it.
    Answered(Bytes),
    /// It was never asked: whoever else serves the model may be, whatever it is.
    Unsent(Failure),
}

/// The head of an answer of HTTP.
#[derive(Clone, Debug)]
pub struct HttpHead {
    /// Its status.
    pub status: StatusCode,
    /// All its headers.
    pub headers: Box<HeaderMap>,
}

impl HttpHead {
    pub(super) fn new(status: StatusCode, headers: HeaderMap) -> Self {
        Self { status, headers: Box::new(headers) }
    }
}

/// A connection to an engine that has left HTTP. It is there for the first who takes it.
#[derive(Clone)]
pub struct EngineConnection {
    connection: Arc<Mutex<Option<Upgraded>>>,
    /// Turns true when the engine is about to go.
    leaving: watch::Receiver<bool>,
}

impl EngineConnection {
    pub(super) fn new(connection: Upgraded, leaving: watch::Receiver<bool>) -> Self {
        Self { connection: Arc::new(Mutex::new(Some(connection))), leaving }
    }

    /// The connection, and what turns true when the engine is about to go.
    pub fn take(&self) -> Option<(Upgraded, watch::Receiver<bool>)> {
        Some((self.connection.lock().take()?, self.leaving.clone()))
    }
}

impl fmt::Debug for EngineConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a connection")
    }
}

/// A worker is gone.
#[derive(Clone, Debug)]
pub struct Exit {
    /// The instance whose worker it was.
    pub instance: InstanceId,
    /// What ended it, as far as it can be told.
    pub reason: ExitReason,
}

/// Why a worker is gone, told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExitReason {
    /// It was asked to stop.
    Asked,
    /// The plugin called exit, or abi_stable's abort bomb did: an exit code without being asked.
    Exited(i32),
    /// SIGABRT.
    Aborted,
    /// SIGSEGV, SIGBUS, SIGILL or SIGFPE: its number.
    Crashed(i32),
    /// Killed by the kernel for memory.
    OutOfMemory,
    /// Another signal: its number.
    Killed(i32),
    /// It stopped answering and was killed: what it was doing.
    Stalled(String),
    /// It held more on its device than was granted, bytes, and was killed.
    BeyondGrant {
        /// What it held, mapped files included.
        held: u64,
        /// What was granted.
        granted: u64,
    },
    /// Its plugin panicked; the panic was caught, the worker killed.
    Panicked,
    /// It did what no worker may do and was killed: what it did.
    Misbehaved(String),
    /// It was asked to stop, and its plugin could not give back what it held: why.
    Unreleased(String),
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asked => f.write_str("stopped as asked"),
            Self::Exited(code) => write!(f, "exited by itself with code {code}"),
            Self::Aborted => f.write_str("aborted (SIGABRT)"),
            Self::Crashed(signal) => write!(f, "crashed (signal {signal})"),
            Self::OutOfMemory => f.write_str("was killed for memory"),
            Self::Killed(signal) => write!(f, "was killed (signal {signal})"),
            Self::Stalled(what) => write!(f, "stopped answering during {what} and was killed"),
            Self::BeyondGrant { held, granted } => {
                write!(f, "was killed: it held {} of {} granted", ByteSize(*held), ByteSize(*granted))
            }
            Self::Panicked => f.write_str("was killed because its plugin panicked"),
            Self::Misbehaved(what) => write!(f, "was killed: {what}"),
            Self::Unreleased(why) => write!(f, "stopped as asked, but its release failed: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::quiet::tests::{BUDGET, having_spent};
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn all_outputs_arrive_wherever_the_budget_of_their_reader_ends() {
        const MANY: usize = 3 * OUTPUT_QUEUE;
        for spent in 0..BUDGET {
            let mut outputs = Outputs::made_by(|output| async move {
                for _ in 0..MANY {
                    output.send(Output::Bytes(Bytes::new())).await.unwrap();
                }
            });
            let reading = async {
                let mut read = 0;
                while outputs.recv().await.is_some() {
                    read += 1;
                }
                read
            };
            let read = tokio::time::timeout(Duration::from_secs(60), having_spent(spent, reading)).await;
            assert_eq!(read.unwrap_or_else(|_| panic!("they stop after {spent}")), MANY);
        }
    }
}
