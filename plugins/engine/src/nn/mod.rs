//! Models and their parts, written once over the [operations](crate::ops::Ops) of a device.

pub mod decoder;
pub mod encoder;
pub mod rotary;
mod weights;
