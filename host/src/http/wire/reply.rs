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
    /// Where in the text each of them begins.
    offsets: Vec<usize>,
    /// Characters of the text.
    chars: usize,
    /// Whether it begins with what nobody told the tokens of.
    has_untold: bool,
    /// Its end; `None` while it goes on.
    pub(in crate::http) finish: Option<TextFinish>,
}

impl Choice {
    /// Takes in an event.
    pub(in crate::http) fn add(&mut self, event: TextEvent) {
        match event {
            TextEvent::Text { text, logprobs, .. } => {
                self.has_untold |= self.logprobs.is_empty() && logprobs.is_empty() && !text.is_empty();
                self.chars += push_offsets(&mut self.offsets, self.chars, &text, &logprobs);
                self.text.push_str(&text);
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

/// Where in a text each token of its next piece begins, of which there were so many characters before. How many the piece has.
fn push_offsets(offsets: &mut Vec<usize>, before: usize, piece: &str, tokens: &[TokenLogprob]) -> usize {
    let bytes = || tokens.iter().flat_map(|token| token.chosen.bytes.iter().copied());
    if !piece.is_empty() && bytes().eq(piece.bytes()) {
        let (mut chars, mut starts) = (0, piece.bytes().map(is_char_start));
        for token in tokens {
            // One that goes on with a character begins where that does.
            let mut own = starts.by_ref().take(token.chosen.bytes.len()).peekable();
            let goes_on = own.peek() == Some(&false);
            offsets.push(before + chars - usize::from(goes_on && chars > 0));
            chars += own.filter(|is_start| *is_start).count();
        }
        return chars;
    }
    // Of a plugin that names halves of characters by themselves, or whose tokens are not all shown, tokens have more
    // characters than their text.
    let (shown, mut chars) = (piece.chars().count(), 0);
    for token in tokens {
        offsets.push(before + shown.min(chars));
        chars += token.chosen.token.chars().count();
    }
    shown
}

fn is_char_start(byte: u8) -> bool {
    byte & 0b1100_0000 != 0b1000_0000
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
    calls: CallsAs,
}

/// What a chat's answer follows from.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChatAsked {
    pub(super) delivery: TextDelivery,
    pub(super) has_logprobs: bool,
    pub(super) calls: CallsAs,
}

/// As what calls are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CallsAs {
    /// `tool_calls`, as many as there are.
    Tools,
    /// `function_call`, which is the first, for those who sent `functions`.
    Function,
}

impl CallsAs {
    /// Why an answer ended, as its client reads it.
    fn reason(self, reason: FinishReason) -> &'static str {
        match reason {
            FinishReason::Length => "length",
            FinishReason::ToolCalls if self == Self::Function => "function_call",
            FinishReason::ToolCalls => "tool_calls",
            FinishReason::ContentFilter => "content_filter",
            _ => "stop",
        }
    }
}

impl ChatShape {
    pub(super) fn new(asked: ChatAsked, model: &str, created: u64) -> Self {
        let ChatAsked { delivery, has_logprobs, calls } = asked;
        let identity = ReplyIdentity::new("chatcmpl-", model, created, delivery);
        let chunks = identity.chunks(CHAT_CHUNK);
        Self { identity, chunks, has_logprobs, calls }
    }

    fn delta(&self, out: &mut Vec<u8>, index: usize, delta: &Delta<'_>) {
        self.chunks.write(out, &ChatChunkChoice { index, delta, logprobs: None, finish_reason: None });
    }

    fn choice<'a>(&self, index: usize, choice: &'a Choice) -> ChatChoice<'a> {
        let refusal = (!choice.refusal.is_empty()).then_some(choice.refusal.as_str());
        let has_no_text = choice.text.is_empty() && (!choice.calls.is_empty() || refusal.is_some());
        let (tool_calls, function_call) = match self.calls {
            CallsAs::Tools => (choice.calls.as_slice(), None),
            CallsAs::Function => (&[][..], choice.calls.first().map(|call| &call.function)),
        };
        let message = ChatMessage {
            role: "assistant",
            content: (!has_no_text).then_some(&choice.text),
            refusal,
            reasoning_content: (!choice.reasoning.is_empty()).then_some(&choice.reasoning),
            tool_calls,
            function_call,
        };
        let logprobs = self.has_logprobs.then(|| ChatLogprobs::from(choice.logprobs.as_slice()));
        ChatChoice { index, message, logprobs, finish_reason: choice.reason().map(|reason| self.calls.reason(reason)) }
    }

    /// More of the call of this number; the first has its id.
    fn call(&self, out: &mut Vec<u8>, index: usize, number: u32, id: Option<&str>, function: FunctionDelta<'_>) {
        match self.calls {
            CallsAs::Tools => {
                let r#type = id.map(|_| "function");
                let call = ToolCallDelta { index: number, id, r#type, function };
                self.delta(out, index, &Delta::Tools { tool_calls: [call] });
            }
            CallsAs::Function if number == 0 => {
                self.delta(out, index, &Delta::Function { function_call: function });
            }
            CallsAs::Function => {}
        }
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
                self.call(out, index, *at, Some(id), FunctionDelta { name: Some(name), arguments: "" });
            }
            TextEvent::ToolArguments { index: at, fragment, .. } => {
                self.call(out, index, *at, None, FunctionDelta { name: None, arguments: fragment });
            }
            _ => {}
        }
    }

    fn finish(&mut self, out: &mut Vec<u8>, index: usize, finish: TextFinish) {
        let (delta, reason) = (&Delta::End {}, self.calls.reason(finish.reason));
        self.chunks.write(out, &ChatChunkChoice { index, delta, logprobs: None, finish_reason: Some(reason) });
    }

    fn end(&mut self, out: &mut Vec<u8>, usage: Usage) {
        self.identity.end(out, CHAT_CHUNK, usage);
    }

    fn whole(&mut self, choices: &[Choice], usage: Usage) -> Vec<u8> {
        let choice = |(index, choice)| self.choice(index, choice);
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
    /// Characters of its text.
    chars: usize,
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

    /// The entries of tokens that begin here in their text.
    fn logprobs(
        &mut self,
        index: usize,
        tokens: &[TokenLogprob],
        text_offset: Vec<usize>,
    ) -> Option<CompletionLogprobs> {
        let wanted = self.logprobs?;
        let written = &mut self.written[index];
        let top_logprobs = (wanted > 0).then(Vec::new);
        let mut out = CompletionLogprobs { top_logprobs, text_offset, ..Default::default() };
        for token in tokens {
            // Nothing comes before a prompt's first token, so it has no probability.
            let is_prompt_start = self.echo && written.tokens == 0 && !written.is_behind_prompt;
            out.tokens.push(token.chosen.token.clone());
            out.token_logprobs.push((!is_prompt_start).then(|| finite(token.chosen.logprob)));
            let top = || token.top.iter().map(|entry| (entry.token.clone(), finite(entry.logprob))).collect();
            if let Some(tops) = &mut out.top_logprobs {
                tops.push((!is_prompt_start).then(top).map(TopByToken));
            }
            written.tokens += 1;
        }
        Some(out)
    }
}

impl TextShape for CompletionShape {
    fn open(&mut self, _out: &mut Vec<u8>, _index: usize, _prompt: Usage) {}

    fn event(&mut self, out: &mut Vec<u8>, index: usize, event: &TextEvent) {
        if let TextEvent::Text { text, logprobs, .. } = event
            && (!text.is_empty() || !logprobs.is_empty())
        {
            let written = &mut self.written[index];
            written.is_behind_prompt |= logprobs.is_empty() && written.tokens == 0;
            let mut offsets = Vec::new();
            written.chars += push_offsets(&mut offsets, written.chars, text, logprobs);
            let logprobs = self.logprobs(index, logprobs, offsets);
            self.chunks.write(out, &CompletionChoice { index, text, logprobs, finish_reason: None });
        }
    }

    fn finish(&mut self, out: &mut Vec<u8>, index: usize, finish: TextFinish) {
        let finish_reason = Some(CallsAs::Tools.reason(finish.reason));
        let last = CompletionChoice { index, text: "", logprobs: None, finish_reason };
        self.chunks.write(out, &last);
    }

    fn end(&mut self, out: &mut Vec<u8>, usage: Usage) {
        self.identity.end(out, COMPLETION, usage);
    }

    fn whole(&mut self, choices: &[Choice], usage: Usage) -> Vec<u8> {
        let mut replies = Vec::with_capacity(choices.len());
        for (index, choice) in choices.iter().enumerate() {
            self.written[index].is_behind_prompt = choice.has_untold;
            let logprobs = self.logprobs(index, &choice.logprobs, choice.offsets.clone());
            let finish_reason = choice.reason().map(|reason| CallsAs::Tools.reason(reason));
            replies.push(CompletionChoice { index, text: &choice.text, logprobs, finish_reason });
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
    finish_reason: Option<&'static str>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Delta<'a> {
    Role { role: &'a str, content: Option<&'a str> },
    Content { content: &'a str },
    Reasoning { reasoning_content: &'a str },
    Refusal { refusal: &'a str },
    Tools { tool_calls: [ToolCallDelta<'a>; 1] },
    Function { function_call: FunctionDelta<'a> },
    End {},
}

#[derive(Serialize)]
struct ChatChoice<'a> {
    index: usize,
    message: ChatMessage<'a>,
    logprobs: Option<ChatLogprobs<'a>>,
    finish_reason: Option<&'static str>,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    function_call: Option<&'a FunctionCall>,
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
    finish_reason: Option<&'static str>,
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
    completion_tokens_details: AnswerDetails,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct PromptDetails {
    cached_tokens: u32,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct AnswerDetails {
    reasoning_tokens: u32,
}

impl From<Usage> for UsageReply {
    fn from(usage: Usage) -> Self {
        Self {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            total_tokens: usage.prompt_tokens.saturating_add(usage.completion_tokens),
            prompt_tokens_details: PromptDetails { cached_tokens: usage.cached_tokens },
            completion_tokens_details: AnswerDetails { reasoning_tokens: usage.reasoning_tokens },
        }
    }
}

pub(super) fn finite(logprob: f32) -> f32 {
    if logprob.is_nan() { MIN_LOGPROB } else { logprob.clamp(MIN_LOGPROB, 0.0) }
}
