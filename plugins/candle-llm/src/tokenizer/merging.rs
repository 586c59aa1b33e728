//! Tokens of whole texts, as SentencePiece makes them: blanks are written U+2581, neighbours are merged, the best pair of all first,
//! and what is no token is written as its bytes.
//!
//! A text is cut where no token has two characters side by side: no merge crosses such a place, so its tokens are those of its parts.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

use super::special::{Found, Special};

/// What a blank is written as.
pub(super) const BLANK: char = '\u{2581}';

/// Which pairs merge, and in which order.
pub(super) enum Order {
    /// What makes a token, by that token's place among all: the lowest first.
    ByToken(Vec<u32>),
    /// Two tokens, by their place in a list.
    ByPair(HashMap<(u32, u32), u32>),
}

/// Where a blank is put that a text does not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Prefix {
    pub(super) place: PrefixPlace,
    /// Whether there is to be none before a blank that the text has.
    pub(super) unless_there: bool,
}

/// Before which texts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum PrefixPlace {
    #[default]
    Nowhere,
    /// Where a prompt begins.
    Beginning,
    /// There, and behind every special token.
    EachText,
}

/// How texts are written before they are cut.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Writing {
    pub(super) prefix: Prefix,
    /// Several blanks become one, and those around a text go.
    pub(super) single_blanks: bool,
    /// A word begins at every blank.
    pub(super) cut_at_blanks: bool,
    /// Line ends side by side are one token where there is one.
    pub(super) whole_line_ends: bool,
}

/// A vocabulary whose tokens are parts of texts.
pub(super) struct Merging {
    ids: HashMap<Box<str>, u32>,
    order: Order,
    /// Characters that stand side by side in a token.
    neighbours: HashSet<(char, char)>,
    bytes: Box<[Option<u32>; 256]>,
    unknown: Option<u32>,
    /// Bytes of the longest token.
    longest: usize,
    special: Special,
    writing: Writing,
}

/// What a vocabulary is made of.
pub(super) struct Parts<'a> {
    /// Tokens that texts are cut into, with their ids; of several of one text, the last one counts.
    pub(super) tokens: Vec<(&'a str, u32)>,
    pub(super) order: Order,
    pub(super) bytes: Box<[Option<u32>; 256]>,
    /// Stands for a byte that has no token.
    pub(super) unknown: Option<u32>,
    pub(super) special: Special,
    pub(super) writing: Writing,
}

/// Where in a prompt an encoding is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Behind {
    Nothing,
    Special,
    Text,
}

impl Merging {
    pub(super) fn new(parts: Parts<'_>) -> Self {
        let Parts { tokens, order, bytes, unknown, special, writing } = parts;
        let mut neighbours = HashSet::new();
        for (text, _) in &tokens {
            neighbours.extend(text.chars().zip(text.chars().skip(1)));
        }
        let longest = tokens.iter().map(|(text, _)| text.len()).max().unwrap_or(0);
        let ids = tokens.into_iter().map(|(text, id)| (text.into(), id)).collect();
        Self { ids, order, neighbours, bytes, unknown, longest, special, writing }
    }

    /// Whether a blank is put before a text.
    pub(super) fn puts_blank(&self) -> bool {
        self.writing.prefix.place != PrefixPlace::Nowhere
    }

    /// The ids of a prompt's parts, one behind the other; no special token is across two of them. Of more than `most`, the first ones.
    /// Whether there are no more.
    pub(super) fn encode(&self, parts: &[&str], most: usize, ids: &mut Vec<u32>) -> bool {
        let mut behind = Behind::Nothing;
        for part in parts {
            for found in self.special.split(part) {
                match found {
                    Found::Special(id) => {
                        ids.push(id);
                        behind = Behind::Special;
                    }
                    Found::Text(text) => {
                        if !self.text(text, behind, most, ids) {
                            return false;
                        }
                        behind = Behind::Text;
                    }
                }
                if ids.len() > most {
                    return false;
                }
            }
        }
        true
    }

    /// The ids of a text without special tokens.
    fn text(&self, text: &str, behind: Behind, most: usize, ids: &mut Vec<u32>) -> bool {
        let single = if self.writing.single_blanks { Some(single_blanks(text)) } else { None };
        let text = single.as_deref().unwrap_or(text);
        let mut merger = Merger::default();
        let mut word = String::new();
        if !text.is_empty() && self.has_prefix(text, behind) {
            word.push(BLANK);
        }
        for c in text.chars() {
            let c = if c == ' ' { BLANK } else { c };
            if let Some(last) = word.chars().next_back()
                && self.is_border(last, c)
            {
                self.word(&word, &mut merger, ids);
                word.clear();
                if ids.len() > most {
                    return false;
                }
            }
            word.push(c);
        }
        self.word(&word, &mut merger, ids);
        true
    }

    fn has_prefix(&self, text: &str, behind: Behind) -> bool {
        let Prefix { place, unless_there } = self.writing.prefix;
        let is_place = match place {
            PrefixPlace::Nowhere => false,
            PrefixPlace::Beginning => behind == Behind::Nothing,
            PrefixPlace::EachText => behind != Behind::Text,
        };
        is_place && !(unless_there && text.starts_with([' ', BLANK]))
    }

    fn is_border(&self, before: char, behind: char) -> bool {
        let Writing { cut_at_blanks, whole_line_ends, .. } = self.writing;
        if whole_line_ends && (before == '\n' || behind == '\n') {
            return before != behind;
        }
        cut_at_blanks && behind == BLANK || !self.neighbours.contains(&(before, behind))
    }

    fn word(&self, word: &str, merger: &mut Merger, ids: &mut Vec<u32>) {
        if self.writing.whole_line_ends
            && word.starts_with('\n')
            && let Some(id) = self.ids.get(word)
        {
            ids.push(*id);
            return;
        }
        merger.merge(self, word);
        for symbol in merger.symbols.iter().filter(|symbol| symbol.length > 0) {
            let text = &word[symbol.start..symbol.start + symbol.length];
            match self.ids.get(text) {
                Some(id) => ids.push(*id),
                None => ids.extend(text.bytes().filter_map(|byte| self.bytes[usize::from(byte)].or(self.unknown))),
            }
        }
    }

    /// The place of a merge among all others, if there is that one.
    fn rank(&self, left: &str, right: &str, both: &str) -> Option<u32> {
        if both.len() > self.longest {
            return None;
        }
        let merged = self.ids.get(both)?;
        match &self.order {
            Order::ByToken(ranks) => ranks.get(*merged as usize).copied(),
            Order::ByPair(ranks) => ranks.get(&(*self.ids.get(left)?, *self.ids.get(right)?)).copied(),
        }
    }
}

/// One of those that a word is made of: a character at first.
#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    /// None once it is a part of the one before.
    length: usize,
    before: Option<u32>,
    behind: Option<u32>,
}

/// A merge that may be made: by its rank, then by where it is; and how long what it makes is, by which a stale one is known.
type Pair = Reverse<(u32, u32, u32, usize)>;

/// Merges one word after the other.
#[derive(Default)]
struct Merger {
    symbols: Vec<Symbol>,
    pairs: BinaryHeap<Pair>,
}

impl Merger {
    fn merge(&mut self, vocabulary: &Merging, word: &str) {
        self.symbols.clear();
        self.pairs.clear();
        for ((start, c), number) in word.char_indices().zip(0u32..) {
            let (length, behind) = (c.len_utf8(), Some(number + 1));
            self.symbols.push(Symbol { start, length, before: number.checked_sub(1), behind });
        }
        if let Some(last) = self.symbols.last_mut() {
            last.behind = None;
        }
        for right in 1..self.symbols.len() as u32 {
            self.offer(vocabulary, word, right - 1, right);
        }
        while let Some(Reverse((_, left, right, length))) = self.pairs.pop() {
            let [first, second] = [left, right].map(|at| self.symbols[at as usize]);
            if first.length == 0 || second.length == 0 || first.length + second.length != length {
                continue;
            }
            self.symbols[left as usize].length = length;
            self.symbols[left as usize].behind = second.behind;
            self.symbols[right as usize].length = 0;
            if let Some(behind) = second.behind {
                self.symbols[behind as usize].before = Some(left);
                self.offer(vocabulary, word, left, behind);
            }
            if let Some(before) = first.before {
                self.offer(vocabulary, word, before, left);
            }
        }
    }

    fn offer(&mut self, vocabulary: &Merging, word: &str, left: u32, right: u32) {
        let [first, second] = [left, right].map(|at| self.symbols[at as usize]);
        let end = second.start + second.length;
        let (before, behind) = (&word[first.start..second.start], &word[second.start..end]);
        if let Some(rank) = vocabulary.rank(before, behind, &word[first.start..end]) {
            self.pairs.push(Reverse((rank, left, right, first.length + second.length)));
        }
    }
}

/// Each token's place by its score, the highest first; the same for the same score.
pub(super) fn by_score(scores: &[f32]) -> Order {
    let mut sorted: Vec<f32> = scores.to_vec();
    sorted.sort_unstable_by(|a, b| b.total_cmp(a));
    sorted.dedup();
    let place = |score: &f32| sorted.partition_point(|other| other.total_cmp(score).is_gt()) as u32;
    Order::ByToken(scores.iter().map(place).collect())
}

/// The byte that a token named `<0xNN>` stands for.
pub(super) fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>').filter(|digits| digits.len() == 2)?;
    u8::from_str_radix(digits, 16).ok()
}

fn single_blanks(text: &str) -> String {
    text.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}
