//! The model on the device that it was loaded to.

use std::sync::Arc;

use aihost_engine::cpu::Cpu;
use aihost_engine::files::Gguf;
use aihost_engine::nn::decoder::{Decoder, DecoderConfig, workspace_bytes};
use aihost_engine::ops::{BLOCK_TOKENS, Ops, Pass};
use aihost_plugin_api::{Error, Result};

/// A model and its cache, whatever device they are on.
pub trait Runner: Send {
    /// Passes tokens through the model: the logits of the wanted rows, `[wanted, vocabulary]` f32.
    ///
    /// # Errors
    /// Those of the device.
    fn forward(&mut self, pass: &Pass<'_>) -> Result<Vec<f32>>;

    /// The part of the model whose results for these tokens are no finite numbers; nothing if it cannot be told.
    fn broken_part(&mut self, pass: &Pass<'_>) -> Option<String>;

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

/// What a model takes on the cores of the host.
pub fn bytes_on_cpu(file: &Gguf, config: &DecoderConfig, limits: StepLimits) -> ModelBytes {
    let StepLimits { rows, wanted, context } = limits;
    let workspace = workspace_bytes(&Cpu, config, rows, wanted, context);
    let block = Cpu.block_bytes(config.cache());
    ModelBytes { weights: file.len() as u64, workspace, block, is_mapped: true }
}

/// A model for the cores of the host.
///
/// # Errors
/// Those of [`Decoder::open`].
pub fn on_cpu(file: &Arc<Gguf>, config: DecoderConfig, blocks: usize) -> Result<Box<dyn Runner>> {
    let decoder = Decoder::open(Cpu, file, config)?;
    Ok(Box::new(Placed { decoder, blocks, cache: None }))
}

/// Blocks of the cache that a sequence of so many tokens takes.
pub fn blocks_of(tokens: usize) -> usize {
    tokens.div_ceil(BLOCK_TOKENS)
}

/// A decoder whose weights stay where they are while it is parked.
struct Placed<O: Ops> {
    decoder: Decoder<O>,
    blocks: usize,
    /// Absent while it is parked.
    cache: Option<O::Cache>,
}

impl<O: Ops> Runner for Placed<O> {
    fn forward(&mut self, pass: &Pass<'_>) -> Result<Vec<f32>> {
        let cache = self.cache.as_mut().ok_or_else(|| Error::internal("the model is parked; wake it first"))?;
        self.decoder.forward(pass, cache)
    }

    fn broken_part(&mut self, pass: &Pass<'_>) -> Option<String> {
        self.decoder.broken_part(pass, self.cache.as_mut()?).ok().flatten()
    }

    fn park(&mut self) {
        self.cache = None;
    }

    fn wake(&mut self) -> Result<()> {
        if self.cache.is_none() {
            self.cache = Some(self.decoder.cache(self.blocks)?);
        }
        Ok(())
    }
}
