//! Safetensors files, one or several, read in place over memory maps.

use std::path::Path;

use aihost_plugin_api::{Error, ErrorKind, Result};
use safetensors::{Dtype, SafeTensors};

use super::tensor_type::TensorType;
use super::tensors::{Part, TensorInfo, Tensors};
use super::{map, shards};

/// The tensors of all files of the checkpoint `path`, which begins with `first`.
///
/// # Errors
/// [`ErrorKind::MissingFile`] if a file is not there, [`ErrorKind::CorruptFile`] if a header cannot be read.
pub(super) fn open(path: &Path, first: &Path) -> Result<Tensors> {
    let mut tensors = Tensors::of(path);
    for file in shards::shards(first)? {
        if !file.is_file() {
            let message = format!("{}: its part {} is missing; fetch it", path.display(), file.display());
            return Err(Error::new(ErrorKind::MissingFile, message));
        }
        let part = Part::open(&file)?;
        let (read, unread) = header(part.bytes()).map_err(|error| part.named(&error))?;
        tensors.add(part, read)?;
        unread.into_iter().for_each(|(name, dtype)| tensors.leave_out(name, dtype));
    }
    Ok(tensors)
}

/// The tensors of a file, and those of types that are not read here, with their types.
type Found = (Vec<(String, TensorInfo)>, Vec<(String, String)>);

fn header(bytes: &[u8]) -> Result<Found> {
    let corrupt =
        |what: String| Error::new(ErrorKind::CorruptFile, format!("it cannot be read: {what}; fetch it again"));
    let (size, metadata) = SafeTensors::read_metadata(bytes).map_err(|error| corrupt(error.to_string()))?;
    let data = 8 + size;
    let (mut read, mut unread) = (Vec::new(), Vec::new());
    for (name, info) in metadata.tensors() {
        let dtype = match info.dtype {
            Dtype::F32 => TensorType::F32,
            Dtype::F16 => TensorType::F16,
            Dtype::BF16 => TensorType::Bf16,
            // Positions, masks, other kinds of floats.
            other => {
                unread.push((name, format!("{other:?}")));
                continue;
            }
        };
        if map::elements(info.shape.iter().map(|size| *size as u64)).is_none() {
            return Err(corrupt(format!("the tensor {name} is impossibly large")));
        }
        let range = data + info.data_offsets.0..data + info.data_offsets.1;
        let dimensions = info.shape.iter().rev().copied().collect();
        read.push((name, TensorInfo { dimensions, dtype, range, part: 0 }));
    }
    Ok((read, unread))
}
