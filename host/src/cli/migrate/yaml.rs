//! YAML as somebody would type it: short values on one line, long lists wrapped, comments above what they are about. It knows
//! nothing of what the values mean.

use std::fmt::Write as _;

use serde_yaml::{Mapping, Value};

use crate::domain::{ByteSize, steers};

/// Columns that a written line takes at most, unless a single word is longer.
const COLUMNS: usize = 118;
/// Words that are not texts unless they are quoted.
const NOT_TEXTS: [&str; 9] = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];

/// A text.
pub(in crate::cli) fn text(text: impl Into<String>) -> Value {
    Value::String(text.into())
}

/// A number of bytes, in whole MiB.
pub(in crate::cli) fn size(bytes: ByteSize) -> Value {
    text(format!("{}MiB", bytes.0 >> 20))
}

/// A list of texts.
pub(in crate::cli) fn texts<T: Into<String>>(items: impl IntoIterator<Item = T>) -> Value {
    Value::Sequence(items.into_iter().map(text).collect())
}

/// A mapping, in this order.
pub(in crate::cli) fn mapping<K: Into<String>>(pairs: impl IntoIterator<Item = (K, Value)>) -> Value {
    Value::Mapping(pairs.into_iter().map(|(key, value)| (text(key), value)).collect())
}

/// Adds a comment, wrapped, below so many columns of indentation. What follows a dash stays right of it.
pub(in crate::cli) fn comment(out: &mut String, indent: usize, words: &str) {
    let hanging = if words.starts_with("- ") { "  " } else { "" };
    let mut line = String::new();
    // A comment ends with its line, and what steers a terminal is not written to one's file either.
    let plain: String = words.chars().map(|c| if steers(c) { ' ' } else { c }).collect();
    for word in plain.split_whitespace() {
        if !line.is_empty() && indent + 3 + line.chars().count() + word.chars().count() > COLUMNS {
            push_line(out, indent, &format!("# {line}"));
            hanging.clone_into(&mut line);
        } else if !line.is_empty() {
            line.push(' ');
        }
        line += word;
    }
    push_line(out, indent, format!("# {line}").trim_end());
}

/// Adds a key and its value.
pub(in crate::cli) fn key(out: &mut String, indent: usize, key: &str, value: &Value) {
    let before = format!("{}:", scalar(key));
    let on_one_line = flow(value);
    let fits = indent + before.chars().count() + 1 + on_one_line.chars().count() <= COLUMNS;
    match value {
        Value::Mapping(pairs) if !(pairs.is_empty() || fits && is_flat(value)) => {
            push_line(out, indent, &before);
            block(out, indent + 2, pairs);
        }
        Value::Sequence(items) if !fits && is_flat(value) => {
            push_line(out, indent, &before);
            wrapped(out, indent + 2, items);
        }
        Value::Sequence(items) if !(items.is_empty() || fits && is_flat(value)) => {
            push_line(out, indent, &before);
            for item in items {
                push_line(out, indent + 2, &format!("- {}", flow(item)));
            }
        }
        _ => push_line(out, indent, &format!("{before} {on_one_line}")),
    }
}

/// A mapping, a key a line.
fn block(out: &mut String, indent: usize, pairs: &Mapping) {
    for (name, value) in pairs {
        key(out, indent, &plain_text(name), value);
    }
}

/// A long list in brackets: an argument stays beside its flag.
fn wrapped(out: &mut String, indent: usize, items: &[Value]) {
    let mut lines = vec![String::from("[")];
    for (position, item) in items.iter().enumerate() {
        let end = if position + 1 == items.len() { "]" } else { "," };
        let word = format!("{}{end}", flow(item));
        let takes = match items.get(position + 1) {
            // The next one is its argument, and goes where it goes.
            Some(next) if is_flag(item) && !is_flag(next) => word.chars().count() + 2 + flow(next).chars().count(),
            _ => word.chars().count(),
        };
        let is_argument = position > 0 && is_flag(&items[position - 1]) && !is_flag(item);
        if let Some(line) = lines.last_mut() {
            let is_full = indent + line.chars().count() + 1 + takes > COLUMNS;
            if is_full && !is_argument && line.len() > 1 {
                lines.push(format!(" {word}"));
            } else {
                if line.len() > 1 {
                    line.push(' ');
                }
                *line += &word;
            }
        }
    }
    lines.iter().for_each(|line| push_line(out, indent, line));
}

fn is_flag(item: &Value) -> bool {
    matches!(item, Value::String(word) if word.starts_with('-') && word.parse::<f64>().is_err())
}

/// Whether nothing in it holds anything itself.
fn is_flat(value: &Value) -> bool {
    let is_scalar = |value: &Value| !matches!(value, Value::Mapping(_) | Value::Sequence(_));
    match value {
        Value::Mapping(pairs) => pairs.values().all(is_scalar),
        Value::Sequence(items) => items.iter().all(is_scalar),
        _ => true,
    }
}

/// A value on one line.
pub(in crate::cli) fn flow(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(is) => is.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => scalar(text),
        Value::Sequence(items) => format!("[{}]", items.iter().map(flow).collect::<Vec<_>>().join(", ")),
        Value::Mapping(pairs) => {
            let pairs = pairs.iter().map(|(key, value)| format!("{}: {}", scalar(&plain_text(key)), flow(value)));
            format!("{{{}}}", pairs.collect::<Vec<_>>().join(", "))
        }
        Value::Tagged(tagged) => flow(&tagged.value),
    }
}

/// A scalar as the text that it was typed as, more or less; nothing of what holds others.
pub(in crate::cli) fn plain_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => flow(other),
    }
}

/// A text, in quotes where it would be something else without.
fn scalar(text: &str) -> String {
    if is_plain(text) {
        return text.to_owned();
    }
    let mut out = String::from('"');
    for c in text.chars() {
        // A String takes all of it.
        let _ = match c {
            '"' | '\\' => write!(out, "\\{c}"),
            '\n' => write!(out, "\\n"),
            '\t' => write!(out, "\\t"),
            c if steers(c) || c.is_control() => write!(out, "\\U{:08x}", u32::from(c)),
            c => write!(out, "{c}"),
        };
    }
    out.push('"');
    out
}

fn is_plain(text: &str) -> bool {
    let first = text.trim_start_matches('-');
    // 300s, 8GiB: no number ends with letters, unless it begins with 0.
    let letters = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let is_quantity = text.len() > letters.len() && !text.starts_with('0') && !letters.is_empty();
    if is_quantity && letters.chars().all(|c| c.is_ascii_alphabetic()) {
        return true;
    }
    let begins = first.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/' || c == '_')
        || first.strip_prefix('.').is_some_and(|rest| rest.trim_start_matches('.').starts_with('/'));
    begins
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_./@+-".contains(c))
        && !NOT_TEXTS.contains(&text.to_ascii_lowercase().as_str())
}

fn push_line(out: &mut String, indent: usize, line: &str) {
    // A String takes all of it.
    let _ = writeln!(out, "{:indent$}{line}", "");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again_as_it_was() {
        let long: Vec<String> = (0..40).flat_map(|n| [format!("--flag-{n}"), format!("{n}")]).collect();
        for value in [
            texts([
                "a",
                "-1",
                "--x",
                "1.5",
                "true",
                "No",
                "~",
                "",
                "a: b",
                "#c",
                "{port}",
                "a\nb\u{1b}\u{7f}",
                "é\"\\",
            ]),
            texts([
                ".5", "./x", "..", "../x", "-", "---", "null", "y", "1e3", "0x1f", "@a", "%a", "a,b", "[", ".inf",
                "300s", "8GiB", "0x1f", "1e", "0b1", "0xab", "08",
            ]),
            texts(long),
            mapping([("a:b", text("c")), ("8", Value::Bool(true)), ("d", mapping([("e", texts(["f"]))]))]),
            mapping([("a", Value::Sequence(Vec::new())), ("b", mapping::<String>([])), ("c", Value::Null)]),
            Value::Sequence(vec![mapping([("a", text("b"))]), mapping([("c", texts(["d"]))])]),
        ] {
            let mut out = String::new();
            comment(&mut out, 2, "words of a\ncomment");
            key(&mut out, 0, "key", &value);
            let read: Value = serde_yaml::from_str(&out).unwrap_or_else(|error| panic!("{error}\n{out}"));
            assert_eq!(read.get("key"), Some(&value), "{out}");
            assert!(out.lines().all(|line| line.chars().count() <= COLUMNS), "{out}");
        }
    }

    #[test]
    fn an_argument_stays_beside_its_flag() {
        let words: Vec<String> = (0..30).flat_map(|n| [format!("--a-flag-{n}"), format!("value-{n}")]).collect();
        let mut out = String::new();
        key(&mut out, 4, "args", &texts(words));
        for line in out.lines().skip(1) {
            let words: Vec<&str> = line.trim().trim_matches(['[', ']']).split_whitespace().collect();
            assert!(words.len().is_multiple_of(2) && words[0].starts_with("--"), "{out}");
        }
    }

    #[test]
    fn comments_are_wrapped_and_stay_comments() {
        let mut out = String::new();
        comment(&mut out, 2, &"word ".repeat(60));
        comment(&mut out, 0, "a\r\nmodels: {}\u{2028}b");
        assert!(out.lines().all(|line| line.trim_start().starts_with('#') && line.len() <= COLUMNS), "{out}");
    }
}
