//! A decoder-only transformer (Vaswani et al. 2017; Touvron et al. 2023): token ids in, logits out. What its families have of their
//! own is in its configuration.

mod attention;
mod config;
mod experts;
mod inputs;
mod layer;
mod memory;
mod names;
mod recurrent;

use aihost_plugin_api::Result;

pub use config::{Biases, DecoderConfig, DeltaNet, Experts, LayerConfig, Norms, QueryGrowth, Recurrence};
pub use memory::{weight_bytes, workspace_bytes};
pub use names::{
    DeltaNetNames, ExpertNames, GGUF_NAMES, GGUF_NAMES_LFM2, GGUF_NAMES_POST_ATTENTION, HUGGING_FACE_NAMES,
    HUGGING_FACE_NAMES_AROUND, HUGGING_FACE_NAMES_GEMMA4, HUGGING_FACE_NAMES_GLM4, HUGGING_FACE_NAMES_LFM2,
    LayerInputNames, Names,
};

use super::rotary::Rotary;
use super::weights::Weights;
use crate::files::Tensors;
use crate::finite::is_finite;
use crate::ops::{Ops, Pass};
use attention::Angles;
use config::Place;
use inputs::LayerInputs;
use layer::{Layer, Step};

/// What a decoder remembers of sequences.
pub struct Cache<O: Ops> {
    /// Of layers whose heads differ, each its own.
    keys: Vec<O::Cache>,
    states: O::States,
}

impl<O: Ops> std::fmt::Debug for Cache<O> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").finish_non_exhaustive()
    }
}

/// A decoder, ready to compute.
pub struct Decoder<O: Ops> {
    ops: O,
    config: DecoderConfig,
    embedding: O::Table,
    layers: Vec<Layer<O>>,
    /// Each layer's place in the caches, or in the states.
    places: Vec<Place>,
    inputs: Option<LayerInputs<O>>,
    norm: O::Vector,
    /// From hidden states to logits; shares the embedding's weights if the file has no matrix of its own.
    head: O::Matrix,
    /// Radians per position of each pair, of each rotary embedding.
    frequencies: Vec<Vec<f32>>,
}

impl<O: Ops> std::fmt::Debug for Decoder<O> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder").field("config", &self.config).finish_non_exhaustive()
    }
}

impl<O: Ops> Decoder<O> {
    /// Finds and checks every tensor. Sequences have at most `context` tokens.
    ///
    /// # Errors
    /// `CorruptFile` for a missing tensor or a wrong shape, `Unsupported` for a tensor that this model has no use for.
    pub fn open(ops: O, file: &Tensors, config: DecoderConfig, context: usize) -> Result<Self> {
        let (names, sizes) = (config.names, [config.vocabulary, config.hidden]);
        let mut weights = Weights::new(&ops, file);
        let embedding = weights.table(names.embedding, config.vocabulary, config.hidden)?;
        let head = if weights.has(names.head) { names.head } else { names.embedding };
        let head = weights.matrix(head, &sizes, 0..config.vocabulary)?;
        let opened = (0..config.layers.len()).map(|i| Layer::open(&ops, &mut weights, &config, i));
        let layers = opened.collect::<Result<_>>()?;
        let norm = norm(&ops, &mut weights, &config, names.norm, config.hidden)?;
        let inputs =
            config.layer_inputs.map(|width| LayerInputs::open(&ops, &mut weights, &config, width)).transpose()?;
        // Layers behind the last one draft tokens.
        let drafting = (0..config.unused_layers).map(|i| format!("{}.{}.", names.layers, config.layers.len() + i));
        let drafting: Vec<String> = drafting.collect();
        let unused: Vec<&str> = names.unused.iter().copied().chain(drafting.iter().map(String::as_str)).collect();
        weights.check_rest(&unused)?;
        let frequencies = config.rotaries.iter().map(|rotary| rotary.frequencies(context)).collect();
        let places = config.places();
        Ok(Self { ops, config, embedding, layers, places, inputs, norm, head, frequencies })
    }

    /// The model's sizes.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// An empty cache of so many blocks, and so many places for what layers without keys and values remember.
    ///
    /// # Errors
    /// `OutOfMemory` if the device is full.
    pub fn cache(&self, blocks: usize, states: usize) -> Result<Cache<O>> {
        let keys =
            self.config.caches().into_iter().map(|shape| self.ops.cache(shape, blocks)).collect::<Result<_>>()?;
        Ok(Cache { keys, states: self.ops.states(self.config.state(), states)? })
    }

    /// Writes what one place of the states holds into another.
    ///
    /// # Errors
    /// Those of the device.
    pub fn copy_state(&self, cache: &mut Cache<O>, from: u32, to: u32) -> Result<()> {
        self.ops.copy_state(&mut cache.states, from as usize, to as usize)
    }

    /// Passes tokens through the model and extends the cache by them. The logits of the wanted rows, `[wanted, vocabulary]` f32.
    ///
    /// Every token must be of the vocabulary, every span's blocks must hold its tokens, and no two spans have one state.
    ///
    /// # Errors
    /// Those of the device.
    pub fn forward(&self, pass: &Pass<'_>, cache: &mut Cache<O>) -> Result<Vec<f32>> {
        self.watched(pass, cache, |_, _| Ok(()))
    }

    /// The same, but the hidden states of the wanted rows behind the last norm, `[wanted, hidden]` f32.
    ///
    /// # Errors
    /// Those of the device.
    pub fn hidden(&self, pass: &Pass<'_>, cache: &mut Cache<O>) -> Result<Vec<f32>> {
        match self.normed(pass, cache, |_, _| Ok(()))? {
            Some(hidden) => self.ops.to_host(&hidden),
            None => Ok(Vec::new()),
        }
    }

    /// The first part whose results are no finite numbers, by a second pass of the same tokens; nothing if all are.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn broken_part(&self, pass: &Pass<'_>, cache: &mut Cache<O>) -> Result<Option<String>> {
        let mut found = None;
        let logits = self.watched(pass, cache, |part, x| {
            if found.is_none() && !is_finite(&self.ops.to_host(x)?) {
                found = Some(part.to_string());
            }
            Ok(())
        })?;
        Ok(found.or_else(|| (!is_finite(&logits)).then(|| "output".to_owned())))
    }

    /// The logits of a pass; shows the residual stream behind each part.
    fn watched(
        &self,
        pass: &Pass<'_>,
        cache: &mut Cache<O>,
        watch: impl FnMut(Part, &O::Tensor) -> Result<()>,
    ) -> Result<Vec<f32>> {
        let (c, ops) = (&self.config, &self.ops);
        let Some(normed) = self.normed(pass, cache, watch)? else { return Ok(Vec::new()) };
        let [logits] = ops.linear(&normed, [&self.head])?;
        let mut logits = ops.to_host(&logits)?;
        if c.logit_scale != 1.0 {
            logits.iter_mut().for_each(|logit| *logit *= c.logit_scale);
        }
        if let Some(cap) = c.logit_cap {
            logits.iter_mut().for_each(|logit| *logit = cap * (*logit / cap).tanh());
        }
        Ok(logits)
    }

    /// The residual stream of the wanted rows behind the last norm, if any are wanted; shows it behind each part.
    fn normed(
        &self,
        pass: &Pass<'_>,
        cache: &mut Cache<O>,
        mut watch: impl FnMut(Part, &O::Tensor) -> Result<()>,
    ) -> Result<Option<O::Tensor>> {
        let (c, ops) = (&self.config, &self.ops);
        let angles = self.angles(pass)?;
        let mut x = ops.embedding(&self.embedding, &pass.tokens)?;
        ops.scale(&mut x, c.embedding_scale)?;
        watch(Part::Embedding, &x)?;
        let told = self.inputs.as_ref().map(|inputs| inputs.forward(ops, c, &pass.tokens, &x)).transpose()?;
        for (i, layer) in self.layers.iter().enumerate() {
            let (angles, place) = (c.layers[i].rotary.map(|rotary| &angles[rotary]), self.places[i]);
            let mut step = Step { ops, config: c, layer: c.layers[i], place, angles, pass, cache };
            layer.mix(&mut step, &mut x)?;
            watch(Part::Attention(i), &x)?;
            let told = match (&self.inputs, &told) {
                (Some(inputs), Some(told)) => Some(inputs.of_layer(ops, told, i)?),
                _ => None,
            };
            layer.feed_forward(ops, c, &mut x, told.as_ref())?;
            watch(Part::FeedForward(i), &x)?;
        }
        if pass.wanted.is_empty() {
            return Ok(None);
        }
        let x = ops.select(&x, &pass.wanted)?;
        Ok(Some(ops.rms_norm(&x, &self.norm, c.norm_epsilon)?))
    }

    /// What the rows of a pass are rotated by, for each rotary embedding.
    fn angles(&self, pass: &Pass<'_>) -> Result<Vec<Angles<O>>> {
        let positions = || pass.spans.iter().flat_map(|span| span.start..span.start + span.rows);
        let tables = self.config.rotaries.iter().zip(&self.frequencies);
        tables
            .map(|(rotary, frequencies)| {
                let table = |growth: Option<QueryGrowth>| {
                    let size = |position| rotary.magnitude * growth.map_or(1.0, |growth| growth.at(position));
                    self.ops.angles(&Rotary::turns(frequencies, positions(), size), frequencies.len())
                };
                let growth = self.config.query_growth;
                Ok(Angles { keys: table(None)?, queries: growth.map(|_| table(growth)).transpose()? })
            })
            .collect()
    }
}

/// The scales of a norm of a decoder.
fn norm<O: Ops>(ops: &O, weights: &mut Weights<'_, O>, c: &DecoderConfig, name: &str, len: usize) -> Result<O::Vector> {
    let scales = weights.values(name, len)?;
    ops.vector(scales.into_iter().map(|scale| scale + c.norm_offset).collect())
}

/// A part of a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Embedding,
    Attention(usize),
    FeedForward(usize),
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Embedding => f.write_str("embedding"),
            Self::Attention(layer) => write!(f, "attention of layer {layer}"),
            Self::FeedForward(layer) => write!(f, "feed-forward network of layer {layer}"),
        }
    }
}
