//! Anthropic's endpoints.

pub(super) mod messages;
