//! What form an answer is to have, whichever words ask for it: OpenAI's `response_format`, and what clients of vLLM and
//! llama.cpp send in its place. A form is passed on as it was typed, and no plugin is asked for one that it does not keep.

use serde::Serialize;
use serde_json::value::RawValue;

use super::fields::{Fields, Items, Keys, Readable, text, wrong_type};
use super::json_text::raw;
use crate::domain::shown;
use crate::http::error::ApiError;

/// Bytes of a schema: more is no form of an answer, and a grammar is made of it.
const SCHEMA_BYTES_MAX: usize = 1 << 20;
/// Values that a schema has, of any type and depth.
const SCHEMA_VALUES_MAX: usize = 1 << 16;
/// Bytes of a regular expression, of a grammar, and of choices together.
const PATTERN_BYTES_MAX: usize = 64 << 10;
/// Longest name of a schema and of a function, as in OpenAI's API.
pub(super) const NAME_BYTES_MAX: usize = 64;
/// The types that JSON Schema knows.
const SCHEMA_TYPES: [&str; 7] = ["array", "boolean", "integer", "null", "number", "object", "string"];

/// What is read of `response_format`.
pub(in crate::http) const RESPONSE_FORMAT_KEYS: Keys =
    &["type", "json_schema", "schema", "pattern", "value", "grammar"];
/// What is read of `response_format.json_schema`.
pub(in crate::http) const JSON_SCHEMA_KEYS: Keys = &["name", "schema", "strict", "description"];
/// What is read of `structured_outputs`, as vLLM has it.
pub(in crate::http) const STRUCTURED_OUTPUTS_KEYS: Keys =
    &["json", "json_object", "regex", "choice", "grammar", "structural_tag"];
/// What is read of any schema.
const SCHEMA_KEYS: Keys = &["type"];

/// A form that an answer is to have.
#[derive(Clone, Debug)]
pub(super) struct AskedFormat {
    /// The JSON of a [`TextFormat`](aihost_plugin_api::task::TextFormat).
    pub(super) json: Box<RawValue>,
    pub(super) source: FormatSource,
}

/// Where a form was asked for.
#[derive(Clone, Debug)]
pub(super) struct FormatSource {
    /// The field that asks for it.
    pub(super) field: &'static str,
    /// Where its schema, expression or grammar lies.
    at: String,
}

/// A [`TextFormat`](aihost_plugin_api::task::TextFormat) on its way into a task.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Form<'a> {
    JsonObject,
    JsonSchema { schema: &'a RawValue },
    Regex { pattern: &'a str },
    Lark { grammar: &'a str },
}

/// Reads what stands behind one key, at this path.
type Reader = fn(&RawValue, String) -> Result<AskedFormat, ApiError>;

/// The form that a request asks for; nothing for any text.
pub(super) fn read(fields: &Fields<'_>) -> Result<Option<AskedFormat>, ApiError> {
    let of = |key: &'static str, read: Reader| {
        let asked = fields.get(key).map(|value| read(value, fields.path(key))).transpose()?;
        Ok::<_, ApiError>(asked.map(|asked| asked.by(key)))
    };
    refuse_gbnf(fields)?;
    let all = [
        response_format(fields)?,
        structured_outputs(fields)?,
        of("guided_json", json)?,
        of("guided_regex", regex)?,
        of("guided_choice", choice)?,
        of("guided_grammar", lark)?,
        of("json_schema", json)?,
    ];
    let mut asked = all.into_iter().flatten();
    let first = asked.next();
    if let (Some(first), Some(second)) = (&first, asked.next()) {
        let message = format!(
            "`{}` asks for a form of the answer, and so does `{}`: send one of them",
            second.source.field, first.source.field
        );
        return Err(ApiError::invalid(second.source.field, message));
    }
    Ok(first)
}

/// llama.cpp's own grammar, which some of its clients send empty.
fn refuse_gbnf(fields: &Fields<'_>) -> Result<(), ApiError> {
    match fields.text("grammar")? {
        Some(grammar) if !grammar.is_empty() => {
            let message = "`grammar` is in llama.cpp's GBNF, which is not read here; send `response_format` with a JSON schema, or {\"type\": \"grammar\", \"grammar\": \"...\"} with one in Lark";
            Err(ApiError::unsupported("grammar", message))
        }
        _ => Ok(()),
    }
}

fn response_format(fields: &Fields<'_>) -> Result<Option<AskedFormat>, ApiError> {
    const FIELD: &str = "response_format";
    let Some(format) = fields.object(FIELD, RESPONSE_FORMAT_KEYS)? else { return Ok(None) };
    let asked = match &*format.required_text("type")? {
        "text" => return Ok(None),
        "json_object" => match format.get("schema") {
            Some(schema) => json(schema, format.path("schema"))?,
            None => AskedFormat::new(&Form::JsonObject, FIELD.to_owned()),
        },
        "json_schema" => json_schema(&format)?,
        "regex" => {
            let key = if format.get("pattern").is_some() { "pattern" } else { "value" };
            let pattern = format.get(key).ok_or_else(|| ApiError::missing(format.path("pattern")))?;
            regex(pattern, format.path(key))?
        }
        "grammar" => lark(format.required("grammar")?, format.path("grammar"))?,
        other => {
            let path = format.path("type");
            let message =
                format!("`{path}` must be text, json_object, json_schema, regex or grammar, not `{}`", shown(other));
            return Err(ApiError::invalid(path, message));
        }
    };
    Ok(Some(asked.by(FIELD)))
}

/// OpenAI has the schema within an object that names it; some clients send it without.
fn json_schema(format: &Fields<'_>) -> Result<AskedFormat, ApiError> {
    let Some(named) = format.object("json_schema", JSON_SCHEMA_KEYS)? else {
        let schema = format.get("schema").ok_or_else(|| ApiError::missing(format.path("json_schema")))?;
        return json(schema, format.path("schema"));
    };
    if let Some(name) = named.text("name")? {
        check_name(&name, || named.path("name"), NAME_BYTES_MAX)?;
    }
    // It is kept strictly in any case.
    named.flag("strict")?;
    named.text("description")?;
    json(named.required("schema")?, named.path("schema"))
}

fn structured_outputs(fields: &Fields<'_>) -> Result<Option<AskedFormat>, ApiError> {
    const FIELD: &str = "structured_outputs";
    let Some(wanted) = fields.object(FIELD, STRUCTURED_OUTPUTS_KEYS)? else { return Ok(None) };
    if wanted.get("structural_tag").is_some() {
        let path = wanted.path("structural_tag");
        let message = format!("`{path}` is not supported; send `json`, `regex`, `choice`, `grammar` or `json_object`");
        return Err(ApiError::unsupported(path, message));
    }
    let mut asked = Vec::new();
    let readers: [(&str, Reader); 4] = [("json", json), ("regex", regex), ("choice", choice), ("grammar", lark)];
    for (key, read) in readers {
        if let Some(value) = wanted.get(key) {
            asked.push(read(value, wanted.path(key))?);
        }
    }
    if wanted.flag("json_object")? == Some(true) {
        asked.push(AskedFormat::new(&Form::JsonObject, wanted.path("json_object")));
    }
    if let [first, second, ..] = asked.as_slice() {
        let message =
            format!("`{}` and `{}`: an answer has one form, send one of them", first.source.at, second.source.at);
        return Err(ApiError::invalid(second.source.at.clone(), message));
    }
    Ok(asked.pop().map(|asked| asked.by(FIELD)))
}

impl AskedFormat {
    /// This form, of which more lies here.
    fn new(form: &Form<'_>, at: String) -> Self {
        Self { json: raw(form), source: FormatSource { field: "", at } }
    }

    /// The same, which this field asks for.
    fn by(self, field: &'static str) -> Self {
        Self { source: FormatSource { field, ..self.source }, ..self }
    }
}

impl FormatSource {
    /// Where a client wrote what a plugin calls by this path.
    pub(super) fn of(&self, path: &str) -> Option<String> {
        let rest = path.strip_prefix("format")?;
        let inner = [".schema", ".pattern", ".grammar"].into_iter().find_map(|name| rest.strip_prefix(name));
        match inner {
            Some(deeper) if deeper.is_empty() || deeper.starts_with(['.', '[']) => Some(format!("{}{deeper}", self.at)),
            _ if rest.is_empty() || rest.starts_with('.') => Some(self.field.to_owned()),
            _ => None,
        }
    }
}

/// A schema, or the text of one.
fn json(value: &RawValue, path: String) -> Result<AskedFormat, ApiError> {
    let quoted;
    let schema = if value.get().starts_with('"') {
        let unquoted = text(value, || path.clone(), "a JSON schema")?;
        quoted = serde_json::from_str::<Box<RawValue>>(&unquoted).map_err(|error| {
            ApiError::invalid(
                path.clone(),
                format!("`{path}` must be a JSON schema, and its text is not JSON: {error}"),
            )
        })?;
        &*quoted
    } else {
        value
    };
    check_schema(schema, &path)?;
    Ok(AskedFormat::new(&Form::JsonSchema { schema }, path))
}

fn check_schema(schema: &RawValue, path: &str) -> Result<(), ApiError> {
    if matches!(schema.get(), "true" | "false") {
        return Ok(());
    }
    if !schema.get().starts_with('{') {
        return Err(wrong_type(path, "a JSON schema: an object, true or false", schema));
    }
    if schema.get().len() > SCHEMA_BYTES_MAX {
        return Err(ApiError::invalid(path, format!("`{path}` must have at most {SCHEMA_BYTES_MAX} bytes")));
    }
    Readable { values_left: &mut { SCHEMA_VALUES_MAX } }.check(schema, path)?;
    check_type(&Fields::of(schema, path, SCHEMA_KEYS)?, None)
}

/// Checks the `type` of a schema, which may be left out, and which is this one or may be it, if one is wanted.
pub(super) fn check_type(schema: &Fields<'_>, wanted: Option<&str>) -> Result<(), ApiError> {
    let Some(value) = schema.get("type") else { return Ok(()) };
    let path = schema.path("type");
    let mut has_wanted = false;
    let mut look = |one: &RawValue, path: &dyn Fn() -> String| {
        let name = text(one, path, "a type of JSON Schema")?;
        if !SCHEMA_TYPES.contains(&&*name) {
            let path = path();
            let message = format!("`{path}` must be one of {}, not `{}`", SCHEMA_TYPES.join(", "), shown(&name));
            return Err(ApiError::invalid(path, message));
        }
        has_wanted |= wanted.is_none_or(|wanted| name == wanted);
        Ok(())
    };
    if value.get().starts_with('[') {
        let items = Items::of(value, path.clone())?;
        items.each(|i, one| look(one, &|| items.item(i)))?;
    } else {
        look(value, &|| path.clone())?;
    }
    match wanted {
        Some(wanted) if !has_wanted => {
            let message = format!("`{path}` must be {wanted}, not {}", shown(value.get()));
            Err(ApiError::invalid(path, message))
        }
        _ => Ok(()),
    }
}

fn regex(value: &RawValue, path: String) -> Result<AskedFormat, ApiError> {
    let pattern = bounded(value, &path, "a regular expression")?;
    Ok(AskedFormat::new(&Form::Regex { pattern: &pattern }, path))
}

fn lark(value: &RawValue, path: String) -> Result<AskedFormat, ApiError> {
    let grammar = bounded(value, &path, "a grammar in Lark")?;
    if grammar.lines().any(is_gbnf) {
        let message = format!(
            "`{path}` has rules in GBNF (`name ::= ...`), which is not read here; write it in Lark (`name: ...`)"
        );
        return Err(ApiError::unsupported(path, message));
    }
    Ok(AskedFormat::new(&Form::Lark { grammar: &grammar }, path))
}

/// Whether a line begins a rule of llama.cpp's grammars.
fn is_gbnf(line: &str) -> bool {
    line.split_once("::=").is_some_and(|(name, _)| !name.trim().is_empty() && is_plain(name.trim()))
}

fn bounded<'a>(value: &'a RawValue, path: &str, what: &str) -> Result<std::borrow::Cow<'a, str>, ApiError> {
    let text = text(value, || path.to_owned(), what)?;
    if text.is_empty() || text.len() > PATTERN_BYTES_MAX {
        return Err(ApiError::invalid(path, format!("`{path}` must have from 1 to {PATTERN_BYTES_MAX} bytes")));
    }
    Ok(text)
}

/// One of several texts, as an expression.
fn choice(value: &RawValue, path: String) -> Result<AskedFormat, ApiError> {
    let items = Items::of(value, path.clone())?;
    let mut pattern = String::new();
    let count = items.each(|i, item| {
        pattern.push_str(if i == 0 { "(?:" } else { "|" });
        escape(&text(item, || items.item(i), "a string")?, &mut pattern);
        if pattern.len() > PATTERN_BYTES_MAX {
            return Err(ApiError::invalid(&path, format!("`{path}` must have at most {PATTERN_BYTES_MAX} bytes")));
        }
        Ok(())
    })?;
    if count == 0 {
        return Err(ApiError::invalid(&path, format!("`{path}` must have at least one text to choose")));
    }
    pattern.push(')');
    Ok(AskedFormat::new(&Form::Regex { pattern: &pattern }, path))
}

/// A text as an expression that matches nothing else.
fn escape(text: &str, out: &mut String) {
    for character in text.chars() {
        if r"\.+*?()|[]{}^$#&-~".contains(character) {
            out.push('\\');
        }
        out.push(character);
    }
}

/// Checks the name of a schema or a function, as OpenAI has them.
pub(super) fn check_name(name: &str, path: impl Fn() -> String, bytes_max: usize) -> Result<(), ApiError> {
    if is_plain(name) && (1..=bytes_max).contains(&name.len()) {
        return Ok(());
    }
    let path = path();
    let message =
        format!("`{path}` must have from 1 to {bytes_max} of a-z, A-Z, 0-9, `_` and `-`, not `{}`", shown(name));
    Err(ApiError::invalid(path, message))
}

fn is_plain(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
}
