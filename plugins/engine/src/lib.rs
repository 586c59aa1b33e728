//! The engine layer of the candle plugins: weight [`files`], and operations on them by the cores of the host ([`cpu`]) or in
//! candle tensors ([`candle`]).
//!
//! This crate knows no task and no plugin. `unsafe` is allowed in two places: mapping a file (`files/map.rs`) and the vector kernels
//! (`cpu/kernels/x86/`).

pub mod candle;
pub mod cpu;
pub mod files;
pub mod finite;
pub mod nn;
pub mod ops;
