//! A decoder-only transformer (Vaswani et al. 2017; Touvron et al. 2023): token ids in, logits out.

use aihost_plugin_api::{Error, ErrorKind, Result};

use crate::files::Tensors;
use crate::finite::is_finite;
use crate::ops::{Attention, CacheShape, Ops, Pass, RotaryOrder};

/// How a checkpoint calls the tensors of a decoder.
#[derive(Debug, PartialEq, Eq)]
pub struct Names {
    /// The table of tokens; also the output's matrix, if there is none.
    pub embedding: &'static str,
    /// The output's matrix.
    pub head: &'static str,
    /// The norm before it.
    pub norm: &'static str,
    /// What stands before a layer's number.
    pub layers: &'static str,
    /// The two norms of a layer: before attention, before the feed-forward network.
    pub norms: [&'static str; 2],
    /// Queries, keys, values, and what attention ends with.
    pub attention: [&'static str; 4],
    /// Gate, up, down.
    pub feed_forward: [&'static str; 3],
    /// Ends of names that a decoder has no use for.
    pub unused: &'static [&'static str],
}

/// llama.cpp's names.
pub const GGUF_NAMES: Names = Names {
    embedding: "token_embd.weight",
    head: "output.weight",
    norm: "output_norm.weight",
    layers: "blk",
    norms: ["attn_norm", "ffn_norm"],
    attention: ["attn_q", "attn_k", "attn_v", "attn_output"],
    feed_forward: ["ffn_gate", "ffn_up", "ffn_down"],
    // The configuration has read it.
    unused: &["rope_freqs.weight"],
};

/// The names of Hugging Face's transformers.
pub const HUGGING_FACE_NAMES: Names = Names {
    embedding: "model.embed_tokens.weight",
    head: "lm_head.weight",
    norm: "model.norm.weight",
    layers: "model.layers",
    norms: ["input_layernorm", "post_attention_layernorm"],
    attention: ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"],
    feed_forward: ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"],
    // Old checkpoints keep the frequencies, which follow from the configuration.
    unused: &["rotary_emb.inv_freq"],
};

/// Sizes and constants of a decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// How its tensors are called.
    pub names: &'static Names,
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
    /// Each pair's frequency is divided by this, `[rope_width / 2]`; 1 is no scaling of positions.
    pub rope_divisors: Vec<f32>,
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
    pub fn open(ops: O, file: &Tensors, config: DecoderConfig) -> Result<Self> {
        let DecoderConfig { names, hidden, feed_forward, heads, kv_heads, head_width, vocabulary, .. } = config;
        let mut used = vec![names.embedding.to_owned(), names.norm.to_owned()];
        let embedding = ops.table(file, names.embedding, vocabulary, hidden)?;
        let head = if file.has_tensor(names.head) {
            used.push(names.head.to_owned());
            ops.matrix(file, names.head, vocabulary, hidden)?
        } else {
            ops.matrix(file, names.embedding, vocabulary, hidden)?
        };
        let mut layers = Vec::new();
        for i in 0..config.layers {
            let mut name = |part: &str| {
                used.push(format!("{}.{i}.{part}.weight", names.layers));
                used.last().cloned().unwrap_or_default()
            };
            let mut matrix = |part: &str, rows, columns| ops.matrix(file, &name(part), rows, columns);
            let [query, key, value, output] = names.attention;
            let [gate, up, down] = names.feed_forward;
            layers.push(Layer {
                query: matrix(query, heads * head_width, hidden)?,
                key: matrix(key, kv_heads * head_width, hidden)?,
                value: matrix(value, kv_heads * head_width, hidden)?,
                output: matrix(output, hidden, heads * head_width)?,
                gate: matrix(gate, feed_forward, hidden)?,
                up: matrix(up, feed_forward, hidden)?,
                down: matrix(down, hidden, feed_forward)?,
                attention_norm: ops.vector(file.vector(&name(names.norms[0]), hidden)?)?,
                feed_forward_norm: ops.vector(file.vector(&name(names.norms[1]), hidden)?)?,
            });
        }
        let frequency = |i| config.rope_base.powf(-2.0 * i as f32 / config.rope_width as f32);
        let frequencies = (0_u32..).zip(&config.rope_divisors).map(|(i, divisor)| frequency(i) / divisor).collect();
        let norm = ops.vector(file.vector(names.norm, hidden)?)?;
        used.sort();
        let is_used = |name: &str| {
            used.binary_search_by(|used| used.as_str().cmp(name)).is_ok()
                || names.unused.iter().any(|end| name.ends_with(end))
        };
        if let Some((extra, _)) = file.iter().find(|(name, _)| !is_used(name)) {
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
pub fn weight_bytes<O: Ops>(ops: &O, file: &Tensors, names: &Names) -> u64 {
    let table = [names.embedding];
    // Where there is no other matrix, the table is also what the output is multiplied with.
    ops.weight_bytes(file, if file.has_tensor(names.head) { &table } else { &[] })
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
