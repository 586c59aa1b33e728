//! A FLUX.1 transformer of any size with random weights, as diffusers writes one, beside a golden case's other parts.

use std::fs::File;
use std::io::{BufWriter, Result, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// Bytes of random weights, which are written again and again.
const BLOCK: usize = 8 << 20;

/// Sizes of a transformer.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    pub(crate) heads: usize,
    pub(crate) head: usize,
    pub(crate) double_blocks: usize,
    pub(crate) single_blocks: usize,
}

/// FLUX.1's, 11.9 billion weights.
pub(crate) const PUBLISHED: Size = Size { heads: 24, head: 128, double_blocks: 19, single_blocks: 38 };

/// One that takes no time on a CPU.
pub(crate) const SMALL: Size = Size { heads: 2, head: 128, double_blocks: 1, single_blocks: 1 };

/// Writes a model folder whose transformer has this size; its other parts are those of `case`, linked.
pub(crate) fn write(case: &Path, size: Size, folder: &Path) -> Result<u64> {
    std::fs::create_dir_all(folder.join("transformer"))?;
    for part in std::fs::read_dir(case)? {
        let (path, name) = {
            let part = part?;
            (part.path(), part.file_name())
        };
        if path.is_dir() && name != "transformer" {
            std::os::unix::fs::symlink(std::fs::canonicalize(&path)?, folder.join(&name))?;
        }
    }
    let mut config: Value = serde_json::from_slice(&std::fs::read(case.join("transformer/config.json"))?)?;
    let number = |config: &Value, name: &str| config[name].as_u64().unwrap_or_default() as usize;
    let [channels, context, pooled] =
        ["in_channels", "joint_attention_dim", "pooled_projection_dim"].map(|name| number(&config, name));
    config["attention_head_dim"] = json!(size.head);
    config["num_attention_heads"] = json!(size.heads);
    config["num_layers"] = json!(size.double_blocks);
    config["num_single_layers"] = json!(size.single_blocks);
    config["axes_dims_rope"] = json!([size.head / 8, size.head * 7 / 16, size.head * 7 / 16]);
    std::fs::write(folder.join("transformer/config.json"), config.to_string())?;

    let tensors = tensors(size, [channels, context, pooled]);
    let mut header = serde_json::Map::new();
    let mut end = 0_u64;
    for (name, shape) in &tensors {
        let bytes = 2 * shape.iter().product::<usize>() as u64;
        header.insert(name.clone(), json!({"dtype": "BF16", "shape": shape, "data_offsets": [end, end + bytes]}));
        end += bytes;
    }
    let mut header = Value::Object(header).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let mut file = File::create(folder.join("transformer/diffusion_pytorch_model.safetensors"))?;
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    fill(&mut file, end)?;
    Ok(end)
}

/// Writes so many bytes of random bf16 weights between 1/64 and 1/32, of either sign.
pub(crate) fn fill(file: &mut File, mut bytes: u64) -> Result<()> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut number = || {
        // Marsaglia 2003, xorshift.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state as u16 & 0x8000) | (0x3c80 + (state >> 20) as u16 % 0x80)).to_le_bytes()
    };
    let block: Vec<u8> = (0..BLOCK / 2).flat_map(|_| number()).collect();
    let mut file = BufWriter::with_capacity(BLOCK, file);
    while bytes > 0 {
        let count = bytes.min(BLOCK as u64);
        file.write_all(&block[..count as usize])?;
        bytes -= count;
    }
    file.flush()
}

/// Names and shapes as diffusers has them.
fn tensors(size: Size, [channels, context, pooled]: [usize; 3]) -> Vec<(String, Vec<usize>)> {
    let hidden = size.heads * size.head;
    let mut all = Vec::new();
    let mut linear = |name: String, rows: usize, columns: usize| {
        all.push((format!("{name}.weight"), vec![rows, columns]));
        all.push((format!("{name}.bias"), vec![rows]));
    };
    linear("x_embedder".into(), hidden, channels);
    linear("context_embedder".into(), hidden, context);
    for (name, columns) in [("timestep", 256), ("guidance", 256), ("text", pooled)] {
        linear(format!("time_text_embed.{name}_embedder.linear_1"), hidden, columns);
        linear(format!("time_text_embed.{name}_embedder.linear_2"), hidden, hidden);
    }
    linear("norm_out.linear".into(), 2 * hidden, hidden);
    linear("proj_out".into(), channels, hidden);
    for i in 0..size.double_blocks {
        let at = |part: &str| format!("transformer_blocks.{i}.{part}");
        for part in ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"] {
            linear(at(&format!("attn.{part}")), hidden, hidden);
        }
        for part in ["ff", "ff_context"] {
            linear(at(&format!("{part}.net.0.proj")), 4 * hidden, hidden);
            linear(at(&format!("{part}.net.2")), hidden, 4 * hidden);
        }
        linear(at("norm1.linear"), 6 * hidden, hidden);
        linear(at("norm1_context.linear"), 6 * hidden, hidden);
    }
    for i in 0..size.single_blocks {
        let at = |part: &str| format!("single_transformer_blocks.{i}.{part}");
        for part in ["to_q", "to_k", "to_v"] {
            linear(at(&format!("attn.{part}")), hidden, hidden);
        }
        linear(at("norm.linear"), 3 * hidden, hidden);
        linear(at("proj_mlp"), 4 * hidden, hidden);
        linear(at("proj_out"), hidden, 5 * hidden);
    }
    let mut scales = |name: String| all.push((format!("{name}.weight"), vec![size.head]));
    for i in 0..size.double_blocks {
        for part in ["norm_q", "norm_k", "norm_added_q", "norm_added_k"] {
            scales(format!("transformer_blocks.{i}.attn.{part}"));
        }
    }
    for i in 0..size.single_blocks {
        for part in ["norm_q", "norm_k"] {
            scales(format!("single_transformer_blocks.{i}.attn.{part}"));
        }
    }
    all
}

/// A folder that is gone when this is.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("flux-device-{}-{name}", std::process::id())))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
