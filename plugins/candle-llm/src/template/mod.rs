//! Chat templates: a conversation in, the text that the model reads out.
//!
//! A model's files have one template, or another one for conversations with tools beside it. `jinja` renders one as Python's
//! transformers would, with `dialect` (by `lexer`), `filters`, `text`, `json`, `percent`, `time` and `methods` for what Python writes in its own way.
//! `probe` asks it once what it has a place for, and `form` puts each conversation into the form that it serves, with `tools`
//! for what has no place. `apart` tells what clients say from what the template does. Nothing here knows tokens but by their names.

mod apart;
mod dialect;
mod filters;
mod form;
#[cfg(test)]
mod goldens;
mod jinja;
mod json;
mod lexer;
mod methods;
mod percent;
mod probe;
#[cfg(test)]
mod tests;
mod text;
mod time;
mod tools;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aihost_plugin_api::{Error, ErrorKind, Message, Result};
use aihost_support::budget::{Budget, Overrun};
use serde_json::{Map, Value};

pub use self::apart::{Apart, ControlTokens};
pub use self::tools::INJECTED;

use self::apart::{Marked, Marker};
use self::form::{Form, Place, Tools};
use self::jinja::{Jinja, Rendered, Scene};
use self::probe::Probe;

/// Most bytes of a template; the longest of known models have a tenth of it.
const SOURCE_BYTES: usize = 1 << 20;
/// Bytes that a rendering may take beside those of its conversation, and a compilation beside those of its source.
const RENDER_BYTES: usize = 16 << 20;
/// Times the bytes of its source that a compilation may take.
const COMPILE_COPIES: usize = 64;
/// Times the bytes of its conversation that a rendering may take.
const RENDER_COPIES: usize = 8;
/// How long a rendering may run: some of what a template can do is a single instruction.
const RENDER_TIME: Duration = Duration::from_secs(10);
/// What messages call the templates.
const NAME: &str = "chat_template";
const TOOL_USE_NAME: &str = "chat_template.tool_use";
/// Stands behind a message that is to be gone on with, so that what its template writes behind it is told from what it says. Of
/// characters that Unicode gives no meaning; the last one of a text is ours.
const END_MARK: &str = "\u{f8ff}\u{f8fe}";

/// The texts of a model's templates, as its files have them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Templates {
    /// For conversations that nothing else is for.
    pub default: Option<String>,
    /// For conversations with tools.
    pub tool_use: Option<String>,
}

/// A model's chat template, compiled.
#[derive(Debug)]
pub struct ChatTemplate {
    /// For conversations without tools, and with them. Nothing if there is none that can be used.
    scripts: Option<[Script; 2]>,
    /// The texts that those are of.
    sources: [String; 2],
    /// Why one of them is not used.
    fault: Option<String>,
    bos: String,
    eos: String,
    /// How long a rendering may run.
    time: Duration,
    /// Whether the log has been told that it fails.
    is_told: AtomicBool,
}

/// One template, and the form in which it serves conversations.
#[derive(Clone, Debug)]
struct Script {
    jinja: Arc<Jinja>,
    form: Form,
}

/// What is to be rendered.
#[derive(Clone, Copy, Debug)]
pub struct Conversation<'a> {
    /// In order, at least one.
    pub messages: &'a [Message],
    /// In OpenAI's form.
    pub tools: &'a [Value],
    /// Names that the template sees beside its own, of which none is replaced: `enable_thinking`, say.
    pub arguments: &'a Map<String, Value>,
    /// Where the prompt ends.
    pub end: PromptEnd,
}

/// Where a prompt ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromptEnd {
    /// Where the assistant's turn begins.
    NewTurn,
    /// In the last message, which is the assistant's and is to be gone on with.
    LastMessage,
}

impl ChatTemplate {
    /// Compiles `source`, which serves all conversations; `bos` and `eos` are the texts of the special tokens.
    ///
    /// # Errors
    /// A message for `InvalidOptions`, or for whatever fits where the template came from.
    pub fn compile(source: &str, bos: String, eos: String) -> Result<Self, String> {
        let templates = Templates { default: Some(source.to_owned()), tool_use: None };
        let template = Self::open(templates, bos, eos);
        match template.fault {
            Some(fault) => Err(fault),
            None => Ok(template),
        }
    }

    /// Compiles a model's templates. Of one that cannot be, [`fault`](Self::fault) tells; the other one stands for it, and if there is
    /// none, conversations are answered with what is wrong.
    pub fn open(templates: Templates, bos: String, eos: String) -> Self {
        let mut fault = None;
        let mut compile = |name, source: Option<String>| {
            let source = source?;
            let jinja = compiled(name, &source).map_err(|words| fault.get_or_insert(words).clone());
            Some((jinja.ok().map(Arc::new), source))
        };
        let default = compile(NAME, templates.default);
        let tool_use = compile(TOOL_USE_NAME, templates.tool_use);
        let usable = |template: &Option<(Option<Arc<Jinja>>, String)>| {
            template.as_ref().and_then(|(jinja, source)| Some((Arc::clone(jinja.as_ref()?), source.clone())))
        };
        let plain = usable(&default).or_else(|| usable(&tool_use));
        let with_tools = usable(&tool_use).or_else(|| usable(&default));
        let (scripts, sources) = match (plain, with_tools) {
            (Some((plain, source)), Some((with_tools, tool_source))) => {
                let plain = Script { form: probed(&plain, Vec::new(), [&bos, &eos]), jinja: plain };
                let with_tools =
                    Script { form: probed(&with_tools, vec![probe::tool()], [&bos, &eos]), jinja: with_tools };
                (Some([plain, with_tools]), [source, tool_source])
            }
            _ => {
                let source = default.or(tool_use).map(|(_, source)| source).unwrap_or_default();
                (None, [source.clone(), source])
            }
        };
        Self { scripts, sources, fault, bos, eos, time: RENDER_TIME, is_told: AtomicBool::new(false) }
    }

    /// Why a template of the model's is not used: it does not parse, say. For the log.
    pub fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }

    /// The text of the template that serves conversations with tools, or those without.
    pub fn source_for(&self, has_tools: bool) -> &str {
        &self.sources[usize::from(has_tools)]
    }

    /// Whether it tells the model of tools itself. If not, a system message does, and asks for calls as [`INJECTED`] says.
    pub fn writes_tools(&self) -> bool {
        self.scripts.as_ref().is_some_and(|[_, with_tools]| with_tools.form.tools != Tools::Message)
    }

    /// The prompt of a conversation; nothing if it has more than `most_bytes`.
    ///
    /// # Errors
    /// `InvalidRequest` with the template's own words if it refuses the conversation, or if there is nothing to go on with.
    /// `Unsupported` if the template is at fault. `Device`, which has the process given up, if it takes far more than a template
    /// needs.
    pub fn render(&self, conversation: &Conversation<'_>, most_bytes: usize) -> Result<Option<String>> {
        self.render_marked(conversation, most_bytes, None)
    }

    /// The same, in which what has the text of one of these tokens and is not of the template's is told apart. Where a template looks
    /// for such a token in what is said, it finds none, but for what the model itself is said to have said.
    ///
    /// # Errors
    /// As [`render`](Self::render), and `InvalidRequest` if nothing is left to mark with.
    pub fn render_apart(
        &self,
        conversation: &Conversation<'_>,
        most_bytes: usize,
        tokens: &ControlTokens,
    ) -> Result<Option<Apart>> {
        let Some(plain) = self.render(conversation, most_bytes)? else { return Ok(None) };
        let Conversation { messages, tools, arguments, .. } = *conversation;
        let said: Vec<Value> = messages.iter().map(form::value).collect();
        let values = || said.iter().chain(tools).chain(arguments.values());
        if !values().any(|value| tokens.touches(value)) {
            return Ok(Some(Apart::whole(plain)));
        }
        let mut texts = vec![plain.as_str(), &self.sources[0], &self.sources[1]];
        values().for_each(|value| collect(value, &mut texts));
        let marker = Marker::new(tokens, texts.into_iter())?;
        // Every mark is of three bytes, or six as JSON; a token has more.
        let most_bytes = most_bytes.saturating_mul(4);
        let render = |marked: Marked| -> Result<Option<Apart>> {
            let marker = marker.marking(marked);
            let text = self.render_marked(conversation, most_bytes, Some(&marker))?;
            Ok(text.map(|text| marker.read(&text)))
        };
        let is_plain = |apart: &Result<Option<Apart>>| matches!(apart, Ok(Some(apart)) if apart.text == plain);
        let all = render(Marked::Everybodys);
        if is_plain(&all) {
            return all;
        }
        let others = render(Marked::OthersThanTheModels);
        if is_plain(&others) { others } else { all }
    }

    fn render_marked(
        &self,
        conversation: &Conversation<'_>,
        most_bytes: usize,
        marker: Option<&Marker<'_>>,
    ) -> Result<Option<String>> {
        let Conversation { messages, end, .. } = *conversation;
        if messages.is_empty() {
            return Err(Error::invalid_request("messages is empty and must have at least one message").at("messages"));
        }
        if end == PromptEnd::NewTurn {
            return self.render_all(conversation, most_bytes, marker);
        }
        let last = messages.last().filter(|last| last.role == "assistant" && last.tool_calls.is_none());
        let Some(last) = last else {
            let message = "the last message is not a text of the assistant's, which is what can be gone on with";
            return Err(Error::invalid_request(message).at("messages"));
        };
        let marked = Message::new("assistant", format!("{}{END_MARK}", last.content));
        let messages = [&messages[..messages.len() - 1], &[marked]].concat();
        let marked = Conversation { messages: &messages, ..*conversation };
        let Some(mut text) = self.render_all(&marked, most_bytes, marker)? else { return Ok(None) };
        let Some(at) = text.rfind(END_MARK) else {
            let message = "the model's chat template leaves the last message out, so it cannot be gone on with";
            return Err(Error::invalid_request(message).at("messages"));
        };
        text.truncate(at);
        Ok(Some(text))
    }

    fn render_all(
        &self,
        conversation: &Conversation<'_>,
        most_bytes: usize,
        marker: Option<&Marker<'_>>,
    ) -> Result<Option<String>> {
        let Some(scripts) = &self.scripts else {
            let why = self.fault.as_deref().unwrap_or("the model has none");
            return Err(unusable(format!("the model's chat template cannot be used: {why}")));
        };
        let script = &scripts[usize::from(!conversation.tools.is_empty())];
        let render = |form: &Form, conversation: &Conversation<'_>| {
            let mut scene = self.scene(form, conversation);
            if let Some(marker) = marker {
                scene.messages = scene.messages.into_iter().map(|message| marker.message(message)).collect();
                scene.tools = scene.tools.into_iter().map(|tool| marker.value(tool)).collect();
                scene.arguments.values_mut().for_each(|value| *value = marker.value(value.take()));
            }
            self.render_in(script, scene, most_bytes)
        };
        let mut rendered = render(&script.form, conversation)?;
        for (form, tools) in second_tries(&script.form, conversation) {
            if matches!(rendered, Rendered::Whole(_) | Rendered::TooLong) {
                break;
            }
            let conversation = Conversation { tools: &tools, ..*conversation };
            // Where that is no better, what is told is why it did not go the first time.
            if let found @ (Rendered::Whole(_) | Rendered::TooLong) = render(&form, &conversation)? {
                rendered = found;
            }
        }
        match rendered {
            Rendered::Whole(text) => Ok(Some(text)),
            Rendered::TooLong => Ok(None),
            Rendered::Refused(words) => {
                let message = format!("the model's chat template refused the messages: {words}");
                Err(Error::invalid_request(message).at("messages"))
            }
            Rendered::Failed(words) => {
                if !self.is_told.swap(true, Ordering::Relaxed) {
                    tracing::error!("the chat template failed: {words}");
                }
                Err(unusable(format!("the model's chat template failed: {words}")))
            }
        }
    }

    fn scene(&self, form: &Form, conversation: &Conversation<'_>) -> Scene {
        Scene {
            messages: form::shape(conversation.messages, conversation.tools, form),
            tools: if form.tools != Tools::Message { conversation.tools.to_vec() } else { Vec::new() },
            arguments: conversation.arguments.clone(),
            bos: self.bos.clone(),
            eos: self.eos.clone(),
            add_generation_prompt: conversation.end == PromptEnd::NewTurn,
        }
    }

    fn render_in(&self, script: &Script, scene: Scene, most_bytes: usize) -> Result<Rendered> {
        let parts = scene.messages.iter().chain(&scene.tools).chain(scene.arguments.values());
        let size = parts.map(size).fold(0, usize::saturating_add);
        let bytes = RENDER_BYTES.saturating_add(size.saturating_mul(RENDER_COPIES));
        let jinja = Arc::clone(&script.jinja);
        let rendered = Budget { bytes, time: self.time }.run(move || jinja.render(scene, most_bytes));
        rendered.map_err(|overrun| self.overran(overrun, bytes))
    }

    /// The template is the model's, so no client is to blame; and its thread is still there, so the process must go.
    fn overran(&self, overrun: Overrun, bytes: usize) -> Error {
        let what = match overrun {
            Overrun::Memory => format!("takes more than {bytes} bytes of memory"),
            Overrun::Time => format!("runs for more than {} s", self.time.as_secs_f32()),
            Overrun::Ended => {
                return Error::internal("the model's chat template could not be rendered; send the request again");
            }
        };
        let message =
            format!("the model's chat template {what} for one conversation; set `chat_template` in its options");
        Error::new(ErrorKind::Device, message)
    }
}

/// What else there is to try if a template does not take a conversation: tools with nothing left out, and calls as text, where they
/// are in a place or of a kind that it was not asked about.
fn second_tries(form: &Form, conversation: &Conversation<'_>) -> Vec<(Form, Vec<Value>)> {
    let mut tries = Vec::new();
    let tools: Vec<Value> = conversation.tools.iter().map(tools::completed).collect();
    if !tools.is_empty() {
        tries.push((*form, tools.clone()));
    }
    if conversation.messages.iter().any(|message| message.tool_calls.is_some() || message.role == "tool") {
        tries.push((Form { calls: Place::Content, results: Place::Content, ..*form }, tools));
    }
    tries
}

fn unusable(what: String) -> Error {
    Error::new(ErrorKind::Unsupported, format!("{what}; set another `chat_template` in its options"))
}

fn compiled(name: &'static str, source: &str) -> Result<Jinja, String> {
    if source.len() > SOURCE_BYTES {
        return Err(format!("the chat template has {} bytes, of at most {SOURCE_BYTES}", source.len()));
    }
    // What is constant in it is computed here.
    let bytes = RENDER_BYTES + COMPILE_COPIES * source.len();
    let owned = source.to_owned();
    let compiled = Budget { bytes, time: RENDER_TIME }.run(move || Jinja::compile(name, &owned));
    let compiled = compiled.map_err(|overrun| match overrun {
        Overrun::Memory => format!("the chat template takes more than {bytes} bytes to compile"),
        Overrun::Time => format!("the chat template takes more than {} s to compile", RENDER_TIME.as_secs()),
        Overrun::Ended => "the chat template cannot be compiled: its engine failed".to_owned(),
    })?;
    compiled.map_err(|words| format!("the chat template does not parse: {words}"))
}

/// The form that a template is found to serve. What takes too much for that is found out by the first conversation again, which
/// has the process given up; completions are served until then.
fn probed(jinja: &Jinja, tools: Vec<Value>, [bos, eos]: [&String; 2]) -> Form {
    let probe = Probe { jinja: jinja.for_probes(), tools, bos: bos.clone(), eos: eos.clone() };
    let form = Budget { bytes: RENDER_BYTES, time: RENDER_TIME }.run(move || probe.form());
    form.unwrap_or_else(|overrun| {
        tracing::error!(?overrun, "the chat template takes too much for a conversation of a few words");
        Form::default()
    })
}

/// All texts of a JSON value.
fn collect<'a>(value: &'a Value, texts: &mut Vec<&'a str>) {
    match value {
        Value::String(text) => texts.push(text),
        Value::Array(items) => items.iter().for_each(|item| collect(item, texts)),
        Value::Object(fields) => {
            for (name, value) in fields {
                texts.push(name);
                collect(value, texts);
            }
        }
        _ => {}
    }
}

/// Bytes of a JSON value's texts, and a little for each of its parts.
fn size(value: &Value) -> usize {
    const PART_BYTES: usize = 64;
    let parts = match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(size).fold(0, usize::saturating_add),
        Value::Object(fields) => {
            fields.iter().map(|(name, value)| name.len() + size(value)).fold(0, usize::saturating_add)
        }
        _ => 0,
    };
    parts.saturating_add(PART_BYTES)
}
