//! Values as Python's `str` and `repr` write them.

use std::fmt::Write;

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

/// How deep lists and maps are written.
const MAX_DEPTH: usize = 128;

/// Python's `str(value)`; what is undefined has no text.
///
/// # Errors
/// The value is nested deeper than anything that is meant to be read.
pub(super) fn text(value: &Value) -> Result<String, Error> {
    match value.as_str() {
        Some(text) => Ok(text.to_owned()),
        None if value.is_undefined() => Ok(String::new()),
        None => repr(value),
    }
}

/// The value itself if it is a text, and its text otherwise.
pub(super) fn text_value(value: Value) -> Result<Value, Error> {
    if value.as_str().is_some() { Ok(value) } else { text(&value).map(Value::from) }
}

/// Python's `repr(value)`.
///
/// # Errors
/// As [`text`].
pub(super) fn repr(value: &Value) -> Result<String, Error> {
    let mut out = String::new();
    write(&mut out, value, 0)?;
    Ok(out)
}

fn write(out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
    check_depth(depth)?;
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::String => quote(out, value.as_str().unwrap_or_default()),
        ValueKind::Number if !value.is_integer() => out.push_str(&float(f64::try_from(value.clone())?)),
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            for (number, item) in value.try_iter()?.enumerate() {
                out.push_str(if number > 0 { ", " } else { "" });
                write(out, &item, depth + 1)?;
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (number, key) in value.try_iter()?.enumerate() {
                out.push_str(if number > 0 { ", " } else { "" });
                write(out, &key, depth + 1)?;
                out.push_str(": ");
                write(out, &value.get_item(&key)?, depth + 1)?;
            }
            out.push('}');
        }
        _ => write!(out, "{value}").map_err(|_| Error::new(ErrorKind::WriteFailure, "it cannot be written"))?,
    }
    Ok(())
}

/// Refuses what is nested so deep that only a loop can have made it, and no stack can hold.
pub(super) fn check_depth(depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        let message = format!("a list or map is nested deeper than {MAX_DEPTH}");
        return Err(Error::new(ErrorKind::InvalidOperation, message));
    }
    Ok(())
}

/// In single quotes, or in double ones if it has the others.
fn quote(out: &mut String, text: &str) {
    let mark = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(mark);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ if c == mark => out.extend(['\\', c]),
            _ if is_printable(c) => out.push(c),
            _ => {
                let number = u32::from(c);
                let escape = match number {
                    0..=0xff => format!("\\x{number:02x}"),
                    0x100..=0xffff => format!("\\u{number:04x}"),
                    _ => format!("\\U{number:08x}"),
                };
                out.push_str(&escape);
            }
        }
    }
    out.push(mark);
}

fn is_printable(c: char) -> bool {
    match c {
        ' '..='~' => true,
        _ if c.is_ascii() || c.is_whitespace() => false,
        // Behind another character, where a mark that joins is no reason to escape it.
        _ => ['a', c].iter().collect::<String>().escape_debug().count() == 2,
    }
}

/// The shortest digits that give the same number, with an exponent where Python has one.
pub(super) fn float(number: f64) -> String {
    if number.is_nan() {
        return "nan".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        format!("{number:?}")
    } else {
        format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
    }
}

#[cfg(test)]
mod tests {
    use minijinja::Value;

    use super::{float, repr};

    #[test]
    fn numbers_are_pythons() {
        let numbers = [
            (1.0, "1.0"),
            (0.1, "0.1"),
            (-2.5, "-2.5"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (f64::INFINITY, "inf"),
        ];
        for (number, wanted) in numbers {
            assert_eq!(float(number), wanted);
        }
    }

    #[test]
    fn texts_are_quoted_as_python_quotes_them() {
        for (text, wanted) in [
            ("a", "'a'"),
            ("it's", "\"it's\""),
            ("'\"", "'\\'\"'"),
            ("é\u{301}\u{a0}\u{200b}\u{1f600}", "'é\u{301}\\xa0\\u200b\u{1f600}'"),
            ("\u{0}\u{7f}\n\\", "'\\x00\\x7f\\n\\\\'"),
        ] {
            assert_eq!(repr(&Value::from(text)).expect("flat"), wanted);
        }
    }

    #[test]
    fn what_is_nested_without_end_is_refused() {
        let mut value = Value::from(1);
        for _ in 0..200 {
            value = Value::from(vec![value]);
        }
        assert!(repr(&value).expect_err("too deep").to_string().contains("deeper than 128"));
    }
}
