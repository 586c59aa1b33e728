//! Models as Hugging Face's transformers keeps them: safetensors beside `config.json` and a tokenizer.

use std::path::{Path, PathBuf};

use aihost_engine::files::{TensorType, Tensors};
use aihost_engine::nn::decoder::DecoderConfig;
use aihost_plugin_api::{LoadRequest, Result};
use aihost_support::decoder::folder::{Folder, Ids};
use aihost_support::roles::beside;
use aihost_support::settings::Settings;
use serde::Deserialize;

use crate::sampler::SamplingDefaults;
use crate::template::Templates;

/// A model's files. Opening reads what says what it is; the tokenizer is left to who builds it.
#[derive(Debug)]
pub struct HuggingFace {
    tensors: Tensors,
    folder: Folder,
    tokenizer: PathBuf,
    texts: TokenizerConfig,
    generation: GenerationConfig,
    templates: Templates,
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

impl HuggingFace {
    /// Role `model` is a folder, a safetensors file, or the index or first of several; `config`, `tokenizer`, `tokenizer_config`,
    /// `generation_config`, `chat_template` and `tool_use_template` lie beside it under their usual names unless they are named. The last
    /// four may be missing.
    ///
    /// # Errors
    /// `MissingFile` and `CorruptFile` that name the file.
    pub fn open(load: &LoadRequest) -> Result<Self> {
        let folder = Folder::open(beside(load, "config", "config.json")?)?;
        let tensors = folder.tensors(load.file("model")?)?;
        let tokenizer = beside(load, "tokenizer", "tokenizer.json")?;
        let texts: TokenizerConfig =
            Settings(&beside(load, "tokenizer_config", "tokenizer_config.json")?).json()?.unwrap_or_default();
        let generation =
            Settings(&beside(load, "generation_config", "generation_config.json")?).json()?.unwrap_or_default();
        let templates = templates(load, &texts)?;
        Ok(Self { tensors, folder, tokenizer, texts, generation, templates })
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
        self.folder.architecture()
    }

    /// The type of most weights.
    pub fn stored(&self) -> Option<TensorType> {
        self.tensors.iter().map(|(_, info)| info).max_by_key(|info| info.range.len()).map(|info| info.dtype)
    }

    /// What is known of special tokens.
    pub fn specials(&self) -> Specials {
        let text = |of: &Option<TokenText>| of.as_ref().map(|token| token.text().to_owned());
        let told = [self.generation.eos_token_id.as_ref(), self.folder.ends()];
        Specials {
            bos: text(&self.texts.bos_token),
            eos: text(&self.texts.eos_token),
            bos_id: self.folder.begin(),
            ends: told.into_iter().flatten().flat_map(Ids::all).copied().collect(),
            add_bos: self.texts.add_bos_token,
        }
    }

    /// The model's shape, checked.
    ///
    /// # Errors
    /// `Unsupported` for another architecture or variant, `CorruptFile` for impossible values.
    pub fn config(&self) -> Result<DecoderConfig> {
        let config = self.folder.decoder(&self.tensors)?;
        self.folder.check_output(&self.tensors, &config)?;
        Ok(config)
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
    let tool_use = Settings(&beside(load, "tool_use_template", "additional_chat_templates/tool_use.jinja")?).text()?;
    Ok(Templates {
        default: Settings(&path).text()?.or_else(|| named("default")),
        tool_use: tool_use.or_else(|| named("tool_use")),
    })
}
