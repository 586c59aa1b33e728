//! Named tensors over mapped files.

pub mod gguf;
pub mod map;
mod safetensors;
pub mod shards;
pub mod tensor_type;
pub mod tensors;

pub use gguf::Gguf;
pub use tensor_type::TensorType;
pub use tensors::{TensorInfo, Tensors};
