//! What the candle plugins share: reading GGUF files in place, and products with their quantised weights.
//!
//! This crate knows no model and no task. `unsafe` is allowed in three places: mapping a file ([`gguf`]), seeing mapped bytes as
//! candle's block types ([`linear`]), and the vector kernels (`kernels/x86.rs`).

pub mod gguf;
pub mod kernels;
pub mod linear;

pub use gguf::Gguf;
pub use linear::{Linear, project};
