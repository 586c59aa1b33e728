//! A decoder-only transformer (Vaswani et al. 2017; Touvron et al. 2023): token ids in, logits out.

use aihost_plugin_api::{Error, ErrorKind, Result};

use crate::files::Gguf;
use crate::finite::is_finite;
use crate::ops::{Attention, CacheShape, Ops, Pass, RotaryOrder};

/// The table of tokens; also the output's matrix, if the file has none.
const EMBEDDING: &str = "token_embd.weight";
const HEAD: &str = "output.weight";

/// Sizes and constants of a decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// How many transformer blocks it has.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width between the two halves of the feed-forward network.
    pub feed_forward: usize,
    /// Query heads of a block.
    pub heads: usize,
    /// Key and value heads (Ainslie et al. 2023); divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_width: usize,
    /// Elements of a head that are rotated.
    pub rope_width: usize,
    /// Base of the rotary frequencies.
    pub rope_base: f32,
    /// Positions are divided by this (linear scaling); 1 is none.
    pub rope_divisor: f32,
    /// Which elements are rotated together.
    pub rope_order: RotaryOrder,
    /// Added to the mean square in RMS norms.
    pub norm_epsilon: f32,
    /// Tokens the model was trained on.
    pub context: usize,
    /// Tokens of the vocabulary.
    pub vocabulary: usize,
}

impl DecoderConfig {
    /// What the cache keeps of a token.
    pub fn cache(&self) -> CacheShape {
        CacheShape { layers: self.layers, kv_heads: self.kv_heads, width: self.head_width }
    }
}

/// A decoder, ready to compute.
pub struct Decoder<O: Ops> {
    ops: O,
    config: DecoderConfig,
    embedding: O::Table,
    layers: Vec<Layer<O>>,
    norm: O::Vector,
    /// From hidden states to logits; shares the embedding's weights if the file has no matrix of its own.
    head: O::Matrix,
    /// Radians per position of each rotated pair, `[rope_width / 2]`.
    frequencies: Vec<f32>,
}

struct Layer<O: Ops> {
    attention_norm: O::Vector,
    query: O::Matrix,
    key: O::Matrix,
    value: O::Matrix,
    output: O::Matrix,
    feed_forward_norm: O::Vector,
    gate: O::Matrix,
    up: O::Matrix,
    down: O::Matrix,
}

impl<O: Ops> std::fmt::Debug for Decoder<O> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder").field("config", &self.config).finish_non_exhaustive()
    }
}

impl<O: Ops> Decoder<O> {
    /// Finds and checks every tensor.
    ///
    /// # Errors
    /// `CorruptFile` for a missing tensor or a wrong shape, `Unsupported` for a tensor that this model has no use for.
    pub fn open(ops: O, file: &Gguf, config: DecoderConfig) -> Result<Self> {
        let DecoderConfig { hidden, feed_forward, heads, kv_heads, head_width, vocabulary, .. } = config;
        let mut used = vec![EMBEDDING.to_owned(), "output_norm.weight".to_owned()];
        let embedding = ops.table(file, EMBEDDING, vocabulary, hidden)?;
        let head = if file.has_tensor(HEAD) {
            used.push(HEAD.to_owned());
            ops.matrix(file, HEAD, vocabulary, hidden)?
        } else {
            ops.matrix(file, EMBEDDING, vocabulary, hidden)?
        };
        let mut layers = Vec::new();
        for i in 0..config.layers {
            let mut name = |part: &str| {
                used.push(format!("blk.{i}.{part}.weight"));
                format!("blk.{i}.{part}.weight")
            };
            let mut matrix = |part: &str, rows, columns| ops.matrix(file, &name(part), rows, columns);
            layers.push(Layer {
                query: matrix("attn_q", heads * head_width, hidden)?,
                key: matrix("attn_k", kv_heads * head_width, hidden)?,
                value: matrix("attn_v", kv_heads * head_width, hidden)?,
                output: matrix("attn_output", hidden, heads * head_width)?,
                gate: matrix("ffn_gate", feed_forward, hidden)?,
                up: matrix("ffn_up", feed_forward, hidden)?,
                down: matrix("ffn_down", hidden, feed_forward)?,
                attention_norm: ops.vector(file.vector(&name("attn_norm"), hidden)?)?,
                feed_forward_norm: ops.vector(file.vector(&name("ffn_norm"), hidden)?)?,
            });
        }
        let pairs = config.rope_width / 2;
        let frequency = |i| config.rope_base.powf(-2.0 * i as f32 / config.rope_width as f32) / config.rope_divisor;
        let mut frequencies: Vec<f32> = (0..pairs).map(frequency).collect();
        if file.has_tensor("rope_freqs.weight") {
            // Llama 3.1's scaling, which the converter has worked into one divisor per pair.
            used.push("rope_freqs.weight".to_owned());
            let divisors = file.vector("rope_freqs.weight", pairs)?;
            frequencies.iter_mut().zip(divisors).for_each(|(frequency, divisor)| *frequency /= divisor);
        }
        let norm = ops.vector(file.vector("output_norm.weight", hidden)?)?;
        used.sort();
        if let Some(extra) = file.tensor_names().find(|name| used.binary_search_by(|u| u.as_str().cmp(name)).is_err()) {
            let message = format!(
                "{}: the tensor {extra} is of no use to a plain Llama; this variant is not served here",
                file.name()
            );
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        Ok(Self { ops, config, embedding, layers, norm, head, frequencies })
    }

    /// The model's sizes.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// An empty cache of so many blocks.
    ///
    /// # Errors
    /// `OutOfMemory` if the device is full.
    pub fn cache(&self, blocks: usize) -> Result<O::Cache> {
        self.ops.cache(self.config.cache(), blocks)
    }

    /// Passes tokens through the model and extends the cache by them. The logits of the wanted rows, `[wanted, vocabulary]` f32.
    ///
    /// Every token must be of the vocabulary, and every span's blocks must hold its tokens.
    ///
    /// # Errors
    /// Those of the device.
    pub fn forward(&self, pass: &Pass<'_>, cache: &mut O::Cache) -> Result<Vec<f32>> {
        self.watched(pass, cache, |_, _| Ok(()))
    }

    /// The first part whose results are no finite numbers, by a second pass of the same tokens; nothing if all are.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn broken_part(&self, pass: &Pass<'_>, cache: &mut O::Cache) -> Result<Option<String>> {
        let mut found = None;
        let logits = self.watched(pass, cache, |part, x| {
            if found.is_none() && !is_finite(&self.ops.to_host(x)?) {
                found = Some(part.to_string());
            }
            Ok(())
        })?;
        Ok(found.or_else(|| (!is_finite(&logits)).then(|| "output".to_owned())))
    }

    /// Computes a pass, and shows the residual stream behind each part.
    fn watched(
        &self,
        pass: &Pass<'_>,
        cache: &mut O::Cache,
        mut watch: impl FnMut(Part, &O::Tensor) -> Result<()>,
    ) -> Result<Vec<f32>> {
        let (c, ops) = (&self.config, &self.ops);
        let angles = ops.angles(&self.rotary_table(pass), self.frequencies.len())?;
        let mut x = ops.embedding(&self.embedding, &pass.tokens)?;
        watch(Part::Embedding, &x)?;
        for (i, layer) in self.layers.iter().enumerate() {
            let normed = ops.rms_norm(&x, &layer.attention_norm, c.norm_epsilon)?;
            let [mut q, mut k, v] = ops.linear(&normed, [&layer.query, &layer.key, &layer.value])?;
            ops.rotate(&mut q, c.head_width, &angles, c.rope_order)?;
            ops.rotate(&mut k, c.head_width, &angles, c.rope_order)?;
            let scale = 1.0 / (c.head_width as f32).sqrt();
            let attention = Attention { layer: i, queries: &q, keys: &k, values: &v, spans: &pass.spans, scale };
            let attended = ops.attention(attention, cache)?;
            let [delta] = ops.linear(&attended, [&layer.output])?;
            ops.add(&mut x, &delta)?;
            watch(Part::Attention(i), &x)?;
            let normed = ops.rms_norm(&x, &layer.feed_forward_norm, c.norm_epsilon)?;
            let [gate, up] = ops.linear(&normed, [&layer.gate, &layer.up])?;
            let [delta] = ops.linear(&ops.swiglu(gate, &up)?, [&layer.down])?;
            ops.add(&mut x, &delta)?;
            watch(Part::FeedForward(i), &x)?;
        }
        if pass.wanted.is_empty() {
            return Ok(Vec::new());
        }
        let x = ops.select(&x, &pass.wanted)?;
        let normed = ops.rms_norm(&x, &self.norm, c.norm_epsilon)?;
        let [logits] = ops.linear(&normed, [&self.head])?;
        ops.to_host(&logits)
    }

    /// Cosine and sine of each pair's angle, `[rows, rope_width / 2]`.
    fn rotary_table(&self, pass: &Pass<'_>) -> Vec<[f32; 2]> {
        let positions = pass.spans.iter().flat_map(|span| span.start..span.start + span.rows);
        let angles = positions.flat_map(|position| self.frequencies.iter().map(move |f| position as f32 * f));
        angles.map(|angle| [angle.cos(), angle.sin()]).collect()
    }
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

/// Bytes of the weights of a decoder where they are used.
///
/// # Errors
/// Those of [`Ops::weight_bytes`].
pub fn weight_bytes<O: Ops>(ops: &O, file: &Gguf) -> Result<u64> {
    ops.weight_bytes(file, if file.has_tensor(HEAD) { &[EMBEDDING] } else { &[] })
}

/// Bytes that a pass of so many rows takes at its peak beside the cache, with logits for `wanted` of them and sequences of at
/// most `context` tokens: the sum of what its operations take.
pub fn workspace_bytes<O: Ops>(ops: &O, c: &DecoderConfig, rows: usize, wanted: usize, context: usize) -> u64 {
    let (q, kv) = (c.heads * c.head_width, c.kv_heads * c.head_width);
    let tensor = |width| ops.tensor_bytes(rows, width);
    // The residual stream and its norm are there throughout.
    let common = tensor(c.hidden) + tensor(c.hidden);
    let qkv = tensor(q) + 2 * tensor(kv);
    let attention = [
        qkv + ops.linear_bytes(rows, c.hidden, q + 2 * kv),
        qkv + tensor(q) + ops.attention_bytes(rows, c.heads, c.head_width, context),
        qkv + tensor(q) + tensor(c.hidden) + ops.linear_bytes(rows, q, c.hidden),
    ];
    let feed_forward = [
        2 * tensor(c.feed_forward) + ops.linear_bytes(rows, c.hidden, 2 * c.feed_forward),
        2 * tensor(c.feed_forward) + tensor(c.hidden) + ops.linear_bytes(rows, c.feed_forward, c.hidden),
    ];
    let logits = 2 * ops.tensor_bytes(wanted, c.hidden)
        + ops.tensor_bytes(wanted, c.vocabulary)
        + ops.linear_bytes(wanted, c.hidden, c.vocabulary);
    let peak = attention.into_iter().chain(feed_forward).chain([logits]).max().unwrap_or(0);
    common + peak + ops.tensor_bytes(rows, c.rope_width)
}
