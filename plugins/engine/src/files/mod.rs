//! Named tensors over mapped files.

pub mod gguf;
pub mod map;
pub mod tensor_type;

pub use gguf::{Gguf, TensorInfo};
pub use tensor_type::TensorType;
