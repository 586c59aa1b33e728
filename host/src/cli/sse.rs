//! Server-sent events, as far as a completion's stream needs them.

use super::failure::CliError;

/// Bytes of an event of text; it holds a token or a line.
pub(super) const TEXT_EVENT_BYTES: usize = 4 << 20;
/// Bytes of an event that may hold a whole file, in base64.
pub(super) const FILE_EVENT_BYTES: usize = 256 << 20;

/// Puts events together from pieces of a body, wherever they are cut.
#[derive(Debug)]
pub(super) struct EventReader {
    /// The beginning of a line.
    pending: Vec<u8>,
    data: String,
    /// Most bytes of an event.
    most: usize,
}

impl EventReader {
    /// For events of at most so many bytes.
    pub(super) fn new(most: usize) -> Self {
        Self { pending: Vec::new(), data: String::new(), most }
    }

    /// The data of every event that ends within this piece.
    ///
    /// # Errors
    /// An event is longer than it may be: whoever sends it is no host.
    pub(super) fn push(&mut self, piece: &[u8]) -> Result<Vec<String>, CliError> {
        let mut events = Vec::new();
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            if self.pending.len() + self.data.len() + part.len() > self.most {
                return Err(CliError::failed(format!("an event of the answer is longer than {} bytes", self.most)));
            }
            self.pending.extend_from_slice(part);
            if part.ends_with(b"\n") {
                let line = std::mem::take(&mut self.pending);
                events.extend(self.take(String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r'])));
            }
        }
        Ok(events)
    }

    /// Takes a line, which may end an event.
    fn take(&mut self, line: &str) -> Option<String> {
        if line.is_empty() && !self.data.is_empty() {
            return Some(std::mem::take(&mut self.data));
        }
        let data = line.strip_prefix("data:")?;
        if !self.data.is_empty() {
            self.data.push('\n');
        }
        self.data.push_str(data.strip_prefix(' ').unwrap_or(data));
        None
    }
}

#[cfg(test)]
mod tests {
    use super::EventReader;

    #[test]
    fn events_survive_any_cut() {
        let body = "data: {\"a\":\"é\"}\n\n: ping\n\nevent: x\r\ndata: one\r\ndata: two\r\n\r\ndata: [DONE]\n\n";
        for size in 1..body.len() {
            let mut events = EventReader::new(64);
            let found: Vec<String> =
                body.as_bytes().chunks(size).flat_map(|piece| events.push(piece).unwrap()).collect();
            assert_eq!(found, ["{\"a\":\"é\"}", "one\ntwo", "[DONE]"], "pieces of {size}");
        }
    }

    #[test]
    fn an_event_without_an_end_is_refused() {
        for endless in ["x", "data: x\n"] {
            let mut events = EventReader::new(1000);
            let pushed = (0..2000).find_map(|_| events.push(endless.as_bytes()).err());
            assert!(pushed.is_some(), "{endless}");
        }
    }
}
