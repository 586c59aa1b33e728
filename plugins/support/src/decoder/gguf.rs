//! The shape of a model, from a GGUF file's metadata, checked before anything is computed with it.

use aihost_engine::files::Gguf;
use aihost_engine::nn::decoder::{DecoderConfig, DeltaNet, Experts, GGUF_NAMES, LayerConfig, QueryGrowth, Recurrence};
use aihost_engine::nn::rotary::Rotary;
use aihost_plugin_api::{Error, ErrorKind, Result};

use super::family::{self, Family, Mixture, Recurrent, Windows};
use super::positions::{Plain, Yarn, yarn_magnitude};

/// The tensor of what each pair's frequency is divided by.
const ROPE_DIVISORS: &str = "rope_freqs.weight";
/// Those of LongRoPE: for few tokens, and for many.
const ROPE_FACTORS: [&str; 2] = ["rope_factors_short.weight", "rope_factors_long.weight"];

/// Limits on what a file may claim: an order of magnitude above the largest models, and far below overflow.
pub const MAX_LAYERS: u64 = 1024;
pub const MAX_WIDTH: u64 = 1 << 20;
pub const MAX_CONTEXT: u64 = 1 << 24;
pub const MAX_EXPERTS: u64 = 1 << 14;
pub const MAX_KERNEL: u64 = 1 << 10;

/// Whether the sizes of a model fit together, or what is wrong.
pub fn check(c: &DecoderConfig) -> std::result::Result<(), String> {
    let heads = c.heads;
    for layer in c.layers.iter().filter(|layer| !layer.is_recurrent) {
        let (kv_heads, head_width) = (layer.kv_heads, layer.head_width);
        let rotated = layer.rotary.and_then(|rotary| c.rotaries.get(rotary)).map_or(0, |rotary| rotary.width);
        let fits = heads.is_multiple_of(kv_heads) && rotated <= head_width && rotated.is_multiple_of(2);
        if !fits || heads * head_width > MAX_WIDTH as usize {
            return Err(format!(
                "{heads} heads, {kv_heads} key heads, width {head_width} and rotated width {rotated} do not fit together"
            ));
        }
    }
    if let Some(Recurrence::DeltaNet(DeltaNet { key_heads, heads, key_width, value_width, .. })) = c.recurrence {
        let is_small = |heads: usize, width: usize| heads * width <= MAX_WIDTH as usize;
        if !heads.is_multiple_of(key_heads) || !is_small(heads, value_width) || !is_small(key_heads, key_width) {
            return Err(format!(
                "{key_heads} key heads of width {key_width} and {heads} heads of width {value_width} of its delta nets do not fit together"
            ));
        }
    }
    if let Some(Experts { count, used, .. }) = c.experts.filter(|experts| experts.used > experts.count) {
        return Err(format!("each token goes to {used} experts, and there are {count}"));
    }
    Ok(())
}

/// What scores are scaled by, unless a model says it: by the width of a head, in a few models by their whole width over the heads.
pub fn attention_scale(family: &Family, layers: usize, hidden: usize, heads: usize, head_width: usize) -> f32 {
    let is_scaled_by_hidden = family.scaled_by_hidden == Some(layers);
    let width = if is_scaled_by_hidden { hidden / heads } else { head_width };
    1.0 / (width as f32).sqrt()
}

/// Reads and checks the metadata.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for another architecture, [`ErrorKind::CorruptFile`] for missing or impossible values.
pub fn read(gguf: &Gguf) -> Result<DecoderConfig> {
    let architecture = gguf
        .text("general.architecture")?
        .ok_or_else(|| gguf.corrupt("the metadata `general.architecture` is missing; convert the model again"))?;
    let family = Family::of_gguf(architecture).ok_or_else(|| unsupported(gguf, &family::unknown(architecture)))?;
    Metadata { gguf, family }.config()
}

/// A file's metadata, whose keys begin with its architecture.
struct Metadata<'a> {
    gguf: &'a Gguf,
    family: &'static Family,
}

impl Metadata<'_> {
    fn config(&self) -> Result<DecoderConfig> {
        let (gguf, family) = (self.gguf, self.family);
        let (hidden, heads) =
            (self.need("embedding_length", MAX_WIDTH)?, self.need("attention.head_count", MAX_WIDTH)?);
        let head_width = self.size("attention.key_length", MAX_WIDTH)?.unwrap_or((hidden / heads).max(1));
        if self.size("attention.value_length", MAX_WIDTH)?.is_some_and(|n| n != head_width) {
            let what = "its keys and values differ in width, which is not served here; use another plugin";
            return Err(unsupported(gguf, what));
        }
        let (all, unused_layers) = (self.need("block_count", MAX_LAYERS)?, self.drafting_layers()?);
        let count = all.checked_sub(unused_layers).filter(|count| *count > 0).ok_or_else(|| {
            gguf.corrupt(format!("{unused_layers} of its {all} layers are for drafting; convert the model again"))
        })?;
        let recurrent = self.recurrent_layers(all)?;
        let experts = self.experts()?;
        let window = self.window()?;
        let vocabulary = gguf.tensors().tensor(GGUF_NAMES.embedding)?.dimensions.get(1).copied().unwrap_or(0);
        if vocabulary == 0 || vocabulary > u32::MAX as usize {
            return Err(gguf.corrupt("the tensor token_embd.weight has no rows; convert the model again"));
        }
        let scale = |key: &str| Ok::<_, Error>(self.factor(key)?.unwrap_or(1.0));
        let (is_near, near_width) = (self.near_layers(count)?, self.near_width(head_width)?);
        let kv_heads = self.of_layers("attention.head_count_kv", all)?.unwrap_or_else(|| vec![heads; all]);
        let inner = match (self.of_layers("feed_forward_length", all)?, experts) {
            (Some(inner), _) => inner,
            (None, Some(experts)) => vec![experts.feed_forward; all],
            (None, None) => return Err(self.missing("feed_forward_length")),
        };
        let mut layers: Vec<LayerConfig> = (0..count)
            .map(|i| {
                let layer = family.layer(i, window.filter(|_| is_near(i)), recurrent[i]);
                LayerConfig {
                    has_experts: experts.is_some(),
                    kv_heads: kv_heads[i],
                    head_width: if layer.window.is_some() { near_width } else { head_width },
                    feed_forward: inner[i],
                    ..layer
                }
            })
            .collect();
        let shared = gguf.integer(&self.key("attention.shared_kv_layers"))?.unwrap_or(0);
        family::share_keys(&mut layers, usize::try_from(shared).unwrap_or(usize::MAX))
            .map_err(|what| gguf.corrupt(format!("{what}; convert the model again")))?;
        let config = DecoderConfig {
            names: family.gguf_names,
            layers,
            unused_layers,
            hidden,
            heads,
            rotaries: self.rotaries(head_width)?,
            rope_order: family.gguf_order,
            norms: family.norms,
            norm_epsilon: self
                .positive("attention.layer_norm_rms_epsilon")?
                .ok_or_else(|| self.missing("attention.layer_norm_rms_epsilon"))?,
            // Converters have added it.
            norm_offset: 0.0,
            sees_all: false,
            has_head_norms: family.has_head_norms,
            has_value_norms: family.has_value_norms,
            has_sinks: family.has_sinks,
            biases: family.biases,
            has_fused_attention: family.has_fused_attention,
            has_fused_network: family.has_fused_network,
            has_query_gates: family.has_query_gates,
            recurrence: self.recurrence()?,
            activation: family.activation,
            experts,
            has_network_beside: family.mixture == Mixture::Beside,
            layer_inputs: match gguf.integer(&self.key("embedding_length_per_layer_input"))? {
                None | Some(0) => None,
                Some(_) => self.size("embedding_length_per_layer_input", MAX_WIDTH)?,
            },
            has_layer_scales: family.has_layer_scales,
            embedding_scale: if family.scales_embeddings { (hidden as f32).sqrt() } else { scale("embedding_scale")? },
            residual_scale: scale("residual_scale")?,
            attention_scale: match self.factor("attention.scale")? {
                Some(scale) => scale,
                None => {
                    family.attention_scale.unwrap_or_else(|| attention_scale(family, count, hidden, heads, head_width))
                }
            },
            attention_cap: self.factor("attn_logit_softcapping")?,
            query_growth: self.query_growth()?,
            logit_scale: 1.0 / scale("logit_scale")?,
            logit_cap: self.factor("final_logit_softcapping")?,
            context: self.need("context_length", MAX_CONTEXT)?,
            vocabulary,
        };
        check(&config).map_err(|what| gguf.corrupt(format!("{what}; convert the model again")))?;
        Ok(config)
    }

    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.family.gguf)
    }

    fn missing(&self, key: &str) -> Error {
        self.gguf.corrupt(format!("the metadata `{}` is missing; convert the model again", self.key(key)))
    }

    fn size(&self, key: &str, most: u64) -> Result<Option<usize>> {
        let key = self.key(key);
        match self.gguf.integer(&key)? {
            None => Ok(None),
            Some(n) if (1..=most).contains(&n) => Ok(Some(n as usize)),
            Some(n) => {
                Err(self.gguf.corrupt(format!("`{key}` is {n} and must be from 1 to {most}; convert the model again")))
            }
        }
    }

    fn need(&self, key: &str, most: u64) -> Result<usize> {
        self.size(key, most)?.ok_or_else(|| self.missing(key))
    }

    /// A number above 0 by which something is scaled or kept small; 0 stands for none.
    fn factor(&self, key: &str) -> Result<Option<f32>> {
        if self.gguf.number(&self.key(key))? == Some(0.0) { Ok(None) } else { self.positive(key) }
    }

    fn positive(&self, key: &str) -> Result<Option<f32>> {
        let key = self.key(key);
        match self.gguf.number(&key)? {
            None => Ok(None),
            Some(value) if value.is_finite() && value > 0.0 => Ok(Some(value as f32)),
            Some(value) => {
                Err(self.gguf.corrupt(format!("`{key}` is {value} and must be above 0; convert the model again")))
            }
        }
    }

    fn experts(&self) -> Result<Option<Experts>> {
        if self.family.mixture != Mixture::InPlace {
            let count = self.gguf.integer(&self.key("expert_count"))?.unwrap_or(0);
            if self.family.mixture == Mixture::None && count > 0 {
                let what = format!(
                    "it is a mixture of experts of the kind `{}`, which is not served here; `engine: llama-server` serves it",
                    self.family.gguf
                );
                return Err(unsupported(self.gguf, &what));
            }
            if count == 0 {
                return Ok(None);
            }
        }
        let count = self.need("expert_count", MAX_EXPERTS)?;
        let used = self.need("expert_used_count", MAX_EXPERTS)?;
        let feed_forward = self.need("expert_feed_forward_length", MAX_WIDTH)?;
        let shared = self.size("expert_shared_feed_forward_length", MAX_WIDTH)?;
        Ok(Some(Experts { count, used, feed_forward, is_normalised: true, shared }))
    }

    /// Layers behind the last one, which draft tokens.
    fn drafting_layers(&self) -> Result<usize> {
        let layers = self.gguf.integer(&self.key("nextn_predict_layers"))?.unwrap_or(0);
        Ok(usize::try_from(layers).unwrap_or(usize::MAX))
    }

    /// A size of each layer; in most files one of all. 0 is there only where a layer has none.
    fn of_layers(&self, name: &str, all: usize) -> Result<Option<Vec<usize>>> {
        let key = self.key(name);
        if !self.gguf.is_list(&key) {
            return Ok(self.size(name, MAX_WIDTH)?.map(|size| vec![size; all]));
        }
        let sizes = self.gguf.integers(&key)?.unwrap_or_default();
        let is_sound = |size: &i32| (0..=MAX_WIDTH as i32).contains(size);
        if sizes.len() != all || !sizes.iter().all(is_sound) {
            let what = format!("`{key}` does not have a number of each of {all} layers");
            return Err(self.gguf.corrupt(format!("{what}; convert the model again")));
        }
        Ok(Some(sizes.into_iter().map(|size| size as usize).collect()))
    }

    /// Width of a head in layers with windows.
    fn near_width(&self, head_width: usize) -> Result<usize> {
        let width = self.size("attention.key_length_swa", MAX_WIDTH)?.unwrap_or(head_width);
        if self.size("attention.value_length_swa", MAX_WIDTH)?.is_some_and(|values| values != width) {
            let what = "its keys and values differ in width, which is not served here; use another plugin";
            return Err(unsupported(self.gguf, what));
        }
        Ok(width)
    }

    /// Which layers have no keys and values, of all that the file has.
    fn recurrent_layers(&self, all: usize) -> Result<Vec<bool>> {
        let of_all = |key: &str, layers: Vec<bool>| match layers.len() == all {
            true => Ok(layers),
            false => Err(self
                .gguf
                .corrupt(format!("`{key}` does not say it of each of {all} layers; convert the model again"))),
        };
        match self.family.recurrent {
            Recurrent::None => Ok(vec![false; all]),
            Recurrent::ShortConvolution => {
                let key = self.key("attention.head_count_kv");
                let heads = if self.gguf.is_list(&key) { self.gguf.integers(&key)? } else { None };
                heads
                    .map_or(Ok(vec![false; all]), |heads| of_all(&key, heads.iter().map(|heads| *heads == 0).collect()))
            }
            Recurrent::DeltaNet => {
                let key = self.key("attention.recurrent_layers");
                if let Some(layers) = self.gguf.flags(&key)? {
                    return of_all(&key, layers);
                }
                let every = self.size("full_attention_interval", MAX_LAYERS)?.unwrap_or(4);
                Ok((1..=all).map(|layer| !layer.is_multiple_of(every)).collect())
            }
        }
    }

    /// What layers without keys and values are like.
    fn recurrence(&self) -> Result<Option<Recurrence>> {
        // Earlier rows are one less than the kernel has.
        let taps = |key: &str| self.need(key, MAX_KERNEL).map(|kernel| kernel - 1);
        Ok(match self.family.recurrent {
            Recurrent::None => None,
            Recurrent::ShortConvolution => Some(Recurrence::ShortConvolution { taps: taps("shortconv.l_cache")? }),
            Recurrent::DeltaNet => {
                let heads = self.need("ssm.time_step_rank", MAX_WIDTH)?;
                let values = self.need("ssm.inner_size", MAX_WIDTH)?;
                if !values.is_multiple_of(heads) {
                    let what = format!("{heads} heads do not divide `{}`, {values}", self.key("ssm.inner_size"));
                    return Err(self.gguf.corrupt(format!("{what}; convert the model again")));
                }
                Some(Recurrence::DeltaNet(DeltaNet {
                    key_heads: self.need("ssm.group_count", MAX_WIDTH)?,
                    heads,
                    key_width: self.need("ssm.state_size", MAX_WIDTH)?,
                    value_width: values / heads,
                    taps: taps("ssm.conv_kernel")?,
                    is_grouped: false,
                }))
            }
        })
    }

    /// Tokens that layers with windows see.
    fn window(&self) -> Result<Option<usize>> {
        // Some converters write 0, and older ones nothing, for none.
        let key = self.key("attention.sliding_window");
        match self.gguf.integer(&key)? {
            Some(0) | None => Ok(None),
            Some(_) => self.size("attention.sliding_window", MAX_CONTEXT),
        }
    }

    /// Which layers have windows.
    fn near_layers(&self, count: usize) -> Result<impl Fn(usize) -> bool> {
        let key = self.key("attention.sliding_window_pattern");
        let (mut list, mut windows) = (None, self.family.windows);
        if self.gguf.is_list(&key) {
            list = self.gguf.flags(&key)?;
            if list.as_ref().is_some_and(|list| list.len() != count) {
                let message = format!("`{key}` does not say it of each of {count} layers; convert the model again");
                return Err(self.gguf.corrupt(message));
            }
        } else if let Some(every) = self.size("attention.sliding_window_pattern", MAX_LAYERS)? {
            windows = Windows::AllBut(every);
        }
        Ok(move |layer: usize| list.as_ref().map_or_else(|| windows.has(layer), |list| list[layer]))
    }

    /// The rotary embedding of most layers, and behind it that of layers with windows if they have one of their own.
    fn rotaries(&self, head_width: usize) -> Result<Vec<Rotary>> {
        let width = self.size("rope.dimension_count", MAX_WIDTH)?.unwrap_or(head_width);
        let base = self.positive("rope.freq_base")?.unwrap_or(10_000.0);
        let mut rotaries = vec![self.scaled(Plain { width, base })?];
        if let Some(usual) = self.family.window_rope_base {
            let width = self.size("rope.dimension_count_swa", MAX_WIDTH)?.unwrap_or(width);
            rotaries.push(Rotary::plain(width, self.positive("rope.freq_base_swa")?.unwrap_or(usual)));
        }
        Ok(rotaries)
    }

    fn scaled(&self, plain: Plain) -> Result<Rotary> {
        let (gguf, kind_key) = (self.gguf, self.key("rope.scaling.type"));
        let factor = self.factor("rope.scaling.factor")?;
        // Of a file that does not say how, they are scaled linearly; older converters had a key of its own for that.
        match gguf.text(&kind_key)? {
            Some("none") => Ok(plain.divided(1.0, self.divisors(ROPE_DIVISORS, plain)?)),
            None | Some("linear") => {
                let factor = factor.or(self.factor("rope.scale_linear")?).unwrap_or(1.0);
                if let (Some(short), Some(long)) =
                    (self.divisors(ROPE_FACTORS[0], plain)?, self.divisors(ROPE_FACTORS[1], plain)?)
                {
                    return self.longrope(plain, short, long);
                }
                Ok(plain.divided(factor, self.divisors(ROPE_DIVISORS, plain)?))
            }
            Some("longrope") => {
                let need = |name: &str| {
                    let missing = || gguf.corrupt(format!("the tensor {name} is missing; convert the model again"));
                    self.divisors(name, plain)?.ok_or_else(missing)
                };
                self.longrope(plain, need(ROPE_FACTORS[0])?, need(ROPE_FACTORS[1])?)
            }
            Some("yarn") => self.yarn(plain, factor.ok_or_else(|| self.missing("rope.scaling.factor"))?),
            Some(other) => Err(unsupported(
                gguf,
                &format!(
                    "its positions are scaled by `{other}`, and known here are none, linear, yarn and longrope; `engine: llama-server` serves it"
                ),
            )),
        }
    }

    /// What a tensor says each pair's frequency is divided by, `[width / 2]`.
    fn divisors(&self, name: &str, plain: Plain) -> Result<Option<Vec<f32>>> {
        let tensors = self.gguf.tensors();
        if !tensors.has_tensor(name) {
            return Ok(None);
        }
        tensors.vector(name, plain.width / 2).map(Some)
    }

    fn longrope(&self, plain: Plain, short: Vec<f32>, long: Vec<f32>) -> Result<Rotary> {
        let trained = self.need("rope.scaling.original_context_length", MAX_CONTEXT)?;
        let magnitude = self.factor("rope.scaling.attn_factor")?.unwrap_or(1.0);
        Ok(plain.longrope(short, long, trained, magnitude))
    }

    fn yarn(&self, plain: Plain, factor: f32) -> Result<Rotary> {
        let told = |name: &str| -> Result<Option<f64>> {
            let told = self.gguf.number(&self.key(&format!("rope.scaling.{name}")))?;
            Ok(told.filter(|told| told.is_finite() && *told >= 0.0))
        };
        let factor = f64::from(factor);
        let trained = self.need("rope.scaling.original_context_length", MAX_CONTEXT)? as f64;
        // What DeepSeek calls `mscale_all_dim`: 0 is none.
        let share = told("yarn_log_multiplier")?.unwrap_or(0.0);
        let all = if share > 0.0 { yarn_magnitude(factor, share) } else { 1.0 };
        let magnitude = told("yarn_attn_factor")?.or(told("attn_factor")?).filter(|told| *told > 0.0);
        Ok(plain.yarn(Yarn {
            factor,
            trained,
            fast: told("yarn_beta_fast")?.unwrap_or(32.0),
            slow: told("yarn_beta_slow")?.unwrap_or(1.0),
            ramp: told("yarn_ext_factor")?.unwrap_or(1.0),
            magnitude: magnitude.unwrap_or_else(|| yarn_magnitude(factor, 1.0) / all),
            has_whole_pairs: self.family.yarn_has_whole_pairs,
        }))
    }

    fn query_growth(&self) -> Result<Option<QueryGrowth>> {
        let Some(beta) = self.factor("attention.temperature_scale")? else { return Ok(None) };
        let from = match self.size("attention.temperature_length", MAX_CONTEXT)? {
            Some(from) => from,
            None => self.need("rope.scaling.original_context_length", MAX_CONTEXT)?,
        };
        Ok(Some(QueryGrowth { beta, from }))
    }
}

fn unsupported(gguf: &Gguf, what: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("{}: {what}", gguf.name()))
}
