//! A model as Hugging Face's transformers keeps it: what its `config.json` and the names of its files say.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

/// Bytes of a `config.json` that are read.
const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// The models that candle-llm serves, as `model_type` calls them, with their activations and whether attention may have biases (its
/// family.rs, whose test looks here).
const CANDLE_MODELS: [(&str, &[&str], bool); 17] = [
    ("llama", SILU, true),
    ("mistral", SILU, true),
    ("ministral3", SILU, true),
    ("qwen2", SILU, true),
    ("qwen3", SILU, false),
    ("qwen3_moe", SILU, false),
    ("qwen3_5_text", SILU, false),
    ("qwen3_5_moe_text", SILU, false),
    ("gemma", GELU, false),
    ("gemma2", GELU, false),
    ("gemma3_text", GELU, false),
    ("gemma4_text", GELU, false),
    ("phi3", SILU, false),
    ("smollm3", SILU, true),
    ("granite", SILU, true),
    ("glm4", SILU, true),
    ("lfm2", SILU, false),
];
const SILU: &[&str] = &["silu"];
const GELU: &[&str] = &["gelu_pytorch_tanh", "gelu"];
/// How it scales positions.
const CANDLE_ROPES: [&str; 7] = ["default", "linear", "llama3", "yarn", "longrope", "su", "proportional"];

/// What there is to decide by.
#[derive(Debug, Default)]
pub(in crate::cli) struct Folder {
    config: Config,
    has_tokenizer: bool,
    has_safetensors: bool,
}

/// `config.json`, as far as it decides.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Config {
    model_type: String,
    hidden_act: Option<String>,
    /// Gemma's, beside an older one that does not count.
    hidden_activation: Option<String>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    quantization_config: Option<Value>,
    rope_scaling: Option<Rope>,
    rope_parameters: Option<Rope>,
    /// Of a model of several kinds of input: what its text decoder is.
    text_config: Option<Box<Self>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Rope {
    #[serde(alias = "type")]
    rope_type: Option<String>,
}

impl Folder {
    /// Looks at these files.
    ///
    /// # Errors
    /// What is wrong with them, as the end of a sentence about their key.
    pub(super) fn look<'a>(files: impl Iterator<Item = &'a PathBuf> + Clone) -> Result<Self, String> {
        let named = |wanted: &str| files.clone().find(|path| path.file_name().is_some_and(|name| name == wanted));
        let Some(config) = named("config.json") else {
            return Err(
                "is neither a GGUF file nor a folder of Hugging Face's form, with its config.json; name the plugin"
                    .to_owned(),
            );
        };
        let is_safetensors = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "safetensors");
        Ok(Self {
            config: read(config).map_err(|why| format!("has a config.json that cannot be read: {why}"))?,
            has_tokenizer: named("tokenizer.json").is_some(),
            has_safetensors: files.clone().any(is_safetensors),
        })
    }

    /// The same by the text of its `config.json` and the names of its files, wherever they are.
    ///
    /// # Errors
    /// The text is none.
    pub(in crate::cli) fn of(config: &[u8], names: &[&str]) -> Result<Self, String> {
        Ok(Self {
            config: serde_json::from_slice(config)
                .map_err(|why| format!("has a config.json that cannot be read: {why}"))?,
            has_tokenizer: names.contains(&"tokenizer.json"),
            has_safetensors: names.iter().any(|name| name.ends_with(".safetensors")),
        })
    }

    /// Why candle-llm does not serve it; nothing if it does.
    pub(in crate::cli) fn why_not_candle(&self) -> Option<String> {
        let config = self.config.text_config.as_deref().unwrap_or(&self.config);
        let rope = config.rope_parameters.as_ref().or(config.rope_scaling.as_ref());
        let rope = rope.and_then(|rope| rope.rope_type.as_deref()).filter(|rope| !CANDLE_ROPES.contains(rope));
        let known = CANDLE_MODELS.iter().find(|(name, ..)| *name == config.model_type);
        let Some((_, activations, may_have_biases)) = known else {
            return Some(format!("candle-llm does not serve the architecture `{}`", config.model_type));
        };
        let activation = config.hidden_activation.as_deref().or(config.hidden_act.as_deref());
        let activation = activation.filter(|name| !activations.contains(name));
        let has_biases = config.mlp_bias == Some(true) || (config.attention_bias == Some(true) && !may_have_biases);
        Some(match () {
            () if config.quantization_config.is_some() || self.config.quantization_config.is_some() => {
                "candle-llm does not read quantised weights of this form".to_owned()
            }
            () if !self.has_safetensors => "candle-llm reads weights of this form as safetensors alone".to_owned(),
            () if !self.has_tokenizer => "candle-llm needs its tokenizer.json".to_owned(),
            () if has_biases => "candle-llm does not serve its kind with these biases".to_owned(),
            () if activation.is_some() => {
                format!("candle-llm does not serve the activation `{}`", activation.unwrap_or_default())
            }
            () if rope.is_some() => format!("candle-llm does not scale positions by `{}`", rope.unwrap_or_default()),
            () => return None,
        })
    }
}

fn read(path: &Path) -> Result<Config, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    serde_json::from_reader(BufReader::new(file.take(CONFIG_BYTES_MAX))).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_candle_llm_does_not_serve_is_told() {
        let why = |config: Value, files: &[&str]| {
            let folder = Folder {
                config: serde_json::from_value(config).unwrap(),
                has_tokenizer: files.contains(&"tokenizer.json"),
                has_safetensors: files.contains(&"model.safetensors"),
            };
            folder.why_not_candle()
        };
        let all = ["tokenizer.json", "model.safetensors"];
        let llama = |key: &str, value: Value| serde_json::json!({"model_type": "llama", key: value});
        assert_eq!(why(llama("vocab_size", 7.into()), &all), None);
        assert_eq!(why(llama("rope_scaling", serde_json::json!({"type": "linear", "factor": 2})), &all), None);
        let several = |text: &str| serde_json::json!({"model_type": "several", "text_config": {"model_type": text}});
        assert_eq!(why(several("gemma3_text"), &all), None);
        for (config, files, words) in [
            (serde_json::json!({"model_type": "qwen3_5"}), &all[..], "`qwen3_5`"),
            (several("mamba"), &all, "`mamba`"),
            (llama("quantization_config", serde_json::json!({})), &all, "quantised"),
            (llama("x", 1.into()), &all[..1], "safetensors"),
            (llama("x", 1.into()), &all[1..], "tokenizer.json"),
            (llama("mlp_bias", true.into()), &all, "biases"),
            (serde_json::json!({"model_type": "qwen3", "attention_bias": true}), &all, "biases"),
            (llama("hidden_act", "gelu".into()), &all, "`gelu`"),
            (serde_json::json!({"model_type": "gemma2", "hidden_activation": "silu"}), &all, "`silu`"),
            (llama("rope_parameters", serde_json::json!({"rope_type": "dynamic"})), &all, "`dynamic`"),
        ] {
            let told = why(config, files).expect(words);
            assert!(told.contains(words), "{told}");
        }
    }
}
