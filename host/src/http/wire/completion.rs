//! What `POST /v1/completions` reads.

use serde_json::value::RawValue;

use super::fields::{Fields, Items, Keys, text, token, wrong_type};
use super::{MAX_CHOICES, ReceivedBody, TextJob, sampling};
use crate::http::error::ApiError;

/// OpenAI's default for this endpoint.
const DEFAULT_MAX_TOKENS: u32 = 16;

/// What is read of a body.
pub(in crate::http) const KEYS: Keys = sampling::shared_keys!["prompt", "suffix", "best_of", "echo"];

/// Checks a body.
pub(in crate::http) fn parse(body: &ReceivedBody<'_>) -> Result<TextJob, ApiError> {
    let fields = Fields::root(body, KEYS)?;
    let inputs = prompts(fields.required("prompt")?)?;
    sampling::job(&fields, inputs, |request| {
        if fields.text("suffix")?.is_some_and(|suffix| !suffix.is_empty()) {
            return Err(ApiError::unsupported("suffix", "`suffix` is not supported by this model's engine"));
        }
        if fields.integer("best_of", 0..=i64::MAX)?.is_some_and(|best_of| best_of > 1) {
            return Err(ApiError::unsupported("best_of", "`best_of` above 1 is not supported; use `n`"));
        }
        request.max_tokens = Some(sampling::token_count(&fields, "max_tokens")?.unwrap_or(DEFAULT_MAX_TOKENS));
        request.logprobs = fields.integer("logprobs", 0..=5)?.and_then(|count| u32::try_from(count).ok());
        request.echo = fields.flag("echo")?.unwrap_or(false);
        Ok(())
    })
}

/// A string, token ids, or an array of either.
fn prompts(prompt: &RawValue) -> Result<Vec<String>, ApiError> {
    if prompt.get().starts_with('"') {
        return Ok(vec![of_text(prompt, &|| "prompt".to_owned())?]);
    }
    if !prompt.get().starts_with('[') {
        return Err(wrong_type("prompt", "a string or an array", prompt));
    }
    let items = Items::of(prompt, "prompt".to_owned())?;
    if matches!(items.first(), None | Some(b'-' | b'0'..=b'9')) {
        return Ok(vec![of_tokens(&items)?]);
    }
    let mut inputs = Vec::new();
    items.each(|i, item| {
        if i >= MAX_CHOICES {
            return Err(ApiError::invalid("prompt", format!("`prompt` must have at most {MAX_CHOICES} prompts")));
        }
        let path = || items.item(i);
        inputs.push(match item.get().as_bytes().first() {
            Some(b'"') => of_text(item, &path)?,
            Some(b'[') => of_tokens(&Items::of(item, path())?)?,
            _ => return Err(wrong_type(&path(), "a string or an array of token ids", item)),
        });
        Ok(())
    })?;
    Ok(inputs)
}

/// The JSON of a text to continue.
fn of_text(prompt: &RawValue, path: &dyn Fn() -> String) -> Result<String, ApiError> {
    // It is passed on as it was typed, but only if it can be read.
    text(prompt, path, "a string")?;
    Ok(format!("{{\"type\":\"prompt\",\"text\":{}}}", prompt.get()))
}

/// The JSON of token ids to continue.
fn of_tokens(items: &Items<'_>) -> Result<String, ApiError> {
    if items.first().is_none() {
        let path = items.path();
        return Err(ApiError::invalid(path, format!("`{path}` must not be empty")));
    }
    items.each(|i, item| match token(item) {
        Some(_) => Ok(()),
        None => Err(wrong_type(&items.item(i), "a token id", item)),
    })?;
    Ok(format!("{{\"type\":\"tokens\",\"tokens\":{}}}", items.value().get()))
}
