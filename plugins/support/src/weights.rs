//! Dense checkpoints by tensor name: safetensors (mapped, one file or shards) and torch's pickled `.bin`.
//!
//! Knows file layouts of the Hugging Face hub, no model. Opening reads headers only, so a plan can be made from it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use aihost_engine::files::map;
use aihost_engine::files::shards::{checkpoint, shards};
use aihost_plugin_api::{Error, ErrorKind, Result};
use candle_core::pickle::PthTensors;
use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Shape, Tensor};

use crate::checkpoint::Layers;
use crate::dense::Dense;
use crate::panics::caught;
use crate::pickle;

/// An opened checkpoint.
pub struct Weights {
    source: Source,
    path: PathBuf,
    read: AtomicU64,
    observer: Option<Observer>,
}

/// Told how many bytes have been read in all; an error ends the reading.
type Observer = Box<dyn Fn(u64) -> Result<()> + Send + Sync>;

enum Source {
    Safetensors(Box<MmapedSafetensors>),
    Torch(Vec<PthTensors>),
}

/// A tensor's name and size, from the file's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name in the file.
    pub name: String,
    /// Product of the dimensions.
    pub elements: usize,
    /// The type it is stored in.
    pub dtype: DType,
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Weights").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Weights {
    /// Opens `path`: a folder in the hub's layout, a weights file, the first of several shards, or an index of shards.
    ///
    /// # Errors
    /// [`ErrorKind::MissingFile`] if there is no checkpoint, [`ErrorKind::CorruptFile`] if its header cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let files = shards(&checkpoint(path)?)?;
        if let Some(missing) = files.iter().find(|file| !file.is_file()) {
            return Err(Error::new(ErrorKind::MissingFile, format!("{} does not exist", missing.display())));
        }
        let corrupt = |error| corrupt(path, error);
        let torch = files.iter().any(|file| file.extension().is_some_and(|ext| ext == "bin" || ext == "pt"));
        let source = if torch {
            Source::Torch(files.iter().map(|file| pickled(file)).collect::<Result<_>>()?)
        } else {
            Source::Safetensors(Box::new(map(&files).map_err(corrupt)?))
        };
        Ok(Self { source, path: path.to_owned(), read: AtomicU64::new(0), observer: None })
    }

    /// Calls `observer` after every tensor with the bytes read so far, as stored: for progress and for giving up.
    #[must_use]
    pub fn observed(self, observer: impl Fn(u64) -> Result<()> + Send + Sync + 'static) -> Self {
        Self { observer: Some(Box::new(observer)), ..self }
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        match &self.source {
            Source::Safetensors(file) => file.get(name).is_ok(),
            Source::Torch(files) => files.iter().any(|file| file.tensor_infos().contains_key(name)),
        }
    }

    /// All tensors. Those of a type candle does not know are left out.
    pub fn entries(&self) -> Vec<Entry> {
        match &self.source {
            Source::Safetensors(file) => (file.tensors().into_iter())
                .filter_map(|(name, view)| {
                    let dtype = DType::try_from(view.dtype()).ok()?;
                    Some(Entry { name, elements: view.shape().iter().product(), dtype })
                })
                .collect(),
            Source::Torch(files) => (files.iter().flat_map(|file| file.tensor_infos()))
                .map(|(name, info)| Entry {
                    name: name.clone(),
                    elements: info.layout.shape().elem_count(),
                    dtype: info.dtype,
                })
                .collect(),
        }
    }

    /// Reads a tensor as it is stored, into host memory.
    ///
    /// # Errors
    /// [`ErrorKind::CorruptFile`] if it is not there or cut short; what the observer answers.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let found = || match &self.source {
            Source::Safetensors(file) if self.has(name) => file.load(name, &Device::Cpu).map(Some),
            Source::Safetensors(_) => Ok(None),
            Source::Torch(files) => match files.iter().find(|file| file.tensor_infos().contains_key(name)) {
                Some(file) => file.get(name),
                None => Ok(None),
            },
        };
        let tensor = caught(found).map_err(|error| corrupt(&self.path, error))?.ok_or_else(|| {
            let path = self.path.display();
            Error::new(ErrorKind::CorruptFile, format!("{path} has no tensor `{name}`; is it a model of this kind?"))
        })?;
        let bytes = (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64;
        let read = self.read.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.observer.as_ref().map_or(Ok(()), |observer| observer(read))?;
        Ok(tensor)
    }

    /// Names under `prefix`, converted to `dtype` on `device` when read.
    pub fn scope<'a>(&'a self, prefix: &str, dtype: DType, device: &'a Device) -> Scope<'a> {
        Scope { weights: self, prefix: prefix.to_owned(), dtype, device }
    }
}

/// A part of a checkpoint: names below a prefix, one type, one device.
#[derive(Clone, Debug)]
pub struct Scope<'a> {
    weights: &'a Weights,
    prefix: String,
    dtype: DType,
    device: &'a Device,
}

impl Layers for Scope<'_> {
    fn has(&self, name: &str) -> bool {
        Scope::has(self, name)
    }

    fn matrix(&self, name: &str, rows: usize, columns: usize) -> Result<Dense> {
        Ok(Dense::owned(self.tensor_f32(name, &[rows, columns])?, rows, columns))
    }

    fn tensor_f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let tensor = self.get(name, shape)?;
        tensor.to_dtype(DType::F32).and_then(|wide| wide.flatten_all()?.to_vec1()).map_err(Error::internal)
    }
}

impl Scope<'_> {
    /// The part below `name`.
    #[must_use]
    pub fn at(&self, name: impl std::fmt::Display) -> Self {
        let prefix = if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) };
        Self { prefix, ..self.clone() }
    }

    /// Whether there is a tensor of this name below the prefix.
    pub fn has(&self, name: &str) -> bool {
        self.weights.has(&self.at(name).prefix)
    }

    /// Reads the tensor `name`, which must have this shape.
    ///
    /// # Errors
    /// [`ErrorKind::CorruptFile`] if it is not there or has another shape.
    pub fn get(&self, name: &str, shape: impl Into<Shape>) -> Result<Tensor> {
        let (name, shape) = (self.at(name).prefix, shape.into());
        let tensor = self.weights.tensor(&name)?;
        if *tensor.shape() != shape {
            let (path, found) = (self.weights.path.display(), tensor.shape());
            let text = format!("{path}: tensor `{name}` is {found:?}, but config.json says {shape:?}");
            return Err(Error::new(ErrorKind::CorruptFile, text));
        }
        tensor.to_dtype(self.dtype).and_then(|tensor| tensor.to_device(self.device)).map_err(Error::internal)
    }
}

fn corrupt(path: &Path, error: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::CorruptFile, format!("{} cannot be read: {error}", path.display()))
}

/// Opens a pickled checkpoint whose tensors are no larger than its file: they are stored as they are.
fn pickled(file: &Path) -> Result<PthTensors> {
    pickle::check(file).map_err(|why| corrupt(file, why))?;
    let tensors = caught(|| PthTensors::new(file, None)).map_err(|error| corrupt(file, error))?;
    let most = file.metadata().map_err(|error| corrupt(file, error))?.len();
    for (name, info) in tensors.tensor_infos() {
        let elements = map::elements(info.layout.dims().iter().map(|size| *size as u64));
        let bytes = elements.and_then(|elements| elements.checked_mul(info.dtype.size_in_bytes() as u64));
        if bytes.is_none_or(|bytes| bytes > most) {
            return Err(corrupt(
                file,
                format!("its tensor `{name}` is {:?}, larger than the file", info.layout.dims()),
            ));
        }
    }
    Ok(tensors)
}

#[expect(unsafe_code, reason = "candle maps files only through an unsafe function")]
fn map(files: &[PathBuf]) -> candle_core::Result<MmapedSafetensors> {
    // SAFETY: a mapped file must not be changed or cut while it is used. Weights are immutable by the host's contract:
    // a download writes another file and renames it over the old one, whose pages stay.
    unsafe { MmapedSafetensors::multi(files) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_a_checkpoint_is_a_missing_file() {
        let folder = tempfile::tempdir().unwrap();
        let error = Weights::open(folder.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::MissingFile);
        std::fs::write(folder.path().join("model.safetensors"), b"not one").unwrap();
        assert_eq!(Weights::open(folder.path()).unwrap_err().kind(), ErrorKind::CorruptFile);
    }
}
