//! Where a text engine puts its tokens. It assembles characters, finds stop strings, counts, keeps `max_tokens`, and heeds the
//! client's pace.

use std::collections::VecDeque;
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
    /// Whether the length of the prompt is known and was not told yet.
    prompt_is_untold: bool,
    entries: Entries,
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

    /// Says how many tokens the prompt had, and how many of them a cache held. What is said before the first token leaves with
    /// it: clients of some APIs are told at the beginning of an answer.
    pub fn prompt(&self, tokens: u32, cached: u32) {
        self.with(|state| {
            state.usage.prompt_tokens = tokens;
            state.usage.cached_tokens = cached;
            state.prompt_is_untold = true;
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
            let whole = state.utf8.push(bytes);
            if let Some(entry) = logprob {
                state.entries.add(entry, &whole);
            }
            let text = state.stop.push(&whole);
            let matched = state.stop.matched();
            (state.event(text, if matched { More::No } else { More::Follows }), matched)
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

    /// [`echo`](Self::echo) for a prompt that is there as tokens: their bytes as they show, and the entry of each if
    /// log-probabilities are wanted. A character that the prompt's last token begins is part of the answer that ends it.
    ///
    /// # Errors
    /// Once the client left.
    pub fn echo_tokens<'a>(&self, tokens: impl IntoIterator<Item = (&'a [u8], Option<TokenLogprob>)>) -> Result<()> {
        let event = self.with(|state| {
            let mut text = String::new();
            for (bytes, entry) in tokens {
                let whole = state.utf8.push(bytes);
                if let Some(entry) = entry {
                    state.entries.add(entry, &whole);
                }
                text += &whole;
            }
            state.event(text, More::Follows)
        });
        self.push(event).map(|_| ())
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
        if let Some(prompt) = self.with(TextState::untold_prompt) {
            self.push_one(&prompt)?;
        }
        self.push_one(&event)
    }

    fn push_one(&self, event: &TextEvent) -> Result<Flow> {
        let json = serde_json::to_vec(event).map_err(Error::internal)?;
        self.outlet.push(event_kind::JSON, &json)
    }

    pub(crate) fn finish(&self, result: Result<FinishReason>) -> Result<TextFinish> {
        let (event, stop, is_cut, usage) = self.with(|state| {
            // What is left of the bytes is half a character, which is no text.
            let text = state.stop.finish();
            (state.event(text, More::No), state.stop.which(), state.is_cut, state.usage)
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

/// Whether more of the answer may come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum More {
    Follows,
    No,
}

impl TextState {
    /// What tells the length of the prompt, once.
    fn untold_prompt(&mut self) -> Option<TextEvent> {
        let Usage { prompt_tokens: tokens, cached_tokens: cached, .. } = self.usage;
        std::mem::take(&mut self.prompt_is_untold).then_some(TextEvent::Prompt { tokens, cached })
    }

    /// What is sent with this text, which is shown now.
    fn event(&mut self, text: String, more: More) -> Option<TextEvent> {
        if text.is_empty() && more == More::Follows {
            return None;
        }
        let mut logprobs = self.entries.shown(text.len());
        if more == More::No {
            logprobs.extend(self.entries.rest());
        }
        (!text.is_empty() || !logprobs.is_empty()).then_some(TextEvent::Text { text, logprobs })
    }
}

/// Entries of tokens whose text has not been shown yet. All of their texts together are the text: each has what became whole by
/// its token, which of one that ends in the middle of a character is less than its bytes.
#[derive(Default)]
struct Entries {
    waiting: VecDeque<TokenLogprob>,
    /// Bytes of the first one's text that are shown already.
    shown: usize,
}

impl Entries {
    /// The entry of a token by which this became whole.
    fn add(&mut self, mut entry: TokenLogprob, whole: &str) {
        // Among the alternatives it is the same token.
        for same in entry.top.iter_mut().filter(|other| other.bytes == entry.chosen.bytes) {
            whole.clone_into(&mut same.token);
        }
        whole.clone_into(&mut entry.chosen.token);
        self.waiting.push_back(entry);
    }

    /// Those that are shown in full once so many bytes more are shown.
    fn shown(&mut self, bytes: usize) -> Vec<TokenLogprob> {
        self.shown += bytes;
        let mut shown = Vec::new();
        while let Some(first) =
            self.waiting.front().map(|entry| entry.chosen.token.len()).filter(|len| *len <= self.shown)
        {
            self.shown -= first;
            shown.extend(self.waiting.pop_front());
        }
        // Text that has no entries leaves nothing to be shown.
        if self.waiting.is_empty() {
            self.shown = 0;
        }
        shown
    }

    /// What is left once a text has ended: of one that is shown in part, that part; of those behind it nothing was shown.
    fn rest(&mut self) -> Option<TokenLogprob> {
        let mut first = self.waiting.pop_front().filter(|_| self.shown > 0)?;
        first.chosen.token.truncate(self.shown);
        self.waiting.clear();
        Some(first)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::task::LogprobEntry;

    /// All texts, and the tokens' texts, of an answer of these tokens.
    fn answer(tokens: &[&[u8]], stops: &[String]) -> (String, Vec<(String, Vec<u8>)>) {
        let mut state = TextState { stop: StopMatcher::new(stops), ..TextState::default() };
        let (mut text, mut entries) = (String::new(), Vec::new());
        let mut take = |event: Option<TextEvent>| {
            if let Some(TextEvent::Text { text: more, logprobs }) = event {
                text += &more;
                entries.extend(logprobs.into_iter().map(|entry| (entry.chosen.token, entry.chosen.bytes)));
            }
        };
        for token in tokens {
            let whole = state.utf8.push(token);
            state.entries.add(TokenLogprob::new(LogprobEntry::new(*token, -1.0), Vec::new()), &whole);
            let shown = state.stop.push(&whole);
            let more = if state.stop.matched() { More::No } else { More::Follows };
            take(state.event(shown, more));
            if more == More::No {
                break;
            }
        }
        let last = state.stop.finish();
        take(state.event(last, More::No));
        (text, entries)
    }

    #[test]
    fn a_text_does_not_end_in_half_a_character_and_its_tokens_are_all_there() {
        let emoji = "🎉".as_bytes();
        let parts: [&[u8]; 3] = [&emoji[..2], &emoji[2..3], &emoji[3..]];
        for (count, text) in [(1, ""), (2, ""), (3, "🎉")] {
            let (found, entries) = answer(&parts[..count], &[]);
            assert_eq!(found, text);
            assert_eq!(entries.len(), count, "{entries:?}");
            assert_eq!(
                entries.iter().flat_map(|(_, bytes)| bytes.clone()).collect::<Vec<_>>(),
                parts[..count].concat()
            );
            assert_eq!(entries.iter().map(|(token, _)| token.as_str()).collect::<String>(), text);
        }
        // What is no beginning of a character stands for itself.
        assert_eq!(answer(&[b"a\xff"], &[]).0, "a\u{fffd}");
    }

    #[test]
    fn tokens_of_a_stop_string_are_no_part_of_the_text() {
        let stops = ["Romeo".to_owned()];
        let (text, entries) = answer(&[b"The", b" story of", b" Romeo", b" and"], &stops);
        assert_eq!(text, "The story of ");
        assert_eq!(entries.iter().map(|(token, _)| token.as_str()).collect::<Vec<_>>(), ["The", " story of", " "]);
    }

    #[test]
    fn the_chosen_token_is_called_the_same_among_its_alternatives() {
        let mut entries = Entries::default();
        let half = LogprobEntry::new(vec![0xf0, 0x9f], -1.0);
        let other = LogprobEntry::new(b"x".to_vec(), -2.0);
        entries.add(TokenLogprob::new(half.clone(), vec![half, other]), "");
        let shown = entries.shown(0).remove(0);
        assert_eq!(
            (shown.chosen.token.as_str(), shown.top[0].token.as_str(), shown.top[1].token.as_str()),
            ("", "", "x")
        );
    }

    proptest! {
        #[test]
        fn tokens_join_to_the_text(
            text in "[ab é🎉]{0,16}",
            cuts in prop::collection::vec(1usize..5, 0..40),
            stops in prop::collection::vec("[ab é🎉]{1,3}", 0..3),
        ) {
            let mut rest = text.as_bytes();
            let mut tokens = Vec::new();
            for cut in cuts {
                let (head, tail) = rest.split_at(cut.min(rest.len()));
                tokens.push(head);
                rest = tail;
            }
            let (shown, entries) = answer(&tokens, &stops);
            prop_assert_eq!(entries.iter().map(|(token, _)| token.as_str()).collect::<String>(), shown.as_str());
            prop_assert!(text.starts_with(&shown));
        }
    }
}
