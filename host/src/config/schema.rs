//! The JSON Schema of models.yaml, for editors and for docs/CONFIG.md.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::raw::RawConfig;

/// The schema, from the types that read the file.
pub fn json_schema() -> serde_json::Value {
    schemars::schema_for!(RawConfig).into()
}

/// How the schema speaks of a duration; never a value.
#[derive(Debug)]
pub(super) enum Span {}

impl JsonSchema for Span {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": ["string", "number"], "description": "500ms, 60s, 5m, 1h, 2d, or a number of seconds"})
    }
}

/// How the schema speaks of a size; never a value.
#[derive(Debug)]
pub(super) enum Size {}

impl JsonSchema for Size {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": ["string", "number"], "description": "20GiB, 512MB, or a number of bytes"})
    }
}

/// How the schema speaks of a count; never a value.
#[derive(Debug)]
pub(super) enum Count {}

impl JsonSchema for Count {
    fn schema_name() -> Cow<'static, str> {
        "Count".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": ["string", "number"], "description": "a whole number"})
    }
}
