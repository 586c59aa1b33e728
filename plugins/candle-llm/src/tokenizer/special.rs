//! Special tokens in a text: the first one first, of several at one place the longest.

use aho_corasick::{AhoCorasick, MatchKind};
use aihost_plugin_api::{Error, Result};

/// A token that is found before a text is cut.
#[derive(Clone, Debug)]
pub(super) struct SpecialToken {
    pub(super) text: String,
    pub(super) id: u32,
    /// Whether blanks before it are a part of it.
    pub(super) strips_before: bool,
    /// Whether blanks behind it are.
    pub(super) strips_behind: bool,
}

/// All of a vocabulary's.
pub(super) struct Special {
    finder: AhoCorasick,
    tokens: Vec<SpecialToken>,
}

/// A piece of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found<'a> {
    Text(&'a str),
    Special(u32),
}

impl Special {
    pub(super) fn new(tokens: Vec<SpecialToken>) -> Result<Self> {
        let mut builder = AhoCorasick::builder();
        builder.match_kind(MatchKind::LeftmostLongest);
        let finder = builder.build(tokens.iter().map(|token| &token.text)).map_err(Error::internal)?;
        Ok(Self { finder, tokens })
    }

    /// The text's pieces, in order; none is empty.
    pub(super) fn split<'a>(&'a self, text: &'a str) -> impl Iterator<Item = Found<'a>> {
        let mut at = 0;
        let mut matches = self.finder.find_iter(text);
        let mut next = None;
        std::iter::from_fn(move || {
            loop {
                if let Some(id) = next.take() {
                    return Some(Found::Special(id));
                }
                let Some(found) = matches.next() else {
                    let rest = &text[std::mem::replace(&mut at, text.len())..];
                    return if rest.is_empty() { None } else { Some(Found::Text(rest)) };
                };
                let token = &self.tokens[found.pattern().as_usize()];
                // Blanks that the one before took may be no more than there are.
                let before = &text[at.min(found.start())..found.start()];
                let before = if token.strips_before { before.trim_end() } else { before };
                let behind = &text[found.end()..];
                let behind = if token.strips_behind { behind.trim_start() } else { behind };
                at = text.len() - behind.len();
                next = Some(token.id);
                if !before.is_empty() {
                    return Some(Found::Text(before));
                }
            }
        })
    }
}
