//! Byte-level BPE: a text is cut into words, and the bytes of each are merged.

use aihost_plugin_api::{Error, Result};

/// Bytes that are cut into words at a time, where a text can be cut: each byte takes some hundred while it is.
pub(super) const WINDOW_BYTES: usize = 64 << 10;
/// Bytes at the end of a window whose words may go on beyond it, beside the longest special token.
const SLACK_BYTES: usize = 64;

/// Its words and merges.
pub(super) struct ByteLevel {
    pub(super) inner: tokenizers::Tokenizer,
    /// Bytes that are cut into words at a time.
    pub(super) window_bytes: usize,
    /// Bytes of the longest special token.
    pub(super) special_bytes: usize,
}

impl ByteLevel {
    /// The ids of a prompt's parts, one behind the other; no special token is across two of them. Of more than `most`, the first ones.
    /// Whether there are no more.
    pub(super) fn encode(&self, parts: &[&str], most: usize, ids: &mut Vec<u32>) -> Result<bool> {
        for part in parts {
            if !self.encode_by(self.window_bytes, part, most, ids)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(super) fn encode_by(&self, window_bytes: usize, text: &str, most: usize, ids: &mut Vec<u32>) -> Result<bool> {
        let (mut start, mut size) = (0, window_bytes);
        while start < text.len() && ids.len() <= most {
            let end = text.floor_char_boundary(start.saturating_add(size));
            let window = &text[start..end];
            if end == text.len() {
                ids.extend_from_slice(self.inner.encode_fast(window, false).map_err(Error::internal)?.get_ids());
                start = end;
                continue;
            }
            // The words that end well before the window does would be the same in the whole text.
            let encoding = self.inner.encode(window, false).map_err(Error::internal)?;
            let safe = window.len().saturating_sub(self.special_bytes + SLACK_BYTES);
            let (words, offsets) = (encoding.get_word_ids(), encoding.get_offsets());
            let is_border = |at: &usize| words[at - 1] != words[*at] && offsets[*at].0 <= safe;
            match (1..words.len()).rev().find(is_border) {
                Some(at) => {
                    ids.extend_from_slice(&encoding.get_ids()[..at]);
                    start += offsets[at].0;
                    size = window_bytes;
                }
                // One word that is longer than that.
                None => size *= 2,
            }
        }
        Ok(start == text.len())
    }
}
