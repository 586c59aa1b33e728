//! The tokens of Jinja's tags.

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Word,
    Text,
    Number,
    Open,
    Close,
    Symbol,
}

#[derive(Clone, Copy)]
pub(super) struct Token {
    pub(super) kind: Kind,
    /// Its bytes in the source.
    pub(super) start: usize,
    pub(super) end: usize,
}

/// Reads the inside of a tag.
pub(super) struct Lexer<'a> {
    source: &'a str,
    /// Behind what was read.
    pub(super) at: usize,
    /// Brackets that are open.
    depth: usize,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(source: &'a str, at: usize) -> Self {
        Self { source, at, depth: 0 }
    }

    /// The next token; nothing at the tag's end, which is passed.
    pub(super) fn next(&mut self, end: &str) -> Option<Token> {
        let rest = self.source[self.at..].trim_start();
        let start = self.source.len() - rest.len();
        self.at = self.source.len();
        let first = rest.chars().next()?;
        if self.depth == 0 {
            let unmarked = rest.strip_prefix(['-', '+']).unwrap_or(rest);
            if let Some(behind) = unmarked.strip_prefix(end).or_else(|| rest.strip_prefix(end)) {
                self.at = self.source.len() - behind.len();
                return None;
            }
        }
        let (kind, length) = match first {
            '\'' | '"' => (Kind::Text, text_length(rest, first)),
            _ if first.is_alphabetic() || first == '_' => (Kind::Word, run(rest, |c| c.is_alphanumeric() || c == '_')),
            _ if first.is_ascii_digit() => (Kind::Number, number_length(rest)),
            '(' | '[' | '{' => {
                self.depth += 1;
                (Kind::Open, 1)
            }
            ')' | ']' | '}' => {
                self.depth = self.depth.saturating_sub(1);
                (Kind::Close, 1)
            }
            _ if ["**", "//", "==", "!=", "<=", ">="].iter().any(|two| rest.starts_with(two)) => (Kind::Symbol, 2),
            _ => (Kind::Symbol, first.len_utf8()),
        };
        self.at = start + length;
        Some(Token { kind, start, end: self.at })
    }
}

fn run(text: &str, holds: impl Fn(char) -> bool) -> usize {
    text.find(|c| !holds(c)).unwrap_or(text.len())
}

/// The length of a text in quotes, quotes included.
fn text_length(rest: &str, quote: char) -> usize {
    let mut is_escaped = true;
    for (at, c) in rest.char_indices() {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            _ if c == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

fn number_length(rest: &str) -> usize {
    let digits = |from: usize| from + run(&rest[from..], |c| c.is_ascii_alphanumeric() || c == '_');
    let whole = digits(0);
    match rest[whole..].strip_prefix('.') {
        Some(fraction) if fraction.starts_with(|c: char| c.is_ascii_digit()) => digits(whole + 1),
        _ => whole,
    }
}
