//! A model's files: what Hugging Face's transformers and sentence-transformers keep in a folder.

use std::path::{Path, PathBuf};

use aihost_engine::files::Tensors;
use aihost_plugin_api::{LoadRequest, Result};
use aihost_support::decoder::family::Family;
use aihost_support::decoder::folder::Folder;
use aihost_support::roles::beside;
use aihost_support::settings::Settings;
use serde::Deserialize;
use serde_json::Value;

use crate::config::{self, Config};
use crate::dense::Dense;
use crate::network::NetworkConfig;
use crate::pooling::Pooling;

/// The files of a model, opened: what says what it is has been read, its weights are mapped.
#[derive(Debug)]
pub struct ModelFiles {
    pub tensors: Tensors,
    pub config: NetworkConfig,
    pub tokenizer: PathBuf,
    /// What kind of model it says it is.
    pub architecture: String,
    /// How it makes one vector of a text, if that is said.
    pub pooling: Option<Pooling>,
    /// What stands behind the pooling.
    pub dense: Vec<Dense>,
    /// Whether vectors are to have a length of 1, if that is said.
    pub is_normalised: Option<bool>,
    /// Tokens that it was taught to read of a text, if that is said.
    pub trained: Option<usize>,
}

/// `1_Pooling/config.json` of sentence-transformers.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PoolingFile {
    pooling_mode_cls_token: bool,
    pooling_mode_mean_tokens: bool,
    pooling_mode_max_tokens: bool,
    pooling_mode_lasttoken: bool,
    /// Newer files.
    pooling_mode: Option<String>,
}

/// One of `modules.json`.
#[derive(Debug, Deserialize)]
struct Module {
    #[serde(rename = "type")]
    kind: String,
    /// Its folder, beside the others.
    #[serde(default)]
    path: String,
}

/// `sentence_bert_config.json`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SentenceFile {
    max_seq_length: Option<usize>,
}

impl ModelFiles {
    /// Role `model` is a folder, a safetensors file, or the index or first of several; `config`, `tokenizer`, `pooling`
    /// (1_Pooling/config.json), `modules` and `sentence_bert_config` lie beside it under their usual names unless they are named. The last
    /// three may be missing.
    ///
    /// # Errors
    /// `MissingFile`, `CorruptFile` and `Unsupported`, each of which names its file.
    pub fn open(load: &LoadRequest) -> Result<Self> {
        let path = beside(load, "config", "config.json")?;
        let needs = "a model needs its config.json, under role `config` or beside its weights";
        let parsed: Value = Settings(&path).json()?.ok_or_else(|| Settings(&path).missing(needs))?;
        let architecture = parsed["model_type"].as_str().unwrap_or_default().to_owned();
        let (tensors, config) = network(load, &path, parsed, &architecture)?;
        let pooling_path = beside(load, "pooling", "1_Pooling/config.json")?;
        let pooling: Option<PoolingFile> = Settings(&pooling_path).json()?;
        let modules_path = beside(load, "modules", "modules.json")?;
        let modules: Option<Vec<Module>> = Settings(&modules_path).json()?;
        let sentence: SentenceFile =
            Settings(&beside(load, "sentence_bert_config", "sentence_bert_config.json")?).json()?.unwrap_or_default();
        let all = modules.as_deref().unwrap_or_default();
        Ok(Self {
            dense: dense(&modules_path, all, config.hidden())?,
            tensors,
            config,
            tokenizer: beside(load, "tokenizer", "tokenizer.json")?,
            architecture,
            pooling: pooling.map(|file| file.pooling(&pooling_path)).transpose()?,
            is_normalised: modules.map(|all| all.iter().any(|module| module.kind.ends_with("Normalize"))),
            trained: sentence.max_seq_length,
        })
    }

    /// Elements of a text's vector.
    pub fn width(&self) -> usize {
        self.dense.last().map_or(self.config.hidden(), Dense::width)
    }
}

/// A model's weights and its shape: a decoder's where its kind is one of these, else an encoder's.
fn network(load: &LoadRequest, path: &Path, parsed: Value, kind: &str) -> Result<(Tensors, NetworkConfig)> {
    if Family::of_hugging_face(kind).is_some() {
        let folder = Folder::of(path.to_owned(), parsed)?;
        let tensors = folder.tensors(load.file("model")?)?;
        let config = folder.decoder(&tensors)?;
        return Ok((tensors, NetworkConfig::Decoder(Box::new(config))));
    }
    let parsed: Config = serde_json::from_value(parsed).map_err(|error| Settings(path).corrupt(error.to_string()))?;
    let config = config::read(path, &parsed)?;
    let tensors = Tensors::open(load.file("model")?)?;
    check_scorer(path, &parsed, &tensors, config.names.scorer[2])?;
    Ok((tensors, NetworkConfig::Encoder(config)))
}

/// The layers behind the pooling that `modules.json` names, of vectors so wide.
fn dense(modules: &Path, all: &[Module], mut width: usize) -> Result<Vec<Dense>> {
    let mut layers = Vec::new();
    for module in all.iter().filter(|module| module.kind.ends_with("Dense")) {
        let folder = modules.parent().unwrap_or(Path::new("")).join(&module.path);
        let layer = Dense::open(&folder, width)?;
        width = layer.width();
        layers.push(layer);
    }
    Ok(layers)
}

/// That what makes a score, if there is anything, is of the kind that is served.
fn check_scorer(path: &Path, parsed: &Config, tensors: &Tensors, scorer: &str) -> Result<()> {
    let out = format!("{scorer}.weight");
    if !tensors.has_tensor(&out) {
        return Ok(());
    }
    let kinds = tensors.tensor(&out)?.dimensions.get(1).copied().unwrap_or(0);
    let what = if kinds != 1 {
        format!("it sorts texts into {kinds} kinds, and candle-embed serves models of one score")
    } else if parsed.classifier_pooling().is_some_and(|how| how != "cls") {
        "its score is of more than the first token, which candle-embed does not serve".to_owned()
    } else if parsed.classifier_activation().is_some_and(|how| how != "gelu") {
        "its score has another activation than `gelu`, which candle-embed does not serve".to_owned()
    } else {
        return Ok(());
    };
    Err(Settings(path).unsupported(what))
}

impl PoolingFile {
    fn pooling(&self, path: &Path) -> Result<Pooling> {
        let named = match self.pooling_mode.as_deref() {
            Some("cls") => Some(Pooling::Cls),
            Some("mean") => Some(Pooling::Mean),
            Some("max") => Some(Pooling::Max),
            Some("lasttoken") => Some(Pooling::Last),
            _ => None,
        };
        let flags = [
            (self.pooling_mode_cls_token, Pooling::Cls),
            (self.pooling_mode_mean_tokens, Pooling::Mean),
            (self.pooling_mode_max_tokens, Pooling::Max),
            (self.pooling_mode_lasttoken, Pooling::Last),
        ];
        let set: Vec<Pooling> = flags.into_iter().filter(|(is_set, _)| *is_set).map(|(_, pooling)| pooling).collect();
        match (named, set.as_slice()) {
            (Some(pooling), _) => Ok(pooling),
            (None, [pooling]) => Ok(*pooling),
            _ => {
                let what = "it names no way to make one vector of a text that candle-embed knows; set `pooling` in the entry's options";
                Err(Settings(path).unsupported(what))
            }
        }
    }
}
