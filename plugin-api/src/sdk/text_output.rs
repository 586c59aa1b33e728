//! Where a text engine puts its tokens. It assembles characters, finds stop strings, counts, and heeds the client's pace.

use std::sync::{Arc, Mutex, PoisonError};

use super::context::{Context, Flow};
use super::outlet::Outlet;
use super::stop::StopMatcher;
use super::utf8::Utf8Assembler;
use super::{Error, Result};
use crate::abi::{RawSinkArc, event_kind};
use crate::task::{FinishReason, TextEvent, TextFinish, TokenLogprob, Usage};

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
}

impl std::fmt::Debug for TextOutput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TextOutput").field("outlet", &self.outlet).finish_non_exhaustive()
    }
}

impl TextOutput {
    pub(crate) fn new(stops: &[String], sink: RawSinkArc, ctx: Context) -> Self {
        let state = TextState { stop: StopMatcher::new(stops), ..TextState::default() };
        Self { outlet: Outlet::new(sink, ctx), state: Arc::new(Mutex::new(state)) }
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
    /// Once the client left or a stop string was found: return it with `?`, it is a normal end.
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
        let (event, matched, usage) = self.with(|state| {
            let mut text = if state.stop.matched() { String::new() } else { state.utf8.finish() };
            text = state.stop.push(&text) + &state.stop.finish();
            (state.take_event(text), state.stop.matched(), state.usage)
        });
        let reason = match result {
            _ if matched => FinishReason::Stop,
            Ok(reason) => reason,
            Err(error) => self.outlet.stopped(error).map(|()| FinishReason::Cancelled)?,
        };
        if reason != FinishReason::Cancelled {
            let _ = self.push(event);
        }
        Ok(TextFinish { reason, usage })
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
