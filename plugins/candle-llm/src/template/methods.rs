//! Methods of Python's texts, lists and maps. What changes a list or map is refused, as transformers refuses it.

use std::fmt;
use std::sync::Arc;

use minijinja::value::{Kwargs, Object, ObjectRepr, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::text::{text, text_value};

/// Calls a method of a value.
///
/// # Errors
/// `UnknownMethod`, also for what would change the value; else what is wrong with the arguments.
pub(super) fn call(state: &State<'_, '_>, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let found = match value.kind() {
        ValueKind::String => of_text(state, value, method, args)?,
        ValueKind::Seq | ValueKind::Iterable => of_list(value, method, args)?,
        ValueKind::Map if method == "copy" => Some(value.clone()),
        _ => None,
    };
    match found {
        Some(result) => Ok(result),
        None => unknown_method_callback(state, value, method, args),
    }
}

/// An attribute named as a map's method: of a map that method, which has nothing and is not called here.
///
/// # Errors
/// What a value without attributes says.
pub(super) fn attribute(value: &Value, name: &str) -> Result<Value, Error> {
    // Its own type has no name that can be had.
    let is_namespace = value.as_object().is_some_and(|object| object.type_name().ends_with("Namespace"));
    if value.kind() == ValueKind::Map && !is_namespace {
        Ok(Value::from_object(Method(name.to_owned())))
    } else {
        value.get_attr(name)
    }
}

/// A method that nobody calls.
#[derive(Debug)]
struct Method(String);

impl Object for Method {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<built-in method {} of dict object>", self.0)
    }
}

/// Python's blanks: some more than Unicode's.
pub(super) fn is_blank(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}')
}

/// Which ends of a text are stripped.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ends {
    Both,
    Start,
    End,
}

/// Python's `strip`, of these characters or of blanks.
pub(super) fn strip<'a>(text: &'a str, chars: Option<&str>, ends: Ends) -> &'a str {
    let goes = |c: char| chars.map_or_else(|| is_blank(c), |chars| chars.contains(c));
    match ends {
        Ends::Both => text.trim_matches(goes),
        Ends::Start => text.trim_start_matches(goes),
        Ends::End => text.trim_end_matches(goes),
    }
}

fn of_text(state: &State<'_, '_>, value: &Value, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let s = value.as_str().unwrap_or_default();
    let every = |holds: &dyn Fn(char) -> bool| -> Result<Value, Error> {
        let () = from_args(args)?;
        Ok(Value::from(!s.is_empty() && s.chars().all(holds)))
    };
    let cased = |goes_with: fn(char) -> bool, goes_against: fn(char) -> bool| -> Result<Value, Error> {
        let () = from_args(args)?;
        Ok(Value::from(s.chars().any(goes_with) && !s.chars().any(goes_against)))
    };
    let stripped = |ends| -> Result<Value, Error> {
        let (chars,): (Option<&str>,) = from_args(args)?;
        Ok(Value::from(strip(s, chars, ends)))
    };
    Ok(Some(match method {
        "strip" => stripped(Ends::Both)?,
        "lstrip" => stripped(Ends::Start)?,
        "rstrip" => stripped(Ends::End)?,
        "isspace" => every(&is_blank)?,
        "isdigit" | "isdecimal" | "isnumeric" => every(&char::is_numeric)?,
        "isalpha" => every(&char::is_alphabetic)?,
        "isalnum" => every(&char::is_alphanumeric)?,
        "islower" => cased(char::is_lowercase, char::is_uppercase)?,
        "isupper" => cased(char::is_uppercase, char::is_lowercase)?,
        "find" | "rfind" | "index" | "rindex" => find(s, method, args)?,
        "split" | "rsplit" => split(s, method, args)?,
        "partition" | "rpartition" => partition(s, method, args)?,
        "splitlines" => {
            let (keeps_ends, named): (Option<bool>, Kwargs) = from_args(args)?;
            lines(s, keeps_ends.or(named.get("keepends")?).unwrap_or(false))
        }
        "join" => {
            let (items,): (&Value,) = from_args(args)?;
            Value::from(join(s, items)?)
        }
        "title" => {
            let () = from_args(args)?;
            Value::from(title(s))
        }
        "casefold" => Value::from(s.to_lowercase()),
        "swapcase" => Value::from(s.chars().flat_map(swapped).collect::<String>()),
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(s.strip_prefix(prefix).unwrap_or(s))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(s.strip_suffix(suffix).unwrap_or(s))
        }
        "ljust" | "rjust" | "center" | "zfill" => fill(s, method, args)?,
        // Numbers and texts it writes by itself.
        "format" => {
            let is_plain = |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::String);
            let texts = args
                .iter()
                .map(|arg| if is_plain(arg) || arg.is_kwargs() { Ok(arg.clone()) } else { text_value(arg.clone()) });
            unknown_method_callback(state, value, method, &texts.collect::<Result<Vec<_>, _>>()?)?
        }
        _ => return Ok(None),
    }))
}

fn of_list(value: &Value, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "index" => {
            let (wanted,): (&Value,) = from_args(args)?;
            let found = value.try_iter()?.position(|item| item == *wanted);
            Value::from(found.ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "it is not in the list"))?)
        }
        "count" => {
            let (wanted,): (&Value,) = from_args(args)?;
            Value::from(value.try_iter()?.filter(|item| item == wanted).count())
        }
        "copy" => value.clone(),
        _ => return Ok(None),
    }))
}

/// The items' texts, with this between them.
pub(super) fn join(between: &str, items: &Value) -> Result<String, Error> {
    let mut out = String::new();
    for (number, item) in items.try_iter()?.enumerate() {
        out.push_str(if number > 0 { between } else { "" });
        match item.as_str() {
            Some(item) => out.push_str(item),
            None => out.push_str(&text(&item)?),
        }
    }
    Ok(out)
}

/// Where something is, in characters.
fn find(s: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (what, from, to): (&str, Option<i64>, Option<i64>) = from_args(args)?;
    let count = s.chars().count();
    let place = |at: i64| match usize::try_from(at) {
        Ok(at) => at.min(count),
        Err(_) => count.saturating_sub(usize::try_from(at.unsigned_abs()).unwrap_or(usize::MAX)),
    };
    let byte = |at: usize| s.char_indices().nth(at).map_or(s.len(), |(byte, _)| byte);
    let (from, to) = (place(from.unwrap_or(0)), to.map_or(count, place));
    let part = if from <= to { Some(&s[byte(from)..byte(to)]) } else { None };
    let found = part.and_then(|part| {
        let at = if method.starts_with('r') { part.rfind(what) } else { part.find(what) };
        at.map(|at| from + part[..at].chars().count())
    });
    match found {
        Some(at) => Ok(Value::from(at)),
        None if method.ends_with("find") => Ok(Value::from(-1)),
        None => Err(Error::new(ErrorKind::InvalidOperation, "substring not found")),
    }
}

fn split(s: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (separator, most, named): (Option<Value>, Option<i64>, Kwargs) = from_args(args)?;
    let separator = separator.or(named.get("sep")?).filter(|value| !value.is_none());
    let most = most.or(named.get("maxsplit")?).unwrap_or(-1);
    let most = usize::try_from(most).unwrap_or(usize::MAX - 1);
    let is_from_end = method == "rsplit";
    let mut parts: Vec<&str> = match &separator {
        Some(separator) => {
            let separator = separator.as_str().filter(|text| !text.is_empty()).ok_or_else(|| {
                Error::new(
                    ErrorKind::InvalidOperation,
                    format!("{method}: the separator must be a text, and not empty"),
                )
            })?;
            if is_from_end { s.rsplitn(most + 1, separator).collect() } else { s.splitn(most + 1, separator).collect() }
        }
        None if is_from_end => {
            let (mut parts, mut rest) = (Vec::new(), s.trim_end_matches(is_blank));
            while !rest.is_empty() {
                let start = match rest.rfind(is_blank) {
                    Some(at) if parts.len() < most => at + rest[at..].chars().next().map_or(1, char::len_utf8),
                    _ => 0,
                };
                parts.push(&rest[start..]);
                rest = rest[..start].trim_end_matches(is_blank);
            }
            if let Some(first) = parts.last_mut() {
                *first = first.trim_start_matches(is_blank);
            }
            parts.retain(|part| !part.is_empty());
            parts
        }
        None => {
            let (mut parts, mut rest) = (Vec::new(), s.trim_start_matches(is_blank));
            while !rest.is_empty() {
                let end = match rest.find(is_blank) {
                    Some(at) if parts.len() < most => at,
                    _ => rest.len(),
                };
                parts.push(&rest[..end]);
                rest = rest[end..].trim_start_matches(is_blank);
            }
            parts
        }
    };
    if is_from_end {
        parts.reverse();
    }
    Ok(parts.into_iter().map(Value::from).collect())
}

fn partition(s: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (what,): (&str,) = from_args(args)?;
    let is_from_end = method == "rpartition";
    let found = if is_from_end { s.rsplit_once(what) } else { s.split_once(what) };
    let parts = match found {
        Some((before, behind)) => [before, what, behind],
        None if is_from_end => ["", "", s],
        None => [s, "", ""],
    };
    Ok(parts.into_iter().map(Value::from).collect())
}

fn lines(s: &str, keeps_ends: bool) -> Value {
    const ENDS: [char; 10] =
        ['\n', '\r', '\u{b}', '\u{c}', '\u{1c}', '\u{1d}', '\u{1e}', '\u{85}', '\u{2028}', '\u{2029}'];
    let (mut lines, mut rest) = (Vec::new(), s);
    while !rest.is_empty() {
        let end = rest.find(ENDS).unwrap_or(rest.len());
        let mark =
            if rest[end..].starts_with("\r\n") { 2 } else { rest[end..].chars().next().map_or(0, char::len_utf8) };
        lines.push(Value::from(&rest[..if keeps_ends { end + mark } else { end }]));
        rest = &rest[end + mark..];
    }
    Value::from(lines)
}

/// Each letter behind something that is none is large.
fn title(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    let mut is_behind_letter = false;
    for c in s.chars() {
        if is_behind_letter {
            out.extend(c.to_lowercase())
        } else {
            out.extend(c.to_uppercase())
        }
        is_behind_letter = c.is_alphabetic();
    }
    out
}

fn swapped(c: char) -> Vec<char> {
    if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().collect() }
}

fn fill(s: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (width, with): (i64, Option<&str>) = from_args(args)?;
    let missing = usize::try_from(width).unwrap_or(0).saturating_sub(s.chars().count());
    let with = with.unwrap_or(if method == "zfill" { "0" } else { " " });
    let blanks = |count: usize| with.repeat(count);
    Ok(Value::from(match method {
        "ljust" => format!("{s}{}", blanks(missing)),
        "center" => {
            // Python puts an odd one before the text if the width is odd.
            let width = usize::try_from(width).unwrap_or(0);
            let before = missing / 2 + (missing & width & 1);
            format!("{}{s}{}", blanks(before), blanks(missing - before))
        }
        "zfill" if s.starts_with(['+', '-']) => format!("{}{}{}", &s[..1], blanks(missing), &s[1..]),
        _ => format!("{}{s}", blanks(missing)),
    }))
}
