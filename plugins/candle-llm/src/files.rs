//! A model's files, in whichever form they come.

use aihost_engine::files::tensors::is_gguf;
use aihost_engine::files::{Gguf, Tensors};
use aihost_engine::nn::decoder::DecoderConfig;
use aihost_plugin_api::{Error, ErrorKind, LoadRequest, Result};
use aihost_support::decoder::gguf;

use crate::hugging_face::HuggingFace;
use crate::sampler::{SamplingDefaults, SamplingOrder};
use crate::template::Templates;
use crate::tokenizer::{FillIn, Tokenizer};

/// The files of a model, opened: what says what it is has been read, its weights are mapped.
#[derive(Debug)]
pub enum ModelFiles {
    /// One GGUF file, or all parts of a split one.
    Gguf(Box<Gguf>),
    /// Safetensors beside their settings.
    HuggingFace(Box<HuggingFace>),
}

impl ModelFiles {
    /// Opens the files of a load, by what they hold and not by their names.
    ///
    /// # Errors
    /// [`MissingFile`](aihost_plugin_api::ErrorKind::MissingFile), `CorruptFile` and `Unsupported`, each of which names its file.
    pub fn open(load: &LoadRequest) -> Result<Self> {
        let model = load.file("model")?;
        let ending = model.extension().and_then(|ending| ending.to_str());
        // An index of shards is JSON.
        if model.is_dir() || matches!(ending, Some("safetensors" | "json")) && !is_gguf(model) {
            return Ok(Self::HuggingFace(Box::new(HuggingFace::open(load)?)));
        }
        Ok(Self::Gguf(Box::new(Gguf::open(model)?)))
    }

    /// The weights.
    pub fn tensors(&self) -> &Tensors {
        match self {
            Self::Gguf(gguf) => gguf.tensors(),
            Self::HuggingFace(folder) => folder.tensors(),
        }
    }

    /// The path, for messages.
    pub fn name(&self) -> &str {
        self.tensors().name()
    }

    /// The model's shape, checked.
    ///
    /// # Errors
    /// `Unsupported` for another architecture, `CorruptFile` for missing or impossible values.
    pub fn config(&self) -> Result<DecoderConfig> {
        let config = match self {
            Self::Gguf(gguf) => gguf::read(gguf)?,
            Self::HuggingFace(folder) => folder.config()?,
        };
        if config.sees_all {
            let what = "its tokens see those behind them, so that it writes nothing; `plugin: candle-embed` makes vectors with it";
            return Err(Error::new(ErrorKind::Unsupported, format!("{}: {what}", self.name())));
        }
        Ok(config)
    }

    /// The tokenizer of a model with `vocabulary` embeddings.
    ///
    /// # Errors
    /// `Unsupported` for another kind of tokenizer, `CorruptFile` for one that makes no sense, `MissingFile` if there is none.
    pub fn tokenizer(&self, vocabulary: usize) -> Result<Tokenizer> {
        match self {
            Self::Gguf(gguf) => Tokenizer::of_gguf(gguf, vocabulary),
            Self::HuggingFace(folder) => Tokenizer::of_json(folder.tokenizer(), &folder.specials(), vocabulary),
        }
    }

    /// The model's own chat templates.
    ///
    /// # Errors
    /// `CorruptFile` if one is no text.
    pub fn templates(&self) -> Result<Templates> {
        match self {
            Self::Gguf(gguf) => {
                let text = |key| gguf.text(key).map(|text| text.map(str::to_owned));
                let tool_use = text("tokenizer.chat_template.tool_use")?;
                Ok(Templates { default: text("tokenizer.chat_template")?, tool_use })
            }
            Self::HuggingFace(folder) => Ok(folder.templates().clone()),
        }
    }

    /// How the model is to be sampled where a request does not say.
    ///
    /// # Errors
    /// `CorruptFile` if what says so is no number, or no text.
    pub fn sampling(&self) -> Result<SamplingDefaults> {
        let told = match self {
            Self::Gguf(gguf) => sampling_of(gguf)?,
            Self::HuggingFace(folder) => folder.sampling().clone(),
        };
        Ok(told.checked(self.name()))
    }

    /// What marks a gap in a text, if the model was taught to fill one.
    ///
    /// # Errors
    /// `CorruptFile` if the vocabulary cannot be read.
    pub fn fill_in(&self) -> Result<Option<FillIn>> {
        match self {
            Self::Gguf(gguf) => FillIn::of_gguf(gguf),
            Self::HuggingFace(folder) => FillIn::of_json(folder.tokenizer()),
        }
    }

    /// What kind of model it says it is.
    ///
    /// # Errors
    /// `CorruptFile` if that is no text.
    pub fn architecture(&self) -> Result<Option<&str>> {
        match self {
            Self::Gguf(gguf) => gguf.text("general.architecture"),
            Self::HuggingFace(folder) => Ok(Some(folder.architecture())),
        }
    }

    /// How its weights are stored, by the name that is usual for it.
    ///
    /// # Errors
    /// `CorruptFile` if what says so is no number.
    pub fn quantization(&self) -> Result<Option<String>> {
        Ok(match self {
            Self::Gguf(gguf) => gguf.integer("general.file_type")?.and_then(file_type).map(str::to_owned),
            Self::HuggingFace(folder) => folder.stored().map(|dtype| dtype.to_string()),
        })
    }
}

/// The keys of llama.cpp's llama-arch.cpp, as far as there is something like them here.
fn sampling_of(gguf: &Gguf) -> Result<SamplingDefaults> {
    let number = |name: &str| gguf.number(&format!("general.sampling.{name}"));
    let share = |name: &str| number(name).map(|told| told.map(|number| number as f32));
    for name in ["xtc_probability", "mirostat"] {
        if number(name)?.is_some_and(|number| number > 0.0) {
            tracing::warn!("{}: `general.sampling.{name}` is left out: candle-llm does not have it", gguf.name());
        }
    }
    let order = gguf.text("general.sampling.sequence")?.and_then(|sequence| {
        let place = |name: &str| sequence.split(';').position(|other| other.trim() == name);
        let filters = ["top_k", "top_p", "min_p"].iter().filter_map(|name| place(name)).max();
        let is_last = place("temperature")? > filters?;
        Some(if is_last { SamplingOrder::LlamaCpp } else { SamplingOrder::Transformers })
    });
    Ok(SamplingDefaults {
        temperature: share("temp")?,
        top_p: share("top_p")?,
        top_k: number("top_k")?.map(|k| k as i64),
        min_p: share("min_p")?,
        repetition_penalty: share("penalty_repeat")?,
        order,
    })
}

/// What `general.file_type` stands for (llama.cpp's `llama_ftype`).
fn file_type(number: u64) -> Option<&'static str> {
    Some(match number {
        0 => "F32",
        1 => "F16",
        2 => "Q4_0",
        3 => "Q4_1",
        7 => "Q8_0",
        8 => "Q5_0",
        9 => "Q5_1",
        10 => "Q2_K",
        11 => "Q3_K_S",
        12 => "Q3_K_M",
        13 => "Q3_K_L",
        14 => "Q4_K_S",
        15 => "Q4_K_M",
        16 => "Q5_K_S",
        17 => "Q5_K_M",
        18 => "Q6_K",
        32 => "BF16",
        _ => return None,
    })
}
