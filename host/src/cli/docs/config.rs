//! The keys part of docs/CONFIG.md, from the schema of models.yaml. `cargo xtask docgen` adds the limits that are not keys.

use std::fmt::Write;

use serde_json::{Map, Value};

use super::table;

const HEAD: &str = "# Configuration

Written by `cargo xtask docgen` from the types that read models.yaml and from the constants of the host.
`aihost check` validates a file; `aihost check --schema` prints the JSON Schema for editors. [ADDING_MODELS](ADDING_MODELS.md)
says how an entry is written, models.yaml at the root is an example.

A **size** is written like 20GiB, 512MB or as a plain number of bytes. A **duration** is written like 500ms, 60s, 5m, 1h, 2d or
as a plain number of seconds. Unknown keys are refused.
";

pub(super) fn page(schema: &Value) -> String {
    let mut text = HEAD.to_owned();
    section(&mut text, schema, "Top level");
    let mut told = Vec::new();
    let mut open = references(schema);
    while !open.is_empty() {
        let name = open.remove(0);
        if told.contains(&name) {
            continue;
        }
        let definition = &schema["$defs"][&name];
        if definition.get("properties").is_some() {
            section(&mut text, definition, &name);
        }
        open.extend(references(definition));
        told.push(name);
    }
    text
}

fn section(text: &mut String, schema: &Value, title: &str) {
    let none = Map::new();
    let properties = schema["properties"].as_object().unwrap_or(&none);
    let required = |name: &str| schema["required"].as_array().is_some_and(|names| names.iter().any(|n| n == name));
    let rows = properties.iter().map(|(name, property)| {
        let (meaning, default) = split_default(property["description"].as_str().unwrap_or_default());
        let default = if required(name) { "required".to_owned() } else { default.unwrap_or("-").to_owned() };
        vec![format!("`{name}`"), kind(property), default, meaning.to_owned()]
    });
    let about = schema["description"].as_str().unwrap_or_default();
    // Writing to a string does not fail.
    let _written = write!(text, "\n## {title}\n\n{about}\n\n");
    *text += &table(&["key", "type", "default", "meaning"], rows);
}

/// A description without its last sentence, if that says the default; and the default.
fn split_default(description: &str) -> (&str, Option<&str>) {
    match description.split_once(" Default: ") {
        Some((meaning, default)) => (meaning, Some(default.trim_end_matches('.'))),
        None => (description, None),
    }
}

/// The type in words.
fn kind(schema: &Value) -> String {
    if let Some(name) = reference(schema) {
        return match name {
            "Scalar" => "text".to_owned(),
            "Duration" | "Size" => name.to_lowercase(),
            "Count" => "whole number".to_owned(),
            "DeviceOrId" => "text or [Device](#device)".to_owned(),
            "Models" => "[Model](#model) by name, or a list of them".to_owned(),
            "ApiKey" => "text or [Key](#key)".to_owned(),
            many if many.starts_with("OneOrMany") => {
                let one = Value::from(format!("#/$defs/{}", &many["OneOrMany".len()..]));
                format!("{}, or a list", kind(&serde_json::json!({"$ref": one})))
            }
            section => format!("[{section}](#{})", section.to_lowercase()),
        };
    }
    if let Some(choices) = schema["anyOf"].as_array() {
        let kinds: Vec<String> = choices.iter().filter(|choice| choice["type"] != "null").map(kind).collect();
        return kinds.join(" or ");
    }
    let types: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(many) => many.iter().filter_map(Value::as_str).filter(|name| *name != "null").collect(),
        _ => Vec::new(),
    };
    match types.as_slice() {
        ["boolean"] => "true or false".to_owned(),
        ["string"] => "text".to_owned(),
        ["array"] => format!("list of {}", kind(&schema["items"])),
        ["object"] if schema["additionalProperties"].get("$ref").is_some() => {
            format!("mapping to {}", kind(&schema["additionalProperties"]))
        }
        ["object"] => "mapping".to_owned(),
        _ => "any".to_owned(),
    }
}

fn reference(schema: &Value) -> Option<&str> {
    schema["$ref"].as_str()?.strip_prefix("#/$defs/")
}

/// Every definition that is named below, in order, `$defs` itself aside.
fn references(schema: &Value) -> Vec<String> {
    match schema {
        Value::Object(map) => {
            let own = reference(schema).map(str::to_owned);
            own.into_iter()
                .chain(map.iter().filter(|(key, _)| *key != "$defs").flat_map(|(_, value)| references(value)))
                .collect()
        }
        Value::Array(items) => items.iter().flat_map(references).collect(),
        _ => Vec::new(),
    }
}
