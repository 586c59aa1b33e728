//! A request of another API on its way to become OpenAI's chat, which is what plugins and engines are asked in. It is text all
//! the way: what a client sends may be most of a large body, and values would take many times its bytes.

use serde::Serialize;
use serde_json::value::RawValue;

use super::fields::{Fields, each_entry};
use super::json_text::{object_of, raw, raw_text};
use super::sources::Sources;
use super::tools::Call;
use super::{Answerer, Asked, ChatJob, JsonObject, ReceivedBody, TextWork, chat, sampling, write_json};
use crate::domain::Class;
use crate::http::error::ApiError;

/// Longest name of a tool, bytes: Anthropic's have twice as many as OpenAI's, and those in a namespace may have its name before them.
const TOOL_NAME_BYTES_MAX: usize = 130;

/// A chat, and where in the body it was made from its parts lay.
#[derive(Debug, Default)]
pub(super) struct Translated {
    /// What the other API has under the same name, and what this host does not know.
    chat: JsonObject,
    /// Messages, one behind the other.
    messages: JsonItems,
    /// What an assistant has said last, which its calls go with.
    open: Option<OpenTurn>,
    /// Where all that lay.
    sources: Sources,
    /// What the model thought before whatever an assistant says next.
    thought: String,
}

/// An assistant's turn that may have calls still to come.
#[derive(Debug)]
struct OpenTurn {
    content: Option<Box<RawValue>>,
    thought: String,
    calls: JsonItems,
}

/// A message of a chat.
#[derive(Serialize)]
struct Message<'a> {
    role: &'a str,
    content: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_call_id: Option<&'a str>,
}

/// Tools that become those of a chat.
#[derive(Debug, Default)]
pub(super) struct Tools {
    items: JsonItems,
    sources: Vec<(String, &'static str)>,
}

/// A tool of a chat.
#[derive(Serialize)]
struct Tool<'a> {
    r#type: &'static str,
    function: ToolFunction<'a>,
}

#[derive(Serialize)]
struct ToolFunction<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    strict: Option<&'a RawValue>,
}

impl Tools {
    /// A function of this name, as a tool of another API describes it.
    pub(super) fn add(&mut self, name: &str, tool: &Fields<'_>, parameters: &'static str) {
        let function = ToolFunction {
            name,
            description: tool.get("description"),
            parameters: tool.get(parameters),
            strict: tool.get("strict"),
        };
        self.items.add(&Tool { r#type: "function", function });
        self.sources.push((tool.place().to_owned(), parameters));
    }
}

/// Items of an array, as text.
#[derive(Clone, Debug, Default)]
pub(in crate::http) struct JsonItems(Vec<u8>);

impl JsonItems {
    /// One more.
    pub(super) fn add(&mut self, item: &impl Serialize) {
        if !self.is_empty() {
            self.0.push(b',');
        }
        write_json(&mut self.0, item);
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those behind so many bytes, which end with an item.
    fn behind(&self, bytes: usize) -> Self {
        let rest = self.0.get(bytes..).unwrap_or_default();
        Self(rest.strip_prefix(b",").unwrap_or(rest).to_vec())
    }

    /// The array.
    pub(super) fn array(&self) -> Box<RawValue> {
        raw_text([b"[", self.0.as_slice(), b"]"].concat())
    }
}

/// Content of parts: one text alone is a string, which every engine reads.
#[derive(Debug, Default)]
pub(super) struct Parts {
    items: JsonItems,
    /// The only one there is, if it is text.
    only: Option<String>,
}

impl Parts {
    /// A part of text.
    pub(super) fn text(&mut self, text: &str) {
        #[derive(Serialize)]
        struct TextPart<'a> {
            r#type: &'static str,
            text: &'a str,
        }
        self.only = self.items.is_empty().then(|| text.to_owned());
        self.items.add(&TextPart { r#type: "text", text });
    }

    /// Another part.
    pub(super) fn add(&mut self, part: &impl Serialize) {
        self.only = None;
        self.items.add(part);
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// What they are together.
    pub(super) fn content(&self) -> Box<RawValue> {
        match &self.only {
            Some(text) => raw(text),
            None if self.is_empty() => raw(""),
            None => self.items.array(),
        }
    }
}

impl Translated {
    /// From what a body has beside these fields of its own API: all of it for an engine, what is read of a chat for a plugin.
    pub(super) fn from(body: &ReceivedBody<'_>, own: &[&str], asked: &Asked) -> Result<Self, ApiError> {
        let mut chat = match asked.answerer {
            Answerer::Engine => super::fields::object(body)?,
            Answerer::Plugin => {
                let fields = Fields::root(body, chat::KEYS)?;
                let known = chat::KEYS.iter().filter_map(|key| Some(((*key).to_owned(), fields.get(key)?.to_owned())));
                known.collect()
            }
        };
        chat.retain(|key, _| !own.contains(&key.as_str()));
        Ok(Self { chat, ..Self::default() })
    }

    /// A field of the chat that lay elsewhere.
    pub(super) fn set<T: Serialize + ?Sized>(&mut self, field: &'static str, source: &'static str, value: &T) {
        self.chat.insert(field.to_owned(), raw(value));
        self.names(field, source);
    }

    /// The same, if it was there.
    pub(super) fn set_some<T: Serialize>(&mut self, field: &'static str, source: &'static str, value: Option<T>) {
        if let Some(value) = value {
            self.set(field, source, &value);
        }
    }

    /// What the chat has here lay elsewhere.
    pub(super) fn names(&mut self, path: &'static str, source: &'static str) {
        self.sources.fields.push((path, source));
    }

    /// The functions that may be called.
    pub(super) fn offer(&mut self, tools: Tools) {
        self.set("tools", "tools", &tools.items.array());
        self.sources.tools = tools.sources;
    }

    /// Whether the model is to think, unless the body says so to its template itself.
    pub(super) fn think_if(&mut self, thinks: bool, source: &'static str) -> Result<(), ApiError> {
        const KWARGS: &str = "chat_template_kwargs";
        let mut arguments = JsonObject::new();
        if let Some(sent) = self.chat.get(KWARGS) {
            each_entry(sent, KWARGS, |key, value| {
                arguments.insert(key.to_owned(), value.to_owned());
                Ok(())
            })?;
        } else {
            self.names(KWARGS, source);
        }
        arguments.entry("enable_thinking".to_owned()).or_insert_with(|| raw(&thinks));
        self.chat.insert(KWARGS.to_owned(), object_of(&arguments));
        Ok(())
    }

    /// A turn. What was thought before goes with an assistant's.
    pub(super) fn say(&mut self, role: &str, content: Box<RawValue>, source: impl Into<String>) {
        self.close();
        self.sources.messages.push(source.into());
        if role == "assistant" {
            let thought = std::mem::take(&mut self.thought);
            self.open = Some(OpenTurn { content: Some(content), thought, calls: JsonItems::default() });
            return;
        }
        let content = Some(&*content);
        self.messages.add(&Message { role, content, reasoning_content: None, tool_calls: None, tool_call_id: None });
    }

    /// A turn as it is.
    pub(super) fn push(&mut self, message: &RawValue, source: impl Into<String>) {
        self.close();
        self.sources.messages.push(source.into());
        self.messages.add(&message);
    }

    /// What the model thought.
    pub(super) fn think(&mut self, text: &str) {
        self.thought.push_str(text);
    }

    /// A call of a tool, which goes with what the assistant has just said, if anything.
    pub(super) fn call(&mut self, id: &str, name: &str, arguments: &str, source: &str) {
        if self.open.is_none() || !self.thought.is_empty() {
            self.close();
            self.sources.messages.push(source.to_owned());
            let thought = std::mem::take(&mut self.thought);
            self.open = Some(OpenTurn { content: None, thought, calls: JsonItems::default() });
        }
        if let Some(open) = &mut self.open {
            open.calls.add(&Call::of(id, name.into(), arguments.into()));
        }
    }

    /// What a tool gave back.
    pub(super) fn give(&mut self, id: &str, content: &RawValue, source: impl Into<String>) {
        self.close();
        self.sources.messages.push(source.into());
        let (content, tool_call_id) = (Some(content), Some(id));
        self.messages.add(&Message { role: "tool", content, reasoning_content: None, tool_calls: None, tool_call_id });
    }

    /// What the turns so far take as text, bytes. They have ended.
    pub(super) fn bytes(&mut self) -> usize {
        self.close();
        self.messages.0.len()
    }

    /// The turns behind so many bytes.
    pub(super) fn turns_behind(&mut self, bytes: usize) -> JsonItems {
        self.close();
        self.messages.behind(bytes)
    }

    /// An assistant's turn has ended.
    fn close(&mut self) {
        if let Some(OpenTurn { content, thought, calls }) = self.open.take() {
            self.messages.add(&Message {
                role: "assistant",
                content: content.as_deref(),
                reasoning_content: (!thought.is_empty()).then_some(&thought),
                tool_calls: (!calls.is_empty()).then(|| calls.array()),
                tool_call_id: None,
            });
        }
    }

    /// The request for whoever is to answer it.
    pub(super) fn work(mut self, asked: &Asked, class: Class) -> Result<TextWork, ApiError> {
        self.close();
        let messages = std::mem::take(&mut self.messages).array();
        let work = match asked.answerer {
            Answerer::Plugin => {
                self.chat.insert("messages".to_owned(), messages);
                let text = object_of(&std::mem::take(&mut self.chat));
                let body = ReceivedBody { text: text.get(), class };
                chat::parse(&body, TOOL_NAME_BYTES_MAX).map(|mut job| {
                    job.names.elsewhere = Some(std::mem::take(&mut self.sources));
                    TextWork::Plugin(Box::new(job))
                })
            }
            Answerer::Engine => {
                let mut common = std::mem::take(&mut self.chat);
                let text = object_of(&common);
                let body = ReceivedBody { text: text.get(), class };
                common.remove("keep_alive");
                let terms = Fields::root(&body, chat::KEYS).and_then(|fields| sampling::terms(&fields, 1));
                let job = |terms| ChatJob { terms, common, messages: vec![messages] };
                terms.map(|terms| TextWork::Engine(Box::new(job(terms))))
            }
        };
        work.map_err(|error| error.renamed(|path| self.sources.of(path)))
    }
}
