//! Texts to token ids, with what the model puts around a text or between a query and a document.

use std::path::Path;

use aihost_plugin_api::{Error, Result};
use aihost_support::tokens;

/// Bytes of a text that a token may stand for at most, by far: a text with more is longer than any context.
const BYTES_PER_TOKEN: usize = 256;

/// What stands around a question to a judge.
const JUDGE_FRAME: [&str; 2] = [
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the answer can only be \"yes\" or \"no\".<|im_end|>\n<|im_start|>user\n",
    "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
];

/// A model's tokenizer.
#[derive(Debug)]
pub struct Texts {
    inner: tokenizers::Tokenizer,
    /// Tokens of the vocabulary that have vectors.
    vocabulary: usize,
    /// Most tokens of a text, with what is put around it.
    context: usize,
    /// Whether what is longer is cut.
    is_cut: bool,
}

/// A text as the model reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    pub tokens: Vec<u32>,
    /// The kind of each token: 1 for those of a document behind a query.
    pub kinds: Vec<u32>,
}

impl Texts {
    /// Opens a `tokenizer.json`.
    ///
    /// # Errors
    /// `MissingFile` if there is none, `CorruptFile` if it cannot be read or has more tokens than the model.
    pub fn open(path: &Path, vocabulary: usize, context: usize, is_cut: bool) -> Result<Self> {
        let inner =
            tokens::open(path, "an encoder needs its tokenizer.json, under role `tokenizer` or beside its weights")?;
        Ok(Self { inner, vocabulary, context, is_cut })
    }

    /// Most tokens of a text.
    pub fn context(&self) -> usize {
        self.context
    }

    /// A text. `field` is what errors are about.
    ///
    /// # Errors
    /// `ContextLength` if it is too long, `InvalidRequest` if nothing of it is left.
    pub fn text(&self, text: &str, field: &str) -> Result<Encoded> {
        let text = self.bounded(text);
        let encoding = self.inner.encode_fast(text, true).map_err(Error::internal)?;
        self.fit(&encoding, field)
    }

    /// A query and a document.
    ///
    /// # Errors
    /// As [`text`](Self::text).
    pub fn pair(&self, query: &str, document: &str, field: &str) -> Result<Encoded> {
        let pair = (self.bounded(query), self.bounded(document));
        let encoding = self.inner.encode_fast(pair, true).map_err(Error::internal)?;
        self.fit(&encoding, field)
    }

    /// A query and a document as a judge is asked about them (Qwen3-Reranker).
    ///
    /// # Errors
    /// As [`text`](Self::text).
    pub fn judged(&self, instruction: &str, query: &str, document: &str, field: &str) -> Result<Encoded> {
        let (query, document) = (self.bounded(query), self.bounded(document));
        let [before, behind] = JUDGE_FRAME;
        let asked = format!("{before}<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}{behind}");
        let encoding = self.inner.encode_fast(asked, false).map_err(Error::internal)?;
        let mut encoded = self.known(&encoding)?;
        let count = encoded.tokens.len();
        if count > self.context && self.is_cut {
            // What asks for the answer stays.
            let frame = self.inner.encode_fast(behind, false).map_err(Error::internal)?.get_ids().len();
            let kept = self.context.saturating_sub(frame);
            encoded.tokens.drain(kept..count - frame.min(count));
            encoded.kinds = vec![0; encoded.tokens.len()];
        }
        self.cut(encoded, field)
    }

    /// The tokens of a judge's answers, yes and no.
    pub fn answers(&self) -> Option<[u32; 2]> {
        let known = |word| self.inner.token_to_id(word).filter(|id| (*id as usize) < self.vocabulary);
        Some([known("yes")?, known("no")?])
    }

    /// Token ids as they were sent.
    ///
    /// # Errors
    /// `InvalidRequest` for one that is not of the vocabulary, `ContextLength` if there are too many.
    pub fn ids(&self, ids: &[u32], field: &str) -> Result<Encoded> {
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.vocabulary) {
            let message = format!("{field} has the token {id}, but the vocabulary has {} tokens", self.vocabulary);
            return Err(Error::invalid_request(message).at(field));
        }
        self.cut(Encoded { tokens: ids.to_vec(), kinds: vec![0; ids.len()] }, field)
    }

    /// The beginning of a text, longer than any context in it.
    fn bounded<'a>(&self, text: &'a str) -> &'a str {
        &text[..text.floor_char_boundary((self.context + 1).saturating_mul(BYTES_PER_TOKEN))]
    }

    fn fit(&self, encoding: &tokenizers::Encoding, field: &str) -> Result<Encoded> {
        self.cut(self.known(encoding)?, field)
    }

    /// Tokens, all of which have vectors.
    fn known(&self, encoding: &tokenizers::Encoding) -> Result<Encoded> {
        let (tokens, kinds) = (encoding.get_ids().to_vec(), encoding.get_type_ids().to_vec());
        if let Some(id) = tokens.iter().find(|id| **id as usize >= self.vocabulary) {
            return Err(Error::internal(format!(
                "the tokenizer gave the token {id}, and the model has {}; its tokenizer.json is another model's",
                self.vocabulary
            )));
        }
        Ok(Encoded { tokens, kinds })
    }

    fn cut(&self, mut encoded: Encoded, field: &str) -> Result<Encoded> {
        let (count, context) = (encoded.tokens.len(), self.context);
        if count == 0 {
            return Err(Error::invalid_request(format!(
                "{field} has a text of no tokens; send one that says something"
            ))
            .at(field));
        }
        if count > context && !self.is_cut {
            let message = format!(
                "This model's maximum context length is {context} tokens, but {field} has a text of {count}; shorten it, or set `truncate: true` in the model's options"
            );
            let [count, context] = [count, context].map(|n| u32::try_from(n).unwrap_or(u32::MAX));
            return Err(Error::context_length(message, Some(count), context));
        }
        if count > context {
            // What closes a text stays its last token.
            let last = encoded.tokens[count - 1];
            encoded.tokens.truncate(context);
            encoded.kinds.truncate(context);
            encoded.tokens[context - 1] = last;
        }
        Ok(encoded)
    }
}
