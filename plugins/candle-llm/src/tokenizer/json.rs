//! The vocabulary in a `tokenizer.json`, as the tokenizers crate writes it.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use aihost_plugin_api::{Error, ErrorKind, Result};
use aihost_support::panics::caught;
use aihost_support::tokens;
use serde::Deserialize;
use serde_json::Value;
use tokenizers::models::ModelWrapper;
use tokenizers::processors::PostProcessorWrapper;

use super::byte_level::{ByteLevel, WINDOW_BYTES};
use super::ends::{self, Types};
use super::merging::{self, BLANK, Merging, Order, Parts, Prefix, PrefixPlace, Writing};
use super::special::{Special, SpecialToken};
use super::{BYTE, CONTROL, FillIn, NORMAL, Pieces, Spelling, Tokenizer, USER_DEFINED, Words};
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
        let writing = if parts.is_byte_level() { None } else { Some(parts.writing(path)?) };
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
            let is_byte = writing.is_some() && merging::byte_of(&text).is_some();
            (*place, *kind) = (text, if is_byte { BYTE } else { NORMAL });
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
        ends.extend(ends::by_name(&tokens, &mut types, Types::Trusted));
        let count = tokens.iter().rposition(|token| !token.is_empty()).map_or(0, |last| last + 1);
        let spelling = if writing.is_some() { Spelling::Blanks } else { Spelling::Bytes };
        let pieces = Pieces::new(&tokens, &types, spelling);
        let words = match writing {
            Some(writing) => Words::Merging(Box::new(parts.merging(path, writing)?)),
            None => {
                let window_bytes = if parts.pads_texts() { usize::MAX } else { WINDOW_BYTES };
                Words::ByteLevel(Box::new(ByteLevel { inner, window_bytes, special_bytes }))
            }
        };
        let add_bos = specials.add_bos.unwrap_or(adds_bos);
        Ok(Self { words, pieces, tokens: count, bos, eos, add_bos, ends, fill_in: parts.fill_in() })
    }
}

/// What of a `tokenizer.json` says what kind it is, and what texts are cut by that is not of bytes.
#[derive(Deserialize)]
struct JsonParts {
    #[serde(default)]
    added_tokens: Vec<JsonToken>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    decoder: Option<Value>,
    model: JsonModel,
}

#[derive(Deserialize)]
struct JsonToken {
    id: u32,
    content: String,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
}

#[derive(Deserialize)]
struct JsonModel {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    unk_token: Option<String>,
}

/// The rest of a `tokenizer.json`, where tokens are parts of texts.
#[derive(Deserialize)]
struct JsonMerges {
    model: JsonMergesModel,
}

#[derive(Deserialize)]
struct JsonMergesModel {
    vocab: HashMap<String, u32>,
    merges: Vec<JsonMerge>,
}

/// Two tokens, apart or with a blank between them.
#[derive(Deserialize)]
#[serde(untagged)]
enum JsonMerge {
    Apart([String; 2]),
    Together(String),
}

impl JsonMerge {
    fn pair(&self) -> Option<(&str, &str)> {
        match self {
            Self::Apart([left, right]) => Some((left, right)),
            Self::Together(text) => text.split_once(' '),
        }
    }
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

    /// How texts are written before they are cut, where tokens are parts of texts: what Llama 2, Mistral and Gemma have.
    fn writing(&self, path: &Path) -> Result<Writing> {
        let mut writing = Writing::default();
        let normalizer = self.normalizer.iter().flat_map(|all| steps(all, "normalizers"));
        let pre_tokenizer = self.pre_tokenizer.iter().flat_map(|all| steps(all, "pretokenizers"));
        let is_known = self.model.byte_fallback
            && normalizer.chain(pre_tokenizer).all(|step| writes(step, &mut writing).is_some());
        if is_known { Ok(writing) } else { Err(self.other_kind(path)) }
    }

    fn merging(&self, path: &Path, writing: Writing) -> Result<Merging> {
        let json = tokens::read(path, NEEDS_TOKENIZER)?;
        let JsonMerges { model } = serde_json::from_slice(&json).map_err(|error| corrupt(path, error))?;
        let ids: HashMap<&str, u32> = model.vocab.iter().map(|(text, id)| (text.as_str(), *id)).collect();
        let mut ranks = HashMap::new();
        for (merge, rank) in model.merges.iter().zip(0..) {
            let pair = merge.pair().and_then(|(left, right)| Some((*ids.get(left)?, *ids.get(right)?)));
            let pair = pair.ok_or_else(|| corrupt(path, format!("its merge {rank} is of no two tokens")))?;
            ranks.entry(pair).or_insert(rank);
        }
        let mut bytes = Box::new([None; 256]);
        for (token, id) in &ids {
            if let Some(byte) = merging::byte_of(token) {
                bytes[usize::from(byte)] = Some(*id);
            }
        }
        let special = self.added_tokens.iter().filter(|token| !token.content.is_empty()).map(|token| SpecialToken {
            text: token.content.clone(),
            id: token.id,
            strips_before: token.lstrip,
            strips_behind: token.rstrip,
        });
        let special = Special::new(special.collect())?;
        let unknown = self.model.unk_token.as_deref().and_then(|token| ids.get(token).copied());
        let is_text = |(token, _): &(&str, u32)| merging::byte_of(token).is_none();
        let tokens = ids.into_iter().filter(is_text).collect();
        Ok(Merging::new(Parts { tokens, order: Order::ByPair(ranks), bytes, unknown, special, writing }))
    }

    fn other_kind(&self, path: &Path) -> Error {
        let kind = self.model.kind.as_deref().unwrap_or("unnamed");
        let message = format!(
            "{}: the tokenizer is of the kind `{kind}` with steps that candle-llm does not know (it knows byte-level BPE, and BPE of whole texts with bytes to fall back to); use another engine (`plugin: vllm`)",
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

/// Takes note of a step by which texts are written; nothing if it is of another kind.
fn writes(step: &Value, writing: &mut Writing) -> Option<()> {
    let is_blank = |value: &Value| value.as_str() == Some(" ");
    let is_written = |value: &Value| value.as_str().is_some_and(|text| text.chars().eq([BLANK]));
    match step["type"].as_str()? {
        "Prepend" if is_written(&step["prepend"]) => {
            writing.prefix = Prefix { place: PrefixPlace::EachText, unless_there: false };
        }
        "Replace" if is_blank(&step["pattern"]["String"]) && is_written(&step["content"]) => {}
        "Metaspace" if is_written(&step["replacement"]) => {
            let place = match step["prepend_scheme"].as_str() {
                Some("never") => PrefixPlace::Nowhere,
                Some("first") => PrefixPlace::Beginning,
                None if step["add_prefix_space"] == false => PrefixPlace::Nowhere,
                _ => PrefixPlace::EachText,
            };
            writing.prefix = Prefix { place, unless_there: true };
            writing.cut_at_blanks = step["split"] != false;
        }
        // Blanks are written otherwise by then.
        "Split" if is_blank(&step["pattern"]["String"]) => {}
        _ => return None,
    }
    Some(())
}

fn corrupt(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::CorruptFile, format!("{} cannot be read: {why}; fetch it again", path.display()))
}
