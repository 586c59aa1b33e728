//! What the candle plugins share: reading GGUF files in place and products with their quantised weights, reading dense
//! checkpoints by name, and the T5 text encoder.
//!
//! This crate knows no task and no plugin. `unsafe` is allowed in four places: mapping a file ([`gguf`], [`weights`]), seeing
//! mapped bytes as candle's block types ([`linear`]), and the vector kernels (`kernels/x86.rs`).

pub mod gguf;
pub mod kernels;
pub mod linear;
pub mod t5;
pub mod weights;

pub use gguf::Gguf;
pub use linear::{Linear, project};
