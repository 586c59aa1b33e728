//! The host's side: starts workers, speaks with them, notices when they stall or die, and says why.
//!
//! It knows processes and the protocol, but no plugin code runs here, and it knows nothing of queues, leases or HTTP.

mod failure;
mod instance;
mod log;
mod metrics;
mod process;
mod request;
mod socket;
mod spawn;
mod step;
mod upstream;
mod watch;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use rustix::process::Pid;
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tokio::sync::watch::Sender as WatchSender;
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;

use super::awake::timeout;
use super::confinement;
use super::limits::{CLOSED_SOCKET_GRACE, DRAIN_LIMIT, WorkerLimits};
use super::log::ModelLog;
use super::placement::{Exit, ExitReason, Placement, StartSpec, Started};
use super::protocol::{Hello, Start, ToWorker};
use crate::config::BusyProbe;
use crate::device;
use crate::domain::{Device, Failure, FailureKind, InstanceId, ModelId};
use instance::{Supervised, WorkerInstance};
use log::Log;
use process::{LastWords, Process};
use socket::{ReadEnd, WorkerSocket};
pub(super) use spawn::inherited;
use step::InstanceStep;
use watch::Watched;

/// Runs each instance in a worker process (`aihost worker`, the same binary).
#[derive(Clone, Debug)]
pub struct WorkerPlacement {
    /// The host's binary; `/proc/self/exe` outside tests.
    pub executable: PathBuf,
}

impl Placement for WorkerPlacement {
    fn start(&self, spec: StartSpec, exits: mpsc::Sender<Exit>) -> BoxFuture<'static, Started> {
        self.start_within(WorkerLimits::default(), spec, exits)
    }

    fn capacity(&self, device: Device) -> Option<u64> {
        device::measured_free(device)
    }
}

impl WorkerPlacement {
    /// [`Placement::start`] under other time limits than the usual ones.
    pub fn start_within(
        &self,
        limits: WorkerLimits,
        spec: StartSpec,
        exits: mpsc::Sender<Exit>,
    ) -> BoxFuture<'static, Started> {
        let executable = self.executable.clone();
        Box::pin(async move {
            // In a task of its own: a caller who gives up half-way must not leave a process nobody knows of.
            let start = tokio::spawn(start(executable, limits, spec, exits));
            start.await.unwrap_or_else(|e| Err(Failure::new(FailureKind::Internal, e.to_string())))
        })
    }
}

async fn start(executable: PathBuf, limits: WorkerLimits, spec: StartSpec, exits: mpsc::Sender<Exit>) -> Started {
    let (model, start_timeout) = (spec.model.clone(), spec.start_timeout);
    let failed = |e: std::io::Error| {
        let message = format!("cannot start a worker for model `{model}` ({}): {e}", executable.display());
        Failure::new(FailureKind::Internal, message)
    };
    let device = spec.load.device.parse::<Device>();
    let device = device.map_err(|e| Failure::new(FailureKind::Internal, format!("{}: {e}", spec.load.device)))?;
    let own_folder = spec.own_folder.clone();
    // Its files are looked at while its process starts.
    let looked = spawn_blocking(move || (spec.plugin.copy.ready(), confinement::of(&spec), spec));
    let spawned = spawn::spawn(&executable, own_folder.as_deref()).await.map_err(failed)?;
    let looked = looked.await.map_err(|e| failed(e.into()));
    let looked = looked.and_then(|(identity, confinement, spec)| {
        let identity = identity.map_err(|why| Failure::new(FailureKind::NotUsable, why))?;
        Ok((identity, confinement, spec))
    });
    let (identity, confinement, spec) = match looked {
        Ok(looked) => looked,
        Err(failure) => {
            spawn::gone(spawned.mark);
            give_up(spawned.child);
            return Err(failure);
        }
    };
    let StartSpec { model, instance, silence, log, busy, .. } = &spec;
    let (model, instance, silence) = (model.clone(), *instance, *silence);
    let worker = Worker { model, instance, device, limits, silence, log: Arc::clone(log), busy: busy.clone() };
    let shared = supervise(spawned, worker, exits).map_err(failed)?;
    let start = Start {
        plugin: spec.plugin.copy.path().to_owned(),
        identity,
        options: spec.options,
        load: spec.load,
        max_concurrency: spec.plugin.manifest.max_concurrency,
        confinement,
    };
    shared.socket.send(&ToWorker::Hello(Hello::own())).await;
    match shared.plan(InstanceStep::start(start, start_timeout)).await {
        Ok(plan) => Ok((Arc::new(WorkerInstance { shared, runtime: Handle::current() }), plan)),
        Err(failure) => {
            shared.process.kill(ExitReason::Asked);
            shared.process.gone().await;
            Err(failure)
        }
    }
}

/// What a worker process is for.
struct Worker {
    model: ModelId,
    instance: InstanceId,
    device: Device,
    limits: WorkerLimits,
    silence: Duration,
    log: Arc<ModelLog>,
    busy: Option<BusyProbe>,
}

/// Starts the tasks that belong to a process: its reader, its output, and the one that waits for its end.
fn supervise(spawned: spawn::Spawned, worker: Worker, exits: mpsc::Sender<Exit>) -> std::io::Result<Arc<Supervised>> {
    let Worker { model, instance, device, limits, silence, log, busy } = worker;
    let spawn::Spawned { mut child, mark, socket } = spawned;
    let connected = socket.set_nonblocking(true).and_then(|()| UnixStream::from_std(socket));
    let socket = match connected {
        Ok(socket) => socket,
        Err(e) => {
            give_up(child);
            return Err(e);
        }
    };
    let (reader, writer) = socket.into_split();
    let (stdout, stderr) = (child.stdout.take().map(OwnedFd::from), child.stderr.take().map(OwnedFd::from));
    // A child that could be spawned has a number above 0.
    let pid = Pid::from_raw(child.id().cast_signed()).unwrap_or(Pid::INIT);
    let log = Arc::new(Log::new(model.clone(), pid, log));
    log.keep("the worker started");
    let shared = Arc::new(Supervised {
        model,
        process: Process::new(pid),
        socket: WorkerSocket::new(writer),
        log,
        limits,
        step_lock: tokio::sync::Mutex::default(),
        task_bytes: AtomicU64::new(0),
        watched: Mutex::new(Watched::new(device, mark.clone())),
        busy,
        leaving: WatchSender::new(false),
        metrics_told: Mutex::default(),
    });
    watch::add(&shared);

    let reading = Arc::clone(&shared);
    let (read, all_is_read) = oneshot::channel();
    tokio::spawn(async move {
        let ended = reading.socket.read(reader, &reading.log, silence).await;
        // Whoever waits for it may be gone.
        let _ = read.send(());
        let reason = match ended {
            ReadEnd::Closed if timeout(CLOSED_SOCKET_GRACE, reading.process.gone()).await.is_some() => None,
            ReadEnd::Closed => Some(ExitReason::Misbehaved("closed its connection".to_owned())),
            ReadEnd::Condemned(reason) => Some(reason),
        };
        if let Some(reason) = reason {
            reading.process.kill(reason);
        }
        reading.socket.close();
    });

    let waiting = Arc::clone(&shared);
    tokio::spawn(async move {
        // While it lives it reads its output itself, so that what it prints costs the host nothing.
        let last_words = async || {
            waiting.log.last_words(stdout, "stdout");
            waiting.log.last_words(stderr, "stderr");
            if waiting.socket.is_shut_down() {
                // What it said of its release may not be read yet.
                let _read = timeout(DRAIN_LIMIT, all_is_read).await;
            }
            LastWords { allocation_failed: waiting.log.allocation_failed(), release: waiting.socket.release_failure() }
        };
        let reason = waiting.process.watch(last_words).await;
        spawn::gone(mark);
        // Whoever hears of the exit finds it in the model's log; what the host's log does must not keep it from anyone.
        waiting.log.keep(&format!("the worker {reason}"));
        // The loop may be gone too when the host shuts down.
        let _ = exits.send(Exit { instance, reason: reason.clone() }).await;
        // The loop tells of it, with the requests that it cost.
        tracing::debug!(target: "worker", model = %waiting.model, pid = pid.as_raw_pid(), "the worker {reason}");
    });
    Ok(shared)
}

fn give_up(mut child: Child) {
    let _ = child.kill();
    let _ = child.wait();
}
