//! Filters and tests that minijinja has otherwise than Jinja, or not.

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Value};

use super::json::to_json;
use super::methods::{self, Ends};
use super::percent::{percent, small};
use super::text::{text, text_value};

/// Adds them to an environment.
pub(super) fn add(environment: &mut Environment<'_>) {
    environment.add_filter("tojson", to_json);
    environment.add_filter("string", text_value);
    environment.add_filter("join", join);
    environment.add_filter("trim", trim);
    environment.add_filter("indent", indent);
    environment.add_filter("int", integer);
    environment.add_filter("float", real);
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    environment.add_filter("format", |format: &str, values: Rest<Value>| percent(format, &values));
    environment.add_test("iterable", is_iterable);
    environment.add_test("sequence", is_sequence);
    environment.add_test("number", |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool));
    environment.add_test("callable", |value: &Value| value.kind() == ValueKind::Plain);
}

/// What is undefined is empty, and none is nothing that has items.
fn is_iterable(value: &Value) -> bool {
    value.is_undefined() || !value.is_none() && value.try_iter().is_ok()
}

/// What has a length and places; in Python a map does too.
fn is_sequence(value: &Value) -> bool {
    let is_list = matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String | ValueKind::Undefined);
    is_list || value.kind() == ValueKind::Iterable && value.len().is_some()
}

fn length(value: &Value) -> Result<usize, Error> {
    let none = || Error::new(ErrorKind::InvalidOperation, format!("a value of type {} has no length", value.kind()));
    if value.is_undefined() { Ok(0) } else { value.len().ok_or_else(none) }
}

/// What is no number is the other value.
fn integer(value: &Value, other: Option<i64>) -> Value {
    let text = value.as_str().map(|text| text.trim().replace('_', ""));
    let whole = match &text {
        Some(text) => text.parse::<i128>().ok().or_else(|| text.parse::<f64>().ok().map(|number| number as i128)),
        None => i128::try_from(value.clone())
            .ok()
            .or_else(|| f64::try_from(value.clone()).ok().map(|number| number as i128)),
    };
    whole.map_or_else(|| Value::from(other.unwrap_or(0)), small)
}

/// What is no number is the other value.
fn real(value: &Value, other: Option<f64>) -> f64 {
    let number = match value.as_str() {
        Some(text) => text.trim().replace('_', "").parse().ok(),
        None => f64::try_from(value.clone()).ok(),
    };
    number.or(other).unwrap_or(0.0)
}

/// `text | indent(width, first, blank)`: lines but the first, and but empty ones, are moved to the right.
fn indent(value: &Value, width: Option<Value>, flags: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    let flag = |number: usize, name: &str| -> Result<bool, Error> {
        let given = named.get::<Option<Value>>(name)?.or_else(|| flags.get(number).cloned());
        Ok(given.is_some_and(|value| value.is_true()))
    };
    let (first, blank) = (flag(0, "first")?, flag(1, "blank")?);
    let width = named.get::<Option<Value>>("width")?.or(width);
    named.assert_all_used()?;
    let margin = match &width {
        Some(width) => match width.as_str() {
            Some(margin) => margin.to_owned(),
            None => " ".repeat(usize::try_from(width.clone())?),
        },
        None => "    ".to_owned(),
    };
    let text = text(value)?;
    let mut out = String::with_capacity(text.len());
    for (number, line) in text.split('\n').enumerate() {
        out.push_str(if number > 0 { "\n" } else { "" });
        if (number > 0 || first) && (blank || number == 0 || !line.is_empty()) {
            out.push_str(&margin);
        }
        out.push_str(line);
    }
    Ok(out)
}

fn trim(value: &Value, chars: Option<&str>) -> Result<String, Error> {
    let text = text(value)?;
    Ok(methods::strip(&text, chars, Ends::Both).to_owned())
}

/// `items | join(between, attribute=name)`.
fn join(items: &Value, between: Option<&str>, named: Kwargs) -> Result<String, Error> {
    let between = between.or(named.get("d")?).unwrap_or_default();
    let attribute: Option<&str> = named.get("attribute")?;
    named.assert_all_used()?;
    match attribute {
        Some(attribute) => {
            let items = items.try_iter()?.map(|item| item.get_attr(attribute));
            methods::join(between, &Value::from(items.collect::<Result<Vec<_>, _>>()?))
        }
        None => methods::join(between, items),
    }
}
