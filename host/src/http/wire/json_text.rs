//! JSON that stays text from the body it came in to the task that it goes into.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::value::RawValue;

use super::fields::{Fields, Keys};

/// A value as text.
pub(in crate::http) fn raw<T: Serialize + ?Sized>(value: &T) -> Box<RawValue> {
    raw_text(super::json(value))
}

/// An object as text.
pub(super) fn object_of<K: Serialize, V: Serialize>(fields: &BTreeMap<K, V>) -> Box<RawValue> {
    raw(fields)
}

/// Some fields of an object, as they are.
pub(super) fn picked(fields: &Fields<'_>, keys: Keys) -> Box<RawValue> {
    object_of(&keys.iter().filter_map(|key| Some((*key, fields.get(key)?))).collect())
}

/// Text that is JSON, because it was made of JSON.
pub(super) fn raw_text(text: Vec<u8>) -> Box<RawValue> {
    let value = String::from_utf8(text).ok().and_then(|text| RawValue::from_string(text).ok());
    debug_assert!(value.is_some(), "what was made is no JSON");
    value.unwrap_or_else(|| RawValue::NULL.to_owned())
}
