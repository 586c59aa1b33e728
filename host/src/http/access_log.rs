//! The access log: one line for each request, whatever became of it. Whoever is turned away may ask as often as they like, so
//! of requests that are not served no more stand in the log than a few a second, and the rest is counted.

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::extract::Request;
use axum::http::StatusCode;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::auth::PROBES;
use super::bucket::Bucket;
use super::connections::{Peer, peer_of};
use super::error::{ApiError, Cause};
use super::recent::{RecentRequest, RecentRequests};
use super::tally::Tally;
use crate::config::Rate;
use crate::domain::{ModelId, excerpt};
use crate::runtime::{AccessEntry, AccessFacts};
use crate::telemetry::unix_ms;

/// Lines of requests that were refused, and their largest burst; the same again of those that failed.
const LINES: Rate = Rate { requests: 60, per: Duration::from_secs(60) };
/// What stands in a line for a key that was not sent, and for what could not be read.
const NOTHING: &str = "-";
/// Bytes of a path that stand in a line.
const PATH_BYTES: usize = 200;
/// Bytes of a cause that stand in a line.
const CAUSE_BYTES: usize = 1000;
/// nginx's status of a request whose client left before the end of its answer.
const CLIENT_LEFT: u16 = 499;

/// Where lines go, and how many did not; and what is counted of them.
#[derive(Debug, Default)]
pub(super) struct AccessLog {
    tally: Arc<Tally>,
    recent: RecentRequests,
    refused: Mutex<Unlogged>,
    failed: Mutex<Unlogged>,
}

/// What was not logged for want of room.
#[derive(Debug, Default)]
struct Unlogged {
    bucket: Bucket,
    count: u64,
}

/// A request's line, written when nobody has it any more.
#[derive(Debug)]
pub(super) struct AccessLine {
    log: Arc<AccessLog>,
    entry: AccessEntry,
    trace_id: Option<String>,
    method: String,
    path: String,
    peer: Peer,
    begun: Instant,
    key: OnceLock<String>,
    status: OnceLock<u16>,
    code: OnceLock<Cow<'static, str>>,
    is_whole: AtomicBool,
}

/// How loud a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loudness {
    /// Something broke, and no other line says so.
    Failed,
    /// It was not served, as it should be.
    Refused,
    Served,
    /// A probe, which comes every few seconds for ever.
    Probed,
}

impl AccessLog {
    /// What is counted at the door.
    pub(super) fn tally(&self) -> &Arc<Tally> {
        &self.tally
    }

    /// The last requests that asked something of a model, or were refused. Whoever merely looks is not among them.
    pub(super) fn recent(&self) -> &RecentRequests {
        &self.recent
    }

    /// The line of a request that begins now.
    pub(super) fn begin(
        self: &Arc<Self>,
        request: &Request,
        entry: AccessEntry,
        trace_id: Option<String>,
    ) -> AccessLine {
        let asked = [request.method().as_str(), request.uri().path()].map(|text| excerpt(text, PATH_BYTES));
        self.line(entry, trace_id, asked, peer_of(request))
    }

    /// The line of what came to no request that could be routed, and the id that its answer has.
    pub(super) fn turned_away(self: &Arc<Self>, peer: Peer, why: &ApiError) -> String {
        let entry = AccessEntry::new(super::wire::new_id("req_"));
        let line = self.line(entry, None, [NOTHING, NOTHING].map(str::to_owned), peer);
        line.answers(why.status(), None);
        line.code.get_or_init(|| why.code_name());
        line.whole();
        line.entry.id().to_owned()
    }

    fn line(
        self: &Arc<Self>,
        entry: AccessEntry,
        trace_id: Option<String>,
        [method, path]: [String; 2],
        peer: Peer,
    ) -> AccessLine {
        AccessLine {
            log: Arc::clone(self),
            entry,
            trace_id,
            method,
            path,
            peer,
            begun: Instant::now(),
            key: OnceLock::new(),
            status: OnceLock::new(),
            code: OnceLock::new(),
            is_whole: AtomicBool::new(false),
        }
    }

    /// How many were not logged since the last line like this; nothing if this one is not either.
    fn room(&self, loudness: Loudness, now: Instant) -> Option<u64> {
        let mut unlogged = match loudness {
            Loudness::Failed => self.failed.lock(),
            Loudness::Refused => self.refused.lock(),
            Loudness::Served | Loudness::Probed => return Some(0),
        };
        if unlogged.bucket.take(LINES, now).is_err() {
            unlogged.count += 1;
            return None;
        }
        Some(std::mem::take(&mut unlogged.count))
    }
}

impl AccessLine {
    /// What whoever serves it writes down.
    pub(super) fn entry(&self) -> &AccessEntry {
        &self.entry
    }

    /// Whoever has the key of this name asks.
    pub(super) fn of_key(&self, name: &str) {
        self.key.get_or_init(|| name.to_owned());
        self.entry.asked_by(name);
    }

    /// It is answered, and why so if it is not served.
    pub(super) fn answers(&self, status: StatusCode, cause: Option<&Cause>) {
        self.log.tally.answered(status);
        self.status.get_or_init(|| status.as_u16());
        if let Some(Cause { code, message, .. }) = cause {
            self.code.get_or_init(|| code.clone());
            self.entry.failed(message);
        }
    }

    /// All of the answer was taken.
    pub(super) fn whole(&self) {
        self.is_whole.store(true, Ordering::Relaxed);
    }

    /// What whoever looks at the host is told of it.
    fn recent(&self, status: u16, facts: &AccessFacts) -> RecentRequest {
        RecentRequest {
            number: 0,
            ended_ms: unix_ms(),
            id: self.entry.id().to_owned(),
            key: self.key.get().cloned(),
            method: self.method.clone(),
            path: self.path.clone(),
            model: facts.model.clone(),
            status,
            code: self.code.get().cloned(),
            cause: said(status, facts),
            queue_ms: facts.queue.map(milliseconds),
            swap_ms: facts.swap.map(milliseconds),
            first_token_ms: facts.first_output.map(milliseconds),
            tokens_in: facts.tokens_in,
            tokens_out: facts.tokens_out,
            duration_ms: milliseconds(self.begun.elapsed()),
        }
    }

    fn loudness(&self, status: u16, facts: &AccessFacts) -> Loudness {
        match status {
            500 | 507 if !facts.is_told => Loudness::Failed,
            ..400 if facts.is_fault && !facts.is_told => Loudness::Failed,
            400.. => Loudness::Refused,
            _ if PROBES.contains(&self.path.as_str()) => Loudness::Probed,
            _ => Loudness::Served,
        }
    }
}

impl Drop for AccessLine {
    fn drop(&mut self) {
        let is_whole = self.is_whole.load(Ordering::Relaxed);
        let status = self.status.get().copied().filter(|_| is_whole).unwrap_or(CLIENT_LEFT);
        let facts = self.entry.facts();
        let loudness = self.loudness(status, &facts);
        let room = self.log.room(loudness, Instant::now());
        // Who is turned away may ask as often as they like, and is to displace nobody who was served.
        let is_asked = facts.queue.is_some() || (facts.model.is_some() && self.method != "GET");
        let is_refused = status >= 400 && status != CLIENT_LEFT && room.is_some();
        if is_asked || is_refused {
            self.log.recent.add(self.recent(status, &facts));
        }
        let Some(unlogged) = room else { return };
        let unlogged = (unlogged > 0).then_some(unlogged);
        let AccessLine { method, path, peer, .. } = self;
        let (request_id, trace_id) = (self.entry.id(), self.trace_id.as_deref());
        let key = self.key.get().map_or(NOTHING, String::as_str);
        let model = facts.model.as_ref().map(ModelId::as_str);
        let code = self.code.get().map(AsRef::as_ref);
        let cause = said(status, &facts);
        let cause = cause.as_deref();
        let (queue_ms, swap_ms) = (facts.queue.map(milliseconds), facts.swap.map(milliseconds));
        let first_token_ms = facts.first_output.map(milliseconds);
        let (tokens_in, tokens_out) = (facts.tokens_in, facts.tokens_out);
        let duration_ms = milliseconds(self.begun.elapsed());
        macro_rules! line {
            ($level:ident) => {
                tracing::event!(
                    target: "access", tracing::Level::$level, request_id, trace_id, key, %peer, model, status, code, cause,
                    queue_ms, swap_ms, first_token_ms, tokens_in, tokens_out, duration_ms, unlogged, "{method} {path}"
                )
            };
        }
        match loudness {
            Loudness::Failed => line!(WARN),
            Loudness::Refused | Loudness::Served => line!(INFO),
            Loudness::Probed => line!(DEBUG),
        }
    }
}

/// Why it was not served, as operators are told. What a client got wrong may repeat what it wrote, which is nobody's business.
fn said(status: u16, facts: &AccessFacts) -> Option<String> {
    let is_said = !matches!(status, 400..=498) || matches!(status, 401 | 403 | 429);
    facts.cause.as_deref().filter(|_| is_said).map(|cause| excerpt(cause, CAUSE_BYTES))
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_served_is_counted_where_there_is_too_much_to_log() {
        for loudness in [Loudness::Failed, Loudness::Refused] {
            let (log, now) = (AccessLog::default(), Instant::now());
            let logged = (0..1000).filter(|_| log.room(loudness, now) == Some(0)).count();
            assert_eq!(logged, 60);
            assert_eq!(log.room(loudness, now + Duration::from_secs(1)), Some(940));
            // One kind leaves room for the others.
            assert_eq!(log.room(Loudness::Served, now), Some(0));
        }
    }

    #[test]
    fn what_no_other_line_tells_of_is_loud() {
        let log = Arc::<AccessLog>::default();
        let request = Request::get("/v1/models").body(axum::body::Body::empty()).unwrap();
        let line = log.begin(&request, AccessEntry::default(), None);
        let fault = AccessFacts { is_fault: true, ..AccessFacts::default() };
        let told = AccessFacts { is_told: true, ..fault.clone() };
        for (status, facts, wanted) in [
            (200, AccessFacts::default(), Loudness::Served),
            (200, fault.clone(), Loudness::Failed),
            (200, told.clone(), Loudness::Served),
            (500, fault.clone(), Loudness::Failed),
            (500, told, Loudness::Refused),
            (503, AccessFacts::default(), Loudness::Refused),
            (CLIENT_LEFT, fault, Loudness::Refused),
        ] {
            assert_eq!(line.loudness(status, &facts), wanted, "{status} {facts:?}");
        }
    }
}
