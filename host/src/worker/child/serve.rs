//! Carries out what the host asks: the steps of an instance's life on one thread, each request on its own.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread;

use aihost_plugin_api::abi::{RawModelBox, RawRequest, extension_id};
use aihost_plugin_api::task::{MemoryUsage, PrepareRequest};
use aihost_plugin_api::{Error, ErrorKind, LoadRequest, MemoryPlan, UpstreamAddress};
use bytes::Bytes;
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::super::limits::{DRAIN_LIMIT, METRICS_BYTES, PANICKED_CODE, PREPARE_BYTES, START_BYTES, SUMMARY_BYTES};
use super::super::protocol::{PROTOCOL_VERSION, PluginError, Start, Task, ToHost, ToWorker};
use super::super::upstream::check_upstream;
use super::limit::limit_data;
use super::log::Log;
use super::objects::{Call, host};
use super::outbox::Outbox;
use super::sys::{self, trim_heap};
use super::threads::Threads;
use crate::device;
use crate::domain::Device;
use crate::plugin;

/// Steps that may wait for the one before; the host sends one at a time.
const MAX_WAITING_STEPS: usize = 4;

/// What a plugin counts that counts nothing.
const NO_METRICS: &[u8] = b"[]";

/// What goes into an extension that takes nothing.
const NOTHING: &[u8] = b"null";

/// A step in the instance's life.
enum QueuedStep {
    Start(Box<Start>),
    Load(u64),
    Park,
    Unpark,
    Health,
    Cost(Task),
    Prepare(BTreeMap<String, String>),
    Shutdown,
}

/// What all threads share.
struct ServerState {
    outbox: Arc<Outbox>,
    log: Arc<Log>,
    model: OnceLock<RawModelBox>,
    /// Requests in progress.
    calls: Mutex<BTreeMap<u64, Arc<Call>>>,
    idle: Condvar,
    /// The load or unpark in progress, or the next one.
    loading: Arc<Call>,
    max_concurrency: OnceLock<usize>,
    /// Between park and unpark, when no request may reach the plugin.
    parked: AtomicBool,
    /// The plugin panicked in a request. This process is about to end: what comes now is left unanswered, so that its host tries it
    /// elsewhere.
    panicked: AtomicBool,
}

/// Takes messages; never blocks on the plugin.
pub(super) struct Server {
    shared: Arc<ServerState>,
    steps: SyncSender<QueuedStep>,
    threads: Threads,
}

impl Server {
    pub(super) fn new(outbox: Arc<Outbox>, log: Arc<Log>) -> io::Result<Self> {
        let loading = Call::step(Arc::clone(&outbox), Arc::clone(&log));
        let (model, max_concurrency) = (OnceLock::new(), OnceLock::new());
        let (calls, idle) = (Mutex::default(), Condvar::new());
        let (parked, panicked) = (AtomicBool::new(false), AtomicBool::new(false));
        let shared =
            Arc::new(ServerState { outbox, log, model, calls, idle, loading, max_concurrency, parked, panicked });
        let (steps, queue) = sync_channel(MAX_WAITING_STEPS);
        let life = Arc::clone(&shared);
        let live = move || {
            device::compute();
            life.live(&queue);
        };
        thread::Builder::new().name("life".into()).spawn(live)?;
        Ok(Self { shared, steps, threads: Threads::default() })
    }

    /// Starts what a message asks for. An error means that the two cannot go on together.
    pub(super) fn take(&mut self, message: ToWorker) -> Result<(), String> {
        match message {
            ToWorker::Hello(hello) if hello.version != PROTOCOL_VERSION => {
                return Err(format!(
                    "the host speaks worker protocol {}, this worker {PROTOCOL_VERSION}",
                    hello.version
                ));
            }
            ToWorker::Hello(_) => {}
            ToWorker::Start(start) => self.step(QueuedStep::Start(start))?,
            ToWorker::Load(granted) => self.step(QueuedStep::Load(granted))?,
            ToWorker::Park => self.step(QueuedStep::Park)?,
            ToWorker::Unpark => self.step(QueuedStep::Unpark)?,
            ToWorker::Health => self.step(QueuedStep::Health)?,
            ToWorker::Cost(task) => self.step(QueuedStep::Cost(task))?,
            ToWorker::Prepare(environment) => self.step(QueuedStep::Prepare(environment))?,
            ToWorker::Generate(request, task) => self.generate(request, task),
            ToWorker::Metrics => self.metrics(),
            ToWorker::Cancel(request) => {
                if let Some(call) = self.shared.calls().get(&request) {
                    call.cancel();
                }
            }
            ToWorker::Credit(request, bytes) => {
                if let Some(call) = self.shared.calls().get(&request) {
                    call.credit(bytes);
                }
            }
            ToWorker::Shutdown => {
                self.shared.loading.cancel();
                self.shared.calls().values().for_each(|call| call.cancel());
                self.step(QueuedStep::Shutdown)?;
            }
        }
        Ok(())
    }

    fn step(&self, step: QueuedStep) -> Result<(), String> {
        self.steps.try_send(step).map_err(|_| "the host does not wait for its steps".to_owned())
    }

    /// On a thread of its own: neither a step nor a request waits for it, and it waits for none.
    fn metrics(&self) {
        let shared = Arc::clone(&self.shared);
        // Without a thread there is no answer, and its host asks again.
        let _asked = self.threads.run(move || shared.tell_metrics()).is_ok();
    }

    fn generate(&self, request: u64, task: Task) {
        if self.shared.panicked.load(Ordering::Acquire) {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let on_end = move |end| shared.end(request, end);
        let (outbox, log) = (Arc::clone(&self.shared.outbox), Arc::clone(&self.shared.log));
        let call = Call::request(request, task.info.clone(), on_end, outbox, log);
        let most = self.shared.max_concurrency.get().copied().unwrap_or(0);
        {
            let mut calls = self.shared.calls();
            if self.shared.parked.load(Ordering::Acquire) {
                drop(calls);
                return self.shared.fail(request, Error::internal("the model is parked and must be woken first"));
            }
            if calls.len() >= most || calls.contains_key(&request) {
                drop(calls);
                let message = format!("more than {most} requests at once, or one number twice");
                return self.shared.fail(request, Error::internal(message));
            }
            calls.insert(request, Arc::clone(&call));
        }
        let shared = Arc::clone(&self.shared);
        let taken = Arc::clone(&call);
        let run = move || {
            let submitted = shared.submit(&call, &task);
            let has_panicked = submitted.as_ref().is_err_and(|error| error.kind() == ErrorKind::Panicked);
            // Of the first it is told; another one may only have come too late.
            if has_panicked && shared.panicked.swap(true, Ordering::AcqRel) {
                return;
            }
            if let Some(error) = call.returned(submitted) {
                shared.failed_late(&error, call.id);
            }
        };
        if let Err(e) = self.threads.run(run) {
            let message = format!(
                "the system has no thread for a request ({e}); fewer threads, or a higher limit of processes, would do"
            );
            let _untold = taken.returned(Err(Error::new(ErrorKind::Internal, message)));
        }
    }
}

impl ServerState {
    fn live(&self, steps: &Receiver<QueuedStep>) {
        let mut load = LoadRequest::default();
        let mut mapped = 0;
        for step in steps {
            let answer = match step {
                QueuedStep::Start(start) => {
                    load = start.load.clone();
                    limit_on_cpu(&load, START_BYTES);
                    self.start(&start).map(|plan| {
                        mapped = plan.mapped;
                        ToHost::Planned(plan)
                    })
                }
                QueuedStep::Load(granted) => {
                    load.granted = granted;
                    limit_on_cpu(&load, granted.saturating_sub(mapped).max(START_BYTES));
                    self.load(&load).map(ToHost::Stepped)
                }
                QueuedStep::Park => self.park().map(ToHost::Stepped),
                QueuedStep::Unpark => self.unpark().map(ToHost::Stepped),
                QueuedStep::Health => self.health().map(|()| ToHost::Stepped(0)),
                QueuedStep::Cost(task) => self.cost(&task).map(ToHost::Stepped),
                QueuedStep::Prepare(environment) => {
                    limit_on_cpu(&load, PREPARE_BYTES);
                    self.prepare(&load, environment).map(|()| ToHost::Stepped(0))
                }
                QueuedStep::Shutdown => self.shut_down(),
            };
            match answer {
                Ok(message) => self.outbox.send(&message),
                Err(error) => self.fail(0, error),
            }
        }
    }

    fn start(&self, start: &Start) -> Result<MemoryPlan, Error> {
        let _ = self.max_concurrency.set(start.max_concurrency as usize);
        let plugin = plugin::open(&start.plugin, &start.identity).map_err(|e| {
            self.log.say(4, e.explain(), 0);
            Error::new(ErrorKind::Unsupported, e.to_string())
        })?;
        let options = serde_json::to_vec(&start.options).map_err(Error::internal)?;
        let model = plugin.instantiate(host(Arc::clone(&self.log)), &options)?;
        let load = serde_json::to_vec(&start.load).map_err(Error::internal)?;
        let plan = model.plan(load.as_slice().into()).into_result()?;
        if self.model.set(model).is_err() {
            return Err(Error::internal("the host started a worker twice"));
        }
        serde_json::from_slice(&plan).map_err(|e| Error::internal(format!("the plugin's plan cannot be read: {e}")))
    }

    fn load(&self, load: &LoadRequest) -> Result<u64, Error> {
        let model = self.model()?;
        let json = serde_json::to_vec(load).map_err(Error::internal)?;
        model.load(json.as_slice().into(), self.loading.context()).into_result()?;
        model.warmup(self.loading.context()).into_result()?;
        self.tell_upstream(model)?;
        held(model)
    }

    fn park(&self) -> Result<u64, Error> {
        let model = self.model()?;
        {
            // Under the lock that lets requests in, so that none slips between the check and the park.
            let calls = self.calls();
            if !calls.is_empty() {
                let message = format!("the host parks the model while it serves {} requests", calls.len());
                return Err(Error::internal(message));
            }
            self.parked.store(true, Ordering::Release);
        }
        let parked = model.park().into_result();
        trim_heap();
        self.parked.store(parked.is_ok(), Ordering::Release);
        parked?;
        held(model)
    }

    fn unpark(&self) -> Result<u64, Error> {
        let model = self.model()?;
        model.unpark(self.loading.context()).into_result()?;
        self.tell_upstream(model)?;
        self.parked.store(false, Ordering::Release);
        held(model)
    }

    /// Says where its engine answers, if it is one that does so itself.
    fn tell_upstream(&self, model: &RawModelBox) -> Result<(), Error> {
        let Some(json) = ask(model, extension_id::UPSTREAM, NOTHING) else { return Ok(()) };
        let wrong = |why: String| Error::internal(format!("the plugin does not say where its engine answers: {why}"));
        let upstream: UpstreamAddress = serde_json::from_slice(&json?).map_err(|e| wrong(e.to_string()))?;
        check_upstream(&upstream).map_err(wrong)?;
        self.outbox.send(&ToHost::Upstream(upstream));
        Ok(())
    }

    fn health(&self) -> Result<(), Error> {
        Ok(self.model()?.health().into_result()?)
    }

    fn cost(&self, task: &Task) -> Result<u64, Error> {
        Ok(self.model()?.cost(raw(task)).into_result()?)
    }

    fn prepare(&self, load: &LoadRequest, environment: BTreeMap<String, String>) -> Result<(), Error> {
        let request = PrepareRequest::default().load(load.clone()).environment(environment);
        let input = serde_json::to_vec(&request).map_err(Error::internal)?;
        let nothing = || Error::new(ErrorKind::Unsupported, "the plugin says that it prepares models, and does not");
        ask(self.model()?, extension_id::PREPARE, &input).ok_or_else(nothing)?.map(drop)
    }

    fn submit(&self, call: &Arc<Call>, task: &Task) -> Result<(), Error> {
        Ok(self.model()?.submit(raw(task), call.sink(), call.context()).into_result()?)
    }

    /// Waits for cancelled requests, gives everything back and ends the process. The host kills one that takes too long.
    fn shut_down(&self) -> ! {
        let mut calls = self.calls();
        self.idle.wait_while(&mut calls, |calls| !calls.is_empty());
        drop(calls);
        if let Some(model) = self.model.get()
            && let Err(error) = model.release().into_result()
        {
            self.fail(0, error.into());
        }
        self.outbox.drain(DRAIN_LIMIT);
        std::process::exit(0)
    }

    fn tell_metrics(&self) {
        let told = match self.model.get().and_then(|model| ask(model, extension_id::METRICS, NOTHING)) {
            None => Ok(Bytes::from_static(NO_METRICS)),
            Some(Ok(json)) if json.len() > METRICS_BYTES => {
                Err(Error::internal(format!("they have {} bytes, where {METRICS_BYTES} may be", json.len())))
            }
            Some(told) => told,
        };
        match told {
            Ok(json) => self.outbox.send(&ToHost::Metrics(json)),
            Err(error) => {
                self.log.say(2, &format!("the plugin's metrics are not shown: {}", error.message()), 0);
                self.outbox.send(&ToHost::Metrics(Bytes::from_static(NO_METRICS)));
            }
        }
    }

    /// A request's end was said, and its call failed after that. The answer stands. One whose plugin panicked is of no use to
    /// the next request, which would be told of a panic that is not its own.
    fn failed_late(&self, error: &Error, request: u64) {
        self.log.say(2, &format!("the plugin failed after it had ended a request: {}", error.message()), request);
        if error.kind() == ErrorKind::Panicked {
            self.outbox.drain(DRAIN_LIMIT);
            sys::leave(PANICKED_CODE);
        }
    }

    fn model(&self) -> Result<&RawModelBox, Error> {
        self.model.get().ok_or_else(|| Error::internal("the host asked before it started the instance"))
    }

    /// The request is over: what it held is free before its host hears of it.
    fn end(&self, request: u64, end: Result<Bytes, Error>) {
        {
            let mut calls = self.calls();
            calls.remove(&request);
            if calls.is_empty() {
                self.idle.notify_all();
            }
        }
        match end {
            Ok(summary) if summary.len() > SUMMARY_BYTES => {
                let message = format!("the answer's summary has {} bytes, where {SUMMARY_BYTES} may be", summary.len());
                self.fail(request, Error::internal(message));
            }
            Ok(summary) => self.outbox.send(&ToHost::Done(request, summary)),
            Err(error) => self.fail(request, error),
        }
    }

    fn fail(&self, request: u64, error: Error) {
        let told = PluginError::new(error.kind().code(), error.message()).with_details(error.details().clone());
        self.outbox.send(&ToHost::Failed(request, told));
    }

    fn calls(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Call>>> {
        self.calls.lock()
    }
}

/// Limits what this process may allocate, if all that it works with is the host's own memory: the driver of another device
/// reserves addresses far beyond what anyone plans.
fn limit_on_cpu(load: &LoadRequest, bytes: u64) {
    if load.device.parse() == Ok(Device::Cpu) {
        limit_data(bytes);
    }
}

/// What an extension of the model's answers; nothing if it has none of this id.
fn ask(model: &RawModelBox, id: &str, input: &[u8]) -> Option<Result<Bytes, Error>> {
    let extension = model.extension(id.into()).into_option()?;
    let answer = extension.call(input.into()).into_result();
    Some(answer.map(|json| json.into_vec().into()).map_err(Error::from))
}

/// A task as it crosses.
fn raw(task: &Task) -> RawRequest {
    let blocks = task.blocks.iter().map(|block| block.to_vec().into()).collect();
    RawRequest { header: task.header.to_vec().into(), blocks }
}

/// Bytes on the device, by the plugin's account.
fn held(model: &RawModelBox) -> Result<u64, Error> {
    let usage: MemoryUsage = serde_json::from_slice(&model.usage().into_result()?).map_err(Error::internal)?;
    Ok(usage.device)
}
