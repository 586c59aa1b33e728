//! The shape of a Llama model, from a GGUF file's metadata, checked before anything is computed with it.

use aihost_engine::files::Gguf;
use aihost_engine::nn::decoder::{DecoderConfig, GGUF_NAMES};
use aihost_engine::ops::RotaryOrder;
use aihost_plugin_api::{Error, ErrorKind, Result};

/// The tensor of what each pair's frequency is divided by.
const ROPE_DIVISORS: &str = "rope_freqs.weight";

/// Limits on what a file may claim: an order of magnitude above the largest models, and far below overflow.
pub const MAX_LAYERS: u64 = 1024;
pub const MAX_WIDTH: u64 = 1 << 20;
pub const MAX_CONTEXT: u64 = 1 << 24;

/// Whether the sizes of a model fit together, or what is wrong.
pub fn check(c: &DecoderConfig) -> std::result::Result<(), String> {
    let (heads, kv_heads, head_width, rope_width) = (c.heads, c.kv_heads, c.head_width, c.rope_width);
    if !heads.is_multiple_of(kv_heads)
        || rope_width > head_width
        || !rope_width.is_multiple_of(2)
        || heads * head_width > MAX_WIDTH as usize
    {
        return Err(format!(
            "{heads} heads, {kv_heads} key heads, width {head_width} and rotated width {rope_width} do not fit together"
        ));
    }
    Ok(())
}

/// Reads and checks the metadata.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for another architecture, [`ErrorKind::CorruptFile`] for missing or impossible values.
pub fn read(gguf: &Gguf) -> Result<DecoderConfig> {
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
    if read("attention.value_length", MAX_WIDTH)?.is_some_and(|n| n != head_width) {
        return Err(unsupported(
            "its keys and values differ in width, which candle-llm does not serve; use another plugin".into(),
        ));
    }
    // Of a file that does not say how, they are scaled linearly; older converters had a key of its own for that.
    let rope_divisor = match gguf.text("llama.rope.scaling.type")? {
        Some("none") => 1.0,
        None | Some("linear") => match scale(gguf, "llama.rope.scaling.factor")? {
            Some(factor) => factor,
            None => scale(gguf, "llama.rope.scale_linear")?.unwrap_or(1.0),
        },
        Some(other) => {
            return Err(unsupported(format!(
                "its positions are scaled by `{other}`, which candle-llm does not serve; use another plugin"
            )));
        }
    };
    let norm_epsilon = positive(gguf, "llama.attention.layer_norm_rms_epsilon")?.ok_or_else(|| {
        gguf.corrupt("the metadata `llama.attention.layer_norm_rms_epsilon` is missing; convert the model again")
    })?;
    let vocabulary = gguf.tensors().tensor(GGUF_NAMES.embedding)?.dimensions.get(1).copied().unwrap_or(0);
    if vocabulary == 0 || vocabulary > u32::MAX as usize {
        return Err(gguf.corrupt("the tensor token_embd.weight has no rows; convert the model again"));
    }
    let rope_divisors = if gguf.tensors().has_tensor(ROPE_DIVISORS) {
        // Llama 3.1's scaling, which the converter has worked into one divisor per pair.
        let divisors = gguf.tensors().vector(ROPE_DIVISORS, rope_width / 2)?;
        divisors.into_iter().map(|divisor| divisor * rope_divisor).collect()
    } else {
        vec![rope_divisor; rope_width / 2]
    };
    let config = DecoderConfig {
        names: &GGUF_NAMES,
        layers: need("block_count", MAX_LAYERS)?,
        hidden,
        feed_forward: need("feed_forward_length", MAX_WIDTH)?,
        heads,
        kv_heads,
        head_width,
        rope_width,
        rope_base: positive(gguf, "llama.rope.freq_base")?.unwrap_or(10_000.0),
        rope_divisors,
        rope_order: RotaryOrder::Interleaved,
        norm_epsilon,
        context: need("context_length", MAX_CONTEXT)?,
        vocabulary,
    };
    check(&config).map_err(|what| gguf.corrupt(format!("{what}; convert the model again")))?;
    Ok(config)
}

/// A factor by which something is scaled; 0 stands for none.
fn scale(gguf: &Gguf, key: &str) -> Result<Option<f32>> {
    if gguf.number(key)? == Some(0.0) { Ok(Some(1.0)) } else { positive(gguf, key) }
}

fn positive(gguf: &Gguf, key: &str) -> Result<Option<f32>> {
    match gguf.number(key)? {
        None => Ok(None),
        Some(value) if value.is_finite() && value > 0.0 => Ok(Some(value as f32)),
        Some(value) => Err(gguf.corrupt(format!("`{key}` is {value} and must be above 0; convert the model again"))),
    }
}
