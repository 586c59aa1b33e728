//! Operations by the cores of the host, over weights that stay in their mapped file.

pub mod kernels;
pub mod linear;
pub mod rows;

pub use linear::{Linear, project};
