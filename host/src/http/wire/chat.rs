//! What `POST /v1/chat/completions` reads.

use aihost_plugin_api::task::{Message, TextInput};
use serde_json::{Map, Value, json};

use super::fields::{Fields, wrong_type};
use super::{TextJob, sampling};
use crate::http::error::ApiError;

/// Checks a body.
pub(in crate::http) fn parse(body: &Map<String, Value>) -> Result<TextJob, ApiError> {
    let fields = Fields::root(body);
    let messages = messages(&fields)?;
    let tools = tools(&fields)?;
    check_modalities(&fields)?;
    sampling::job(body, vec![TextInput::Chat { messages, tools }], |fields, request| {
        let newer = sampling::token_count(fields, "max_completion_tokens")?;
        let older = sampling::token_count(fields, "max_tokens")?;
        request.max_tokens = newer.or(older);
        request.logprobs = logprobs(fields)?;
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

fn messages(fields: &Fields<'_>) -> Result<Vec<Message>, ApiError> {
    let Some(items) = fields.array("messages")? else { return Err(ApiError::missing("messages")) };
    if items.is_empty() {
        return Err(ApiError::invalid("messages", "`messages` must have at least one message"));
    }
    items.iter().enumerate().map(|(i, item)| message(&Fields::of(item, &format!("messages[{i}]"))?)).collect()
}

fn message(fields: &Fields<'_>) -> Result<Message, ApiError> {
    let role = match fields.required_text("role")? {
        "developer" => "system",
        "function" => "tool",
        role @ ("system" | "user" | "assistant" | "tool") => role,
        other => {
            let path = fields.path("role");
            let message = format!("`{path}` must be developer, system, user, assistant or tool, not `{other}`");
            return Err(ApiError::invalid(path, message));
        }
    };
    let tool_calls = if role == "assistant" { tool_calls(fields)? } else { None };
    let content = match fields.get("content") {
        None if tool_calls.is_some() => String::new(),
        None => fields.text("refusal")?.ok_or_else(|| ApiError::missing(fields.path("content")))?.to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => flatten(parts, &fields.path("content"))?,
        Some(other) => return Err(wrong_type(&fields.path("content"), "a string or an array of parts", other)),
    };
    Ok(Message {
        role: role.to_owned(),
        content,
        name: fields.text("name")?.map(str::to_owned),
        tool_calls,
        tool_call_id: fields.text("tool_call_id")?.map(str::to_owned),
    })
}

/// The text of content parts, one line each; a part that is no text is refused, never dropped.
fn flatten(parts: &[Value], path: &str) -> Result<String, ApiError> {
    let text = |(i, part)| {
        let part = Fields::of(part, &format!("{path}[{i}]"))?;
        match part.required_text("type")? {
            kind @ ("text" | "refusal") => part.required_text(kind),
            other => {
                let message = format!("this model reads text only; `{path}[{i}]` is of type `{other}`");
                Err(ApiError::unsupported(format!("{path}[{i}]"), message))
            }
        }
    };
    let texts = parts.iter().enumerate().map(text).collect::<Result<Vec<_>, _>>()?;
    Ok(texts.join("\n"))
}

/// An assistant turn's calls; the older `function_call` becomes one.
fn tool_calls(fields: &Fields<'_>) -> Result<Option<Value>, ApiError> {
    if let Some(call) = fields.object("function_call")? {
        let function =
            json!({"name": call.required_text("name")?, "arguments": call.text("arguments")?.unwrap_or("{}")});
        return Ok(Some(json!([{"id": "call_0", "type": "function", "function": function}])));
    }
    let Some(calls) = fields.array("tool_calls")? else { return Ok(None) };
    for (i, call) in calls.iter().enumerate() {
        let call = Fields::of(call, &format!("{}[{i}]", fields.path("tool_calls")))?;
        let function = call.object("function")?.ok_or_else(|| ApiError::missing(call.path("function")))?;
        function.required_text("name")?;
    }
    Ok((!calls.is_empty()).then(|| Value::Array(calls.clone())))
}

/// The tools for the template: none if the client forbids calls. Forced calls need a grammar, which there is not yet.
fn tools(fields: &Fields<'_>) -> Result<Vec<Value>, ApiError> {
    let tools = declared_tools(fields)?;
    let (key, choice) = match fields.get("tool_choice") {
        Some(choice) => ("tool_choice", Some(choice)),
        None => ("function_call", fields.get("function_call")),
    };
    let choice = match choice {
        None => "auto",
        Some(Value::String(choice)) => choice.as_str(),
        Some(Value::Object(_)) => "named",
        Some(other) => return Err(wrong_type(key, "a string or an object", other)),
    };
    match choice {
        "none" => Ok(Vec::new()),
        "auto" => Ok(tools),
        "required" | "named" if tools.is_empty() => Err(ApiError::invalid(key, format!("`{key}` needs `tools`"))),
        "required" | "named" => {
            let message = format!("a forced tool call is not supported yet; leave `{key}` at auto");
            Err(ApiError::unsupported(key, message))
        }
        other => Err(ApiError::invalid(key, format!("`{key}` must be none, auto, required or a tool, not `{other}`"))),
    }
}

/// `tools`, or the older `functions` in their form.
fn declared_tools(fields: &Fields<'_>) -> Result<Vec<Value>, ApiError> {
    if let Some(tools) = fields.array("tools")? {
        for (i, tool) in tools.iter().enumerate() {
            check_tool(&Fields::of(tool, &format!("tools[{i}]"))?)?;
        }
        return Ok(tools.clone());
    }
    let Some(functions) = fields.array("functions")? else { return Ok(Vec::new()) };
    let tool = |(i, function): (usize, &Value)| {
        Fields::of(function, &format!("functions[{i}]"))?.required_text("name")?;
        Ok(json!({"type": "function", "function": function}))
    };
    functions.iter().enumerate().map(tool).collect()
}

fn check_tool(tool: &Fields<'_>) -> Result<(), ApiError> {
    let kind = tool.required_text("type")?;
    if kind != "function" {
        let path = tool.path("type");
        let message = format!("`{path}` must be function; tools of type `{kind}` are not supported");
        return Err(ApiError::unsupported(path, message));
    }
    let function = tool.object("function")?.ok_or_else(|| ApiError::missing(tool.path("function")))?;
    if function.required_text("name")?.is_empty() {
        return Err(ApiError::invalid(function.path("name"), "a tool's name must not be empty"));
    }
    function.object("parameters")?;
    Ok(())
}

fn check_modalities(fields: &Fields<'_>) -> Result<(), ApiError> {
    let Some(modalities) = fields.array("modalities")? else { return Ok(()) };
    match modalities.iter().find(|modality| modality.as_str() != Some("text")) {
        None => Ok(()),
        Some(other) => {
            Err(ApiError::unsupported("modalities", format!("this model answers with text only, not with {other}")))
        }
    }
}
