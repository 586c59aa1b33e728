//! GGUF files of a Llama with random weights, the same for the same sizes and format.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use aihost_engine::candle::block_type;
use aihost_engine::files::TensorType;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};

/// How large a model is.
#[derive(Clone, Copy)]
pub(crate) struct Sizes {
    layers: usize,
    hidden: usize,
    feed_forward: usize,
    heads: usize,
    kv_heads: usize,
    pub(crate) vocabulary: usize,
    pub(crate) context: usize,
}

impl Sizes {
    /// Every row a whole number of the largest blocks.
    pub(crate) const SMALL: Self =
        Self { layers: 3, hidden: 256, feed_forward: 512, heads: 8, kv_heads: 2, vocabulary: 512, context: 128 };
    /// Llama 3.2 1B's, with half of its vocabulary.
    pub(crate) const BILLION: Self = Self {
        layers: 16,
        hidden: 2048,
        feed_forward: 8192,
        heads: 32,
        kv_heads: 8,
        vocabulary: 65_536,
        context: 1024,
    };

    fn tensors(&self) -> Vec<(String, usize, usize)> {
        let (kv, hidden) = (self.hidden / self.heads * self.kv_heads, self.hidden);
        let mut all = vec![
            ("token_embd.weight".to_owned(), self.vocabulary, hidden),
            ("output.weight".to_owned(), self.vocabulary, hidden),
            ("output_norm.weight".to_owned(), 1, hidden),
        ];
        for i in 0..self.layers {
            for (name, rows, columns) in [
                ("attn_q", hidden, hidden),
                ("attn_k", kv, hidden),
                ("attn_v", kv, hidden),
                ("attn_output", hidden, hidden),
                ("ffn_gate", self.feed_forward, hidden),
                ("ffn_up", self.feed_forward, hidden),
                ("ffn_down", hidden, self.feed_forward),
                ("attn_norm", 1, hidden),
                ("ffn_norm", 1, hidden),
            ] {
                all.push((format!("blk.{i}.{name}.weight"), rows, columns));
            }
        }
        all
    }
}

/// Writes a model whose matrices are in a format; norms are F32.
pub(crate) fn write(path: &Path, sizes: Sizes, format: TensorType) -> candle_core::Result<()> {
    let tensors = sizes.tensors();
    let mut head = b"GGUF\x03\0\0\0".to_vec();
    let text = |head: &mut Vec<u8>, text: &str| {
        head.extend((text.len() as u64).to_le_bytes());
        head.extend(text.as_bytes());
    };
    head.extend((tensors.len() as u64).to_le_bytes());
    head.extend(8u64.to_le_bytes());
    text(&mut head, "general.architecture");
    head.extend(8u32.to_le_bytes());
    text(&mut head, "llama");
    for (name, value) in [
        ("block_count", sizes.layers),
        ("context_length", sizes.context),
        ("embedding_length", sizes.hidden),
        ("feed_forward_length", sizes.feed_forward),
        ("attention.head_count", sizes.heads),
        ("attention.head_count_kv", sizes.kv_heads),
    ] {
        text(&mut head, &format!("llama.{name}"));
        head.extend(4u32.to_le_bytes());
        head.extend((value as u32).to_le_bytes());
    }
    text(&mut head, "llama.attention.layer_norm_rms_epsilon");
    head.extend(6u32.to_le_bytes());
    head.extend(1e-5f32.to_le_bytes());
    let mut offset = 0u64;
    for (name, rows, columns) in &tensors {
        let dtype = if *rows == 1 { TensorType::F32 } else { format };
        text(&mut head, name);
        let sizes: &[usize] = if *rows == 1 { &[*columns] } else { &[*columns, *rows] };
        head.extend((sizes.len() as u32).to_le_bytes());
        sizes.iter().for_each(|size| head.extend((*size as u64).to_le_bytes()));
        head.extend(dtype.number().to_le_bytes());
        head.extend(offset.to_le_bytes());
        offset += (dtype.bytes(rows * columns) as u64).next_multiple_of(32);
    }
    head.resize(head.len().next_multiple_of(32), 0);
    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(&head)?;
    let mut next = noise();
    for (_, rows, columns) in &tensors {
        let is_norm = *rows == 1;
        let spread = (3.0 / *columns as f32).sqrt();
        // What a norm scales by is about 1.
        let mut number = || if is_norm { 1.0 + 0.2 * next() } else { 2.0 * spread * next() };
        let values: Vec<f32> = (0..rows * columns).map(|_| number()).collect();
        let mut bytes = encode(values, *columns, if is_norm { TensorType::F32 } else { format })?;
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        file.write_all(&bytes)?;
    }
    Ok(file.flush()?)
}

fn encode(values: Vec<f32>, columns: usize, format: TensorType) -> candle_core::Result<Vec<u8>> {
    let kind = match format {
        TensorType::F32 => GgmlDType::F32,
        TensorType::F16 => GgmlDType::F16,
        TensorType::Bf16 => GgmlDType::BF16,
        blocks => block_type(blocks).ok_or_else(|| candle_core::Error::Msg(format!("{blocks} cannot be made")))?,
    };
    let rows = values.len() / columns;
    let tensor = Tensor::from_vec(values, (rows, columns), &Device::Cpu)?;
    Ok(QTensor::quantize(&tensor, kind)?.data()?.into_owned())
}

/// Numbers from -1 to 1.
fn noise() -> impl FnMut() -> f32 {
    let mut state = 88_172_645_463_325_252_u64;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}
