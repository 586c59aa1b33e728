//! What an engine answers at its chat route, read: OpenAI's object, or the chunks of a stream, however they are cut. What
//! engines leave out or write otherwise than OpenAI does is put right here.

use std::collections::{BTreeMap, VecDeque};

use aihost_plugin_api::task::{FinishReason, LogprobEntry, TextEvent, TextFinish, TokenLogprob, Usage};
use serde::Deserialize;
use serde_json::Value;

use super::generate::TextUpdate;
use super::wire::new_id;
use crate::domain::{Failure, FailureKind, shown};

/// Most bytes of one event of a stream, and of an answer in one piece.
const EVENT_BYTES: usize = 64 << 20;

/// Reads one answer.
#[derive(Debug)]
pub(super) struct ChatReader {
    /// What has come and is not read yet: a line that is not whole, or the answer.
    rest: Vec<u8>,
    is_stream: bool,
    /// Data of the event that is not whole.
    data: Vec<u8>,
    choices: Vec<Reader>,
    /// The request's stop strings.
    stops: Vec<String>,
    updates: VecDeque<TextUpdate>,
    usage: Usage,
}

/// What is known of a choice.
#[derive(Clone, Debug, Default)]
struct Reader {
    /// Our number of each call, by the engine's, and by which id the engine knows it.
    calls: BTreeMap<u64, (u32, Option<String>)>,
    calls_begun: u32,
    has_ended: bool,
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<ChunkChoice>,
    usage: Option<ChunkUsage>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct ChunkChoice {
    #[serde(default)]
    index: usize,
    delta: Option<Said>,
    message: Option<Said>,
    logprobs: Option<Logprobs>,
    finish_reason: Option<String>,
    /// The stop string that ended it, as vLLM tells it.
    stop_reason: Option<Value>,
}

/// A message, or more of one.
#[derive(Default, Deserialize)]
struct Said {
    content: Option<Content>,
    reasoning_content: Option<String>,
    /// The same as some write it.
    reasoning: Option<String>,
    refusal: Option<String>,
    tool_calls: Option<Vec<SaidCall>>,
    function_call: Option<SaidFunction>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
struct Part {
    text: Option<String>,
}

#[derive(Deserialize)]
struct SaidCall {
    index: Option<u64>,
    id: Option<String>,
    function: Option<SaidFunction>,
}

#[derive(Deserialize)]
struct SaidFunction {
    name: Option<String>,
    /// Text; some write the object itself.
    arguments: Option<Value>,
}

#[derive(Deserialize)]
struct Logprobs {
    content: Option<Vec<Logprob>>,
}

#[derive(Deserialize)]
struct Logprob {
    #[serde(flatten)]
    chosen: Entry,
    #[serde(default)]
    top_logprobs: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    token: String,
    logprob: f32,
    bytes: Option<Vec<u8>>,
}

#[derive(Deserialize)]
struct ChunkUsage {
    prompt_tokens: Option<u32>,
    completion_tokens: Option<u32>,
    prompt_tokens_details: Option<PromptDetails>,
    completion_tokens_details: Option<AnswerDetails>,
}

#[derive(Deserialize)]
struct PromptDetails {
    cached_tokens: Option<u32>,
}

#[derive(Deserialize)]
struct AnswerDetails {
    reasoning_tokens: Option<u32>,
}

impl ChatReader {
    /// For an answer of so many choices, each of which ends before any of these.
    pub(super) fn new(is_stream: bool, choices: usize, stops: Vec<String>) -> Self {
        Self {
            rest: Vec::new(),
            is_stream,
            data: Vec::new(),
            choices: vec![Reader::default(); choices],
            stops,
            updates: VecDeque::new(),
            usage: Usage::default(),
        }
    }

    /// The next thing that happened to a choice.
    pub(super) fn next(&mut self) -> Option<TextUpdate> {
        self.updates.pop_front()
    }

    /// Tokens that it took, as far as the engine has told.
    pub(super) fn usage(&self) -> Usage {
        self.usage
    }

    /// More of it has come.
    pub(super) fn see(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.rest.extend_from_slice(bytes);
        if self.is_stream {
            let mut read = 0;
            while let Some(length) = memchr::memchr(b'\n', &self.rest[read..]) {
                let line = self.rest[read..read + length].trim_ascii_end().to_vec();
                read += length + 1;
                self.line(&line)?;
            }
            self.rest.drain(..read);
        }
        if self.rest.len() + self.data.len() > EVENT_BYTES {
            return Err(strange("more than it may send in one piece"));
        }
        Ok(())
    }

    /// No more of it comes.
    pub(super) fn end(&mut self) -> Result<(), Failure> {
        if !self.rest.is_empty() || !self.data.is_empty() {
            let rest = std::mem::take(&mut self.rest);
            if self.is_stream {
                self.line(rest.trim_ascii())?;
                self.line(b"")?;
            } else {
                self.data = rest;
                self.event()?;
            }
        }
        if self.choices.iter().any(|choice| !choice.has_ended) {
            return Err(strange("an answer that ends before its `finish_reason`"));
        }
        Ok(())
    }

    /// A line of server-sent events.
    fn line(&mut self, line: &[u8]) -> Result<(), Failure> {
        if line.is_empty() {
            return self.event();
        }
        if let Some(data) = line.strip_prefix(b"data:") {
            if !self.data.is_empty() {
                self.data.push(b'\n');
            }
            self.data.extend_from_slice(data.strip_prefix(b" ").unwrap_or(data));
        }
        Ok(())
    }

    fn event(&mut self) -> Result<(), Failure> {
        let data = std::mem::take(&mut self.data);
        if data.is_empty() || data == b"[DONE]" {
            return Ok(());
        }
        let chunk: Chunk = serde_json::from_slice(&data).map_err(|error| strange(&format!("no chat: {error}")))?;
        if let Some(error) = chunk.error.filter(|error| !error.is_null()) {
            let said = error["message"].as_str().or(error.as_str()).map_or_else(|| error.to_string(), str::to_owned);
            return Err(Failure::new(FailureKind::Unreachable, format!("the engine broke off: {}", shown(&said))));
        }
        if let Some(usage) = chunk.usage {
            let cached = usage.prompt_tokens_details.and_then(|details| details.cached_tokens);
            let reasoning = usage.completion_tokens_details.and_then(|details| details.reasoning_tokens);
            self.usage = Usage::default()
                .prompt_tokens(usage.prompt_tokens.unwrap_or_default())
                .completion_tokens(usage.completion_tokens.unwrap_or_default())
                .cached_tokens(cached.unwrap_or_default())
                .reasoning_tokens(reasoning.unwrap_or_default());
        }
        chunk.choices.into_iter().try_for_each(|choice| self.choice(choice))
    }

    fn choice(&mut self, choice: ChunkChoice) -> Result<(), Failure> {
        let index = choice.index;
        let Some(reader) = self.choices.get_mut(index).filter(|reader| !reader.has_ended) else {
            // Behind its end some say how many tokens it took, or nothing.
            return Ok(());
        };
        let mut push = |event| self.updates.push_back(TextUpdate::Event(index, event));
        let said = choice.delta.or(choice.message).unwrap_or_default();
        if let Some(text) = said.reasoning_content.or(said.reasoning).filter(|text| !text.is_empty()) {
            push(TextEvent::reasoning(text));
        }
        let logprobs = choice.logprobs.and_then(|logprobs| logprobs.content).unwrap_or_default();
        let text = said.content.map(Content::into_text).unwrap_or_default();
        if !text.is_empty() || !logprobs.is_empty() {
            push(TextEvent::text(text, logprobs.into_iter().map(Logprob::into_token).collect()));
        }
        if let Some(text) = said.refusal.filter(|text| !text.is_empty()) {
            push(TextEvent::refusal(text));
        }
        let older = said.function_call.map(|function| SaidCall { index: None, id: None, function: Some(function) });
        let calls = said.tool_calls.unwrap_or_default().into_iter().chain(older);
        for (place, call) in calls.enumerate() {
            reader.call(place as u64, call, &mut push);
        }
        if let Some(reason) = choice.finish_reason {
            reader.has_ended = true;
            let reason = match reason.as_str() {
                "length" | "max_tokens" => FinishReason::Length,
                "tool_calls" | "function_call" => FinishReason::ToolCalls,
                "content_filter" => FinishReason::ContentFilter,
                // Some say that they stopped, and have called.
                _ if reader.calls_begun > 0 => FinishReason::ToolCalls,
                _ => FinishReason::Stop,
            };
            let found = choice.stop_reason.as_ref().and_then(Value::as_str);
            let stop = found.and_then(|found| self.stops.iter().position(|stop| stop == found));
            let finish = TextFinish::new(reason).stop(stop.and_then(|stop| u32::try_from(stop).ok()));
            self.updates.push_back(TextUpdate::Finish(index, finish));
        }
        Ok(())
    }
}

impl Reader {
    fn call(&mut self, place: u64, call: SaidCall, push: &mut impl FnMut(TextEvent)) {
        let theirs = call.index.unwrap_or(place);
        let function = call.function.unwrap_or(SaidFunction { name: None, arguments: None });
        let known = self.calls.get(&theirs);
        // Some give every call the same number.
        let is_another = |id: &Option<String>| id.is_some() && call.id.is_some() && *id != call.id;
        let number = match known {
            Some((number, id)) if !is_another(id) => *number,
            _ => {
                let Some(name) = function.name.filter(|name| !name.is_empty()) else { return };
                let number = self.calls_begun;
                self.calls_begun += 1;
                let id = call.id.clone().filter(|id| !id.is_empty()).unwrap_or_else(|| new_id("call_"));
                self.calls.insert(theirs, (number, call.id));
                push(TextEvent::tool_call(number, id, name));
                number
            }
        };
        let fragment = match function.arguments {
            None | Some(Value::Null) => return,
            Some(Value::String(text)) if text.is_empty() => return,
            Some(Value::String(text)) => text,
            Some(object) => object.to_string(),
        };
        push(TextEvent::tool_arguments(number, fragment));
    }
}

impl Content {
    fn into_text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Parts(parts) => parts.into_iter().filter_map(|part| part.text).collect(),
        }
    }
}

impl Logprob {
    fn into_token(self) -> TokenLogprob {
        TokenLogprob::new(self.chosen.into_entry(), self.top_logprobs.into_iter().map(Entry::into_entry).collect())
    }
}

impl Entry {
    fn into_entry(self) -> LogprobEntry {
        LogprobEntry::new(self.bytes.unwrap_or_else(|| self.token.into_bytes()), self.logprob)
    }
}

fn strange(what: &str) -> Failure {
    Failure::new(FailureKind::Unreachable, format!("the engine sent {what}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(answer: &[u8], is_stream: bool, cuts: &[usize]) -> Result<(Vec<String>, Usage), Failure> {
        let mut reader = ChatReader::new(is_stream, 1, Vec::new());
        let mut updates = Vec::new();
        let mut rest = answer;
        for cut in cuts.iter().copied().chain([usize::MAX]) {
            let (now, later) = rest.split_at(cut.min(rest.len()));
            reader.see(now)?;
            rest = later;
            updates.extend(std::iter::from_fn(|| reader.next()).map(|update| format!("{update:?}")));
        }
        reader.end()?;
        updates.extend(std::iter::from_fn(|| reader.next()).map(|update| format!("{update:?}")));
        Ok((updates, reader.usage()))
    }

    const STREAM: &str = concat!(
        ": hello\r\n\r\n",
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\r\n\r\n",
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"reasoning_content\":\"hm\"}}],\"usage\":null}\n\n",
        "data:{\"choices\":[{\"index\":0,\"delta\":{\"content\":\"é\u{1f389}\"}}]}\n\n",
        "event: x\ndata: {\"choices\":[{\"index\":0,\ndata: \"delta\":{\"tool_calls\":[{\"index\":0,\"id\":\"c1\",\"function\":{\"name\":\"f\",\"arguments\":\"{\\\"a\"}}]}}]}\n\n",
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"tool_calls\":[{\"index\":0,\"function\":{\"arguments\":\"\\\":1}\"}}]}}]}\n\n",
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"tool_calls\":[{\"index\":0,\"id\":\"c2\",\"function\":{\"name\":\"g\",\"arguments\":{\"b\":2}}}]}}]}\n\n",
        "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":5,\"prompt_tokens_details\":{\"cached_tokens\":3},\"completion_tokens_details\":{\"reasoning_tokens\":2}}}\n\n",
        "data: [DONE]\n\n",
    );

    proptest! {
        #[test]
        fn a_stream_is_read_the_same_however_it_is_cut(cuts in prop::collection::vec(0usize..40, 0..80)) {
            let (updates, usage) = read(STREAM.as_bytes(), true, &cuts).unwrap();
            prop_assert_eq!(updates, [
                r#"Event(0, Reasoning { text: "hm" })"#,
                "Event(0, Text { text: \"é\u{1f389}\", logprobs: [] })",
                r#"Event(0, ToolCall { index: 0, id: "c1", name: "f" })"#,
                r#"Event(0, ToolArguments { index: 0, fragment: "{\"a" })"#,
                r#"Event(0, ToolArguments { index: 0, fragment: "\":1}" })"#,
                r#"Event(0, ToolCall { index: 1, id: "c2", name: "g" })"#,
                r#"Event(0, ToolArguments { index: 1, fragment: "{\"b\":2}" })"#,
                "Finish(0, TextFinish { reason: ToolCalls, usage: Usage { prompt_tokens: 0, completion_tokens: 0, cached_tokens: 0, reasoning_tokens: 0 }, stop: None })",
            ]);
            prop_assert_eq!(usage, Usage::default().prompt_tokens(7).completion_tokens(5).cached_tokens(3).reasoning_tokens(2));
        }

        #[test]
        fn nothing_that_an_engine_sends_makes_it_panic(answer in prop::collection::vec(any::<u8>(), 0..200), is_stream: bool) {
            let _read = read(&answer, is_stream, &[7]);
        }
    }

    #[test]
    fn an_object_is_read_as_its_stream_would_be() {
        let answer = br#"{"choices":[{"index":0,"message":{"role":"assistant","content":[{"type":"text","text":"a"}],"reasoning":"b"},
            "logprobs":{"content":[{"token":"a","logprob":-0.5,"bytes":[97],"top_logprobs":[]}]},"finish_reason":"length"}],"usage":{"prompt_tokens":1,"completion_tokens":2}}"#;
        let (updates, usage) = read(answer, false, &[3, 20]).unwrap();
        assert_eq!(updates.len(), 3, "{updates:?}");
        assert!(updates[0].contains("Reasoning") && updates[1].contains("-0.5") && updates[2].contains("Length"));
        assert_eq!((usage.prompt_tokens, usage.completion_tokens), (1, 2));
    }

    #[test]
    fn what_breaks_off_or_is_no_chat_is_said() {
        for (answer, wanted) in [
            ("data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"}}]}\n\n", "before its `finish_reason`"),
            ("data: {\"error\":{\"message\":\"out of blocks\"}}\n\n", "out of blocks"),
            ("data: <html>\n\n", "no chat"),
            ("", "before its `finish_reason`"),
        ] {
            let failure = read(answer.as_bytes(), true, &[]).unwrap_err();
            assert!(failure.message.contains(wanted), "{}", failure.message);
        }
    }
}
