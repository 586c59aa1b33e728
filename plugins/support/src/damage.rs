//! Damaged files, for tests of what is done about them.

use std::io::{Error, ErrorKind, Result};
use std::path::Path;

/// Writes a copy of a safetensors file in which the first number of a tensor is none.
///
/// # Errors
/// If the file cannot be read, has no such tensor, or the copy cannot be written.
pub fn poison(file: &Path, tensor: &str, copy: &Path) -> Result<()> {
    let mut bytes = std::fs::read(file)?;
    let wrong = || Error::new(ErrorKind::InvalidData, format!("{} has no tensor `{tensor}`", file.display()));
    let (size, rest) = bytes.split_first_chunk().ok_or_else(wrong)?;
    let size = u64::from_le_bytes(*size) as usize;
    let header: serde_json::Value = serde_json::from_slice(rest.get(..size).ok_or_else(wrong)?)?;
    let at = header[tensor]["data_offsets"][0].as_u64().ok_or_else(wrong)? as usize + 8 + size;
    // All bits set: no number in every type of floats.
    bytes.get_mut(at..at + 4).ok_or_else(wrong)?.fill(0xff);
    std::fs::write(copy, bytes)
}
