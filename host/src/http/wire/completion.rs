//! What `POST /v1/completions` reads.

use aihost_plugin_api::task::TextInput;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::fields::{Fields, Items, Keys, object, text, token, wrong_type};
use super::json_text::raw;
use super::reply::{CompletionAsked, CompletionShape};
use super::{Answerer, Asked, ChatJob, MAX_CHOICES, ReceivedBody, TextAsk, TextJob, TextWork, format, sampling};
use crate::http::error::ApiError;

/// OpenAI's default for this endpoint.
const DEFAULT_MAX_TOKENS: u32 = 16;

/// What is read of a body.
pub(in crate::http) const KEYS: Keys = sampling::answer_keys!["prompt", "suffix", "best_of", "echo"];

/// A request to `POST /v1/completions`.
pub(in crate::http) fn read(body: &ReceivedBody<'_>, asked: &Asked) -> Result<TextAsk, ApiError> {
    let fields = Fields::root(body, KEYS)?;
    let mut job = job(&fields)?;
    let shape = CompletionAsked {
        delivery: job.terms.delivery,
        choices: job.inputs.len() * job.terms.n,
        logprobs: job.common.logprobs,
        echo: job.common.echo,
    };
    let work = match asked.answerer {
        Answerer::Plugin => {
            job.set_format(format::read(&fields)?);
            TextWork::Plugin(Box::new(job))
        }
        Answerer::Engine => TextWork::Engine(Box::new(chats(body, job)?)),
    };
    Ok(TextAsk::new(work, move |model, created| CompletionShape::new(shape, model, created)))
}

fn job(fields: &Fields<'_>) -> Result<TextJob, ApiError> {
    let suffix = fields.text("suffix")?.filter(|suffix| !suffix.is_empty());
    let inputs = prompts(fields.required("prompt")?, suffix.as_deref())?;
    sampling::job(fields, inputs, |request| {
        if fields.integer("best_of", 0..=i64::MAX)?.is_some_and(|best_of| best_of > 1) {
            return Err(ApiError::unsupported("best_of", "`best_of` above 1 is not supported; use `n`"));
        }
        request.max_tokens = Some(sampling::token_count(fields, "max_tokens")?.unwrap_or(DEFAULT_MAX_TOKENS));
        request.logprobs = fields.integer("logprobs", 0..=5)?.and_then(|count| u32::try_from(count).ok());
        request.echo = fields.flag("echo")?.unwrap_or(false);
        Ok(())
    })
}

/// What an engine without this route is asked instead: each prompt as what a user says.
fn chats(body: &ReceivedBody<'_>, job: TextJob) -> Result<ChatJob, ApiError> {
    let not_for = |key: &str| {
        let message = format!("the engine of this model answers conversations only, which have no `{key}`");
        ApiError::unsupported(key, message)
    };
    if job.common.echo {
        return Err(not_for("echo"));
    }
    let mut common = object(body)?;
    for own in ["prompt", "suffix", "best_of", "echo", "logprobs", "keep_alive"] {
        common.remove(own);
    }
    common.insert("max_tokens".to_owned(), raw(&job.common.max_tokens));
    if let Some(top) = job.common.logprobs {
        common.insert("logprobs".to_owned(), raw(&true));
        common.insert("top_logprobs".to_owned(), raw(&top));
    }
    let mut messages = Vec::with_capacity(job.inputs.len());
    for input in &job.inputs {
        let input: TextInput = serde_json::from_str(input).map_err(|error| ApiError::internal(error.to_string()))?;
        let text = match input {
            TextInput::Prompt { text, .. } => text,
            TextInput::FillIn { .. } => return Err(not_for("suffix")),
            _ => {
                return Err(ApiError::unsupported(
                    "prompt",
                    "the engine of this model answers conversations only; send the prompt as text, not as tokens",
                ));
            }
        };
        messages.push(raw(&json!([{"role": "user", "content": text}])));
    }
    Ok(ChatJob { terms: job.terms, common, messages })
}

/// A string, token ids, or an array of either.
fn prompts(prompt: &RawValue, suffix: Option<&str>) -> Result<Vec<String>, ApiError> {
    let of_tokens = |items: &Items<'_>| match suffix {
        None => of_tokens(items),
        Some(_) => Err(ApiError::unsupported("suffix", "`suffix` goes with prompts of text, not of tokens")),
    };
    if prompt.get().starts_with('"') {
        return Ok(vec![of_text(prompt, suffix, &|| "prompt".to_owned())?]);
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
            Some(b'"') => of_text(item, suffix, &path)?,
            Some(b'[') => of_tokens(&Items::of(item, path())?)?,
            _ => return Err(wrong_type(&path(), "a string or an array of token ids", item)),
        });
        Ok(())
    })?;
    Ok(inputs)
}

/// The JSON of a text to continue, up to what follows it.
fn of_text(prompt: &RawValue, suffix: Option<&str>, path: &dyn Fn() -> String) -> Result<String, ApiError> {
    // It is passed on as it was typed, but only if it can be read.
    text(prompt, path, "a string")?;
    let prompt = prompt.get();
    Ok(match suffix {
        None => format!("{{\"type\":\"prompt\",\"text\":{prompt}}}"),
        Some(suffix) => format!("{{\"type\":\"fill_in\",\"prefix\":{prompt},\"suffix\":{}}}", Value::from(suffix)),
    })
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
