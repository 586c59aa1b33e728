//! The form in which raw bytes cross beside what they mean: `u32` little-endian header length, JSON header, raw bytes.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// A payload of kind [`BYTES`](crate::abi::event_kind::BYTES) that holds `header` and has room for `size` bytes.
pub(super) fn start(header: &impl Serialize, size: usize) -> Result<Vec<u8>> {
    let json = serde_json::to_vec(header).map_err(Error::internal)?;
    let length = u32::try_from(json.len()).map_err(Error::internal)?;
    let mut payload = Vec::with_capacity(4 + json.len() + size);
    payload.extend_from_slice(&length.to_le_bytes());
    payload.extend_from_slice(&json);
    Ok(payload)
}

/// The header of a payload and its raw bytes; `None` if it is cut short or its header is another.
pub(super) fn split<H: DeserializeOwned>(payload: &[u8]) -> Option<(H, &[u8])> {
    let (length, rest) = payload.split_first_chunk::<4>()?;
    let (json, bytes) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    Some((serde_json::from_slice(json).ok()?, bytes))
}
