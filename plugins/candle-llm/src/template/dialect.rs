//! From Jinja as Python has it to Jinja as minijinja has it: what the two read differently is written so that they do not.
//!
//! `a ~ b` puts texts together as Python's `str` makes them, `a % b` formats a text, `a.items` is a map's method even if it has such a
//! key, and `{% generation %}`, by which transformers tells what to train on, is nothing. All else is left as it is, lines included, so that errors name the right ones. It knows no
//! statement: a tag is operands with something between them.

use super::lexer::{Kind, Lexer, Token};

/// The function that gives a value's text.
pub(super) const TEXT: &str = "__text__";
/// The function that stands for `%`.
pub(super) const MODULO: &str = "__modulo__";
/// The function that gives an attribute as Python has it: of a map, its methods go before its keys.
pub(super) const ATTRIBUTE: &str = "__attribute__";
/// A map's methods whose names keys have too, and the end of a call that asks for one.
const METHODS: [(&str, &str); 8] = [
    ("clear", ", 'clear')"),
    ("copy", ", 'copy')"),
    ("get", ", 'get')"),
    ("items", ", 'items')"),
    ("keys", ", 'keys')"),
    ("pop", ", 'pop')"),
    ("update", ", 'update')"),
    ("values", ", 'values')"),
];
/// Words that are no operands.
const KEYWORDS: [&str; 8] = ["in", "not", "and", "or", "if", "else", "is", "recursive"];
/// How deep brackets are followed; minijinja refuses what is deeper.
const MAX_DEPTH: usize = 200;

/// The same template for minijinja.
pub(super) fn translate(source: &str) -> String {
    let mut edits = Vec::new();
    let mut at = 0;
    while let Some(found) = source[at..].find('{') {
        let start = at + found;
        at = match source.as_bytes().get(start + 1) {
            Some(b'#') => after(source, start + 2, "#}"),
            Some(b'{') => tag(source, start + 2, "}}", &mut edits),
            Some(b'%') => match raw(source, start) {
                Some(end) => end,
                None => tag(source, start + 2, "%}", &mut edits),
            },
            _ => start + 1,
        };
    }
    apply(source, edits)
}

/// A change of the source.
struct Edit {
    at: usize,
    /// Among those of the same place.
    order: i64,
    /// Bytes that go.
    gone: usize,
    text: &'static str,
}

fn apply(source: &str, mut edits: Vec<Edit>) -> String {
    edits.sort_by_key(|edit| (edit.at, edit.order));
    let mut text = String::with_capacity(source.len() + edits.len() * (MODULO.len() + 1));
    let mut done = 0;
    for edit in edits {
        text.push_str(&source[done..edit.at]);
        text.push_str(edit.text);
        done = edit.at + edit.gone;
    }
    text.push_str(&source[done..]);
    text
}

fn after(source: &str, from: usize, end: &str) -> usize {
    source[from..].find(end).map_or(source.len(), |at| from + at + end.len())
}

/// The end of a raw block, if one begins here.
fn raw(source: &str, start: usize) -> Option<usize> {
    let is = |at: usize, name: &str| {
        let inner = source[at..].strip_prefix("{%")?;
        let inner = inner.strip_prefix(['-', '+']).unwrap_or(inner).trim_start().strip_prefix(name)?.trim_start();
        let inner = inner.strip_prefix(['-', '+']).unwrap_or(inner).strip_prefix("%}")?;
        Some(source.len() - inner.len())
    };
    let mut at = is(start, "raw")?;
    while let Some(found) = source[at..].find("{%") {
        at += found;
        if let Some(end) = is(at, "endraw") {
            return Some(end);
        }
        at += 2;
    }
    Some(source.len())
}

/// Reads a tag's inside and notes what is to be changed; the end of the tag.
fn tag(source: &str, start: usize, end: &str, edits: &mut Vec<Edit>) -> usize {
    let is_marked = source[start..].starts_with(['-', '+']);
    let mut lexer = Lexer::new(source, start + usize::from(is_marked));
    let mut tokens = Vec::new();
    while let Some(token) = lexer.next(end) {
        tokens.push(token);
    }
    let word = |token: &Token| &source[token.start..token.end];
    if end == "%}" {
        if let [only] = tokens.as_slice()
            && let Some(text) = match word(only) {
                "generation" => Some("with"),
                "endgeneration" => Some("endwith"),
                _ => None,
            }
        {
            edits.push(Edit { at: only.start, order: 0, gone: only.end - only.start, text });
        }
        // The statement's name.
        if !tokens.is_empty() {
            tokens.remove(0);
        }
    }
    let noted = edits.len();
    let mut reader = Reader { source, tokens: &tokens, at: 0, edits };
    if reader.operands(0).is_none() {
        edits.truncate(noted);
    }
    lexer.at
}

/// Reads tokens as operands, by Jinja's precedences. Where it stops short, by depth, nothing is changed.
struct Reader<'a> {
    source: &'a str,
    tokens: &'a [Token],
    at: usize,
    edits: &'a mut Vec<Edit>,
}

impl Reader<'_> {
    fn peek(&self) -> Option<(Kind, &str)> {
        self.tokens.get(self.at).map(|token| (token.kind, &self.source[token.start..token.end]))
    }

    fn is_symbol(&self, symbol: &str) -> bool {
        self.peek() == Some((Kind::Symbol, symbol))
    }

    fn is_word(&self, word: &str) -> bool {
        self.peek() == Some((Kind::Word, word))
    }

    fn opens(&self, brackets: &[&str]) -> bool {
        self.peek().is_some_and(|(kind, text)| kind == Kind::Open && brackets.contains(&text))
    }

    fn skip(&mut self, symbol: &str) -> bool {
        let is_there = self.is_symbol(symbol);
        if is_there {
            self.step();
        }
        is_there
    }

    /// Passes a token, if there is one.
    fn step(&mut self) {
        self.at = self.tokens.len().min(self.at + 1);
    }

    /// Operands and what is between them, up to a closing bracket. Whether there was a comma.
    fn operands(&mut self, depth: usize) -> Option<bool> {
        let (mut has_comma, mut is_behind_operand) = (false, false);
        while let Some((kind, text)) = self.peek() {
            if kind == Kind::Close && depth > 0 {
                break;
            }
            let is_sign = kind == Kind::Symbol && matches!(text, "-" | "+");
            has_comma |= text == ",";
            let start = self.at;
            is_behind_operand = !(is_sign && is_behind_operand) && self.concatenation(depth)?;
            if self.at == start {
                self.step();
            }
        }
        Some(has_comma)
    }

    /// `a ~ b ~ c`. Whether there was an operand; if not, what was read stays read.
    fn concatenation(&mut self, depth: usize) -> Option<bool> {
        let start = self.at;
        if !self.product(depth)? {
            return Some(false);
        }
        if !self.is_symbol("~") {
            return Some(true);
        }
        self.is_text(start);
        while self.skip("~") {
            let start = self.at;
            if !self.product(depth)? {
                break;
            }
            self.is_text(start);
        }
        Some(true)
    }

    /// What was read from there on is to be a text.
    fn is_text(&mut self, start: usize) {
        if self.at != start + 1 || self.tokens[start].kind != Kind::Text {
            self.wrap(start, "__text__(", ")");
        }
    }

    /// Puts a call around what was read from there on.
    fn wrap(&mut self, start: usize, open: &'static str, close: &'static str) {
        // What is wrapped later is around what was wrapped before, and closes before what opens behind it.
        let order = self.edits.len() as i64;
        self.edits.push(Edit { at: self.tokens[start].start, order: -order, gone: 0, text: open });
        self.edits.push(Edit { at: self.tokens[self.at - 1].end, order: i64::MIN + order, gone: 0, text: close });
    }

    /// `a * b`, `a / b`, `a // b`, `a % b`.
    fn product(&mut self, depth: usize) -> Option<bool> {
        let start = self.at;
        if !self.power(depth)? {
            return Some(false);
        }
        while let Some((Kind::Symbol, symbol @ ("*" | "/" | "//" | "%"))) = self.peek() {
            let is_modulo = symbol == "%";
            let sign = self.tokens[self.at];
            self.step();
            let right = self.at;
            if !self.power(depth)? {
                break;
            }
            if is_modulo {
                let close = if self.is_tuple(right) { ", true)" } else { ")" };
                self.edits.push(Edit { at: sign.start, order: 0, gone: 1, text: "," });
                self.wrap(start, "__modulo__(", close);
            }
        }
        Some(true)
    }

    /// Whether what was read from there on is values in brackets, and nothing else.
    fn is_tuple(&self, start: usize) -> bool {
        let mut depth = 0_usize;
        let mut has_comma = false;
        for (number, token) in self.tokens[start..self.at].iter().enumerate() {
            match token.kind {
                Kind::Open => depth += 1,
                Kind::Close => depth = depth.saturating_sub(1),
                _ if depth == 1 && &self.source[token.start..token.end] == "," => has_comma = true,
                _ => {}
            }
            if depth == 0 {
                let is_whole = start + number + 1 == self.at;
                return is_whole && has_comma && self.source[self.tokens[start].start..].starts_with('(');
            }
        }
        false
    }

    fn power(&mut self, depth: usize) -> Option<bool> {
        loop {
            while self.skip("-") || self.skip("+") {}
            if !self.operand(depth)? {
                return Some(false);
            }
            self.filters(depth)?;
            if !self.skip("**") {
                return Some(true);
            }
        }
    }

    /// A name, a constant or brackets, with what is taken from it.
    fn operand(&mut self, depth: usize) -> Option<bool> {
        let start = self.at;
        match self.peek() {
            Some((Kind::Word, word)) if !KEYWORDS.contains(&word) => self.step(),
            Some((Kind::Number, _)) => self.step(),
            Some((Kind::Text, _)) => {
                while self.peek().is_some_and(|(kind, _)| kind == Kind::Text) {
                    self.step();
                }
            }
            Some((Kind::Open, _)) => self.brackets(depth)?,
            _ => return Some(false),
        }
        loop {
            if self.is_symbol(".") {
                self.attribute(start);
            } else if self.opens(&["(", "["]) {
                self.brackets(depth)?;
            } else {
                return Some(true);
            }
        }
    }

    /// `.name` behind what was read from there on.
    fn attribute(&mut self, start: usize) {
        let dot = self.at;
        let token = |at: usize| self.tokens.get(at).map(|token| (token, &self.source[token.start..token.end]));
        let name =
            token(dot + 1).and_then(|(end, name)| METHODS.iter().find(|known| known.0 == name).zip(Some(end.end)));
        // One that is called is found, and one that is set is a namespace's.
        let is_read = token(dot + 2).is_none_or(|(_, next)| !matches!(next, "(" | "="));
        if let Some(((_, close), end)) = name.filter(|_| is_read) {
            self.wrap(start, "__attribute__(", close);
            let at = self.tokens[dot].start;
            self.edits.push(Edit { at, order: 0, gone: end - at, text: "" });
        }
        self.step();
        self.step();
    }

    fn brackets(&mut self, depth: usize) -> Option<()> {
        if depth >= MAX_DEPTH {
            return None;
        }
        self.step();
        self.operands(depth + 1)?;
        self.step();
        Some(())
    }

    /// `| name(...)` and `is not name(...)`.
    fn filters(&mut self, depth: usize) -> Option<()> {
        loop {
            let is_test = self.is_word("is");
            if !is_test && !self.is_symbol("|") {
                return Some(());
            }
            self.step();
            if is_test && self.is_word("not") {
                self.step();
            }
            self.step();
            while self.skip(".") {
                self.step();
            }
            let takes_operand = match self.peek() {
                Some((Kind::Word, word)) => !KEYWORDS.contains(&word),
                Some((Kind::Text | Kind::Number, _)) => true,
                _ => self.opens(&["[", "{"]),
            };
            if self.opens(&["("]) {
                self.brackets(depth)?;
            } else if is_test && takes_operand {
                self.operand(depth)?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::translate;

    #[test]
    fn only_what_is_read_differently_is_written_differently() {
        for (source, wanted) in [
            ("{{ a ~ 'b' }}", "{{ __text__(a) ~ 'b' }}"),
            ("{{ a.b[1] ~ f(c ~ d) | g }}", "{{ __text__(a.b[1]) ~ __text__(f(__text__(c) ~ __text__(d)) | g) }}"),
            ("{{ a % b }}", "{{ __modulo__(a , b) }}"),
            ("{{ '%s' % (a, b) ~ c }}", "{{ __text__(__modulo__('%s' , (a, b), true)) ~ __text__(c) }}"),
            ("{{ a * b % c % d }}", "{{ __modulo__(__modulo__(a * b , c) , d) }}"),
            ("{{ a + b ~ c - d }}", "{{ a + __text__(b) ~ __text__(c) - d }}"),
            ("{%- if not a ~ b in c -%}", "{%- if not __text__(a) ~ __text__(b) in c -%}"),
            ("{{ a.b.items ~ c }}", "{{ __text__(__attribute__(a.b, 'items')) ~ __text__(c) }}"),
            ("{{ a['b'].keys.values[0] }}", "{{ __attribute__(__attribute__(a['b'], 'keys'), 'values')[0] }}"),
            ("{% generation %}", "{% with %}"),
            ("{%- endgeneration -%}", "{%- endwith -%}"),
        ] {
            assert_eq!(translate(source), wanted);
        }
        for same in [
            "a ~ b % c {% raw %}{{ a ~ b }}{%- endraw %}{# {{ a ~ b }} #}",
            "{{ '~ % }}' }}{{ generation }}{% if a is defined and not b %}",
            "{% for a, b in {'x': 1}.items() if a is string %}{{ - 1 }}",
            "{% set ns.items = a.get(b.keys()) %}{{ f(items=1) }}{{ a['items'] }}",
            "{{ a ~",
            "{{",
            "{%",
            "{#",
        ] {
            assert_eq!(translate(same).replace("__text__(a)", "a"), same);
        }
    }

    #[test]
    fn brackets_without_end_are_left_to_who_refuses_them() {
        let deep = format!("{{{{ {}a ~ b }}}}", "(".repeat(100_000));
        assert_eq!(translate(&deep), deep);
    }

    #[test]
    fn operators_without_operands_are_read_once() {
        assert_eq!(translate("{{ (a % b) ** is }}"), "{{ (__modulo__(a , b)) ** is }}");
        assert_eq!(translate("{%{{1%[}}**is"), "{%{{__modulo__(1,[})}**is");
        let nested = format!("{{{{ {}a ~ b{} }}}}", "(".repeat(150), ") ** is".repeat(150));
        assert_eq!(translate(&nested), nested.replace("a ~ b", "__text__(a) ~ __text__(b)"));
    }

    proptest! {
        #[test]
        fn lines_stay_where_they_are(parts in prop::collection::vec(prop::sample::select(vec![
            "{{", "}}", "{%", "%}", "{#", "#}", "-", "+", "~", "%", "(", ")", "[", "]", "{", "}", "'", "\"", "\\", "a", "is", "not", "in",
            " ", "\n", ",", ".", "|", "*", "**", "1", "1.5", "raw", "endraw", "generation", "é",
        ]), 0..60)) {
            let source = parts.concat();
            let ends = |text: &str| text.matches('\n').count();
            prop_assert_eq!(ends(&translate(&source)), ends(&source));
        }
    }
}
