//! Outputs that a client is not told before all of them are there, so that a worker that dies on the way costs it nothing.

use std::mem::size_of;

use bytes::Bytes;

use super::budget::{Budget, BudgetShare};
use crate::worker::Output;

/// Bytes of one answer that are held back; beyond that it is passed on as it comes.
const HELD_BYTES_MAX: usize = 32 << 20;
/// Bytes that are held back of all answers together.
const ALL_HELD_BYTES_MAX: usize = 256 << 20;

static ALL_HELD: Budget = Budget::new(ALL_HELD_BYTES_MAX);

/// What an output was.
#[derive(Clone, Copy, Debug)]
enum OutputKind {
    Event,
    Bytes,
}

/// The beginning of an answer, end to end in one piece of memory: a text of a million tokens is a million outputs.
#[derive(Debug)]
pub(super) struct HeldOutputs {
    bytes: Vec<u8>,
    /// Where each output ends.
    ends: Vec<(OutputKind, usize)>,
    share: BudgetShare,
}

impl Default for HeldOutputs {
    fn default() -> Self {
        Self { bytes: Vec::new(), ends: Vec::new(), share: ALL_HELD.share() }
    }
}

impl HeldOutputs {
    /// Holds an output back, if it is one that can be and there is memory for it.
    pub(super) fn hold(&mut self, output: &Output) -> bool {
        let (kind, content) = match output {
            Output::Event(content) => (OutputKind::Event, content),
            Output::Bytes(content) => (OutputKind::Bytes, content),
            Output::Progress { .. } | Output::Http(_) | Output::Done(_) => return false,
        };
        let more = content.len() + size_of::<(OutputKind, usize)>();
        if self.share.bytes() + more > HELD_BYTES_MAX || !self.share.take(more) {
            return false;
        }
        self.bytes.extend_from_slice(content);
        self.ends.push((kind, self.bytes.len()));
        true
    }

    /// Everything that was held back, in order.
    pub(super) fn take(&mut self) -> impl Iterator<Item = Output> + Send + use<> {
        let Self { bytes, ends, share } = std::mem::take(self);
        let bytes = Bytes::from(bytes);
        let mut begin = 0;
        ends.into_iter().map(move |(kind, end)| {
            // Counted for as long as the last of it is on its way.
            let _share = &share;
            let content = bytes.slice(begin..end);
            begin = end;
            match kind {
                OutputKind::Event => Output::Event(content),
                OutputKind::Bytes => Output::Bytes(content),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_back_comes_out_as_it_went_in_and_is_bounded() {
        let mut held = HeldOutputs::default();
        let event = |text: &'static str| Output::Event(Bytes::from_static(text.as_bytes()));
        assert!(
            held.hold(&event("a")) && held.hold(&Output::Bytes(Bytes::from_static(b"bc"))) && held.hold(&event(""))
        );
        assert!(!held.hold(&Output::Progress { done: 1, total: 2 }));
        let taken: Vec<Output> = held.take().collect();
        let [Output::Event(a), Output::Bytes(bc), Output::Event(none)] = taken.as_slice() else { panic!("{taken:?}") };
        assert_eq!((&a[..], &bc[..], &none[..]), (&b"a"[..], &b"bc"[..], &b""[..]));

        // A million tokens of a few bytes each are a few bytes each.
        let token = event("{\"type\":\"token\",\"text\":\"a \"}");
        let tokens = std::iter::from_fn(|| held.hold(&token).then_some(())).count();
        assert!((500_000..1_300_000).contains(&tokens), "{tokens}");
        assert!(held.bytes.capacity() + held.ends.capacity() * 16 <= 4 * HELD_BYTES_MAX);
    }
}
