//! What text endpoints answer: the object, or the chunks of a stream.

use std::collections::BTreeMap;

use aihost_plugin_api::task::{FinishReason, LogprobEntry, TextEvent, TextFinish, TokenLogprob, Usage};
use serde::Serialize;

use super::chunk::{Chunk, ChunkUsage, ChunkWriter};
use super::{TextDelivery, json, new_id};
use crate::domain::Failure;
use crate::http::sse;

/// Stands for minus infinity, which JSON lacks.
const MIN_LOGPROB: f32 = -9999.0;
/// `object` of a chunk of a chat.
const CHAT_CHUNK: &str = "chat.completion.chunk";
/// `object` of a completion, and of its chunks too.
const COMPLETION: &str = "text_completion";

/// How the answer of one request for text is written: the one thing in which the APIs differ once a request is read.
pub(in crate::http) trait TextShape: Send {
    /// The type of a streamed answer.
    fn content_type(&self) -> &'static str {
        sse::CONTENT_TYPE
    }
    /// A choice begins. Of the prompt's tokens is told what is known by now.
    fn open(&mut self, out: &mut Vec<u8>, index: usize, prompt: Usage);
    /// More of a choice.
    fn event(&mut self, out: &mut Vec<u8>, index: usize, event: &TextEvent);
    /// A choice ends.
    fn finish(&mut self, out: &mut Vec<u8>, index: usize, finish: TextFinish);
    /// All choices of a stream have ended.
    fn end(&mut self, out: &mut Vec<u8>, usage: Usage);
    /// A stream that has begun breaks.
    fn fail(&mut self, out: &mut Vec<u8>, failure: Failure) {
        sse::write_failure(out, failure);
        sse::write_done(out);
    }
    /// The answer in one piece.
    fn whole(&mut self, choices: &[Choice], usage: Usage) -> Vec<u8>;
}

/// A choice as far as it has come.
#[derive(Clone, Debug, Default)]
pub(in crate::http) struct Choice {
    pub(super) text: String,
    pub(super) reasoning: String,
    pub(super) refusal: String,
    pub(super) calls: Vec<ToolCall>,
    /// Where in `calls` the call with a number is.
    places: BTreeMap<u32, usize>,
    logprobs: Vec<TokenLogprob>,
    /// Characters at the beginning of the text whose tokens nobody told.
    untold: usize,
    /// Its end; `None` while it goes on.
    pub(in crate::http) finish: Option<TextFinish>,
}

impl Choice {
    /// Takes in an event.
    pub(in crate::http) fn add(&mut self, event: TextEvent) {
        match event {
            TextEvent::Text { text, logprobs, .. } => {
                self.text.push_str(&text);
                if self.logprobs.is_empty() && logprobs.is_empty() {
                    self.untold += text.chars().count();
                }
                self.logprobs.extend(logprobs);
            }
            TextEvent::Reasoning { text, .. } => self.reasoning.push_str(&text),
            TextEvent::Refusal { text, .. } => self.refusal.push_str(&text),
            TextEvent::ToolCall { index, id, name, .. } => {
                let function = FunctionCall { name, arguments: String::new() };
                self.places.insert(index, self.calls.len());
                self.calls.push(ToolCall { id, r#type: "function", function });
            }
            TextEvent::ToolArguments { index, fragment, .. } => {
                if let Some(call) = self.places.get(&index).and_then(|place| self.calls.get_mut(*place)) {
                    call.function.arguments.push_str(&fragment);
                }
            }
            _ => {}
        }
    }

    /// What it has come to, as events.
    pub(super) fn events(&self) -> Vec<TextEvent> {
        let mut events = vec![
            TextEvent::reasoning(self.reasoning.as_str()),
            TextEvent::text(self.text.as_str(), self.logprobs.clone()),
            TextEvent::refusal(self.refusal.as_str()),
        ];
        for (number, call) in (0..).zip(&self.calls) {
            events.push(TextEvent::tool_call(number, call.id.as_str(), call.function.name.as_str()));
            events.push(TextEvent::tool_arguments(number, call.function.arguments.as_str()));
        }
        events
    }

    fn reason(&self) -> Option<FinishReason> {
        self.finish.map(|finish| finish.reason)
    }
}

/// What the object and the chunks of one answer have in common.
#[derive(Debug)]
struct ReplyIdentity {
    id: String,
    created: u64,
    model: String,
    /// Whether a stream says how many tokens it took.
    tells_usage: bool,
}

impl ReplyIdentity {
    fn new(prefix: &str, model: &str, created: u64, delivery: TextDelivery) -> Self {
        let tells_usage = delivery == TextDelivery::StreamWithUsage;
        Self { id: new_id(prefix), created, model: model.to_owned(), tells_usage }
    }

    fn head<'a>(&'a self, object: &'a str) -> ReplyHead<'a> {
        ReplyHead { id: &self.id, object, created: self.created, model: &self.model }
    }

    fn chunks(&self, object: &str) -> ChunkWriter {
        ChunkWriter::new(self.head(object), if self.tells_usage { ChunkUsage::Later } else { ChunkUsage::Absent })
    }

    /// The last chunk, which has no choice, if it was asked for; and the end.
    fn end(&self, out: &mut Vec<u8>, object: &str, usage: Usage) {
        if self.tells_usage {
            let usage = ChunkUsage::Total(usage.into());
            sse::write_data(out, &Chunk::<()> { head: self.head(object), choices: &[], usage });
        }
        sse::write_done(out);
    }
}

/// `POST /v1/chat/completions`.
#[derive(Debug)]
pub(in crate::http) struct ChatShape {
    identity: ReplyIdentity,
    chunks: ChunkWriter,
    has_logprobs: bool,
}

impl ChatShape {
    pub(super) fn new(delivery: TextDelivery, has_logprobs: bool, model: &str, created: u64) -> Self {
        let identity = ReplyIdentity::new("chatcmpl-", model, created, delivery);
        let chunks = identity.chunks(CHAT_CHUNK);
        Self { identity, chunks, has_logprobs }
    }

    fn delta(&self, out: &mut Vec<u8>, index: usize, delta: &Delta<'_>) {
        self.chunks.write(out, &ChatChunkChoice { index, delta, logprobs: None, finish_reason: None });
    }
}

impl TextShape for ChatShape {
    fn open(&mut self, out: &mut Vec<u8>, index: usize, _prompt: Usage) {
        self.delta(out, index, &Delta::Role { role: "assistant", content: None });
    }

    fn event(&mut self, out: &mut Vec<u8>, index: usize, event: &TextEvent) {
        match event {
            TextEvent::Text { text, logprobs, .. } if !text.is_empty() || !logprobs.is_empty() => {
                let logprobs = self.has_logprobs.then(|| ChatLogprobs::from(logprobs.as_slice()));
                let delta = &Delta::Content { content: text };
                self.chunks.write(out, &ChatChunkChoice { index, delta, logprobs, finish_reason: None });
            }
            TextEvent::Reasoning { text, .. } if !text.is_empty() => {
                self.delta(out, index, &Delta::Reasoning { reasoning_content: text });
            }
            TextEvent::Refusal { text, .. } if !text.is_empty() => {
                self.delta(out, index, &Delta::Refusal { refusal: text });
            }
            TextEvent::ToolCall { index: at, id, name, .. } => {
                let function = FunctionDelta { name: Some(name), arguments: "" };
                let call = ToolCallDelta { index: *at, id: Some(id), r#type: Some("function"), function };
                self.delta(out, index, &Delta::Tools { tool_calls: [call] });
            }
            TextEvent::ToolArguments { index: at, fragment, .. } => {
                let function = FunctionDelta { name: None, arguments: fragment };
                let call = ToolCallDelta { index: *at, id: None, r#type: None, function };
                self.delta(out, index, &Delta::Tools { tool_calls: [call] });
            }
            _ => {}
        }
    }

    fn finish(&mut self, out: &mut Vec<u8>, index: usize, finish: TextFinish) {
        let delta = &Delta::End {};
        self.chunks.write(out, &ChatChunkChoice { index, delta, logprobs: None, finish_reason: Some(finish.reason) });
    }

    fn end(&mut self, out: &mut Vec<u8>, usage: Usage) {
        self.identity.end(out, CHAT_CHUNK, usage);
    }

    fn whole(&mut self, choices: &[Choice], usage: Usage) -> Vec<u8> {
        let choice = |(index, choice)| ChatChoice::new(index, choice, self.has_logprobs);
        json(&Reply {
            head: self.identity.head("chat.completion"),
            choices: choices.iter().enumerate().map(choice).collect::<Vec<_>>(),
            usage: UsageReply::from(usage),
        })
    }
}

/// `POST /v1/completions`.
#[derive(Debug)]
pub(in crate::http) struct CompletionShape {
    identity: ReplyIdentity,
    chunks: ChunkWriter,
    /// Alternatives asked for.
    logprobs: Option<u32>,
    echo: bool,
    /// What was written of each choice so far.
    written: Vec<Written>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Written {
    /// Characters of its tokens.
    chars: usize,
    /// Characters of its text.
    text: usize,
    tokens: usize,
    /// Whether it begins with a prompt whose tokens nobody told.
    is_behind_prompt: bool,
}

/// What a completion's answer follows from.
#[derive(Clone, Copy, Debug)]
pub(super) struct CompletionAsked {
    pub(super) delivery: TextDelivery,
    pub(super) choices: usize,
    /// Alternatives of each token.
    pub(super) logprobs: Option<u32>,
    /// Whether the answer begins with the prompt.
    pub(super) echo: bool,
}

impl CompletionShape {
    pub(super) fn new(asked: CompletionAsked, model: &str, created: u64) -> Self {
        let identity = ReplyIdentity::new("cmpl-", model, created, asked.delivery);
        Self {
            chunks: identity.chunks(COMPLETION),
            identity,
            logprobs: asked.logprobs,
            echo: asked.echo,
            written: vec![Written::default(); asked.choices],
        }
    }

    /// `untold`: characters at the beginning of the text whose tokens nobody told.
    fn logprobs(
        &mut self,
        index: usize,
        text: &str,
        untold: usize,
        tokens: &[TokenLogprob],
    ) -> Option<CompletionLogprobs> {
        let wanted = self.logprobs?;
        let mut written = self.written[index];
        written.text += text.chars().count();
        written.is_behind_prompt |= self.echo && untold > 0;
        written.chars += untold;
        let mut out = CompletionLogprobs { top_logprobs: (wanted > 0).then(Vec::new), ..Default::default() };
        for token in tokens {
            // Nothing comes before a prompt's first token, so it has no probability.
            let is_prompt_start = self.echo && written.tokens == 0 && !written.is_behind_prompt;
            out.tokens.push(token.chosen.token.clone());
            out.token_logprobs.push((!is_prompt_start).then(|| finite(token.chosen.logprob)));
            let top = || token.top.iter().map(|entry| (entry.token.clone(), finite(entry.logprob))).collect();
            if let Some(tops) = &mut out.top_logprobs {
                tops.push((!is_prompt_start).then(top).map(TopByToken));
            }
            // Of a plugin that names halves of characters by themselves, tokens have more characters than their text.
            out.text_offset.push(written.chars.min(written.text));
            written.chars += token.chosen.token.chars().count();
            written.tokens += 1;
        }
        self.written[index] = written;
        Some(out)
    }
}

impl TextShape for CompletionShape {
    fn open(&mut self, _out: &mut Vec<u8>, _index: usize, _prompt: Usage) {}

    fn event(&mut self, out: &mut Vec<u8>, index: usize, event: &TextEvent) {
        if let TextEvent::Text { text, logprobs, .. } = event
            && (!text.is_empty() || !logprobs.is_empty())
        {
            let untold = if logprobs.is_empty() && self.written[index].tokens == 0 { text.chars().count() } else { 0 };
            let logprobs = self.logprobs(index, text, untold, logprobs);
            self.chunks.write(out, &CompletionChoice { index, text, logprobs, finish_reason: None });
        }
    }

    fn finish(&mut self, out: &mut Vec<u8>, index: usize, finish: TextFinish) {
        let last = CompletionChoice { index, text: "", logprobs: None, finish_reason: Some(finish.reason) };
        self.chunks.write(out, &last);
    }

    fn end(&mut self, out: &mut Vec<u8>, usage: Usage) {
        self.identity.end(out, COMPLETION, usage);
    }

    fn whole(&mut self, choices: &[Choice], usage: Usage) -> Vec<u8> {
        let mut replies = Vec::with_capacity(choices.len());
        for (index, choice) in choices.iter().enumerate() {
            let logprobs = self.logprobs(index, &choice.text, choice.untold, &choice.logprobs);
            replies.push(CompletionChoice { index, text: &choice.text, logprobs, finish_reason: choice.reason() });
        }
        json(&Reply { head: self.identity.head(COMPLETION), choices: replies, usage: UsageReply::from(usage) })
    }
}

/// What an object and a chunk begin with.
#[derive(Clone, Copy, Serialize)]
pub(super) struct ReplyHead<'a> {
    pub(super) id: &'a str,
    pub(super) object: &'a str,
    pub(super) created: u64,
    pub(super) model: &'a str,
}

#[derive(Serialize)]
struct Reply<'a, T> {
    #[serde(flatten)]
    head: ReplyHead<'a>,
    choices: Vec<T>,
    usage: UsageReply,
}

#[derive(Serialize)]
struct ChatChunkChoice<'a> {
    index: usize,
    delta: &'a Delta<'a>,
    logprobs: Option<ChatLogprobs<'a>>,
    finish_reason: Option<FinishReason>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Delta<'a> {
    Role { role: &'a str, content: Option<&'a str> },
    Content { content: &'a str },
    Reasoning { reasoning_content: &'a str },
    Refusal { refusal: &'a str },
    Tools { tool_calls: [ToolCallDelta<'a>; 1] },
    End {},
}

#[derive(Serialize)]
struct ChatChoice<'a> {
    index: usize,
    message: ChatMessage<'a>,
    logprobs: Option<ChatLogprobs<'a>>,
    finish_reason: Option<FinishReason>,
}

impl<'a> ChatChoice<'a> {
    fn new(index: usize, choice: &'a Choice, has_logprobs: bool) -> Self {
        let refusal = (!choice.refusal.is_empty()).then_some(choice.refusal.as_str());
        let has_no_text = choice.text.is_empty() && (!choice.calls.is_empty() || refusal.is_some());
        let message = ChatMessage {
            role: "assistant",
            content: (!has_no_text).then_some(&choice.text),
            refusal,
            reasoning_content: (!choice.reasoning.is_empty()).then_some(&choice.reasoning),
            tool_calls: &choice.calls,
        };
        let logprobs = has_logprobs.then(|| ChatLogprobs::from(choice.logprobs.as_slice()));
        Self { index, message, logprobs, finish_reason: choice.reason() }
    }
}

#[derive(Serialize)]
struct ChatMessage<'a> {
    role: &'a str,
    content: Option<&'a str>,
    refusal: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    tool_calls: &'a [ToolCall],
}

/// A tool call that is all there.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ToolCall {
    pub(super) id: String,
    r#type: &'static str,
    pub(super) function: FunctionCall,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct FunctionCall {
    pub(super) name: String,
    pub(super) arguments: String,
}

/// A part of a tool call in a stream: the first has all but the arguments.
#[derive(Serialize)]
struct ToolCallDelta<'a> {
    index: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    r#type: Option<&'static str>,
    function: FunctionDelta<'a>,
}

#[derive(Serialize)]
struct FunctionDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    arguments: &'a str,
}

#[derive(Serialize)]
struct ChatLogprobs<'a> {
    content: Vec<ChatLogprob<'a>>,
    refusal: Option<&'a str>,
}

impl<'a> From<&'a [TokenLogprob]> for ChatLogprobs<'a> {
    fn from(tokens: &'a [TokenLogprob]) -> Self {
        let token = |token: &'a TokenLogprob| ChatLogprob {
            chosen: TopLogprob::from(&token.chosen),
            top_logprobs: token.top.iter().map(TopLogprob::from).collect(),
        };
        Self { content: tokens.iter().map(token).collect(), refusal: None }
    }
}

#[derive(Serialize)]
struct ChatLogprob<'a> {
    #[serde(flatten)]
    chosen: TopLogprob<'a>,
    top_logprobs: Vec<TopLogprob<'a>>,
}

#[derive(Serialize)]
struct TopLogprob<'a> {
    token: &'a str,
    logprob: f32,
    bytes: &'a [u8],
}

impl<'a> From<&'a LogprobEntry> for TopLogprob<'a> {
    fn from(entry: &'a LogprobEntry) -> Self {
        Self { token: &entry.token, logprob: finite(entry.logprob), bytes: &entry.bytes }
    }
}

#[derive(Serialize)]
struct CompletionChoice<'a> {
    index: usize,
    text: &'a str,
    logprobs: Option<CompletionLogprobs>,
    finish_reason: Option<FinishReason>,
}

#[derive(Debug, Default, Serialize)]
struct CompletionLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    /// `null` where no alternatives were asked for.
    top_logprobs: Option<Vec<Option<TopByToken>>>,
    text_offset: Vec<usize>,
}

/// Alternatives by their text, likeliest first.
#[derive(Debug)]
struct TopByToken(Vec<(String, f32)>);

impl Serialize for TopByToken {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(token, logprob)| (token, logprob)))
    }
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct UsageReply {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u32,
    prompt_tokens_details: PromptDetails,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct PromptDetails {
    cached_tokens: u32,
}

impl From<Usage> for UsageReply {
    fn from(usage: Usage) -> Self {
        Self {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            total_tokens: usage.prompt_tokens.saturating_add(usage.completion_tokens),
            prompt_tokens_details: PromptDetails { cached_tokens: usage.cached_tokens },
        }
    }
}

pub(super) fn finite(logprob: f32) -> f32 {
    if logprob.is_nan() { MIN_LOGPROB } else { logprob.clamp(MIN_LOGPROB, 0.0) }
}
