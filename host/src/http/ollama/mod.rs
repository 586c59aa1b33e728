//! Ollama's endpoints.

pub(super) mod embed;
pub(super) mod generate;
pub(super) mod models;
