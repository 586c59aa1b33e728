//! Models as Hugging Face's transformers keeps them: safetensors beside `config.json` and a tokenizer.

use std::path::{Path, PathBuf};

use aihost_engine::files::{TensorType, Tensors};
use aihost_engine::nn::decoder::{DecoderConfig, HUGGING_FACE_NAMES};
use aihost_engine::ops::RotaryOrder;
use aihost_plugin_api::{Error, ErrorKind, LoadRequest, Result};
use aihost_support::roles::beside;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::config::{self, MAX_CONTEXT, MAX_LAYERS, MAX_WIDTH};
use crate::sampler::SamplingDefaults;
use crate::template::Templates;

/// Most bytes of a file of settings or of a template.
const JSON_BYTES: u64 = 8 << 20;

/// A model's files. Opening reads what says what it is; the tokenizer is left to who builds it.
#[derive(Debug)]
pub struct HuggingFace {
    tensors: Tensors,
    /// Where `config.json` lies, for messages.
    path: PathBuf,
    config: Config,
    tokenizer: PathBuf,
    texts: TokenizerConfig,
    generation: GenerationConfig,
    templates: Templates,
}

/// `config.json` of `LlamaForCausalLM`; what it leaves out is transformers' default.
#[derive(Debug, Deserialize)]
struct Config {
    model_type: String,
    hidden_size: u64,
    intermediate_size: u64,
    num_hidden_layers: u64,
    num_attention_heads: u64,
    num_key_value_heads: Option<u64>,
    head_dim: Option<u64>,
    vocab_size: u64,
    #[serde(default = "positions")]
    max_position_embeddings: u64,
    #[serde(default = "epsilon")]
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    /// Older files.
    rope_scaling: Option<Rope>,
    /// Newer files; has the base too.
    rope_parameters: Option<Rope>,
    #[serde(default = "silu")]
    hidden_act: String,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    tie_word_embeddings: bool,
    quantization_config: Option<serde_json::Value>,
    bos_token_id: Option<Ids>,
    eos_token_id: Option<Ids>,
}

/// How positions are scaled.
#[derive(Clone, Debug, Default, Deserialize)]
struct Rope {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

/// One token, or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Ids {
    One(u32),
    Several(Vec<u32>),
}

impl Ids {
    fn all(&self) -> &[u32] {
        match self {
            Self::One(id) => std::slice::from_ref(id),
            Self::Several(ids) => ids,
        }
    }
}

/// `tokenizer_config.json`, as far as it is heeded.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TokenizerConfig {
    bos_token: Option<TokenText>,
    eos_token: Option<TokenText>,
    add_bos_token: Option<bool>,
    chat_template: Option<TemplateTexts>,
}

/// A token's text, or that with how it is matched.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum TokenText {
    Plain(String),
    Matched { content: String },
}

impl TokenText {
    fn text(&self) -> &str {
        match self {
            Self::Plain(text) | Self::Matched { content: text } => text,
        }
    }
}

/// A chat template, or several with names.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum TemplateTexts {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Debug, Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

/// `generation_config.json`, as far as it is heeded.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct GenerationConfig {
    eos_token_id: Option<Ids>,
    #[serde(flatten)]
    sampling: SamplingDefaults,
}

/// What the settings say of special tokens.
#[derive(Clone, Debug, Default)]
pub struct Specials {
    /// The text of the beginning-of-sequence token.
    pub bos: Option<String>,
    /// The text of the end-of-sequence token.
    pub eos: Option<String>,
    /// Their ids where no text is told.
    pub bos_id: Option<u32>,
    /// All ids that end a turn.
    pub ends: Vec<u32>,
    /// Whether the beginning-of-sequence token is put first; absent if the tokenizer decides.
    pub add_bos: Option<bool>,
}

fn positions() -> u64 {
    2048
}

fn epsilon() -> f64 {
    1e-6
}

fn silu() -> String {
    "silu".to_owned()
}

impl HuggingFace {
    /// Role `model` is a folder, a safetensors file, or the index or first of several; `config`, `tokenizer`, `tokenizer_config`,
    /// `generation_config`, `chat_template` and `tool_use_template` lie beside it under their usual names unless they are named. The last
    /// four may be missing.
    ///
    /// # Errors
    /// [`ErrorKind::MissingFile`] and [`ErrorKind::CorruptFile`] that name the file.
    pub fn open(load: &LoadRequest) -> Result<Self> {
        let path = beside(load, "config", "config.json")?;
        let needs = "a model of safetensors needs its config.json, under role `config` or beside its weights";
        let config = json(&path)?.ok_or_else(|| missing(&path, needs))?;
        let tensors = Tensors::open(load.file("model")?)?;
        let tokenizer = beside(load, "tokenizer", "tokenizer.json")?;
        let texts: TokenizerConfig =
            json(&beside(load, "tokenizer_config", "tokenizer_config.json")?)?.unwrap_or_default();
        let generation = json(&beside(load, "generation_config", "generation_config.json")?)?.unwrap_or_default();
        let templates = templates(load, &texts)?;
        Ok(Self { tensors, path, config, tokenizer, texts, generation, templates })
    }

    /// The weights.
    pub fn tensors(&self) -> &Tensors {
        &self.tensors
    }

    /// The tokenizer's file.
    pub fn tokenizer(&self) -> &Path {
        &self.tokenizer
    }

    /// The model's own chat templates.
    pub fn templates(&self) -> &Templates {
        &self.templates
    }

    /// How the model is to be sampled where a request does not say, by `generation_config.json`.
    pub fn sampling(&self) -> &SamplingDefaults {
        &self.generation.sampling
    }

    /// What kind of model it is.
    pub fn architecture(&self) -> &str {
        &self.config.model_type
    }

    /// The type of most weights.
    pub fn stored(&self) -> Option<TensorType> {
        self.tensors.iter().map(|(_, info)| info).max_by_key(|info| info.range.len()).map(|info| info.dtype)
    }

    /// What is known of special tokens.
    pub fn specials(&self) -> Specials {
        let text = |of: &Option<TokenText>| of.as_ref().map(|token| token.text().to_owned());
        let told = [&self.generation.eos_token_id, &self.config.eos_token_id];
        Specials {
            bos: text(&self.texts.bos_token),
            eos: text(&self.texts.eos_token),
            bos_id: self.config.bos_token_id.as_ref().and_then(|ids| ids.all().first().copied()),
            ends: told.into_iter().flatten().flat_map(Ids::all).copied().collect(),
            add_bos: self.texts.add_bos_token,
        }
    }

    /// The model's shape, checked.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for another architecture or variant, [`ErrorKind::CorruptFile`] for impossible values.
    pub fn config(&self) -> Result<DecoderConfig> {
        let c = &self.config;
        self.check_variant()?;
        let size = |name: &str, value: u64, most: u64| -> Result<usize> {
            if !(1..=most).contains(&value) {
                return Err(self.corrupt(format!("`{name}` is {value} and must be from 1 to {most}")));
            }
            Ok(value as usize)
        };
        let hidden = size("hidden_size", c.hidden_size, MAX_WIDTH)?;
        let heads = size("num_attention_heads", c.num_attention_heads, MAX_WIDTH)?;
        let kv_heads = size("num_key_value_heads", c.num_key_value_heads.unwrap_or(heads as u64), MAX_WIDTH)?;
        let head_width = size("head_dim", c.head_dim.unwrap_or((hidden / heads) as u64), MAX_WIDTH)?;
        let rope = self.rope();
        let rope_base = self.positive("rope_theta", rope.rope_theta.or(c.rope_theta).unwrap_or(10_000.0))?;
        let config = DecoderConfig {
            names: &HUGGING_FACE_NAMES,
            layers: size("num_hidden_layers", c.num_hidden_layers, MAX_LAYERS)?,
            hidden,
            feed_forward: size("intermediate_size", c.intermediate_size, MAX_WIDTH)?,
            heads,
            kv_heads,
            head_width,
            rope_width: head_width,
            rope_base,
            rope_divisors: self.rope_divisors(&rope, head_width, f64::from(rope_base))?,
            rope_order: RotaryOrder::Halves,
            norm_epsilon: self.positive("rms_norm_eps", c.rms_norm_eps)?,
            context: size("max_position_embeddings", c.max_position_embeddings, MAX_CONTEXT)?,
            vocabulary: size("vocab_size", c.vocab_size, u64::from(u32::MAX))?,
        };
        config::check(&config).map_err(|what| self.corrupt(what))?;
        if !c.tie_word_embeddings {
            // The table of tokens stands for it only where that is said.
            self.tensors.tensor(HUGGING_FACE_NAMES.head)?;
        }
        Ok(config)
    }

    /// Whether it is the plain Llama that is served here.
    fn check_variant(&self) -> Result<()> {
        let c = &self.config;
        let what = if c.model_type != "llama" {
            format!("the architecture is `{}`, and candle-llm serves `llama` only", c.model_type)
        } else if let Some(how) = &c.quantization_config {
            let method = how["quant_method"].as_str().unwrap_or("an unnamed method");
            format!("its weights are quantised by {method}, and only plain F32, F16 and BF16 are read in this form")
        } else if c.hidden_act != "silu" {
            format!("its activation is `{}`, and candle-llm serves `silu`", c.hidden_act)
        } else if c.attention_bias || c.mlp_bias {
            "its layers have biases, which candle-llm does not serve".to_owned()
        } else {
            return Ok(());
        };
        Err(self.unsupported(format!("{what}; use another plugin, or a GGUF file of the model")))
    }

    fn rope(&self) -> Rope {
        self.config.rope_parameters.clone().or_else(|| self.config.rope_scaling.clone()).unwrap_or_default()
    }

    /// What each pair's frequency is divided by, `[width / 2]`.
    fn rope_divisors(&self, rope: &Rope, width: usize, base: f64) -> Result<Vec<f32>> {
        let need = |name: &str, value: Option<f64>| {
            let value = value.ok_or_else(|| self.corrupt(format!("`{name}` of its rope scaling is missing")))?;
            self.positive(name, value).map(f64::from)
        };
        let pairs = width / 2;
        match rope.rope_type.as_deref() {
            None | Some("default") => Ok(vec![1.0; pairs]),
            Some("linear") => Ok(vec![need("factor", rope.factor)? as f32; pairs]),
            Some("llama3") => {
                // Long waves are slowed by the factor, short ones are not, and those between by a part of it.
                let factor = need("factor", rope.factor)?;
                let low = need("low_freq_factor", rope.low_freq_factor)?;
                let high = need("high_freq_factor", rope.high_freq_factor)?;
                let trained = need("original_max_position_embeddings", rope.original_max_position_embeddings)?;
                if high <= low {
                    return Err(self
                        .corrupt(format!("`high_freq_factor` is {high} and must be above `low_freq_factor`, {low}")));
                }
                let divisor = |pair: usize| {
                    let wave = 2.0 * std::f64::consts::PI * base.powf(2.0 * pair as f64 / width as f64);
                    let kept = ((trained / wave - low) / (high - low)).clamp(0.0, 1.0);
                    (1.0 / ((1.0 - kept) / factor + kept)) as f32
                };
                Ok((0..pairs).map(divisor).collect())
            }
            Some(other) => Err(self.unsupported(format!(
                "its positions are scaled by `{other}`, which candle-llm does not serve; use another plugin"
            ))),
        }
    }

    fn positive(&self, name: &str, value: f64) -> Result<f32> {
        if !(value.is_finite() && value > 0.0) {
            return Err(self.corrupt(format!("`{name}` is {value} and must be above 0")));
        }
        Ok(value as f32)
    }

    fn corrupt(&self, what: impl AsRef<str>) -> Error {
        corrupt(&self.path, what.as_ref())
    }

    fn unsupported(&self, what: impl AsRef<str>) -> Error {
        Error::new(ErrorKind::Unsupported, format!("{}: {}", self.path.display(), what.as_ref()))
    }
}

/// The chat templates: those in files of their own go before those of `tokenizer_config.json`.
fn templates(load: &LoadRequest, texts: &TokenizerConfig) -> Result<Templates> {
    let path = beside(load, "chat_template", "chat_template.jinja")?;
    let named = |wanted: &str| match &texts.chat_template {
        Some(TemplateTexts::Named(all)) => all.iter().find(|one| one.name == wanted).map(|one| one.template.clone()),
        Some(TemplateTexts::One(only)) if wanted == "default" => Some(only.clone()),
        _ => None,
    };
    let tool_use = text(&beside(load, "tool_use_template", "additional_chat_templates/tool_use.jinja")?)?;
    Ok(Templates {
        default: text(&path)?.or_else(|| named("default")),
        tool_use: tool_use.or_else(|| named("tool_use")),
    })
}

/// A file's text; nothing if there is no such file.
fn text(path: &Path) -> Result<Option<String>> {
    let Ok(metadata) = path.metadata() else { return Ok(None) };
    if metadata.len() > JSON_BYTES {
        return Err(corrupt(path, &format!("it has {} bytes, of at most {JSON_BYTES}", metadata.len())));
    }
    std::fs::read_to_string(path).map(Some).map_err(|error| corrupt(path, &error.to_string()))
}

fn json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let read = |text: String| serde_json::from_str(&text).map_err(|error| corrupt(path, &error.to_string()));
    text(path)?.map(read).transpose()
}

fn corrupt(path: &Path, what: &str) -> Error {
    Error::new(ErrorKind::CorruptFile, format!("{}: {what}; fetch it again", path.display()))
}

fn missing(path: &Path, what_for: &str) -> Error {
    Error::new(ErrorKind::MissingFile, format!("{} does not exist; {what_for}", path.display()))
}
