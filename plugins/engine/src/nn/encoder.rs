//! A transformer of which every token sees all others (Devlin et al. 2018): token ids in, a vector of each out. What its families
//! have of their own is in its configuration.

use aihost_plugin_api::Result;

use super::rotary::Rotary;
use super::weights::{Bias, Projection, Weights, project};
use crate::files::Tensors;
use crate::ops::{Activation, Ops, RotaryOrder, SelfAttention};

/// How checkpoints call the tensors of an encoder. Those of a layer's parts stand between its number and `weight` or `bias`.
#[derive(Debug, PartialEq, Eq)]
pub struct Names {
    /// What may stand before all others.
    pub roots: &'static [&'static str],
    /// The table of tokens.
    pub tokens: &'static str,
    /// The table of positions, if it has one.
    pub positions: &'static str,
    /// The table of the kinds of tokens.
    pub kinds: &'static str,
    /// The norm of the sum of these.
    pub embedding_norm: &'static str,
    /// What stands before a layer's number.
    pub layers: &'static str,
    /// Queries, keys and values, or all in one.
    pub attention: &'static [&'static str],
    /// What attention ends with.
    pub output: &'static str,
    /// The norms of attention and of the network.
    pub norms: [&'static str; 2],
    /// Gate and up, both in one, or up alone.
    pub inner: &'static [&'static str],
    /// Down.
    pub outer: &'static str,
    /// The norm behind the last layer, if norms stand before what they are of.
    pub norm: &'static str,
    /// What makes a score of the first token's vector: a matrix, the norm behind it if there is one, and another matrix.
    pub scorer: [&'static str; 3],
    /// Ends of names that an encoder has no use for.
    pub unused: &'static [&'static str],
}

/// An encoder's shape.
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderConfig {
    pub names: &'static Names,
    /// Its layers, the first one first.
    pub layers: Vec<EncoderLayer>,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width between the halves of the feed-forward network.
    pub feed_forward: usize,
    /// Heads of a layer; divides `hidden`.
    pub heads: usize,
    pub norm_epsilon: f32,
    /// Whether norms stand before what they are of, and the first layer has none before its attention (Warner et al. 2024); else
    /// they stand behind.
    pub has_norms_before: bool,
    /// How it knows positions. Norms and products have the biases that the checkpoint has.
    pub positions: Positions,
    /// How many kinds of tokens there are; 0 where it knows none.
    pub kinds: usize,
    pub activation: Activation,
    /// How the network is gated.
    pub gate: Gate,
    /// Most tokens of a sequence.
    pub context: usize,
    /// Tokens of the vocabulary.
    pub vocabulary: usize,
}

/// What one layer has of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EncoderLayer {
    /// Tokens on either side that a token sees; all if absent.
    pub reach: Option<usize>,
    /// Which of the rotary embeddings.
    pub rotary: usize,
}

/// How an encoder knows positions.
#[derive(Clone, Debug, PartialEq)]
pub enum Positions {
    /// By a table of so many rows, of which the first so many are of no position.
    Learned { rows: usize, first: usize },
    /// By rotary embeddings of halves.
    Rotary(Vec<Rotary>),
}

/// How a feed-forward network is gated (Shazeer 2020).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// Not at all.
    None,
    /// By a matrix of its own.
    Apart,
    /// By the first rows of one matrix, of which the others are multiplied with it.
    First,
}

/// Sequences that pass through an encoder together.
#[derive(Clone, Debug, Default)]
pub struct Sequences {
    /// The tokens of all, one behind the other.
    pub tokens: Vec<u32>,
    /// The kind of each.
    pub kinds: Vec<u32>,
    /// How many are of each sequence.
    pub lengths: Vec<usize>,
}

/// An encoder, ready to compute.
pub struct Encoder<O: Ops> {
    ops: O,
    config: EncoderConfig,
    tokens: O::Table,
    positions: Option<O::Table>,
    kinds: Option<O::Table>,
    embedding_norm: Norm<O>,
    layers: Vec<Layer<O>>,
    norm: Option<Norm<O>>,
    scorer: Option<Scorer<O>>,
    /// Radians per position of each pair, of each rotary embedding.
    frequencies: Vec<Vec<f32>>,
}

struct Norm<O: Ops> {
    scale: O::Vector,
    shift: Option<O::Vector>,
}

struct Layer<O: Ops> {
    /// Of attention and of the network; absent where a first layer has none.
    norms: [Option<Norm<O>>; 2],
    attention: [Projection<O>; 3],
    output: Projection<O>,
    gate: Option<Projection<O>>,
    up: Projection<O>,
    down: Projection<O>,
}

struct Scorer<O: Ops> {
    dense: Projection<O>,
    norm: Option<Norm<O>>,
    out: Projection<O>,
}

impl<O: Ops> std::fmt::Debug for Encoder<O> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder").field("config", &self.config).finish_non_exhaustive()
    }
}

impl<O: Ops> Encoder<O> {
    /// Finds and checks every tensor. Whether it scores is for the file to say.
    ///
    /// # Errors
    /// `CorruptFile` for a missing tensor or a wrong shape, `Unsupported` for a tensor that this model has no use for.
    pub fn open(ops: O, file: &Tensors, config: EncoderConfig) -> Result<Self> {
        let (c, names) = (&config, config.names);
        let mut weights = Weights::new(&ops, file);
        let root = names.roots.iter().find(|root| weights.has(&format!("{root}{}", names.tokens))).unwrap_or(&"");
        let named = |name: &str| format!("{root}{name}");
        let tokens = weights.table(&named(names.tokens), c.vocabulary, c.hidden)?;
        let positions = match c.positions {
            Positions::Learned { rows, .. } => Some(weights.table(&named(names.positions), rows, c.hidden)?),
            Positions::Rotary(_) => None,
        };
        let kinds = if c.kinds > 0 { Some(weights.table(&named(names.kinds), c.kinds, c.hidden)?) } else { None };
        let embedding_norm = Norm::open(&mut weights, &named(names.embedding_norm), c.hidden)?;
        let layers = (0..c.layers.len()).map(|i| Layer::open(&mut weights, c, &named(names.layers), i));
        let layers = layers.collect::<Result<_>>()?;
        let norm =
            if c.has_norms_before { Some(Norm::open(&mut weights, &named(names.norm), c.hidden)?) } else { None };
        let scorer = Scorer::open(&mut weights, c, root)?;
        weights.check_rest(names.unused)?;
        let frequencies = match &c.positions {
            Positions::Learned { .. } => Vec::new(),
            Positions::Rotary(rotaries) => rotaries.iter().map(|rotary| rotary.frequencies(c.context)).collect(),
        };
        Ok(Self { ops, config, tokens, positions, kinds, embedding_norm, layers, norm, scorer, frequencies })
    }

    /// The model's sizes.
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// Whether it makes scores.
    pub fn scores(&self) -> bool {
        self.scorer.is_some()
    }

    /// The vectors of all tokens, `[tokens, hidden]` f32.
    ///
    /// Every token must be of the vocabulary, and no sequence longer than the context.
    ///
    /// # Errors
    /// Those of the device.
    pub fn vectors(&self, sequences: &Sequences) -> Result<Vec<f32>> {
        self.ops.to_host(&self.encode(sequences)?)
    }

    /// The score of each sequence, if it makes any.
    ///
    /// # Errors
    /// Those of the device.
    pub fn score(&self, sequences: &Sequences) -> Result<Option<Vec<f32>>> {
        let (ops, Some(scorer)) = (&self.ops, &self.scorer) else { return Ok(None) };
        let starts = sequences.lengths.iter().scan(0, |at, rows| Some(std::mem::replace(at, *at + rows)));
        let first = ops.select(&self.encode(sequences)?, &starts.collect::<Vec<_>>())?;
        let [dense] = project(ops, &first, [&scorer.dense])?;
        let bent = match &scorer.norm {
            Some(norm) => norm.apply(ops, &ops.activate(dense, Activation::Gelu)?, self.config.norm_epsilon)?,
            None => ops.activate(dense, Activation::Tanh)?,
        };
        let [scores] = project(ops, &bent, [&scorer.out])?;
        ops.to_host(&scores).map(Some)
    }

    fn encode(&self, sequences: &Sequences) -> Result<O::Tensor> {
        let (c, ops) = (&self.config, &self.ops);
        let positions = || sequences.lengths.iter().flat_map(|rows| 0..*rows);
        let mut x = ops.embedding(&self.tokens, &sequences.tokens)?;
        if let (Some(table), Positions::Learned { first, .. }) = (&self.positions, &c.positions) {
            let places: Vec<u32> = positions().map(|position| (position + first) as u32).collect();
            ops.add(&mut x, &ops.embedding(table, &places)?)?;
        }
        if let Some(kinds) = &self.kinds {
            ops.add(&mut x, &ops.embedding(kinds, &sequences.kinds)?)?;
        }
        let mut x = self.embedding_norm.apply(ops, &x, c.norm_epsilon)?;
        let angles = self
            .frequencies
            .iter()
            .map(|frequencies| ops.angles(&Rotary::turns(frequencies, positions(), |_| 1.0), frequencies.len()));
        let angles = angles.collect::<Result<Vec<_>>>()?;
        for (i, layer) in self.layers.iter().enumerate() {
            let angles = angles.get(c.layers[i].rotary);
            x = layer.block(ops, c, 0, x, |x| layer.attend(ops, c, c.layers[i], x, angles, &sequences.lengths))?;
            x = layer.block(ops, c, 1, x, |x| layer.feed_forward(ops, c, x))?;
        }
        match &self.norm {
            Some(norm) => norm.apply(ops, &x, c.norm_epsilon),
            None => Ok(x),
        }
    }
}

impl<O: Ops> Norm<O> {
    fn open(weights: &mut Weights<'_, O>, name: &str, width: usize) -> Result<Self> {
        let scale = weights.vector(&format!("{name}.weight"), width)?;
        let shift = format!("{name}.bias");
        Ok(Self { scale, shift: if weights.has(&shift) { Some(weights.vector(&shift, width)?) } else { None } })
    }

    fn apply(&self, ops: &O, x: &O::Tensor, epsilon: f32) -> Result<O::Tensor> {
        ops.layer_norm(x, &self.scale, self.shift.as_ref(), epsilon)
    }
}

impl<O: Ops> Layer<O> {
    fn open(weights: &mut Weights<'_, O>, c: &EncoderConfig, layers: &str, layer: usize) -> Result<Self> {
        let (names, hidden, inner) = (c.names, c.hidden, c.feed_forward);
        let named = |name: &str| format!("{layers}.{layer}.{name}");
        let mut part = |name: &str, of: usize, at: usize, rows: usize, columns: usize| {
            weights.projection(&named(name), [of * rows, columns], at * rows..(at + 1) * rows, Bias::AsStored)
        };
        let mut third = |i: usize| match names.attention {
            [fused] => part(fused, 3, i, hidden, hidden),
            apart => part(apart[i], 1, 0, hidden, hidden),
        };
        let attention = [third(0)?, third(1)?, third(2)?];
        let output = part(names.output, 1, 0, hidden, hidden)?;
        let (gate, up) = match c.gate {
            Gate::None => (None, part(names.inner[0], 1, 0, inner, hidden)?),
            Gate::Apart => {
                (Some(part(names.inner[0], 1, 0, inner, hidden)?), part(names.inner[1], 1, 0, inner, hidden)?)
            }
            Gate::First => {
                (Some(part(names.inner[0], 2, 0, inner, hidden)?), part(names.inner[0], 2, 1, inner, hidden)?)
            }
        };
        let down = part(names.outer, 1, 0, hidden, inner)?;
        let has_none = c.has_norms_before && layer == 0;
        let first = if has_none { None } else { Some(Norm::open(weights, &named(names.norms[0]), hidden)?) };
        let norms = [first, Some(Norm::open(weights, &named(names.norms[1]), hidden)?)];
        Ok(Self { norms, attention, output, gate, up, down })
    }

    /// `x` and what a part of the layer makes of it, with that part's norm where this family has it.
    fn block(
        &self,
        ops: &O,
        c: &EncoderConfig,
        part: usize,
        mut x: O::Tensor,
        make: impl FnOnce(&O::Tensor) -> Result<O::Tensor>,
    ) -> Result<O::Tensor> {
        let norm = self.norms[part].as_ref();
        let normed = |x: &O::Tensor| norm.map(|norm| norm.apply(ops, x, c.norm_epsilon)).transpose();
        let before = if c.has_norms_before { normed(&x)? } else { None };
        let delta = make(before.as_ref().unwrap_or(&x))?;
        ops.add(&mut x, &delta)?;
        let behind = if c.has_norms_before { None } else { normed(&x)? };
        Ok(behind.unwrap_or(x))
    }

    fn attend(
        &self,
        ops: &O,
        c: &EncoderConfig,
        own: EncoderLayer,
        x: &O::Tensor,
        angles: Option<&O::Angles>,
        lengths: &[usize],
    ) -> Result<O::Tensor> {
        let [query, key, value] = &self.attention;
        let [mut queries, mut keys, values] = project(ops, x, [query, key, value])?;
        let width = c.hidden / c.heads;
        if let Some(angles) = angles {
            ops.rotate(&mut queries, width, angles, RotaryOrder::Halves)?;
            ops.rotate(&mut keys, width, angles, RotaryOrder::Halves)?;
        }
        let attended = ops.self_attention(SelfAttention {
            queries: &queries,
            keys: &keys,
            values: &values,
            lengths,
            heads: c.heads,
            kv_heads: c.heads,
            scale: 1.0 / (width as f32).sqrt(),
            reach: own.reach,
        })?;
        let [out] = project(ops, &attended, [&self.output])?;
        Ok(out)
    }

    fn feed_forward(&self, ops: &O, c: &EncoderConfig, x: &O::Tensor) -> Result<O::Tensor> {
        let inner = match &self.gate {
            Some(gate) => {
                let [gate, up] = project(ops, x, [gate, &self.up])?;
                ops.gated(gate, &up, c.activation)?
            }
            None => {
                let [up] = project(ops, x, [&self.up])?;
                ops.activate(up, c.activation)?
            }
        };
        let [out] = project(ops, &inner, [&self.down])?;
        Ok(out)
    }
}

impl<O: Ops> Scorer<O> {
    fn open(weights: &mut Weights<'_, O>, c: &EncoderConfig, root: &str) -> Result<Option<Self>> {
        let [dense, norm, out] = c.names.scorer;
        if out.is_empty() || !weights.has(&format!("{out}.weight")) {
            return Ok(None);
        }
        // A model's pooler lies with the model, the classifier beside it.
        let dense = if weights.has(&format!("{dense}.weight")) { dense.to_owned() } else { format!("{root}{dense}") };
        let dense = weights.projection(&dense, [c.hidden; 2], 0..c.hidden, Bias::AsStored)?;
        let norm = if norm.is_empty() { None } else { Some(Norm::open(weights, norm, c.hidden)?) };
        let out = weights.projection(out, [1, c.hidden], 0..1, Bias::AsStored)?;
        Ok(Some(Self { dense, norm, out }))
    }
}

/// Bytes that a pass of so many tokens takes at its peak, of sequences of at most `longest`.
pub fn workspace_bytes<O: Ops>(ops: &O, c: &EncoderConfig, rows: usize, longest: usize) -> u64 {
    let (hidden, inner) = (c.hidden, c.feed_forward);
    let tensor = |width| ops.tensor_bytes(rows, width);
    let common = 3 * tensor(hidden);
    let attention = 4 * tensor(hidden)
        + ops.linear_bytes(rows, hidden, 3 * hidden).max(ops.self_attention_bytes(
            rows,
            c.heads,
            hidden / c.heads,
            longest,
        ));
    let halves = if c.gate == Gate::None { 1 } else { 2 };
    let network = halves * tensor(inner)
        + tensor(hidden)
        + ops.linear_bytes(rows, hidden, halves as usize * inner).max(ops.linear_bytes(rows, inner, hidden));
    let angles = match &c.positions {
        Positions::Learned { .. } => 0,
        Positions::Rotary(rotaries) => rotaries.iter().map(|rotary| tensor(rotary.width)).sum(),
    };
    common + attention.max(network) + angles
}
