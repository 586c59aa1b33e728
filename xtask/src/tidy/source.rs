//! Rust source without its comments and literals, so that a word in a sentence is not taken for code.

/// The text with every comment, string and character literal blanked; lines stay where they are.
pub(super) fn code_only(text: &str) -> String {
    let characters: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < characters.len() {
        let end = skip(&characters, at);
        if end == at {
            out.push(characters[at]);
            at += 1;
        } else {
            out.extend(characters[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    out
}

/// Where the comment or literal that starts at `at` ends; `at` if none starts there.
fn skip(text: &[char], at: usize) -> usize {
    let next = text.get(at + 1).copied();
    match text[at] {
        '/' if next == Some('/') => find(text, at, |c| c == '\n'),
        '/' if next == Some('*') => block_comment(text, at),
        'r' if !follows_word(text, at) => raw_string(text, at),
        '"' => quoted(text, at, '"'),
        '\'' => character(text, at),
        _ => at,
    }
}

fn find(text: &[char], from: usize, wanted: impl Fn(char) -> bool) -> usize {
    text[from..].iter().position(|c| wanted(*c)).map_or(text.len(), |offset| from + offset)
}

fn block_comment(text: &[char], at: usize) -> usize {
    let (mut depth, mut i) = (0, at);
    while i < text.len() {
        match (text[i], text.get(i + 1)) {
            ('/', Some('*')) => (depth, i) = (depth + 1, i + 2),
            ('*', Some('/')) => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
        if depth == 0 {
            return i;
        }
    }
    text.len()
}

/// `r"..."` and `r#"..."#`; also after `b` or `c`.
fn raw_string(text: &[char], at: usize) -> usize {
    let quote = find(text, at + 1, |c| c != '#');
    if text.get(quote) != Some(&'"') {
        return at;
    }
    let hashes = quote - at - 1;
    let mut i = quote + 1;
    while i < text.len() {
        if text[i] == '"' && text[i + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes {
            return i + 1 + hashes;
        }
        i += 1;
    }
    text.len()
}

fn quoted(text: &[char], at: usize, quote: char) -> usize {
    let mut i = at + 1;
    while i < text.len() {
        match text[i] {
            '\\' => i += 2,
            c if c == quote => return i + 1,
            _ => i += 1,
        }
    }
    text.len()
}

/// A character literal; a lifetime is left alone.
fn character(text: &[char], at: usize) -> usize {
    match (text.get(at + 1), text.get(at + 2)) {
        (Some('\\'), _) => quoted(text, at, '\''),
        (Some(_), Some('\'')) => at + 3,
        _ => at,
    }
}

fn follows_word(text: &[char], at: usize) -> bool {
    let before = at.checked_sub(1).map(|i| text[i]);
    before.is_some_and(|c| c.is_alphanumeric() && c != 'b' && c != 'c' || c == '_')
}

/// Where `word` stands as a whole word: byte offsets.
pub(super) fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word)
        .map(|(at, _)| at)
        .filter(move |at| !code[..*at].ends_with(part) && !code[at + word.len()..].starts_with(part))
}

/// The 1-based line of a byte offset.
pub(super) fn line_of(text: &str, at: usize) -> usize {
    1 + text[..at].matches('\n').count()
}

#[cfg(test)]
mod tests {
    use super::{code_only, line_of, words};

    #[test]
    fn comments_and_literals_go() {
        for (text, wanted) in [
            ("a // b", "a     "),
            ("a /* b /* c */ d */ e", "a                   e"),
            ("f(\"b \\\" c\") g", "f(        ) g"),
            ("r#\"a\" b\"# c", "          c"),
            ("br\"a\" c", "b     c"),
            ("for 'a in ['\\'', 'x']", "for 'a in [    ,    ]"),
            ("raw\"x\"", "raw   "),
        ] {
            assert_eq!(code_only(text), wanted, "of {text}");
        }
    }

    #[test]
    fn whole_words_and_their_lines() {
        let code = "unsafe_code\n unsafe {";
        let found: Vec<usize> = words(code, "unsafe").collect();
        assert_eq!(found, [13]);
        assert_eq!(line_of(code, 13), 2);
    }
}
