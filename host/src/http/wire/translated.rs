//! A request of another API on its way to become OpenAI's chat, which is what plugins and engines are asked in.

use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::{Answerer, Asked, ChatJob, ReceivedBody, TextWork, chat, sampling};
use crate::domain::Class;
use crate::http::error::ApiError;

/// A chat, and where in the body it was made from its parts lay.
#[derive(Debug, Default)]
pub(super) struct Translated {
    /// What the other API has under the same name, and what this host does not know.
    pub(super) chat: Map<String, Value>,
    messages: Vec<Value>,
    /// Where each message lay.
    sources: Vec<String>,
    /// Fields of the chat that have other names there.
    names: Vec<(&'static str, &'static str)>,
    /// What the model thought before whatever an assistant says next.
    thought: String,
}

impl Translated {
    /// From what is left of a body once these fields of its own API are out.
    pub(super) fn from(mut body: Map<String, Value>, own: &[&str]) -> Self {
        body.retain(|key, _| !own.contains(&key.as_str()));
        Self { chat: body, ..Self::default() }
    }

    /// A field of the chat that lay elsewhere.
    pub(super) fn set(&mut self, field: &'static str, source: &'static str, value: impl Into<Value>) {
        self.chat.insert(field.to_owned(), value.into());
        self.names.push((field, source));
    }

    /// The same, if it was there.
    pub(super) fn set_some(&mut self, field: &'static str, source: &'static str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.set(field, source, value);
        }
    }

    /// A turn. What was thought before goes with an assistant's.
    pub(super) fn say(&mut self, role: &str, content: impl Into<Value>, source: impl Into<String>) {
        let mut message = json!({"role": role, "content": content.into()});
        if role == "assistant" && !self.thought.is_empty() {
            message["reasoning_content"] = std::mem::take(&mut self.thought).into();
        }
        self.push(message, source);
    }

    /// A turn as it is.
    pub(super) fn push(&mut self, message: Value, source: impl Into<String>) {
        self.messages.push(message);
        self.sources.push(source.into());
    }

    /// What the model thought.
    pub(super) fn think(&mut self, text: &str) {
        self.thought.push_str(text);
    }

    /// A call of a tool, which goes with what the assistant has just said, if anything.
    pub(super) fn call(&mut self, id: &str, name: &str, arguments: &str, source: &str) {
        let is_assistant = self.messages.last().is_some_and(|last| last["role"] == "assistant");
        if !is_assistant || !self.thought.is_empty() {
            self.say("assistant", Value::Null, source);
        }
        let Some(last) = self.messages.last_mut() else { return };
        let call = json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
        match last["tool_calls"].as_array_mut() {
            Some(calls) => calls.push(call),
            None => last["tool_calls"] = json!([call]),
        }
    }

    /// What a tool gave back.
    pub(super) fn give(&mut self, id: &str, content: impl Into<Value>, source: impl Into<String>) {
        self.push(json!({"role": "tool", "tool_call_id": id, "content": content.into()}), source);
    }

    /// The turns so far.
    pub(super) fn messages(&self) -> &[Value] {
        &self.messages
    }

    /// The request for whoever is to answer it.
    pub(super) fn work(mut self, asked: &Asked, class: Class) -> Result<TextWork, ApiError> {
        self.chat.insert("messages".to_owned(), std::mem::take(&mut self.messages).into());
        let text = serde_json::to_string(&self.chat).map_err(|error| ApiError::internal(error.to_string()))?;
        let body = ReceivedBody { text: &text, class };
        let work = match asked.answerer {
            Answerer::Plugin => chat::parse(&body).map(|job| TextWork::Plugin(Box::new(job))),
            Answerer::Engine => {
                Fields::root(&body, chat::KEYS).and_then(|fields| sampling::terms(&fields, 1)).map(|terms| {
                    let mut chat = std::mem::take(&mut self.chat);
                    chat.remove("keep_alive");
                    TextWork::Engine(Box::new(ChatJob { terms, chats: vec![chat] }))
                })
            }
        };
        work.map_err(|error| error.renamed(|path| self.source(path)))
    }

    /// Where that lay which the chat has here.
    fn source(&self, path: &str) -> Option<String> {
        let field = path.split(['.', '[']).next().unwrap_or(path);
        if let Some((_, source)) = self.names.iter().find(|(ours, _)| *ours == field) {
            return Some(format!("{source}{}", &path[field.len()..]));
        }
        let (number, rest) = path.strip_prefix("messages[")?.split_once(']')?;
        let source = self.sources.get(number.parse::<usize>().ok()?)?;
        // What lies deeper has another form there.
        let is_text = !source.contains(['[', '.']) && source != "messages";
        Some(if is_text { source.clone() } else { format!("{source}{rest}") })
    }
}

/// A value of a body as it goes on.
pub(super) fn value(raw: &RawValue) -> Value {
    serde_json::from_str(raw.get()).unwrap_or_default()
}

/// Content of parts: one text alone is a string, which every engine reads.
pub(super) fn content(mut parts: Vec<Value>) -> Value {
    match parts.as_mut_slice() {
        [] => Value::from(""),
        [only] if only["type"] == "text" => only["text"].take(),
        _ => parts.into(),
    }
}
