//! What the plugin calls: sink, context and host, as objects of the ABI. None of them blocks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use abi_stable::sabi_trait::TD_Opaque;
use abi_stable::std_types::{RArc, ROption, RSlice, RStr, RVec};
use aihost_plugin_api::Error;
use aihost_plugin_api::abi::{
    RawCallbackBox, RawContext, RawContext_TO, RawContextArc, RawError, RawExtensionArc, RawFlow, RawHost, RawHost_TO,
    RawHostArc, RawSink, RawSink_TO, RawSinkArc,
};
use bytes::Bytes;
use parking_lot::Mutex;

use super::super::limits::{CREDIT_BYTES, HARD_CREDIT_BYTES, event_cost};
use super::super::protocol::Loading;
use super::log::Log;
use super::outbox::Outbox;

const CONTINUE: RawFlow = RawFlow(0);
const PAUSE: RawFlow = RawFlow(1);
const STOP: RawFlow = RawFlow(2);

/// What this host speaks beyond the layout, by the names that plugins' SDKs use.
const FEATURES: [&str; 4] = ["blocks", "submit", "details", "metrics"];

/// One call in progress: a request, or (with id 0) a load.
pub(super) struct Call {
    /// The host's number.
    pub(super) id: u64,
    /// JSON of what is known of the request; empty for a load.
    info: Bytes,
    cancelled: AtomicBool,
    on_cancel: Mutex<Option<RawCallbackBox>>,
    /// Nothing is taken from the plugin any more.
    has_ended: AtomicBool,
    ending: Mutex<Ending>,
    /// Bytes the host has not passed on yet.
    unconsumed: AtomicU64,
    progress: AtomicU64,
    outbox: Arc<Outbox>,
    log: Arc<Log>,
}

/// What a request's end is told to.
type OnEnd = Box<dyn FnOnce(Result<Bytes, Error>) + Send>;

/// A request has ended once its end was said and the call that brought it has returned, in either order: a plugin that is
/// parked or released has no call in its frames.
#[derive(Default)]
struct Ending {
    end: Option<Result<Bytes, Error>>,
    /// No sink is left that could say an end.
    is_dropped: bool,
    has_returned: bool,
    on_end: Option<OnEnd>,
}

impl std::fmt::Debug for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Call").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Call {
    /// A load, or any other step.
    pub(super) fn step(outbox: Arc<Outbox>, log: Arc<Log>) -> Arc<Self> {
        Self::new(0, Bytes::new(), None, outbox, log)
    }

    /// A request, whose end is told once.
    pub(super) fn request(
        id: u64,
        info: Bytes,
        on_end: impl FnOnce(Result<Bytes, Error>) + Send + 'static,
        outbox: Arc<Outbox>,
        log: Arc<Log>,
    ) -> Arc<Self> {
        Self::new(id, info, Some(Box::new(on_end)), outbox, log)
    }

    fn new(id: u64, info: Bytes, on_end: Option<OnEnd>, outbox: Arc<Outbox>, log: Arc<Log>) -> Arc<Self> {
        Arc::new(Self {
            id,
            info,
            cancelled: AtomicBool::new(false),
            on_cancel: Mutex::default(),
            has_ended: AtomicBool::new(false),
            ending: Mutex::new(Ending { on_end, ..Ending::default() }),
            unconsumed: AtomicU64::new(0),
            progress: AtomicU64::new(u64::MAX),
            outbox,
            log,
        })
    }

    /// The plugin is to end it soon.
    pub(super) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
        let callback = self.on_cancel.lock().take();
        if let Some(callback) = callback {
            callback.call();
        }
    }

    /// The plugin's call has returned, perhaps with an error that ends the request. The error, if the end had been said before:
    /// then it is about the plugin and not about the request.
    pub(super) fn returned(&self, result: Result<(), Error>) -> Option<Error> {
        let mut late = None;
        if let Err(error) = result {
            self.has_ended.store(true, Ordering::Release);
            self.settle(|ending| match ending.end {
                Some(_) => late = Some(error),
                None => ending.end = Some(Err(error)),
            });
        }
        self.settle(|ending| ending.has_returned = true);
        late
    }

    /// The first end that is said is the request's.
    fn end(&self, end: Result<Bytes, Error>) {
        self.has_ended.store(true, Ordering::Release);
        self.settle(|ending| {
            ending.end.get_or_insert(end);
        });
    }

    fn settle(&self, change: impl FnOnce(&mut Ending)) {
        let settled = {
            let mut ending = self.ending.lock();
            change(&mut ending);
            if ending.has_returned && ending.is_dropped && ending.end.is_none() {
                ending.end = Some(Err(Error::internal("the plugin dropped the request without an answer")));
            }
            let is_over = ending.has_returned && ending.end.is_some();
            if is_over { ending.end.take().zip(ending.on_end.take()) } else { None }
        };
        if let Some((end, on_end)) = settled {
            // It may hold what the plugin gave it for this request.
            drop(self.on_cancel.lock().take());
            on_end(end);
        }
    }

    /// The host passed on this many bytes.
    pub(super) fn credit(&self, bytes: u64) {
        // Never below zero, whatever the other end claims.
        let _ = self.unconsumed.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| Some(n.saturating_sub(bytes)));
    }

    pub(super) fn sink(self: &Arc<Self>) -> RawSinkArc {
        RawSink_TO::from_ptr(RArc::new(SharedSink(Arc::clone(self))), TD_Opaque)
    }

    pub(super) fn context(self: &Arc<Self>) -> RawContextArc {
        RawContext_TO::from_ptr(RArc::new(SharedCall(Arc::clone(self))), TD_Opaque)
    }

    fn pace(&self, unconsumed: u64) -> RawFlow {
        match unconsumed {
            _ if self.cancelled.load(Ordering::Acquire) || self.has_ended.load(Ordering::Acquire) => STOP,
            n if n > CREDIT_BYTES => PAUSE,
            _ => CONTINUE,
        }
    }
}

struct SharedCall(Arc<Call>);

/// The way in for one answer.
struct SharedSink(Arc<Call>);

impl Drop for SharedSink {
    fn drop(&mut self) {
        self.0.settle(|ending| ending.is_dropped = true);
    }
}

impl RawSink for SharedSink {
    fn push(&self, kind: u32, payload: RSlice<'_, u8>) -> RawFlow {
        let call = &self.0;
        if call.pace(0) == STOP {
            return STOP;
        }
        let cost = event_cost(payload.len());
        let before = call.unconsumed.fetch_add(cost, Ordering::AcqRel);
        if before > HARD_CREDIT_BYTES {
            // It was told to pause long ago; whatever it still has to say is lost, so the request ends.
            call.cancel();
            let message = "the plugin goes on through Pause, so its request is stopped";
            call.log.say(2, message, call.id);
            return STOP;
        }
        call.outbox.event(call.id, kind, payload.as_slice());
        call.pace(before + cost)
    }

    fn flow(&self) -> RawFlow {
        self.0.pace(self.0.unconsumed.load(Ordering::Acquire))
    }

    fn finish(&self, summary: RSlice<'_, u8>) {
        self.0.end(Ok(Bytes::copy_from_slice(&summary)));
    }

    fn fail(&self, error: RawError) {
        self.0.end(Err(error.into()));
    }
}

impl RawContext for SharedCall {
    fn is_cancelled(&self) -> u8 {
        u8::from(self.0.cancelled.load(Ordering::Acquire))
    }

    fn progress(&self, done: u64, total: u64) {
        // A plugin may report every kilobyte; the host hears of each thousandth, or of each change without a total.
        let step = if total == 0 { done } else { (u128::from(done) * 1000 / u128::from(total)) as u64 };
        if self.0.progress.swap(step, Ordering::AcqRel) != step {
            self.0.outbox.progress(self.0.id, Loading { done, total });
        }
    }

    fn request_id(&self) -> u64 {
        self.0.id
    }

    fn about(&self) -> RVec<u8> {
        self.0.info.to_vec().into()
    }

    fn on_cancel(&self, callback: RawCallbackBox) {
        let before = self.0.on_cancel.lock().replace(callback);
        drop(before);
        // Cancelled meanwhile: whoever takes it out calls it.
        if self.0.cancelled.load(Ordering::Acquire) {
            self.0.cancel();
        }
    }
}

/// The plugin's way to the host's log.
pub(super) fn host(log: Arc<Log>) -> RawHostArc {
    RawHost_TO::from_ptr(RArc::new(Host(log)), TD_Opaque)
}

struct Host(Arc<Log>);

impl RawHost for Host {
    fn log(&self, level: u32, target: RStr<'_>, message: RStr<'_>, fields: RSlice<'_, u8>, request: u64) {
        self.0.record(level, target.as_str(), message.as_str(), fields.as_slice(), request);
    }

    fn about(&self) -> RVec<u8> {
        let about = serde_json::json!({ "version": env!("CARGO_PKG_VERSION"), "features": FEATURES });
        about.to_string().into_bytes().into()
    }

    fn extension(&self, _id: RStr<'_>) -> ROption<RawExtensionArc> {
        ROption::RNone
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use aihost_plugin_api::abi::{RawCallback, RawCallback_TO};

    use super::*;

    fn call() -> Arc<Call> {
        request().0
    }

    /// A request, and what its end is told to.
    fn request() -> (Arc<Call>, Receiver<Result<Bytes, Error>>) {
        let (tell, told) = channel();
        let outbox = Arc::<Outbox>::default();
        let log = Arc::new(Log::new(Arc::clone(&outbox)));
        (Call::request(1, Bytes::new(), move |end| tell.send(end).unwrap(), outbox, log), told)
    }

    #[test]
    fn an_end_is_told_once_it_is_said_and_the_call_has_returned() {
        let summary = || Ok(Bytes::from_static(b"{}"));
        let (call, told) = request();
        let sink = call.sink();
        sink.finish(b"{}".as_slice().into());
        assert_eq!(sink.push(0, [].as_slice().into()), STOP, "nothing follows an end");
        assert!(told.try_recv().is_err(), "its call goes on");
        sink.fail(Error::internal("late").into());
        let late = call.returned(Err(Error::internal("later still")));
        assert_eq!(told.try_recv().unwrap(), summary());
        assert_eq!(late.unwrap().message(), "later still");
        drop(sink);
        assert!(told.try_recv().is_err(), "told twice");

        let (call, told) = request();
        let sink = call.sink();
        assert!(call.returned(Ok(())).is_none());
        assert!(told.try_recv().is_err(), "its plugin goes on");
        let thread = std::thread::spawn(move || sink.finish(b"{}".as_slice().into()));
        thread.join().unwrap();
        assert_eq!(told.try_recv().unwrap(), summary());
    }

    #[test]
    fn a_request_that_is_dropped_fails_with_what_its_call_returns() {
        let (call, told) = request();
        drop(call.sink());
        assert!(told.try_recv().is_err(), "its call may say why");
        assert!(call.returned(Err(Error::invalid_request("no"))).is_none());
        assert_eq!(told.try_recv().unwrap().unwrap_err().message(), "no");
        let (call, told) = request();
        assert!(call.returned(Ok(())).is_none());
        drop(call.sink());
        assert!(told.try_recv().unwrap().unwrap_err().message().contains("without an answer"));
    }

    #[test]
    fn a_cancel_is_called_back_once() {
        struct Count(Arc<AtomicU64>);
        impl RawCallback for Count {
            fn call(&self) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let calls = Arc::<AtomicU64>::default();
        let callback = || RawCallback_TO::from_value(Count(Arc::clone(&calls)), TD_Opaque);
        let call = call();
        call.context().on_cancel(callback());
        assert_eq!(calls.load(Ordering::Relaxed), 0);
        call.cancel();
        call.cancel();
        assert_eq!(calls.load(Ordering::Relaxed), 1);
        call.context().on_cancel(callback());
        assert_eq!(calls.load(Ordering::Relaxed), 2, "at once");
    }

    #[test]
    fn a_sink_pauses_at_the_credit_and_stops_when_cancelled() {
        let call = call();
        let sink = call.sink();
        let half = vec![0; (CREDIT_BYTES / 2) as usize];
        assert_eq!(sink.push(0, half.as_slice().into()), CONTINUE);
        assert_eq!(sink.push(0, half.as_slice().into()), PAUSE);
        assert_eq!(sink.flow(), PAUSE);
        call.credit(event_cost(half.len()));
        assert_eq!(sink.flow(), CONTINUE);
        call.cancel();
        assert_eq!((sink.flow(), sink.push(0, [].as_slice().into())), (STOP, STOP));
    }

    #[test]
    fn a_plugin_that_heeds_no_pause_is_stopped() {
        let call = call();
        let sink = call.sink();
        let pushes = (0..1000).take_while(|_| sink.push(0, vec![0; 1 << 16].as_slice().into()) != STOP).count();
        assert!((pushes as u64) <= HARD_CREDIT_BYTES / (1 << 16) + 1, "{pushes}");
        assert_eq!(call.context().is_cancelled(), 1);
    }
}
