//! Text to token ids and back, from the vocabulary in a GGUF file or from a `tokenizer.json`.
//!
//! Byte-level BPE only. A GGUF file's pre-tokenizer is chosen by `tokenizer.ggml.pre` from a table of our own (patterns: llama.cpp's
//! llama-vocab.cpp); an unknown name is an error, because a wrong pre-tokenizer gives almost right text.

use std::collections::HashSet;
use std::path::Path;

use aihost_engine::files::Gguf;
use aihost_plugin_api::{Error, ErrorKind, Result};
use aihost_support::panics::caught;
use aihost_support::tokens;
use serde::Deserialize;
use serde_json::Value;
use tokenizers::models::ModelWrapper;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::PostProcessorWrapper;
use tokenizers::{AddedToken, PreTokenizerWrapper, SplitDelimiterBehavior};

use crate::hugging_face::Specials;

/// `tokenizer.ggml.token_type` of tokens that are text.
const NORMAL: i32 = 1;
/// The type of tokens that steer the model and are no text.
const CONTROL: i32 = 3;
/// The type of tokens that are text but are matched before everything else.
const USER_DEFINED: i32 = 4;
/// Control tokens that end a turn, whatever the metadata says of them.
const ENDS: [&str; 7] =
    ["<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|end_of_text|>", "<|endoftext|>", "</s>"];

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Said where there is no `tokenizer.json`.
const NEEDS_TOKENIZER: &str =
    "a model of safetensors needs its tokenizer.json, under role `tokenizer` or beside its weights";

/// Where metadata names the tokens of [`FillIn`]: newer and older files.
const FILL_IN_KEYS: [[&str; 2]; 3] = [
    ["tokenizer.ggml.fim_pre_token_id", "tokenizer.ggml.prefix_token_id"],
    ["tokenizer.ggml.fim_suf_token_id", "tokenizer.ggml.suffix_token_id"],
    ["tokenizer.ggml.fim_mid_token_id", "tokenizer.ggml.middle_token_id"],
];
/// How they are called where it does not: by Qwen, StarCoder, StarCoder's older models, DeepSeek.
const FILL_IN_TOKENS: [[&str; 3]; 4] = [
    ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
    ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
    ["<fim-prefix>", "<fim-suffix>", "<fim-middle>"],
    ["<\u{ff5c}fim\u{2581}begin\u{ff5c}>", "<\u{ff5c}fim\u{2581}hole\u{ff5c}>", "<\u{ff5c}fim\u{2581}end\u{ff5c}>"],
];

/// Bytes that are cut into words at a time, where a text can be cut: each byte takes some hundred while it is.
const WINDOW_BYTES: usize = 64 << 10;
/// Bytes at the end of a window whose words may go on beyond it, beside the longest special token.
const SLACK_BYTES: usize = 64;

/// A model's tokenizer.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Bytes that are cut into words at a time.
    window_bytes: usize,
    /// Bytes of the longest special token.
    special_bytes: usize,
    pieces: Pieces,
    bos: Option<u32>,
    eos: Option<u32>,
    add_bos: bool,
    ends: HashSet<u32>,
    fill_in: Option<FillIn>,
}

/// Tokens that stand before the text before a gap, before the text behind it, and before what fills it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FillIn {
    pub prefix: u32,
    pub suffix: u32,
    pub middle: u32,
}

impl FillIn {
    /// Those that a GGUF file's metadata names, or that its vocabulary has under a name that models give them.
    ///
    /// # Errors
    /// `CorruptFile` for metadata of another type.
    pub fn of_gguf(gguf: &Gguf) -> Result<Option<Self>> {
        let tokens = gguf.texts("tokenizer.ggml.tokens")?.unwrap_or_default();
        let mut told = [None; 3];
        for (told, keys) in told.iter_mut().zip(FILL_IN_KEYS) {
            for key in keys {
                *told = told.or(gguf.integer(key)?.filter(|id| *id < tokens.len() as u64).map(|id| id as u32));
            }
        }
        let place = |name: &str| tokens.iter().position(|token| *token == name).map(|id| id as u32);
        Ok(Self::named(told, place))
    }

    /// Those among the added tokens of a `tokenizer.json`.
    ///
    /// # Errors
    /// `MissingFile` and `CorruptFile` if it cannot be read.
    pub fn of_json(path: &Path) -> Result<Option<Self>> {
        let added = JsonParts::read(path)?.added_tokens;
        let place = |name: &str| added.iter().find(|token| token.content == name).map(|token| token.id);
        Ok(Self::named([None; 3], place))
    }

    fn named(told: [Option<u32>; 3], place: impl Fn(&str) -> Option<u32>) -> Option<Self> {
        let find = |part: usize| told[part].or_else(|| FILL_IN_TOKENS.iter().find_map(|names| place(names[part])));
        Some(Self { prefix: find(0)?, suffix: find(1)?, middle: find(2)? })
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("bos", &self.bos).field("eos", &self.eos).finish_non_exhaustive()
    }
}

/// A text's ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// In order; of a text with too many, the first ones.
    pub ids: Vec<u32>,
    /// Whether there are no more.
    pub is_whole: bool,
}

/// Every token's bytes, one after the other.
#[derive(Default)]
struct Pieces {
    bytes: Vec<u8>,
    ends: Vec<u32>,
    control: Vec<bool>,
    longest: usize,
}

impl Tokenizer {
    /// The tokenizer in a GGUF file of a model with `vocabulary` embeddings.
    ///
    /// # Errors
    /// `Unsupported` for another kind of tokenizer or an unknown pre-tokenizer, `CorruptFile` for a vocabulary that makes no sense.
    pub fn of_gguf(gguf: &Gguf, vocabulary: usize) -> Result<Self> {
        let unsupported = |what: String| Error::new(ErrorKind::Unsupported, format!("{}: {what}", gguf.name()));
        match gguf.text("tokenizer.ggml.model")? {
            Some("gpt2") => {}
            Some(other) => {
                return Err(unsupported(format!(
                    "the tokenizer is of the kind `{other}`, and candle-llm knows `gpt2` (byte-level BPE) only"
                )));
            }
            None => return Err(gguf.corrupt("the metadata `tokenizer.ggml.model` is missing; convert the model again")),
        }
        let pre = gguf.text("tokenizer.ggml.pre")?.unwrap_or("(none)");
        let rules = rules(pre).ok_or_else(|| {
            unsupported(format!(
                "the pre-tokenizer `{pre}` is not known; known are default, gpt-2, smollm, llama-bpe, llama3 and qwen2"
            ))
        })?;
        let need = |key: &str| gguf.corrupt(format!("the metadata `{key}` is missing; convert the model again"));
        let tokens = gguf.texts("tokenizer.ggml.tokens")?.ok_or_else(|| need("tokenizer.ggml.tokens"))?;
        if tokens.len() != vocabulary {
            return Err(gguf.corrupt(format!(
                "it has {} tokens but {vocabulary} embeddings; convert the model again",
                tokens.len()
            )));
        }
        let mut types = gguf.integers("tokenizer.ggml.token_type")?.unwrap_or_default();
        types.resize(tokens.len(), NORMAL);
        let merges = gguf.texts("tokenizer.ggml.merges")?.ok_or_else(|| need("tokenizer.ggml.merges"))?;

        let mut inner = tokenizers::Tokenizer::new(bpe(gguf, &tokens, &merges, rules.ignore_merges)?);
        inner.with_pre_tokenizer(Some(rules.pre_tokenizer));
        let special = tokens
            .iter()
            .zip(&types)
            .filter(|(token, kind)| matches!(**kind, CONTROL | USER_DEFINED) && !token.is_empty());
        let special: Vec<AddedToken> =
            special.map(|(token, kind)| AddedToken::from(*token, *kind == CONTROL).normalized(false)).collect();
        let special_bytes = special.iter().map(|token| token.content.len()).max().unwrap_or(0);
        inner.add_special_tokens(special).map_err(Error::internal)?;

        let id = |key: &str| -> Result<Option<u32>> {
            let told = gguf.number(key)?;
            let known = told.filter(|id| *id >= 0.0 && *id < tokens.len() as f64).map(|id| id as u32);
            if let (Some(told), None) = (told, known) {
                // Converters write -1 for none. A model that has such a token is served without it.
                tracing::warn!(
                    key,
                    id = told,
                    tokens = tokens.len(),
                    "a special token that the vocabulary lacks is left out"
                );
            }
            Ok(known)
        };
        let (bos, eos) = (id("tokenizer.ggml.bos_token_id")?, id("tokenizer.ggml.eos_token_id")?);
        let mut ends: HashSet<u32> = eos.into_iter().chain(id("tokenizer.ggml.eot_token_id")?).collect();
        ends.extend(ending(&tokens, &types));
        let add_bos = gguf.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(rules.add_bos);
        let fill_in = FillIn::of_gguf(gguf)?;
        let pieces = Pieces::new(&tokens, &types);
        let window_bytes = WINDOW_BYTES;
        Ok(Self { inner, window_bytes, special_bytes, pieces, bos, eos, add_bos, ends, fill_in })
    }

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
            fill_in: FillIn::of_json(path)?,
            inner,
        })
    }

    /// The ids of `text`; special tokens in it are recognised, and a beginning-of-sequence token is put first if the model wants one.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_up_to(text, usize::MAX).map(|encoded| encoded.ids)
    }

    /// The same, but of a text with more than `most` ids only the beginning, as soon as that is known.
    pub fn encode_up_to(&self, text: &str, most: usize) -> Result<Encoded> {
        self.encode_by(self.window_bytes, text, most)
    }

    fn encode_by(&self, window_bytes: usize, text: &str, most: usize) -> Result<Encoded> {
        let (mut ids, mut start, mut size) = (Vec::new(), 0, window_bytes);
        while start < text.len() && ids.len() <= most {
            let end = text.floor_char_boundary(start.saturating_add(size));
            let window = &text[start..end];
            if end == text.len() {
                ids.extend_from_slice(self.inner.encode_fast(window, false).map_err(Error::internal)?.get_ids());
                start = end;
                continue;
            }
            // The words that end well before the window does would be the same in the whole text.
            let encoding = self.inner.encode(window, false).map_err(Error::internal)?;
            let safe = window.len().saturating_sub(self.special_bytes + SLACK_BYTES);
            let (words, offsets) = (encoding.get_word_ids(), encoding.get_offsets());
            let is_border = |at: &usize| words[at - 1] != words[*at] && offsets[*at].0 <= safe;
            match (1..words.len()).rev().find(is_border) {
                Some(at) => {
                    ids.extend_from_slice(&encoding.get_ids()[..at]);
                    start += offsets[at].0;
                    size = window_bytes;
                }
                // One word that is longer than that.
                None => size *= 2,
            }
        }
        if self.add_bos
            && let Some(bos) = self.bos
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        Ok(Encoded { ids, is_whole: start == text.len() })
    }

    /// Bytes of the longest token: a text has at least one for so many.
    pub fn longest(&self) -> usize {
        self.pieces.longest.max(1)
    }

    /// A token's bytes, also of one that steers the model; empty for an id that is not there.
    pub fn bytes(&self, id: u32) -> &[u8] {
        self.pieces.get(id)
    }

    /// A token's bytes as they show in an answer: none for one that steers the model.
    pub fn visible(&self, id: u32) -> &[u8] {
        if self.pieces.control.get(id as usize) == Some(&true) { &[] } else { self.pieces.get(id) }
    }

    /// Whether the token ends a turn.
    pub fn is_end(&self, id: u32) -> bool {
        self.ends.contains(&id)
    }

    /// How many tokens there are.
    pub fn vocabulary(&self) -> usize {
        self.pieces.ends.len()
    }

    /// The beginning-of-sequence token.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The beginning-of-sequence token that is put before every text, if the model wants one.
    pub fn added_bos(&self) -> Option<u32> {
        self.bos.filter(|_| self.add_bos)
    }

    /// The tokens that mark a gap, if the model was taught to fill one.
    pub fn fill_in(&self) -> Option<FillIn> {
        self.fill_in
    }

    /// The texts of the beginning- and end-of-sequence tokens, for templates; empty if there is none.
    pub fn bos_eos_texts(&self) -> (String, String) {
        let text =
            |id: Option<u32>| id.map(|id| String::from_utf8_lossy(self.bytes(id)).into_owned()).unwrap_or_default();
        (text(self.bos), text(self.eos))
    }
}

impl Pieces {
    fn new(tokens: &[&str], types: &[i32]) -> Self {
        let mut byte_of = [None; 512];
        for byte in 0..=255u8 {
            byte_of[byte_char(byte) as usize] = Some(byte);
        }
        let mut pieces = Self::default();
        for (token, kind) in tokens.iter().zip(types) {
            let start = pieces.bytes.len();
            if matches!(*kind, CONTROL | USER_DEFINED) {
                pieces.bytes.extend(token.as_bytes());
            } else {
                for c in token.chars() {
                    match byte_of.get(c as usize).copied().flatten() {
                        Some(byte) => pieces.bytes.push(byte),
                        None => pieces.bytes.extend(c.encode_utf8(&mut [0; 4]).as_bytes()),
                    }
                }
            }
            pieces.longest = pieces.longest.max(pieces.bytes.len() - start);
            pieces.ends.push(pieces.bytes.len() as u32);
            pieces.control.push(*kind == CONTROL);
        }
        pieces
    }

    fn get(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let start = if id == 0 { 0 } else { self.ends.get(id - 1).copied().unwrap_or(0) };
        self.ends.get(id).map_or(&[], |end| &self.bytes[start as usize..*end as usize])
    }
}

/// Control tokens that end a turn by their names.
fn ending<'a>(tokens: &'a [&str], types: &'a [i32]) -> impl Iterator<Item = u32> + 'a {
    let all = (0..).zip(tokens).zip(types);
    all.filter(|((_, token), kind)| **kind == CONTROL && ENDS.contains(*token)).map(|((id, _), _)| id)
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

/// The character that stands for a byte in byte-level vocabularies (GPT-2's encoder.py): printable Latin-1 stands for itself,
/// the other bytes for U+0100 and on.
fn byte_char(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|b| !printable(*b)).count() as u32;
    char::from_u32(256 + before).unwrap_or(char::REPLACEMENT_CHARACTER)
}

fn bpe(gguf: &Gguf, tokens: &[&str], merges: &[&str], ignore_merges: bool) -> Result<BPE> {
    let longest = tokens.iter().map(|token| token.len()).max().unwrap_or(0);
    let vocabulary: Vocab = tokens.iter().zip(0..).map(|(token, id)| ((*token).to_owned(), id)).collect();
    let mut pairs = Vec::with_capacity(merges.len());
    for merge in merges {
        // A merge longer than every token cannot give one, and the builder would panic over it.
        let pair = merge.split_once(' ').filter(|(a, b)| a.len() + b.len() <= longest);
        let (a, b) =
            pair.ok_or_else(|| gguf.corrupt(format!("the merge `{merge}` makes no token; convert the model again")))?;
        pairs.push((a.to_owned(), b.to_owned()));
    }
    // The builder's cache is per thread and outlives the model: left out.
    let builder = BPE::builder().vocab_and_merges(vocabulary, pairs).cache_capacity(0).ignore_merges(ignore_merges);
    builder
        .build()
        .map_err(|e| gguf.corrupt(format!("its merges do not fit its tokens ({e}); convert the model again")))
}

/// What `tokenizer.ggml.pre` stands for.
struct Rules {
    pre_tokenizer: PreTokenizerWrapper,
    /// Whole words of the vocabulary are taken as they are.
    ignore_merges: bool,
    /// Whether a beginning-of-sequence token is put first when the metadata does not say.
    add_bos: bool,
}

fn rules(pre: &str) -> Option<Rules> {
    let split = |pattern: &str| {
        Split::new(SplitPattern::Regex(pattern.to_owned()), SplitDelimiterBehavior::Isolated, false)
            .ok()
            .map(PreTokenizerWrapper::from)
    };
    // Bytes become characters at the end; with no pattern of its own, as the steps before have split already.
    let bytes = || PreTokenizerWrapper::from(ByteLevel::new(false, false, false));
    let gpt2 = || PreTokenizerWrapper::from(ByteLevel::new(false, false, true));
    let (steps, ignore_merges, add_bos) = match pre {
        "smollm" => (vec![Digits::new(true).into(), gpt2()], false, false),
        "gpt-2" => (vec![gpt2()], false, false),
        "default" => {
            let punctuation = split(r"[\p{P}\$\+<=>\^~\|]+")?;
            (vec![punctuation, split(GPT2)?, split(r"\p{N}+")?, split("[0-9][0-9][0-9]")?, bytes()], false, false)
        }
        "llama-bpe" | "llama3" | "llama-v3" => (vec![split(LLAMA3)?, bytes()], true, true),
        "qwen2" => (vec![split(QWEN2)?, bytes()], false, false),
        _ => return None,
    };
    Some(Rules { pre_tokenizer: Sequence::new(steps).into(), ignore_merges, add_bos })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use tokenizers::models::bpe::{BPE, Vocab};
    use tokenizers::{AddedToken, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    use super::{Pieces, Tokenizer, WINDOW_BYTES, byte_char, rules};

    /// A tokenizer of single bytes, a few pairs of them, and two special tokens.
    fn tiny(pre: &str) -> Tokenizer {
        let rules = rules(pre).expect("known");
        let pair = |a: u8, b: u8| (byte_char(a).to_string(), byte_char(b).to_string());
        let merges = vec![pair(b'a', b'b'), pair(b' ', b'a'), pair(b'1', b'1'), pair(b'\n', b'\n'), pair(b'!', b'!')];
        let singles = (0..=255).map(|byte| byte_char(byte).to_string());
        let tokens = singles.chain(merges.iter().map(|(a, b)| format!("{a}{b}")));
        let vocabulary: Vocab = tokens.zip(0..).collect();
        let model = BPE::builder().vocab_and_merges(vocabulary, merges).cache_capacity(0).build().expect("a model");
        let mut inner = tokenizers::Tokenizer::new(model);
        inner.with_pre_tokenizer(Some(rules.pre_tokenizer));
        let special = ["<|x|>", "<|begin_of_something|>"].map(|text| AddedToken::from(text, true).normalized(false));
        inner.add_special_tokens(special).expect("added");
        let (pieces, ends) = (Pieces::default(), HashSet::new());
        let window_bytes = WINDOW_BYTES;
        Tokenizer {
            inner,
            window_bytes,
            special_bytes: 22,
            pieces,
            bos: None,
            eos: None,
            add_bos: false,
            ends,
            fill_in: None,
        }
    }

    /// Text of words, numbers, signs, blanks and special tokens, the same for the same seed.
    fn text(seed: u64, parts: usize) -> String {
        const PARTS: [&str; 18] = [
            "ab",
            " ab",
            " a",
            "1",
            "11",
            "123",
            " 7",
            "!",
            "!!",
            "  ",
            "\n",
            "\r\n",
            "   \n\n",
            "<|x|>",
            "<|begin_of_something|>",
            "é漢",
            "'s",
            "<|x",
        ];
        let mut state = seed;
        let mut part = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            PARTS[(state >> 33) as usize % PARTS.len()]
        };
        (0..parts).map(|_| part()).collect()
    }

    #[test]
    fn a_long_text_has_the_same_tokens_in_windows_as_whole() {
        for pre in ["smollm", "gpt-2", "default", "llama-bpe", "qwen2"] {
            let tokenizer = tiny(pre);
            let mut texts: Vec<String> = (0..30).map(|seed| text(seed, 600)).collect();
            // Words longer than a window, and nothing but one kind.
            texts.extend(["a", "1", "!", " ", "\n", " \n", "a!", "<|x|>"].map(|part| part.repeat(2000)));
            for text in texts {
                let whole = tokenizer.inner.encode_fast(text.as_str(), false).expect("encodes");
                for window in [150, 256, 1000] {
                    let found = tokenizer.encode_by(window, &text, usize::MAX).expect("encodes");
                    assert!(found.is_whole && found.ids == whole.get_ids(), "{pre}, {window}: {text:?}");
                }
                let some = tokenizer.encode_by(150, &text, 50).expect("encodes");
                assert!(whole.get_ids().starts_with(&some.ids), "{pre}: {text:?}");
                assert!(some.is_whole || some.ids.len() > 50, "{pre}: {} ids", some.ids.len());
            }
        }
    }

    fn pieces(pre: &str, text: &str) -> Vec<String> {
        let mut string = PreTokenizedString::from(text);
        rules(pre).expect("known").pre_tokenizer.pre_tokenize(&mut string).expect("splits");
        string
            .get_splits(OffsetReferential::Original, OffsetType::Byte)
            .iter()
            .map(|(s, _, _)| (*s).to_owned())
            .collect()
    }

    #[test]
    fn every_rule_splits_as_its_model_does() {
        assert_eq!(pieces("smollm", "it's 123"), ["it", "'s", "Ġ", "1", "2", "3"]);
        assert_eq!(pieces("gpt-2", "it's 123"), ["it", "'s", "Ġ123"]);
        assert_eq!(pieces("llama-bpe", "IT'S 12345\n"), ["IT", "'S", "Ġ", "123", "45", "Ċ"]);
        assert_eq!(pieces("qwen2", "a  b12"), ["a", "Ġ", "Ġb", "1", "2"]);
        assert_eq!(pieces("default", "a+b 12345"), ["a", "+", "b", "Ġ", "123", "45"]);
        assert!(rules("something-else").is_none());
    }

    #[test]
    fn bytes_have_distinct_characters() {
        let mut all: Vec<char> = (0..=255).map(byte_char).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 256);
        assert_eq!((byte_char(b' '), byte_char(b'\n'), byte_char(b'a')), ('Ġ', 'Ċ', 'a'));
    }
}
