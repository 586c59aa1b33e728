//! Where a custom engine puts its answer: a head, then bytes. It heeds the client's pace.

use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use super::outlet::Outlet;
use super::{Error, Result};
use crate::abi::event_kind;
use crate::task::{CustomFinish, CustomHead, FinishReason};

/// Most bytes in one event: 64 KiB.
const BLOCK_BYTES: usize = 64 * 1024;
/// Most bytes of an answer's head, names and values of headers together: 16 KiB. Clients and proxies refuse larger ones.
const HEAD_BYTES: usize = 16 * 1024;
/// Statuses that end an answer.
const STATUSES: std::ops::RangeInclusive<u16> = 200..=599;

/// The answer of one custom request. A cheap handle: clones feed the same answer, from any thread.
#[derive(Clone, Debug)]
pub struct CustomOutput {
    outlet: Outlet,
    state: Arc<Mutex<CustomState>>,
}

#[derive(Debug, Default)]
struct CustomState {
    has_begun: bool,
    bytes: u64,
}

impl CustomOutput {
    pub(crate) fn new(outlet: Outlet) -> Self {
        Self { outlet, state: Arc::default() }
    }

    /// Begins the answer. Once, before the first byte.
    ///
    /// # Errors
    /// Once the client left: return it with `?`, it is a normal end. Internal if it has begun before, the status is none
    /// that ends an answer (200 to 599), or the media type or a header is none that HTTP has, or they have more than 16 KiB.
    pub fn begin(&self, head: &CustomHead) -> Result<()> {
        check(head).map_err(Error::internal)?;
        if std::mem::replace(&mut self.lock().has_begun, true) {
            return Err(Error::internal("the answer was begun twice"));
        }
        let json = serde_json::to_vec(head).map_err(Error::internal)?;
        self.outlet.push_paced(event_kind::JSON, &json)
    }

    /// Adds bytes of the body; each call is seen by the client as soon as it is there. Blocks while the client is too slow.
    ///
    /// # Errors
    /// As [`begin`](Self::begin); internal before it.
    pub fn write(&self, bytes: &[u8]) -> Result<()> {
        if !self.lock().has_begun {
            return Err(Error::internal("bytes were written before the answer was begun"));
        }
        for block in bytes.chunks(BLOCK_BYTES) {
            self.outlet.push_paced(event_kind::RAW, block)?;
            self.lock().bytes += block.len() as u64;
        }
        Ok(())
    }

    /// The whole answer as JSON, with status 200.
    ///
    /// # Errors
    /// As [`begin`](Self::begin).
    pub fn json(&self, value: &impl Serialize) -> Result<()> {
        let json = serde_json::to_vec(value).map_err(Error::internal)?;
        self.begin(&CustomHead::new(200, "application/json"))?;
        self.write(&json)
    }

    /// Says that `done` of `total` steps have been made; the client's progress bar shows it.
    ///
    /// # Errors
    /// Once the client left.
    pub fn progress(&self, done: u64, total: u64) -> Result<()> {
        self.outlet.progress(done, total)
    }

    pub(crate) fn finish(&self, result: Result<()>) -> Result<CustomFinish> {
        let reason = match result {
            Ok(()) => FinishReason::Stop,
            Err(error) => self.outlet.stopped(error).map(|()| FinishReason::Cancelled)?,
        };
        let CustomState { has_begun, bytes } = *self.lock();
        if reason == FinishReason::Stop && !has_begun {
            return Err(Error::internal("the engine ended without an answer"));
        }
        Ok(CustomFinish::new(reason, bytes))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, CustomState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a head is none.
fn check(head: &CustomHead) -> std::result::Result<(), String> {
    let CustomHead { status, content_type, headers } = head;
    if !STATUSES.contains(status) {
        return Err(format!("status {status} does not end an answer; 200 to 599 do"));
    }
    let is_value = |value: &str| !value.bytes().any(|byte| byte < b' ' && byte != b'\t' || byte == 0x7f);
    if content_type.is_empty() || !is_value(content_type) {
        return Err(format!("{content_type:?} is no media type; `text/plain` is one"));
    }
    let is_name = |name: &str| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
    };
    if let Some((name, _)) = headers.iter().find(|(name, value)| !is_name(name) || !is_value(value)) {
        return Err(format!("{name:?} is no header, by its name or its value"));
    }
    let bytes: usize = content_type.len() + headers.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
    match bytes > HEAD_BYTES {
        true => Err(format!(
            "the head of the answer has {bytes} bytes, where {HEAD_BYTES} may be; write them into the body"
        )),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_head_is_refused_before_a_client_sees_it() {
        let plain = |status| CustomHead::new(status, "text/plain");
        for sound in [plain(200), plain(599), plain(200).header("x-a", "b\tc \u{e9}").header("x_b", "")] {
            assert_eq!(check(&sound), Ok(()));
        }
        let many = (0..2000).fold(plain(200), |head, number| head.header(&format!("x-{number}"), "value"));
        for (head, wanted) in [
            (plain(101), "status 101"),
            (CustomHead::new(200, ""), "no media type"),
            (CustomHead::new(200, "text/plain\r\nx-evil: 1"), "no media type"),
            (plain(200).header("x a", "b"), "\"x a\" is no header"),
            (plain(200).header("", "b"), "is no header"),
            (plain(200).header("x-a", "b\r\nx-evil: 1"), "\"x-a\" is no header"),
            (plain(200).header("x-a", &"v".repeat(HEAD_BYTES)), "16384 may be"),
            (many, "16384 may be"),
        ] {
            let told = check(&head).unwrap_err();
            assert!(told.contains(wanted), "{told}");
        }
    }
}
