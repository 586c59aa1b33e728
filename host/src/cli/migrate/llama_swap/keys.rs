//! The keys of a mapping, taken one by one. What nobody took is told of, and so is what has another shape than is expected.

use serde_yaml::{Mapping, Value};

use crate::cli::migrate::yaml::{flow, plain_text};

/// Bytes of a value of another configuration that a sentence repeats.
const VALUE_SHOWN_BYTES: usize = 200;

/// A mapping while it is read.
#[derive(Debug, Default)]
pub(super) struct Keys {
    left: Mapping,
    /// What was wrong with what was taken.
    pub(super) notes: Vec<String>,
}

impl Keys {
    /// The keys of a mapping; nothing of what is none.
    pub(super) fn of(value: Value) -> Option<Self> {
        match value {
            Value::Mapping(left) => Some(Self { left, notes: Vec::new() }),
            Value::Null => Some(Self::default()),
            _ => None,
        }
    }

    /// A value of any shape. One that is null counts as absent.
    pub(super) fn take(&mut self, key: &str) -> Option<Value> {
        self.left.shift_remove(key).filter(|value| !value.is_null())
    }

    /// A value as it is shown in a sentence.
    pub(super) fn shown(&mut self, key: &str) -> Option<String> {
        self.take(key).map(|value| shown(&value))
    }

    /// A text, or what can be read as one.
    pub(super) fn text(&mut self, key: &str) -> Option<String> {
        let value = self.take(key)?;
        match value {
            Value::Mapping(_) | Value::Sequence(_) => {
                self.note(key, &value, "a text");
                None
            }
            scalar => Some(plain_text(&scalar)),
        }
    }

    /// A whole number.
    pub(super) fn number(&mut self, key: &str) -> Option<i64> {
        let value = self.take(key)?;
        let number = value.as_i64().or_else(|| plain_text(&value).trim().parse().ok());
        if number.is_none() {
            self.note(key, &value, "a whole number");
        }
        number
    }

    /// `true` or `false`.
    pub(super) fn flag(&mut self, key: &str) -> Option<bool> {
        let value = self.take(key)?;
        let flag = value.as_bool().or_else(|| plain_text(&value).trim().parse().ok());
        if flag.is_none() {
            self.note(key, &value, "`true` or `false`");
        }
        flag
    }

    /// A list of texts; a text alone is a list of one.
    pub(super) fn texts(&mut self, key: &str) -> Vec<String> {
        match self.take(key) {
            None => Vec::new(),
            Some(Value::Sequence(items)) => items.iter().map(plain_text).collect(),
            Some(value @ Value::Mapping(_)) => {
                self.note(key, &value, "a list");
                Vec::new()
            }
            Some(scalar) => vec![plain_text(&scalar)],
        }
    }

    /// A mapping within; an empty one where there is none.
    pub(super) fn keys(&mut self, key: &str) -> Self {
        let value = self.take(key).unwrap_or_default();
        let copy = value.clone();
        Self::of(value).unwrap_or_else(|| {
            self.note(key, &copy, "a mapping");
            Self::default()
        })
    }

    /// Whatever is left, in its order.
    pub(super) fn pairs(&mut self) -> Vec<(String, Value)> {
        std::mem::take(&mut self.left).into_iter().map(|(key, value)| (plain_text(&key), value)).collect()
    }

    /// Says of all keys that are left that nobody knows them. `within` names the mapping. Keys that begin with `x-` hold what
    /// others repeat, by custom.
    pub(super) fn finish(mut self, within: &str) -> Vec<String> {
        for (key, value) in self.pairs().into_iter().filter(|(key, _)| !key.starts_with("x-")) {
            self.notes.push(format!("`{within}{key}: {}` is no key of llama-swap's, and is left out", shown(&value)));
        }
        self.notes
    }

    fn note(&mut self, key: &str, value: &Value, wanted: &str) {
        self.notes.push(format!("`{key}: {}` is left out: it is not {wanted}", shown(value)));
    }
}

/// A value as a sentence repeats it.
pub(super) fn shown(value: &Value) -> String {
    let mut text = flow(value);
    if text.len() > VALUE_SHOWN_BYTES {
        text.truncate(text.floor_char_boundary(VALUE_SHOWN_BYTES));
        text.push('…');
    }
    text
}
