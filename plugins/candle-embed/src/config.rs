//! The shape of an encoder, from its `config.json`, checked before anything is computed with it.

use std::path::Path;

use aihost_engine::nn::encoder::{EncoderConfig, EncoderLayer, Positions};
use aihost_engine::nn::rotary::Rotary;
use aihost_engine::ops::Activation;
use aihost_plugin_api::{Error, Result};
use aihost_support::settings::Settings;
use serde::Deserialize;

use crate::family::{FAMILIES, Family, PositionKind};

/// Limits on what a file may claim: an order of magnitude above the largest models, and far below overflow.
const MAX_LAYERS: u64 = 1024;
const MAX_WIDTH: u64 = 1 << 20;
const MAX_CONTEXT: u64 = 1 << 20;

/// `config.json`, as far as it is heeded.
#[derive(Debug, Deserialize)]
pub struct Config {
    model_type: String,
    #[serde(alias = "n_embd")]
    hidden_size: u64,
    #[serde(alias = "n_inner")]
    intermediate_size: u64,
    #[serde(alias = "n_layer")]
    num_hidden_layers: u64,
    #[serde(alias = "n_head")]
    num_attention_heads: u64,
    vocab_size: u64,
    #[serde(alias = "n_positions")]
    max_position_embeddings: u64,
    type_vocab_size: Option<u64>,
    #[serde(alias = "layer_norm_epsilon", alias = "norm_eps")]
    layer_norm_eps: Option<f64>,
    #[serde(alias = "hidden_activation", alias = "activation_function")]
    hidden_act: Option<String>,
    pad_token_id: Option<u64>,
    position_embedding_type: Option<String>,
    rope_parameters: Option<RopeParameters>,
    #[serde(alias = "rotary_emb_base")]
    rope_theta: Option<f64>,
    rotary_emb_fraction: Option<f64>,
    rotary_scaling_factor: Option<f64>,
    global_rope_theta: Option<f64>,
    local_rope_theta: Option<f64>,
    global_attn_every_n_layers: Option<u64>,
    layer_types: Option<Vec<String>>,
    local_attention: Option<u64>,
    classifier_pooling: Option<String>,
    classifier_activation: Option<String>,
    quantization_config: Option<serde_json::Value>,
}

/// How positions are rotated: everywhere, or in layers that see all and in those that see what is near.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum RopeParameters {
    Apart { full_attention: Rope, sliding_attention: Rope },
    Same(Rope),
}

#[derive(Debug, Default, Deserialize)]
struct Rope {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
}

/// An encoder's configuration, and the file that it stands in.
struct Reader<'a> {
    file: Settings<'a>,
    config: &'a Config,
}

/// Reads and checks what a `config.json` says.
///
/// # Errors
/// `Unsupported` for another architecture or variant, `CorruptFile` for impossible values.
pub fn read(path: &Path, config: &Config) -> Result<EncoderConfig> {
    Reader { file: Settings(path), config }.encoder()
}

impl Reader<'_> {
    fn encoder(&self) -> Result<EncoderConfig> {
        let c = self.config;
        let family = Family::of(&c.model_type).ok_or_else(|| self.unknown())?;
        self.check_variant()?;
        let hidden = self.file.size("hidden_size", c.hidden_size, MAX_WIDTH)?;
        let heads = self.file.size("num_attention_heads", c.num_attention_heads, MAX_WIDTH)?;
        if !hidden.is_multiple_of(heads) || !(hidden / heads).is_multiple_of(2) {
            return Err(self.file.corrupt(format!("{heads} heads do not divide a width of {hidden} into even parts")));
        }
        let count = self.file.size("num_hidden_layers", c.num_hidden_layers, MAX_LAYERS)?;
        let rows = self.file.size("max_position_embeddings", c.max_position_embeddings, MAX_CONTEXT)?;
        let (positions, context) = self.positions(family, hidden / heads, rows)?;
        Ok(EncoderConfig {
            names: family.names,
            layers: self.layers(family, count)?,
            hidden,
            feed_forward: self.file.size("intermediate_size", c.intermediate_size, MAX_WIDTH)?,
            heads,
            norm_epsilon: self.file.positive("layer_norm_eps", c.layer_norm_eps.unwrap_or(1e-12))?,
            has_norms_before: family.has_norms_before,
            positions,
            kinds: if family.has_kinds { c.type_vocab_size.unwrap_or(2).min(MAX_WIDTH) as usize } else { 0 },
            activation: self.activation(family)?,
            gate: family.gate,
            context,
            vocabulary: self.file.size("vocab_size", c.vocab_size, u64::from(u32::MAX))?,
        })
    }

    fn check_variant(&self) -> Result<()> {
        let c = self.config;
        let what = if let Some(how) = &c.quantization_config {
            let method = how["quant_method"].as_str().unwrap_or("an unnamed method");
            format!("its weights are quantised by {method}, and only plain F32, F16 and BF16 are read in this form")
        } else if c.position_embedding_type.as_deref().is_some_and(|kind| kind != "absolute") {
            format!("its positions are `{}`", c.position_embedding_type.as_deref().unwrap_or_default())
        } else if c.rotary_emb_fraction.is_some_and(|part| part != 0.0 && part != 1.0) {
            "it rotates a part of each head".to_owned()
        } else {
            return Ok(());
        };
        Err(self.file.unsupported(format!("{what}, which candle-embed does not serve")))
    }

    fn activation(&self, family: &Family) -> Result<Activation> {
        match self.config.hidden_act.as_deref() {
            None => Ok(family.activation),
            Some("gelu") => Ok(Activation::Gelu),
            Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_fast") => Ok(Activation::GeluTanh),
            Some("relu") => Ok(Activation::Relu),
            Some("silu" | "swiglu") => Ok(Activation::Silu),
            Some(other) => {
                Err(self.file.unsupported(format!("its activation is `{other}`, which candle-embed does not serve")))
            }
        }
    }

    /// How it knows positions, and how many there are.
    fn positions(&self, family: &Family, head_width: usize, rows: usize) -> Result<(Positions, usize)> {
        let c = self.config;
        let base = |name: &str, told: Option<f64>, usual: f64| self.file.positive(name, told.unwrap_or(usual));
        match family.positions {
            PositionKind::Learned => Ok((Positions::Learned { rows, first: 0 }, rows)),
            PositionKind::LearnedBehindPadding => {
                let first = c.pad_token_id.unwrap_or(1).saturating_add(1);
                let context = rows.checked_sub(usize::try_from(first).unwrap_or(usize::MAX)).filter(|rows| *rows > 0);
                let context = context.ok_or_else(|| {
                    self.file
                        .corrupt(format!("`max_position_embeddings` is {rows} and `pad_token_id` is {}", first - 1))
                })?;
                Ok((Positions::Learned { rows, first: first as usize }, context))
            }
            PositionKind::Rotary => {
                let told = match &c.rope_parameters {
                    Some(RopeParameters::Same(rope)) => self.plain(rope)?,
                    _ => None,
                };
                let base = base("rope_theta", told.or(c.rope_theta), 1000.0)?;
                // Longer than it was trained for, its positions would have to be scaled.
                let trained = if c.rotary_scaling_factor.is_some() { rows.min(2048) } else { rows };
                Ok((Positions::Rotary(vec![Rotary::plain(head_width, base)]), trained))
            }
            PositionKind::RotaryNear => {
                let (all, near) = match &c.rope_parameters {
                    Some(RopeParameters::Apart { full_attention, sliding_attention }) => {
                        (self.plain(full_attention)?, self.plain(sliding_attention)?)
                    }
                    Some(RopeParameters::Same(rope)) => (self.plain(rope)?, self.plain(rope)?),
                    None => (c.global_rope_theta, c.local_rope_theta),
                };
                let all = base("global_rope_theta", all, 160_000.0)?;
                let near = base("local_rope_theta", near, 10_000.0)?;
                let rotaries = [all, near].map(|base| Rotary::plain(head_width, base));
                Ok((Positions::Rotary(rotaries.to_vec()), rows))
            }
        }
    }

    /// The base of a rotary embedding that is not scaled.
    fn plain(&self, rope: &Rope) -> Result<Option<f64>> {
        match rope.rope_type.as_deref() {
            None | Some("default") => Ok(rope.rope_theta),
            Some(other) => Err(self
                .file
                .unsupported(format!("its positions are scaled by `{other}`, which candle-embed does not serve"))),
        }
    }

    fn layers(&self, family: &Family, count: usize) -> Result<Vec<EncoderLayer>> {
        let c = self.config;
        if family.positions != PositionKind::RotaryNear {
            return Ok(vec![EncoderLayer::default(); count]);
        }
        let every =
            self.file.size("global_attn_every_n_layers", c.global_attn_every_n_layers.unwrap_or(3), MAX_LAYERS)?;
        let window = self.file.size("local_attention", c.local_attention.unwrap_or(128), MAX_CONTEXT)?;
        if let Some(types) = c.layer_types.as_ref().filter(|types| types.len() != count) {
            return Err(self
                .file
                .corrupt(format!("`layer_types` has {} entries, and there are {count} layers", types.len())));
        }
        let is_near = |layer: usize| match &c.layer_types {
            Some(types) => types[layer] == "sliding_attention",
            None => !layer.is_multiple_of(every),
        };
        let layer = |i| match is_near(i) {
            true => EncoderLayer { reach: Some(window / 2), rotary: 1 },
            false => EncoderLayer::default(),
        };
        Ok((0..count).map(layer).collect())
    }

    fn unknown(&self) -> Error {
        let known: Vec<&str> = FAMILIES.iter().flat_map(|family| family.model_types).copied().collect();
        self.file.unsupported(format!(
            "the architecture is `{}`, and candle-embed serves {}; `plugin: vllm` or `engine: llama-server` serves others",
            self.config.model_type,
            known.join(", ")
        ))
    }
}

impl Config {
    /// What kind of model it is.
    pub fn model_type(&self) -> &str {
        &self.model_type
    }

    /// What makes one vector of a text of which a classifier is to make a score.
    pub fn classifier_pooling(&self) -> Option<&str> {
        self.classifier_pooling.as_deref()
    }

    /// The activation within a classifier, where it is named.
    pub fn classifier_activation(&self) -> Option<&str> {
        self.classifier_activation.as_deref()
    }
}
