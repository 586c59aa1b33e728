//! What a worker sends to its host, and a host to its worker: frames, the messages in them, and the events in those.

/// Reads the bytes as either end would. What could be read is written again and read back the same.
pub(super) fn run(input: &[u8]) {
    if let Err(difference) = aihost::worker::read_back(input) {
        panic!("{difference}");
    }
}
