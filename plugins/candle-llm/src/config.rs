//! The shape of a Llama model, from a GGUF file's metadata, checked before anything is computed with it.

use aihost_engine::files::Gguf;
use aihost_plugin_api::{Error, ErrorKind, Result};

/// Limits on what a file may claim: an order of magnitude above the largest models, and far below overflow.
const MAX_LAYERS: u64 = 1024;
const MAX_WIDTH: u64 = 1 << 20;
const MAX_CONTEXT: u64 = 1 << 24;

/// Sizes and constants of a Llama model (Touvron et al. 2023).
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
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
    /// Added to the mean square in RMS norms.
    pub norm_epsilon: f32,
    /// Tokens the model was trained on.
    pub context: usize,
    /// Tokens of the vocabulary.
    pub vocabulary: usize,
}

impl Config {
    /// Reads and checks the metadata.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for another architecture, [`ErrorKind::CorruptFile`] for missing or impossible values.
    pub fn read(gguf: &Gguf) -> Result<Self> {
        let unsupported = |what: String| Error::new(ErrorKind::Unsupported, format!("{}: {what}", gguf.name()));
        match gguf.text("general.architecture")? {
            Some("llama") => {}
            Some(other) => {
                return Err(unsupported(format!(
                    "the architecture is `{other}`, and candle-llm serves `llama` only; use another plugin"
                )));
            }
            None => return Err(gguf.corrupt("the metadata `general.architecture` is missing; convert the model again")),
        }
        let read = |key: &str, most: u64| -> Result<Option<usize>> {
            let key = format!("llama.{key}");
            match gguf.integer(&key)? {
                None => Ok(None),
                Some(n) if (1..=most).contains(&n) => Ok(Some(n as usize)),
                Some(n) => {
                    Err(gguf.corrupt(format!("`{key}` is {n} and must be from 1 to {most}; convert the model again")))
                }
            }
        };
        let need = |key: &str, most: u64| -> Result<usize> {
            read(key, most)?
                .ok_or_else(|| gguf.corrupt(format!("the metadata `llama.{key}` is missing; convert the model again")))
        };
        if gguf.integer("llama.expert_count")?.is_some_and(|n| n > 0) {
            return Err(unsupported(
                "it is a mixture of experts, which candle-llm does not serve; use another plugin".into(),
            ));
        }
        let (hidden, heads) = (need("embedding_length", MAX_WIDTH)?, need("attention.head_count", MAX_WIDTH)?);
        let kv_heads = read("attention.head_count_kv", MAX_WIDTH)?.unwrap_or(heads);
        let head_width = read("attention.key_length", MAX_WIDTH)?.unwrap_or((hidden / heads).max(1));
        let rope_width = read("rope.dimension_count", MAX_WIDTH)?.unwrap_or(head_width);
        if !heads.is_multiple_of(kv_heads)
            || rope_width > head_width
            || !rope_width.is_multiple_of(2)
            || heads * head_width > MAX_WIDTH as usize
        {
            return Err(gguf.corrupt(format!(
                "{heads} heads, {kv_heads} key heads, width {head_width} and rotated width {rope_width} do not fit together; convert the model again"
            )));
        }
        if read("attention.value_length", MAX_WIDTH)?.is_some_and(|n| n != head_width) {
            return Err(unsupported(
                "its keys and values differ in width, which candle-llm does not serve; use another plugin".into(),
            ));
        }
        let rope_divisor = match gguf.text("llama.rope.scaling.type")? {
            None | Some("none") => 1.0,
            Some("linear") => positive(gguf, "llama.rope.scaling.factor")?.unwrap_or(1.0),
            Some(other) => {
                return Err(unsupported(format!(
                    "its positions are scaled by `{other}`, which candle-llm does not serve; use another plugin"
                )));
            }
        };
        let norm_epsilon = positive(gguf, "llama.attention.layer_norm_rms_epsilon")?.ok_or_else(|| {
            gguf.corrupt("the metadata `llama.attention.layer_norm_rms_epsilon` is missing; convert the model again")
        })?;
        let vocabulary = gguf.tensor("token_embd.weight")?.dimensions.get(1).copied().unwrap_or(0);
        if vocabulary == 0 || vocabulary > u32::MAX as usize {
            return Err(gguf.corrupt("the tensor token_embd.weight has no rows; convert the model again"));
        }
        Ok(Self {
            layers: need("block_count", MAX_LAYERS)?,
            hidden,
            feed_forward: need("feed_forward_length", MAX_WIDTH)?,
            heads,
            kv_heads,
            head_width,
            rope_width,
            rope_base: positive(gguf, "llama.rope.freq_base")?.unwrap_or(10_000.0),
            rope_divisor,
            norm_epsilon,
            context: need("context_length", MAX_CONTEXT)?,
            vocabulary,
        })
    }

    /// Bytes of one sequence's KV cache of `context` tokens: keys and values in f16.
    pub fn kv_cache_bytes(&self, context: usize) -> u64 {
        2 * 2 * (self.layers * self.kv_heads * self.head_width) as u64 * context as u64
    }

    /// Bytes of buffers while `rows` tokens pass through, with logits for `logit_rows` of them, all in f32. An upper bound: products
    /// also hold their result a second time, transposed, and their input quantised.
    pub fn workspace_bytes(&self, rows: usize, logit_rows: usize) -> u64 {
        let heads = (self.heads + 2 * self.kv_heads) * self.head_width;
        let per_row = 4 * self.hidden + 2 * heads + 2 * self.heads * self.head_width + 5 * self.feed_forward;
        4 * (per_row as u64 * rows as u64 + 2 * self.vocabulary as u64 * logit_rows as u64)
    }
}

fn positive(gguf: &Gguf, key: &str) -> Result<Option<f32>> {
    match gguf.float(key)? {
        None => Ok(None),
        Some(value) if value.is_finite() && value > 0.0 => Ok(Some(value as f32)),
        Some(value) => Err(gguf.corrupt(format!("`{key}` is {value} and must be above 0; convert the model again"))),
    }
}
