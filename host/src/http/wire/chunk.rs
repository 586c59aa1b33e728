//! The chunk of a text stream: an object of which only the one choice differs from event to event.

use serde::Serialize;

use super::reply::{ReplyHead, UsageReply};
use super::write_json;
use crate::http::sse;

/// A chunk, as clients read it.
#[derive(Serialize)]
pub(super) struct Chunk<'a, C> {
    #[serde(flatten)]
    pub(super) head: ReplyHead<'a>,
    pub(super) choices: &'a [C],
    #[serde(skip_serializing_if = "ChunkUsage::is_absent")]
    pub(super) usage: ChunkUsage,
}

/// What a chunk says of the answer's tokens.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(untagged)]
pub(super) enum ChunkUsage {
    /// Nothing, because nobody asked.
    Absent,
    /// They will be told in the last chunk: `null`.
    Later,
    /// How many there were.
    Total(UsageReply),
}

impl ChunkUsage {
    fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }
}

/// Writes the chunks of one answer as events. The chunk is serialised once and cut where its choice goes: to serialise all of
/// it for each token takes three times as long.
#[derive(Debug)]
pub(super) struct ChunkWriter {
    before_choice: Vec<u8>,
    after_choice: Vec<u8>,
}

impl ChunkWriter {
    pub(super) fn new(head: ReplyHead<'_>, usage: ChunkUsage) -> Self {
        let mut event = Vec::new();
        sse::write_data(&mut event, &Chunk::<()> { head, choices: &[], usage });
        // The last pair of brackets: nothing that follows the choices has any.
        let at = event.windows(2).rposition(|pair| pair == b"[]").map_or(event.len(), |at| at + 1);
        let after_choice = event.split_off(at);
        Self { before_choice: event, after_choice }
    }

    /// Appends the event of a chunk with this choice.
    pub(super) fn write(&self, out: &mut Vec<u8>, choice: &impl Serialize) {
        out.extend_from_slice(&self.before_choice);
        write_json(out, choice);
        out.extend_from_slice(&self.after_choice);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_the_whole_chunk_serialised() {
        for model in ["m", "[]", "\"choices\":[]", "a\\[]\n\u{1f98a}", ""] {
            for usage in [ChunkUsage::Absent, ChunkUsage::Later] {
                let head = ReplyHead { id: "chatcmpl-[]", object: "chat.completion.chunk", created: 7, model };
                for choice in ["", "[]", "],\"usage\":"] {
                    let mut written = Vec::new();
                    ChunkWriter::new(head, usage).write(&mut written, &choice);
                    let mut wanted = Vec::new();
                    sse::write_data(&mut wanted, &Chunk { head, choices: &[choice], usage });
                    assert_eq!(written.escape_ascii().to_string(), wanted.escape_ascii().to_string());
                }
            }
        }
    }
}
