//! The vocabulary in a `tokenizer.json`, as the tokenizers crate writes it.

use std::collections::HashSet;
use std::path::Path;

use aihost_plugin_api::{Error, ErrorKind, Result};
use aihost_support::panics::caught;
use aihost_support::tokens;
use serde::Deserialize;
use serde_json::Value;
use tokenizers::models::ModelWrapper;
use tokenizers::processors::PostProcessorWrapper;

use super::{CONTROL, FillIn, NORMAL, Pieces, Tokenizer, USER_DEFINED, WINDOW_BYTES, ending};
use crate::hugging_face::Specials;

/// Said where there is no `tokenizer.json`.
const NEEDS_TOKENIZER: &str =
    "a model of safetensors needs its tokenizer.json, under role `tokenizer` or beside its weights";

impl FillIn {
    /// Those among the added tokens of a `tokenizer.json`.
    ///
    /// # Errors
    /// `MissingFile` and `CorruptFile` if it cannot be read.
    pub fn of_json(path: &Path) -> Result<Option<Self>> {
        JsonParts::read(path).map(|parts| parts.fill_in())
    }
}

impl Tokenizer {
    /// The tokenizer in a `tokenizer.json`, of a model with `vocabulary` embeddings: it may have fewer tokens.
    ///
    /// # Errors
    /// `MissingFile` if there is none, `Unsupported` for another kind of tokenizer, `CorruptFile` for one that cannot be read or does
    /// not fit the model.
    pub fn of_json(path: &Path, specials: &Specials, vocabulary: usize) -> Result<Self> {
        let parts = JsonParts::read(path)?;
        let mut inner = tokens::open(path, NEEDS_TOKENIZER)?;
        let ModelWrapper::BPE(model) = inner.get_model() else { return Err(parts.other_kind(path)) };
        if !parts.is_byte_level() {
            return Err(parts.other_kind(path));
        }
        // Its cache is per thread and outlives the model.
        let mut model = model.clone();
        model.resize_cache(0);
        inner.with_model(model);

        let mut texts = vec![String::new(); vocabulary];
        // What has no token shows nothing.
        let mut types = vec![CONTROL; vocabulary];
        for (text, id) in inner.get_vocab(false) {
            let (place, kind) = texts.get_mut(id as usize).zip(types.get_mut(id as usize)).ok_or_else(|| {
                corrupt(path, format!("its token {id} is beyond the model's {vocabulary} embeddings"))
            })?;
            (*place, *kind) = (text, NORMAL);
        }
        let mut special_bytes = 0;
        for (id, token) in inner.get_added_tokens_decoder() {
            let Some((place, kind)) = texts.get_mut(id as usize).zip(types.get_mut(id as usize)) else { continue };
            special_bytes = special_bytes.max(token.content.len());
            (*place, *kind) = (token.content, if token.special { CONTROL } else { USER_DEFINED });
        }
        let named = |text: &Option<String>| text.as_ref().and_then(|text| inner.token_to_id(text));
        let bos = named(&specials.bos).or(specials.bos_id).filter(|id| (*id as usize) < vocabulary);
        let eos = named(&specials.eos).or_else(|| specials.ends.first().copied());
        // What the file puts around a text is taken off: words are found by their places in the text alone.
        let around = caught(|| inner.encode_fast("", true)).map_err(|why| corrupt(path, why))?;
        let adds_bos = bos.is_some() && around.get_ids().first() == bos.as_ref();
        inner.with_post_processor(None::<PostProcessorWrapper>);

        let tokens: Vec<&str> = texts.iter().map(String::as_str).collect();
        let mut ends: HashSet<u32> = specials.ends.iter().copied().chain(eos).collect();
        ends.extend(ending(&tokens, &types));
        Ok(Self {
            window_bytes: if parts.pads_texts() { usize::MAX } else { WINDOW_BYTES },
            special_bytes,
            pieces: Pieces::new(&tokens, &types),
            bos,
            eos,
            add_bos: specials.add_bos.unwrap_or(adds_bos),
            ends,
            fill_in: parts.fill_in(),
            inner,
        })
    }
}

/// What of a `tokenizer.json` says what kind it is.
#[derive(Deserialize)]
struct JsonParts {
    #[serde(default)]
    added_tokens: Vec<JsonToken>,
    pre_tokenizer: Option<Value>,
    decoder: Option<Value>,
    model: JsonModel,
}

#[derive(Deserialize)]
struct JsonToken {
    id: u32,
    content: String,
}

#[derive(Deserialize)]
struct JsonModel {
    #[serde(rename = "type")]
    kind: Option<String>,
}

impl JsonParts {
    fn read(path: &Path) -> Result<Self> {
        let json = tokens::read(path, NEEDS_TOKENIZER)?;
        serde_json::from_slice(&json).map_err(|error| corrupt(path, error))
    }

    fn fill_in(&self) -> Option<FillIn> {
        let added = &self.added_tokens;
        FillIn::named([None; 3], |name| added.iter().find(|token| token.content == name).map(|token| token.id))
    }

    /// Whether its tokens are of bytes, as GPT-2's are.
    fn is_byte_level(&self) -> bool {
        self.decoder.as_ref().is_some_and(|decoder| steps(decoder, "decoders").any(|step| step["type"] == "ByteLevel"))
    }

    /// Whether a blank is put before a text, so that one that is cut would have several.
    fn pads_texts(&self) -> bool {
        let all = self.pre_tokenizer.as_ref();
        all.is_some_and(|all| steps(all, "pretokenizers").any(|step| step["add_prefix_space"] == true))
    }

    fn other_kind(&self, path: &Path) -> Error {
        let kind = self.model.kind.as_deref().unwrap_or("unnamed");
        let message = format!(
            "{}: the tokenizer is of the kind `{kind}` without bytes as tokens, and candle-llm knows byte-level BPE only",
            path.display()
        );
        Error::new(ErrorKind::Unsupported, message)
    }
}

/// The steps of a sequence of that name, or what is no sequence by itself.
fn steps<'a>(of: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    let sequence = of[name].as_array();
    let alone = if sequence.is_none() { Some(of) } else { None };
    sequence.into_iter().flatten().chain(alone)
}

fn corrupt(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::CorruptFile, format!("{} cannot be read: {why}; fetch it again", path.display()))
}
