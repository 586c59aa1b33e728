//! The text encoder of CLIP (Radford et al. 2021): tokens in, one state for the whole text out.

use std::path::Path;

use aihost_engine::cpu::rows::{self, Activation};
use aihost_plugin_api::{Error, ErrorKind, Result};
use aihost_support::attention::{Attention, Heads, Mask};
use aihost_support::checkpoint::{Checkpoint, Layers, Renamed};
use aihost_support::dense::Dense;
use serde::Deserialize;

use crate::config;
use crate::layers::Linear;

/// Sizes of the encoder.
#[derive(Clone, Debug, PartialEq)]
pub struct ClipConfig {
    /// The prefix of every tensor's name.
    prefix: &'static str,
    /// Rows of the embedding.
    pub vocabulary: usize,
    /// Width of a state.
    pub hidden: usize,
    /// Width inside the feed-forward layers.
    pub inner: usize,
    /// Most tokens of a text; every text is filled up to it.
    pub positions: usize,
    blocks: usize,
    pub(crate) heads: usize,
    pub(crate) epsilon: f32,
    /// The token whose first position has the pooled state; absent, the largest token of the text does, as in the first release.
    end: Option<u32>,
}

#[derive(Deserialize)]
struct File {
    num_attention_heads: Option<usize>,
    layer_norm_eps: Option<f32>,
    hidden_act: Option<String>,
    eos_token_id: Option<u32>,
}

/// Width of an attention head in the published encoders.
const HEAD: usize = 64;

/// The end token that configurations name by an old mistake: the largest token is meant.
const MISTAKEN_END: u32 = 2;

impl ClipConfig {
    /// Sizes of a checkpoint; `file` is its `config.json`.
    ///
    /// # Errors
    /// [`ErrorKind::CorruptFile`] if a tensor is missing, [`ErrorKind::Unsupported`] for another activation than CLIP's.
    pub fn of(checkpoint: &Checkpoint, file: Option<&Path>) -> Result<Self> {
        let prefix = if checkpoint.has("text_model.embeddings.token_embedding.weight") { "text_model." } else { "" };
        let shape = |name: &str| -> Result<[usize; 2]> {
            let name = format!("{prefix}{name}");
            let shape = checkpoint.shape(&name).and_then(|shape| shape.try_into().ok());
            shape.ok_or_else(|| checkpoint.corrupt(format!("it has no matrix `{name}`; is it CLIP's text encoder?")))
        };
        let file = file.map(config::read::<File>).transpose()?;
        let file = file.unwrap_or(File {
            num_attention_heads: None,
            layer_norm_eps: None,
            hidden_act: None,
            eos_token_id: None,
        });
        if let Some(other) = file.hidden_act.filter(|name| name != "quick_gelu") {
            let text = format!("CLIP with `hidden_act` `{other}` is not served; FLUX.1 uses one with `quick_gelu`");
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        let [vocabulary, hidden] = shape("embeddings.token_embedding.weight")?;
        let heads = file.num_attention_heads.unwrap_or((hidden / HEAD).max(1));
        if heads == 0 || !hidden.is_multiple_of(heads) {
            return Err(checkpoint.corrupt(format!("{heads} heads do not divide a state of {hidden}")));
        }
        let has = |i: &usize| checkpoint.has(&format!("{prefix}encoder.layers.{i}.mlp.fc1.weight"));
        Ok(Self {
            prefix,
            vocabulary,
            hidden,
            inner: shape("encoder.layers.0.mlp.fc1.weight")?[0],
            positions: shape("embeddings.position_embedding.weight")?[0],
            blocks: (0..).take_while(has).count(),
            heads,
            epsilon: file.layer_norm_eps.unwrap_or(1e-5),
            end: file.eos_token_id.filter(|end| *end != MISTAKEN_END),
        })
    }

    /// The position whose state is the pooled state of the text.
    pub(crate) fn end_of(&self, tokens: &[u32]) -> usize {
        match self.end {
            Some(end) => tokens.iter().position(|token| *token == end).unwrap_or(0),
            None => tokens
                .iter()
                .rposition(|token| Some(token) == tokens.iter().max())
                .map_or(0, |last| tokens[..last].iter().position(|token| *token == tokens[last]).unwrap_or(last)),
        }
    }

    /// Bytes that encoding a text allocates.
    pub fn bytes(&self) -> u64 {
        4 * (self.positions * (7 * self.hidden + self.inner)) as u64
    }
}

/// A loaded encoder.
#[derive(Debug)]
pub struct Clip {
    pub(crate) config: ClipConfig,
    pub(crate) tokens: Dense,
    pub(crate) positions: Vec<f32>,
    pub(crate) blocks: Vec<Block>,
    pub(crate) last: Norm,
}

#[derive(Debug)]
pub(crate) struct Norm {
    pub(crate) scale: Vec<f32>,
    pub(crate) shift: Vec<f32>,
}

#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) attention_norm: Norm,
    pub(crate) query_key_value: Linear,
    pub(crate) out: Linear,
    pub(crate) feed_forward_norm: Norm,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
}

impl Clip {
    /// Loads a checkpoint of these sizes.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape.
    pub fn load(config: &ClipConfig, checkpoint: &Checkpoint) -> Result<Self> {
        let layers = &Renamed::below(checkpoint, config.prefix);
        let hidden = config.hidden;
        let norm = |name: &str| -> Result<Norm> {
            let tensor = |part| layers.tensor_f32(&format!("{name}.{part}"), &[hidden]);
            Ok(Norm { scale: tensor("weight")?, shift: tensor("bias")? })
        };
        let block = |i: usize| -> Result<Block> {
            let at = |part: &str| format!("encoder.layers.{i}.{part}");
            let parts = ["q_proj", "k_proj", "v_proj"].map(|part| at(&format!("self_attn.{part}")));
            let [q, k, v] = parts.each_ref().map(|name| (name.as_str(), hidden));
            Ok(Block {
                attention_norm: norm(&at("layer_norm1"))?,
                query_key_value: Linear::stack(layers, &[q, k, v], hidden)?,
                out: Linear::load(layers, &at("self_attn.out_proj"), hidden, hidden)?,
                feed_forward_norm: norm(&at("layer_norm2"))?,
                up: Linear::load(layers, &at("mlp.fc1"), config.inner, hidden)?,
                down: Linear::load(layers, &at("mlp.fc2"), hidden, config.inner)?,
            })
        };
        Ok(Self {
            tokens: layers.matrix("embeddings.token_embedding.weight", config.vocabulary, hidden)?,
            positions: layers.tensor_f32("embeddings.position_embedding.weight", &[config.positions, hidden])?,
            blocks: (0..config.blocks).map(block).collect::<Result<_>>()?,
            last: norm("final_layer_norm")?,
            config: config.clone(),
        })
    }

    /// The state (hidden) of a text of at most `positions` tokens.
    ///
    /// # Errors
    /// If a token is not in the vocabulary, or there are too many or none; if a weight file cannot be read.
    pub fn encode(&self, tokens: &[u32]) -> Result<Vec<f32>> {
        let ClipConfig { hidden, positions, vocabulary, epsilon, .. } = self.config;
        if tokens.is_empty() || tokens.len() > positions || tokens.iter().any(|token| *token as usize >= vocabulary) {
            return Err(Error::internal("CLIP's tokenizer does not fit its weights"));
        }
        let mut x = self.positions[..tokens.len() * hidden].to_vec();
        let mut row = vec![0.0; hidden];
        for (token, x) in tokens.iter().zip(x.chunks_exact_mut(hidden)) {
            self.tokens.widen(*token as usize..*token as usize + 1, &mut row)?;
            rows::add_bias(x, &row);
        }
        let normed = |x: &[f32], norm: &Norm| {
            let mut out = vec![0.0; x.len()];
            for (row, out) in x.chunks_exact(hidden).zip(out.chunks_exact_mut(hidden)) {
                rows::layer_norm(row, epsilon, (&norm.scale, 0.0), &norm.shift, out);
            }
            out
        };
        for block in &self.blocks {
            let qkv = block.query_key_value.forward(&normed(&x, &block.attention_norm), None)?;
            let attended = self.attention(&qkv, tokens.len());
            rows::add_gated(&mut x, &block.out.forward(&attended, None)?, &[], &[]);
            let inner = block.up.forward(&normed(&x, &block.feed_forward_norm), Some(Activation::QuickGelu))?;
            rows::add_gated(&mut x, &block.down.forward(&inner, None)?, &[], &[]);
        }
        let end = self.config.end_of(tokens);
        Ok(normed(&x[end * hidden..(end + 1) * hidden], &self.last))
    }

    fn attention(&self, qkv: &[f32], tokens: usize) -> Vec<f32> {
        let (hidden, heads) = (self.config.hidden, self.config.heads);
        let part = |i: usize| Heads { data: &qkv[i * hidden..], stride: 3 * hidden };
        let width = hidden / heads;
        let (q, k, v, scale) = (part(0), part(1), part(2), 1.0 / (width as f32).sqrt());
        let attention = Attention { q, k, v, keys: tokens, heads, width, scale, mask: Mask::Causal };
        let mut attended = vec![0.0; tokens * hidden];
        attention.forward(0, tokens, &mut attended, hidden);
        attended
    }
}
