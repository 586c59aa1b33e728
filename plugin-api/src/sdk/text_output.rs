//! Where a text engine puts its tokens. It assembles characters, finds stop strings, counts, keeps `max_tokens`, and heeds the
//! client's pace.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};

use super::answer::{AnswerReader, AnswerStart, AnswerSyntax, Piece, functions};
use super::context::Flow;
use super::outlet::Outlet;
use super::stop::StopMatcher;
use super::utf8::Utf8Assembler;
use super::{Error, Result};
use crate::abi::event_kind;
use crate::task::{FinishReason, TextEvent, TextFinish, TextInput, TextRequest, TokenLogprob, Usage};

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
    /// What tells reasoning and calls from text, where there may be any.
    reader: Option<AnswerReader>,
    /// Calls that have begun.
    calls: u32,
    /// Whether one is all that may be.
    calls_once: bool,
    /// Whether another one has begun nevertheless.
    has_called: bool,
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

    /// Has what follows read as a model of this syntax writes it: its reasoning and its calls of the request's tools become events
    /// of their own, and an answer with calls ends with [`FinishReason::ToolCalls`]. `start`: where the prompt has left the model.
    pub fn read_as(&self, syntax: AnswerSyntax, start: AnswerStart, input: &TextInput) {
        let reader = AnswerReader::new(syntax, start, functions(input));
        let once = matches!(input, TextInput::Chat { parallel_tool_calls: false, .. });
        self.with(|state| (state.reader, state.calls_once) = (reader, once));
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
        let (events, stopped) = self.with(|state| {
            state.is_cut = state.max_tokens.is_some_and(|most| state.usage.completion_tokens >= most);
            if state.is_cut {
                return (Vec::new(), true);
            }
            state.usage.completion_tokens += 1;
            let whole = state.utf8.push(bytes);
            if let Some(entry) = logprob {
                state.entries.add(entry, &whole);
            }
            if state.reader.is_some() {
                let was_reasoning = state.is_in_reasoning();
                let events = state.read(&whole, More::Follows);
                // The marks around it are part of it.
                state.usage.reasoning_tokens += u32::from(was_reasoning || state.is_in_reasoning());
                return (events, state.stop.matched() || state.has_called);
            }
            let text = state.stop.push(&whole);
            let matched = state.stop.matched();
            (state.event(text, if matched { More::No } else { More::Follows }).into_iter().collect(), matched)
        });
        let flow = self.push(events)?;
        if stopped { Err(Error::stopped()) } else { Ok(flow) }
    }

    /// Adds text that is no token of the answer, such as an echoed prompt. It takes no part in stop matching.
    ///
    /// # Errors
    /// Once the client left.
    pub fn echo(&self, text: &str, logprobs: Vec<TokenLogprob>) -> Result<()> {
        self.push(Some(TextEvent::text(text, logprobs))).map(|_| ())
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

    /// Adds text of the model's reasoning, which is not part of the answer. No stop string is looked for in it. Its tokens are
    /// counted by [`token`](Self::token) without bytes, and by [`reasoned`](Self::reasoned).
    ///
    /// # Errors
    /// Once the client left.
    pub fn reasoning(&self, text: &str) -> Result<Flow> {
        self.push(Some(TextEvent::Reasoning { text: text.to_owned() }))
    }

    /// Says how many of the tokens so far were reasoning, where [`read_as`](Self::read_as) does not count them.
    pub fn reasoned(&self, tokens: u32) {
        self.with(|state| state.usage.reasoning_tokens = tokens.min(state.usage.completion_tokens));
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

    fn push(&self, events: impl IntoIterator<Item = TextEvent>) -> Result<Flow> {
        let mut flow = None;
        for event in events {
            if let Some(prompt) = self.with(TextState::untold_prompt) {
                self.push_one(&prompt)?;
            }
            flow = Some(self.push_one(&event)?);
        }
        flow.map_or_else(|| self.flow(), Ok)
    }

    fn push_one(&self, event: &TextEvent) -> Result<Flow> {
        let json = serde_json::to_vec(event).map_err(Error::internal)?;
        self.outlet.push(event_kind::JSON, &json)
    }

    pub(crate) fn finish(&self, result: Result<FinishReason>) -> Result<TextFinish> {
        let (events, stop, is_cut, has_called, calls, usage) = self.with(|state| {
            // What is left of the bytes is half a character, which is no text.
            let mut events =
                if state.reader.is_some() && !state.has_called { state.read("", More::No) } else { Vec::new() };
            let text = state.stop.finish();
            events.extend(state.event(text, More::No));
            (events, state.stop.which(), state.is_cut, state.has_called, state.calls, state.usage)
        });
        let reason = match result {
            _ if stop.is_some() => FinishReason::Stop,
            _ if is_cut => FinishReason::Length,
            _ if has_called => FinishReason::ToolCalls,
            result => match self.outlet.reason(result)? {
                FinishReason::Stop if calls > 0 => FinishReason::ToolCalls,
                reason => reason,
            },
        };
        if reason != FinishReason::Cancelled {
            let _ = self.push(events);
        }
        Ok(TextFinish { reason, usage, stop })
    }

    fn with<T>(&self, change: impl FnOnce(&mut TextState) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A call's id: 24 letters and digits that no other call has.
fn call_id() -> String {
    const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut id = "call_".to_owned();
    for _ in 0..3 {
        // Each state is seeded by itself, by the system's random numbers.
        let mut bits = RandomState::new().hash_one(());
        for _ in 0..8 {
            id.push(char::from(DIGITS[(bits % 62) as usize]));
            bits /= 62;
        }
    }
    id
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

    fn is_in_reasoning(&self) -> bool {
        self.reader.as_ref().is_some_and(AnswerReader::is_in_reasoning)
    }

    /// What this text, which is no more held back, is as events: by the reader, which there is.
    fn read(&mut self, whole: &str, more: More) -> Vec<TextEvent> {
        let Some(reader) = &mut self.reader else { return Vec::new() };
        let before = reader.held() + whole.len();
        let mut pieces = reader.push(whole);
        if more == More::No {
            pieces.extend(reader.finish());
        }
        // Bytes of tokens' texts that are shown or over.
        let mut passed = before - reader.held();
        let mut events = Vec::new();
        let show = |text: String, events: &mut Vec<TextEvent>| {
            if !text.is_empty() {
                events.push(TextEvent::text(text, Vec::new()));
            }
        };
        for piece in pieces {
            if let Piece::Text(text) = &piece {
                let shown = self.stop.push(text);
                passed = (passed + shown.len()).saturating_sub(text.len());
                show(shown, &mut events);
                if self.stop.matched() {
                    break;
                }
                continue;
            }
            // What might have become a stop string has ended without.
            let rest = self.stop.release();
            passed += rest.len();
            show(rest, &mut events);
            match piece {
                Piece::Text(_) => {}
                Piece::Reasoning(text) => events.push(TextEvent::reasoning(text)),
                Piece::Call(_) if self.calls_once && self.calls > 0 => {
                    self.has_called = true;
                    break;
                }
                Piece::Call(name) => {
                    events.push(TextEvent::tool_call(self.calls, call_id(), name));
                    self.calls += 1;
                }
                Piece::Arguments(fragment) => events.push(TextEvent::tool_arguments(self.calls - 1, fragment)),
            }
        }
        let logprobs = self.entries.shown(passed);
        if !logprobs.is_empty() {
            match events.iter_mut().find_map(|event| match event {
                TextEvent::Text { logprobs, .. } => Some(logprobs),
                _ => None,
            }) {
                Some(of_text) => *of_text = logprobs,
                None => events.push(TextEvent::text("", logprobs)),
            }
        }
        events
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
