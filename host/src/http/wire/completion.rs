//! What `POST /v1/completions` reads.

use aihost_plugin_api::task::TextInput;
use serde_json::{Map, Value};

use super::fields::{Fields, wrong_type};
use super::{TextJob, sampling};
use crate::http::error::ApiError;

/// OpenAI's default for this endpoint.
const DEFAULT_MAX_TOKENS: u32 = 16;

/// Checks a body.
pub(in crate::http) fn parse(body: &Map<String, Value>) -> Result<TextJob, ApiError> {
    let inputs = prompts(Fields::root(body).required("prompt")?)?;
    sampling::job(body, inputs, |fields, request| {
        if fields.text("suffix")?.is_some_and(|suffix| !suffix.is_empty()) {
            return Err(ApiError::unsupported("suffix", "`suffix` is not supported by this model's engine"));
        }
        if fields.integer("best_of", 0..=i64::MAX)?.is_some_and(|best_of| best_of > 1) {
            return Err(ApiError::unsupported("best_of", "`best_of` above 1 is not supported; use `n`"));
        }
        request.max_tokens = Some(sampling::token_count(fields, "max_tokens")?.unwrap_or(DEFAULT_MAX_TOKENS));
        request.logprobs = fields.integer("logprobs", 0..=5)?.and_then(|count| u32::try_from(count).ok());
        request.echo = fields.flag("echo")?.unwrap_or(false);
        Ok(())
    })
}

/// A string, token ids, or an array of either.
fn prompts(prompt: &Value) -> Result<Vec<TextInput>, ApiError> {
    let items = match prompt {
        Value::String(text) => return Ok(vec![TextInput::Prompt { text: text.clone() }]),
        Value::Array(items) if !items.is_empty() => items,
        Value::Array(_) => return Err(ApiError::invalid("prompt", "`prompt` must not be empty")),
        other => return Err(wrong_type("prompt", "a string or an array", other)),
    };
    if items[0].is_number() {
        return Ok(vec![tokens(items, "prompt")?]);
    }
    let one = |(i, item): (usize, &Value)| {
        let path = format!("prompt[{i}]");
        match item {
            Value::String(text) => Ok(TextInput::Prompt { text: text.clone() }),
            Value::Array(ids) if !ids.is_empty() => tokens(ids, &path),
            Value::Array(_) => Err(ApiError::invalid(path.clone(), format!("`{path}` must not be empty"))),
            other => Err(wrong_type(&path, "a string or an array of token ids", other)),
        }
    };
    items.iter().enumerate().map(one).collect()
}

fn tokens(ids: &[Value], path: &str) -> Result<TextInput, ApiError> {
    let id = |(i, id): (usize, &Value)| {
        let token = id.as_u64().and_then(|token| u32::try_from(token).ok());
        token.ok_or_else(|| wrong_type(&format!("{path}[{i}]"), "a token id", id))
    };
    Ok(TextInput::Tokens { tokens: ids.iter().enumerate().map(id).collect::<Result<_, _>>()? })
}
