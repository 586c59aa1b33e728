//! What host and worker say to each other on their one socket: messages, and the frames that carry them.
//!
//! Both ends are the same binary, but not always the same build in the future, so the first message each way is a
//! versioned [`Hello`]. Nothing here does IO, knows processes, or blocks.

mod frame;
mod message;
mod read_back;
mod task;

pub(super) use frame::{Assembler, CHUNK_BYTES, Decoder, Frame, ProtocolError, encode};
pub(super) use message::{
    Hello, Loading, LogRecord, OUTPUT_LEVEL, PROTOCOL_VERSION, PluginError, Start, ToHost, ToWorker, decode_events,
    encode_event,
};
pub use read_back::read_back;
pub use task::Task;
