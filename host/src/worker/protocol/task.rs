//! What a request asks of its model, and its bytes on the way to the worker.

use std::hash::{Hash, Hasher};

use bytes::{Buf, Bytes};

use super::frame::{Payload, ProtocolError};

/// A request as its plugin gets it. Cheap to clone. Two are equal if they ask the same, whoever asks.
#[derive(Clone, Debug, Default)]
pub struct Task {
    /// JSON of the kind's request type.
    pub header: Bytes,
    /// The bytes that the header speaks of by number.
    pub blocks: Vec<Bytes>,
    /// Who asks, and within what limits: JSON of `aihost_plugin_api::RequestInfo`, or nothing if no client does.
    pub info: Bytes,
}

impl From<Bytes> for Task {
    /// A task without blocks.
    fn from(header: Bytes) -> Self {
        Self { header, ..Self::default() }
    }
}

impl PartialEq for Task {
    fn eq(&self, other: &Self) -> bool {
        (&self.header, &self.blocks) == (&other.header, &other.blocks)
    }
}

impl Hash for Task {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.header, &self.blocks).hash(state);
    }
}

impl Task {
    /// Bytes that it holds.
    pub fn size(&self) -> usize {
        self.header.len() + self.blocks.iter().map(Bytes::len).sum::<usize>()
    }

    /// Info and header, each behind its length of 4 bytes, then the blocks, each behind its length of 8.
    pub(super) fn encode(&self) -> Payload {
        let mut out = Payload::default();
        for part in [&self.info, &self.header] {
            // A header that no message can hold is refused by its size before.
            out.push(Bytes::copy_from_slice(&(part.len() as u32).to_le_bytes()));
            out.push(part.clone());
        }
        for block in &self.blocks {
            out.push(Bytes::copy_from_slice(&(block.len() as u64).to_le_bytes()));
            out.push(block.clone());
        }
        out
    }

    /// Undoes [`encode`](Self::encode), without copying.
    pub(super) fn decode(kind: u8, mut packed: Bytes) -> Result<Self, ProtocolError> {
        let bad = || ProtocolError::Message { kind, detail: "its task is cut".to_owned() };
        let info = split(&mut packed, 4).ok_or_else(bad)?;
        let header = split(&mut packed, 4).ok_or_else(bad)?;
        let mut blocks = Vec::new();
        while packed.has_remaining() {
            blocks.push(split(&mut packed, 8).ok_or_else(bad)?);
        }
        Ok(Self { header, blocks, info })
    }
}

/// The next part, behind a length of so many bytes.
fn split(packed: &mut Bytes, length_bytes: usize) -> Option<Bytes> {
    let length = packed.try_get_uint_le(length_bytes).ok()?;
    let length = usize::try_from(length).ok().filter(|length| *length <= packed.len())?;
    Some(packed.split_to(length))
}
