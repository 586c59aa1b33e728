//! The loop that owns the state: it feeds events to the scheduler and carries out its effects.

mod api;

pub use api::{Answer, Class, Command, Handle, ModelStatus, Submission, Submitted};
