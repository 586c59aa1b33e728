//! Text to token ids and back, from the vocabulary in a GGUF file or from a `tokenizer.json`.
//!
//! Two kinds: byte-level BPE (`byte_level`, whose words `pre` tells of), and whole texts whose parts are merged (`merging`, with
//! `special`). `ends` knows by name what ends a turn.

mod byte_level;
mod ends;
mod gguf;
mod json;
mod merging;
mod pre;
mod special;
#[cfg(test)]
mod tests;

use std::collections::HashSet;

use aihost_plugin_api::Result;

use self::byte_level::ByteLevel;
use self::merging::{BLANK, Merging};

/// `tokenizer.ggml.token_type` of tokens that are text.
const NORMAL: i32 = 1;
/// The type of what stands for what has no token.
const UNKNOWN: i32 = 2;
/// The type of tokens that steer the model and are no text.
const CONTROL: i32 = 3;
/// The type of tokens that are text but are matched before everything else.
const USER_DEFINED: i32 = 4;
/// The type of tokens that are a byte.
const BYTE: i32 = 6;

/// How the tokens of [`FillIn`] are called where metadata does not name them: by Qwen, StarCoder,
/// StarCoder's older models, DeepSeek, CodeLlama, GLM, Falcon.
const FILL_IN_TOKENS: [[&str; 3]; 7] = [
    ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
    ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
    ["<fim-prefix>", "<fim-suffix>", "<fim-middle>"],
    ["<\u{ff5c}fim\u{2581}begin\u{ff5c}>", "<\u{ff5c}fim\u{2581}hole\u{ff5c}>", "<\u{ff5c}fim\u{2581}end\u{ff5c}>"],
    ["\u{2581}<PRE>", "\u{2581}<SUF>", "\u{2581}<MID>"],
    ["<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"],
    ["<|prefix|>", "<|suffix|>", "<|middle|>"],
];

/// A model's tokenizer.
pub struct Tokenizer {
    words: Words,
    pieces: Pieces,
    /// Tokens that there are; a model may have more embeddings.
    tokens: usize,
    bos: Option<u32>,
    eos: Option<u32>,
    add_bos: bool,
    ends: HashSet<u32>,
    fill_in: Option<FillIn>,
}

/// How texts become tokens.
enum Words {
    ByteLevel(Box<ByteLevel>),
    Merging(Box<Merging>),
}

/// Tokens that stand before the text before a gap, before the text behind it, and before what fills it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FillIn {
    pub prefix: u32,
    pub suffix: u32,
    pub middle: u32,
}

impl FillIn {
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
    /// The ids of `text`; special tokens in it are recognised, and a beginning-of-sequence token is put first if the model wants one.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_up_to(&[text], usize::MAX).map(|encoded| encoded.ids)
    }

    /// The same of the parts of a text, but no special token is recognised where it begins in one and ends in another; of a text with
    /// more than `most` ids only the beginning, as soon as that is known.
    pub fn encode_up_to(&self, parts: &[&str], most: usize) -> Result<Encoded> {
        let mut ids = Vec::new();
        let is_whole = match &self.words {
            Words::ByteLevel(words) => words.encode(parts, most, &mut ids)?,
            Words::Merging(words) => words.encode(parts, most, &mut ids),
        };
        if self.add_bos
            && let Some(bos) = self.bos
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        Ok(Encoded { ids, is_whole })
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
        if self.is_control(id) { &[] } else { self.pieces.get(id) }
    }

    /// What the tokens of a whole text show, one by one: without the blank that was put before it.
    pub fn shown<'a>(&'a self, ids: &'a [u32]) -> impl Iterator<Item = &'a [u8]> {
        let mut is_first = matches!(&self.words, Words::Merging(words) if words.puts_blank());
        ids.iter().map(move |id| {
            let bytes = self.visible(*id);
            let is_begun = !bytes.is_empty();
            let cut = bytes.strip_prefix(b" ").filter(|_| is_first);
            is_first &= !is_begun;
            cut.unwrap_or(bytes)
        })
    }

    /// Tokens that steer the model and show in no answer, by their names.
    pub fn control(&self) -> impl Iterator<Item = (u32, &str)> {
        let tokens = (0..).zip(&self.pieces.control).filter(|(_, is_control)| **is_control);
        tokens.filter_map(|(id, _)| Some((id, std::str::from_utf8(self.pieces.get(id)).ok()?)))
    }

    /// Whether the token steers the model, and shows in no answer.
    pub fn is_control(&self, id: u32) -> bool {
        self.pieces.control.get(id as usize) == Some(&true)
    }

    /// Tokens that end a turn.
    pub fn ends(&self) -> impl Iterator<Item = u32> {
        self.ends.iter().copied()
    }

    /// Whether the token ends a turn.
    pub fn is_end(&self, id: u32) -> bool {
        self.ends.contains(&id)
    }

    /// How many logits the model gives for each token.
    pub fn vocabulary(&self) -> usize {
        self.pieces.ends.len()
    }

    /// How many of them, from the first on, are of tokens that there are. A model may have more embeddings than tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
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

/// How the texts of a vocabulary's tokens are written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spelling {
    /// Each byte as a character.
    Bytes,
    /// As they are, but for blanks, and bytes by their number.
    Blanks,
}

impl Pieces {
    fn new(tokens: &[&str], types: &[i32], spelling: Spelling) -> Self {
        let mut byte_of = [None; 512];
        for byte in 0..=255u8 {
            byte_of[byte_char(byte) as usize] = Some(byte);
        }
        let mut pieces = Self::default();
        for (token, kind) in tokens.iter().zip(types) {
            let start = pieces.bytes.len();
            match *kind {
                CONTROL | USER_DEFINED => pieces.bytes.extend(token.as_bytes()),
                BYTE if let Some(byte) = merging::byte_of(token) => pieces.bytes.push(byte),
                _ if spelling == Spelling::Blanks => pieces.bytes.extend(token.replace(BLANK, " ").into_bytes()),
                _ => {
                    for c in token.chars() {
                        match byte_of.get(c as usize).copied().flatten() {
                            Some(byte) => pieces.bytes.push(byte),
                            None => pieces.bytes.extend(c.encode_utf8(&mut [0; 4]).as_bytes()),
                        }
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
