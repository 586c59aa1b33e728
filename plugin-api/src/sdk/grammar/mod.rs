//! Keeps an answer to its form while it is made: a mask over the logits, by llguidance.
//!
//! What a request asks for becomes one grammar ([`rules`]): the reasoning that a model may write first, then the JSON, the text or
//! the calls. Requests that ask for nothing have none.

mod rules;

use std::collections::HashMap;
use std::sync::Arc;

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::{Matcher, ParserFactory};
use toktrie::{ApproximateTokEnv, TokRxInfo, TokTrie};

use super::answer::{AnswerStart, AnswerSyntax};
use super::{Error, Result};
use crate::task::TextRequest;

/// What a model can say: its tokens, as grammars need them. Made once per model, which takes some ten milliseconds for a hundred
/// thousand tokens, and best when the first request asks for a grammar.
pub struct GrammarVocabulary {
    factory: ParserFactory,
    /// Tokens that stand for no text, by name.
    special: HashMap<String, u32>,
    ends: Arc<[u32]>,
}

impl std::fmt::Debug for GrammarVocabulary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrammarVocabulary").field("tokens", &self.factory.tok_env().tok_trie().vocab_size()).finish()
    }
}

/// A token of a [`GrammarVocabulary`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GrammarToken {
    /// It stands for these bytes, which need not be whole characters.
    Bytes(Vec<u8>),
    /// It steers the model, is called so, and stands for no text.
    Special(String),
}

impl GrammarVocabulary {
    /// The vocabulary of these tokens, in the order of their ids. A text ends with one of `ends`.
    ///
    /// # Errors
    /// [`Internal`](super::ErrorKind::Internal) if no text can end, or there are no tokens.
    pub fn new(tokens: impl IntoIterator<Item = GrammarToken>, ends: &[u32]) -> Result<Self> {
        let mut special = HashMap::new();
        let mut words: Vec<Vec<u8>> = Vec::new();
        for token in tokens {
            words.push(match token {
                GrammarToken::Bytes(bytes) => bytes,
                GrammarToken::Special(name) => {
                    let word = [&[TokTrie::SPECIAL_TOKEN_MARKER], name.as_bytes()].concat();
                    special.insert(name, id(words.len()));
                    word
                }
            });
        }
        let Some(first) = ends.first().filter(|end| (**end as usize) < words.len()) else {
            return Err(Error::internal("the vocabulary has no token by which a text ends"));
        };
        let trie = TokTrie::from(&TokRxInfo::new(id(words.len()), *first), &words).with_eos_tokens(ends);
        let environment: toktrie::TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&environment).map_err(Error::internal)?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits { verbose_errors: false, ..ParserLimits::default() };
        Ok(Self { factory, special, ends: ends.into() })
    }

    /// What keeps the answer to this request to its form; `None` if it may be anything. The model writes by `syntax`, and its
    /// prompt leaves it at `start`.
    ///
    /// # Errors
    /// [`InvalidRequest`](super::ErrorKind::InvalidRequest), which names the field: the form has something that cannot be kept.
    pub fn grammar(&self, request: &TextRequest, syntax: AnswerSyntax, start: AnswerStart) -> Result<Option<Grammar>> {
        let Some(rules) = rules::of(request, syntax, start, &self.special)? else { return Ok(None) };
        let mut matcher = Matcher::new(self.factory.create_parser(TopLevelGrammar::from_lark(rules.text)));
        // One that allows no answer shows it at the first token.
        matcher.compute_mask().map_err(|error| rules::refused(rules.field, &error.to_string()))?;
        Ok(Some(Grammar { matcher, field: rules.field, ends: Arc::clone(&self.ends), is_over: false }))
    }
}

/// One answer's grammar, as far as it has come.
pub struct Grammar {
    matcher: Matcher,
    /// What of the request asked for it.
    field: &'static str,
    ends: Arc<[u32]>,
    is_over: bool,
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammar").field("is_over", &self.is_over).finish_non_exhaustive()
    }
}

impl Grammar {
    /// Makes minus infinity of the logits, `[vocabulary]` or more, of all tokens that may not come next.
    ///
    /// # Errors
    /// `InvalidRequest`, which names the field: what may come next is more than can be followed.
    pub(super) fn apply(&mut self, logits: &mut [f32]) -> Result<()> {
        let mask =
            self.matcher.compute_mask_or_eos().map_err(|error| rules::refused(self.field, &error.to_string()))?;
        let tokens = mask.len().min(logits.len());
        logits[tokens..].fill(f32::NEG_INFINITY);
        mask.iter_unset_entries(|token| {
            if let Some(logit) = logits.get_mut(token) {
                *logit = f32::NEG_INFINITY;
            }
        });
        Ok(())
    }

    /// Takes note of the token that was drawn.
    ///
    /// # Errors
    /// As [`apply`](Self::apply).
    pub(super) fn accept(&mut self, token: u32) -> Result<()> {
        if self.ends.contains(&token) {
            self.is_over = true;
        } else if !self.is_over {
            self.matcher.consume_token(token).map_err(|error| rules::refused(self.field, &error.to_string()))?;
            self.is_over = self.matcher.is_stopped();
        }
        Ok(())
    }

    /// Whether nothing more may come.
    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }
}

fn id(place: usize) -> u32 {
    u32::try_from(place).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
