//! What `POST /v1/responses` reads: a request that becomes a chat.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::fields::{Fields, Items, Keys, object, text};
use super::responses_reply::{ResponsesAsked, ResponsesShape, Saving};
use super::translated::{Translated, content, value};
use super::{Asked, ReceivedBody, TextAsk, new_id};
use crate::domain::shown;
use crate::http::error::ApiError;

/// What is read of a body.
pub(in crate::http) const KEYS: Keys = &[
    "model",
    "input",
    "instructions",
    "max_output_tokens",
    "temperature",
    "top_p",
    "top_logprobs",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "text",
    "reasoning",
    "stream",
    "store",
    "metadata",
    "previous_response_id",
    "conversation",
    "background",
    "include",
    "truncation",
    "user",
    "prompt",
    "max_tool_calls",
    "safety_identifier",
    "prompt_cache_key",
    "service_tier",
    "keep_alive",
];
/// Fields that mean nothing in a chat, or that have another name there.
const OWN: [&str; 18] = [
    "input",
    "instructions",
    "max_output_tokens",
    "top_logprobs",
    "tools",
    "tool_choice",
    "text",
    "reasoning",
    "stream_options",
    "store",
    "metadata",
    "previous_response_id",
    "conversation",
    "background",
    "include",
    "truncation",
    "prompt",
    "max_tool_calls",
];
/// What is read of an item of `input`.
pub(in crate::http) const ITEM_KEYS: Keys =
    &["type", "role", "content", "call_id", "name", "arguments", "output", "summary", "id", "namespace"];
/// What is read of a part of an item's content.
pub(in crate::http) const PART_KEYS: Keys =
    &["type", "text", "refusal", "image_url", "detail", "file_id", "file_data", "file_url", "filename", "input_audio"];
/// What is read of a tool and of a choice of one.
pub(in crate::http) const TOOL_KEYS: Keys =
    &["type", "name", "description", "parameters", "strict", "mode", "tools", "external_web_access"];
const TEXT_KEYS: Keys = &["format", "verbosity"];
const FORMAT_KEYS: Keys = &["type", "name", "schema", "strict", "description"];
const REASONING_KEYS: Keys = &["effort", "summary"];

/// A request to `POST /v1/responses`.
pub(in crate::http) fn read(body: &ReceivedBody<'_>, asked: &Asked) -> Result<TextAsk, ApiError> {
    let fields = Fields::root(body, KEYS)?;
    refuse_unkept(&fields)?;
    let sent = object(body)?;
    let mut chat = Translated::from(sent.clone(), &OWN);
    let instructions = fields.text("instructions")?;
    if let Some(instructions) = &instructions {
        chat.say("system", instructions.as_ref(), "instructions");
    }
    if let Some(id) = fields.text("previous_response_id")? {
        let kept = asked.conversations.get(asked.key.as_deref(), &id).ok_or_else(|| ApiError::unknown_response(&id))?;
        kept.messages()?.into_iter().for_each(|message| chat.push(message, "previous_response_id"));
    }
    let namespaces = tools(&fields, &mut chat)?;
    input(&fields, &mut chat, &namespaces)?;
    chat.set("stream_options", "stream", json!({"include_usage": true}));
    chat.set_some("max_tokens", "max_output_tokens", fields.get("max_output_tokens").map(value));
    let has_logprobs = logprobs(&fields, &mut chat)?;
    format(&fields, &mut chat)?;
    if let Some(reasoning) = fields.object("reasoning", REASONING_KEYS)? {
        chat.set_some("reasoning_effort", "reasoning.effort", reasoning.text("effort")?);
    }
    let id = new_id("resp_");
    let history = chat.messages().iter().skip(usize::from(instructions.is_some())).cloned().collect();
    let saving = fields.flag("store")?.unwrap_or(true).then(|| Saving {
        conversations: std::sync::Arc::clone(&asked.conversations),
        key: asked.key.clone(),
        history,
    });
    let template = template(&sent, &id, instructions.as_deref());
    let work = chat.work(asked, body.class)?;
    Ok(TextAsk::new(work, move |model, created| {
        let asked = ResponsesAsked { template, has_logprobs, saving, namespaces };
        ResponsesShape::new(asked, model, created)
    }))
}

/// What this host has no place for.
fn refuse_unkept(fields: &Fields<'_>) -> Result<(), ApiError> {
    let refuse = |key: &str, what: &str| Err(ApiError::unsupported(key, format!("`{key}` is not supported: {what}")));
    if fields.flag("background")? == Some(true) {
        return refuse("background", "an answer is made while its client waits; leave it out, and stream");
    }
    if fields.get("conversation").is_some() {
        return refuse("conversation", "send the whole conversation as `input`, or name a `previous_response_id`");
    }
    if fields.get("prompt").is_some() {
        return refuse("prompt", "no templates are kept here; send `instructions` and `input`");
    }
    Ok(())
}

/// The turns of the body itself.
fn input(fields: &Fields<'_>, chat: &mut Translated, namespaces: &Namespaces) -> Result<(), ApiError> {
    let input = fields.required("input")?;
    if input.get().starts_with('"') {
        chat.say("user", text(input, || "input".to_owned(), "a string")?.as_ref(), "input");
        return Ok(());
    }
    let items = Items::of(input, "input".to_owned())?;
    let count = items.each(|i, item| {
        let path = items.item(i);
        turn(&Fields::of(item, &path, ITEM_KEYS)?, &path, chat, namespaces)
    })?;
    if count == 0 {
        return Err(ApiError::invalid("input", "`input` must have at least one item"));
    }
    Ok(())
}

fn turn(item: &Fields<'_>, path: &str, chat: &mut Translated, namespaces: &Namespaces) -> Result<(), ApiError> {
    // Whoever sends a role need not say that it is a message.
    let kind = match item.text("type")? {
        Some(kind) => kind,
        None => "message".into(),
    };
    match &*kind {
        "message" => {
            let role = item.required_text("role")?;
            let role = if role == "developer" { "system".into() } else { role };
            chat.say(&role, said(item, "content")?, path);
        }
        "function_call" => {
            let arguments = item.text("arguments")?.unwrap_or_else(|| "{}".into());
            let name = item.required_text("name")?;
            let name = namespaces.called(item.text("namespace")?.as_deref(), &name);
            chat.call(&item.required_text("call_id")?, name, &arguments, path);
        }
        "function_call_output" => {
            let id = item.required_text("call_id")?;
            chat.give(&id, said(item, "output")?, path);
        }
        "reasoning" => {
            for key in ["summary", "content"] {
                let Some(parts) = item.get(key).filter(|value| value.get().starts_with('[')) else { continue };
                let parts = Items::of(parts, item.path(key))?;
                parts.each(|i, part| {
                    let part = Fields::of(part, &parts.item(i), PART_KEYS)?;
                    if let Some(text) = part.text("text")? {
                        chat.think(&text);
                    }
                    Ok(())
                })?;
            }
        }
        other => {
            let path = item.path("type");
            let message = format!("`{path}`: items of type `{}` are not supported", shown(other));
            return Err(ApiError::unsupported(path, message));
        }
    }
    Ok(())
}

/// A string, or parts.
fn said(item: &Fields<'_>, key: &str) -> Result<Value, ApiError> {
    let sent = item.required(key)?;
    if !sent.get().starts_with('[') {
        return Ok(text(sent, || item.path(key), "a string or an array of parts")?.into());
    }
    let items = Items::of(sent, item.path(key))?;
    let mut parts = Vec::new();
    items.each(|i, sent| {
        parts.push(part(&Fields::of(sent, &items.item(i), PART_KEYS)?)?);
        Ok(())
    })?;
    Ok(content(parts))
}

fn part(part: &Fields<'_>) -> Result<Value, ApiError> {
    let kind = part.required_text("type")?;
    let unsupported = |what: &str| {
        let path = part.path("type");
        ApiError::unsupported(path.clone(), format!("`{path}`: {what}"))
    };
    Ok(match &*kind {
        "input_text" | "output_text" | "text" => json!({"type": "text", "text": part.required_text("text")?}),
        "refusal" => json!({"type": "text", "text": part.required_text("refusal")?}),
        "input_image" => {
            let Some(url) = part.text("image_url")? else {
                return Err(unsupported(
                    "an image is sent as `image_url`, an address or a data URL; no files are kept here",
                ));
            };
            json!({"type": "image_url", "image_url": {"url": url, "detail": part.text("detail")?.unwrap_or("auto".into())}})
        }
        "input_audio" => json!({"type": "input_audio", "input_audio": part.get("input_audio").map(value)}),
        "input_file" => {
            let mut file = Map::new();
            for key in ["file_data", "filename", "file_id", "file_url"] {
                if let Some(text) = part.text(key)? {
                    file.insert(key.to_owned(), text.into());
                }
            }
            json!({"type": "file", "file": file})
        }
        other => return Err(unsupported(&format!("parts of type `{}` are not supported", shown(other)))),
    })
}

/// Whether the log-probabilities of the answer's tokens are asked for.
fn logprobs(fields: &Fields<'_>, chat: &mut Translated) -> Result<bool, ApiError> {
    let mut wanted = false;
    if let Some(include) = fields.array("include")? {
        include.each(|_, item| {
            wanted |= item.get() == "\"message.output_text.logprobs\"";
            Ok(())
        })?;
    }
    let top = fields.integer("top_logprobs", 0..=20)?;
    if wanted || top.is_some_and(|top| top > 0) {
        chat.set("logprobs", "include", true);
        chat.set_some("top_logprobs", "top_logprobs", top);
        wanted = true;
    }
    Ok(wanted)
}

/// Functions that lie in a namespace, by the names under which the model knows them.
#[derive(Clone, Debug, Default)]
pub(super) struct Namespaces(BTreeMap<String, (String, String)>);

impl Namespaces {
    /// The namespace of a function and its name there, if it lies in one.
    pub(super) fn of(&self, name: &str) -> Option<(&str, &str)> {
        self.0.get(name).map(|(namespace, name)| (namespace.as_str(), name.as_str()))
    }

    /// What the model knows a function as.
    fn called<'a>(&'a self, namespace: Option<&str>, name: &'a str) -> &'a str {
        let is_it = |(_, (of, own)): &(&String, &(String, String))| Some(of.as_str()) == namespace && own == name;
        self.0.iter().find(is_it).map_or(name, |(known, _)| known)
    }
}

fn tools(fields: &Fields<'_>, chat: &mut Translated) -> Result<Namespaces, ApiError> {
    let mut namespaces = Namespaces::default();
    if let Some(items) = fields.array("tools")? {
        let mut tools: Vec<Value> = Vec::new();
        items.each(|i, sent| {
            let tool = Fields::of(sent, &items.item(i), TOOL_KEYS)?;
            let kind = tool.required_text("type")?;
            match &*kind {
                "function" => tools.push(function(&tool, &tool.required_text("name")?)?),
                "namespace" => namespace(&tool, &mut tools, &mut namespaces)?,
                // A search of nothing finds nothing: who offers that one leaves nothing out.
                "web_search" if tool.flag("external_web_access")? == Some(false) => {}
                other => return Err(nobody_runs(&tool, other)),
            }
            Ok(())
        })?;
        chat.set("tools", "tools", tools);
    }
    let Some(choice) = fields.get("tool_choice") else { return Ok(namespaces) };
    let choice = if choice.get().starts_with('{') {
        named(&Fields::of(choice, "tool_choice", TOOL_KEYS)?)?
    } else {
        value(choice)
    };
    chat.set("tool_choice", "tool_choice", choice);
    Ok(namespaces)
}

/// The functions of a namespace: under their own names, unless another has that.
fn namespace(tool: &Fields<'_>, tools: &mut Vec<Value>, namespaces: &mut Namespaces) -> Result<(), ApiError> {
    let space = tool.required_text("name")?;
    let Some(items) = tool.array("tools")? else { return Err(ApiError::missing(tool.path("tools"))) };
    items.each(|i, sent| {
        let inner = Fields::of(sent, &items.item(i), TOOL_KEYS)?;
        let kind = inner.required_text("type")?;
        if kind != "function" {
            return Err(nobody_runs(&inner, &kind));
        }
        let name = inner.required_text("name")?;
        let is_taken = tools.iter().any(|tool| tool["function"]["name"] == *name);
        let known = if is_taken { format!("{space}__{name}") } else { name.clone().into_owned() };
        tools.push(function(&inner, &known)?);
        namespaces.0.insert(known, (space.clone().into_owned(), name.into_owned()));
        Ok(())
    })?;
    Ok(())
}

/// A function as a chat has it.
fn function(tool: &Fields<'_>, name: &str) -> Result<Value, ApiError> {
    let mut function = Map::new();
    function.insert("name".to_owned(), name.into());
    for key in ["description", "parameters", "strict"] {
        if let Some(sent) = tool.get(key) {
            function.insert(key.to_owned(), value(sent));
        }
    }
    Ok(json!({"type": "function", "function": function}))
}

fn nobody_runs(tool: &Fields<'_>, kind: &str) -> ApiError {
    let path = tool.path("type");
    let message = format!(
        "`{path}` must be function: nothing here runs tools of type `{}`; describe it as a function and run it yourself",
        shown(kind)
    );
    ApiError::unsupported(path, message)
}

/// A choice that is no word.
fn named(choice: &Fields<'_>) -> Result<Value, ApiError> {
    match &*choice.required_text("type")? {
        "function" => Ok(json!({"type": "function", "function": {"name": choice.required_text("name")?}})),
        "allowed_tools" => {
            let mut tools = Vec::new();
            if let Some(items) = choice.array("tools")? {
                items.each(|i, tool| {
                    tools.push(named(&Fields::of(tool, &items.item(i), TOOL_KEYS)?)?);
                    Ok(())
                })?;
            }
            let mode = choice.text("mode")?.unwrap_or("auto".into());
            Ok(json!({"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}))
        }
        other => {
            let path = choice.path("type");
            let message = format!("`{path}` must be function or allowed_tools, not `{}`", shown(other));
            Err(ApiError::unsupported(path, message))
        }
    }
}

fn format(fields: &Fields<'_>, chat: &mut Translated) -> Result<(), ApiError> {
    let Some(wanted) = fields.object("text", TEXT_KEYS)? else { return Ok(()) };
    chat.set_some("verbosity", "text.verbosity", wanted.text("verbosity")?);
    let Some(format) = wanted.object("format", FORMAT_KEYS)? else { return Ok(()) };
    let kind = format.required_text("type")?;
    let mut response_format = json!({"type": kind});
    if kind == "json_schema" {
        let mut schema = Map::new();
        for key in ["name", "schema", "strict", "description"] {
            if let Some(sent) = format.get(key) {
                schema.insert(key.to_owned(), value(sent));
            }
        }
        response_format["json_schema"] = schema.into();
    }
    chat.set("response_format", "text.format", response_format);
    Ok(())
}

/// What the answer says of its request.
fn template(sent: &Map<String, Value>, id: &str, instructions: Option<&str>) -> Map<String, Value> {
    let or = |key: &str, usual: Value| sent.get(key).cloned().unwrap_or(usual);
    let mut text = or("text", json!({}));
    if let Some(text) = text.as_object_mut() {
        text.entry("format").or_insert_with(|| json!({"type": "text"}));
        text.entry("verbosity").or_insert_with(|| json!("medium"));
    }
    let mut tools = or("tools", json!([]));
    for tool in tools.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
        tool.entry("strict").or_insert(Value::Null);
        tool.entry("parameters").or_insert(Value::Null);
    }
    let template = json!({
        "id": id,
        "object": "response",
        "created_at": 0,
        "completed_at": null,
        "status": "in_progress",
        "background": false,
        "error": null,
        "incomplete_details": null,
        "instructions": instructions,
        "max_output_tokens": or("max_output_tokens", Value::Null),
        "max_tool_calls": or("max_tool_calls", Value::Null),
        "model": "",
        "output": [],
        "parallel_tool_calls": or("parallel_tool_calls", true.into()),
        "previous_response_id": or("previous_response_id", Value::Null),
        "prompt_cache_key": or("prompt_cache_key", Value::Null),
        "reasoning": or("reasoning", json!({"effort": null, "summary": null})),
        "safety_identifier": or("safety_identifier", Value::Null),
        "service_tier": or("service_tier", "default".into()),
        "store": or("store", true.into()),
        "temperature": or("temperature", json!(1.0)),
        "text": text,
        "tool_choice": or("tool_choice", "auto".into()),
        "tools": tools,
        "top_logprobs": or("top_logprobs", json!(0)),
        "top_p": or("top_p", json!(1.0)),
        "presence_penalty": or("presence_penalty", json!(0.0)),
        "frequency_penalty": or("frequency_penalty", json!(0.0)),
        "truncation": or("truncation", "disabled".into()),
        "usage": null,
        "user": or("user", Value::Null),
        "metadata": or("metadata", json!({})),
    });
    match template {
        Value::Object(template) => template,
        _ => Map::new(),
    }
}
