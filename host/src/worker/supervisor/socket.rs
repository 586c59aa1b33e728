//! The host's end of a worker's socket: one reader, writers in turn, and who waits for which answer.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aihost_plugin_api::MemoryPlan;
use aihost_plugin_api::abi::event_kind;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};

use super::super::awake::timeout;
use super::super::limits::{ERROR_BYTES, HARD_CREDIT_BYTES, MAX_EVENTS_ON_THE_WAY, event_cost};
use super::super::origin::Origin;
use super::super::placement::{ExitReason, Output};
use super::super::protocol::{
    Assembler, CHUNK_BYTES, Decoder, Frame, Loading, PROTOCOL_VERSION, PluginError, ProtocolError, ToHost, ToWorker,
    decode_events, encode,
};
use super::super::upstream::check_upstream;
use super::log::Log;
use crate::domain::excerpt;

/// What the worker says about one request.
#[derive(Debug)]
pub(super) enum Inbound {
    /// An event, if this host can pass it on, and the credit it took.
    Event(Option<Output>, u64),
    /// Its end: the summary, or why there is none.
    End(Result<Bytes, PluginError>),
}

/// The answer to a step of the instance's life.
#[derive(Debug)]
pub(super) enum StepReply {
    Planned(Box<MemoryPlan>),
    /// Done, with the bytes that [`ToHost::Stepped`] describes.
    Bytes(u64),
}

/// Why reading ended.
#[derive(Debug)]
pub(super) enum ReadEnd {
    /// The worker closed its end: it is dying or dead.
    Closed,
    /// It must be killed.
    Condemned(ExitReason),
}

/// What comes in for one request.
#[derive(Debug)]
pub(super) struct Incoming {
    /// Events in order, then the end.
    pub(super) inbound: mpsc::Receiver<Inbound>,
    /// How far it is.
    pub(super) progress: watch::Receiver<Loading>,
    on_the_way: Arc<AtomicU64>,
}

impl Incoming {
    /// An event that took so much credit was passed on.
    pub(super) fn passed_on(&self, cost: u64) {
        self.on_the_way.fetch_sub(cost, Ordering::AcqRel);
    }
}

/// The other ends of an [`Incoming`].
#[derive(Clone, Debug)]
struct Outgoing {
    inbound: mpsc::Sender<Inbound>,
    progress: watch::Sender<Loading>,
    /// The credit that events took which are not passed on yet. The worker keeps within it; this is for one whose plugin
    /// writes to the socket itself.
    on_the_way: Arc<AtomicU64>,
}

/// The host's end.
#[derive(Debug)]
pub(super) struct WorkerSocket {
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    /// Nothing once the worker is gone.
    requests: Mutex<Option<HashMap<u64, Outgoing>>>,
    step: Mutex<Option<oneshot::Sender<Result<StepReply, PluginError>>>>,
    /// What the instance is doing, for the stall report.
    doing: Mutex<&'static str>,
    progress: watch::Sender<Loading>,
    /// Those who wait for what the plugin counts. The worker is asked by the first of them.
    metrics: Mutex<Vec<oneshot::Sender<Bytes>>>,
    /// Where requests go instead, once the worker has said so.
    engine: Mutex<Option<Origin>>,
    /// Why the instance could not be released, once the worker was asked to go.
    release: Mutex<Release>,
}

/// What is known of an instance's release.
#[derive(Debug, Default)]
enum Release {
    /// Nobody asked for it.
    #[default]
    Unasked,
    /// It is under way, or went well.
    Asked,
    /// It failed for this reason.
    Failed(String),
}

impl WorkerSocket {
    pub(super) fn new(writer: OwnedWriteHalf) -> Self {
        Self {
            writer: tokio::sync::Mutex::new(writer),
            requests: Mutex::new(Some(HashMap::new())),
            step: Mutex::new(None),
            doing: Mutex::new("start"),
            progress: watch::Sender::new(Loading::default()),
            metrics: Mutex::default(),
            engine: Mutex::default(),
            release: Mutex::default(),
        }
    }

    /// Asks the worker to release its instance and to end. It first ends what it does.
    pub(super) async fn shut_down(&self) {
        *self.release.lock() = Release::Asked;
        if !self.is_stepping() {
            *self.doing.lock() = "release";
        }
        self.send(&ToWorker::Shutdown).await;
    }

    /// Why the instance could not be released, if it was asked for and failed.
    pub(super) fn release_failure(&self) -> Option<String> {
        match &*self.release.lock() {
            Release::Failed(why) => Some(why.clone()),
            Release::Unasked | Release::Asked => None,
        }
    }

    /// Whether the answer to a step is awaited.
    fn is_stepping(&self) -> bool {
        self.step.lock().is_some()
    }

    /// Whether the worker was asked to go.
    pub(super) fn is_shut_down(&self) -> bool {
        !matches!(*self.release.lock(), Release::Unasked)
    }

    /// Writes a message; others may come between its frames. Must not be dropped half-way: run it in a task.
    pub(super) async fn send(&self, message: &ToWorker) {
        let (kind, request, mut payload) = message.encode();
        let mut buffer = Vec::new();
        loop {
            buffer.clear();
            let more = encode(&mut buffer, kind, request, &mut payload);
            // An error means that the worker is gone, which the reader notices too.
            if self.writer.lock().await.write_all(&buffer).await.is_err() || !more {
                return;
            }
        }
    }

    /// Sends a step; the answer comes on the receiver, which closes if the worker goes.
    pub(super) async fn step(
        &self,
        message: &ToWorker,
        doing: &'static str,
    ) -> oneshot::Receiver<Result<StepReply, PluginError>> {
        let (sender, receiver) = oneshot::channel();
        {
            // Under the lock that `close` begins with: one that is stored after it would never be let go.
            let requests = self.requests.lock();
            if requests.is_some() {
                *self.step.lock() = Some(sender);
            }
        }
        *self.doing.lock() = doing;
        self.send(message).await;
        receiver
    }

    /// What the plugin counts, as it says it; nothing if the worker goes, or its plugin never answers.
    pub(super) async fn metrics(&self) -> Option<Bytes> {
        let (sender, receiver) = oneshot::channel();
        let is_asked = {
            let mut waiting = self.metrics.lock();
            let is_asked = !waiting.is_empty();
            // Those who gave up, but for the one that stands for the question.
            let mut first = true;
            waiting.retain(|waiter| std::mem::take(&mut first) || !waiter.is_closed());
            waiting.push(sender);
            is_asked
        };
        if !is_asked {
            self.send(&ToWorker::Metrics).await;
        }
        receiver.await.ok()
    }

    /// Where requests go instead of to the worker, if its engine answers HTTP itself.
    pub(super) fn engine(&self) -> Option<Origin> {
        self.engine.lock().clone()
    }

    /// Opens a request; nothing if the worker is gone.
    pub(super) fn open(&self, request: u64) -> Option<Incoming> {
        let (inbound, receiver) = mpsc::channel(MAX_EVENTS_ON_THE_WAY);
        let (progress, watched) = watch::channel(Loading::default());
        let on_the_way = Arc::<AtomicU64>::default();
        let outgoing = Outgoing { inbound, progress, on_the_way: Arc::clone(&on_the_way) };
        self.requests.lock().as_mut()?.insert(request, outgoing);
        Some(Incoming { inbound: receiver, progress: watched, on_the_way })
    }

    /// How far the load or unpark is.
    pub(super) fn progress(&self) -> watch::Receiver<Loading> {
        self.progress.subscribe()
    }

    /// A load or unpark begins.
    pub(super) fn reset_progress(&self) {
        self.progress.send_replace(Loading::default());
    }

    /// What the worker should be doing.
    pub(super) fn doing(&self) -> &'static str {
        match &*self.requests.lock() {
            Some(requests) if !requests.is_empty() => "generate",
            _ => *self.doing.lock(),
        }
    }

    /// Nobody will answer any more.
    pub(super) fn close(&self) {
        *self.requests.lock() = None;
        *self.step.lock() = None;
        self.metrics.lock().clear();
    }

    /// Reads until the worker closes, is silent for too long, or breaks the protocol.
    pub(super) async fn read(&self, mut half: OwnedReadHalf, log: &Log, silence: Duration) -> ReadEnd {
        let (mut decoder, mut assembler) = (Decoder::default(), Assembler::new(ToHost::size_max));
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut greeted = false;
        loop {
            let read = match timeout(silence, half.read(&mut buffer)).await {
                None => return ReadEnd::Condemned(ExitReason::Stalled(self.doing().to_owned())),
                Some(Ok(0) | Err(_)) => return ReadEnd::Closed,
                Some(Ok(read)) => read,
            };
            decoder.push(&buffer[..read]);
            loop {
                let taken = decoder.next().and_then(|frame| match frame {
                    Some(frame) => assembler.push(frame).map(Some),
                    None => Ok(None),
                });
                let outcome = match taken {
                    Ok(None) => break,
                    Ok(Some(None)) => continue,
                    Ok(Some(Some(frame))) => self.take(frame, log, &mut greeted),
                    Err(e) => Err(e.to_string()),
                };
                if let Err(why) = outcome {
                    // It may quote what was sent.
                    let why = excerpt(&why, ERROR_BYTES);
                    return ReadEnd::Condemned(ExitReason::Misbehaved(format!("broke the worker protocol: {why}")));
                }
            }
        }
    }

    fn take(&self, frame: Frame, log: &Log, greeted: &mut bool) -> Result<(), String> {
        let message = ToHost::decode(frame).map_err(|e| e.to_string())?;
        if let ToHost::Hello(hello) = &message {
            *greeted = true;
            return if hello.version == PROTOCOL_VERSION {
                Ok(())
            } else {
                Err(format!("it speaks version {}, the host {PROTOCOL_VERSION}", hello.version))
            };
        }
        if !*greeted {
            return Err("it sent no greeting".to_owned());
        }
        match message {
            ToHost::Hello(_) | ToHost::Heartbeat => {}
            ToHost::Planned(plan) => self.answer(Ok(StepReply::Planned(Box::new(plan))))?,
            ToHost::Stepped(bytes) => self.answer(Ok(StepReply::Bytes(bytes)))?,
            ToHost::Failed(0, error) if self.is_shut_down() && !self.is_stepping() => {
                *self.release.lock() = Release::Failed(excerpt(&error.message, ERROR_BYTES));
            }
            ToHost::Failed(0, error) => self.answer(Err(error))?,
            ToHost::Progress(0, loading) => {
                self.progress.send_replace(loading);
            }
            ToHost::Progress(request, loading) => {
                if let Some(outgoing) = self.outgoing(request) {
                    outgoing.progress.send_replace(loading);
                }
            }
            ToHost::Events(request, packed) => self.events(request, packed).map_err(|e| e.to_string())?,
            ToHost::Done(request, summary) => self.end(request, Ok(summary)),
            ToHost::Failed(request, error) => self.end(request, Err(error)),
            ToHost::Log(record) => log.record(&record),
            ToHost::Upstream(upstream) => {
                check_upstream(&upstream)?;
                *self.engine.lock() = Some(Origin::on_this_machine(&upstream)?);
            }
            ToHost::Metrics(json) => {
                for waiter in self.metrics.lock().drain(..) {
                    // Whoever asked may have given up.
                    let _ = waiter.send(json.clone());
                }
            }
        }
        Ok(())
    }

    fn answer(&self, answer: Result<StepReply, PluginError>) -> Result<(), String> {
        let waiter = self.step.lock().take().ok_or_else(|| "it answered what was not asked".to_owned())?;
        *self.doing.lock() = if self.is_shut_down() { "release" } else { "idle" };
        // Whoever asked may have given up.
        let _ = waiter.send(answer);
        Ok(())
    }

    fn events(&self, request: u64, packed: Bytes) -> Result<(), ProtocolError> {
        let events = decode_events(packed)?;
        // An answer nobody waits for is one that was cancelled and has ended.
        let Some(outgoing) = self.outgoing(request) else { return Ok(()) };
        for event in events {
            let cost = event_cost(event.payload.len());
            if outgoing.on_the_way.fetch_add(cost, Ordering::AcqRel) > HARD_CREDIT_BYTES {
                return Err(ProtocolError::Unpaced);
            }
            let output = match event.kind {
                event_kind::JSON => Some(Output::Event(event.payload)),
                event_kind::BYTES | event_kind::RAW => Some(Output::Bytes(event.payload)),
                kind => {
                    tracing::warn!(target: "worker", request, kind, "an event of a kind this host cannot pass on");
                    None
                }
            };
            if let Err(mpsc::error::TrySendError::Full(_)) = outgoing.inbound.try_send(Inbound::Event(output, cost)) {
                return Err(ProtocolError::Unpaced);
            }
        }
        Ok(())
    }

    fn outgoing(&self, request: u64) -> Option<Outgoing> {
        self.requests.lock().as_ref()?.get(&request).cloned()
    }

    fn end(&self, request: u64, result: Result<Bytes, PluginError>) {
        let outgoing = self.requests.lock().as_mut().and_then(|requests| requests.remove(&request));
        if let Some(outgoing) = outgoing {
            // The queue has room for every event within the credit and this one more; a full one ends like a dead worker.
            let _ = outgoing.inbound.try_send(Inbound::End(result));
        }
    }
}
