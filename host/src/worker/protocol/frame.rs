//! Frames: a little-endian `u32` length, a `u8` kind, a `u64` request, a payload of at most 64 KiB.
//!
//! The length counts what follows it. A longer message is cut into frames that share kind and request; all but the last
//! carry [`MORE`] in their kind, and frames of other requests may come between them.

use std::collections::BTreeMap;

use bytes::{Buf, Bytes, BytesMut};

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
    #[error("a message of more than {MAX_MESSAGE_BYTES} bytes")]
    TooLarge,
    /// Too many at once.
    #[error("more than {MAX_PARTIAL_MESSAGES} incomplete messages")]
    TooMany,
    /// A message this build does not know or cannot read.
    #[error("a message of kind {kind} that cannot be read: {detail}")]
    Message {
        /// Its number.
        kind: u8,
        /// What is wrong.
        detail: String,
    },
}

/// One whole message, or (from the decoder) one frame of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    /// Which message.
    pub(crate) kind: u8,
    /// Whose; 0 for none.
    pub(crate) request: u64,
    /// Whether more of this message follows.
    pub(crate) more: bool,
    /// Its bytes.
    pub(crate) payload: Bytes,
}

/// Appends the next frame of a message and takes its bytes off `payload`; true while more is left.
pub(crate) fn encode(out: &mut Vec<u8>, kind: u8, request: u64, payload: &mut Bytes) -> bool {
    let chunk = payload.split_to(payload.len().min(CHUNK_BYTES));
    let more = !payload.is_empty();
    // At most CHUNK_BYTES + HEAD_BYTES, so the cast is exact.
    out.extend_from_slice(&((chunk.len() + HEAD_BYTES) as u32).to_le_bytes());
    out.push(if more { kind | MORE } else { kind });
    out.extend_from_slice(&request.to_le_bytes());
    out.extend_from_slice(&chunk);
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
#[derive(Debug, Default)]
pub(crate) struct Assembler {
    partial: BTreeMap<(u8, u64), BytesMut>,
}

impl Assembler {
    /// Takes a frame; gives the message it completes.
    pub(crate) fn push(&mut self, frame: Frame) -> Result<Option<Frame>, ProtocolError> {
        let key = (frame.kind, frame.request);
        if !frame.more && !self.partial.contains_key(&key) {
            return Ok(Some(frame));
        }
        if self.partial.len() >= MAX_PARTIAL_MESSAGES && !self.partial.contains_key(&key) {
            return Err(ProtocolError::TooMany);
        }
        let message = self.partial.entry(key).or_default();
        if message.len() + frame.payload.len() > MAX_MESSAGE_BYTES {
            return Err(ProtocolError::TooLarge);
        }
        message.extend_from_slice(&frame.payload);
        if frame.more {
            return Ok(None);
        }
        let payload = self.partial.remove(&key).unwrap_or_default().freeze();
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
        assert_eq!(assembler.push(Frame { more: true, ..frame(1, u64::MAX, b"x") }), Err(ProtocolError::TooMany));
        let chunk = Frame { more: true, ..frame(1, 0, &vec![0; CHUNK_BYTES]) };
        let last = std::iter::repeat_with(|| assembler.push(chunk.clone())).find(Result::is_err);
        assert_eq!(last, Some(Err(ProtocolError::TooLarge)));
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
