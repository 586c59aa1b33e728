//! What Ollama's `POST /api/chat` and `POST /api/generate` answer: one object, or one a line.

use std::time::Instant;

use aihost_plugin_api::task::{FinishReason, TextEvent, TextFinish, Usage};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::reply::{Choice, TextShape};
use super::{json as to_json, write_json};
use crate::domain::Failure;
use crate::http::error::ApiError;

/// The type of an answer of one object a line.
const NDJSON: &str = "application/x-ndjson";

/// Which of the two routes answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OllamaRoute {
    Chat,
    Generate,
}

/// An answer of either.
pub(super) struct OllamaShape {
    route: OllamaRoute,
    model: String,
    begun: Instant,
    /// When the first of it came.
    first: Option<Instant>,
    /// Calls as far as they have come: they are told whole.
    calls: Vec<(u32, String, String)>,
    finish: Option<FinishReason>,
}

/// What a line, or the one object, says.
#[derive(Default)]
struct Said<'a> {
    content: &'a str,
    thinking: &'a str,
    calls: Vec<Value>,
}

impl OllamaShape {
    pub(super) fn new(route: OllamaRoute, model: &str) -> Self {
        let model = model.to_owned();
        Self { route, model, begun: Instant::now(), first: None, calls: Vec::new(), finish: None }
    }

    fn object(&self, said: Said<'_>, done: bool) -> Value {
        let mut object = json!({"model": self.model, "created_at": Timestamp::now().to_string()});
        let is_empty = said.content.is_empty() && (!said.thinking.is_empty() || !said.calls.is_empty());
        let of_message = |object: &mut Value, name: &str| {
            object[name] = if is_empty { "".into() } else { said.content.into() };
            if !said.thinking.is_empty() {
                object["thinking"] = said.thinking.into();
            }
            if !said.calls.is_empty() {
                object["tool_calls"] = said.calls.clone().into();
            }
        };
        match self.route {
            OllamaRoute::Chat => {
                let mut message = json!({"role": "assistant"});
                of_message(&mut message, "content");
                object["message"] = message;
            }
            OllamaRoute::Generate => of_message(&mut object, "response"),
        }
        object["done"] = done.into();
        object
    }

    fn line(&mut self, out: &mut Vec<u8>, said: Said<'_>) {
        let object = self.object(said, false);
        write_json(out, &object);
        out.push(b'\n');
    }

    /// Calls that are whole by now.
    fn take_calls(&mut self) -> Vec<Value> {
        std::mem::take(&mut self.calls).iter().map(|(_, name, arguments)| call(name, arguments)).collect()
    }

    /// The end of an answer, with how long all took, in nanoseconds.
    fn conclude(&self, mut object: Value, usage: Usage) -> Value {
        let reason = if self.finish == Some(FinishReason::Length) { "length" } else { "stop" };
        let nanoseconds = |duration: std::time::Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let (total, before) =
            (self.begun.elapsed(), self.first.map_or_else(|| self.begun.elapsed(), |first| first - self.begun));
        object["done"] = true.into();
        object["done_reason"] = reason.into();
        object["total_duration"] = nanoseconds(total).into();
        object["load_duration"] = 0.into();
        object["prompt_eval_count"] = usage.prompt_tokens.into();
        object["prompt_eval_duration"] = nanoseconds(before).into();
        object["eval_count"] = usage.completion_tokens.into();
        object["eval_duration"] = nanoseconds(total.saturating_sub(before)).into();
        object
    }
}

impl TextShape for OllamaShape {
    fn content_type(&self) -> &'static str {
        NDJSON
    }

    fn open(&mut self, _out: &mut Vec<u8>, _index: usize, _prompt: Usage) {}

    fn event(&mut self, out: &mut Vec<u8>, _index: usize, event: &TextEvent) {
        self.first.get_or_insert_with(Instant::now);
        match event {
            TextEvent::Text { text, .. } | TextEvent::Refusal { text, .. } if !text.is_empty() => {
                self.line(out, Said { content: text, ..Said::default() });
            }
            TextEvent::Reasoning { text, .. } if !text.is_empty() => {
                self.line(out, Said { thinking: text, ..Said::default() });
            }
            TextEvent::ToolCall { index, name, .. } => self.calls.push((*index, name.clone(), String::new())),
            TextEvent::ToolArguments { index, fragment, .. } => {
                if let Some((.., arguments)) = self.calls.iter_mut().rfind(|(number, ..)| number == index) {
                    arguments.push_str(fragment);
                }
            }
            _ => {}
        }
    }

    fn finish(&mut self, out: &mut Vec<u8>, _index: usize, finish: TextFinish) {
        self.finish = Some(finish.reason);
        let calls = self.take_calls();
        if !calls.is_empty() {
            self.line(out, Said { calls, ..Said::default() });
        }
    }

    fn end(&mut self, out: &mut Vec<u8>, usage: Usage) {
        let last = self.conclude(self.object(Said::default(), true), usage);
        write_json(out, &last);
        out.push(b'\n');
    }

    fn fail(&mut self, out: &mut Vec<u8>, failure: Failure) {
        write_json(out, &json!({"error": ApiError::from(failure).message()}));
        out.push(b'\n');
    }

    fn whole(&mut self, choices: &[Choice], usage: Usage) -> Vec<u8> {
        let none = Choice::default();
        let choice = choices.first().unwrap_or(&none);
        self.finish = choice.finish.map(|finish| finish.reason);
        let text = [choice.text.as_str(), &choice.refusal].concat();
        let calls = choice.calls.iter().map(|made| call(&made.function.name, &made.function.arguments)).collect();
        let said = Said { content: &text, thinking: &choice.reasoning, calls };
        to_json(&self.conclude(self.object(said, true), usage))
    }
}

fn call(name: &str, arguments: &str) -> Value {
    // Arguments that are no JSON are the model's: Ollama has no place for them.
    let arguments: Value = serde_json::from_str(arguments).unwrap_or_else(|_| json!({}));
    json!({"function": {"name": name, "arguments": arguments}})
}
