//! What `POST /v1/chat/completions` reads.

use std::borrow::Cow;

use serde::Serialize;
use serde_json::value::RawValue;

use super::fields::{Fields, Items, Keys, Readable, text};
use super::reply::ChatShape;
use super::{Asked, ReceivedBody, TextAsk, TextJob, TextWork, sampling, write_json};
use crate::domain::shown;
use crate::http::error::ApiError;

/// Most values, of any type and depth, that tools and calls of tools have together: a template sees each as an object.
const TOOL_VALUES_MAX: usize = 1 << 16;

/// What is read of a body.
pub(in crate::http) const KEYS: Keys = sampling::shared_keys![
    "messages",
    "tools",
    "tool_choice",
    "functions",
    "function_call",
    "modalities",
    "max_completion_tokens",
    "top_logprobs",
    "continue_final_message",
    "add_generation_prompt",
];
/// What is read of a message.
pub(in crate::http) const MESSAGE_KEYS: Keys =
    &["role", "content", "refusal", "name", "tool_calls", "function_call", "tool_call_id", "prefix"];
/// What is read of a part of a message.
pub(in crate::http) const PART_KEYS: Keys = &["type", "text", "refusal"];
/// What is read of a tool.
pub(in crate::http) const TOOL_KEYS: Keys = &["type", "function"];
/// What is read of a function and of a call of one.
pub(in crate::http) const FUNCTION_KEYS: Keys = &["name", "parameters", "arguments"];

/// A request to `POST /v1/chat/completions` that a plugin answers.
pub(in crate::http) fn read(body: &ReceivedBody<'_>, _asked: &Asked) -> Result<TextAsk, ApiError> {
    let job = parse(body)?;
    let (delivery, has_logprobs) = (job.terms.delivery, job.common.logprobs.is_some());
    Ok(TextAsk::new(TextWork::Plugin(Box::new(job)), move |model, created| {
        ChatShape::new(delivery, has_logprobs, model, created)
    }))
}

/// Checks a body.
pub(super) fn parse(body: &ReceivedBody<'_>) -> Result<TextJob, ApiError> {
    let fields = Fields::root(body, KEYS)?;
    let mut input = Vec::new();
    let mut values_left = TOOL_VALUES_MAX;
    let mut readable = Readable { values_left: &mut values_left };
    input.extend_from_slice(b"{\"type\":\"chat\",\"messages\":[");
    let last = messages(&fields, &mut input, &mut readable)?;
    input.extend_from_slice(b"],\"tools\":");
    tools(&fields, &mut input, &mut readable)?;
    if continues(&fields, last)? {
        input.extend_from_slice(b",\"continue_final\":true");
    }
    input.push(b'}');
    check_modalities(&fields)?;
    let input = String::from_utf8(input).map_err(|_| ApiError::internal("what was read of the body is no text"))?;
    sampling::job(&fields, vec![input], |request| {
        let newer = sampling::token_count(&fields, "max_completion_tokens")?;
        let older = sampling::token_count(&fields, "max_tokens")?;
        request.max_tokens = newer.or(older);
        request.logprobs = logprobs(&fields)?;
        Ok(())
    })
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
    tool_calls: Option<Calls<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_call_id: Option<Cow<'a, str>>,
}

/// An assistant's calls of tools.
#[derive(Serialize)]
#[serde(untagged)]
enum Calls<'a> {
    /// As they were sent.
    Sent(&'a RawValue),
    /// Of the older `function_call`.
    One([Call<'a>; 1]),
}

/// A call of a tool.
#[derive(Serialize)]
pub(super) struct Call<'a> {
    id: &'a str,
    r#type: &'a str,
    function: CalledFunction<'a>,
}

impl<'a> Call<'a> {
    /// A call of a function.
    pub(super) fn of(id: &'a str, name: Cow<'a, str>, arguments: Cow<'a, str>) -> Self {
        Self { id, r#type: "function", function: CalledFunction { name, arguments } }
    }
}

#[derive(Serialize)]
struct CalledFunction<'a> {
    name: Cow<'a, str>,
    arguments: Cow<'a, str>,
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
    let tool_calls = if role == "assistant" { tool_calls(fields, readable)? } else { None };
    let path = || fields.path("content");
    let content = match fields.get("content") {
        None if tool_calls.is_some() => Cow::Borrowed(""),
        None => fields.text("refusal")?.ok_or_else(|| ApiError::missing(path()))?,
        Some(parts) if parts.get().starts_with('[') => flatten(&Items::of(parts, path())?)?.into(),
        Some(content) => text(content, path, "a string or an array of parts")?,
    };
    Ok(Turn { role, content, name: fields.text("name")?, tool_calls, tool_call_id: fields.text("tool_call_id")? })
}

/// The text of content parts, one line each; a part that is no text is refused, never dropped.
fn flatten(parts: &Items<'_>) -> Result<String, ApiError> {
    let mut joined = String::new();
    parts.each(|i, part| {
        let part = Fields::of(part, &parts.item(i), PART_KEYS)?;
        let kind = part.required_text("type")?;
        if !matches!(&*kind, "text" | "refusal") {
            let path = parts.item(i);
            let message = format!("this model reads text only; `{path}` is of type `{}`", shown(&kind));
            return Err(ApiError::unsupported(path, message));
        }
        if i > 0 {
            joined.push('\n');
        }
        joined.push_str(&part.required_text(&kind)?);
        Ok(())
    })?;
    Ok(joined)
}

/// An assistant turn's calls; the older `function_call` becomes one.
fn tool_calls<'a>(fields: &Fields<'a>, readable: &mut Readable<'_>) -> Result<Option<Calls<'a>>, ApiError> {
    if let Some(call) = fields.object("function_call", FUNCTION_KEYS)? {
        let (name, arguments) = (call.required_text("name")?, call.text("arguments")?.unwrap_or("{}".into()));
        return Ok(Some(Calls::One([Call::of("call_0", name, arguments)])));
    }
    let Some(calls) = fields.array("tool_calls")? else { return Ok(None) };
    readable.check(calls.value(), calls.path())?;
    let count = calls.each(|i, call| {
        let call = Fields::of(call, &calls.item(i), TOOL_KEYS)?;
        let function = call.object("function", FUNCTION_KEYS)?;
        let function = function.ok_or_else(|| ApiError::missing(call.path("function")))?;
        function.required_text("name").map(drop)
    })?;
    Ok((count > 0).then_some(Calls::Sent(calls.value())))
}

/// Writes the tools for the template: none if the client forbids calls. Forced calls need a grammar, which there is not yet.
fn tools(fields: &Fields<'_>, out: &mut Vec<u8>, readable: &mut Readable<'_>) -> Result<(), ApiError> {
    let begin = out.len();
    let count = declared_tools(fields, out, readable)?;
    let (key, choice) = match fields.get("tool_choice") {
        Some(choice) => ("tool_choice", Some(choice)),
        None => ("function_call", fields.get("function_call")),
    };
    let choice = match choice {
        None => Cow::Borrowed("auto"),
        Some(choice) if choice.get().starts_with('{') => Cow::Borrowed("named"),
        Some(choice) => text(choice, || key.to_owned(), "a string or an object")?,
    };
    match &*choice {
        "none" => {
            out.truncate(begin);
            out.extend_from_slice(b"[]");
            Ok(())
        }
        "auto" => Ok(()),
        "required" | "named" if count == 0 => Err(ApiError::invalid(key, format!("`{key}` needs `tools`"))),
        "required" | "named" => {
            let message = format!("a forced tool call is not supported yet; leave `{key}` at auto");
            Err(ApiError::unsupported(key, message))
        }
        other => Err(ApiError::invalid(
            key,
            format!("`{key}` must be none, auto, required or a tool, not `{}`", shown(other)),
        )),
    }
}

/// Writes `tools`, or the older `functions` in their form. How many there are.
fn declared_tools(fields: &Fields<'_>, out: &mut Vec<u8>, readable: &mut Readable<'_>) -> Result<usize, ApiError> {
    if let Some(tools) = fields.array("tools")? {
        readable.check(tools.value(), tools.path())?;
        out.extend_from_slice(tools.value().get().as_bytes());
        return tools.each(|i, tool| check_tool(&Fields::of(tool, &tools.item(i), TOOL_KEYS)?));
    }
    out.push(b'[');
    let mut count = 0;
    if let Some(functions) = fields.array("functions")? {
        readable.check(functions.value(), functions.path())?;
        count = functions.each(|i, function| {
            Fields::of(function, &functions.item(i), FUNCTION_KEYS)?.required_text("name")?;
            if i > 0 {
                out.push(b',');
            }
            out.extend_from_slice(b"{\"type\":\"function\",\"function\":");
            out.extend_from_slice(function.get().as_bytes());
            out.push(b'}');
            Ok(())
        })?;
    }
    out.push(b']');
    Ok(count)
}

fn check_tool(tool: &Fields<'_>) -> Result<(), ApiError> {
    let kind = tool.required_text("type")?;
    if kind != "function" {
        let path = tool.path("type");
        let message = format!("`{path}` must be function; tools of type `{}` are not supported", shown(&kind));
        return Err(ApiError::unsupported(path, message));
    }
    let function = tool.object("function", FUNCTION_KEYS)?;
    let function = function.ok_or_else(|| ApiError::missing(tool.path("function")))?;
    if function.required_text("name")?.is_empty() {
        return Err(ApiError::invalid(function.path("name"), "a tool's name must not be empty"));
    }
    function.object("parameters", &[])?;
    Ok(())
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
