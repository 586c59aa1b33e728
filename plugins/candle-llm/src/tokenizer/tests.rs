//! What becomes of texts.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::{AddedToken, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, PreTokenizerWrapper};

use super::byte_char;
use super::byte_level::{ByteLevel, WINDOW_BYTES};
use super::pre::{ROWS, Row, row};
use crate::host_lists::host_list;

/// A tokenizer of single bytes, a few pairs of them, and two special tokens.
fn tiny(row: &Row) -> ByteLevel {
    let pair = |a: u8, b: u8| (byte_char(a).to_string(), byte_char(b).to_string());
    let merges = vec![pair(b'a', b'b'), pair(b' ', b'a'), pair(b'1', b'1'), pair(b'\n', b'\n'), pair(b'!', b'!')];
    let singles = (0..=255).map(|byte| byte_char(byte).to_string());
    let tokens = singles.chain(merges.iter().map(|(a, b)| format!("{a}{b}")));
    let vocabulary: Vocab = tokens.zip(0..).collect();
    let model = BPE::builder().vocab_and_merges(vocabulary, merges).cache_capacity(0).build().expect("a model");
    let mut inner = tokenizers::Tokenizer::new(model);
    inner.with_pre_tokenizer(Some(pre_tokenizer(row)));
    let special = ["<|x|>", "<|begin_of_something|>"].map(|text| AddedToken::from(text, true).normalized(false));
    inner.add_special_tokens(special).expect("added");
    ByteLevel { inner, window_bytes: WINDOW_BYTES, special_bytes: 22 }
}

fn pre_tokenizer(row: &Row) -> PreTokenizerWrapper {
    row.pre_tokenizer().expect("its patterns parse")
}

/// Rows that cut texts into words.
fn of_words() -> impl Iterator<Item = &'static Row> {
    ROWS.iter().filter(|row| !row.patterns.is_empty())
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
    for row in of_words().filter(|row| !row.looks_far) {
        let (pre, tokenizer) = (row.names[0], tiny(row));
        let mut texts: Vec<String> = (0..10).map(|seed| text(seed, 600)).collect();
        // Words longer than a window, and nothing but one kind.
        texts.extend(["a", "1", "!", " ", "\n", " \n", "a!", "<|x|>"].map(|part| part.repeat(2000)));
        for text in texts {
            let whole = tokenizer.inner.encode_fast(text.as_str(), false).expect("encodes");
            let encode = |window: usize, most: usize| {
                let mut ids = Vec::new();
                let is_whole = tokenizer.encode_by(window, &text, most, &mut ids).expect("encodes");
                (ids, is_whole)
            };
            for window in [150, 1000] {
                let (ids, is_whole) = encode(window, usize::MAX);
                assert!(is_whole && ids == whole.get_ids(), "{pre}, {window}: {text:?}");
            }
            let (ids, is_whole) = encode(150, 50);
            assert!(whole.get_ids().starts_with(&ids), "{pre}: {text:?}");
            assert!(is_whole || ids.len() > 50, "{pre}: {} ids", ids.len());
        }
    }
}

fn pieces(cutter: &PreTokenizerWrapper, text: &str) -> Vec<String> {
    let mut string = PreTokenizedString::from(text);
    cutter.pre_tokenize(&mut string).expect("splits");
    let splits = string.get_splits(OffsetReferential::Original, OffsetType::Byte);
    splits.into_iter().map(|(_, (start, end), _)| text[start..end].to_owned()).collect()
}

#[test]
fn names_of_ways_to_cut_are_of_one_each() {
    let mut names: Vec<&str> = ROWS.iter().flat_map(|row| row.names).copied().collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!((names.len(), row("default").map(|row| row.names)), (count, Some(ROWS[0].names)));
    assert!(row("something-else").is_none());
}

/// The host chooses a plugin by the header of a file, and has a list of its own.
#[test]
fn the_host_knows_the_same_ways_to_cut() {
    let theirs = host_list("weights.rs", "CANDLE_SPLITS");
    let ours = ROWS.iter().flat_map(|row| row.names).map(|name| (*name).to_owned()).collect();
    assert_eq!(theirs, ours);
}

/// Texts, and for each way to cut them how many characters each of their words has (tests/golden/llm/splits.py).
#[derive(Deserialize)]
struct Splits {
    texts: Vec<String>,
    lengths: BTreeMap<String, Vec<String>>,
}

/// `AIHOST_SPLITS` names a file of more of them.
#[test]
fn texts_are_cut_as_pythons_regex_cuts_them() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/llm/splits.json");
    let path = std::env::var_os("AIHOST_SPLITS").map_or(golden, PathBuf::from);
    let splits: Splits = serde_json::from_slice(&std::fs::read(path).expect("it is there")).expect("it is JSON");
    assert_eq!(splits.lengths.len(), of_words().count(), "every row is held against its own");
    let (mut wrong, mut count) = (HashMap::<&str, Vec<String>>::new(), 0);
    for (name, all) in &splits.lengths {
        let cutter = pre_tokenizer(row(name).expect("known"));
        for (text, wanted) in splits.texts.iter().zip(all) {
            let found = pieces(&cutter, text);
            let lengths: Vec<String> = found.iter().map(|piece| piece.chars().count().to_string()).collect();
            count += 1;
            if lengths.join(" ") != *wanted {
                wrong.entry(name).or_default().push(format!("{text:?}: {found:?} in place of {wanted}"));
            }
        }
    }
    let told: Vec<_> = wrong.iter().map(|(name, all)| format!("{name}: {}, {}", all.len(), all[0])).collect();
    assert!(told.is_empty(), "of {count} differ:\n{}", told.join("\n"));
}

#[test]
fn bytes_have_distinct_characters() {
    let mut all: Vec<char> = (0..=255).map(byte_char).collect();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 256);
    assert_eq!((byte_char(b' '), byte_char(b'\n'), byte_char(b'a')), ('Ġ', 'Ċ', 'a'));
}
