//! What the candle plugins share: reading GGUF and safetensors files in place or piece by piece, products with their weights
//! for few rows ([`linear`]) and for many ([`dense`]), attention, and the T5 text encoder; and the same in candle tensors, for a
//! GPU ([`device`]). And the doors at which files of others are checked: pickles, [`tokens`], and work with a [`budget`].
//!
//! This crate knows no task and no plugin. `unsafe` is allowed in six places: mapping a file ([`weights`]), seeing
//! mapped bytes as candle's block types ([`linear`]), the vector kernels (`kernels/x86.rs`), strided products ([`gemm`]), the
//! allocator of measures ([`counting`]), and the one that heeds a budget ([`budget`]).

pub mod attention;
pub mod budget;
pub mod checkpoint;
pub mod counting;
pub mod dense;
pub mod device;
pub mod gemm;
pub mod gguf;
pub mod kernels;
pub mod linear;
pub mod panics;
mod pickle;
pub mod rows;
pub mod t5;
pub mod tokens;
pub mod weights;

pub use gguf::Gguf;
pub use linear::{Linear, project};
