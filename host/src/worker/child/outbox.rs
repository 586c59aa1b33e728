//! What the worker has to say, queued per request and written by one thread, so that a push never blocks the plugin.
//!
//! Each round takes one frame of every request in turn: a large answer cannot hold up another request's tokens. Events of
//! one request that wait together become one frame. It does not know what the messages mean.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::super::protocol::{CHUNK_BYTES, Loading, LogRecord, ToHost, encode, encode_event};

/// Most log records that wait for the socket; more are refused, so that a noisy plugin cannot fill memory.
const MAX_WAITING_LOGS: usize = 1024;
/// Of those, the most that are not for an operator: a flood of them leaves room for the others.
const MAX_WAITING_DETAILS: usize = MAX_WAITING_LOGS / 2;
/// Most messages outside requests that wait before heartbeats are left out.
const MAX_WAITING_HEARTBEATS: usize = 16;

/// The queue of messages that wait to be written to the host.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    state: Mutex<OutboxState>,
    filled: Condvar,
    emptied: Condvar,
}

#[derive(Debug, Default)]
struct OutboxState {
    queues: BTreeMap<u64, VecDeque<Item>>,
    logs: usize,
    writing: bool,
}

impl OutboxState {
    fn has_room_for(&self, level: u32) -> bool {
        let matters = (1..=3).contains(&level);
        self.logs < if matters { MAX_WAITING_LOGS } else { MAX_WAITING_DETAILS }
    }
}

#[derive(Debug)]
enum Item {
    /// Events that may still be joined by more.
    Events(Vec<u8>),
    /// Anything else, or what is left of it.
    Message { kind: u8, payload: Bytes, log: bool },
}

impl Outbox {
    /// Queues a message.
    pub(super) fn send(&self, message: &ToHost) {
        let log = matches!(message, ToHost::Log(_));
        let (kind, request, payload) = message.encode();
        let mut state = self.lock();
        state.queues.entry(request).or_default().push_back(Item::Message { kind, payload, log });
        self.filled.notify_one();
    }

    /// Queues an event of a request, beside those that still wait.
    pub(super) fn event(&self, request: u64, kind: u32, payload: &[u8]) {
        let mut state = self.lock();
        let queue = state.queues.entry(request).or_default();
        match queue.back_mut() {
            Some(Item::Events(packed)) if packed.len() < CHUNK_BYTES => encode_event(packed, kind, payload),
            _ => {
                let mut packed = Vec::new();
                encode_event(&mut packed, kind, payload);
                queue.push_back(Item::Events(packed));
            }
        }
        self.filled.notify_one();
    }

    /// Queues how far a request is. It takes the place of one that still waits, so that a plugin cannot fill memory with it.
    pub(super) fn progress(&self, request: u64, loading: Loading) {
        let (kind, request, payload) = ToHost::Progress(request, loading).encode();
        let mut state = self.lock();
        let queue = state.queues.entry(request).or_default();
        match queue.back_mut() {
            Some(Item::Message { kind: waiting, payload: newer, .. }) if *waiting == kind => *newer = payload,
            _ => queue.push_back(Item::Message { kind, payload, log: false }),
        }
        self.filled.notify_one();
    }

    /// Queues a log record, unless too many wait: then false.
    pub(super) fn log(&self, record: LogRecord) -> bool {
        {
            let mut state = self.lock();
            if !state.has_room_for(record.level) {
                return false;
            }
            state.logs += 1;
        }
        self.send(&ToHost::Log(record));
        true
    }

    /// Whether a log record of this level would be queued now.
    pub(super) fn has_room_for(&self, level: u32) -> bool {
        self.lock().has_room_for(level)
    }

    /// Queues a sign of life unless the host is so far behind that others wait.
    pub(super) fn heartbeat(&self) {
        let waiting = self.lock().queues.get(&0).map_or(0, VecDeque::len);
        if waiting < MAX_WAITING_HEARTBEATS {
            self.send(&ToHost::Heartbeat);
        }
    }

    /// Waits until everything is written, at most this long.
    pub(super) fn drain(&self, limit: Duration) {
        let mut state = self.lock();
        let busy = |state: &mut OutboxState| state.writing || !state.queues.is_empty();
        let _ = self.emptied.wait_while_for(&mut state, busy, limit);
    }

    /// Writes for as long as the socket lasts, and says why it does not.
    pub(super) fn write_to(&self, mut socket: &UnixStream) -> io::Error {
        let mut buffer = Vec::with_capacity(2 * CHUNK_BYTES);
        loop {
            buffer.clear();
            self.fill(&mut buffer);
            if let Err(error) = socket.write_all(&buffer) {
                return error;
            }
        }
    }

    /// Takes one frame of every request that has something to say; waits for the first.
    fn fill(&self, buffer: &mut Vec<u8>) {
        let mut state = self.lock();
        state.writing = false;
        while state.queues.is_empty() {
            self.emptied.notify_all();
            self.filled.wait(&mut state);
        }
        state.writing = true;
        let OutboxState { queues, logs, .. } = &mut *state;
        queues.retain(|request, queue| {
            match queue.pop_front() {
                None => {}
                Some(Item::Events(packed)) => {
                    let (kind, request, mut payload) = ToHost::Events(*request, packed.into()).encode();
                    if encode(buffer, kind, request, &mut payload) {
                        queue.push_front(Item::Message { kind, payload, log: false });
                    }
                }
                Some(Item::Message { kind, mut payload, log }) => {
                    if encode(buffer, kind, *request, &mut payload) {
                        queue.push_front(Item::Message { kind, payload, log });
                    } else if log {
                        *logs -= 1;
                    }
                }
            }
            !queue.is_empty()
        });
    }

    fn lock(&self) -> MutexGuard<'_, OutboxState> {
        self.state.lock()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::super::protocol::{Assembler, Decoder, decode_events};
    use super::*;

    /// What was queued, as the host would read it.
    pub(crate) fn written(outbox: &Outbox) -> Vec<ToHost> {
        let (mut decoder, mut assembler, mut out) = (Decoder::default(), Assembler::default(), Vec::new());
        while !outbox.lock().queues.is_empty() {
            let mut buffer = Vec::new();
            outbox.fill(&mut buffer);
            decoder.push(&buffer);
        }
        while let Some(frame) = decoder.next().unwrap() {
            out.extend(assembler.push(frame).unwrap().map(|frame| ToHost::decode(frame).unwrap()));
        }
        out
    }

    #[test]
    fn events_that_wait_together_share_a_frame_and_order_is_kept() {
        let outbox = Outbox::default();
        outbox.event(5, 0, b"one");
        outbox.event(6, 0, b"other");
        outbox.event(5, 0, b"two");
        outbox.send(&ToHost::Done(5, Bytes::from_static(b"{}")));
        let got = written(&outbox);
        let ToHost::Events(5, packed) = &got[0] else { panic!("{got:?}") };
        let events: Vec<_> = decode_events(packed.clone()).unwrap().into_iter().map(|event| event.payload).collect();
        assert_eq!(events, ["one", "two"]);
        assert!(matches!(got[1], ToHost::Events(6, _)));
        assert!(matches!(got[2], ToHost::Done(5, _)));
    }

    #[test]
    fn progress_that_waits_is_replaced_by_newer() {
        let outbox = Outbox::default();
        for done in 1..=100 {
            outbox.progress(5, Loading { done, total: 100 });
        }
        outbox.event(5, 1, b"block");
        outbox.progress(5, Loading { done: 100, total: 0 });
        let got = written(&outbox);
        assert_eq!(got[0], ToHost::Progress(5, Loading { done: 100, total: 100 }));
        assert!(matches!(got[1], ToHost::Events(5, _)));
        assert_eq!(got[2..], [ToHost::Progress(5, Loading { done: 100, total: 0 })]);
    }

    #[test]
    fn a_large_answer_does_not_hold_up_another_request() {
        let outbox = Outbox::default();
        outbox.send(&ToHost::Done(1, vec![7; 5 * CHUNK_BYTES].into()));
        outbox.event(2, 0, b"token");
        outbox.event(3, 1, &vec![8; 5 * CHUNK_BYTES]);
        let got = written(&outbox);
        assert!(matches!(got[0], ToHost::Events(2, _)), "the token came after the large answer");
        assert!(matches!(&got[1], ToHost::Done(1, bytes) if bytes.len() == 5 * CHUNK_BYTES));
        assert!(matches!(&got[2], ToHost::Events(3, packed) if packed.len() > 5 * CHUNK_BYTES));
    }

    #[test]
    fn logs_that_nobody_takes_are_refused() {
        let outbox = Outbox::default();
        let record = || LogRecord {
            level: 3,
            target: String::new(),
            message: "x".to_owned(),
            fields: String::new(),
            request: 0,
        };
        let taken = (0..MAX_WAITING_LOGS + 10).filter(|_| outbox.log(record())).count();
        assert_eq!((taken, written(&outbox).len()), (MAX_WAITING_LOGS, MAX_WAITING_LOGS));
        assert!(outbox.log(record()), "there is room again");
    }
}
