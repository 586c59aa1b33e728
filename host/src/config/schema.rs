//! The JSON Schema of models.yaml, for editors.

use super::raw::RawConfig;

/// The schema, from the types that read the file.
pub fn json_schema() -> serde_json::Value {
    schemars::schema_for!(RawConfig).into()
}
