//! JSON as Python's `json.dumps` writes it, which transformers has in place of Jinja's own filter: nothing is escaped for HTML.

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Error, ErrorKind, Value};

use super::text::{check_depth, float};

/// Most blanks of a level of indentation.
const MAX_INDENT: usize = 16;

/// How it is written.
#[derive(Clone, Debug)]
struct Style {
    ensure_ascii: bool,
    item_separator: String,
    key_separator: String,
    indent: Option<String>,
    sort_keys: bool,
}

impl Default for Style {
    fn default() -> Self {
        Self {
            ensure_ascii: false,
            item_separator: ", ".to_owned(),
            key_separator: ": ".to_owned(),
            indent: None,
            sort_keys: false,
        }
    }
}

/// `value | tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(super) fn to_json(value: &Value, positional: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let argument = |number: usize, name: &str| -> Result<Option<Value>, Error> {
        let given = named.get::<Option<Value>>(name)?.or_else(|| positional.get(number).cloned());
        Ok(given.filter(|value| !value.is_none() && !value.is_undefined()))
    };
    let mut style = Style {
        ensure_ascii: argument(0, "ensure_ascii")?.is_some_and(|value| value.is_true()),
        sort_keys: argument(3, "sort_keys")?.is_some_and(|value| value.is_true()),
        ..Style::default()
    };
    if let Some(indent) = argument(1, "indent")? {
        style.item_separator.truncate(1);
        style.indent = Some(match indent.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(indent.as_usize().unwrap_or(0).min(MAX_INDENT)),
        });
    }
    if let Some(separators) = argument(2, "separators")? {
        let separator = |number| {
            let separator = separators.get_item_by_index(number).ok().filter(|value| value.as_str().is_some());
            let wrong = || Error::new(ErrorKind::InvalidOperation, "tojson: separators must be two texts");
            separator.map(|value| value.to_string()).ok_or_else(wrong)
        };
        (style.item_separator, style.key_separator) = (separator(0)?, separator(1)?);
    }
    named.assert_all_used()?;
    let mut writer = Writer { out: String::new(), style };
    writer.value(value, 0)?;
    Ok(Value::from_safe_string(writer.out))
}

/// A value as JSON, with blanks behind commas and colons.
pub(super) fn dumps(value: &serde_json::Value) -> String {
    let mut writer = Writer { out: String::new(), style: Style::default() };
    // serde_json has a limit on depth of its own.
    match writer.value(&Value::from_serialize(value), 0) {
        Ok(()) => writer.out,
        Err(_) => value.to_string(),
    }
}

struct Writer {
    out: String,
    style: Style,
}

impl Writer {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        check_depth(depth)?;
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::String => self.text(value.as_str().unwrap_or_default()),
            ValueKind::Number => {
                let text = number(value)?;
                self.out.push_str(&text);
            }
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?;
                self.several(['[', ']'], depth, items, |writer, item| writer.value(&item, depth + 1))?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.style.sort_keys {
                    keys.sort();
                }
                self.several(['{', '}'], depth, keys.into_iter(), |writer, key| {
                    writer.key(&key)?;
                    writer.value(&value.get_item(&key)?, depth + 1)
                })?;
            }
            kind => {
                let message = format!("tojson: a value of type {kind} cannot be written as JSON");
                return Err(Error::new(ErrorKind::BadSerialization, message));
            }
        }
        Ok(())
    }

    fn several(
        &mut self,
        [open, close]: [char; 2],
        depth: usize,
        items: impl Iterator<Item = Value>,
        mut write: impl FnMut(&mut Self, Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        let mut is_empty = true;
        for item in items {
            if !is_empty {
                self.out.push_str(&self.style.item_separator);
            }
            is_empty = false;
            self.line(depth + 1);
            write(self, item)?;
        }
        if !is_empty {
            self.line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.style.indent {
            self.out.push('\n');
            (0..depth).for_each(|_| self.out.push_str(indent));
        }
    }

    fn key(&mut self, key: &Value) -> Result<(), Error> {
        match key.kind() {
            ValueKind::None => self.text("null"),
            ValueKind::Bool => self.text(if key.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.text(&number(key)?),
            _ => self.text(&key.to_string()),
        }
        self.out.push_str(&self.style.key_separator);
        Ok(())
    }

    fn text(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                '\0'..='\u{1f}' => self.escape(c),
                _ if self.style.ensure_ascii && !matches!(c, ' '..='~') => self.escape(c),
                _ => self.out.push(c),
            }
        }
        self.out.push('"');
    }

    fn escape(&mut self, c: char) {
        for unit in c.encode_utf16(&mut [0; 2]) {
            self.out.push_str(&format!("\\u{unit:04x}"));
        }
    }
}

fn number(value: &Value) -> Result<String, Error> {
    if value.is_integer() {
        return Ok(value.to_string());
    }
    let number = f64::try_from(value.clone())?;
    Ok(match number {
        _ if number.is_nan() => "NaN".to_owned(),
        f64::INFINITY => "Infinity".to_owned(),
        f64::NEG_INFINITY => "-Infinity".to_owned(),
        _ => float(number),
    })
}
