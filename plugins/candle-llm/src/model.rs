//! The model on the device that it was loaded to.

use std::sync::Arc;

use aihost_engine::candle::{CandleOps, dtype_on, locate, open as open_device};
use aihost_engine::cpu::Cpu;
use aihost_engine::nn::decoder::{Cache, Decoder, DecoderConfig, weight_bytes, workspace_bytes};
use aihost_engine::ops::{BLOCK_TOKENS, Ops, Pass};
use aihost_plugin_api::{Error, Result};
use candle_core::DType;

use crate::files::ModelFiles;

/// What the host calls its cores.
const CPU: &str = "cpu";

/// A model and its cache, whatever device they are on.
pub trait Runner: Send {
    /// Passes tokens through the model: the logits of the wanted rows, `[wanted, vocabulary]` f32.
    ///
    /// # Errors
    /// Those of the device.
    fn forward(&mut self, pass: &Pass<'_>) -> Result<Vec<f32>>;

    /// The part of the model whose results for these tokens are no finite numbers; nothing if it cannot be told.
    fn broken_part(&mut self, pass: &Pass<'_>) -> Option<String>;

    /// Writes what one place of the states holds into another.
    ///
    /// # Errors
    /// Those of the device.
    fn copy_state(&mut self, from: u32, to: u32) -> Result<()>;

    /// Gives the device's memory back.
    fn park(&mut self);

    /// Makes the cache, and brings the weights to where they are used.
    ///
    /// # Errors
    /// `OutOfMemory` if the device is full; those of the file.
    fn wake(&mut self) -> Result<()>;
}

impl std::fmt::Debug for dyn Runner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Runner")
    }
}

/// What a model takes, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelBytes {
    /// Its weights.
    pub weights: u64,
    /// A step at its peak.
    pub workspace: u64,
    /// A block of the cache.
    pub block: u64,
    /// What layers without keys and values remember of a sequence; 0 if there are none.
    pub state: u64,
    /// Whether the weights are the mapped file.
    pub is_mapped: bool,
}

/// Rows of the largest step.
#[derive(Clone, Copy, Debug)]
pub struct StepLimits {
    /// Tokens.
    pub rows: usize,
    /// Tokens whose logits are wanted.
    pub wanted: usize,
    /// Tokens of the longest sequence.
    pub context: usize,
}

/// What a model takes on a device, which is not opened.
///
/// # Errors
/// `Unsupported` if there is no such device in this build.
pub fn bytes(device: &str, files: &ModelFiles, config: &DecoderConfig, limits: StepLimits) -> Result<ModelBytes> {
    if device == CPU {
        return sizes(&Cpu, files, config, limits);
    }
    locate(device)?;
    sizes(&CandleOps::planned(DType::BF16), files, config, limits)
}

fn sizes<O: Ops>(ops: &O, files: &ModelFiles, config: &DecoderConfig, limits: StepLimits) -> Result<ModelBytes> {
    let StepLimits { rows, wanted, context } = limits;
    Ok(ModelBytes {
        weights: weight_bytes(ops, files.tensors(), config.names),
        workspace: workspace_bytes(ops, config, rows, wanted, context),
        block: config.caches().into_iter().map(|shape| ops.block_bytes(shape)).sum(),
        state: ops.state_bytes(config.state()),
        is_mapped: ops.is_in_place(),
    })
}

/// What a model is opened for.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Blocks of its cache.
    pub blocks: usize,
    /// Places for what layers without keys and values remember.
    pub states: usize,
    /// Most tokens of a sequence.
    pub context: usize,
}

/// A model on a device, asleep.
///
/// # Errors
/// Those of [`Decoder::open`], and of the device.
pub fn open(device: &str, files: &Arc<ModelFiles>, config: DecoderConfig, room: Room) -> Result<Box<dyn Runner>> {
    if device == CPU {
        return on(Cpu, files, config, room);
    }
    let device = open_device(locate(device)?)?;
    let dtype = dtype_on(&device)?;
    on(CandleOps::new(device, dtype), files, config, room)
}

/// A model over these operations, asleep.
///
/// # Errors
/// Those of [`Decoder::open`].
pub fn on<O: Ops + Clone>(
    ops: O,
    files: &Arc<ModelFiles>,
    config: DecoderConfig,
    room: Room,
) -> Result<Box<dyn Runner>> {
    let decoder = Decoder::open(ops.clone(), files.tensors(), config.clone(), room.context)?;
    Ok(Box::new(OnDevice { ops, files: Arc::clone(files), config, room, decoder: Some(decoder), cache: None }))
}

/// Blocks of the cache that a sequence of so many tokens takes.
pub fn blocks_of(tokens: usize) -> usize {
    tokens.div_ceil(BLOCK_TOKENS)
}

fn parked() -> Error {
    Error::internal("the model is parked; wake it first")
}

struct OnDevice<O: Ops> {
    ops: O,
    files: Arc<ModelFiles>,
    config: DecoderConfig,
    room: Room,
    /// Absent while it is parked, if its weights take memory of the device.
    decoder: Option<Decoder<O>>,
    /// Absent while it is parked.
    cache: Option<Cache<O>>,
}

impl<O: Ops + Clone> Runner for OnDevice<O> {
    fn forward(&mut self, pass: &Pass<'_>) -> Result<Vec<f32>> {
        match (&self.decoder, &mut self.cache) {
            (Some(decoder), Some(cache)) => decoder.forward(pass, cache),
            _ => Err(parked()),
        }
    }

    fn broken_part(&mut self, pass: &Pass<'_>) -> Option<String> {
        self.decoder.as_ref()?.broken_part(pass, self.cache.as_mut()?).ok().flatten()
    }

    fn copy_state(&mut self, from: u32, to: u32) -> Result<()> {
        match (&self.decoder, &mut self.cache) {
            (Some(decoder), Some(cache)) => decoder.copy_state(cache, from, to),
            _ => Err(parked()),
        }
    }

    fn park(&mut self) {
        self.cache = None;
        if !self.ops.is_in_place() {
            self.decoder = None;
        }
    }

    fn wake(&mut self) -> Result<()> {
        let decoder = match self.decoder.take() {
            Some(decoder) => decoder,
            None => Decoder::open(self.ops.clone(), self.files.tensors(), self.config.clone(), self.room.context)?,
        };
        let decoder = self.decoder.insert(decoder);
        if self.cache.is_none() {
            self.cache = Some(decoder.cache(self.room.blocks, self.room.states)?);
        }
        Ok(())
    }
}
