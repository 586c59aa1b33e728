//! Where a text engine puts its tokens. It assembles characters, finds stop strings, counts, keeps `max_tokens`, and heeds the
//! client's pace.

use std::sync::{Arc, Mutex, PoisonError};

use super::context::Flow;
use super::outlet::Outlet;
use super::stop::StopMatcher;
use super::utf8::Utf8Assembler;
use super::{Error, Result};
use crate::abi::event_kind;
use crate::task::{FinishReason, TextEvent, TextFinish, TextRequest, TokenLogprob, Usage};

/// The answer of one text request. A cheap handle: clones feed the same answer, from any thread.
#[derive(Clone)]
pub struct TextOutput {
    outlet: Outlet,
    state: Arc<Mutex<TextState>>,
}

#[derive(Default)]
struct TextState {
    utf8: Utf8Assembler,
    stop: StopMatcher,
    usage: Usage,
    logprobs: Vec<TokenLogprob>,
    /// Most tokens of the answer.
    max_tokens: Option<u32>,
    /// Whether the engine had more than that.
    is_cut: bool,
}

impl std::fmt::Debug for TextOutput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TextOutput").field("outlet", &self.outlet).finish_non_exhaustive()
    }
}

impl TextOutput {
    pub(crate) fn new(request: &TextRequest, outlet: Outlet) -> Self {
        let stop = StopMatcher::new(&request.stop);
        let state = TextState { stop, max_tokens: request.max_tokens, ..TextState::default() };
        Self { outlet, state: Arc::new(Mutex::new(state)) }
    }

    /// Says how many tokens the prompt had, and how many of them a cache held.
    pub fn prompt(&self, tokens: u32, cached: u32) {
        self.with(|state| {
            state.usage.prompt_tokens = tokens;
            state.usage.cached_tokens = cached;
        });
    }

    /// Adds one generated token by its bytes (empty for an invisible one). Blocks while the client is too slow.
    ///
    /// # Errors
    /// Once the client left, a stop string was found, or `max_tokens` were there before: return it with `?`, it is a normal end.
    pub fn token(&self, bytes: &[u8]) -> Result<()> {
        let flow = self.try_token(bytes, None)?;
        self.outlet.pace(flow)
    }

    /// [`token`](Self::token) for engines that batch: never blocks, and says whether to hold this sequence.
    ///
    /// # Errors
    /// As [`token`](Self::token).
    pub fn try_token(&self, bytes: &[u8], logprob: Option<TokenLogprob>) -> Result<Flow> {
        let (event, stopped) = self.with(|state| {
            state.is_cut = state.max_tokens.is_some_and(|most| state.usage.completion_tokens >= most);
            if state.is_cut {
                return (None, true);
            }
            state.usage.completion_tokens += 1;
            state.logprobs.extend(logprob);
            let whole = state.utf8.push(bytes);
            let text = state.stop.push(&whole);
            (state.take_event(text), state.stop.matched())
        });
        let flow = self.push(event)?;
        if stopped { Err(Error::stopped()) } else { Ok(flow) }
    }

    /// Adds text that is no token of the answer, such as an echoed prompt. It takes no part in stop matching.
    ///
    /// # Errors
    /// Once the client left.
    pub fn echo(&self, text: &str, logprobs: Vec<TokenLogprob>) -> Result<()> {
        self.push(Some(TextEvent::Text { text: text.to_owned(), logprobs })).map(|_| ())
    }

    /// Adds text of the model's reasoning, which is not part of the answer. No stop string is looked for in it.
    ///
    /// # Errors
    /// Once the client left.
    pub fn reasoning(&self, text: &str) -> Result<Flow> {
        self.push(Some(TextEvent::Reasoning { text: text.to_owned() }))
    }

    /// Begins a tool call: `index` counts from 0, `id` is `call_...`. Its arguments follow by
    /// [`tool_arguments`](Self::tool_arguments); the engine ends with [`FinishReason::ToolCalls`].
    ///
    /// # Errors
    /// Once the client left.
    pub fn tool_call(&self, index: u32, id: &str, name: &str) -> Result<Flow> {
        self.push(Some(TextEvent::ToolCall { index, id: id.to_owned(), name: name.to_owned() }))
    }

    /// Adds a piece of a tool call's arguments, which together are one JSON object.
    ///
    /// # Errors
    /// Once the client left.
    pub fn tool_arguments(&self, index: u32, fragment: &str) -> Result<Flow> {
        self.push(Some(TextEvent::ToolArguments { index, fragment: fragment.to_owned() }))
    }

    /// Adds text by which the model refuses to answer.
    ///
    /// # Errors
    /// Once the client left.
    pub fn refusal(&self, text: &str) -> Result<Flow> {
        self.push(Some(TextEvent::Refusal { text: text.to_owned() }))
    }

    /// Whether to go on with this sequence.
    ///
    /// # Errors
    /// Once the client left.
    pub fn flow(&self) -> Result<Flow> {
        self.outlet.flow()
    }

    /// Tokens generated so far.
    pub fn completion_tokens(&self) -> u32 {
        self.with(|state| state.usage.completion_tokens)
    }

    fn push(&self, event: Option<TextEvent>) -> Result<Flow> {
        let Some(event) = event else { return self.flow() };
        let json = serde_json::to_vec(&event).map_err(Error::internal)?;
        self.outlet.push(event_kind::JSON, &json)
    }

    pub(crate) fn finish(&self, result: Result<FinishReason>) -> Result<TextFinish> {
        let (event, stop, is_cut, usage) = self.with(|state| {
            let mut text = if state.stop.matched() { String::new() } else { state.utf8.finish() };
            text = state.stop.push(&text) + &state.stop.finish();
            (state.take_event(text), state.stop.which(), state.is_cut, state.usage)
        });
        let reason = match result {
            _ if stop.is_some() => FinishReason::Stop,
            _ if is_cut => FinishReason::Length,
            result => self.outlet.reason(result)?,
        };
        if reason != FinishReason::Cancelled {
            let _ = self.push(event);
        }
        Ok(TextFinish { reason, usage, stop })
    }

    fn with<T>(&self, change: impl FnOnce(&mut TextState) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl TextState {
    fn take_event(&mut self, text: String) -> Option<TextEvent> {
        if text.is_empty() {
            return None;
        }
        Some(TextEvent::Text { text, logprobs: std::mem::take(&mut self.logprobs) })
    }
}
