//! What the candle plugins share: reading GGUF and safetensors files in place or piece by piece, products with their weights
//! for few rows ([`linear`]) and for many ([`dense`]), attention, and the T5 text encoder; and the same in candle tensors, for a
//! GPU ([`device`]).
//!
//! This crate knows no task and no plugin. `unsafe` is allowed in six places: mapping a file ([`gguf`], [`weights`]), seeing
//! mapped bytes as candle's block types ([`linear`]), the vector kernels (`kernels/x86.rs`), strided products ([`gemm`]), and
//! the allocator of measures ([`counting`]).

pub mod attention;
pub mod checkpoint;
pub mod counting;
pub mod dense;
pub mod device;
pub mod gemm;
pub mod gguf;
pub mod kernels;
pub mod linear;
pub mod rows;
pub mod t5;
pub mod weights;

pub use gguf::Gguf;
pub use linear::{Linear, project};
