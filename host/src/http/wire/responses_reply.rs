//! What `POST /v1/responses` answers: the object, or the events by which it comes to be.

use std::collections::BTreeMap;
use std::sync::Arc;

use aihost_plugin_api::task::{FinishReason, TextEvent, TextFinish, TokenLogprob, Usage};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::json_text::raw;
use super::reply::{Choice, TextShape, finite};
use super::responses::Namespaces;
use super::translated::JsonItems;
use super::{json as to_json, new_id};
use crate::domain::Failure;
use crate::http::app::unix_seconds;
use crate::http::conversations::Conversations;
use crate::http::error::ApiError;
use crate::http::sse;

/// The status of an item that is being made.
const IN_PROGRESS: &str = "in_progress";

/// Where a conversation is kept once it has been answered.
pub(super) struct Saving {
    pub(super) conversations: Arc<Conversations>,
    /// The key it was asked with.
    pub(super) key: Option<String>,
    /// All turns before the answer.
    pub(super) history: JsonItems,
}

/// What an answer follows from.
pub(super) struct ResponsesAsked {
    pub(super) id: String,
    /// What it says of its request.
    pub(super) reply: Reply,
    pub(super) has_logprobs: bool,
    pub(super) thoughts: ThoughtsAs,
    /// Where it is kept, if it is.
    pub(super) saving: Option<Saving>,
    pub(super) namespaces: Namespaces,
}

/// As what the model's thoughts are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ThoughtsAs {
    /// The content of their item, as models with open weights have it.
    Content,
    /// Its summary, which is all that OpenAI's own clients read.
    Summary,
}

impl ThoughtsAs {
    /// The type of a part of them.
    fn part(self) -> &'static str {
        match self {
            Self::Content => "reasoning_text",
            Self::Summary => "summary_text",
        }
    }

    /// The field that numbers the parts.
    fn number(self) -> &'static str {
        match self {
            Self::Content => "content_index",
            Self::Summary => "summary_index",
        }
    }

    /// The name of the event of a part.
    fn part_event(self, verb: &str) -> String {
        match self {
            Self::Content => format!("response.content_part.{verb}"),
            Self::Summary => format!("response.reasoning_summary_part.{verb}"),
        }
    }

    /// The name of the event of a part's text.
    fn text_event(self, verb: &str) -> String {
        match self {
            Self::Content => format!("response.reasoning_text.{verb}"),
            Self::Summary => format!("response.reasoning_summary_text.{verb}"),
        }
    }
}

/// A response as far as it has come: its fields in order.
#[derive(Debug, Default)]
pub(super) struct Reply(Vec<(&'static str, Box<RawValue>)>);

impl Reply {
    /// Sets a field, which stays where it is.
    pub(super) fn set(&mut self, key: &'static str, value: &impl Serialize) {
        let value = raw(value);
        match self.0.iter_mut().find(|(known, _)| *known == key) {
            Some((_, old)) => *old = value,
            None => self.0.push((key, value)),
        }
    }
}

impl Serialize for Reply {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

/// `POST /v1/responses`.
pub(super) struct ResponsesShape {
    id: String,
    /// The response as far as it has come.
    reply: Reply,
    has_logprobs: bool,
    thoughts: ThoughtsAs,
    saving: Option<Saving>,
    namespaces: Namespaces,
    events: u64,
    items: Vec<Item>,
    /// Tokens that are not shown, before there is a message that they could be told with.
    unsaid: Vec<TokenLogprob>,
    /// Where in `items` each call is.
    calls: BTreeMap<u32, usize>,
    finish: Option<FinishReason>,
}

/// An item of the output.
struct Item {
    id: String,
    status: &'static str,
    of: ItemOf,
}

enum ItemOf {
    Reasoning {
        text: String,
    },
    Message {
        parts: Vec<Part>,
    },
    Call {
        call_id: String,
        /// What the model knows it as.
        known: String,
        name: String,
        namespace: Option<String>,
        arguments: String,
    },
}

/// A part of a message.
struct Part {
    is_refusal: bool,
    text: String,
    logprobs: Vec<Value>,
}

impl ResponsesShape {
    pub(super) fn new(asked: ResponsesAsked, model: &str, created: u64) -> Self {
        let ResponsesAsked { id, mut reply, has_logprobs, thoughts, saving, namespaces } = asked;
        reply.set("model", &model);
        reply.set("created_at", &created);
        Self {
            id,
            reply,
            has_logprobs,
            thoughts,
            saving,
            namespaces,
            events: 0,
            items: Vec::new(),
            unsaid: Vec::new(),
            calls: BTreeMap::new(),
            finish: None,
        }
    }

    /// Whether a message is being said.
    fn is_speaking(&self) -> bool {
        self.items.iter().any(|item| item.is_open() && matches!(item.of, ItemOf::Message { .. }))
    }

    /// Appends an event with its type, its number and this.
    fn emit(&mut self, out: &mut Vec<u8>, kind: &str, mut data: Value) {
        data["type"] = kind.into();
        data["sequence_number"] = self.events.into();
        self.events += 1;
        sse::write_event(out, kind, &data);
    }

    /// Appends an event that tells the response as it is now.
    fn emit_response(&mut self, out: &mut Vec<u8>, kind: &str) {
        #[derive(Serialize)]
        struct ResponseEvent<'a> {
            r#type: &'a str,
            sequence_number: u64,
            response: &'a Reply,
        }
        let event = ResponseEvent { r#type: kind, sequence_number: self.events, response: &self.reply };
        sse::write_event(out, kind, &event);
        self.events += 1;
    }

    /// Appends an event of an item.
    fn emit_of(&mut self, out: &mut Vec<u8>, at: usize, kind: &str, mut data: Value) {
        data["output_index"] = at.into();
        data["item_id"] = self.items[at].id.as_str().into();
        self.emit(out, kind, data);
    }

    /// Begins an item behind those that are done by now.
    fn begin(&mut self, out: &mut Vec<u8>, prefix: &str, of: ItemOf) -> usize {
        let at = self.items.len();
        self.items.push(Item { id: new_id(prefix), status: IN_PROGRESS, of });
        let item = self.items[at].json(self.thoughts);
        self.emit(out, "response.output_item.added", json!({"output_index": at, "item": item}));
        at
    }

    /// The item that is being said, which is this kind of item's; what was said before is done.
    fn saying(&mut self, out: &mut Vec<u8>, is_reasoning: bool) -> usize {
        let last = self.items.iter().rposition(|item| item.is_open() && !matches!(item.of, ItemOf::Call { .. }));
        if let Some(at) = last {
            if matches!(self.items[at].of, ItemOf::Reasoning { .. }) == is_reasoning {
                return at;
            }
            self.close(out, at);
        }
        if is_reasoning {
            let at = self.begin(out, "rs_", ItemOf::Reasoning { text: String::new() });
            self.tell_thought_part(out, at, "added", "");
            return at;
        }
        self.begin(out, "msg_", ItemOf::Message { parts: Vec::new() })
    }

    fn think(&mut self, out: &mut Vec<u8>, more: &str) {
        let at = self.saying(out, true);
        if let ItemOf::Reasoning { text } = &mut self.items[at].of {
            text.push_str(more);
        }
        let data = json!({self.thoughts.number(): 0, "delta": more});
        self.emit_of(out, at, &self.thoughts.text_event("delta"), data);
    }

    /// Appends an event of the only part that thoughts have.
    fn tell_thought_part(&mut self, out: &mut Vec<u8>, at: usize, verb: &str, text: &str) {
        let part = json!({"type": self.thoughts.part(), "text": text});
        let data = json!({self.thoughts.number(): 0, "part": part});
        self.emit_of(out, at, &self.thoughts.part_event(verb), data);
    }

    fn say(&mut self, out: &mut Vec<u8>, is_refusal: bool, more: &str, tokens: &[TokenLogprob]) {
        let at = self.saying(out, false);
        let ItemOf::Message { parts } = &self.items[at].of else { return };
        let number = match parts.last() {
            Some(last) if last.is_refusal == is_refusal => parts.len() - 1,
            last => {
                let is_behind = last.is_some();
                if is_behind {
                    self.close_part(out, at);
                }
                self.open_part(out, at, is_refusal)
            }
        };
        let logprobs: Vec<Value> = if self.has_logprobs { tokens.iter().map(logprob).collect() } else { Vec::new() };
        if let ItemOf::Message { parts } = &mut self.items[at].of {
            parts[number].text.push_str(more);
            parts[number].logprobs.extend(logprobs.iter().cloned());
        }
        if is_refusal {
            self.emit_of(out, at, "response.refusal.delta", json!({"content_index": number, "delta": more}));
        } else {
            let data = json!({"content_index": number, "delta": more, "logprobs": logprobs});
            self.emit_of(out, at, "response.output_text.delta", data);
        }
    }

    fn open_part(&mut self, out: &mut Vec<u8>, at: usize, is_refusal: bool) -> usize {
        let ItemOf::Message { parts } = &mut self.items[at].of else { return 0 };
        parts.push(Part { is_refusal, text: String::new(), logprobs: Vec::new() });
        let number = parts.len() - 1;
        let part = parts[number].json();
        self.emit_of(out, at, "response.content_part.added", json!({"content_index": number, "part": part}));
        number
    }

    /// The last part of a message is done.
    fn close_part(&mut self, out: &mut Vec<u8>, at: usize) {
        let ItemOf::Message { parts } = &self.items[at].of else { return };
        let Some(part) = parts.last() else { return };
        let (number, text) = (parts.len() - 1, part.text.clone());
        let (json, is_refusal, logprobs) = (part.json(), part.is_refusal, part.logprobs.clone());
        if is_refusal {
            self.emit_of(out, at, "response.refusal.done", json!({"content_index": number, "refusal": text}));
        } else {
            let data = json!({"content_index": number, "text": text, "logprobs": logprobs});
            self.emit_of(out, at, "response.output_text.done", data);
        }
        self.emit_of(out, at, "response.content_part.done", json!({"content_index": number, "part": json}));
    }

    fn call(&mut self, out: &mut Vec<u8>, number: u32, call_id: &str, name: &str) {
        if let Some(at) = self.items.iter().rposition(|item| item.is_open() && !matches!(item.of, ItemOf::Call { .. }))
        {
            self.close(out, at);
        }
        let (namespace, own) = self.namespaces.of(name).unzip();
        let call = ItemOf::Call {
            call_id: call_id.to_owned(),
            known: name.to_owned(),
            name: own.unwrap_or(name).to_owned(),
            namespace: namespace.map(str::to_owned),
            arguments: String::new(),
        };
        let at = self.begin(out, "fc_", call);
        self.calls.insert(number, at);
    }

    fn argue(&mut self, out: &mut Vec<u8>, number: u32, fragment: &str) {
        let Some(at) = self.calls.get(&number).copied() else { return };
        if let ItemOf::Call { arguments, .. } = &mut self.items[at].of {
            arguments.push_str(fragment);
        }
        self.emit_of(out, at, "response.function_call_arguments.delta", json!({"delta": fragment}));
    }

    /// An item is done.
    fn close(&mut self, out: &mut Vec<u8>, at: usize) {
        match &self.items[at].of {
            ItemOf::Message { .. } => self.close_part(out, at),
            ItemOf::Reasoning { text } => {
                let text = text.clone();
                let data = json!({self.thoughts.number(): 0, "text": text});
                self.emit_of(out, at, &self.thoughts.text_event("done"), data);
                self.tell_thought_part(out, at, "done", &text);
            }
            ItemOf::Call { arguments, name, .. } => {
                let data = json!({"arguments": whole(arguments), "name": name});
                self.emit_of(out, at, "response.function_call_arguments.done", data);
            }
        }
        // What was cut is what was said last.
        let is_cut = matches!(self.finish, Some(FinishReason::Length | FinishReason::ContentFilter));
        self.items[at].status = if is_cut && at + 1 == self.items.len() { "incomplete" } else { "completed" };
        let item = self.items[at].json(self.thoughts);
        self.emit(out, "response.output_item.done", json!({"output_index": at, "item": item}));
    }

    /// The last word: what it came to. The name of the event that tells it.
    fn conclude(&mut self, usage: Usage) -> &'static str {
        let (status, incomplete) = match self.finish {
            Some(FinishReason::Length) => ("incomplete", json!({"reason": "max_output_tokens"})),
            Some(FinishReason::ContentFilter) => ("incomplete", json!({"reason": "content_filter"})),
            _ => ("completed", Value::Null),
        };
        self.reply.set("output", &self.output());
        let total = usage.prompt_tokens.saturating_add(usage.completion_tokens);
        for (key, value) in [
            ("status", status.into()),
            ("incomplete_details", incomplete),
            ("completed_at", if status == "completed" { unix_seconds().into() } else { Value::Null }),
            (
                "usage",
                json!({
                    "input_tokens": usage.prompt_tokens,
                    "input_tokens_details": {"cached_tokens": usage.cached_tokens},
                    "output_tokens": usage.completion_tokens,
                    "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
                    "total_tokens": total,
                }),
            ),
        ] {
            self.reply.set(key, &value);
        }
        if let Some(Saving { conversations, key, mut history }) = self.saving.take() {
            if let Some(turn) = self.turn() {
                history.add(&turn);
            }
            conversations.keep(key, &self.id, &history.array(), to_json(&self.reply));
        }
        if status == "completed" { "response.completed" } else { "response.incomplete" }
    }

    fn output(&self) -> Vec<Value> {
        self.items.iter().map(|item| item.json(self.thoughts)).collect()
    }

    /// What was said, as a turn of the conversation that it goes on in.
    fn turn(&self) -> Option<Value> {
        let (mut text, mut calls, mut thought) = (String::new(), Vec::new(), String::new());
        for item in &self.items {
            match &item.of {
                ItemOf::Reasoning { text } => thought.push_str(text),
                ItemOf::Message { parts } => parts.iter().for_each(|part| text.push_str(&part.text)),
                ItemOf::Call { call_id, known, arguments, .. } => {
                    let function = json!({"name": known, "arguments": whole(arguments)});
                    calls.push(json!({"id": call_id, "type": "function", "function": function}));
                }
            }
        }
        if self.items.is_empty() {
            return None;
        }
        let mut turn = json!({"role": "assistant", "content": text});
        if !calls.is_empty() {
            turn["tool_calls"] = calls.into();
        }
        if !thought.is_empty() {
            turn["reasoning_content"] = thought.into();
        }
        Some(turn)
    }
}

impl TextShape for ResponsesShape {
    fn open(&mut self, out: &mut Vec<u8>, _index: usize, _prompt: Usage) {
        for kind in ["response.created", "response.in_progress"] {
            self.emit_response(out, kind);
        }
    }

    fn event(&mut self, out: &mut Vec<u8>, _index: usize, event: &TextEvent) {
        match event {
            // What is not shown has no place before there is a message.
            TextEvent::Text { text, logprobs, .. } if text.is_empty() && !self.is_speaking() => {
                self.unsaid.extend(logprobs.iter().cloned());
            }
            TextEvent::Text { text, logprobs, .. } if !text.is_empty() || !logprobs.is_empty() => {
                let logprobs = [std::mem::take(&mut self.unsaid), logprobs.clone()].concat();
                self.say(out, false, text, &logprobs);
            }
            TextEvent::Refusal { text, .. } if !text.is_empty() => self.say(out, true, text, &[]),
            TextEvent::Reasoning { text, .. } if !text.is_empty() => self.think(out, text),
            TextEvent::ToolCall { index, id, name, .. } => self.call(out, *index, id, name),
            TextEvent::ToolArguments { index, fragment, .. } => self.argue(out, *index, fragment),
            _ => {}
        }
    }

    fn finish(&mut self, out: &mut Vec<u8>, _index: usize, finish: TextFinish) {
        self.finish = Some(finish.reason);
        for at in 0..self.items.len() {
            if self.items[at].is_open() {
                self.close(out, at);
            }
        }
    }

    fn end(&mut self, out: &mut Vec<u8>, usage: Usage) {
        let kind = self.conclude(usage);
        self.emit_response(out, kind);
    }

    fn fail(&mut self, out: &mut Vec<u8>, failure: Failure) {
        let error = ApiError::from(failure);
        let (code, message) = (error.code_name().into_owned(), error.message());
        self.emit(out, "error", json!({"code": code, "message": message, "param": error.param_name()}));
        self.reply.set("status", &"failed");
        self.reply.set("error", &json!({"code": "server_error", "message": message}));
        for item in self.items.iter_mut().filter(|item| item.is_open()) {
            item.status = "incomplete";
        }
        self.reply.set("output", &self.output());
        self.emit_response(out, "response.failed");
    }

    fn whole(&mut self, choices: &[Choice], usage: Usage) -> Vec<u8> {
        let mut unsent = Vec::new();
        for choice in choices {
            for event in choice.events() {
                self.event(&mut unsent, 0, &event);
                unsent.clear();
            }
            if let Some(finish) = choice.finish {
                self.finish(&mut unsent, 0, finish);
            }
        }
        self.conclude(usage);
        to_json(&self.reply)
    }
}

impl Item {
    fn is_open(&self) -> bool {
        self.status == IN_PROGRESS
    }

    fn json(&self, thoughts: ThoughtsAs) -> Value {
        let status = self.status;
        match &self.of {
            ItemOf::Reasoning { text } => {
                let parts: &[Value] =
                    if text.is_empty() { &[] } else { &[json!({"type": thoughts.part(), "text": text})] };
                let (summary, content): (&[Value], &[Value]) = match thoughts {
                    ThoughtsAs::Content => (&[], parts),
                    ThoughtsAs::Summary => (parts, &[]),
                };
                json!({"id": self.id, "type": "reasoning", "summary": summary, "content": content, "encrypted_content": null, "status": status})
            }
            ItemOf::Message { parts } => {
                let content: Vec<Value> = parts.iter().map(Part::json).collect();
                json!({"id": self.id, "type": "message", "role": "assistant", "status": status, "content": content})
            }
            ItemOf::Call { call_id, name, namespace, arguments, .. } => {
                // While it is made it has what has come of it.
                let arguments = if self.is_open() { arguments } else { whole(arguments) };
                let mut item = json!({
                    "id": self.id, "type": "function_call", "call_id": call_id, "name": name, "arguments": arguments,
                    "status": status,
                });
                if let Some(namespace) = namespace {
                    item["namespace"] = namespace.as_str().into();
                }
                item
            }
        }
    }
}

impl Part {
    fn json(&self) -> Value {
        if self.is_refusal {
            json!({"type": "refusal", "refusal": self.text})
        } else {
            json!({"type": "output_text", "text": self.text, "annotations": [], "logprobs": self.logprobs})
        }
    }
}

/// The arguments of a call, which are an object even where there are none.
fn whole(arguments: &str) -> &str {
    if arguments.is_empty() { "{}" } else { arguments }
}

fn logprob(token: &TokenLogprob) -> Value {
    let entry = |entry: &aihost_plugin_api::task::LogprobEntry| json!({"token": entry.token, "logprob": finite(entry.logprob), "bytes": entry.bytes});
    let mut json = entry(&token.chosen);
    json["top_logprobs"] = token.top.iter().map(entry).collect();
    json
}
