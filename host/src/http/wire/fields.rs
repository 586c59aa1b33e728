//! Reading a JSON object field by field. `null` is the same as absent; every refusal names the field by its path.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::http::error::ApiError;

/// Longest value repeated in a message.
const MAX_SHOWN: usize = 40;

/// A JSON object and where it lies.
#[derive(Clone, Debug)]
pub(in crate::http) struct Fields<'a> {
    path: String,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// The body itself.
    pub(in crate::http) fn root(map: &'a Map<String, Value>) -> Self {
        Self { path: String::new(), map }
    }

    /// An object somewhere inside.
    pub(in crate::http) fn of(value: &'a Value, path: &str) -> Result<Self, ApiError> {
        let map = value.as_object().ok_or_else(|| wrong_type(path, "an object", value))?;
        Ok(Self { path: path.to_owned(), map })
    }

    /// Where a field of this object lies.
    pub(in crate::http) fn path(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// The value, unless it is absent or null.
    pub(in crate::http) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// The value, which must be there.
    pub(in crate::http) fn required(&self, key: &str) -> Result<&'a Value, ApiError> {
        self.get(key).ok_or_else(|| ApiError::missing(self.path(key)))
    }

    pub(in crate::http) fn text(&self, key: &str) -> Result<Option<&'a str>, ApiError> {
        self.typed(key, "a string", Value::as_str)
    }

    pub(in crate::http) fn required_text(&self, key: &str) -> Result<&'a str, ApiError> {
        self.text(key)?.ok_or_else(|| ApiError::missing(self.path(key)))
    }

    pub(in crate::http) fn flag(&self, key: &str) -> Result<Option<bool>, ApiError> {
        self.typed(key, "true or false", Value::as_bool)
    }

    pub(in crate::http) fn array(&self, key: &str) -> Result<Option<&'a Vec<Value>>, ApiError> {
        self.typed(key, "an array", Value::as_array)
    }

    pub(in crate::http) fn object(&self, key: &str) -> Result<Option<Fields<'a>>, ApiError> {
        self.get(key).map(|value| Fields::of(value, &self.path(key))).transpose()
    }

    /// Keys and values.
    pub(in crate::http) fn entries(&self) -> impl Iterator<Item = (&'a str, &'a Value)> {
        self.map.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// A number within bounds, both included.
    pub(in crate::http) fn number(&self, key: &str, range: RangeInclusive<f32>) -> Result<Option<f32>, ApiError> {
        let Some(number) = self.typed(key, "a number", Value::as_f64)? else { return Ok(None) };
        let (low, high) = (*range.start(), *range.end());
        if (f64::from(low)..=f64::from(high)).contains(&number) {
            #[expect(clippy::cast_possible_truncation, reason = "it lies between two f32")]
            return Ok(Some(number as f32));
        }
        let path = self.path(key);
        let message = format!("`{path}` must be from {low} to {high}, not {number}");
        Err(ApiError::invalid(path, message))
    }

    /// A whole number within bounds, both included. `1.0` is one.
    pub(in crate::http) fn integer(&self, key: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let path = self.path(key);
        let integer = whole(value).ok_or_else(|| wrong_type(&path, "an integer", value))?;
        if range.contains(&integer) {
            return Ok(Some(integer));
        }
        let message = format!("`{path}` must be from {} to {}, not {integer}", range.start(), range.end());
        Err(ApiError::invalid(path, message))
    }

    fn typed<T>(&self, key: &str, wanted: &str, cast: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>, ApiError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        cast(value).map(Some).ok_or_else(|| wrong_type(&self.path(key), wanted, value))
    }
}

/// `value` at `path` is not of the wanted type.
pub(in crate::http) fn wrong_type(path: &str, wanted: &str, value: &Value) -> ApiError {
    let mut shown = value.to_string();
    if shown.len() > MAX_SHOWN {
        let cut = (0..=MAX_SHOWN).rev().find(|&at| shown.is_char_boundary(at)).unwrap_or(0);
        shown.truncate(cut);
        shown.push('…');
    }
    ApiError::wrong_type(path, format!("`{path}` must be {wanted}, not {shown}"))
}

fn whole(value: &Value) -> Option<i64> {
    /// From here on an f64 does not tell neighbouring integers apart.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    value.as_i64().or_else(|| {
        let number = value.as_f64().filter(|number| number.fract() == 0.0 && number.abs() < EXACT)?;
        #[expect(clippy::cast_possible_truncation, reason = "it is whole and below 2^53")]
        Some(number as i64)
    })
}
