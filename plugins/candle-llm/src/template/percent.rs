//! Python's `text % values`.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

use super::text::{repr, text};

/// `left % right`. A tuple is its values; anything else is one.
pub(super) fn modulo(left: &Value, right: &Value, is_tuple: Option<bool>) -> Result<Value, Error> {
    if let Some(format) = left.as_str() {
        let values = if is_tuple == Some(true) { right.try_iter()?.collect() } else { vec![right.clone()] };
        return percent(format, &values).map(Value::from);
    }
    let wrong = || {
        let (left, right) = (left.kind(), right.kind());
        Error::new(ErrorKind::InvalidOperation, format!("% does not go between {left} and {right}"))
    };
    if left.is_integer() && right.is_integer() {
        let (left, right) = (i128::try_from(left.clone())?, i128::try_from(right.clone())?);
        let rest = left.checked_rem(right).ok_or_else(wrong)?;
        // It has the divisor's sign.
        let rest = if rest != 0 && (rest < 0) != (right < 0) { rest + right } else { rest };
        return Ok(small(rest));
    }
    if left.kind() != ValueKind::Number || right.kind() != ValueKind::Number {
        return Err(wrong());
    }
    let (left, right) = (f64::try_from(left.clone())?, f64::try_from(right.clone())?);
    Ok(Value::from(left - right * (left / right).floor()))
}

/// A whole number, as small as it can be kept.
pub(super) fn small(number: i128) -> Value {
    i64::try_from(number).map_or_else(|_| Value::from(number), Value::from)
}

/// One place of a format.
#[derive(Clone, Copy, Debug, Default)]
struct Place<'a> {
    key: Option<&'a str>,
    left: bool,
    zero: bool,
    sign: Option<char>,
    alternate: bool,
    width: usize,
    precision: Option<usize>,
}

/// The format with its places filled.
///
/// # Errors
/// There are more or fewer values than places, or they are of other types.
pub(super) fn percent(format: &str, values: &[Value]) -> Result<String, Error> {
    let mut out = String::new();
    let (mut rest, mut taken) = (format, 0);
    let mut has_keys = false;
    let mut next = || {
        taken += 1;
        values.get(taken - 1).cloned().ok_or_else(|| wrong("there are fewer values than places"))
    };
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let place = place(&mut rest, &mut next)?;
        let kind = rest.chars().next().ok_or_else(|| wrong("the format ends in a place"))?;
        rest = &rest[kind.len_utf8()..];
        if kind == '%' {
            out.push('%');
            continue;
        }
        let value = match place.key {
            Some(key) => {
                has_keys = true;
                let map = values.first().ok_or_else(|| wrong("it needs a map"))?;
                map.get_attr(key)?
            }
            None => next()?,
        };
        out.push_str(&fill(&place, kind, &value)?);
    }
    out.push_str(rest);
    let is_map = values.first().is_some_and(|value| value.kind() == ValueKind::Map);
    if taken < values.len() && !has_keys && !is_map {
        return Err(wrong("there are more values than places"));
    }
    Ok(out)
}

fn wrong(what: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("%: {what}"))
}

fn place<'a>(rest: &mut &'a str, next: &mut impl FnMut() -> Result<Value, Error>) -> Result<Place<'a>, Error> {
    let mut place = Place::default();
    if let Some(inner) = rest.strip_prefix('(') {
        let (key, behind) = inner.split_once(')').ok_or_else(|| wrong("a key has no end"))?;
        (place.key, *rest) = (Some(key), behind);
    }
    while let Some(flag @ ('-' | '0' | '+' | ' ' | '#')) = rest.chars().next() {
        match flag {
            '-' => place.left = true,
            '0' => place.zero = true,
            '+' => place.sign = Some('+'),
            ' ' => place.sign = place.sign.or(Some(' ')),
            _ => place.alternate = true,
        }
        *rest = &rest[1..];
    }
    if let Some(width) = number(rest, next)? {
        place.left |= width < 0;
        place.width = usize::try_from(width.unsigned_abs()).unwrap_or(usize::MAX);
    }
    if let Some(behind) = rest.strip_prefix('.') {
        *rest = behind;
        place.precision = Some(usize::try_from(number(rest, next)?.unwrap_or(0)).unwrap_or(0));
    }
    *rest = rest.trim_start_matches(['h', 'l', 'L']);
    Ok(place)
}

fn number(rest: &mut &str, next: &mut impl FnMut() -> Result<Value, Error>) -> Result<Option<i64>, Error> {
    if let Some(behind) = rest.strip_prefix('*') {
        *rest = behind;
        return Ok(Some(i64::try_from(next()?)?));
    }
    let length = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (digits, behind) = rest.split_at(length);
    *rest = behind;
    if digits.is_empty() {
        return Ok(None);
    }
    digits.parse().map(Some).map_err(|_| wrong("a width is too large"))
}

fn fill(place: &Place<'_>, kind: char, value: &Value) -> Result<String, Error> {
    let cut = |text: String| match place.precision {
        Some(most) => text.chars().take(most).collect(),
        None => text,
    };
    // Zeros are for numbers.
    let plain = Place { zero: false, ..*place };
    let (sign, digits) = match kind {
        's' => return Ok(pad(plain, "", &cut(text(value)?))),
        'r' | 'a' => return Ok(pad(plain, "", &cut(repr(value)?))),
        'c' => {
            let text = match value.as_str() {
                Some(text) => text.to_owned(),
                None => {
                    let c = u32::try_from(value.clone()).ok().and_then(char::from_u32);
                    c.ok_or_else(|| wrong("%c needs a character"))?.to_string()
                }
            };
            return Ok(pad(plain, "", &text));
        }
        'd' | 'i' | 'u' | 'x' | 'X' | 'o' => integer(place, kind, value)?,
        'f' | 'F' | 'e' | 'E' | 'g' | 'G' => real(place, kind, value)?,
        _ => return Err(wrong(&format!("there is no %{kind}"))),
    };
    let sign = if sign { "-".to_owned() } else { place.sign.map(String::from).unwrap_or_default() };
    Ok(pad(*place, &sign, &digits))
}

/// Whether it is negative, and its digits.
fn integer(place: &Place<'_>, kind: char, value: &Value) -> Result<(bool, String), Error> {
    let is_number = matches!(value.kind(), ValueKind::Number | ValueKind::Bool);
    let number = match i128::try_from(value.clone()) {
        Ok(number) if is_number => number,
        Err(_) if is_number && "diu".contains(kind) => f64::try_from(value.clone())?.trunc() as i128,
        _ => return Err(wrong(&format!("%{kind} needs a number"))),
    };
    let magnitude = number.unsigned_abs();
    let (prefix, digits) = match kind {
        'x' => ("0x", format!("{magnitude:x}")),
        'X' => ("0X", format!("{magnitude:X}")),
        'o' => ("0o", format!("{magnitude:o}")),
        _ => ("", magnitude.to_string()),
    };
    let zeros = "0".repeat(place.precision.unwrap_or(0).saturating_sub(digits.len()));
    Ok((number < 0, format!("{}{zeros}{digits}", if place.alternate { prefix } else { "" })))
}

fn real(place: &Place<'_>, kind: char, value: &Value) -> Result<(bool, String), Error> {
    if !matches!(value.kind(), ValueKind::Number | ValueKind::Bool) {
        return Err(wrong(&format!("%{kind} needs a number")));
    }
    let number = match value.kind() {
        ValueKind::Bool => f64::from(u8::from(value.is_true())),
        _ => f64::try_from(value.clone())?,
    };
    let (magnitude, precision) = (number.abs(), place.precision.unwrap_or(6));
    let digits = if !number.is_finite() {
        super::text::float(magnitude)
    } else {
        match kind.to_ascii_lowercase() {
            'f' => format!("{magnitude:.precision$}"),
            'e' => exponent(magnitude, precision),
            _ => general(magnitude, precision.max(1), place.alternate),
        }
    };
    let digits = if kind.is_ascii_uppercase() { digits.to_uppercase() } else { digits };
    Ok((number.is_sign_negative() && !number.is_nan(), digits))
}

fn exponent(magnitude: f64, precision: usize) -> String {
    let text = format!("{magnitude:.precision$e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

fn general(magnitude: f64, precision: usize, keeps_zeros: bool) -> String {
    let scientific = exponent(magnitude, precision - 1);
    let (digits, power) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let power: i64 = power.parse().unwrap_or(0);
    let most = i64::try_from(precision).unwrap_or(i64::MAX);
    let trim = |digits: &str| {
        let is_trimmed = !keeps_zeros && digits.contains('.');
        let trimmed = digits.trim_end_matches('0').trim_end_matches('.');
        if is_trimmed { trimmed.to_owned() } else { digits.to_owned() }
    };
    if power < -4 || power >= most {
        return format!("{}{}", trim(digits), &scientific[digits.len()..]);
    }
    let decimals = usize::try_from(most - 1 - power).unwrap_or(0);
    trim(&format!("{magnitude:.decimals$}"))
}

fn pad(place: Place<'_>, sign: &str, text: &str) -> String {
    let missing = place.width.saturating_sub(sign.len() + text.chars().count());
    if place.left {
        format!("{sign}{text}{}", " ".repeat(missing))
    } else if place.zero {
        format!("{sign}{}{text}", "0".repeat(missing))
    } else {
        format!("{}{sign}{text}", " ".repeat(missing))
    }
}
