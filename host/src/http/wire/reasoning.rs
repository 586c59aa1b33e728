//! How much a model is to think before it answers, and whatever else a client has to say to its chat template.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use super::fields::{Fields, Keys, Readable, each_entry};
use super::json_text::{object_of, raw};
use crate::domain::shown;
use crate::http::error::ApiError;

/// How much there is to choose from, in OpenAI's words.
const EFFORTS: [&str; 6] = ["none", "minimal", "low", "medium", "high", "xhigh"];
/// Those with which a model that can do without thoughts has none.
const THOUGHTLESS: [&str; 2] = ["none", "minimal"];
/// Bytes of what is said to a chat template.
const KWARGS_BYTES_MAX: usize = 64 << 10;
/// What a chat template has from whoever renders it.
const RESERVED: [&str; 5] = ["messages", "tools", "add_generation_prompt", "bos_token", "eos_token"];

/// What is read of `reasoning`, as OpenRouter has it.
pub(in crate::http) const REASONING_KEYS: Keys = &["effort", "enabled"];
/// What is read of `thinking`, as Anthropic, DeepSeek and others have it.
pub(in crate::http) const THINKING_KEYS: Keys = &["type", "budget_tokens"];

/// What a request says to its model's chat template; nothing where it says nothing.
pub(super) fn template_arguments(
    fields: &Fields<'_>,
    readable: &mut Readable<'_>,
) -> Result<Option<Box<RawValue>>, ApiError> {
    let mut arguments = BTreeMap::new();
    let reasoning = fields.object("reasoning", REASONING_KEYS)?;
    let of_reasoning = reasoning.as_ref().map(effort_of("effort")).transpose()?.flatten();
    let effort = effort_of("reasoning_effort")(fields)?.or(of_reasoning);
    let is_enabled = reasoning.map(|reasoning| reasoning.flag("enabled")).transpose()?.flatten();
    let by_effort = effort.map(|effort| !THOUGHTLESS.contains(&effort));
    let said = [fields.flag("enable_thinking")?, thinking(fields)?, is_enabled, by_effort];
    if let Some(effort) = effort {
        arguments.insert("reasoning_effort".to_owned(), raw(effort));
    }
    if let Some(thinks) = said.into_iter().flatten().next() {
        arguments.insert("enable_thinking".to_owned(), raw(&thinks));
    }
    if let Some(sent) = fields.get("chat_template_kwargs") {
        let path = fields.path("chat_template_kwargs");
        if sent.get().len() > KWARGS_BYTES_MAX {
            let message = format!("`{path}` must have at most {KWARGS_BYTES_MAX} bytes");
            return Err(ApiError::invalid(path, message));
        }
        readable.check(sent, &path)?;
        each_entry(sent, &path, |key, value| {
            if RESERVED.contains(&key) {
                let path = format!("{path}.{key}");
                let message = format!("`{path}` is the template's own, and is not set from outside");
                return Err(ApiError::invalid(path, message));
            }
            arguments.insert(key.to_owned(), value.to_owned());
            Ok(())
        })?;
    }
    Ok((!arguments.is_empty()).then(|| object_of(&arguments)))
}

/// One of the efforts, under this key.
fn effort_of(key: &str) -> impl Fn(&Fields<'_>) -> Result<Option<&'static str>, ApiError> {
    move |fields| {
        let Some(sent) = fields.text(key)? else { return Ok(None) };
        let known = EFFORTS.into_iter().find(|effort| *effort == sent);
        known.map(Some).ok_or_else(|| {
            let path = fields.path(key);
            let message = format!("`{path}` must be one of {}, not `{}`", EFFORTS.join(", "), shown(&sent));
            ApiError::invalid(path, message)
        })
    }
}

/// `thinking`: a flag, or an object that says so by its type.
fn thinking(fields: &Fields<'_>) -> Result<Option<bool>, ApiError> {
    match fields.get("thinking") {
        Some(sent) if sent.get().starts_with('{') => {
            thinks(&Fields::of(sent, &fields.path("thinking"), THINKING_KEYS)?).map(Some)
        }
        _ => fields.flag("thinking"),
    }
}

/// Whether a `thinking` object wants thoughts.
pub(super) fn thinks(thinking: &Fields<'_>) -> Result<bool, ApiError> {
    match &*thinking.required_text("type")? {
        "enabled" | "adaptive" | "auto" => Ok(true),
        "disabled" => Ok(false),
        other => {
            let path = thinking.path("type");
            let message = format!("`{path}` must be enabled, adaptive or disabled, not `{}`", shown(other));
            Err(ApiError::invalid(path, message))
        }
    }
}
