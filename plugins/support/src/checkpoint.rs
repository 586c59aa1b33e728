//! Checkpoints whose weights stay in their files: safetensors (one file or shards) and GGUF, by tensor name.
//!
//! Knows layouts of files, no model. Opening reads headers only. What a layer needs is handed out as [`Dense`] matrices,
//! which read the file when they are used, and as vectors, which are copied.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aihost_engine::candle::block_type;
use aihost_engine::files::shards::checkpoint;
use aihost_engine::files::tensors::is_gguf;
use aihost_engine::files::{TensorType, Tensors};
use aihost_plugin_api::{Error, ErrorKind, Result};

use crate::dense::{Bytes, Dense, Residency, StorageType};

/// Bytes brought into memory between two looks at whether to go on.
const PRELOAD: usize = 64 << 20;

/// The smallest page of memory, bytes.
const PAGE: usize = 4096;

/// An open checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    tensors: BTreeMap<String, TensorEntry>,
    blocks: bool,
}

/// Where a tensor lies in its file, and its data type and shape.
#[derive(Clone, Debug)]
struct TensorEntry {
    bytes: Bytes,
    at: u64,
    stored: StorageType,
    /// Sizes of the dimensions, outermost first.
    shape: Vec<usize>,
}

impl TensorEntry {
    fn size(&self) -> u64 {
        self.stored.bytes(self.shape.iter().product()).unwrap_or(0)
    }
}

/// Where the layers of a model come from, by tensor name.
pub trait Layers {
    /// Whether there is a tensor of this name.
    fn has(&self, name: &str) -> bool;

    /// A matrix, which must have this shape.
    ///
    /// # Errors
    /// [`ErrorKind::CorruptFile`] if it is not there or has another shape.
    fn matrix(&self, name: &str, rows: usize, columns: usize) -> Result<Dense>;

    /// A tensor of any rank as f32, which must have this shape.
    ///
    /// # Errors
    /// As [`matrix`](Self::matrix).
    fn tensor_f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>>;
}

impl Checkpoint {
    /// Opens `path`: a safetensors file, an index or the first of several shards, a folder of these, or a GGUF file.
    ///
    /// # Errors
    /// [`ErrorKind::MissingFile`] if there is no checkpoint, [`ErrorKind::CorruptFile`] if a header cannot be read,
    /// [`ErrorKind::Unsupported`] if it is of another kind.
    pub fn open(path: &Path, residency: Residency) -> Result<Self> {
        let file = Tensors::open(path)?;
        let mut streamed: BTreeMap<&Path, Arc<File>> = BTreeMap::new();
        let mut tensors = BTreeMap::new();
        for (name, info) in file.iter() {
            let bytes = match residency {
                Residency::Resident => Bytes::Mapped(Arc::clone(file.map(info))),
                Residency::Streamed => Bytes::Streamed(match streamed.entry(file.path(info)) {
                    Entry::Occupied(opened) => Arc::clone(opened.get()),
                    Entry::Vacant(place) => Arc::clone(place.insert(Arc::new(reopened(file.path(info))?))),
                }),
            };
            let stored = storage(info.dtype).ok_or_else(|| {
                let message = format!(
                    "{}: the tensor {name} is {}, which is not read here; use a usual quantisation such as Q4_1, Q4_K or Q8_0",
                    path.display(),
                    info.dtype
                );
                Error::new(ErrorKind::Unsupported, message)
            })?;
            let shape = info.dimensions.iter().rev().copied().collect();
            tensors.insert(name.to_owned(), TensorEntry { bytes, at: info.range.start as u64, stored, shape });
        }
        Ok(Self { path: path.to_owned(), tensors, blocks: is_gguf(&checkpoint(path)?) })
    }

    /// Whether it is a GGUF file, whose tensors other tools may have renamed.
    pub fn is_gguf(&self) -> bool {
        self.blocks
    }

    /// A tensor's shape, outermost first.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| entry.shape.as_slice())
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Bytes of the tensors whose names are `wanted`, as stored.
    pub fn size(&self, wanted: impl Fn(&str) -> bool) -> u64 {
        self.tensors.iter().filter(|(name, _)| wanted(name)).map(|(_, entry)| entry.size()).sum()
    }

    /// Elements of the tensors whose names are `wanted`.
    pub fn count(&self, wanted: impl Fn(&str) -> bool) -> u64 {
        let wanted = self.tensors.iter().filter(|(name, _)| wanted(name));
        wanted.map(|(_, entry)| entry.shape.iter().product::<usize>() as u64).sum()
    }

    /// As [`size`](Self::size), with `each` bytes for an element of a dense tensor; quantised tensors stay as they are.
    pub fn size_as(&self, each: usize, wanted: impl Fn(&str) -> bool) -> u64 {
        let bytes = |entry: &TensorEntry| match entry.stored {
            StorageType::Quantised(_) => entry.size(),
            _ => (entry.shape.iter().product::<usize>() * each) as u64,
        };
        self.tensors.iter().filter(|(name, _)| wanted(name)).map(|(_, entry)| bytes(entry)).sum()
    }

    /// Brings mapped weights into memory, calling `on_progress` with the bytes so far; returns how many there were.
    ///
    /// # Errors
    /// Those of `on_progress`, which end it.
    pub fn preload(&self, mut on_progress: impl FnMut(u64) -> Result<()>) -> Result<u64> {
        let mut read = 0;
        for entry in self.tensors.values() {
            let Bytes::Mapped(map) = &entry.bytes else { continue };
            let (mut at, end) = (entry.at as usize, (entry.at + entry.size()) as usize);
            while at < end {
                let piece = &map[at..end.min(at + PRELOAD)];
                // One byte of each page is enough to have it read.
                std::hint::black_box(piece.iter().step_by(PAGE).fold(0u8, |sum, byte| sum.wrapping_add(*byte)));
                at += piece.len();
                read += piece.len() as u64;
                on_progress(read)?;
            }
        }
        Ok(read)
    }

    /// [`ErrorKind::CorruptFile`] with the file's name before the message.
    pub fn corrupt(&self, message: impl std::fmt::Display) -> Error {
        Error::new(ErrorKind::CorruptFile, format!("{}: {message}", self.path.display()))
    }

    fn entry(&self, name: &str, shape: &[usize]) -> Result<&TensorEntry> {
        let entry = self.tensors.get(name).ok_or_else(|| {
            self.corrupt(format!("it has no tensor `{name}`; is it whole, and a model of this kind?"))
        })?;
        if entry.shape != shape {
            let found = &entry.shape;
            return Err(
                self.corrupt(format!("tensor `{name}` is {found:?}, and {shape:?} is needed beside the others"))
            );
        }
        Ok(entry)
    }
}

impl Layers for Checkpoint {
    fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn matrix(&self, name: &str, rows: usize, columns: usize) -> Result<Dense> {
        let entry = self.entry(name, &[rows, columns])?;
        Dense::in_file(entry.bytes.clone(), entry.at, entry.stored, (rows, columns))
            .ok_or_else(|| self.corrupt(format!("rows of tensor `{name}` are no whole number of blocks")))
    }

    fn tensor_f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let entry = self.entry(name, shape)?;
        let count = shape.iter().product();
        let mut out = vec![0.0; count];
        if count > 0 {
            let whole = Dense::in_file(entry.bytes.clone(), entry.at, entry.stored, (1, count));
            whole
                .ok_or_else(|| self.corrupt(format!("tensor `{name}` is no whole number of blocks")))?
                .widen(0..1, &mut out)?;
        }
        Ok(out)
    }
}

/// Layers below a prefix, or under other names.
pub struct Renamed<'a> {
    layers: &'a dyn Layers,
    rename: Box<dyn Fn(&str) -> String + 'a>,
}

impl std::fmt::Debug for Renamed<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Renamed").finish_non_exhaustive()
    }
}

impl<'a> Renamed<'a> {
    /// `rename` gives the name in the file.
    pub fn new(layers: &'a dyn Layers, rename: impl Fn(&str) -> String + 'a) -> Self {
        Self { layers, rename: Box::new(rename) }
    }

    /// The layers below `prefix`, which ends with a point or is empty.
    pub fn below(layers: &'a dyn Layers, prefix: impl Into<String>) -> Self {
        let prefix = prefix.into();
        Self::new(layers, move |name| format!("{prefix}{name}"))
    }
}

impl Layers for Renamed<'_> {
    fn has(&self, name: &str) -> bool {
        self.layers.has(&(self.rename)(name))
    }

    fn matrix(&self, name: &str, rows: usize, columns: usize) -> Result<Dense> {
        self.layers.matrix(&(self.rename)(name), rows, columns)
    }

    fn tensor_f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.layers.tensor_f32(&(self.rename)(name), shape)
    }
}

fn reopened(path: &Path) -> Result<File> {
    File::open(path)
        .map_err(|error| Error::new(ErrorKind::MissingFile, format!("cannot open {}: {error}", path.display())))
}

/// What a type is here; `None` if products with it are not.
fn storage(dtype: TensorType) -> Option<StorageType> {
    Some(match dtype {
        TensorType::F32 => StorageType::F32,
        TensorType::F16 => StorageType::F16,
        TensorType::Bf16 => StorageType::Bf16,
        block => StorageType::Quantised(block_type(block)?),
    })
}
