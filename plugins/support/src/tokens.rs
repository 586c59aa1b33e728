//! `tokenizer.json` files of text encoders: opened so that no file makes a short text long, or a text endless work.

use std::path::Path;

use aihost_plugin_api::{Error, ErrorKind, Result};
use serde::Deserialize;
use serde_json::Value;
use tokenizers::Tokenizer;

use crate::panics::caught;

/// Most bytes of a file; the largest vocabularies have half of it.
const FILE_BYTES: u64 = 64 << 20;
/// Times its length that a text may become before it is cut into words.
const GROWTH_MAX: usize = 4096;
/// Most pieces that a text is put between.
const PIECES_MAX: usize = 16;
/// Most bytes of a text that are looked at: a text encoder reads some hundred tokens.
pub const TEXT_BYTES: usize = 64 << 10;

/// What of a file can make a text grow.
#[derive(Deserialize)]
struct Parts {
    normalizer: Option<Value>,
    post_processor: Option<Value>,
}

/// The bytes of a tokenizer's file.
///
/// # Errors
/// [`ErrorKind::MissingFile`] if there is none, [`ErrorKind::CorruptFile`] if it cannot be read.
pub fn read(path: &Path, what_for: &str) -> Result<Vec<u8>> {
    if !path.is_file() {
        let text = format!("{} does not exist; {what_for}", path.display());
        return Err(Error::new(ErrorKind::MissingFile, text));
    }
    let bytes = path.metadata().map_err(|e| corrupt(path, &e))?.len();
    if bytes > FILE_BYTES {
        return Err(corrupt(path, &format!("it has {bytes} bytes, of at most {FILE_BYTES}")));
    }
    std::fs::read(path).map_err(|e| corrupt(path, &e))
}

/// Opens a tokenizer. It neither pads nor cuts: the length is the encoder's business.
///
/// # Errors
/// [`ErrorKind::MissingFile`] if there is none, [`ErrorKind::CorruptFile`] if it cannot be read, or would make a text too long.
pub fn open(path: &Path, what_for: &str) -> Result<Tokenizer> {
    let corrupt = |error: &dyn std::fmt::Display| corrupt(path, error);
    let json = read(path, what_for)?;
    let parts: Parts = serde_json::from_slice(&json).map_err(|e| corrupt(&e))?;
    parts.check().map_err(|e| corrupt(&e))?;
    let mut tokenizer = caught(|| Tokenizer::from_bytes(&json)).map_err(|e| corrupt(&e))?;
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(Error::internal)?;
    Ok(tokenizer)
}

fn corrupt(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::new(ErrorKind::CorruptFile, format!("{} cannot be read: {error}", path.display()))
}

/// The ids of the beginning of a text, with what the file puts around it.
///
/// # Errors
/// [`ErrorKind::CorruptFile`] if the tokenizer cannot do it, whatever it says of itself.
pub fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let encoded = caught(|| tokenizer.encode_fast(beginning(text), true));
    let encoded =
        encoded.map_err(|e| Error::new(ErrorKind::CorruptFile, format!("the model's tokenizer fails: {e}")))?;
    Ok(encoded.get_ids().to_vec())
}

/// The beginning of a text, as much of it as is worth its tokens.
pub fn beginning(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT_BYTES)]
}

impl Parts {
    fn check(&self) -> Result<(), String> {
        let growth = self.normalizer.as_ref().map_or(1, growth);
        if growth > GROWTH_MAX {
            return Err(format!("its normalizer makes texts {growth} times as long, of at most {GROWTH_MAX}"));
        }
        if let Some(claimed) = self.normalizer.as_ref().and_then(overlong_map) {
            return Err(format!("a map of its normalizer says that it has {claimed} bytes, more than are there"));
        }
        let pieces = self.post_processor.as_ref().map_or(0, pieces);
        if pieces > PIECES_MAX {
            return Err(format!("its post-processor puts texts between {pieces} pieces, of at most {PIECES_MAX}"));
        }
        Ok(())
    }
}

/// How many times its length a normalizer can make a text, or more.
fn growth(step: &Value) -> usize {
    match step {
        Value::Array(steps) => steps.iter().map(growth).fold(1, usize::saturating_mul),
        Value::Object(fields) => {
            let inserted = ["content", "prepend"].iter().filter_map(|name| fields.get(*name)?.as_str());
            // At worst each byte is replaced, or stands where something is put in.
            let own = inserted.map(|text| 1 + text.len()).fold(1, usize::saturating_mul);
            fields
                .values()
                .filter(|value| value.is_array() || value.is_object())
                .map(growth)
                .fold(own, usize::saturating_mul)
        }
        _ => 1,
    }
}

/// What a map of characters says it has, if that is more than it has: its reader would make room for that much.
fn overlong_map(step: &Value) -> Option<u32> {
    match step {
        Value::Array(steps) => steps.iter().find_map(overlong_map),
        Value::Object(fields) => {
            let map = fields.get("precompiled_charsmap").and_then(Value::as_str);
            let claimed = map.and_then(|map| Some((first_number(map)?, map.len())));
            let overlong = claimed.filter(|(claimed, length)| *claimed as usize > *length).map(|(claimed, _)| claimed);
            overlong.or_else(|| fields.values().find_map(overlong_map))
        }
        _ => None,
    }
}

/// The little-endian number that a text in base64 begins with; `None` if it is none, which its reader says.
fn first_number(base64: &str) -> Option<u32> {
    let digit = |character: u8| {
        Some(match character {
            b'A'..=b'Z' => character - b'A',
            b'a'..=b'z' => character - b'a' + 26,
            b'0'..=b'9' => character - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        })
    };
    // Six digits are four bytes and four bits.
    let digits = base64.as_bytes().first_chunk::<6>()?;
    let bits = digits.iter().try_fold(0_u64, |bits, character| Some(bits << 6 | u64::from(digit(*character)?)))?;
    Some(((bits >> 4) as u32).swap_bytes())
}

/// How many pieces a post-processor puts together, all its steps together.
fn pieces(step: &Value) -> usize {
    match step {
        Value::Array(steps) => steps.iter().map(pieces).fold(0, usize::saturating_add),
        Value::Object(fields) => {
            let single = fields.get("single").and_then(Value::as_array).map_or(0, Vec::len);
            single.saturating_add(fields.get("processors").map_or(0, pieces))
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn file(change: impl FnOnce(&mut Value)) -> Result<Tokenizer> {
        let mut tokenizer = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": [],
            "normalizer": null,
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "post_processor": null,
            "decoder": null,
            "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "?": 2}, "unk_token": "?"},
        });
        change(&mut tokenizer);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        std::fs::write(&path, tokenizer.to_string()).unwrap();
        open(&path, "one is needed")
    }

    fn tokens(tokenizer: &Tokenizer) -> usize {
        tokenizer.encode("a b", true).unwrap().get_ids().len()
    }

    #[test]
    fn a_file_neither_pads_nor_cuts() {
        let padding = json!({
            "strategy": {"Fixed": 1_u64 << 34}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "a",
        });
        assert_eq!(tokens(&file(|t| t["padding"] = padding).unwrap()), 2);
        let truncation = json!({"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0});
        assert_eq!(tokens(&file(|t| t["truncation"] = truncation).unwrap()), 2);
    }

    #[test]
    fn a_file_that_makes_texts_grow_is_refused() {
        let replace = |content: String| json!({"type": "Replace", "pattern": {"String": "a"}, "content": content});
        let sequence = |steps: Vec<Value>| json!({"type": "Sequence", "normalizers": steps});
        let doubling = sequence((0..40).map(|_| replace("aa".to_owned())).collect());
        for normalizer in [doubling.clone(), sequence(vec![doubling]), replace("a".repeat(1 << 20))] {
            let error = file(|t| t["normalizer"] = normalizer).expect_err("refused");
            assert_eq!(error.kind(), ErrorKind::CorruptFile);
            assert!(error.message().contains("times as long"), "{error}");
        }
        assert!(file(|t| t["normalizer"] = sequence(vec![replace("▁".to_owned()), replace(" ".to_owned())])).is_ok());

        let text = json!({"Sequence": {"id": "A", "type_id": 0}});
        let template = |count| json!({"type": "TemplateProcessing", "single": vec![text.clone(); count], "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}], "special_tokens": {}});
        assert_eq!(tokens(&file(|t| t["post_processor"] = template(3)).unwrap()), 6);
        let twice = json!({"type": "Sequence", "processors": vec![template(2); 40]});
        for processor in [template(1000), twice] {
            let error = file(|t| t["post_processor"] = processor).expect_err("refused");
            assert!(error.message().contains("pieces"), "{error}");
        }
    }

    #[test]
    fn a_map_that_says_it_is_larger_than_it_is_is_refused() {
        let precompiled = |map: &str| json!({"type": "Precompiled", "precompiled_charsmap": map});
        for normalizer in [
            precompiled("AAAAgAAA"),
            json!({"type": "Sequence", "normalizers": [{"type": "NFC"}, precompiled("////fwAA")]}),
        ] {
            let error = file(|t| t["normalizer"] = normalizer).expect_err("refused");
            assert!(
                error.kind() == ErrorKind::CorruptFile && error.message().contains("more than are there"),
                "{error}"
            );
        }
        for (text, wanted) in
            [("BAAAAAAA", Some(4)), ("AQIDBA==", Some(0x0403_0201)), ("AAAA", None), ("????????", None)]
        {
            assert_eq!(first_number(text), wanted, "{text}");
        }
    }

    #[test]
    fn what_its_reader_panics_over_cannot_be_read() {
        // Pieces of no length, a prefix that no token has, a map without an entry.
        let pieces = json!({"type": "FixedLength", "length": 0});
        let tokenizer = file(|t| t["pre_tokenizer"] = pieces).expect("opens");
        assert_eq!(encode(&tokenizer, "a b").expect_err("fails").kind(), ErrorKind::CorruptFile);
        let pairs = json!({
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "####", "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]],
        });
        assert_eq!(file(|t| t["model"] = pairs).expect_err("fails").kind(), ErrorKind::CorruptFile);
    }

    #[test]
    fn of_a_text_that_is_too_long_the_beginning_counts() {
        for (text, length) in [("x".repeat(TEXT_BYTES), TEXT_BYTES), ("漢".repeat(TEXT_BYTES), TEXT_BYTES - 1)] {
            assert_eq!(beginning(&text).len(), length);
        }
    }
}
