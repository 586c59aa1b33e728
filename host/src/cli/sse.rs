//! Server-sent events, as far as a completion's stream needs them.

/// Puts events together from pieces of a body, wherever they are cut.
#[derive(Debug, Default)]
pub(super) struct EventReader {
    pending: Vec<u8>,
    data: String,
}

impl EventReader {
    /// The data of every event that ends within this piece.
    pub(super) fn push(&mut self, piece: &[u8]) -> Vec<String> {
        self.pending.extend_from_slice(piece);
        let mut events = Vec::new();
        while let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.pending.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches(['\n', '\r']);
            match line.strip_prefix("data:") {
                _ if line.is_empty() && !self.data.is_empty() => events.push(std::mem::take(&mut self.data)),
                Some(data) => {
                    if !self.data.is_empty() {
                        self.data.push('\n');
                    }
                    self.data.push_str(data.strip_prefix(' ').unwrap_or(data));
                }
                None => {}
            }
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::EventReader;

    #[test]
    fn events_survive_any_cut() {
        let body = "data: {\"a\":\"é\"}\n\n: ping\n\nevent: x\r\ndata: one\r\ndata: two\r\n\r\ndata: [DONE]\n\n";
        for size in 1..body.len() {
            let mut events = EventReader::default();
            let found: Vec<String> = body.as_bytes().chunks(size).flat_map(|piece| events.push(piece)).collect();
            assert_eq!(found, ["{\"a\":\"é\"}", "one\ntwo", "[DONE]"], "pieces of {size}");
        }
    }
}
