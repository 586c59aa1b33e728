//! The shape of a model, from its `config.json`, checked before anything is computed with it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::settings::Settings;
use aihost_engine::files::Tensors;
use aihost_engine::nn::decoder::{Biases, DecoderConfig, DeltaNet, Experts, LayerConfig, QueryGrowth, Recurrence};
use aihost_engine::nn::rotary::Rotary;
use aihost_engine::ops::Activation;
use aihost_plugin_api::Result;
use serde::Deserialize;
use serde_json::Value;

use super::family::{self, Family, Mixture, Recurrent, Windows};
use super::gguf::{self as limits, MAX_CONTEXT, MAX_EXPERTS, MAX_KERNEL, MAX_LAYERS, MAX_WIDTH};
use super::positions::{Llama3, Plain, Yarn, yarn_magnitude};

/// What `layer_types` may have: layers that see all, and those with windows.
const LAYER_TYPES: [&str; 2] = ["full_attention", "sliding_attention"];
/// What it has of layers without keys and values.
const DELTA_NET_TYPE: &str = "linear_attention";
const CONVOLUTION_TYPE: &str = "conv";
/// The kind of positions of which only the fastest part of all pairs is turned.
const PROPORTIONAL: &str = "proportional";

/// What models of several kinds of input say of all of them.
const SHARED_SETTINGS: [&str; 4] = ["tie_word_embeddings", "bos_token_id", "eos_token_id", "quantization_config"];
/// What stands before the tensors of their text decoders, and before those of decoders alone.
const TEXT_TENSORS: [(&str, &str); 3] =
    [("model.language_model.", "model."), ("language_model.model.", "model."), ("language_model.lm_head.", "lm_head.")];
/// What decoders without an output begin the names of their tensors with, where others have `model.` before it.
const BARE_TENSORS: [&str; 3] = ["embed_tokens.", "layers.", "norm."];

/// One token, or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Ids {
    One(u32),
    Several(Vec<u32>),
}

impl Ids {
    /// All of them.
    pub fn all(&self) -> &[u32] {
        match self {
            Self::One(id) => std::slice::from_ref(id),
            Self::Several(ids) => ids,
        }
    }
}

/// What a `config.json` says of a decoder, or of the text decoder of a model of several kinds of input.
#[derive(Debug)]
pub struct Folder {
    /// Where it lies, for messages.
    path: PathBuf,
    config: Config,
    /// Whether the decoder is one of several parts.
    is_part: bool,
}

impl Folder {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// `MissingFile` if it is not there, `CorruptFile` if it is none.
    pub fn open(path: PathBuf) -> Result<Self> {
        let needs = "a model of safetensors needs its config.json, under role `config` or beside its weights";
        let all = Settings(&path).json()?.ok_or_else(|| Settings(&path).missing(needs))?;
        Self::of(path, all)
    }

    /// What was read of it already.
    ///
    /// # Errors
    /// `CorruptFile` if it is none.
    pub fn of(path: PathBuf, all: Value) -> Result<Self> {
        let file = Settings(&path);
        let part = text_config(&all);
        let is_part = part.is_some();
        let config = serde_json::from_value(part.unwrap_or(all)).map_err(|error| file.corrupt(error.to_string()))?;
        Ok(Self { path, config, is_part })
    }

    /// Its weights, under the names that decoders alone have.
    ///
    /// # Errors
    /// Those of [`Tensors::open`].
    pub fn tensors(&self, path: &Path) -> Result<Tensors> {
        let tensors = Tensors::open(path)?;
        if self.is_part {
            return Ok(tensors.renamed(text_tensor));
        }
        let is_bare = |name: &str| BARE_TENSORS.iter().any(|part| name.starts_with(part));
        Ok(tensors.renamed(|name| Some(if is_bare(name) { format!("model.{name}") } else { name.to_owned() })))
    }

    /// The model's shape, checked.
    ///
    /// # Errors
    /// `Unsupported` for another architecture or variant, `CorruptFile` for impossible values.
    pub fn decoder(&self, tensors: &Tensors) -> Result<DecoderConfig> {
        Reader { file: Settings(&self.path), config: &self.config, tensors }.config()
    }

    /// That there is what makes logits: the table of tokens stands for it only where that is said, or usual.
    ///
    /// # Errors
    /// `CorruptFile` if it is missing.
    pub fn check_output(&self, tensors: &Tensors, config: &DecoderConfig) -> Result<()> {
        let usual = Family::of_hugging_face(&self.config.model_type).is_some_and(|family| family.is_tied);
        if !self.config.tie_word_embeddings.unwrap_or(usual) {
            tensors.tensor(config.names.head)?;
        }
        Ok(())
    }

    /// What kind of model it is.
    pub fn architecture(&self) -> &str {
        &self.config.model_type
    }

    /// The beginning-of-sequence token.
    pub fn begin(&self) -> Option<u32> {
        self.config.bos_token_id.as_ref().and_then(|ids| ids.all().first().copied())
    }

    /// Tokens that end a turn.
    pub fn ends(&self) -> Option<&Ids> {
        self.config.eos_token_id.as_ref()
    }
}

/// What a model of several kinds of input says of its text decoder, if it is one.
fn text_config(config: &Value) -> Option<Value> {
    let mut text = config.get("text_config")?.as_object()?.clone();
    for key in SHARED_SETTINGS {
        if let Some(value) = config.get(key).filter(|value| !value.is_null()) {
            text.entry(key).or_insert_with(|| value.clone());
        }
    }
    Some(Value::Object(text))
}

/// The name of a tensor of the text decoder of such a model, as decoders alone call it.
fn text_tensor(name: &str) -> Option<String> {
    let renamed = TEXT_TENSORS.iter().find_map(|(from, to)| Some(format!("{to}{}", name.strip_prefix(from)?)));
    renamed.or_else(|| name.starts_with("lm_head.").then(|| name.to_owned()))
}

/// `config.json` of a decoder; what it leaves out is transformers' default.
#[derive(Debug, Deserialize)]
struct Config {
    model_type: String,
    hidden_size: u64,
    /// Of a mixture of experts alone there may be none.
    intermediate_size: Option<u64>,
    num_hidden_layers: u64,
    num_attention_heads: u64,
    num_key_value_heads: Option<u64>,
    head_dim: Option<u64>,
    vocab_size: u64,
    #[serde(default = "positions")]
    max_position_embeddings: u64,
    #[serde(default = "epsilon", alias = "norm_eps")]
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    /// Gemma 3's older files: of the layers with windows.
    rope_local_base_freq: Option<f64>,
    /// Older files.
    rope_scaling: Option<Rope>,
    /// Newer files; has the base too.
    rope_parameters: Option<RopeParameters>,
    partial_rotary_factor: Option<f64>,
    original_max_position_embeddings: Option<u64>,
    hidden_act: Option<String>,
    /// Gemma's, beside an older one that does not count.
    hidden_activation: Option<String>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    tie_word_embeddings: Option<bool>,
    quantization_config: Option<Value>,
    bos_token_id: Option<Ids>,
    eos_token_id: Option<Ids>,
    sliding_window: Option<u64>,
    use_sliding_window: Option<bool>,
    layer_types: Option<Vec<String>>,
    no_rope_layers: Option<Vec<u64>>,
    query_pre_attn_scalar: Option<f64>,
    attention_multiplier: Option<f64>,
    embedding_multiplier: Option<f64>,
    residual_multiplier: Option<f64>,
    logits_scaling: Option<f64>,
    attn_logit_softcapping: Option<f64>,
    final_logit_softcapping: Option<f64>,
    /// A flag, or the kinds of tokens that see those behind them.
    use_bidirectional_attention: Option<Value>,
    #[serde(alias = "num_local_experts")]
    num_experts: Option<u64>,
    num_experts_per_tok: Option<u64>,
    moe_intermediate_size: Option<u64>,
    norm_topk_prob: Option<bool>,
    decoder_sparse_step: Option<u64>,
    mlp_only_layers: Option<Vec<u64>>,
    shared_expert_intermediate_size: Option<u64>,
    #[serde(flatten)]
    gemma4: Gemma4,
    linear_conv_kernel_dim: Option<u64>,
    linear_key_head_dim: Option<u64>,
    linear_value_head_dim: Option<u64>,
    linear_num_key_heads: Option<u64>,
    linear_num_value_heads: Option<u64>,
    full_attention_interval: Option<usize>,
    #[serde(flatten)]
    lfm2: Lfm2,
}

/// What Gemma 4 has of its own.
#[derive(Debug, Deserialize)]
struct Gemma4 {
    /// Of layers that see all.
    global_head_dim: Option<u64>,
    num_global_key_value_heads: Option<u64>,
    /// Newer files: by the numbers of layers.
    per_layer_config: Option<BTreeMap<String, LayerSizes>>,
    num_kv_shared_layers: Option<usize>,
    /// Whether layers without keys of their own have networks twice as wide.
    use_double_wide_mlp: Option<bool>,
    hidden_size_per_layer_input: Option<u64>,
    enable_moe_block: Option<bool>,
    top_k_experts: Option<u64>,
}

/// What a layer has other sizes of than most.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
struct LayerSizes {
    head_dim: Option<u64>,
    num_key_value_heads: Option<u64>,
}

/// What LFM2 has of its own.
#[derive(Debug, Deserialize)]
struct Lfm2 {
    #[serde(rename = "conv_L_cache")]
    conv_l_cache: Option<u64>,
    conv_bias: Option<bool>,
    /// Older files, in place of the types of layers.
    full_attn_idxs: Option<Vec<usize>>,
    /// Older files, in place of the usual name.
    block_ff_dim: Option<u64>,
    /// Whether the width is to be made two thirds, times the factor, in whole multiples.
    block_auto_adjust_ff_dim: Option<bool>,
    block_ffn_dim_multiplier: Option<f64>,
    block_multiple_of: Option<u64>,
}

/// How positions are scaled: everywhere, or in layers that see all and in layers with windows.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum RopeParameters {
    Apart { full_attention: Box<Rope>, sliding_attention: Box<Rope> },
    Same(Box<Rope>),
}

/// How positions are scaled.
#[derive(Clone, Debug, Default, Deserialize)]
struct Rope {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    attention_factor: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    truncate: Option<bool>,
    short_factor: Option<Vec<f32>>,
    long_factor: Option<Vec<f32>>,
    llama_4_scaling_beta: Option<f64>,
}

/// A `config.json`, what it says, and the weights that it is about.
struct Reader<'a> {
    file: Settings<'a>,
    config: &'a Config,
    tensors: &'a Tensors,
}

fn positions() -> u64 {
    2048
}

fn epsilon() -> f64 {
    1e-6
}

impl Reader<'_> {
    /// The model's shape, checked.
    fn config(&self) -> Result<DecoderConfig> {
        let c = self.config;
        let family = Family::of_hugging_face(&c.model_type)
            .ok_or_else(|| self.file.unsupported(family::unknown(&c.model_type)))?;
        self.check_variant(family)?;
        let hidden = self.file.size("hidden_size", c.hidden_size, MAX_WIDTH)?;
        let heads = self.file.size("num_attention_heads", c.num_attention_heads, MAX_WIDTH)?;
        let kv_heads =
            self.file.size("num_key_value_heads", c.num_key_value_heads.unwrap_or(heads as u64), MAX_WIDTH)?;
        let head_width = self.file.size("head_dim", c.head_dim.unwrap_or((hidden / heads) as u64), MAX_WIDTH)?;
        let layers = self.file.size("num_hidden_layers", c.num_hidden_layers, MAX_LAYERS)?;
        let names = family.hugging_face_names;
        let has_experts = match family.mixture {
            Mixture::None => false,
            Mixture::InPlace => true,
            Mixture::Beside => c.gemma4.enable_moe_block == Some(true),
        };
        let experts = if has_experts { Some(self.experts()?) } else { None };
        let sizes = LayerConfig {
            has_experts,
            kv_heads,
            head_width,
            feed_forward: self.feed_forward(family, experts)?,
            ..LayerConfig::default()
        };
        let all_layers = self.layers(family, layers, sizes)?;
        // Of layers that see all.
        let wide = all_layers.iter().find(|layer| layer.window.is_none() && !layer.is_recurrent);
        let wide = wide.map_or(head_width, |layer| layer.head_width);
        let scale = |name: &str, told: Option<f64>| told.map_or(Ok(1.0), |told| self.file.positive(name, told));
        let cap = |name: &str, told: Option<f64>| told.map(|told| self.file.positive(name, told)).transpose();
        let config = DecoderConfig {
            names,
            rotaries: self.rotaries(family, [wide, head_width])?,
            layers: all_layers,
            unused_layers: 0,
            hidden,
            heads,
            rope_order: family.hugging_face_order,
            norms: family.norms,
            norm_epsilon: self.file.positive("rms_norm_eps", c.rms_norm_eps)?,
            norm_offset: family.norm_offset,
            sees_all: c.use_bidirectional_attention.as_ref().is_some_and(|told| *told == true || *told == "all"),
            has_head_norms: family.has_head_norms,
            has_value_norms: family.has_value_norms,
            has_sinks: false,
            biases: family.biases,
            has_fused_attention: family.has_fused_attention,
            has_fused_network: family.has_fused_network,
            has_query_gates: family.has_query_gates,
            recurrence: self.recurrence(family)?,
            activation: family.activation,
            experts,
            has_network_beside: family.mixture == Mixture::Beside,
            layer_inputs: match c.gemma4.hidden_size_per_layer_input {
                None | Some(0) => None,
                Some(width) => Some(self.file.size("hidden_size_per_layer_input", width, MAX_WIDTH)?),
            },
            has_layer_scales: family.has_layer_scales,
            embedding_scale: if family.scales_embeddings {
                (hidden as f32).sqrt()
            } else {
                scale("embedding_multiplier", c.embedding_multiplier)?
            },
            residual_scale: scale("residual_multiplier", c.residual_multiplier)?,
            attention_scale: match (c.attention_multiplier, c.query_pre_attn_scalar) {
                (Some(scale), _) => self.file.positive("attention_multiplier", scale)?,
                (None, Some(width)) => 1.0 / self.file.positive("query_pre_attn_scalar", width)?.sqrt(),
                (None, None) => family
                    .attention_scale
                    .unwrap_or_else(|| limits::attention_scale(family, layers, hidden, heads, head_width)),
            },
            attention_cap: cap("attn_logit_softcapping", c.attn_logit_softcapping)?,
            query_growth: self.query_growth()?,
            logit_scale: 1.0 / scale("logits_scaling", c.logits_scaling)?,
            logit_cap: cap("final_logit_softcapping", c.final_logit_softcapping)?,
            context: self.file.size("max_position_embeddings", c.max_position_embeddings, MAX_CONTEXT)?,
            vocabulary: self.file.size("vocab_size", c.vocab_size, u64::from(u32::MAX))?,
        };
        limits::check(&config).map_err(|what| self.file.corrupt(what))?;
        if c.attention_bias == Some(true) {
            let [query, ..] = names.attention;
            self.tensors.tensor(&format!("{}.0.{query}.bias", names.layers))?;
        }
        Ok(config)
    }

    /// Whether it is of the kind that is served here.
    fn check_variant(&self, family: &Family) -> Result<()> {
        let c = self.config;
        let activation = c.hidden_activation.as_deref().or(c.hidden_act.as_deref());
        let is_known = match family.activation {
            Activation::GeluTanh => matches!(activation, None | Some("gelu_pytorch_tanh" | "gelu")),
            _ => matches!(activation, None | Some("silu")),
        };
        let what = if let Some(how) = &c.quantization_config {
            let method = how["quant_method"].as_str().unwrap_or("an unnamed method");
            format!("its weights are quantised by {method}, and only plain F32, F16 and BF16 are read in this form")
        } else if !is_known {
            format!("its activation is `{}`, which its kind does not have here", activation.unwrap_or_default())
        } else if c.mlp_bias.unwrap_or(false) || (c.attention_bias.unwrap_or(false) && family.biases == Biases::None) {
            "its layers have biases, which is not served here".to_owned()
        } else if c.decoder_sparse_step.is_some_and(|step| step > 1)
            || c.mlp_only_layers.as_ref().is_some_and(|layers| !layers.is_empty())
        {
            "some of its layers have experts and others do not, which is not served here".to_owned()
        } else if c.lfm2.conv_bias == Some(true) {
            "its convolutions have biases, which is not served here".to_owned()
        } else {
            return Ok(());
        };
        Err(self.file.unsupported(format!("{what}; use another plugin, or a GGUF file of the model")))
    }

    /// The layers, most of which have these sizes.
    fn layers(&self, family: &Family, count: usize, sizes: LayerConfig) -> Result<Vec<LayerConfig>> {
        let c = self.config;
        let window = match (c.sliding_window, c.use_sliding_window) {
            (None | Some(0), _) | (_, Some(false)) => None,
            (Some(window), _) => Some(self.file.size("sliding_window", window, MAX_CONTEXT)?),
        };
        for (name, len) in [
            ("layer_types", c.layer_types.as_ref().map(Vec::len)),
            ("no_rope_layers", c.no_rope_layers.as_ref().map(Vec::len)),
        ] {
            if let Some(len) = len.filter(|len| *len != count) {
                return Err(self.file.corrupt(format!("`{name}` has {len} entries, and there are {count} layers")));
            }
        }
        let recurrent = match family.recurrent {
            Recurrent::None => None,
            Recurrent::DeltaNet => Some(DELTA_NET_TYPE),
            Recurrent::ShortConvolution => Some(CONVOLUTION_TYPE),
        };
        let is_known = |kind: &&str| LAYER_TYPES.contains(kind) || recurrent == Some(*kind);
        if let Some(other) = c.layer_types.iter().flatten().map(String::as_str).find(|kind| !is_known(kind)) {
            return Err(self.file.unsupported(format!(
                "it has layers of the kind `{other}`, which is not served here; use another plugin"
            )));
        }
        let types = c.layer_types.as_deref();
        let is_near = |layer: usize| match types {
            Some(types) if family.windows != Windows::All => types[layer] == LAYER_TYPES[1],
            _ => family.windows.has(layer),
        };
        let is_recurrent = |layer: usize| match (types, &c.lfm2.full_attn_idxs, family.recurrent) {
            (_, _, Recurrent::None) => false,
            (Some(types), ..) => Some(types[layer].as_str()) == recurrent,
            (None, Some(others), Recurrent::ShortConvolution) => !others.contains(&layer),
            (None, ..) => !(layer + 1).is_multiple_of(c.full_attention_interval.unwrap_or(4).max(1)),
        };
        let mut layers = Vec::with_capacity(count);
        for number in 0..count {
            let mut layer = family.layer(number, window.filter(|_| is_near(number)), is_recurrent(number));
            if let Some(is_rotated) = c.no_rope_layers.as_ref().map(|layers| layers[number]) {
                layer.rotary = (is_rotated != 0).then_some(0);
            }
            let LayerConfig { has_experts, feed_forward, .. } = sizes;
            let (kv_heads, head_width) = self.heads_of(number, layer.window.is_none(), sizes)?;
            layers.push(LayerConfig { has_experts, feed_forward, kv_heads, head_width, ..layer });
        }
        let shared = c.gemma4.num_kv_shared_layers.unwrap_or(0);
        family::share_keys(&mut layers, shared).map_err(|what| self.file.corrupt(what))?;
        if c.gemma4.use_double_wide_mlp == Some(true) {
            layers.iter_mut().filter(|layer| layer.keys_of.is_some()).for_each(|layer| layer.feed_forward *= 2);
        }
        Ok(layers)
    }

    /// Key heads of a layer and their width, of those in which layers that see all may differ from others.
    fn heads_of(&self, number: usize, sees_all: bool, sizes: LayerConfig) -> Result<(usize, usize)> {
        let gemma4 = &self.config.gemma4;
        let own = gemma4.per_layer_config.as_ref().and_then(|layers| layers.get(&number.to_string()));
        let told = own.copied().unwrap_or_default();
        let head_width = told.head_dim.or(gemma4.global_head_dim.filter(|_| sees_all));
        let kv_heads = told.num_key_value_heads.or(gemma4.num_global_key_value_heads.filter(|_| sees_all));
        let size = |name: &str, told: Option<u64>, usual: usize| {
            told.map_or(Ok(usual), |told| self.file.size(name, told, MAX_WIDTH))
        };
        Ok((size("num_key_value_heads", kv_heads, sizes.kv_heads)?, size("head_dim", head_width, sizes.head_width)?))
    }

    fn experts(&self) -> Result<Experts> {
        let c = self.config;
        let need = |name: &str, value: Option<u64>, most: u64| {
            self.file.size(name, value.ok_or_else(|| self.file.corrupt(format!("`{name}` is missing")))?, most)
        };
        Ok(Experts {
            count: need("num_experts", c.num_experts, MAX_EXPERTS)?,
            used: need("num_experts_per_tok", c.num_experts_per_tok.or(c.gemma4.top_k_experts), MAX_EXPERTS)?,
            feed_forward: need("moe_intermediate_size", c.moe_intermediate_size, MAX_WIDTH)?,
            // Families that do not say it have shares that add up to 1: with an expert for all, or beside a network.
            is_normalised: c
                .norm_topk_prob
                .unwrap_or(c.shared_expert_intermediate_size.is_some() || c.gemma4.top_k_experts.is_some()),
            shared: c
                .shared_expert_intermediate_size
                .map(|width| need("shared_expert_intermediate_size", Some(width), MAX_WIDTH))
                .transpose()?,
        })
    }

    /// Width between the halves of a dense network.
    fn feed_forward(&self, family: &Family, experts: Option<Experts>) -> Result<usize> {
        let (c, lfm2) = (self.config, &self.config.lfm2);
        let told = lfm2.block_ff_dim.or(c.intermediate_size).or(experts.map(|experts| experts.feed_forward as u64));
        let told = told.ok_or_else(|| self.file.corrupt("`intermediate_size` is missing"))?;
        let width = self.file.size("intermediate_size", told, MAX_WIDTH)?;
        if family.recurrent != Recurrent::ShortConvolution || lfm2.block_auto_adjust_ff_dim == Some(false) {
            return Ok(width);
        }
        let factor = self.file.positive("block_ffn_dim_multiplier", lfm2.block_ffn_dim_multiplier.unwrap_or(1.0))?;
        let multiple = self.file.size("block_multiple_of", lfm2.block_multiple_of.unwrap_or(256), MAX_WIDTH)?;
        let adjusted = ((2 * width / 3) as f32 * factor) as usize;
        self.file.size("intermediate_size", adjusted.next_multiple_of(multiple) as u64, MAX_WIDTH)
    }

    /// What layers without keys and values are like.
    fn recurrence(&self, family: &Family) -> Result<Option<Recurrence>> {
        let c = self.config;
        let need = |name: &str, told: Option<u64>, most: u64| {
            self.file.size(name, told.ok_or_else(|| self.file.corrupt(format!("`{name}` is missing")))?, most)
        };
        Ok(match family.recurrent {
            Recurrent::None => None,
            Recurrent::ShortConvolution => {
                Some(Recurrence::ShortConvolution { taps: need("conv_L_cache", c.lfm2.conv_l_cache, MAX_KERNEL)? - 1 })
            }
            Recurrent::DeltaNet => Some(Recurrence::DeltaNet(DeltaNet {
                key_heads: need("linear_num_key_heads", c.linear_num_key_heads, MAX_WIDTH)?,
                heads: need("linear_num_value_heads", c.linear_num_value_heads, MAX_WIDTH)?,
                key_width: need("linear_key_head_dim", c.linear_key_head_dim, MAX_WIDTH)?,
                value_width: need("linear_value_head_dim", c.linear_value_head_dim, MAX_WIDTH)?,
                taps: need("linear_conv_kernel_dim", c.linear_conv_kernel_dim, MAX_KERNEL)? - 1,
                is_grouped: true,
            })),
        })
    }

    /// How positions are scaled in layers that see all, and in layers with windows if those have another way.
    fn ropes(&self) -> (Rope, Option<Rope>) {
        match &self.config.rope_parameters {
            Some(RopeParameters::Apart { full_attention, sliding_attention }) => {
                (Rope::clone(full_attention), Some(Rope::clone(sliding_attention)))
            }
            Some(RopeParameters::Same(rope)) => (Rope::clone(rope), None),
            None => (self.config.rope_scaling.clone().unwrap_or_default(), None),
        }
    }

    /// The rotary embeddings of layers that see all and of those with windows, by the width of their heads.
    fn rotaries(&self, family: &Family, [wide, narrow]: [usize; 2]) -> Result<Vec<Rotary>> {
        let c = self.config;
        let (all, near) = self.ropes();
        let plain = |rope: &Rope, head_width: usize, usual: Option<f64>| -> Result<Plain> {
            // A part of all frequencies is no part of the elements.
            let is_whole = rope.rope_type.as_deref() == Some(PROPORTIONAL);
            let part = rope.partial_rotary_factor.or(c.partial_rotary_factor).filter(|_| !is_whole).unwrap_or(1.0);
            let width = (head_width as f64 * f64::from(self.file.positive("partial_rotary_factor", part)?)) as usize;
            let base = rope.rope_theta.or(usual).unwrap_or(10_000.0);
            Ok(Plain { width, base: self.file.positive("rope_theta", base)? })
        };
        let mut rotaries = vec![self.scaled(&all, plain(&all, wide, c.rope_theta)?)?];
        if let Some(usual) = family.window_rope_base {
            let near = near.unwrap_or_default();
            let usual = c.rope_local_base_freq.unwrap_or(f64::from(usual));
            rotaries.push(self.scaled(&near, plain(&near, narrow, Some(usual))?)?);
        }
        Ok(rotaries)
    }

    fn scaled(&self, rope: &Rope, plain: Plain) -> Result<Rotary> {
        let need = |name: &str, value: Option<f64>| {
            let value = value.ok_or_else(|| self.file.corrupt(format!("`{name}` of its rope scaling is missing")))?;
            self.file.positive(name, value).map(f64::from)
        };
        let trained = rope.original_max_position_embeddings;
        let trained = trained.or(self.config.original_max_position_embeddings.map(|tokens| tokens as f64));
        let trained = || need("original_max_position_embeddings", trained);
        match rope.rope_type.as_deref() {
            None | Some("default") => Ok(plain.divided(1.0, None)),
            Some("linear") => Ok(plain.divided(need("factor", rope.factor)? as f32, None)),
            Some("llama3") => {
                let low = need("low_freq_factor", rope.low_freq_factor)?;
                let high = need("high_freq_factor", rope.high_freq_factor)?;
                if high <= low {
                    return Err(self.file.corrupt(format!("`high_freq_factor` is {high} and must be above `low_freq_factor`, {low}")));
                }
                Ok(plain.llama3(Llama3 { factor: need("factor", rope.factor)?, low, high, trained: trained()? }))
            }
            Some("yarn") => {
                let factor = need("factor", rope.factor)?;
                let magnitude = match (rope.attention_factor, rope.mscale, rope.mscale_all_dim) {
                    (Some(told), ..) => f64::from(self.file.positive("attention_factor", told)?),
                    (None, Some(own), Some(all)) if own != 0.0 && all != 0.0 => {
                        yarn_magnitude(factor, own) / yarn_magnitude(factor, all)
                    }
                    _ => yarn_magnitude(factor, 1.0),
                };
                let fast = rope.beta_fast.unwrap_or(32.0);
                let slow = rope.beta_slow.unwrap_or(1.0);
                Ok(plain.yarn(Yarn { factor, trained: trained()?, fast, slow, ramp: 1.0, magnitude, has_whole_pairs: rope.truncate.unwrap_or(true) }))
            }
            Some(PROPORTIONAL) => {
                let part = f64::from(self.file.positive("partial_rotary_factor", rope.partial_rotary_factor.unwrap_or(1.0))?);
                Ok(plain.partly((part * plain.width as f64 / 2.0) as usize))
            }
            Some("longrope" | "su") => self.longrope(rope, plain, trained()?),
            Some(other) => Err(self.file.unsupported(format!(
                "its positions are scaled by `{other}`, and known here are linear, llama3, yarn, longrope and proportional; use another plugin"
            ))),
        }
    }

    fn longrope(&self, rope: &Rope, plain: Plain, trained: f64) -> Result<Rotary> {
        let factors = |name: &str, told: &Option<Vec<f32>>| match told {
            Some(told) if told.len() == plain.width / 2 && told.iter().all(|f| f.is_finite() && *f > 0.0) => {
                Ok(told.clone())
            }
            _ => Err(self.file.corrupt(format!("`{name}` must have {} numbers above 0", plain.width / 2))),
        };
        let longer = self.config.max_position_embeddings as f64 / trained;
        let factor = rope.factor.unwrap_or(longer);
        let magnitude = match rope.attention_factor {
            Some(told) => self.file.positive("attention_factor", told)?,
            None if factor <= 1.0 => 1.0,
            None => (1.0 + factor.ln() / trained.ln()).sqrt() as f32,
        };
        let (short, long) = (factors("short_factor", &rope.short_factor)?, factors("long_factor", &rope.long_factor)?);
        Ok(plain.longrope(short, long, trained as usize, magnitude))
    }

    fn query_growth(&self) -> Result<Option<QueryGrowth>> {
        let (rope, _) = self.ropes();
        let Some(beta) = rope.llama_4_scaling_beta else { return Ok(None) };
        let trained = rope.original_max_position_embeddings.unwrap_or(0.0);
        let from = self.file.size("original_max_position_embeddings", trained as u64, MAX_CONTEXT)?;
        Ok(Some(QueryGrowth { beta: self.file.positive("llama_4_scaling_beta", beta)?, from }))
    }
}
