//! Answers on channels, as gpt-oss writes them: OpenAI's harmony format.

use super::reader::{Piece, overlap};

/// What heads and ends messages.
pub(super) const MARKS: [&str; 7] =
    ["<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>"];
/// What ends a message's text.
const ENDS: [&str; 4] = ["<|end|>", "<|call|>", "<|return|>", "<|start|>"];
/// What a message to a function is addressed to.
const RECIPIENT: &str = "to=functions.";

/// Reads the messages of an answer.
#[derive(Debug)]
pub(crate) struct Harmony {
    held: String,
    state: State,
    takes_calls: bool,
}

#[derive(Debug)]
enum State {
    /// Before anything.
    Start,
    /// Between messages, or in what heads one.
    Head,
    Body(Channel),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Channel {
    Reasoning,
    Text,
    Arguments { is_empty: bool },
}

impl Harmony {
    pub(super) fn new(takes_calls: bool) -> Self {
        Self { held: String::new(), state: State::Start, takes_calls }
    }

    pub(super) fn held(&self) -> usize {
        self.held.len()
    }

    pub(super) fn is_in_reasoning(&self) -> bool {
        matches!(self.state, State::Body(Channel::Reasoning))
    }

    pub(super) fn push(&mut self, text: &str, out: &mut Vec<Piece>) {
        self.held.push_str(text);
        while self.step(out) {}
    }

    pub(super) fn finish(&mut self, out: &mut Vec<Piece>) {
        let held = std::mem::take(&mut self.held);
        match self.state {
            State::Start => out.extend((!held.trim().is_empty()).then_some(Piece::Text(held))),
            State::Head => {}
            State::Body(channel) => self.body(channel, &held, true, out),
        }
    }

    fn step(&mut self, out: &mut Vec<Piece>) -> bool {
        match self.state {
            State::Start => {
                let begin = self.held.trim_start();
                if begin.is_empty() || MARKS.iter().any(|mark| mark.starts_with(begin) && *mark != begin) {
                    return false;
                }
                let is_head = MARKS.iter().any(|mark| begin.starts_with(mark));
                self.state = if is_head { State::Head } else { State::Body(Channel::Text) };
                true
            }
            State::Head => {
                let Some((head, behind)) = self.held.split_once("<|message|>") else { return false };
                let called = head.split_once(RECIPIENT).filter(|_| self.takes_calls).map(|(_, name)| {
                    let end = name.find(|c: char| c.is_whitespace() || c == '<').unwrap_or(name.len());
                    name[..end].to_owned()
                });
                let channel = match called {
                    Some(name) => {
                        out.push(Piece::Call(name));
                        Channel::Arguments { is_empty: true }
                    }
                    None if head.contains("<|channel|>analysis") => Channel::Reasoning,
                    None => Channel::Text,
                };
                self.held = behind.to_owned();
                self.state = State::Body(channel);
                true
            }
            State::Body(channel) => {
                let end = ENDS.iter().filter_map(|mark| Some((self.held.find(mark)?, *mark))).min();
                let Some((at, mark)) = end else {
                    let keep = ENDS.iter().map(|mark| overlap(&self.held, mark)).max().unwrap_or(0);
                    let rest = self.held.split_off(self.held.len() - keep);
                    let text = std::mem::replace(&mut self.held, rest);
                    self.body(channel, &text, false, out);
                    return false;
                };
                let text = self.held[..at].to_owned();
                self.held.drain(..at + mark.len());
                self.body(channel, &text, true, out);
                self.state = State::Head;
                true
            }
        }
    }

    fn body(&mut self, channel: Channel, text: &str, is_last: bool, out: &mut Vec<Piece>) {
        match channel {
            Channel::Reasoning => out.extend((!text.is_empty()).then(|| Piece::Reasoning(text.to_owned()))),
            Channel::Text => out.extend((!text.is_empty()).then(|| Piece::Text(text.to_owned()))),
            Channel::Arguments { is_empty } => {
                let is_empty = is_empty && text.trim().is_empty();
                self.state = State::Body(Channel::Arguments { is_empty });
                if is_empty && is_last {
                    out.push(Piece::Arguments("{}".to_owned()));
                } else if !is_empty {
                    out.push(Piece::Arguments(text.to_owned()));
                }
            }
        }
    }
}
