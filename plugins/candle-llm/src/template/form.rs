//! The form in which a template serves conversations, and conversations in that form: no call and no result is lost on the way.
//!
//! Requests have OpenAI's form. Templates differ in what they make of a turn that only calls, in whether arguments are text or an
//! object, in how many calls a turn has, and some know neither tools nor system messages; what they have no place for is written
//! into what they have.

use std::collections::VecDeque;

use aihost_plugin_api::Message;
use serde_json::{Map, Value, json};

use super::tools;

/// Letters and digits of an id where a template counts them, as Mistral's do.
const ID_CHARS: usize = 9;

/// What a template serves; the default is what transformers' templates are to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Form {
    pub(super) tools: Tools,
    pub(super) system: Place,
    pub(super) calls: Place,
    pub(super) results: Place,
    /// The content of a turn that only calls.
    pub(super) content: Content,
    pub(super) arguments: Arguments,
    /// Arguments that are no JSON object.
    pub(super) other_arguments: OtherArguments,
    /// A turn that says something and calls.
    pub(super) beside_text: Apart,
    /// A turn that calls several times.
    pub(super) several: Apart,
    pub(super) ids: Ids,
}

/// Who tells of tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tools {
    /// The template.
    Template,
    /// The template, beside a system message.
    BesideSystem,
    /// A system message.
    Message,
}

/// Where something goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Where transformers' templates have it.
    Own,
    /// Into the content of a message.
    Content,
}

/// The content of a turn that has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Empty,
    Null,
    Absent,
}

/// What arguments are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arguments {
    Object,
    Text,
}

/// What arguments that are no JSON object are, where arguments are objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OtherArguments {
    Text,
    /// An object with the text in it.
    Wrapped,
}

/// Where a turn has more than a template may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Apart {
    Together,
    /// It becomes several turns.
    Turns,
    /// Its calls go into its content.
    Content,
}

/// What calls are known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ids {
    AsSent,
    /// Nine letters and digits.
    Short,
}

impl Default for Form {
    fn default() -> Self {
        Self {
            tools: Tools::Template,
            system: Place::Own,
            calls: Place::Own,
            results: Place::Own,
            content: Content::Empty,
            arguments: Arguments::Object,
            other_arguments: OtherArguments::Text,
            beside_text: Apart::Together,
            several: Apart::Together,
            ids: Ids::AsSent,
        }
    }
}

/// One call of a turn.
#[derive(Clone, Debug)]
struct Call {
    id: String,
    name: String,
    /// As the model wrote them.
    arguments: String,
    /// The call as it was sent.
    sent: Map<String, Value>,
}

/// A turn.
enum Turn {
    Plain(Message),
    /// With its calls, and the results of them that follow.
    Calls(Message, Vec<(Call, Vec<Message>)>),
    /// Results of no call that is known.
    Results(Vec<Message>),
}

/// The messages as the template serves them, told of the tools if it does not tell of them itself.
pub(super) fn shape(messages: &[Message], tools: &[Value], form: &Form) -> Vec<Value> {
    let mut out = Shaped { form, messages: Vec::with_capacity(messages.len() + 1), is_result_last: false };
    let is_changed = form.system == Place::Content || !tools.is_empty() && form.tools != Tools::Template;
    let count = if is_changed { messages.iter().take_while(|message| message.role == "system").count() } else { 0 };
    let (system, rest) = messages.split_at(count);
    let mut system: Vec<String> = system.iter().map(|message| message.content.clone()).collect();
    if is_changed && !tools.is_empty() {
        match form.tools {
            Tools::Template => {}
            Tools::BesideSystem if system.is_empty() => system.push(String::new()),
            Tools::BesideSystem => {}
            Tools::Message => system.push(tools::described(tools)),
        }
    }
    let system = (!system.is_empty()).then(|| system.join("\n\n"));
    if let (Some(text), Place::Own) = (&system, form.system) {
        out.push(json!({"role": "system", "content": text}));
    }
    for turn in turns(rest) {
        match turn {
            Turn::Plain(message) => out.plain(&message),
            Turn::Calls(message, calls) => out.calls(message, &calls),
            Turn::Results(results) => out.written_results(&results.iter().collect::<Vec<_>>()),
        }
    }
    if let (Some(text), Place::Content) = (&system, form.system) {
        out.begin_with(text);
    }
    out.messages
}

/// The turns of a conversation: each call with its results, which are told by their ids, or by their order where there are none.
fn turns(messages: &[Message]) -> Vec<Turn> {
    let mut turns = Vec::new();
    let mut rest: VecDeque<&Message> = messages.iter().collect();
    let mut number = 0;
    while let Some(message) = rest.pop_front() {
        let calls = calls_of(message, &mut number);
        if message.role == "tool" || !calls.is_empty() {
            let mut results = Vec::new();
            let mut next = (message.role == "tool").then_some(message);
            while let Some(result) = next.take().or_else(|| rest.pop_front_if(|next| next.role == "tool")) {
                results.push(result.clone());
            }
            if calls.is_empty() {
                turns.push(Turn::Results(results));
            } else {
                let (calls, orphans) = answered(calls, results);
                turns.push(Turn::Calls(message.clone(), calls));
                if !orphans.is_empty() {
                    turns.push(Turn::Results(orphans));
                }
            }
        } else {
            let mut message = message.clone();
            // Some templates take an empty list for calls.
            message.tool_calls =
                message.tool_calls.filter(|calls| calls.as_array().is_none_or(|calls| !calls.is_empty()));
            turns.push(Turn::Plain(message));
        }
    }
    turns
}

/// The calls of a turn; one without an id is given one.
fn calls_of(message: &Message, number: &mut u64) -> Vec<Call> {
    let sent = message.tool_calls.as_ref().and_then(Value::as_array).into_iter().flatten();
    let call = |sent: &Value| {
        let sent = sent.as_object()?;
        let function = sent.get("function").and_then(Value::as_object).unwrap_or(sent);
        let name = function.get("name")?.as_str()?.to_owned();
        let arguments = match function.get("arguments") {
            Some(Value::String(text)) if !text.trim().is_empty() => text.clone(),
            Some(Value::String(_) | Value::Null) | None => "{}".to_owned(),
            Some(object) => object.to_string(),
        };
        *number += 1;
        let id = sent.get("id").and_then(Value::as_str).filter(|id| !id.is_empty());
        let id = id.map_or_else(|| format!("call{number:05}"), str::to_owned);
        Some(Call { id, name, arguments, sent: sent.clone() })
    };
    sent.filter_map(call).collect()
}

/// Calls with their results, and results of none of them.
fn answered(calls: Vec<Call>, results: Vec<Message>) -> (Vec<(Call, Vec<Message>)>, Vec<Message>) {
    let mut calls: Vec<(Call, Vec<Message>)> = calls.into_iter().map(|call| (call, Vec::new())).collect();
    let mut orphans = Vec::new();
    for result in results {
        let by_id = calls.iter().position(|(call, _)| Some(&call.id) == result.tool_call_id.as_ref());
        let is_open = |call: &Call| result.name.as_ref().is_none_or(|name| call.name == *name);
        let by_order = || calls.iter().position(|(call, results)| results.is_empty() && is_open(call));
        match by_id.or_else(by_order) {
            Some(at) => calls[at].1.push(result),
            None => orphans.push(result),
        }
    }
    (calls, orphans)
}

/// Messages in a template's form.
struct Shaped<'a> {
    form: &'a Form,
    messages: Vec<Value>,
    /// Whether the last message ends in results in a user's name.
    is_result_last: bool,
}

impl Shaped<'_> {
    fn push(&mut self, message: Value) {
        self.messages.push(message);
        self.is_result_last = false;
    }

    fn plain(&mut self, message: &Message) {
        if self.is_result_last && message.role == "user" {
            self.add_to_last("\n\n", &message.content);
            self.is_result_last = false;
            return;
        }
        self.push(value(message));
    }

    /// A turn's calls and their results.
    fn calls(&mut self, message: Message, calls: &[(Call, Vec<Message>)]) {
        let has_text = !message.content.is_empty();
        let is_written = self.form.calls == Place::Content
            || has_text && self.form.beside_text == Apart::Content
            || calls.len() > 1 && self.form.several == Apart::Content;
        if is_written {
            let mut parts: Vec<String> = Vec::with_capacity(calls.len() + 1);
            parts.extend(has_text.then(|| message.content.clone()));
            parts.extend(calls.iter().map(|(call, _)| tools::call(&call.name, &call.arguments)));
            self.push(value(&said(message, parts.join("\n"))));
            return self.results(calls);
        }
        let mut message = message;
        if has_text && self.form.beside_text == Apart::Turns {
            let text = std::mem::take(&mut message.content);
            self.push(value(&said(message.clone(), text)));
        }
        if calls.len() > 1 && self.form.several == Apart::Turns {
            for call in calls {
                self.turn(&message, std::slice::from_ref(call));
                message.content.clear();
            }
            return;
        }
        self.turn(&message, calls);
    }

    /// A turn whose calls the template writes, and the results.
    fn turn(&mut self, message: &Message, calls: &[(Call, Vec<Message>)]) {
        let mut turn = value(message);
        if message.content.is_empty()
            && let Some(fields) = turn.as_object_mut()
        {
            match self.form.content {
                Content::Empty => {}
                Content::Null => fields["content"] = Value::Null,
                Content::Absent => drop(fields.shift_remove("content")),
            }
        }
        turn["tool_calls"] = calls.iter().map(|(call, _)| self.call(call)).collect();
        self.push(turn);
        self.results(calls);
    }

    fn call(&self, call: &Call) -> Value {
        let parsed = serde_json::from_str(&call.arguments).ok().filter(Value::is_object);
        let arguments = match (self.form.arguments, parsed, self.form.other_arguments) {
            (Arguments::Object, Some(object), _) => object,
            (Arguments::Object, None, OtherArguments::Wrapped) => json!({"arguments": call.arguments}),
            _ => Value::from(call.arguments.as_str()),
        };
        let mut fields = call.sent.clone();
        fields.insert("id".to_owned(), self.id(&call.id).into());
        fields.insert("type".to_owned(), "function".into());
        // Some send the function's fields beside the call's.
        let mut function = fields.get("function").and_then(Value::as_object).cloned().unwrap_or_default();
        function.insert("name".to_owned(), call.name.as_str().into());
        function.insert("arguments".to_owned(), arguments);
        fields.insert("function".to_owned(), function.into());
        fields.into()
    }

    /// The results of calls, in the calls' order.
    fn results(&mut self, calls: &[(Call, Vec<Message>)]) {
        if self.form.results == Place::Content {
            let results: Vec<&Message> = calls.iter().flat_map(|(_, results)| results).collect();
            return self.written_results(&results);
        }
        for (call, results) in calls {
            for result in results {
                let mut message = result.clone();
                message.tool_call_id = Some(self.id(&call.id));
                message.name.get_or_insert_with(|| call.name.clone());
                self.push(value(&message));
            }
        }
    }

    fn written_results(&mut self, results: &[&Message]) {
        if results.is_empty() {
            return;
        }
        let text = tools::results(results.iter().map(|result| result.content.as_str()));
        // Two turns of a user's in a row would be one too many for templates whose roles must take turns.
        if self.messages.last().is_some_and(|last| last["role"] == "user") {
            self.add_to_last(if self.is_result_last { "\n" } else { "\n\n" }, &text);
        } else {
            self.push(json!({"role": "user", "content": text}));
        }
        self.is_result_last = true;
    }

    fn add_to_last(&mut self, between: &str, text: &str) {
        if let Some(Value::String(content)) = self.messages.last_mut().and_then(|last| last.get_mut("content")) {
            content.push_str(between);
            content.push_str(text);
        }
    }

    /// Puts a text at the head of the first turn of a user's.
    fn begin_with(&mut self, head: &str) {
        let first = self.messages.iter_mut().find(|message| message["role"] == "user");
        match first.and_then(|message| message.get_mut("content")) {
            Some(Value::String(content)) => content.insert_str(0, &format!("{head}\n\n")),
            _ => self.messages.insert(0, json!({"role": "user", "content": head})),
        }
    }

    fn id(&self, id: &str) -> String {
        let is_short = id.len() == ID_CHARS && id.chars().all(|c| c.is_ascii_alphanumeric());
        match self.form.ids {
            Ids::Short if !is_short => short_id(id),
            _ => id.to_owned(),
        }
    }
}

/// Nine letters and digits that are another id's: the same in every request, so that prompts have the same beginning.
fn short_id(id: &str) -> String {
    const DIGITS: &[u8; 62] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    // FNV-1a: what the standard library hashes by may change.
    let fold = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let mut hash = id.bytes().fold(0xcbf2_9ce4_8422_2325, fold);
    let mut digit = || {
        let digit = DIGITS[(hash % 62) as usize];
        hash /= 62;
        char::from(digit)
    };
    (0..ID_CHARS).map(|_| digit()).collect()
}

/// The turn as one that only says something.
fn said(mut turn: Message, text: String) -> Message {
    (turn.content, turn.tool_calls) = (text, None);
    turn
}

/// A message as templates know it.
pub(super) fn value(message: &Message) -> Value {
    serde_json::to_value(message).unwrap_or_default()
}
