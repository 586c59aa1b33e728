//! Frames: a little-endian `u32` length, a `u8` kind, a `u64` request, a payload of at most 64 KiB.
//!
//! The length counts what follows it. A longer message is cut into frames that share kind and request; all but the last
//! carry [`MORE`] in their kind, and frames of other requests may come between them.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Most payload bytes of one frame.
pub(crate) const CHUNK_BYTES: usize = 64 << 10;
/// Most bytes of a message put together from frames.
pub(crate) const MAX_MESSAGE_BYTES: usize = 256 << 20;
/// Most messages that may be incomplete at once.
const MAX_PARTIAL_MESSAGES: usize = 4096;
/// Bit of the kind that says more of this message follows.
const MORE: u8 = 0x80;
/// Bytes of the length field.
const LENGTH_BYTES: usize = 4;
/// Bytes of kind and request.
const HEAD_BYTES: usize = 9;

/// What the other end may not send. The connection cannot go on after one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ProtocolError {
    /// A length that no frame has.
    #[error("a frame of {0} bytes (at least {HEAD_BYTES}, at most {max})", max = HEAD_BYTES + CHUNK_BYTES)]
    Length(usize),
    /// A message that grew too large.
    #[error("a message of kind {kind} of more than {most} bytes")]
    TooLarge {
        /// The number of the kind that was found.
        kind: u8,
        /// What it may have.
        most: usize,
    },
    /// Too much at once.
    #[error(
        "incomplete messages: more than {MAX_PARTIAL_MESSAGES}, or of more than {MAX_MESSAGE_BYTES} bytes together"
    )]
    TooMuch,
    /// Events that nobody gave credit for.
    #[error("more of an answer than its reader has taken, though it was told to pause and to stop")]
    Unpaced,
    /// A message this build does not know or cannot read.
    #[error("a message of kind {kind} that cannot be read: {detail}")]
    Message {
        /// The number of the kind that was found.
        kind: u8,
        /// What is wrong.
        detail: String,
    },
}

/// One whole message, or (from the decoder) one frame of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    /// Number of the kind of message.
    pub(crate) kind: u8,
    /// Whose; 0 for none.
    pub(crate) request: u64,
    /// Whether more of this message follows.
    pub(crate) more: bool,
    /// Bytes of the message, or of a part of it.
    pub(crate) payload: Bytes,
}

/// A message's bytes in parts, which are never copied together: one may be most of a large body.
#[derive(Clone, Debug, Default)]
pub(crate) struct Payload(VecDeque<Bytes>);

impl Payload {
    /// Adds a part at the end.
    pub(super) fn push(&mut self, part: Bytes) {
        if !part.is_empty() {
            self.0.push_back(part);
        }
    }
}

impl From<Bytes> for Payload {
    fn from(whole: Bytes) -> Self {
        let mut payload = Self::default();
        payload.push(whole);
        payload
    }
}

impl Buf for Payload {
    fn remaining(&self) -> usize {
        self.0.iter().map(Bytes::len).sum()
    }

    fn chunk(&self) -> &[u8] {
        self.0.front().map_or(&[], |part| part)
    }

    fn advance(&mut self, mut count: usize) {
        while let Some(part) = self.0.front_mut() {
            let taken = count.min(part.len());
            part.advance(taken);
            count -= taken;
            if !part.is_empty() {
                break;
            }
            self.0.pop_front();
        }
        assert!(count == 0, "more was taken than there is");
    }
}

/// Appends the next frame of a message and takes its bytes off `payload`; true while more is left.
pub(crate) fn encode(out: &mut Vec<u8>, kind: u8, request: u64, payload: &mut impl Buf) -> bool {
    let length = payload.remaining().min(CHUNK_BYTES);
    // At most CHUNK_BYTES + HEAD_BYTES, so the cast is exact.
    out.extend_from_slice(&((length + HEAD_BYTES) as u32).to_le_bytes());
    let more = payload.remaining() > length;
    out.push(if more { kind | MORE } else { kind });
    out.extend_from_slice(&request.to_le_bytes());
    out.put(payload.take(length));
    more
}

/// Cuts a byte stream into frames.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    buffer: BytesMut,
}

impl Decoder {
    /// Takes what was read.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, if it is there.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>, ProtocolError> {
        let Some(length) = self.buffer.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let length = u32::from_le_bytes(*length) as usize;
        if !(HEAD_BYTES..=HEAD_BYTES + CHUNK_BYTES).contains(&length) {
            return Err(ProtocolError::Length(length));
        }
        if self.buffer.len() < LENGTH_BYTES + length {
            return Ok(None);
        }
        self.buffer.advance(LENGTH_BYTES);
        let mut frame = self.buffer.split_to(length);
        let kind = frame.get_u8();
        let request = frame.get_u64_le();
        Ok(Some(Frame { kind: kind & !MORE, request, more: kind & MORE != 0, payload: frame.freeze() }))
    }
}

/// Puts messages together again.
#[derive(Debug)]
pub(crate) struct Assembler {
    partial: BTreeMap<(u8, u64), BytesMut>,
    /// Bytes of all that is incomplete.
    held: usize,
    /// Most bytes of a message by its kind.
    size_max: fn(u8) -> usize,
}

/// Of messages that may all be large.
impl Default for Assembler {
    fn default() -> Self {
        Self::new(|_| MAX_MESSAGE_BYTES)
    }
}

impl Assembler {
    /// `size_max`: most bytes of a message, by its kind.
    pub(crate) fn new(size_max: fn(u8) -> usize) -> Self {
        Self { partial: BTreeMap::new(), held: 0, size_max }
    }

    /// Takes a frame; gives the message it completes.
    pub(crate) fn push(&mut self, frame: Frame) -> Result<Option<Frame>, ProtocolError> {
        let key = (frame.kind, frame.request);
        if !frame.more && !self.partial.contains_key(&key) {
            return Ok(Some(frame));
        }
        let too_many = self.partial.len() >= MAX_PARTIAL_MESSAGES && !self.partial.contains_key(&key);
        if too_many || self.held + frame.payload.len() > MAX_MESSAGE_BYTES {
            return Err(ProtocolError::TooMuch);
        }
        let message = self.partial.entry(key).or_default();
        let most = (self.size_max)(frame.kind);
        if message.len() + frame.payload.len() > most {
            return Err(ProtocolError::TooLarge { kind: frame.kind, most });
        }
        message.extend_from_slice(&frame.payload);
        self.held += frame.payload.len();
        if frame.more {
            return Ok(None);
        }
        let payload = self.partial.remove(&key).unwrap_or_default().freeze();
        self.held -= payload.len();
        Ok(Some(Frame { payload, ..frame }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, request: u64, payload: &[u8]) -> Frame {
        Frame { kind, request, more: false, payload: Bytes::copy_from_slice(payload) }
    }

    /// Decodes a stream handed over in pieces of `step` bytes.
    fn read(bytes: &[u8], step: usize) -> Result<Vec<Frame>, ProtocolError> {
        let (mut decoder, mut assembler, mut out) = (Decoder::default(), Assembler::default(), Vec::new());
        for piece in bytes.chunks(step.max(1)) {
            decoder.push(piece);
            while let Some(frame) = decoder.next()? {
                out.extend(assembler.push(frame)?);
            }
        }
        Ok(out)
    }

    #[test]
    fn truncated_frames_wait_and_impossible_ones_are_refused() {
        let mut bytes = Vec::new();
        encode(&mut bytes, 3, 7, &mut Bytes::from_static(b"hello"));
        for cut in 0..bytes.len() {
            assert_eq!(read(&bytes[..cut], 1), Ok(vec![]), "cut at {cut}");
        }
        assert_eq!(read(&bytes, bytes.len()), Ok(vec![frame(3, 7, b"hello")]));
        for length in [0u32, 8, (HEAD_BYTES + CHUNK_BYTES + 1) as u32, u32::MAX] {
            assert_eq!(read(&length.to_le_bytes(), 4), Err(ProtocolError::Length(length as usize)));
        }
    }

    #[test]
    fn incomplete_messages_are_bounded() {
        let mut assembler = Assembler::default();
        for request in 0..MAX_PARTIAL_MESSAGES as u64 {
            assert_eq!(assembler.push(Frame { more: true, ..frame(1, request, b"x") }), Ok(None));
        }
        assert_eq!(assembler.push(Frame { more: true, ..frame(1, u64::MAX, b"x") }), Err(ProtocolError::TooMuch));
        let chunk = |request| Frame { more: true, ..frame(1, request, &vec![0; CHUNK_BYTES]) };
        let fill = |assembler: &mut Assembler, request| {
            std::iter::repeat_with(|| assembler.push(chunk(request))).take(1 << 16).find(Result::is_err)
        };
        // One, and many together.
        assert_eq!(fill(&mut assembler, 0), Some(Err(ProtocolError::TooMuch)));
        let mut assembler = Assembler::default();
        for request in 0..(MAX_MESSAGE_BYTES / CHUNK_BYTES) as u64 {
            assert_eq!(assembler.push(chunk(request)), Ok(None));
        }
        assert_eq!(assembler.push(chunk(0)), Err(ProtocolError::TooMuch));
        let mut small = Assembler::new(|kind| if kind == 1 { 2 * CHUNK_BYTES } else { 0 });
        assert_eq!(fill(&mut small, 0), Some(Err(ProtocolError::TooLarge { kind: 1, most: 2 * CHUNK_BYTES })));
    }

    #[test]
    fn room_comes_back_with_each_whole_message() {
        let mut assembler = Assembler::default();
        for _ in 0..10_000 {
            assembler.push(Frame { more: true, ..frame(1, 0, &[0; CHUNK_BYTES]) }).unwrap();
            assert!(assembler.push(frame(1, 0, b"x")).unwrap().is_some());
        }
        assert_eq!(assembler.held, 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn interleaved_messages_read_back(
            messages in prop::collection::vec((0u8..0x80, prop::collection::vec(any::<u8>(), 0..40), 0usize..3), 0..12),
            step in 1usize..50,
        ) {
            // Distinct requests, some longer than one chunk, one frame of each in turn.
            let mut left: Vec<(u8, u64, Bytes)> = messages.iter().enumerate()
                .map(|(i, (kind, bytes, chunks))| {
                    let mut payload = vec![*kind; chunks * CHUNK_BYTES];
                    payload.extend_from_slice(bytes);
                    (*kind, i as u64, Bytes::from(payload))
                })
                .collect();
            let mut wanted: Vec<Frame> = left.iter().map(|(k, r, p)| frame(*k, *r, p)).collect();
            let mut bytes = Vec::new();
            while !left.is_empty() {
                left.retain_mut(|(kind, request, payload)| encode(&mut bytes, *kind, *request, payload));
            }
            let mut got = read(&bytes, step * 997).unwrap();
            got.sort_by_key(|frame| frame.request);
            wanted.sort_by_key(|frame| frame.request);
            prop_assert_eq!(got, wanted);
        }

        #[test]
        fn no_bytes_upset_the_decoder(bytes in prop::collection::vec(any::<u8>(), 0..200), step in 1usize..20) {
            let _ = read(&bytes, step);
        }
    }
}
