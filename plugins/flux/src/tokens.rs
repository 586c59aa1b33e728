//! Prompts to tokens, for both text encoders. Each text is truncated or padded to the length its encoder was trained with.

use std::path::Path;

use aihost_plugin_api::{Error, ErrorKind, Result};
use aihost_support::panics::caught;
use aihost_support::tokens;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::roberta::RobertaProcessing;
use tokenizers::{AddedToken, NormalizerWrapper, SplitDelimiterBehavior, Tokenizer};

/// What CLIP takes for words (Radford et al. 2021, `simple_tokenizer.py`).
const CLIP_WORDS: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

const CLIP_START: &str = "<|startoftext|>";
const CLIP_END: &str = "<|endoftext|>";
const T5_END: &str = "</s>";
const T5_PAD: &str = "<pad>";

/// A tokenizer, with the ids of its end and padding tokens.
#[derive(Debug)]
pub struct Tokens {
    tokenizer: Tokenizer,
    end: u32,
    pad: u32,
}

/// Token ids of a text, at the encoder's length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// Padded, or truncated with the end token kept.
    pub tokens: Vec<u32>,
    /// Tokens that were truncated, of as much of the text as was looked at.
    pub truncated: usize,
}

impl Tokens {
    /// CLIP's, from a folder with `tokenizer.json`, or with `vocab.json` and `merges.txt`.
    ///
    /// # Errors
    /// [`ErrorKind::MissingFile`] if neither is there, [`ErrorKind::CorruptFile`] if they cannot be read.
    pub fn clip(path: &Path) -> Result<Self> {
        let whole = if path.is_dir() { path.join("tokenizer.json") } else { path.to_owned() };
        let tokenizer = if whole.is_file() { open(&whole)? } else { byte_pairs(path)? };
        Self::new(tokenizer, path, CLIP_END, CLIP_END)
    }

    /// T5's, from a folder with `tokenizer.json`.
    ///
    /// # Errors
    /// As [`clip`](Self::clip).
    pub fn t5(path: &Path) -> Result<Self> {
        let whole = if path.is_dir() { path.join("tokenizer.json") } else { path.to_owned() };
        Self::new(open(&whole)?, path, T5_END, T5_PAD)
    }

    fn new(tokenizer: Tokenizer, path: &Path, end: &str, pad: &str) -> Result<Self> {
        let token =
            |text: &str| tokenizer.token_to_id(text).ok_or_else(|| corrupt(path, format!("it has no token `{text}`")));
        let (end, pad) = (token(end)?, token(pad)?);
        Ok(Self { tokenizer, end, pad })
    }

    /// Token ids of `text`, `length` of them.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn encode(&self, text: &str, length: usize) -> Result<Encoded> {
        let mut tokens = tokens::encode(&self.tokenizer, text)?;
        let truncated = tokens.len().saturating_sub(length);
        tokens.resize(length, self.pad);
        if truncated > 0
            && let Some(last) = tokens.last_mut()
        {
            *last = self.end;
        }
        Ok(Encoded { tokens, truncated })
    }
}

fn open(path: &Path) -> Result<Tokenizer> {
    tokens::open(path, "a FLUX.1 model needs the tokenizers of CLIP and T5")
}

/// CLIP's tokenizer as the first release describes it.
fn byte_pairs(folder: &Path) -> Result<Tokenizer> {
    let (vocabulary, merges) = (folder.join("vocab.json"), folder.join("merges.txt"));
    if let Some(missing) = [&vocabulary, &merges].into_iter().find(|file| !file.is_file()) {
        let text = format!("{} does not exist, nor does a tokenizer.json beside it", missing.display());
        return Err(Error::new(ErrorKind::MissingFile, text));
    }
    let failed = |error: tokenizers::Error| corrupt(folder, error);
    let pairs = BPE::from_file(&vocabulary.to_string_lossy(), &merges.to_string_lossy())
        .end_of_word_suffix("</w>".to_owned())
        .unk_token(CLIP_END.to_owned());
    let model = caught(|| pairs.build()).map_err(|error| corrupt(folder, error))?;
    let mut tokenizer = Tokenizer::new(model);
    let spaces = Replace::new(tokenizers::normalizers::replace::ReplacePattern::Regex(r"\s+".to_owned()), " ");
    let normalizers: Vec<NormalizerWrapper> = vec![NFC.into(), spaces.map_err(failed)?.into(), Lowercase.into()];
    tokenizer.with_normalizer(Some(Normalizers::new(normalizers))).map_err(failed)?;
    let words = SplitPattern::Regex(CLIP_WORDS.to_owned());
    let words = Split::new(words, SplitDelimiterBehavior::Removed, true).map_err(failed)?;
    let bytes = ByteLevel::default().add_prefix_space(false);
    tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(vec![words.into(), bytes.into()])));
    let special = |text: &str| -> Result<(String, u32)> {
        let id = tokenizer.token_to_id(text).ok_or_else(|| corrupt(folder, format!("it has no token `{text}`")))?;
        Ok((text.to_owned(), id))
    };
    let (start, end) = (special(CLIP_START)?, special(CLIP_END)?);
    tokenizer.with_post_processor(Some(RobertaProcessing::new(end, start).trim_offsets(false).add_prefix_space(false)));
    let special = [CLIP_START, CLIP_END].map(|text| AddedToken::from(text, true));
    tokenizer.add_special_tokens(special).map_err(failed)?;
    Ok(tokenizer)
}

fn corrupt(path: &Path, error: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::CorruptFile, format!("{} cannot be read: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_that_make_no_token_are_a_corrupt_file() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("vocab.json"), r#"{"a": 0, "b": 1}"#).unwrap();
        // Longer than every token, which the library's builder panics over.
        std::fs::write(folder.path().join("merges.txt"), "#version: 0.2\na b\n").unwrap();
        assert_eq!(Tokens::clip(folder.path()).unwrap_err().kind(), ErrorKind::CorruptFile);
    }
}
