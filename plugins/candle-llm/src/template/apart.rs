//! What clients and tools say is text: where it has the text of a special token, that is no token.
//!
//! Templates cut, compare and rewrite what is said, so that a prompt does not tell whose its parts are. So a conversation is rendered
//! once more with a mark within every special token of a client's, and the marks of that tell where the prompt is to be cut. Marks
//! change nothing else, unless a template looks for special tokens itself.

use std::collections::HashSet;

use aho_corasick::AhoCorasick;
use aihost_plugin_api::{Error, Result};
use serde_json::Value;

/// Marks that there are to choose from: characters of no meaning, but for those that mark an end.
const MARKS: std::ops::RangeInclusive<char> = '\u{f880}'..='\u{f8fd}';

/// Longest token that is looked for in halves, in bytes: all of its halves are kept.
const HALVED_BYTES: usize = 128;

/// The special tokens of a vocabulary that steer the model.
#[derive(Debug)]
pub struct ControlTokens {
    finder: AhoCorasick,
    /// What a text may begin with that another text makes such a token of.
    tails: HashSet<Box<str>>,
    /// What it may end with.
    heads: HashSet<Box<str>>,
    /// Bytes of the longest of those.
    longest: usize,
}

/// A prompt, and where no special token may be across.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Apart {
    /// The prompt.
    pub text: String,
    /// Places in it, in bytes and in order.
    borders: Vec<usize>,
}

impl Apart {
    /// A prompt that has special tokens only of the template's own.
    pub(super) fn whole(text: String) -> Self {
        Self { text, borders: Vec::new() }
    }

    /// Its parts.
    pub fn parts(&self) -> Vec<&str> {
        let starts = std::iter::once(&0).chain(&self.borders);
        let ends = self.borders.iter().copied().chain([self.text.len()]);
        starts.zip(ends).map(|(start, end)| &self.text[*start..end]).collect()
    }
}

impl ControlTokens {
    /// Of these names.
    ///
    /// # Errors
    /// `Internal` if they are too many.
    pub fn new<'a>(names: impl Iterator<Item = &'a str>) -> Result<Self> {
        // One of a single character cannot be told from text.
        let names: Vec<&str> = names.filter(|name| name.chars().nth(1).is_some()).collect();
        let inner = |name: &'a str| name.char_indices().map(|(at, _)| at).skip(1);
        let halved = || names.iter().filter(|name| name.len() <= HALVED_BYTES);
        let tails = halved().flat_map(|name| inner(name).map(|at| name[at..].into())).collect();
        let heads = halved().flat_map(|name| inner(name).map(|at| name[..at].into())).collect();
        let longest = halved().map(|name| name.len()).max().unwrap_or(0);
        Ok(Self { finder: AhoCorasick::new(&names).map_err(Error::internal)?, tails, heads, longest })
    }

    /// Whether anything in it could be a special token or a part of one.
    pub(super) fn touches(&self, value: &Value) -> bool {
        match value {
            // JSON in a text may write its characters by their numbers.
            Value::String(text) => text.contains("\\u") || !self.places(text).is_empty(),
            Value::Array(items) => items.iter().any(|item| self.touches(item)),
            Value::Object(fields) => {
                fields.iter().any(|(name, value)| !self.places(name).is_empty() || self.touches(value))
            }
            _ => false,
        }
    }

    /// Where a mark in a text keeps it from being or making a special token.
    fn places(&self, text: &str) -> Vec<usize> {
        let second = |at: usize| at + text[at..].chars().next().map_or(1, char::len_utf8);
        let mut places: Vec<usize> =
            self.finder.find_overlapping_iter(text).map(|found| second(found.start())).collect();
        let most = text.len().min(self.longest);
        let is_in = |set: &HashSet<Box<str>>, part: Option<&str>| part.is_some_and(|part| set.contains(part));
        if (1..=most).any(|length| is_in(&self.tails, text.get(..length))) {
            places.push(0);
        }
        if (1..=most).any(|length| is_in(&self.heads, text.get(text.len() - length..))) {
            places.push(text.len());
        }
        places.sort_unstable();
        places.dedup();
        places
    }

    /// The places that special tokens of a text are across.
    fn needed(&self, text: &str, mut places: Vec<usize>) -> Vec<usize> {
        let mut needed = HashSet::new();
        for found in self.finder.find_overlapping_iter(text) {
            let first = places.partition_point(|place| *place <= found.start());
            needed.extend(places[first..].iter().copied().take_while(|place| *place < found.end()));
        }
        places.retain(|place| needed.contains(place));
        places
    }
}

/// Whose texts are marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Marked {
    Everybodys,
    /// What the model itself has said stays as it was.
    OthersThanTheModels,
}

/// Marks what a conversation says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Marker<'a> {
    tokens: &'a ControlTokens,
    mark: char,
    marked: Marked,
}

impl<'a> Marker<'a> {
    /// With a mark that is nowhere in these texts.
    ///
    /// # Errors
    /// `InvalidRequest` if they have all.
    pub(super) fn new<'b>(tokens: &'a ControlTokens, texts: impl Iterator<Item = &'b str> + Clone) -> Result<Self> {
        let is_free = |mark: &char| {
            let escaped = escaped(*mark);
            !texts.clone().any(|text| text.contains(*mark) || text.contains(&escaped))
        };
        let mark = MARKS.rev().find(is_free).ok_or_else(|| {
            let message =
                "the messages have every character from U+F880 to U+F8FD, which have no meaning; leave some out";
            Error::invalid_request(message).at("messages")
        })?;
        Ok(Self { tokens, mark, marked: Marked::Everybodys })
    }

    pub(super) fn marking(self, marked: Marked) -> Self {
        Self { marked, ..self }
    }

    /// A message with its marks.
    pub(super) fn message(&self, message: Value) -> Value {
        let is_kept = self.marked == Marked::OthersThanTheModels && message["role"] == "assistant";
        match message {
            Value::Object(fields) if is_kept => {
                let mark = |(name, value): (String, Value)| {
                    let value = if value.is_string() { value } else { self.value(value) };
                    (name, value)
                };
                fields.into_iter().map(mark).collect()
            }
            other => self.value(other),
        }
    }

    /// A value with its marks.
    pub(super) fn value(&self, value: Value) -> Value {
        match value {
            Value::String(text) => self.text(text).into(),
            Value::Array(items) => items.into_iter().map(|item| self.value(item)).collect(),
            Value::Object(fields) => {
                fields.into_iter().map(|(name, value)| (self.text(name), self.value(value))).collect()
            }
            other => other,
        }
    }

    fn text(&self, mut text: String) -> String {
        for place in self.tokens.places(&text).into_iter().rev() {
            text.insert(place, self.mark);
        }
        text
    }

    /// A prompt without its marks, cut where one of them is within a special token.
    pub(super) fn read(&self, marked: &str) -> Apart {
        let (mut text, mut places) = (String::with_capacity(marked.len()), Vec::new());
        let plain = marked.replace(&escaped(self.mark), self.mark.encode_utf8(&mut [0; 4]));
        for part in plain.split(self.mark) {
            text.push_str(part);
            places.push(text.len());
        }
        // Behind the last part is no mark.
        places.pop();
        places.dedup();
        Apart { borders: self.tokens.needed(&text, places), text }
    }
}

/// A mark as JSON of ASCII has it, and Python's `repr`.
fn escaped(mark: char) -> String {
    format!("\\u{:04x}", u32::from(mark))
}
