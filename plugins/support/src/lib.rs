//! What the candle plugins share beside their engine layer (`aihost-engine`): checkpoints read in place or piece by piece,
//! products with their weights for many rows ([`dense`]), attention, the T5 text encoder, and what files say of decoders ([`decoder`]); and the same in candle tensors,
//! for a GPU ([`device`]). And the doors at which files of others are checked: pickles, [`settings`], [`tokens`], and work with a [`budget`].
//!
//! This crate knows no task and no plugin. `unsafe` is allowed in four places: mapping files ([`weights`]), strided products
//! ([`gemm`]), the allocator of measures ([`counting`]), and the one that heeds a budget ([`budget`]).

pub mod attention;
pub mod budget;
pub mod checkpoint;
pub mod counting;
pub mod damage;
pub mod decoder;
pub mod dense;
pub mod device;
pub mod gemm;
pub mod panics;
mod pickle;
pub mod roles;
pub mod settings;
pub mod t5;
pub mod tokens;
pub mod weights;
