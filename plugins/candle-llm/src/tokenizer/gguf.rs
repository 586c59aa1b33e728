//! The vocabulary in a GGUF file. Its pre-tokenizer is chosen by `tokenizer.ggml.pre` from a table of our own (patterns: llama.cpp's
//! llama-vocab.cpp); an unknown name is an error, because a wrong pre-tokenizer gives almost right text.

use std::collections::HashSet;

use aihost_engine::files::Gguf;
use aihost_plugin_api::{Error, ErrorKind, Result};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, PreTokenizerWrapper, SplitDelimiterBehavior};

use super::{CONTROL, FillIn, NORMAL, Pieces, Tokenizer, USER_DEFINED, WINDOW_BYTES, ending};

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Where metadata names the tokens of [`FillIn`]: newer and older files.
const FILL_IN_KEYS: [[&str; 2]; 3] = [
    ["tokenizer.ggml.fim_pre_token_id", "tokenizer.ggml.prefix_token_id"],
    ["tokenizer.ggml.fim_suf_token_id", "tokenizer.ggml.suffix_token_id"],
    ["tokenizer.ggml.fim_mid_token_id", "tokenizer.ggml.middle_token_id"],
];
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
pub(super) struct Rules {
    pub(super) pre_tokenizer: PreTokenizerWrapper,
    /// Whole words of the vocabulary are taken as they are.
    ignore_merges: bool,
    /// Whether a beginning-of-sequence token is put first when the metadata does not say.
    add_bos: bool,
}

pub(super) fn rules(pre: &str) -> Option<Rules> {
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
