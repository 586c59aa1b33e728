//! The table of limits that are no keys: every constant of the host that is a count, a size or a time. The sources are the
//! register, so nothing can be missing from it; what would not be in the table (a time without a name, a constant without a
//! sentence) is an error.

use std::collections::BTreeMap;

use crate::error::{Error, Result};

/// Constants that limit nothing: what they are instead.
const OTHERS: [(&str, &str); 10] = [
    ("PROTOCOL_VERSION", "a version"),
    ("MORE", "a bit of a frame"),
    ("LENGTH_BYTES", "the form of a frame"),
    ("HEAD_BYTES", "the form of a frame"),
    ("STARTUP_TIME", "the default of a key"),
    ("SHOWN_NAME_BYTES", "the look of a message"),
    ("SHOWN_VALUE_BYTES", "the look of a message"),
    ("UNKNOWN_SIZE", "the form of a file"),
    ("BITS", "the form of a file"),
    ("SEED_BITS", "the form of a number"),
];

/// Types of constants that can be a limit.
const TYPES: [&str; 8] = ["u8", "u16", "u32", "u64", "usize", "i64", "Duration", "std::time::Duration"];

const HEAD: &str = "
## Limits that are not keys

Everything else that the host bounds or waits for. These are constants of the code; a reason to change one is a reason to
open an issue.

| limit | room | value | meaning |
|---|---|---|---|
";

/// A constant.
#[derive(Debug, PartialEq, Eq)]
struct Limit {
    name: String,
    path: String,
    value: String,
    meaning: String,
}

/// The section of docs/CONFIG.md.
pub(super) fn section(sources: &[(String, String)]) -> Result<String> {
    let mut text = HEAD.to_owned();
    let mut wrong = Vec::new();
    for (path, source) in sources.iter().filter(|(path, _)| !is_test(path)) {
        match limits(path, source) {
            Ok(limits) => limits.iter().for_each(|limit| text += &row(limit)),
            Err(Error(sentence)) => wrong.push(sentence),
        }
    }
    if wrong.is_empty() { Ok(text) } else { Err(Error(wrong.join("\n"))) }
}

fn is_test(path: &str) -> bool {
    path.contains("/tests/") || path.ends_with("/tests.rs") || path.ends_with("/model_check.rs")
}

fn row(limit: &Limit) -> String {
    let parts: Vec<&str> = limit.path.split('/').collect();
    let room = match parts.as_slice() {
        ["host", "src", room, ..] => room.trim_end_matches(".rs"),
        ["plugin-api", ..] => "SDK",
        _ => limit.path.as_str(),
    };
    format!("| `{}` | {room} | {} | {} |\n", limit.name, limit.value, plain(&limit.meaning))
}

/// A doc comment's sentence as a cell of a table: links into the code are words here.
fn plain(sentence: &str) -> String {
    sentence.replace("[`", "`").replace("`]", "`").replace('|', "\\|")
}

/// The limits of one file, in its order.
fn limits(path: &str, source: &str) -> Result<Vec<Limit>> {
    let (mut found, mut known) = (Vec::new(), BTreeMap::new());
    let mut sentences: Vec<&str> = Vec::new();
    for (number, line) in (1..).zip(source.lines()) {
        let line = line.trim();
        if line == "#[cfg(test)]" {
            break;
        }
        if let Some(sentence) = line.strip_prefix("///") {
            sentences.push(sentence.trim());
            continue;
        }
        let meaning = std::mem::take(&mut sentences).join(" ");
        let Some((name, kind, value)) = constant(line) else {
            if let Some(nameless) = nameless(line) {
                let sentence = "is a time without a name; make it a constant with a sentence";
                return Err(Error(format!("{path}:{number}: `{nameless}` {sentence}")));
            }
            continue;
        };
        if !TYPES.contains(&kind) || OTHERS.iter().any(|(other, _)| *other == name) {
            continue;
        }
        let unreadable = || Error(format!("{path}:{number}: docgen cannot read the value of `{name}`: {value}"));
        let (value, unit) = measure(value, name, &known).ok_or_else(unreadable)?;
        known.insert(name.to_owned(), value);
        if meaning.is_empty() {
            return Err(Error(format!("{path}:{number}: `{name}` needs a sentence that says what it limits")));
        }
        let shown = show(value, unit);
        found.push(Limit { name: name.to_owned(), path: path.to_owned(), value: shown, meaning });
    }
    Ok(found)
}

/// Name, type and value of a line that is a whole constant.
fn constant(line: &str) -> Option<(&str, &str, &str)> {
    let start = line.find("const ")?;
    let before = line[..start].trim();
    if !(before.is_empty() || before == "pub" || (before.starts_with("pub(") && before.ends_with(')'))) {
        return None;
    }
    let (name, rest) = line[start + "const ".len()..].split_once(':')?;
    let (kind, value) = rest.split_once('=')?;
    Some((name.trim(), kind.trim(), value.trim().strip_suffix(';')?))
}

/// A time that is written out where it is used.
fn nameless(line: &str) -> Option<&str> {
    let code = line.split("//").next()?;
    ["Duration::from_secs(", "Duration::from_millis(", "Duration::from_micros("].iter().find_map(|call| {
        let at = code.find(call)?;
        let inside = &code[at + call.len()..];
        inside
            .starts_with(|c: char| c.is_ascii_digit())
            .then(|| &code[at..at + call.len() + inside.find(')').map_or(0, |end| end + 1)])
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Microseconds,
    Bytes,
    Percent,
    Count,
}

fn measure(text: &str, name: &str, known: &BTreeMap<String, u128>) -> Option<(u128, Unit)> {
    if let Some(inside) = call(text, "Duration::from_secs(") {
        return Some((evaluate(inside, known)? * 1_000_000, Unit::Microseconds));
    }
    if let Some(inside) = call(text, "Duration::from_millis(") {
        return Some((evaluate(inside, known)? * 1000, Unit::Microseconds));
    }
    if let Some(inside) = call(text, "Duration::from_micros(") {
        return Some((evaluate(inside, known)?, Unit::Microseconds));
    }
    let value = evaluate(text, known)?;
    Some(match name {
        _ if name.ends_with("_MS") => (value * 1000, Unit::Microseconds),
        _ if name.ends_with("_S") => (value * 1_000_000, Unit::Microseconds),
        _ if name.ends_with("_PERCENT") => (value, Unit::Percent),
        _ if name.ends_with("_BYTES") || name.ends_with("_SIZE") => (value, Unit::Bytes),
        _ => (value, Unit::Count),
    })
}

fn call<'a>(text: &'a str, head: &str) -> Option<&'a str> {
    text.strip_prefix("std::time::").unwrap_or(text).strip_prefix(head)?.strip_suffix(')')
}

fn show(value: u128, unit: Unit) -> String {
    let whole = |units: &[(&str, u128)], smallest: &str| {
        let fitting = units.iter().find(|(_, size)| value >= *size && value.is_multiple_of(*size));
        fitting.map_or_else(|| format!("{value}{smallest}"), |(name, size)| format!("{} {name}", value / size))
    };
    match unit {
        Unit::Microseconds => whole(&[("days", 86_400_000_000), ("s", 1_000_000), ("ms", 1000)], " us"),
        Unit::Bytes => whole(&[("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)], " B"),
        Unit::Percent => format!("{value} %"),
        Unit::Count => value.to_string(),
    }
}

/// Whole numbers with `+ * / <<`, parentheses, names of constants above and casts, from the left, as Rust ranks them.
fn evaluate(text: &str, known: &BTreeMap<String, u128>) -> Option<u128> {
    let mut tokens = tokens(text);
    tokens.reverse();
    let value = sum(&mut tokens, known, Rank::Shift)?;
    tokens.is_empty().then_some(value)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Shift,
    Sum,
    Product,
    Single,
}

fn sum(tokens: &mut Vec<String>, known: &BTreeMap<String, u128>, rank: Rank) -> Option<u128> {
    let next = match rank {
        Rank::Shift => Rank::Sum,
        Rank::Sum => Rank::Product,
        Rank::Product => Rank::Single,
        Rank::Single => return single(tokens, known),
    };
    let mut value = sum(tokens, known, next)?;
    loop {
        let operator = match (rank, tokens.last().map(String::as_str)) {
            (Rank::Shift, Some("<<")) | (Rank::Sum, Some("+" | "-")) | (Rank::Product, Some("*" | "/")) => {
                tokens.pop()?
            }
            _ => return Some(value),
        };
        let other = sum(tokens, known, next)?;
        value = match operator.as_str() {
            "<<" => value.checked_shl(u32::try_from(other).ok()?)?,
            "+" => value.checked_add(other)?,
            "-" => value.checked_sub(other)?,
            "*" => value.checked_mul(other)?,
            _ => value.checked_div(other)?,
        };
    }
}

fn single(tokens: &mut Vec<String>, known: &BTreeMap<String, u128>) -> Option<u128> {
    let token = tokens.pop()?;
    let value = if token == "(" {
        let value = sum(tokens, known, Rank::Shift)?;
        (tokens.pop()? == ")").then_some(value)?
    } else if token.starts_with(|c: char| c.is_ascii_digit()) {
        token.replace('_', "").parse().ok()?
    } else {
        *known.get(&token)?
    };
    while tokens.last().is_some_and(|word| word == "as") {
        tokens.truncate(tokens.len().checked_sub(2)?);
    }
    Some(value)
}

fn tokens(text: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut open = false;
    for c in text.chars() {
        let part = c.is_alphanumeric() || c == '_';
        match found.last_mut() {
            Some(last) if part && open => last.push(c),
            Some(last) if c == '<' && last == "<" => last.push(c),
            _ if c.is_whitespace() => {}
            _ => found.push(c.to_string()),
        }
        open = part;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(source: &str) -> Vec<(String, String, String)> {
        let limits = limits("host/src/x.rs", source).expect("readable");
        limits.into_iter().map(|limit| (limit.name, limit.value, limit.meaning)).collect()
    }

    #[test]
    fn constants_are_read_with_their_sentence_and_unit() {
        let source = "/// One\n/// two.\npub(super) const A_BYTES: u64 = 64 << 10;\n/// B.\nconst B: Duration = Duration::from_secs(2 * 60);\n/// C.\nconst C_MS: u64 = 1_500;\n/// D.\nconst D: usize = (A_BYTES / 1024) as usize + 64;\n/// E.\nconst E: f32 = 1.0;\n/// F.\nconst F: Duration = Duration::from_micros(300);\n#[cfg(test)]\nmod tests { const G: u32 = 1; }\n";
        let wanted = [
            ("A_BYTES", "64 KiB", "One two."),
            ("B", "120 s", "B."),
            ("C_MS", "1500 ms", "C."),
            ("D", "128", "D."),
            ("F", "300 us", "F."),
        ];
        assert_eq!(table(source), wanted.map(|(a, b, c)| (a.to_owned(), b.to_owned(), c.to_owned())));
    }

    #[test]
    fn what_would_be_missing_is_an_error() {
        for (source, wanted) in [
            ("const A: u32 = 1;\n", "`A` needs a sentence"),
            ("    wait(Duration::from_secs(5)).await;\n", "`Duration::from_secs(5)` is a time without a name"),
            ("/// A.\nconst A: u32 = f(1);\n", "cannot read the value of `A`"),
        ] {
            let error = limits("host/src/x.rs", source).expect_err(source).0;
            assert!(error.contains(wanted) && error.starts_with("host/src/x.rs:"), "{error}");
        }
        assert!(table("let x = Duration::from_millis(at); // Duration::from_secs(5)\n").is_empty());
    }

    #[test]
    fn values_are_computed_as_rust_does() {
        for (text, wanted) in
            [("1 << 4 + 2", Some(64)), ("2 + 3 * 4", Some(14)), ("(2 + 3) * 4", Some(20)), ("8 / 0", None)]
        {
            assert_eq!(evaluate(text, &BTreeMap::new()), wanted, "{text}");
        }
    }
}
