//! What `POST /v1/responses` reads: a request that becomes a chat.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use serde_json::json;
use serde_json::value::RawValue;

use super::fields::{Fields, Items, Keys, text};
use super::json_text::{object_of, picked, raw, raw_text};
use super::responses_reply::{Reply, ResponsesAsked, ResponsesShape, Saving, ThoughtsAs};
use super::translated::{JsonItems, Parts, Tools, Translated};
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
    "presence_penalty",
    "frequency_penalty",
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
/// What tells of a file.
const FILE_KEYS: Keys = &["file_data", "filename", "file_id", "file_url"];
/// Longest name of a namespace, bytes; OpenAI's limit for names.
const NAMESPACE_BYTES_MAX: usize = 64;
const TEXT_KEYS: Keys = &["format", "verbosity"];
const FORMAT_KEYS: Keys = &["type", "name", "schema", "strict", "description", "pattern", "value", "grammar"];
const REASONING_KEYS: Keys = &["effort", "summary"];

/// A request to `POST /v1/responses`.
pub(in crate::http) fn read(body: &ReceivedBody<'_>, asked: &Asked) -> Result<TextAsk, ApiError> {
    let fields = Fields::root(body, KEYS)?;
    refuse_unkept(&fields)?;
    let mut chat = Translated::from(body, &OWN, asked)?;
    if let Some(instructions) = fields.text("instructions")? {
        chat.say("system", raw(&instructions), "instructions");
    }
    let instructions = chat.bytes();
    if let Some(id) = fields.text("previous_response_id")? {
        let kept = asked.conversations.get(asked.key.as_deref(), &id).ok_or_else(|| ApiError::unknown_response(&id))?;
        for message in kept.messages()? {
            chat.push(message, "previous_response_id");
        }
    }
    let ToolsRead { shown, namespaces } = tools(&fields, &mut chat)?;
    input(&fields, &mut chat, &namespaces)?;
    chat.names("messages", "input");
    chat.set("stream_options", "stream", &json!({"include_usage": true}));
    chat.set_some("max_tokens", "max_output_tokens", fields.get("max_output_tokens"));
    let has_logprobs = logprobs(&fields, &mut chat)?;
    format(&fields, &mut chat)?;
    let thoughts = reasoning(&fields, &mut chat)?;
    let saving = if fields.flag("store")?.unwrap_or(true) {
        let (conversations, key) = (Arc::clone(&asked.conversations), asked.key.clone());
        Some(Saving { conversations, key, history: chat.turns_behind(instructions) })
    } else {
        None
    };
    let id = new_id("resp_");
    let reply = reply(&fields, &id, &shown)?;
    let work = chat.work(asked, body.class)?;
    Ok(TextAsk::new(work, move |model, created| {
        let asked = ResponsesAsked { id, reply, has_logprobs, thoughts, saving, namespaces };
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
        text(input, || "input".to_owned(), "a string")?;
        chat.say("user", input.to_owned(), "input");
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
            chat.give(&id, &said(item, "output")?, path);
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
fn said(item: &Fields<'_>, key: &str) -> Result<Box<RawValue>, ApiError> {
    let sent = item.required(key)?;
    if !sent.get().starts_with('[') {
        text(sent, || item.path(key), "a string or an array of parts")?;
        return Ok(sent.to_owned());
    }
    let items = Items::of(sent, item.path(key))?;
    let mut parts = Parts::default();
    items.each(|i, sent| part(&Fields::of(sent, &items.item(i), PART_KEYS)?, &mut parts))?;
    Ok(parts.content())
}

fn part(part: &Fields<'_>, parts: &mut Parts) -> Result<(), ApiError> {
    let kind = part.required_text("type")?;
    let unsupported = |what: &str| {
        let path = part.path("type");
        ApiError::unsupported(path.clone(), format!("`{path}`: {what}"))
    };
    match &*kind {
        "input_text" | "output_text" | "text" => parts.text(&part.required_text("text")?),
        "refusal" => parts.text(&part.required_text("refusal")?),
        "input_image" => {
            let Some(url) = part.text("image_url")? else {
                return Err(unsupported(
                    "an image is sent as `image_url`, an address or a data URL; no files are kept here",
                ));
            };
            let detail = part.text("detail")?.unwrap_or("auto".into());
            parts.add(&json!({"type": "image_url", "image_url": {"url": url, "detail": detail}}));
        }
        "input_audio" => parts.add(&picked(part, &["type", "input_audio"])),
        "input_file" => {
            for key in FILE_KEYS {
                part.text(key)?;
            }
            parts.add(&object_of(&[("type", raw("file")), ("file", picked(part, FILE_KEYS))].into()));
        }
        other => return Err(unsupported(&format!("parts of type `{}` are not supported", shown(other)))),
    }
    Ok(())
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
        chat.set("logprobs", "include", &true);
        chat.set_some("top_logprobs", "top_logprobs", top);
        wanted = true;
    }
    Ok(wanted)
}

/// How much the model is to think, and as what its thoughts are told: nothing here sums them up, so a summary of any length is
/// all that it thought.
fn reasoning(fields: &Fields<'_>, chat: &mut Translated) -> Result<ThoughtsAs, ApiError> {
    let Some(reasoning) = fields.object("reasoning", REASONING_KEYS)? else { return Ok(ThoughtsAs::Content) };
    chat.set_some("reasoning_effort", "reasoning.effort", reasoning.text("effort")?);
    match reasoning.text("summary")?.as_deref() {
        None => Ok(ThoughtsAs::Content),
        Some("auto" | "concise" | "detailed") => Ok(ThoughtsAs::Summary),
        Some(other) => {
            let path = reasoning.path("summary");
            let message = format!("`{path}` must be auto, concise or detailed, not `{}`", shown(other));
            Err(ApiError::invalid(path, message))
        }
    }
}

/// Functions that lie in a namespace, by the names under which the model knows them.
#[derive(Clone, Debug, Default)]
pub(super) struct Namespaces(BTreeMap<String, (Arc<str>, String)>);

impl Namespaces {
    /// The namespace of a function and its name there, if it lies in one.
    pub(super) fn of(&self, name: &str) -> Option<(&str, &str)> {
        self.0.get(name).map(|(namespace, name)| (&**namespace, name.as_str()))
    }

    /// What the model knows a function as.
    fn called<'a>(&'a self, namespace: Option<&str>, name: &'a str) -> &'a str {
        let is_it = |(_, (of, own)): &(&String, &(Arc<str>, String))| Some(&**of) == namespace && own == name;
        self.0.iter().find(is_it).map_or(name, |(known, _)| known)
    }
}

/// The tools of a request, read.
#[derive(Default)]
struct ToolsRead {
    /// As the answer repeats them.
    shown: JsonItems,
    namespaces: Namespaces,
}

fn tools(fields: &Fields<'_>, chat: &mut Translated) -> Result<ToolsRead, ApiError> {
    let mut read = ToolsRead::default();
    if let Some(items) = fields.array("tools")? {
        let mut functions = Functions::default();
        items.each(|i, sent| {
            let tool = Fields::of(sent, &items.item(i), TOOL_KEYS)?;
            let kind = tool.required_text("type")?;
            match &*kind {
                "function" => functions.add(&tool, &tool.required_text("name")?),
                "namespace" => namespace(&tool, &mut functions, &mut read.namespaces)?,
                // A search of nothing finds nothing: who offers that one leaves nothing out.
                "web_search" if tool.flag("external_web_access")? == Some(false) => {}
                other => return Err(nobody_runs(&tool, other)),
            }
            read.shown.add(&with_defaults(&tool, sent));
            Ok(())
        })?;
        chat.offer(functions.tools);
    }
    let Some(choice) = fields.get("tool_choice") else { return Ok(read) };
    if choice.get().starts_with('{') {
        chat.set("tool_choice", "tool_choice", &named(&Fields::of(choice, "tool_choice", TOOL_KEYS)?)?);
        chat.names("tool_choice.function", "tool_choice");
        chat.names("tool_choice.allowed_tools", "tool_choice");
    } else {
        chat.set("tool_choice", "tool_choice", choice);
    }
    Ok(read)
}

/// Functions as a chat has them.
#[derive(Default)]
struct Functions {
    tools: Tools,
    names: HashSet<String>,
}

impl Functions {
    fn add(&mut self, tool: &Fields<'_>, name: &str) {
        self.names.insert(name.to_owned());
        self.tools.add(name, tool, "parameters");
    }
}

/// The functions of a namespace: under their own names, unless another has that.
fn namespace(tool: &Fields<'_>, functions: &mut Functions, namespaces: &mut Namespaces) -> Result<(), ApiError> {
    let space = tool.required_text("name")?;
    if space.len() > NAMESPACE_BYTES_MAX {
        let path = tool.path("name");
        let message = format!("`{path}` must have at most {NAMESPACE_BYTES_MAX} bytes");
        return Err(ApiError::invalid(path, message));
    }
    let space: Arc<str> = space.into();
    let Some(items) = tool.array("tools")? else { return Err(ApiError::missing(tool.path("tools"))) };
    items.each(|i, sent| {
        let inner = Fields::of(sent, &items.item(i), TOOL_KEYS)?;
        let kind = inner.required_text("type")?;
        if kind != "function" {
            return Err(nobody_runs(&inner, &kind));
        }
        let name = inner.required_text("name")?.into_owned();
        let known = if functions.names.contains(&name) { format!("{space}__{name}") } else { name.clone() };
        functions.add(&inner, &known);
        namespaces.0.insert(known, (Arc::clone(&space), name));
        Ok(())
    })?;
    Ok(())
}

/// A tool as the answer repeats it, where these two are always there.
fn with_defaults(tool: &Fields<'_>, sent: &RawValue) -> Box<RawValue> {
    let mut text = sent.get().to_owned();
    for key in ["strict", "parameters"] {
        if tool.found(key).is_none() {
            text.truncate(text.len() - 1);
            text.push_str(&format!(",\"{key}\":null}}"));
        }
    }
    raw_text(text.into())
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
fn named(choice: &Fields<'_>) -> Result<Box<RawValue>, ApiError> {
    match &*choice.required_text("type")? {
        "function" => Ok(raw(&json!({"type": "function", "function": {"name": choice.required_text("name")?}}))),
        "allowed_tools" => {
            let mut tools = JsonItems::default();
            if let Some(items) = choice.array("tools")? {
                items.each(|i, tool| {
                    tools.add(&named(&Fields::of(tool, &items.item(i), TOOL_KEYS)?)?);
                    Ok(())
                })?;
            }
            let mode = raw(&choice.text("mode")?.unwrap_or("auto".into()));
            let allowed = object_of(&[("mode", mode), ("tools", tools.array())].into());
            Ok(object_of(&[("type", raw("allowed_tools")), ("allowed_tools", allowed)].into()))
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
    if kind == "json_schema" {
        let schema = picked(&format, &["name", "schema", "strict", "description"]);
        let wanted = object_of(&[("type", raw(&kind)), ("json_schema", schema)].into());
        chat.set("response_format", "text.format", &wanted);
    } else {
        chat.set(
            "response_format",
            "text.format",
            &picked(&format, &["type", "schema", "pattern", "value", "grammar"]),
        );
    }
    chat.names("response_format.json_schema", "text.format");
    Ok(())
}

/// The answer as far as its request tells it.
fn reply(fields: &Fields<'_>, id: &str, tools: &JsonItems) -> Result<Reply, ApiError> {
    let mut reply = Reply::default();
    let text = fields.object("text", TEXT_KEYS)?;
    let of_text = |key| text.as_ref().and_then(|text: &Fields<'_>| text.get(key));
    let format = of_text("format").map_or_else(|| raw(&json!({"type": "text"})), ToOwned::to_owned);
    let verbosity = of_text("verbosity").map_or_else(|| raw("medium"), ToOwned::to_owned);
    let null = || json!(null);
    let sent = |key: &'static str, usual| (key, fields.get(key).map(ToOwned::to_owned), usual);
    let made = |key: &'static str, made| (key, None, made);
    for (key, sent, usual) in [
        made("id", json!(id)),
        made("object", json!("response")),
        made("created_at", json!(0)),
        made("completed_at", null()),
        made("status", json!("in_progress")),
        made("background", json!(false)),
        made("error", null()),
        made("incomplete_details", null()),
        sent("instructions", null()),
        sent("max_output_tokens", null()),
        sent("max_tool_calls", null()),
        made("model", json!("")),
        made("output", json!([])),
        sent("parallel_tool_calls", json!(true)),
        sent("previous_response_id", null()),
        sent("prompt_cache_key", null()),
        sent("reasoning", json!({"effort": null, "summary": null})),
        sent("safety_identifier", null()),
        sent("service_tier", json!("default")),
        sent("store", json!(true)),
        sent("temperature", json!(1.0)),
        ("text", Some(object_of(&[("format", format), ("verbosity", verbosity)].into())), null()),
        sent("tool_choice", json!("auto")),
        ("tools", Some(tools.array()), null()),
        sent("top_logprobs", json!(0)),
        sent("top_p", json!(1.0)),
        sent("presence_penalty", json!(0.0)),
        sent("frequency_penalty", json!(0.0)),
        sent("truncation", json!("disabled")),
        made("usage", null()),
        sent("user", null()),
        sent("metadata", json!({})),
    ] {
        reply.set(key, &sent.unwrap_or_else(|| raw(&usual)));
    }
    Ok(reply)
}
