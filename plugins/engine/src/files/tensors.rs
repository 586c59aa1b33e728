//! Named tensors of one or several mapped files, whatever their format.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aihost_plugin_api::{Error, ErrorKind, Result};
use memmap2::{Advice, Mmap};

use super::tensor_type::TensorType;
use super::{Gguf, map, safetensors, shards};

/// The tensors of a checkpoint: every one lies within its file. Opening reads headers, the weights stay in the maps.
#[derive(Debug)]
pub struct Tensors {
    name: String,
    parts: Vec<Part>,
    tensors: BTreeMap<String, TensorInfo>,
    /// Tensors of types that are not read, and those types.
    unread: BTreeMap<String, String>,
}

/// Where a tensor lies and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Sizes, the contiguous one first.
    pub dimensions: Vec<usize>,
    /// The element or block type.
    pub dtype: TensorType,
    /// Bytes within its file.
    pub range: Range<usize>,
    /// Which file of the checkpoint it is in, from 0.
    pub part: usize,
}

/// One file.
#[derive(Debug)]
pub(super) struct Part {
    map: Arc<Mmap>,
    path: PathBuf,
}

impl Part {
    /// Maps a file, which is about to be read.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let map = map::map_file(path)?;
        // Best effort: readahead only makes the first pass faster.
        let _ = map.advise(Advice::WillNeed);
        Ok(Self { map: Arc::new(map), path: path.to_owned() })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// The error with the file's name before it.
    pub(super) fn named(&self, error: &Error) -> Error {
        Error::new(error.kind(), format!("{}: {}", self.path.display(), error.message()))
    }
}

impl Tensors {
    /// The tensors of `path`: a GGUF or safetensors file, whatever it is called, the first of several or their index, or a folder of these.
    ///
    /// # Errors
    /// [`ErrorKind::MissingFile`] if there is no checkpoint or a part of it is not there, [`ErrorKind::CorruptFile`] if a header
    /// cannot be read, [`ErrorKind::Unsupported`] if it is of another kind.
    pub fn open(path: &Path) -> Result<Self> {
        let first = shards::checkpoint(path)?;
        match magic(&first) {
            Some([b'G', b'G', b'U', b'F']) => Ok(Gguf::open(&first)?.into_tensors()),
            Some([b'P', b'K', ..]) => {
                let message =
                    format!("{} is a pickle, which cannot be read in place; use its safetensors", first.display());
                Err(Error::new(ErrorKind::Unsupported, message))
            }
            _ => safetensors::open(path, &first),
        }
    }

    /// A checkpoint that messages call by its path, without parts.
    pub(super) fn of(path: &Path) -> Self {
        Self { name: path.display().to_string(), parts: Vec::new(), tensors: BTreeMap::new(), unread: BTreeMap::new() }
    }

    /// Adds a file and its tensors.
    pub(super) fn add(&mut self, part: Part, tensors: impl IntoIterator<Item = (String, TensorInfo)>) -> Result<()> {
        for (name, info) in tensors {
            match self.tensors.entry(name) {
                Entry::Vacant(place) => place.insert(TensorInfo { part: self.parts.len(), ..info }),
                Entry::Occupied(twin) => {
                    let message = format!("{}: the tensor {} is in two parts; fetch them again", self.name, twin.key());
                    return Err(Error::new(ErrorKind::CorruptFile, message));
                }
            };
        }
        self.parts.push(part);
        Ok(())
    }

    /// The same under other names, without those that have none.
    #[must_use]
    pub fn renamed(self, rename: impl Fn(&str) -> Option<String>) -> Self {
        let tensors = self.tensors.into_iter().filter_map(|(name, info)| Some((rename(&name)?, info))).collect();
        let unread = self.unread.into_iter().filter_map(|(name, dtype)| Some((rename(&name)?, dtype))).collect();
        Self { tensors, unread, ..self }
    }

    /// Remembers a tensor of a type that is not read, for whoever asks for it.
    pub(super) fn leave_out(&mut self, name: String, dtype: String) {
        self.unread.insert(name, dtype);
    }

    /// The bytes of the first file.
    pub(super) fn first(&self) -> &[u8] {
        self.parts.first().map_or(&[], Part::bytes)
    }

    /// The path, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes of all files.
    pub fn len(&self) -> usize {
        self.parts.iter().map(|part| part.map.len()).sum()
    }

    /// Whether the files have no bytes; never true of what was opened.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The map of the file that a tensor is in, to hold on to.
    pub fn map(&self, tensor: &TensorInfo) -> &Arc<Mmap> {
        &self.parts[tensor.part].map
    }

    /// The file that a tensor is in.
    pub fn path(&self, tensor: &TensorInfo) -> &Path {
        &self.parts[tensor.part].path
    }

    /// A tensor by its name.
    ///
    /// # Errors
    /// [`ErrorKind::CorruptFile`] if it is not there, [`ErrorKind::Unsupported`] if it is of a type that is not read.
    pub fn tensor(&self, tensor: &str) -> Result<&TensorInfo> {
        self.tensors.get(tensor).ok_or_else(|| match self.unread.get(tensor) {
            Some(dtype) => {
                let message = format!(
                    "{}: the tensor {tensor} is {dtype}, and F32, F16 and BF16 are read; convert it",
                    self.name
                );
                Error::new(ErrorKind::Unsupported, message)
            }
            None => self.corrupt(format!("the tensor {tensor} is missing; convert the model again")),
        })
    }

    /// Whether there is such a tensor, of whatever type.
    pub fn has_tensor(&self, tensor: &str) -> bool {
        self.tensors.contains_key(tensor) || self.unread.contains_key(tensor)
    }

    /// All tensors, by name. Those of types that are not read are left out.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &TensorInfo)> {
        self.tensors.iter().map(|(name, info)| (name.as_str(), info))
    }

    /// A one-dimensional tensor of `len` elements as f32, copied.
    ///
    /// # Errors
    /// Those of [`tensor`](Self::tensor); [`ErrorKind::CorruptFile`] if it is of another shape, [`ErrorKind::Unsupported`] if it is
    /// not f32, f16 or bf16.
    pub fn vector(&self, tensor: &str, len: usize) -> Result<Vec<f32>> {
        let info = self.tensor(tensor)?;
        if info.dimensions != [len] {
            return Err(self.wrong_shape(tensor, &info.dimensions, &[len]));
        }
        let bytes = &self.map(info)[info.range.clone()];
        Ok(match info.dtype {
            TensorType::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            TensorType::F16 => bytes.as_chunks::<2>().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect(),
            TensorType::Bf16 => {
                bytes.as_chunks::<2>().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect()
            }
            other => {
                let message =
                    format!("{}: the tensor {tensor} is {other}, and a vector must be F32, F16 or BF16", self.name);
                return Err(Error::new(ErrorKind::Unsupported, message));
            }
        })
    }

    /// The error for a tensor of the wrong shape.
    pub fn wrong_shape(&self, tensor: &str, found: &[usize], wanted: &[usize]) -> Error {
        self.corrupt(format!(
            "the tensor {tensor} has shape {found:?} and should have {wanted:?}; convert the model again"
        ))
    }

    /// [`ErrorKind::CorruptFile`] with the path before the message.
    pub fn corrupt(&self, message: impl AsRef<str>) -> Error {
        Error::new(ErrorKind::CorruptFile, format!("{}: {}", self.name, message.as_ref()))
    }
}

/// Whether a file is of that format, whatever it is called.
pub fn is_gguf(path: &Path) -> bool {
    magic(path) == Some(*b"GGUF")
}

/// What a file begins with.
fn magic(path: &Path) -> Option<[u8; 4]> {
    let mut magic = [0; 4];
    File::open(path).and_then(|mut file| file.read_exact(&mut magic)).ok()?;
    Some(magic)
}
