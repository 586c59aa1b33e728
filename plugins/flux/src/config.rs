//! The sizes of the transformer: from the shapes of its tensors, and from `config.json` where there is one.

use std::path::Path;

use aihost_plugin_api::{Error, ErrorKind, Result};
use aihost_support::checkpoint::Checkpoint;
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Width of the sinusoids that a step or a guidance becomes.
pub const SINUSOIDS: usize = 256;

/// Sizes of the transformer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransformerConfig {
    /// Whether tensors are named as in the first release, or as diffusers does.
    pub names: Names,
    /// The prefix of every tensor's name, as in files that hold all parts of a model.
    pub prefix: String,
    /// Width of an image token: 4 times the latents' channels.
    pub in_channels: usize,
    /// Width of a state.
    pub hidden: usize,
    /// Attention heads of a block.
    pub heads: usize,
    /// Width inside the feed-forward layers.
    pub inner: usize,
    /// Width of a T5 state.
    pub context: usize,
    /// Width of the pooled CLIP state.
    pub pooled: usize,
    /// Blocks with a stream for text and one for the image.
    pub double_blocks: usize,
    /// Blocks with one stream.
    pub single_blocks: usize,
    /// Whether a guidance is an input: dev, not schnell.
    pub guidance: bool,
    /// Elements of a head that the rotary embedding rotates by each axis of a position: index, row, column.
    pub axes: [usize; 3],
}

/// Who named the tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// `flux1-*.safetensors` and GGUF files made of it.
    Original,
    /// The folder `transformer` of a diffusers model.
    Diffusers,
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    axes_dims_rope: Option<[usize; 3]>,
}

impl TransformerConfig {
    /// Sizes of a checkpoint; `file` is its `config.json`.
    ///
    /// # Errors
    /// [`ErrorKind::CorruptFile`] if a tensor is missing, or the sizes do not fit each other.
    pub fn of(checkpoint: &Checkpoint, file: Option<&Path>) -> Result<Self> {
        let prefix = ["", "model.diffusion_model.", "transformer."].into_iter().find(|prefix| {
            ["img_in.weight", "x_embedder.weight"]
                .iter()
                .any(|name| checkpoint.shape(&format!("{prefix}{name}")).is_some())
        });
        let prefix = prefix.ok_or_else(|| {
            checkpoint
                .corrupt("it has neither a tensor `img_in.weight` nor `x_embedder.weight`; is it a FLUX.1 transformer?")
        })?;
        let has = |name: &str| checkpoint.shape(&format!("{prefix}{name}")).is_some();
        let names = if has("img_in.weight") { Names::Original } else { Names::Diffusers };
        let pick = |original, diffusers| if names == Names::Original { original } else { diffusers };
        let shape = |name: &str| -> Result<[usize; 2]> {
            let shape = checkpoint.shape(&format!("{prefix}{name}"));
            shape.and_then(|shape| shape.try_into().ok()).ok_or_else(|| {
                checkpoint.corrupt(format!("it has no matrix `{prefix}{name}`; is it whole, and a FLUX.1 transformer?"))
            })
        };
        let count = |stem: &str, leaf: &str| (0..).take_while(|i| has(&format!("{stem}.{i}.{leaf}"))).count();
        let [hidden, in_channels] = shape(pick("img_in.weight", "x_embedder.weight"))?;
        let [_, context] = shape(pick("txt_in.weight", "context_embedder.weight"))?;
        let [_, pooled] = shape(pick("vector_in.in_layer.weight", "time_text_embed.text_embedder.linear_1.weight"))?;
        let [inner, _] = shape(pick("double_blocks.0.img_mlp.0.weight", "transformer_blocks.0.ff.net.0.proj.weight"))?;
        let norm = pick("double_blocks.0.img_attn.norm.query_norm.scale", "transformer_blocks.0.attn.norm_q.weight");
        let head = checkpoint.shape(&format!("{prefix}{norm}")).and_then(|shape| shape.first().copied());
        let head = head.ok_or_else(|| checkpoint.corrupt(format!("it has no tensor `{prefix}{norm}`")))?;
        let stated = file.map(read::<File>).transpose()?.and_then(|file| file.axes_dims_rope);
        // 16, 56 and 56 of the published heads of 128.
        let axes = stated.unwrap_or([head / 8, head * 7 / 16, head * 7 / 16]);
        if head == 0
            || !hidden.is_multiple_of(head)
            || axes.iter().sum::<usize>() != head
            || axes.iter().any(|axis| !axis.is_multiple_of(2))
            || !in_channels.is_multiple_of(4)
        {
            let text = format!(
                "states of {hidden}, heads of {head} with rotary axes {axes:?} and tokens of {in_channels} do not fit each other"
            );
            return Err(checkpoint.corrupt(text));
        }
        Ok(Self {
            names,
            prefix: prefix.to_owned(),
            in_channels,
            hidden,
            heads: hidden / head,
            inner,
            context,
            pooled,
            double_blocks: match names {
                Names::Original => count("double_blocks", "img_attn.qkv.weight"),
                Names::Diffusers => count("transformer_blocks", "attn.to_q.weight"),
            },
            single_blocks: match names {
                Names::Original => count("single_blocks", "linear1.weight"),
                Names::Diffusers => count("single_transformer_blocks", "attn.to_q.weight"),
            },
            guidance: has(pick("guidance_in.in_layer.weight", "time_text_embed.guidance_embedder.linear_1.weight")),
            axes,
        })
    }

    /// Width of an attention head.
    pub fn head(&self) -> usize {
        self.hidden / self.heads
    }
}

/// Reads a JSON file.
///
/// # Errors
/// [`ErrorKind::MissingFile`] if it cannot be opened, [`ErrorKind::CorruptFile`] if it is of another form.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read(path)
        .map_err(|error| Error::new(ErrorKind::MissingFile, format!("cannot open {}: {error}", path.display())))?;
    serde_json::from_slice(&text)
        .map_err(|error| Error::new(ErrorKind::CorruptFile, format!("{} cannot be read: {error}", path.display())))
}
