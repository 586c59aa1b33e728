//! What the candle plugins share: reading dense checkpoints by name, and the T5 text encoder.
//!
//! This crate knows no task and no plugin.

pub mod t5;
pub mod weights;
