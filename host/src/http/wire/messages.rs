//! What `POST /v1/messages`, Anthropic's route, reads: a request that becomes a chat.

use serde_json::json;
use serde_json::value::RawValue;

use super::fields::{Fields, Items, Keys, text};
use super::json_text::{object_of, raw};
use super::messages_reply::MessagesShape;
use super::reasoning::{THINKING_KEYS, thinks};
use super::sampling::MAX_STOPS;
use super::translated::{Parts, Tools, Translated};
use super::{Answerer, Asked, ReceivedBody, TextAsk};
use crate::domain::shown;
use crate::http::error::ApiError;

/// What is read of a body.
pub(in crate::http) const KEYS: Keys = &[
    "model",
    "messages",
    "system",
    "max_tokens",
    "stop_sequences",
    "temperature",
    "top_p",
    "top_k",
    "stream",
    "metadata",
    "tools",
    "tool_choice",
    "thinking",
    "output_config",
    "output_format",
    "mcp_servers",
    "container",
    "service_tier",
    "keep_alive",
];
/// Fields that mean nothing in a chat, or that have another name there.
const OWN: [&str; 14] = [
    "messages",
    "system",
    "stop_sequences",
    "metadata",
    "tools",
    "tool_choice",
    "thinking",
    "output_config",
    "output_format",
    "mcp_servers",
    "container",
    "context_management",
    "stream_options",
    "service_tier",
];
/// What is read of a message.
pub(in crate::http) const MESSAGE_KEYS: Keys = &["role", "content"];
/// What is read of a block of content.
pub(in crate::http) const BLOCK_KEYS: Keys =
    &["type", "text", "source", "id", "name", "input", "tool_use_id", "content", "is_error", "thinking", "title"];
/// What is read of a tool and of a choice of one.
pub(in crate::http) const TOOL_KEYS: Keys =
    &["type", "name", "description", "input_schema", "strict", "disable_parallel_tool_use"];
const SOURCE_KEYS: Keys = &["type", "media_type", "data", "url", "content"];
const FORMAT_KEYS: Keys = &["type", "schema"];
const OUTPUT_KEYS: Keys = &["format", "effort"];
const METADATA_KEYS: Keys = &["user_id"];

/// A request to `POST /v1/messages`.
pub(in crate::http) fn read(body: &ReceivedBody<'_>, asked: &Asked) -> Result<TextAsk, ApiError> {
    let fields = Fields::root(body, KEYS)?;
    fields.required("max_tokens")?;
    read_any(body, &fields, asked)
}

/// A request to `POST /v1/messages/count_tokens`, which says nothing of the answer.
pub(in crate::http) fn read_to_count(body: &ReceivedBody<'_>, asked: &Asked) -> Result<TextAsk, ApiError> {
    read_any(body, &Fields::root(body, KEYS)?, asked)
}

fn read_any(body: &ReceivedBody<'_>, fields: &Fields<'_>, asked: &Asked) -> Result<TextAsk, ApiError> {
    for key in ["mcp_servers", "container"] {
        if fields.get(key).is_some_and(|value| value.get() != "[]") {
            let message = format!("`{key}` is not supported: nothing here runs tools; call them yourself");
            return Err(ApiError::unsupported(key, message));
        }
    }
    let mut chat = Translated::from(body, &OWN, asked)?;
    if let Some(system) = fields.get("system") {
        let system = system_text(system)?;
        chat.say("system", raw(&system), "system");
    }
    let Some(items) = fields.array("messages")? else { return Err(ApiError::missing("messages")) };
    let mut is_prefill = false;
    let count = items.each(|i, item| {
        let path = items.item(i);
        is_prefill = message(&Fields::of(item, &path, MESSAGE_KEYS)?, &path, &mut chat)?;
        Ok(())
    })?;
    if count == 0 {
        return Err(ApiError::invalid("messages", "`messages` must have at least one message"));
    }
    if is_prefill {
        // What it begins with is what the answer goes on from.
        chat.set("continue_final_message", "messages", &true);
        chat.set("add_generation_prompt", "messages", &false);
    }
    chat.set("stream_options", "stream", &json!({"include_usage": true}));
    let mut stops = Vec::new();
    if let Some(items) = fields.array("stop_sequences")? {
        items.each(|i, stop| {
            let stop = text(stop, || items.item(i), "a string")?;
            // A plugin takes no more, and an engine may tell which it was.
            if i < MAX_STOPS {
                stops.push(stop.into_owned());
            }
            Ok(())
        })?;
        chat.set("stop", "stop_sequences", items.value());
    }
    fields.number("temperature", 0.0..=1.0)?;
    if let Some(metadata) = fields.object("metadata", METADATA_KEYS)? {
        chat.set_some("user", "metadata.user_id", metadata.text("user_id")?);
    }
    tools(fields, &mut chat)?;
    thinking(fields, &mut chat, asked)?;
    let work = chat.work(asked, body.class)?;
    Ok(TextAsk::new(work, move |model, _created| MessagesShape::new(model, stops)))
}

/// A string, or blocks of text.
fn system_text(system: &RawValue) -> Result<String, ApiError> {
    if !system.get().starts_with('[') {
        return Ok(text(system, || "system".to_owned(), "a string or an array of text blocks")?.into_owned());
    }
    let items = Items::of(system, "system".to_owned())?;
    let mut all = String::new();
    items.each(|i, block| {
        let block = Fields::of(block, &items.item(i), BLOCK_KEYS)?;
        let kind = block.required_text("type")?;
        if kind != "text" {
            return Err(unsupported(&block, &format!("a system prompt is text, not `{}`", shown(&kind))));
        }
        if i > 0 {
            all.push('\n');
        }
        all.push_str(&block.required_text("text")?);
        Ok(())
    })?;
    Ok(all)
}

/// A turn. Whether the answer goes on from it.
fn message(fields: &Fields<'_>, path: &str, chat: &mut Translated) -> Result<bool, ApiError> {
    let role = fields.required_text("role")?;
    if !matches!(&*role, "user" | "assistant" | "system") {
        let path = fields.path("role");
        let message = format!("`{path}` must be user or assistant, not `{}`", shown(&role));
        return Err(ApiError::invalid(path, message));
    }
    let sent = fields.required("content")?;
    if !sent.get().starts_with('[') {
        text(sent, || fields.path("content"), "a string or an array of blocks")?;
        chat.say(&role, sent.to_owned(), path);
        return Ok(role == "assistant");
    }
    let items = Items::of(sent, fields.path("content"))?;
    let mut turn = Turn { role: &role, path, parts: Parts::default(), has_calls: false };
    items.each(|i, block| turn.block(&Fields::of(block, &items.item(i), BLOCK_KEYS)?, chat))?;
    let is_prefill = role == "assistant" && !turn.has_calls && !turn.parts.is_empty();
    turn.end(chat);
    Ok(is_prefill)
}

/// A turn on its way: its blocks become a message, and before it one for each result of a tool.
struct Turn<'a> {
    role: &'a str,
    path: &'a str,
    parts: Parts,
    has_calls: bool,
}

impl Turn<'_> {
    fn block(&mut self, block: &Fields<'_>, chat: &mut Translated) -> Result<(), ApiError> {
        let kind = block.required_text("type")?;
        match &*kind {
            "tool_use" => {
                self.say(chat);
                self.has_calls = true;
                let input = block.get("input").map_or("{}", |input| input.get());
                chat.call(&block.required_text("id")?, &block.required_text("name")?, input, self.path);
            }
            "tool_result" => {
                let result = result(block)?;
                chat.give(&block.required_text("tool_use_id")?, &result, self.path);
            }
            "thinking" => chat.think(&block.text("thinking")?.unwrap_or_default()),
            // Whose thoughts they are, only they can read.
            "redacted_thinking" => {}
            _ => part(block, &kind, &mut self.parts)?,
        }
        Ok(())
    }

    fn say(&mut self, chat: &mut Translated) {
        if !self.parts.is_empty() {
            chat.say(self.role, std::mem::take(&mut self.parts).content(), self.path);
        }
    }

    fn end(mut self, chat: &mut Translated) {
        self.say(chat);
    }
}

/// What a tool gave back: a string, or blocks.
fn result(block: &Fields<'_>) -> Result<Box<RawValue>, ApiError> {
    let Some(sent) = block.get("content") else { return Ok(raw("")) };
    if !sent.get().starts_with('[') {
        text(sent, || block.path("content"), "a string or an array of blocks")?;
        return Ok(sent.to_owned());
    }
    let items = Items::of(sent, block.path("content"))?;
    let mut parts = Parts::default();
    items.each(|i, sent| {
        let block = Fields::of(sent, &items.item(i), BLOCK_KEYS)?;
        let kind = block.required_text("type")?;
        part(&block, &kind, &mut parts)
    })?;
    Ok(parts.content())
}

/// A block as a part of a chat's message.
fn part(block: &Fields<'_>, kind: &str, parts: &mut Parts) -> Result<(), ApiError> {
    let source = || {
        let source = block.object("source", SOURCE_KEYS)?;
        source.ok_or_else(|| ApiError::missing(block.path("source")))
    };
    match kind {
        "text" => parts.text(&block.required_text("text")?),
        "image" => parts.add(&json!({"type": "image_url", "image_url": {"url": address(&source()?)?}})),
        "document" => {
            let source = source()?;
            if source.required_text("type")? == "text" {
                parts.text(&source.required_text("data")?);
                return Ok(());
            }
            let name = block.text("title")?.unwrap_or_else(|| "document".into());
            parts.add(&json!({"type": "file", "file": {"file_data": address(&source)?, "filename": name}}));
        }
        other => return Err(unsupported(block, &format!("blocks of type `{}` are not supported", shown(other)))),
    }
    Ok(())
}

/// Where an image or a document lies: an address, or itself in one.
fn address(source: &Fields<'_>) -> Result<String, ApiError> {
    match &*source.required_text("type")? {
        "base64" => {
            let (media_type, data) = (source.required_text("media_type")?, source.required_text("data")?);
            Ok(format!("data:{media_type};base64,{data}"))
        }
        "url" => Ok(source.required_text("url")?.into_owned()),
        other => Err(unsupported(
            source,
            &format!("`{}` is neither base64 nor url, and no files are kept here", shown(other)),
        )),
    }
}

fn unsupported(fields: &Fields<'_>, what: &str) -> ApiError {
    let path = fields.path("type");
    ApiError::unsupported(path.clone(), format!("`{path}`: {what}"))
}

fn tools(fields: &Fields<'_>, chat: &mut Translated) -> Result<(), ApiError> {
    if let Some(items) = fields.array("tools")? {
        let mut tools = Tools::default();
        items.each(|i, sent| {
            let tool = Fields::of(sent, &items.item(i), TOOL_KEYS)?;
            let kind = tool.text("type")?.filter(|kind| kind != "custom");
            if let Some(kind) = kind {
                let what = format!(
                    "nothing here runs tools of type `{}`; describe it by `input_schema` and run it yourself",
                    shown(&kind)
                );
                return Err(unsupported(&tool, &what));
            }
            tools.add(&tool.required_text("name")?, &tool, "input_schema");
            Ok(())
        })?;
        chat.offer(tools);
    }
    let Some(choice) = fields.object("tool_choice", TOOL_KEYS)? else { return Ok(()) };
    let kind = choice.required_text("type")?;
    let chosen = match &*kind {
        "auto" | "none" => json!(kind),
        "any" => json!("required"),
        "tool" => json!({"type": "function", "function": {"name": choice.required_text("name")?}}),
        other => {
            let path = choice.path("type");
            let message = format!("`{path}` must be auto, any, tool or none, not `{}`", shown(other));
            return Err(ApiError::invalid(path, message));
        }
    };
    chat.set("tool_choice", "tool_choice", &chosen);
    chat.names("tool_choice.function", "tool_choice");
    if choice.flag("disable_parallel_tool_use")? == Some(true) {
        chat.set("parallel_tool_calls", "tool_choice.disable_parallel_tool_use", &false);
    }
    Ok(())
}

/// How much it may think, and the form of what it says.
fn thinking(fields: &Fields<'_>, chat: &mut Translated, asked: &Asked) -> Result<(), ApiError> {
    if let Some(thinking) = fields.object("thinking", THINKING_KEYS)? {
        chat.think_if(thinks(&thinking)?, "thinking")?;
        chat.set_some(
            "thinking_budget_tokens",
            "thinking.budget_tokens",
            thinking.integer("budget_tokens", 0..=i64::from(u32::MAX))?,
        );
    }
    let config = fields.object("output_config", OUTPUT_KEYS)?;
    let mut format = fields.object("output_format", FORMAT_KEYS)?;
    if let Some(config) = config {
        let effort = config.text("effort")?;
        // Anthropic's word for the most, which an engine may know too.
        let is_most = effort.as_deref() == Some("max") && asked.answerer == Answerer::Plugin;
        let effort = if is_most { Some("xhigh".into()) } else { effort };
        chat.set_some("reasoning_effort", "output_config.effort", effort);
        format = config.object("format", FORMAT_KEYS)?.or(format);
    }
    if let Some(format) = format {
        let schema = format.required("schema")?.to_owned();
        let schema = object_of(&[("name", raw("answer")), ("schema", schema), ("strict", raw(&true))].into());
        let wanted = object_of(&[("type", raw(&format.required_text("type")?)), ("json_schema", schema)].into());
        let at = format.place();
        let (field, schema) = if at == "output_format" {
            ("output_format", "output_format.schema")
        } else {
            ("output_config.format", "output_config.format.schema")
        };
        chat.set("response_format", field, &wanted);
        chat.names("response_format.json_schema", field);
        chat.names("response_format.json_schema.schema", schema);
    }
    Ok(())
}
