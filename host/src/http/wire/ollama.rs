//! What Ollama's `POST /api/chat` and `POST /api/generate` read: requests that become a chat, or a prompt.

use serde_json::json;
use serde_json::value::RawValue;

use super::fields::{Fields, Items, Keys, each_entry, text};
use super::json_text::{object_of, raw};
use super::ollama_reply::{OllamaRoute, OllamaShape};
use super::translated::{Parts, Translated};
use super::{Asked, EmbeddingJob, JsonObject, ReceivedBody, TextAsk, TextWork};
use crate::domain::shown;
use crate::http::error::ApiError;

/// What is read of a body.
pub(in crate::http) const KEYS: Keys = &[
    "model",
    "messages",
    "prompt",
    "suffix",
    "images",
    "system",
    "template",
    "context",
    "raw",
    "tools",
    "think",
    "format",
    "options",
    "stream",
    "keep_alive",
];
/// Fields that mean nothing in a chat, or that have another name there.
const OWN: [&str; 14] = [
    "messages", "prompt", "suffix", "images", "system", "template", "context", "raw", "tools", "think", "format",
    "options", "stream", "truncate",
];
/// What is read of a message.
pub(in crate::http) const MESSAGE_KEYS: Keys = &["role", "content", "images", "thinking", "tool_calls", "tool_name"];
const CALL_KEYS: Keys = &["function"];
const FUNCTION_KEYS: Keys = &["name", "arguments"];
/// Options that a chat knows, and what it calls them.
const OPTIONS: [(&str, &str); 10] = [
    ("temperature", "temperature"),
    ("top_p", "top_p"),
    ("top_k", "top_k"),
    ("min_p", "min_p"),
    ("seed", "seed"),
    ("stop", "stop"),
    ("repeat_penalty", "repeat_penalty"),
    ("presence_penalty", "presence_penalty"),
    ("frequency_penalty", "frequency_penalty"),
    ("num_predict", "max_tokens"),
];

/// Whether a body says nothing that is to be answered: then it is about the model alone, which is to be there or to go.
pub(in crate::http) struct Bare {
    pub(in crate::http) model: Option<String>,
    /// Whether the model is to go.
    pub(in crate::http) unloads: bool,
}

/// What a body that asks for no answer wants; nothing if it asks for one.
pub(in crate::http) fn parse_bare(body: &ReceivedBody<'_>) -> Result<Option<Bare>, ApiError> {
    let fields = Fields::root(body, KEYS)?;
    let is_empty = |key| fields.get(key).is_none_or(|value| matches!(value.get(), "\"\"" | "[]"));
    if !is_empty("messages") || !is_empty("prompt") || !is_empty("images") || !is_empty("suffix") {
        return Ok(None);
    }
    let unloads =
        fields.get("keep_alive").is_some_and(|value| matches!(value.get(), "0" | "\"0\"" | "\"0s\"" | "\"0m\""));
    Ok(Some(Bare { model: super::terms::model(&fields)?, unloads }))
}

/// A request to `POST /api/chat`.
pub(in crate::http) fn read_chat(body: &ReceivedBody<'_>, asked: &Asked) -> Result<TextAsk, ApiError> {
    let fields = Fields::root(body, KEYS)?;
    let mut chat = Translated::from(body, &OWN, asked)?;
    let Some(items) = fields.array("messages")? else { return Err(ApiError::missing("messages")) };
    let mut calls = Calls::default();
    items.each(|i, item| {
        let path = items.item(i);
        message(&Fields::of(item, &path, MESSAGE_KEYS)?, &path, &mut chat, &mut calls)
    })?;
    chat.set_some("tools", "tools", fields.get("tools"));
    common(&fields, &mut chat)?;
    let work = chat.work(asked, body.class)?;
    Ok(TextAsk::new(work, |model, _created| OllamaShape::new(OllamaRoute::Chat, model)))
}

/// A request to `POST /api/generate`.
pub(in crate::http) fn read_generate(body: &ReceivedBody<'_>, asked: &Asked) -> Result<TextAsk, ApiError> {
    let fields = Fields::root(body, KEYS)?;
    if fields.get("template").is_some_and(|template| template.get() != "\"\"") {
        let message = "`template` is not supported: set the model's own in models.yaml, or send `raw` and the prompt as it is to be read";
        return Err(ApiError::unsupported("template", message));
    }
    if fields.get("context").is_some_and(|context| context.get() != "[]") {
        let message = "`context` is not supported: nothing is kept here; send the conversation to /api/chat";
        return Err(ApiError::unsupported("context", message));
    }
    let prompt = fields.text("prompt")?.unwrap_or_default();
    let suffix = fields.text("suffix")?.filter(|suffix| !suffix.is_empty());
    let is_raw = fields.flag("raw")?.unwrap_or(false);
    let mut chat = Translated::from(body, &OWN, asked)?;
    if let Some(system) = fields.text("system")?.filter(|system| !system.is_empty() && !is_raw) {
        chat.say("system", raw(&system), "system");
    }
    let mut parts = Parts::default();
    parts.text(&prompt);
    images(&fields, &mut parts)?;
    chat.say("user", parts.content(), "prompt");
    chat.names("messages", "prompt");
    common(&fields, &mut chat)?;
    let mut work = chat.work(asked, body.class)?;
    if is_raw || suffix.is_some() {
        let (key, input) = match suffix {
            Some(suffix) => ("suffix", json!({"type": "fill_in", "prefix": prompt, "suffix": suffix})),
            None => ("raw", json!({"type": "prompt", "text": prompt})),
        };
        match &mut work {
            TextWork::Plugin(job) => job.inputs = vec![input.to_string()],
            TextWork::Engine(_) => {
                let message = format!("the engine of this model answers conversations only, which have no `{key}`");
                return Err(ApiError::unsupported(key, message));
            }
        }
    }
    Ok(TextAsk::new(work, |model, _created| OllamaShape::new(OllamaRoute::Generate, model)))
}

/// What both routes have.
fn common(fields: &Fields<'_>, chat: &mut Translated) -> Result<(), ApiError> {
    chat.set("stream", "stream", &fields.flag("stream")?.unwrap_or(true));
    if let Some(options) = fields.get("options") {
        each_entry(options, "options", |key, sent| {
            let known = OPTIONS.iter().find(|(theirs, _)| *theirs == key);
            // -1 is as much as there is, -2 as much as fits.
            let is_unbounded = key == "num_predict" && sent.get().starts_with('-');
            if let Some((_, ours)) = known.filter(|_| !is_unbounded) {
                chat.set(ours, "options", sent);
            }
            Ok(())
        })?;
    }
    match fields.get("think").map(RawValue::get) {
        None => {}
        Some(flag @ ("true" | "false")) => {
            chat.think_if(flag == "true", "think")?;
        }
        Some(_) => chat.set_some("reasoning_effort", "think", fields.text("think")?),
    }
    match fields.get("format") {
        None => {}
        Some(schema) if schema.get().starts_with('{') => {
            let schema = object_of(&[("name", raw("answer")), ("schema", schema.to_owned())].into());
            let format = object_of(&[("type", raw("json_schema")), ("json_schema", schema)].into());
            chat.set("response_format", "format", &format);
            chat.names("response_format.json_schema.schema", "format");
        }
        Some(format) => match &*text(format, || "format".to_owned(), "json or a schema")? {
            "" => {}
            "json" => chat.set("response_format", "format", &json!({"type": "json_object"})),
            other => {
                let message = format!("`format` must be json or a JSON schema, not `{}`", shown(other));
                return Err(ApiError::invalid("format", message));
            }
        },
    }
    Ok(())
}

/// Calls whose results have not come yet: Ollama's have no ids.
#[derive(Default)]
struct Calls {
    begun: usize,
    open: Vec<(String, String)>,
}

impl Calls {
    fn begin(&mut self, name: &str) -> String {
        let id = format!("call_{}", self.begun);
        self.begun += 1;
        self.open.push((name.to_owned(), id.clone()));
        id
    }

    /// The call that a result is of: by name if it has one, else the first.
    fn answered(&mut self, name: Option<&str>) -> String {
        let at = name.and_then(|name| self.open.iter().position(|(called, _)| called == name)).unwrap_or(0);
        if at < self.open.len() { self.open.remove(at).1 } else { "call_0".to_owned() }
    }
}

fn message(fields: &Fields<'_>, path: &str, chat: &mut Translated, calls: &mut Calls) -> Result<(), ApiError> {
    let role = fields.required_text("role")?;
    let text = fields.text("content")?.unwrap_or_default();
    if role == "tool" {
        let id = calls.answered(fields.text("tool_name")?.as_deref());
        chat.give(&id, &raw(&text), path);
        return Ok(());
    }
    if let Some(thinking) = fields.text("thinking")? {
        chat.think(&thinking);
    }
    let mut parts = Parts::default();
    parts.text(&text);
    images(fields, &mut parts)?;
    let made = fields.array("tool_calls")?;
    if made.is_none() || !text.is_empty() {
        chat.say(&role, parts.content(), path);
    }
    let Some(items) = made else { return Ok(()) };
    items.each(|i, call| {
        let call = Fields::of(call, &items.item(i), CALL_KEYS)?;
        let function =
            call.object("function", FUNCTION_KEYS)?.ok_or_else(|| ApiError::missing(call.path("function")))?;
        let name = function.required_text("name")?;
        let arguments = function.get("arguments").map_or("{}", RawValue::get);
        let id = calls.begin(&name);
        chat.call(&id, &name, arguments, path);
        Ok(())
    })?;
    Ok(())
}

/// Images in base64, as parts.
fn images(fields: &Fields<'_>, parts: &mut Parts) -> Result<(), ApiError> {
    let Some(items) = fields.array("images")? else { return Ok(()) };
    items.each(|i, image| {
        let data = text(image, || items.item(i), "a string of base64")?;
        // What the first bytes are in base64.
        let kind = match data.get(..4) {
            Some("/9j/") => "jpeg",
            Some("R0lG") => "gif",
            Some("UklG") => "webp",
            _ => "png",
        };
        parts.add(&json!({"type": "image_url", "image_url": {"url": format!("data:image/{kind};base64,{data}")}}));
        Ok(())
    })?;
    Ok(())
}

/// What is read of a body of `POST /api/embed` and `POST /api/embeddings`.
pub(in crate::http) const EMBED_KEYS: Keys = &["model", "input", "prompt", "dimensions", "service_tier", "keep_alive"];

/// A request for embeddings as an engine is sent it: its body but for the model's name; and what is said of it.
pub(in crate::http) fn parse_embed(body: &ReceivedBody<'_>) -> Result<(Option<String>, JsonObject), ApiError> {
    let fields = Fields::root(body, EMBED_KEYS)?;
    let (key, input) = embedded(&fields)?;
    if input.get().starts_with('[') {
        let items = Items::of(input, key.to_owned())?;
        items.each(|i, item| text(item, || items.item(i), "a string").map(drop))?;
    } else {
        text(input, || key.to_owned(), "a string or an array of strings")?;
    }
    let mut asked = JsonObject::new();
    asked.insert("input".to_owned(), input.to_owned());
    asked.insert("encoding_format".to_owned(), raw("float"));
    if let Some(dimensions) = fields.get("dimensions") {
        asked.insert("dimensions".to_owned(), dimensions.to_owned());
    }
    Ok((super::terms::model(&fields)?, asked))
}

/// The same as a plugin is sent it, and the field that has the texts.
pub(in crate::http) fn parse_texts(body: &ReceivedBody<'_>) -> Result<(EmbeddingJob, &'static str), ApiError> {
    let fields = Fields::root(body, EMBED_KEYS)?;
    let (key, _) = embedded(&fields)?;
    Ok((super::embedding::of_texts(&fields, key)?, key))
}

/// The field that has what is to be embedded, and what it has.
fn embedded<'a>(fields: &Fields<'a>) -> Result<(&'static str, &'a RawValue), ApiError> {
    let found = ["input", "prompt"].into_iter().find_map(|key| Some((key, fields.get(key)?)));
    found.ok_or_else(|| ApiError::missing("input"))
}
