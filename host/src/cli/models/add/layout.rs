//! Models of more files than weights: what the names of their files and their configurations tell. Text models as Hugging Face's
//! transformers keeps them, MusicGen, and encoders and FLUX.1 where they lie on this machine.

use serde_json::Value as Json;
use serde_yaml::Value;

use super::Found;
use crate::cli::auto::folder::Folder;
use crate::cli::auto::weights::CONTEXT_TOKENS;
use crate::cli::failure::CliError;
use crate::cli::migrate::plan::Entry;
use crate::cli::migrate::yaml;
use crate::domain::ByteSize;

/// What an estimate of a folder's model adds to weights and cache, bytes: buffers, and what a driver takes of each process.
const BESIDE_BYTES: u64 = 1 << 30;
/// Such an estimate is rounded up to a multiple of this, bytes.
const ESTIMATE_STEP_BYTES: u64 = 100 << 20;
/// Bytes of a number in a cache that is estimated: halves.
const CACHE_NUMBER_BYTES: u64 = 2;
/// Ends of the class names of models that write.
const WRITERS: [&str; 2] = ["ForCausalLM", "LMHeadModel"];
/// The encoders that candle-embed serves, as `model_type` calls them (its family.rs, whose test looks here).
const ENCODERS: [&str; 6] = ["bert", "roberta", "xlm-roberta", "camembert", "nomic_bert", "modernbert"];
/// What sentence-transformers lists the parts of a model in.
const SENTENCE_MODULES: &str = "modules.json";
/// What to do with all others.
const BY_HAND: &str =
    "write its entry by hand: ADDING_MODELS has the keys, and `aihost plugins info PLUGIN` the options";

/// What was seen of a model.
#[derive(Debug)]
pub(super) struct Seen<'a> {
    /// What it is to be called.
    pub(super) name: String,
    /// Where it is, as it is shown.
    pub(super) from: String,
    /// Its files, those in folders of it left out.
    pub(super) names: Vec<&'a str>,
    /// Its config.json.
    pub(super) config: Option<Vec<u8>>,
    /// Its model_index.json.
    pub(super) pipeline: Option<Vec<u8>>,
    /// Bytes of its weights in safetensors.
    pub(super) bytes: u64,
    /// Whether layers stand behind its pooling, in folders of their own.
    pub(super) has_dense: bool,
}

/// What it is.
enum Kind {
    /// It writes: why candle-llm does not serve it, if so.
    Text(Option<String>),
    MusicGen,
    Flux,
    /// It makes vectors or scores of texts.
    Vectors,
}

impl Seen<'_> {
    /// The entry of a folder on this machine.
    pub(super) fn of_folder(&self, place: Value) -> Result<Found, CliError> {
        match self.kind()? {
            Kind::Text(why) => Ok(self.text(why, "source", place)),
            Kind::MusicGen => Ok(self.other("audio", "musicgen", "source", place)),
            Kind::Flux => Ok(self.other("image", "flux", "files", yaml::mapping([("model", place)]))),
            Kind::Vectors => Ok(self.other("embedding", "candle-embed", "source", place)),
        }
    }

    /// The entry of files that are to be fetched, by their roles.
    pub(super) fn of_files(&self, files: Value) -> Result<Found, CliError> {
        let found = match self.kind()? {
            Kind::Text(why) => self.text(why, "files", files),
            Kind::MusicGen => self.other("audio", "musicgen", "files", files),
            Kind::Flux => {
                return Err(self.not_told("FLUX.1 in diffusers' layout, which is served from a folder of this machine")
                    .hint("fetch the repository as a folder, with the hub's own program say, then `aihost models add FOLDER`"));
            }
            Kind::Vectors if self.has_dense => {
                return Err(self.not_told("layers behind its pooling, which are served from a folder of this machine")
                    .hint("fetch the repository as a folder, with the hub's own program say, then `aihost models add FOLDER`"));
            }
            Kind::Vectors => self.other("embedding", "candle-embed", "files", files),
        };
        Ok(Found { is_fetched: true, ..found })
    }

    fn kind(&self) -> Result<Kind, CliError> {
        if let Some(pipeline) = &self.pipeline {
            let class = json(pipeline).get("_class_name").and_then(Json::as_str).unwrap_or_default().to_owned();
            return match class.as_str() {
                "FluxPipeline" => Ok(Kind::Flux),
                class => Err(self.not_told(&format!("a pipeline `{class}`")).hint(BY_HAND)),
            };
        }
        let Some(text) = &self.config else {
            return Err(self.not_told("files without a GGUF model or a config.json").hint(BY_HAND));
        };
        let config = json(text);
        let model_type = config.get("model_type").and_then(Json::as_str).unwrap_or_default();
        if model_type == "musicgen" {
            return Ok(Kind::MusicGen);
        }
        if ENCODERS.contains(&model_type) && self.bytes > 0 {
            return Ok(Kind::Vectors);
        }
        let classes =
            config.get("architectures").and_then(Json::as_array).into_iter().flatten().filter_map(Json::as_str);
        let writes = classes.into_iter().any(|class| WRITERS.iter().any(|end| class.ends_with(end)));
        let makes_vectors = self.names.contains(&SENTENCE_MODULES);
        // A model that sees or hears has a decoder of text.
        if !writes && !makes_vectors && config.get("text_config").is_none() {
            return Err(self
                .not_told(&format!("a model of type `{model_type}`, of which no plugin here is known to serve it"))
                .hint(BY_HAND));
        }
        let folder = Folder::of(text, &self.names).map_err(|why| CliError::failed(format!("{} {why}", self.from)))?;
        if self.bytes == 0 {
            return Err(self
                .not_told("a model without weights in safetensors or GGUF")
                .hint("name a repository that has them"));
        }
        let why = folder.why_not_candle();
        if makes_vectors {
            return match why {
                None => Ok(Kind::Vectors),
                Some(why) => Err(self.not_told(&format!("a model that makes vectors, and {why}")).hint(BY_HAND)),
            };
        }
        Ok(Kind::Text(why))
    }

    fn not_told(&self, what: &str) -> CliError {
        CliError::failed(format!("{} has {what}", self.from))
    }

    /// A model that writes.
    fn text(&self, why_not_candle: Option<String>, key: &'static str, place: Value) -> Found {
        let mut entry = Entry::named(self.name.clone());
        let memory = self.memory();
        entry.set("type", yaml::text("text"));
        let served_by = match why_not_candle {
            None => {
                entry.set("plugin", yaml::text("candle-llm"));
                entry.set(key, place);
                ("candle-llm".to_owned(), None)
            }
            Some(why) => {
                entry.remarks.push(format!("By vLLM: {why}."));
                entry.set("plugin", yaml::text("vllm"));
                entry.set(key, place);
                entry.set_with("memory", yaml::size(memory.0), memory.1.clone());
                entry.option("engine", yaml::text("vllm"));
                ("vllm".to_owned(), Some("vllm".to_owned()))
            }
        };
        self.found(entry, served_by, Some(memory))
    }

    fn other(&self, kind: &str, plugin: &str, key: &'static str, place: Value) -> Found {
        let mut entry = Entry::named(self.name.clone());
        entry.set("type", yaml::text(kind));
        entry.set("plugin", yaml::text(plugin));
        entry.set("startup_time", Value::from(300));
        entry.set(key, place);
        self.found(entry, (plugin.to_owned(), None), None)
    }

    fn found(&self, entry: Entry, served_by: (String, Option<String>), memory: Option<(ByteSize, String)>) -> Found {
        Found {
            entry,
            served_by,
            from: self.from.clone(),
            files: self.names.len(),
            bytes: Some(self.bytes).filter(|bytes| *bytes > 0),
            memory,
            licence: None,
            notes: Vec::new(),
            is_fetched: false,
        }
    }

    /// Weights, cache, and what is beside them.
    fn memory(&self) -> (ByteSize, String) {
        let config = self.config.as_deref().map(json).unwrap_or_default();
        let (cache, told) = match cache_bytes(&config) {
            Some((tokens, bytes)) => (bytes, format!("{} for a cache of {tokens} tokens", ByteSize(bytes))),
            None => (0, "nothing for its cache, which its config.json does not tell".to_owned()),
        };
        let all = self.bytes.saturating_add(cache).saturating_add(BESIDE_BYTES);
        let all = all.checked_next_multiple_of(ESTIMATE_STEP_BYTES).unwrap_or(all);
        let how = format!(
            "An estimate: {} of weights, {told}, 1 GiB beside. `aihost ps` shows what it takes.",
            ByteSize(self.bytes)
        );
        (ByteSize(all), how)
    }
}

/// Tokens of context that are usual, and the bytes of their keys and values.
fn cache_bytes(config: &Json) -> Option<(u64, u64)> {
    let config = config.get("text_config").unwrap_or(config);
    let number = |key: &str| config.get(key).and_then(Json::as_u64);
    let heads = number("num_attention_heads")?;
    let tokens = number("max_position_embeddings").unwrap_or(CONTEXT_TOKENS).min(CONTEXT_TOKENS);
    let width = number("head_dim").or_else(|| number("hidden_size")?.checked_div(heads))?;
    let each = number("num_hidden_layers")?
        .checked_mul(number("num_key_value_heads").unwrap_or(heads))?
        .checked_mul(width)?
        .checked_mul(2 * CACHE_NUMBER_BYTES)?;
    Some((tokens, tokens.checked_mul(each)?))
}

fn json(text: &[u8]) -> Json {
    serde_json::from_slice(text).unwrap_or_default()
}
