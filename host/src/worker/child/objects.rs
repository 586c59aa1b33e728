//! What the plugin calls: sink, context and host, as objects of the ABI. None of them blocks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use abi_stable::sabi_trait::TD_Opaque;
use abi_stable::std_types::{RArc, ROption, RSlice, RStr};
use aihost_plugin_api::abi::{
    RawContext, RawContext_TO, RawContextArc, RawFlow, RawHost, RawHost_TO, RawHostArc, RawSink, RawSink_TO, RawSinkArc,
};

use super::super::limits::{CREDIT_BYTES, HARD_CREDIT_BYTES, event_cost};
use super::super::protocol::Loading;
use super::log::Log;
use super::outbox::Outbox;

const CONTINUE: RawFlow = RawFlow(0);
const PAUSE: RawFlow = RawFlow(1);
const STOP: RawFlow = RawFlow(2);

/// One call in progress: a request, or (with id 0) a load.
#[derive(Debug)]
pub(super) struct Call {
    /// The host's number.
    pub(super) id: u64,
    cancelled: AtomicBool,
    /// Bytes the host has not passed on yet.
    unconsumed: AtomicU64,
    progress: AtomicU64,
    outbox: Arc<Outbox>,
    log: Arc<Log>,
}

impl Call {
    pub(super) fn new(id: u64, outbox: Arc<Outbox>, log: Arc<Log>) -> Arc<Self> {
        let (cancelled, unconsumed, progress) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(u64::MAX));
        Arc::new(Self { id, cancelled, unconsumed, progress, outbox, log })
    }

    /// The plugin is to end it soon.
    pub(super) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
    }

    /// The host passed on this many bytes.
    pub(super) fn credit(&self, bytes: u64) {
        // Never below zero, whatever the other end claims.
        let _ = self.unconsumed.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| Some(n.saturating_sub(bytes)));
    }

    pub(super) fn sink(self: &Arc<Self>) -> RawSinkArc {
        RawSink_TO::from_ptr(RArc::new(SharedCall(Arc::clone(self))), TD_Opaque)
    }

    pub(super) fn context(self: &Arc<Self>) -> RawContextArc {
        RawContext_TO::from_ptr(RArc::new(SharedCall(Arc::clone(self))), TD_Opaque)
    }

    fn pace(&self, unconsumed: u64) -> RawFlow {
        match unconsumed {
            _ if self.cancelled.load(Ordering::Acquire) => STOP,
            n if n > CREDIT_BYTES => PAUSE,
            _ => CONTINUE,
        }
    }
}

struct SharedCall(Arc<Call>);

impl RawSink for SharedCall {
    fn push(&self, kind: u32, payload: RSlice<'_, u8>) -> RawFlow {
        let call = &self.0;
        if call.cancelled.load(Ordering::Acquire) {
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

    fn query(&self, _id: RStr<'_>) -> ROption<u64> {
        ROption::RNone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call() -> Arc<Call> {
        let outbox = Arc::<Outbox>::default();
        Call::new(1, Arc::clone(&outbox), Arc::new(Log::new(outbox)))
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
