//! Whatever the tests send and receive is as `GET /openapi.json` says it is.

use std::sync::LazyLock;

use axum::http::Method;
use axum::http::response::Parts;

use super::*;
use crate::http::openapi::document;

static DOCUMENT: LazyLock<Value> = LazyLock::new(document);

/// Holds one request and its answer against the document. What was refused need not have been as it says.
pub(super) fn check(method: &Method, path: &str, sent: &[u8], answered: &Parts, body: &[u8]) {
    let Some(operation) = operation(method, path) else { return };
    let kind = answered.headers.get("content-type").map_or("", |kind| kind.to_str().unwrap());
    let Ok(reply) = serde_json::from_slice::<Value>(body) else { return };
    if !kind.starts_with("application/json") {
        return;
    }
    let is_answer = answered.status.is_success();
    let response = &operation["responses"][if is_answer { answered.status.as_str() } else { "default" }];
    let schema = &response["content"]["application/json"]["schema"];
    assert!(!schema.is_null(), "{method} {path} says nothing of an answer of JSON: {reply}");
    if let Err(wrong) = fits(&reply, schema, "answer") {
        panic!("{method} {path}: {wrong}: {reply}");
    }
    let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
    if let (true, Ok(sent)) = (is_answer && !schema.is_null(), serde_json::from_slice::<Value>(sent))
        && let Err(wrong) = fits(&sent, schema, "body")
    {
        panic!("{method} {path}: {wrong}, and was answered: {sent}");
    }
}

/// What the document has of a path with its parameters filled in.
fn operation(method: &Method, path: &str) -> Option<&'static Value> {
    let method = method.as_str().to_ascii_lowercase();
    let paths = DOCUMENT["paths"].as_object().unwrap();
    let exact = paths.get(path);
    let item = exact.or_else(|| {
        let filled = |pattern: &str| {
            let (head, parameter) = pattern.split_once('{')?;
            let (_, tail) = parameter.split_once('}')?;
            let rest = path.strip_prefix(head)?.strip_suffix(tail)?;
            (!rest.is_empty()).then_some(())
        };
        // Of several that fit the longest says most.
        let fitting = paths.iter().filter(|(pattern, _)| filled(pattern).is_some());
        fitting.max_by_key(|(pattern, _)| pattern.len()).map(|(_, item)| item)
    });
    item?.get(method)
}

/// Whether a value is as a schema says, of the words that the document uses.
fn fits(value: &Value, schema: &Value, at: &str) -> Result<(), String> {
    if let Some(reference) = schema["$ref"].as_str() {
        return fits(value, DOCUMENT.pointer(&reference[1..]).unwrap(), at);
    }
    let is = |kind: &str| match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "integer" => value.is_u64() || value.is_i64() || value.as_f64().is_some_and(|number| number.fract() == 0.0),
        "number" => value.is_number(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("a type `{other}`"),
    };
    let wanted = match &schema["type"] {
        Value::String(kind) => vec![kind.as_str()],
        Value::Array(kinds) => kinds.iter().map(|kind| kind.as_str().unwrap()).collect(),
        _ => Vec::new(),
    };
    if !wanted.is_empty() && !wanted.iter().any(|kind| is(kind)) {
        return Err(format!("{at} is not of type {wanted:?}"));
    }
    if schema.get("const").is_some_and(|only| only != value) {
        return Err(format!("{at} is not {}", schema["const"]));
    }
    if let Some(all) = schema["enum"].as_array().filter(|all| !all.contains(value)) {
        return Err(format!("{at} is none of {all:?}"));
    }
    if let Some(number) = value.as_f64() {
        let is_outside = schema["minimum"].as_f64().is_some_and(|least| number < least)
            || schema["maximum"].as_f64().is_some_and(|most| number > most);
        if is_outside {
            return Err(format!("{at} is out of its range"));
        }
    }
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if value.is_object() && value.get(name).is_none() {
            return Err(format!("{at} has no `{name}`"));
        }
    }
    if let (Some(object), Some(properties)) = (value.as_object(), schema["properties"].as_object()) {
        for (name, value) in object {
            if let Some(schema) = properties.get(name) {
                fits(value, schema, &format!("{at}.{name}"))?;
            }
        }
    }
    if let (Some(items), Some(schema)) = (value.as_array(), schema.get("items")) {
        items.iter().enumerate().try_for_each(|(i, item)| fits(item, schema, &format!("{at}[{i}]")))?;
    }
    Ok(())
}

#[test]
fn the_linter_sees_what_is_wrong() {
    let schema = &DOCUMENT["components"]["schemas"]["ChatCompletion"];
    assert!(fits(&json!({"id": "x"}), schema, "answer").unwrap_err().contains("has no `object`"));
    let error = &DOCUMENT["components"]["schemas"]["Error"];
    assert!(fits(&json!({"error": {"message": 7, "type": "", "param": null, "code": null}}), error, "answer").is_err());
    assert!(fits(&json!({"error": {"message": "", "type": "", "param": null, "code": null}}), error, "answer").is_ok());
    assert!(operation(&Method::GET, "/v1/models/org/b").is_some() && operation(&Method::GET, "/nowhere").is_none());
}

#[tokio::test]
async fn the_document_and_its_page_are_served() {
    let host = Host::new(hello);
    assert_eq!(host.get("/openapi.json").await.json()["openapi"], "3.1.0");
    let page = host.get("/docs").await;
    assert!(page.header("content-type").starts_with("text/html") && page.body.contains("openapi.json"));
    assert!(page.header("content-security-policy").contains("default-src 'none'"));
}
