//! `GET /openapi.json`: every route that is routed, every field that is read, and the shapes of answers; and `/docs`, a page that
//! shows it. The routes and fields are those that the router and the parsers go by, so that neither can be forgotten here.

mod fields;
mod operations;
mod replies;

use std::sync::LazyLock;

use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::request_fields::request_fields;
use super::router::{Route, may_wait, of_job, routes};
use super::wire;
use operations::{Operation, operation};

/// Made once.
static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| wire::json(&document()).into());
/// A page of its own: nothing of it comes from elsewhere.
const PAGE: &str = include_str!("docs.html");
/// What the page may do: run its own script, and ask this host.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// `GET /openapi.json`.
pub(super) async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], DOCUMENT.clone()).into_response()
}

/// `GET /docs`.
pub(super) async fn docs() -> Response {
    let headers: [(HeaderName, HeaderValue); 2] = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(PAGE_POLICY)),
    ];
    (headers, PAGE).into_response()
}

/// The whole document (OpenAPI 3.1).
pub(super) fn document() -> Value {
    let mut paths = Map::new();
    for route in routes() {
        let item = paths.entry(openapi_path(route.path)).or_insert_with(|| json!({}));
        for method in &route.answered {
            let method = method.as_str().to_ascii_lowercase();
            item[method.as_str()] = described(&route, &method, &operation(route.path, &method));
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "aihost",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "Many generative models behind one port",
            "license": {"name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0"},
        },
        "security": [{}, {"bearer": []}, {"key": []}],
        "paths": paths,
        "components": {
            "schemas": replies::schemas(),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    })
}

/// A path's parameters as OpenAPI writes them: it has none that take several segments.
fn openapi_path(path: &str) -> String {
    path.replace("{*", "{")
}

fn described(route: &Route, method: &str, operation: &Operation) -> Value {
    let mut described = json!({
        "summary": operation.summary,
        "tags": [operation.tag],
        "responses": {
            "200": answer(operation),
            "default": {
                "description": "a refusal",
                "content": {"application/json": {"schema": {"$ref": format!("#/components/schemas/{}", operation.error)}}},
            },
        },
    });
    let parameters = parameters(route.path);
    if !parameters.is_empty() {
        described["parameters"] = parameters.into();
    }
    if let Some(body) = body(route.path).filter(|_| method == "post") {
        described["requestBody"] = body;
    }
    if takes_jobs(route.path) && method == "post" {
        let job = json!({"$ref": "#/components/schemas/Job"});
        described["responses"]["202"] =
            json!({"description": "it is kept as a job", "content": {"application/json": {"schema": job}}});
    }
    described
}

/// Whether what is asked there may be kept as a job.
fn takes_jobs(path: &str) -> bool {
    path == "/v1/jobs" || of_job(path).is_some_and(|wanted| may_wait(wanted.kind))
}

fn answer(operation: &Operation) -> Value {
    let content = |kind: &str, schema: Value| json!({kind: {"schema": schema}});
    let mut answer = json!({"description": "the answer"});
    if let Some(schema) = operation.reply {
        answer["content"] = content("application/json", json!({"$ref": format!("#/components/schemas/{schema}")}));
    }
    if let Some(kind) = operation.stream {
        answer["content"][kind] = json!({"schema": {"type": "string"}});
    }
    answer
}

/// What stands in braces.
fn parameters(path: &str) -> Vec<Value> {
    let names =
        path.split('{').skip(1).filter_map(|rest| rest.split_once('}')).map(|(name, _)| name.trim_start_matches('*'));
    names.map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}})).collect()
}

/// What a route reads of a body, if it reads one.
fn body(path: &str) -> Option<Value> {
    let endpoint = request_fields().into_iter().find(|endpoint| endpoint.path == path)?;
    let mut properties = Map::new();
    for field in endpoint.fields.iter().filter(|field| !field.contains(['.', '['])) {
        properties.insert(field.clone(), fields::schema(path, field));
    }
    let schema = json!({"type": "object", "properties": properties, "required": fields::required(path)});
    let mut content = json!({"application/json": {"schema": schema}});
    if fields::takes_form(path) {
        content["multipart/form-data"] = json!({"schema": {"type": "object"}});
    }
    Some(json!({"required": true, "content": content}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_and_every_field_is_there() {
        let document = document();
        for route in routes() {
            let item = &document["paths"][openapi_path(route.path)];
            assert_eq!(item.as_object().unwrap().len(), route.answered.len(), "{}", route.path);
            for method in &route.answered {
                let operation = &item[method.as_str().to_ascii_lowercase()];
                assert!(!operation["summary"].as_str().unwrap().is_empty(), "{method} {} has no summary", route.path);
                let reads_body = route.body.is_some() && method == "POST";
                assert_eq!(operation.get("requestBody").is_some(), reads_body, "{}", route.path);
            }
        }
        for endpoint in request_fields() {
            for field in endpoint.fields.iter().filter(|field| !field.contains(['.', '['])) {
                let schema = fields::schema(endpoint.path, field);
                assert!(
                    schema.as_object().is_some_and(|schema| !schema.is_empty()),
                    "{}: `{field}` has no schema",
                    endpoint.path
                );
            }
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
            match value {
                Value::Object(map) => {
                    found.extend(map.get("$ref").and_then(Value::as_str));
                    map.values().for_each(|value| references(value, found));
                }
                Value::Array(items) => items.iter().for_each(|value| references(value, found)),
                _ => {}
            }
        }
        let document = document();
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 20);
        for reference in found {
            assert!(document.pointer(reference.strip_prefix('#').unwrap()).is_some(), "{reference}");
        }
    }

    #[test]
    fn the_page_needs_nobody_else() {
        for elsewhere in ["http://", "https://", "src=", "@import", "url("] {
            assert!(!PAGE.contains(elsewhere), "{elsewhere}");
        }
    }
}
