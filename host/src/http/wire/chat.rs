//! What `POST /v1/chat/completions` reads.

use std::borrow::Cow;

use serde::Serialize;

use super::fields::{Fields, Items, Keys, Readable, text};
use super::format::NAME_BYTES_MAX;
use super::reply::{CallsAs, ChatAsked, ChatShape};
use super::tools::{Call, calls};
use super::{Asked, ReceivedBody, TextAsk, TextJob, TextWork, format, reasoning, sampling, tools, write_json};
use crate::domain::shown;
use crate::http::error::ApiError;

/// Most values, of any type and depth, that tools, calls of tools and what is said to a template have together: it sees each as an
/// object.
const TOOL_VALUES_MAX: usize = 1 << 16;

/// What is read of a body.
pub(in crate::http) const KEYS: Keys = sampling::answer_keys![
    "messages",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "functions",
    "function_call",
    "modalities",
    "max_completion_tokens",
    "top_logprobs",
    "continue_final_message",
    "add_generation_prompt",
    "reasoning_effort",
    "reasoning",
    "enable_thinking",
    "thinking",
    "chat_template_kwargs",
];
/// What is read of a message.
pub(in crate::http) const MESSAGE_KEYS: Keys =
    &["role", "content", "refusal", "name", "tool_calls", "function_call", "tool_call_id", "prefix"];
/// What is read of a part of a message.
pub(in crate::http) const PART_KEYS: Keys = &["type", "text", "refusal"];

/// A request to `POST /v1/chat/completions` that a plugin answers.
pub(in crate::http) fn read(body: &ReceivedBody<'_>, _asked: &Asked) -> Result<TextAsk, ApiError> {
    let job = parse(body, NAME_BYTES_MAX)?;
    let calls = if job.names.tools.are_functions { CallsAs::Function } else { CallsAs::Tools };
    let asked = ChatAsked { delivery: job.terms.delivery, has_logprobs: job.common.logprobs.is_some(), calls };
    Ok(TextAsk::new(TextWork::Plugin(Box::new(job)), move |model, created| ChatShape::new(asked, model, created)))
}

/// Checks a body, whose tools have names of at most so many bytes.
pub(super) fn parse(body: &ReceivedBody<'_>, name_bytes_max: usize) -> Result<TextJob, ApiError> {
    let fields = Fields::root(body, KEYS)?;
    let mut input = Vec::new();
    let mut values_left = TOOL_VALUES_MAX;
    let mut readable = Readable { values_left: &mut values_left };
    input.extend_from_slice(b"{\"type\":\"chat\",\"messages\":[");
    let last = messages(&fields, &mut input, &mut readable)?;
    input.push(b']');
    let tools = tools::write(&fields, &mut input, &mut readable, name_bytes_max)?;
    if continues(&fields, last)? {
        input.extend_from_slice(b",\"continue_final\":true");
    }
    if let Some(arguments) = reasoning::template_arguments(&fields, &mut readable)? {
        input.extend_from_slice(b",\"template_arguments\":");
        input.extend_from_slice(arguments.get().as_bytes());
    }
    input.push(b'}');
    check_modalities(&fields)?;
    let input = String::from_utf8(input).map_err(|_| ApiError::internal("what was read of the body is no text"))?;
    let mut job = sampling::job(&fields, vec![input], |request| {
        let newer = sampling::token_count(&fields, "max_completion_tokens")?;
        let older = sampling::token_count(&fields, "max_tokens")?;
        request.max_tokens = newer.or(older);
        request.logprobs = logprobs(&fields)?;
        Ok(())
    })?;
    job.set_format(format::read(&fields)?);
    job.names.tools = tools;
    Ok(job)
}

fn logprobs(fields: &Fields<'_>) -> Result<Option<u32>, ApiError> {
    let wanted = fields.flag("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0..=20)?.and_then(|top| u32::try_from(top).ok()).unwrap_or(0);
    if !wanted && top > 0 {
        return Err(ApiError::invalid("top_logprobs", "`top_logprobs` needs `logprobs` to be true"));
    }
    Ok(wanted.then_some(top))
}

/// A [`Message`](aihost_plugin_api::task::Message) on its way into a task: what needs no change lies in the body.
#[derive(Serialize)]
struct Turn<'a> {
    role: &'a str,
    content: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<Vec<Call<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_call_id: Option<Cow<'a, str>>,
}

/// What matters of the last message beside what it says.
#[derive(Clone, Copy, Default)]
struct Last {
    is_assistant: bool,
    /// Whether it says of itself that the answer goes on from it.
    is_prefix: bool,
}

/// Whether the answer goes on from the last message.
fn continues(fields: &Fields<'_>, last: Last) -> Result<bool, ApiError> {
    let asked = fields.flag("continue_final_message")?;
    let begins_anew = fields.flag("add_generation_prompt")?;
    if asked == Some(true) && begins_anew == Some(true) {
        let message = "`continue_final_message` goes on from the last message and `add_generation_prompt` begins another: send one of them";
        return Err(ApiError::invalid("continue_final_message", message));
    }
    let (key, continues) = match (asked, begins_anew) {
        (Some(true), _) => ("continue_final_message", true),
        (None, Some(false)) => ("add_generation_prompt", true),
        _ => ("messages", last.is_prefix && asked.is_none()),
    };
    if continues && !last.is_assistant {
        let message =
            format!("`{key}`: only what an assistant began can be gone on from, and the last message is another's");
        return Err(ApiError::invalid(key, message));
    }
    Ok(continues)
}

/// Writes the messages one by one.
fn messages(fields: &Fields<'_>, out: &mut Vec<u8>, readable: &mut Readable<'_>) -> Result<Last, ApiError> {
    let Some(items) = fields.array("messages")? else { return Err(ApiError::missing("messages")) };
    let mut last = Last::default();
    let count = items.each(|i, item| {
        if i > 0 {
            out.push(b',');
        }
        let fields = Fields::of(item, &items.item(i), MESSAGE_KEYS)?;
        let turn = message(&fields, readable)?;
        last = Last { is_assistant: turn.role == "assistant", is_prefix: fields.flag("prefix")?.unwrap_or(false) };
        write_json(out, &turn);
        Ok(())
    })?;
    if count == 0 {
        return Err(ApiError::invalid("messages", "`messages` must have at least one message"));
    }
    Ok(last)
}

fn message<'a>(fields: &Fields<'a>, readable: &mut Readable<'_>) -> Result<Turn<'a>, ApiError> {
    let role = match &*fields.required_text("role")? {
        "developer" | "system" => "system",
        "function" | "tool" => "tool",
        "user" => "user",
        "assistant" => "assistant",
        other => {
            let path = fields.path("role");
            let message =
                format!("`{path}` must be developer, system, user, assistant or tool, not `{}`", shown(other));
            return Err(ApiError::invalid(path, message));
        }
    };
    let tool_calls = if role == "assistant" { calls(fields, readable)? } else { None };
    let path = || fields.path("content");
    let content = match fields.get("content") {
        None if tool_calls.is_some() => Cow::Borrowed(""),
        None => fields.text("refusal")?.ok_or_else(|| ApiError::missing(path()))?,
        Some(parts) if parts.get().starts_with('[') => flatten(&Items::of(parts, path())?)?.into(),
        Some(content) => text(content, path, "a string or an array of parts")?,
    };
    Ok(Turn { role, content, name: fields.text("name")?, tool_calls, tool_call_id: fields.text("tool_call_id")? })
}

/// The text of content parts, one line each. What the model thought is not told to it again; any other part that is no text is
/// refused, never dropped.
fn flatten(parts: &Items<'_>) -> Result<String, ApiError> {
    let (mut joined, mut is_first) = (String::new(), true);
    parts.each(|i, part| {
        let part = Fields::of(part, &parts.item(i), PART_KEYS)?;
        let kind = part.required_text("type")?;
        if matches!(&*kind, "thinking" | "redacted_thinking" | "reasoning") {
            return Ok(());
        }
        if !matches!(&*kind, "text" | "refusal") {
            let path = parts.item(i);
            let message = format!("this model reads text only; `{path}` is of type `{}`", shown(&kind));
            return Err(ApiError::unsupported(path, message));
        }
        if !std::mem::take(&mut is_first) {
            joined.push('\n');
        }
        joined.push_str(&part.required_text(&kind)?);
        Ok(())
    })?;
    Ok(joined)
}

fn check_modalities(fields: &Fields<'_>) -> Result<(), ApiError> {
    let Some(modalities) = fields.array("modalities")? else { return Ok(()) };
    modalities.each(|_, modality| match modality.get() {
        "\"text\"" => Ok(()),
        other => {
            let message = format!("this model answers with text only, not with {}", shown(other));
            Err(ApiError::unsupported("modalities", message))
        }
    })?;
    Ok(())
}
