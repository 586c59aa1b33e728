//! The vocabulary in a GGUF file, of the kinds `gpt2` (byte-level BPE), `llama` (SentencePiece with scores) and `gemma4` (merges of whole
//! texts).

use std::collections::HashMap;

use aihost_engine::files::Gguf;
use aihost_plugin_api::{Error, ErrorKind, Result};
use tokenizers::AddedToken;
use tokenizers::models::bpe::{BPE, Vocab};

use super::byte_level::{ByteLevel, WINDOW_BYTES};
use super::ends::{self, Types};
use super::merging::{self, Merging, Order, Parts, Prefix, PrefixPlace, Writing};
use super::pre::{self, Row};
use super::special::{Special, SpecialToken};
use super::{BYTE, CONTROL, FillIn, NORMAL, Pieces, Spelling, Tokenizer, UNKNOWN, USER_DEFINED, Words};

/// Said where a file's tokenizer is not one of these.
const OTHER_ENGINE: &str = "use another engine (`plugin: vllm` with `engine: llama-server`)";

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

/// A vocabulary as it stands in a file.
struct Vocabulary<'a> {
    gguf: &'a Gguf,
    tokens: Vec<&'a str>,
    types: Vec<i32>,
}

/// What a kind of tokenizer comes to.
struct Kind {
    words: Words,
    spelling: Spelling,
    /// Whether a beginning-of-sequence token is put first when the metadata does not say.
    add_bos: bool,
    /// The tokens that begin and end a sequence where the metadata names none.
    bos_eos: [Option<u32>; 2],
}

impl Tokenizer {
    /// The tokenizer in a GGUF file of a model with `embeddings` embeddings: it may have fewer tokens.
    ///
    /// # Errors
    /// `Unsupported` for another kind of tokenizer or an unknown pre-tokenizer, `CorruptFile` for a vocabulary that makes no sense.
    pub fn of_gguf(gguf: &Gguf, embeddings: usize) -> Result<Self> {
        let mut vocabulary = Vocabulary::read(gguf, embeddings)?;
        let mut ends = ends::by_name(&vocabulary.tokens, &mut vocabulary.types, Types::Doubted);
        let kind = match gguf.text("tokenizer.ggml.model")? {
            Some("gpt2") => vocabulary.byte_level()?,
            Some("llama") => vocabulary.scored()?,
            Some("gemma4") => vocabulary.merged()?,
            Some(other) => {
                return Err(vocabulary.unsupported(format!(
                    "the tokenizer is of the kind `{other}`, and candle-llm knows `gpt2`, `llama` and `gemma4`"
                )));
            }
            None => return Err(gguf.corrupt("the metadata `tokenizer.ggml.model` is missing; convert the model again")),
        };
        let bos = vocabulary.id("tokenizer.ggml.bos_token_id")?.or(kind.bos_eos[0]);
        let eos = vocabulary.id("tokenizer.ggml.eos_token_id")?.or(kind.bos_eos[1]);
        ends.extend(eos);
        for key in ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
            ends.extend(vocabulary.id(key)?);
        }
        let add_bos = gguf.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(kind.add_bos);
        let Vocabulary { mut tokens, mut types, .. } = vocabulary;
        let count = tokens.len();
        tokens.resize(embeddings, "");
        types.resize(embeddings, CONTROL);
        Ok(Self {
            words: kind.words,
            pieces: Pieces::new(&tokens, &types, kind.spelling),
            tokens: count,
            bos,
            eos,
            // Files of Gemma 4 say that they want none, and do (llama.cpp's llama-vocab.cpp).
            add_bos: add_bos || gguf.text("tokenizer.ggml.model")? == Some("gemma4"),
            ends,
            fill_in: FillIn::of_gguf(gguf)?,
        })
    }
}

impl<'a> Vocabulary<'a> {
    fn read(gguf: &'a Gguf, embeddings: usize) -> Result<Self> {
        let key = "tokenizer.ggml.tokens";
        let missing = || gguf.corrupt(format!("the metadata `{key}` is missing; convert the model again"));
        let tokens = gguf.texts(key)?.ok_or_else(missing)?;
        if tokens.len() > embeddings {
            let count = tokens.len();
            return Err(
                gguf.corrupt(format!("it has {count} tokens but {embeddings} embeddings; convert the model again"))
            );
        }
        let mut types = gguf.integers("tokenizer.ggml.token_type")?.unwrap_or_default();
        types.resize(tokens.len(), NORMAL);
        Ok(Self { gguf, tokens, types })
    }

    fn unsupported(&self, what: String) -> Error {
        Error::new(ErrorKind::Unsupported, format!("{}: {what}; {OTHER_ENGINE}", self.gguf.name()))
    }

    /// A special token that the metadata names.
    fn id(&self, key: &str) -> Result<Option<u32>> {
        let told = self.gguf.number(key)?;
        let known = told.filter(|id| *id >= 0.0 && *id < self.tokens.len() as f64).map(|id| id as u32);
        if let (Some(told), None) = (told, known) {
            // Converters write -1 for none. A model that has such a token is served without it.
            let tokens = self.tokens.len();
            tracing::warn!(key, id = told, tokens, "a special token that the vocabulary lacks is left out");
        }
        Ok(known)
    }

    fn merges(&self) -> Result<Vec<&'a str>> {
        let key = "tokenizer.ggml.merges";
        let missing = || self.gguf.corrupt(format!("the metadata `{key}` is missing; convert the model again"));
        self.gguf.texts(key)?.ok_or_else(missing)
    }

    fn row(&self) -> Result<&'static Row> {
        let Some(name) = self.gguf.text("tokenizer.ggml.pre")?.filter(|name| !name.is_empty()) else {
            tracing::warn!(
                "{}: the metadata `tokenizer.ggml.pre` is missing, so that words are cut as `default` says, which may not be how the model learnt it; convert the model again",
                self.gguf.name()
            );
            return Ok(&pre::ROWS[0]);
        };
        pre::row(name).ok_or_else(|| {
            let known = pre::names().collect::<Vec<_>>().join(", ");
            self.unsupported(format!("the pre-tokenizer `{name}` is not known; known are {known}"))
        })
    }

    fn byte_level(&self) -> Result<Kind> {
        let row = self.row()?;
        // Some that are of this kind by name merge whole texts.
        if row.patterns.is_empty() {
            return self.merged();
        }
        let Self { gguf, tokens, types } = self;
        let mut inner = tokenizers::Tokenizer::new(bpe(gguf, tokens, &self.merges()?, row.ignore_merges)?);
        let pre_tokenizer = row.pre_tokenizer().ok_or_else(|| Error::internal("a pattern does not parse"))?;
        inner.with_pre_tokenizer(Some(pre_tokenizer));
        let special = tokens
            .iter()
            .zip(types)
            .filter(|(token, kind)| matches!(**kind, CONTROL | USER_DEFINED) && !token.is_empty());
        let special: Vec<AddedToken> =
            special.map(|(token, kind)| AddedToken::from(*token, *kind == CONTROL).normalized(false)).collect();
        let special_bytes = special.iter().map(|token| token.content.len()).max().unwrap_or(0);
        inner.add_special_tokens(special).map_err(Error::internal)?;
        let window_bytes = if row.looks_far { usize::MAX } else { WINDOW_BYTES };
        let words = Words::ByteLevel(Box::new(ByteLevel { inner, window_bytes, special_bytes }));
        Ok(Kind { words, spelling: Spelling::Bytes, add_bos: row.add_bos, bos_eos: [None; 2] })
    }

    /// SentencePiece: what has the highest score is merged first.
    fn scored(&self) -> Result<Kind> {
        let key = "tokenizer.ggml.scores";
        let mut scores = self.gguf.floats(key)?.unwrap_or_default();
        if scores.is_empty() {
            return Err(self.gguf.corrupt(format!("the metadata `{key}` is missing; convert the model again")));
        }
        scores.resize(self.tokens.len(), 0.0);
        let has_prefix = self.gguf.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
        let place = if has_prefix { PrefixPlace::EachText } else { PrefixPlace::Nowhere };
        let writing = Writing {
            prefix: Prefix { place, unless_there: false },
            single_blanks: self.gguf.flag("tokenizer.ggml.remove_extra_whitespaces")?.unwrap_or(false),
            ..Writing::default()
        };
        let words = self.merging(merging::by_score(&scores), writing)?;
        let known = |id: u32| Some(id).filter(|id| (*id as usize) < self.tokens.len());
        Ok(Kind { words, spelling: Spelling::Blanks, add_bos: true, bos_eos: [known(1), known(2)] })
    }

    /// Merges in the order of a list, within lines.
    fn merged(&self) -> Result<Kind> {
        let ids: HashMap<&str, u32> = self.tokens.iter().copied().zip(0..).collect();
        let mut ranks = HashMap::new();
        for (merge, rank) in self.merges()?.into_iter().zip(0..) {
            // The first part may begin with a blank.
            let at = merge.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| at);
            let pair = at.and_then(|at| Some((*ids.get(&merge[..at])?, *ids.get(&merge[at + 1..])?)));
            let pair = pair.ok_or_else(|| {
                self.gguf.corrupt(format!("the merge `{merge}` is of no two tokens; convert the model again"))
            })?;
            ranks.entry(pair).or_insert(rank);
        }
        let writing = Writing { whole_line_ends: true, ..Writing::default() };
        let words = self.merging(Order::ByPair(ranks), writing)?;
        Ok(Kind { words, spelling: Spelling::Blanks, add_bos: false, bos_eos: [None; 2] })
    }

    fn merging(&self, order: Order, writing: Writing) -> Result<Words> {
        let strips_behind = self.is_phi3()?;
        let (mut texts, mut special) = (Vec::with_capacity(self.tokens.len()), Vec::new());
        let (mut bytes, mut unknown) = (Box::new([None; 256]), None);
        for ((token, kind), id) in self.tokens.iter().copied().zip(&self.types).zip(0..) {
            match *kind {
                CONTROL | USER_DEFINED | UNKNOWN if !token.is_empty() => {
                    // As its own tokenizer.json says; GGUF files have no place for that.
                    let strips_behind = strips_behind && !matches!(token, "<unk>" | "<s>" | "<|endoftext|>");
                    special.push(SpecialToken { text: token.to_owned(), id, strips_before: false, strips_behind });
                }
                BYTE if let Some(byte) = merging::byte_of(token) => bytes[usize::from(byte)] = Some(id),
                _ => texts.push((token, id)),
            }
            if *kind == UNKNOWN {
                unknown = Some(id);
            }
            if *kind == USER_DEFINED {
                texts.push((token, id));
            }
        }
        // Older vocabularies have a byte's token as a text.
        for (token, id) in &texts {
            if let [byte] = token.as_bytes() {
                bytes[usize::from(*byte)].get_or_insert(*id);
            }
        }
        let parts = Parts { tokens: texts, order, bytes, unknown, special: Special::new(special)?, writing };
        Ok(Words::Merging(Box::new(Merging::new(parts))))
    }

    fn is_phi3(&self) -> Result<bool> {
        let name = self.gguf.text("general.name")?.unwrap_or_default().to_lowercase();
        Ok(name.contains("phi-3") || name.contains("phi3"))
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
