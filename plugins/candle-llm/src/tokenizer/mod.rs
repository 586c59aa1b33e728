//! Text to token ids and back, from the vocabulary in a GGUF file or from a `tokenizer.json`.
//!
//! Byte-level BPE only.

mod gguf;
mod json;

use std::collections::HashSet;

use aihost_plugin_api::{Error, Result};

/// `tokenizer.ggml.token_type` of tokens that are text.
const NORMAL: i32 = 1;
/// The type of tokens that steer the model and are no text.
const CONTROL: i32 = 3;
/// The type of tokens that are text but are matched before everything else.
const USER_DEFINED: i32 = 4;
/// Control tokens that end a turn, whatever the metadata says of them.
const ENDS: [&str; 7] =
    ["<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|end_of_text|>", "<|endoftext|>", "</s>"];

/// How the tokens of [`FillIn`] are called where metadata does not name them: by Qwen, StarCoder, StarCoder's older models, DeepSeek.
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
        if self.is_control(id) { &[] } else { self.pieces.get(id) }
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use tokenizers::models::bpe::{BPE, Vocab};
    use tokenizers::{AddedToken, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    use super::gguf::rules;
    use super::{Pieces, Tokenizer, WINDOW_BYTES, byte_char};

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
