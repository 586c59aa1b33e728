//! Reads an answer as it comes: what is text, what is reasoning, what is a call.
//!
//! Whatever looks like a call and turns out to be none is text, so nothing that a model wrote is lost.

use serde_json::Value;

use super::call::{self, Scanned, Span};
use super::harmony::Harmony;
use super::{AnswerStart, AnswerSyntax, CallSyntax, DEEPSEEK_SEPARATOR, Mark};

/// A name and what is beside it are shorter than this, bytes.
const HEAD_BYTES: usize = 1024;

/// A part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    Text(String),
    Reasoning(String),
    /// A call of this function begins.
    Call(String),
    /// More of its arguments.
    Arguments(String),
}

/// Reads one answer.
#[derive(Debug)]
pub(crate) enum AnswerReader {
    Marked(Box<Marked>),
    Channels(Harmony),
}

impl AnswerReader {
    /// Nothing if the answer is text alone. `functions`: the names and the schemas of what may be called.
    pub(crate) fn new(syntax: AnswerSyntax, start: AnswerStart, functions: Vec<(String, Value)>) -> Option<Self> {
        if syntax.calls == CallSyntax::Harmony {
            return Some(Self::Channels(Harmony::new(!functions.is_empty())));
        }
        let reasoning = syntax.reasoning.filter(|_| start != AnswerStart::PastReasoning);
        (reasoning.is_some() || !functions.is_empty()).then(|| {
            let marks = if functions.is_empty() { &[] } else { syntax.call_marks() };
            let is_inside = start == AnswerStart::InReasoning;
            let state = if is_inside { State::Reasoning { may_open: true, is_first: true } } else { State::Start };
            Self::Marked(Box::new(Marked {
                marks,
                reasoning,
                functions,
                takes_names: syntax.calls.takes_names(),
                held: String::new(),
                opened: String::new(),
                state,
            }))
        })
    }

    /// Bytes that are held back until more is known.
    pub(crate) fn held(&self) -> usize {
        match self {
            Self::Marked(marked) => marked.opened.len() + marked.held.len(),
            Self::Channels(harmony) => harmony.held(),
        }
    }

    /// Whether what comes next is reasoning, as far as is known.
    pub(crate) fn is_in_reasoning(&self) -> bool {
        match self {
            Self::Marked(marked) => matches!(marked.state, State::Reasoning { .. }),
            Self::Channels(harmony) => harmony.is_in_reasoning(),
        }
    }

    /// What more text makes known.
    pub(crate) fn push(&mut self, text: &str) -> Vec<Piece> {
        let mut out = Vec::new();
        match self {
            Self::Marked(marked) => {
                marked.held.push_str(text);
                while marked.step(&mut out) {}
            }
            Self::Channels(harmony) => harmony.push(text, &mut out),
        }
        out
    }

    /// What is left, once no more text comes.
    pub(crate) fn finish(&mut self) -> Vec<Piece> {
        let mut out = Vec::new();
        match self {
            Self::Marked(marked) => marked.finish(&mut out),
            Self::Channels(harmony) => harmony.finish(&mut out),
        }
        out
    }
}

/// Answers with marks in them.
#[derive(Debug)]
pub(crate) struct Marked {
    marks: &'static [(&'static str, Mark)],
    reasoning: Option<(&'static str, &'static str)>,
    functions: Vec<(String, Value)>,
    /// Whether a call may begin with its name alone.
    takes_names: bool,
    /// What is not read yet.
    held: String,
    /// What was read of a call and would be text if it were none.
    opened: String,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before anything: reasoning may begin.
    Start,
    Reasoning {
        /// Whether the mark that begins it may still come.
        may_open: bool,
        /// Whether nothing of it was shown, so that blanks are left out.
        is_first: bool,
    },
    /// Where text or a call may begin.
    Between {
        /// In an array of calls.
        in_list: bool,
        /// Whether blanks are left out.
        drops_blanks: bool,
    },
    Text,
    /// In what says which function is called.
    Head {
        is_marked: bool,
        in_list: bool,
    },
    /// In the object of the arguments.
    Arguments {
        span: Span,
        in_list: bool,
        /// Whether an object is around it.
        is_inner: bool,
    },
    /// In what is left of the object around it.
    Tail {
        in_list: bool,
    },
}

impl Marked {
    /// Reads some more. False if that takes more text.
    fn step(&mut self, out: &mut Vec<Piece>) -> bool {
        match self.state {
            State::Start => self.start(),
            State::Reasoning { may_open, is_first } => self.in_reasoning(may_open, is_first, out),
            State::Between { in_list, drops_blanks } => self.between(in_list, drops_blanks),
            State::Text => self.text(out),
            State::Head { is_marked, in_list } => self.head(is_marked, in_list, out),
            State::Arguments { mut span, in_list, is_inner } => {
                let end = span.end(&self.held);
                let text: String = self.held.drain(..end.unwrap_or(self.held.len())).collect();
                out.extend((!text.is_empty()).then_some(Piece::Arguments(text)));
                self.state = match end {
                    None => State::Arguments { span, in_list, is_inner },
                    Some(_) if is_inner => State::Tail { in_list },
                    Some(_) => State::Between { in_list, drops_blanks: true },
                };
                end.is_some()
            }
            State::Tail { in_list } => self.tail(in_list),
        }
    }

    fn start(&mut self) -> bool {
        let begin = self.held.trim_start();
        if begin.is_empty() {
            return false;
        }
        if let Some((open, _)) = self.reasoning {
            if let Some(rest) = begin.strip_prefix(open) {
                self.held = rest.to_owned();
                self.state = State::Reasoning { may_open: false, is_first: true };
                return true;
            }
            if open.starts_with(begin) {
                return false;
            }
        }
        self.state = State::Between { in_list: false, drops_blanks: false };
        true
    }

    fn in_reasoning(&mut self, may_open: bool, is_first: bool, out: &mut Vec<Piece>) -> bool {
        let (open, close) = self.reasoning.unwrap_or_default();
        if is_first {
            let begin = self.held.trim_start();
            // Some write the mark that the prompt has already.
            if may_open && let Some(rest) = begin.strip_prefix(open) {
                self.held = rest.to_owned();
                self.state = State::Reasoning { may_open: false, is_first };
                return true;
            }
            if begin.is_empty() || (may_open && open.starts_with(begin)) {
                return false;
            }
            self.held = begin.to_owned();
            self.state = State::Reasoning { may_open: false, is_first: false };
        }
        let end = self.held.find(close);
        let known = end.unwrap_or_else(|| self.held.len() - overlap(&self.held, close));
        // Blanks at its end are no part of it.
        let text = self.held[..known].trim_end();
        if !text.is_empty() {
            out.push(Piece::Reasoning(text.to_owned()));
        }
        match end {
            Some(at) => {
                self.held.drain(..at + close.len());
                self.state = State::Between { in_list: false, drops_blanks: true };
                true
            }
            None => {
                self.held.drain(..text.len());
                false
            }
        }
    }

    fn between(&mut self, in_list: bool, drops_blanks: bool) -> bool {
        let mut begin = self.held.trim_start();
        if drops_blanks {
            begin = begin.trim_start_matches([',', ';']).trim_start();
        }
        if begin.is_empty() {
            return false;
        }
        let blanks = self.held.len() - begin.len();
        for (mark, meaning) in self.marks {
            if begin.starts_with(mark) {
                self.pass(blanks, mark, *meaning);
                return true;
            }
            if mark.starts_with(begin) {
                return false;
            }
        }
        let first = begin.as_bytes()[0];
        match first {
            b']' if in_list => {
                self.held.drain(..=blanks);
                self.state = State::Between { in_list: false, drops_blanks: true };
            }
            // The end of a fence that stood around the arguments.
            b'`' if drops_blanks && "```".starts_with(begin) && begin.len() < 3 => return false,
            b'`' if drops_blanks && begin.starts_with("```") => {
                self.held.drain(..blanks + 3);
            }
            b'{' | b'[' if !self.functions.is_empty() => {
                self.opened = if drops_blanks { String::new() } else { self.held[..blanks].to_owned() };
                self.held.drain(..blanks);
                self.state = State::Head { is_marked: in_list, in_list };
            }
            _ => {
                if drops_blanks {
                    // Commas and semicolons of a text that follows are its own.
                    self.held = self.held.trim_start().to_owned();
                }
                self.state = State::Text;
            }
        }
        true
    }

    /// Passes a mark that stands behind so many bytes.
    fn pass(&mut self, at: usize, mark: &str, meaning: Mark) {
        self.held.drain(..at);
        match meaning {
            Mark::Opens => {
                self.held.drain(..mark.len());
                mark.clone_into(&mut self.opened);
                self.state = State::Head { is_marked: true, in_list: false };
            }
            Mark::Begins => {
                self.opened.clear();
                self.state = State::Head { is_marked: true, in_list: false };
            }
            Mark::Frames => {
                self.held.drain(..mark.len());
                self.state = State::Between { in_list: false, drops_blanks: true };
            }
        }
    }

    fn text(&mut self, out: &mut Vec<Piece>) -> bool {
        let first = self.marks.iter().filter_map(|(mark, meaning)| Some((self.held.find(mark)?, *mark, *meaning)));
        if let Some((at, mark, meaning)) = first.min_by_key(|(at, ..)| *at) {
            if at > 0 {
                out.push(Piece::Text(self.held[..at].to_owned()));
            }
            self.pass(at, mark, meaning);
            return true;
        }
        let keep = self.marks.iter().map(|(mark, _)| overlap(&self.held, mark)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        let text = std::mem::replace(&mut self.held, rest);
        out.extend((!text.is_empty()).then_some(Piece::Text(text)));
        false
    }

    fn head(&mut self, is_marked: bool, in_list: bool, out: &mut Vec<Piece>) -> bool {
        let blanks = self.held.len() - self.held.trim_start().len();
        self.opened.extend(self.held.drain(..blanks));
        let Some(first) = self.held.bytes().next() else { return false };
        match first {
            b'[' if !in_list => {
                match self.held[1..].trim_start().bytes().next() {
                    None => return false,
                    Some(b'{') => {}
                    Some(_) => return self.release(out),
                }
                self.held.drain(..1);
                self.opened.push('[');
                self.state = State::Head { is_marked, in_list: true };
                true
            }
            b'{' => self.object(is_marked, in_list, out),
            b'<' if "<function=".starts_with(&self.held) => false,
            b'<' if self.held.starts_with("<function=") => {
                let Some(end) = self.held.find("</function>") else { return false };
                let text: String = self.held.drain(..end + "</function>".len()).collect();
                let schema =
                    |name: &str| self.functions.iter().find(|(known, _)| known == name).map(|(_, schema)| schema);
                match call::of_tags(&text, schema) {
                    Some(call) => self.call(call, in_list, out),
                    None => {
                        self.held.insert_str(0, &text);
                        return self.release(out);
                    }
                }
                true
            }
            _ if is_marked && !in_list && self.takes_names => self.named(false, out),
            _ => self.release(out),
        }
    }

    /// An object that may be a call.
    fn object(&mut self, is_marked: bool, in_list: bool, out: &mut Vec<Piece>) -> bool {
        match call::scan(&self.held) {
            Scanned::Part => false,
            Scanned::Arguments { name, at } if is_marked || self.knows(&name) => {
                self.held.drain(..at);
                self.opened.clear();
                out.push(Piece::Call(name));
                self.state = State::Arguments { span: Span::default(), in_list, is_inner: true };
                true
            }
            Scanned::Whole { bytes } => {
                let found = call::of_object(&self.held[..bytes], is_marked);
                let Some(found) = found.filter(|(name, _)| is_marked || self.knows(name)) else {
                    return self.release(out);
                };
                self.held.drain(..bytes);
                self.call(found, in_list, out);
                true
            }
            Scanned::Arguments { .. } | Scanned::Not => self.release(out),
        }
    }

    /// A name, and its arguments behind it.
    fn named(&mut self, is_over: bool, out: &mut Vec<Piece>) -> bool {
        let open = self.held.find('{');
        let mark = self.marks.iter().filter_map(|(mark, _)| self.held.find(mark)).min();
        let end = match (open, mark) {
            (Some(open), mark) if mark.is_none_or(|mark| open < mark) => open,
            (_, Some(mark)) => mark,
            (_, None) if is_over => self.held.len(),
            (_, None) if self.held.len() > HEAD_BYTES => return self.release(out),
            (_, None) => return false,
        };
        let Some(name) = called(&self.held[..end]).filter(|name| !is_over || self.knows(name)) else {
            return self.release(out);
        };
        let name = name.to_owned();
        self.held.drain(..end);
        if open == Some(end) {
            self.opened.clear();
            out.push(Piece::Call(name));
            self.state = State::Arguments { span: Span::default(), in_list: false, is_inner: false };
        } else {
            self.call((name, "{}".to_owned()), false, out);
        }
        true
    }

    /// Passes what else a call's object has, an id for one, and its end. Some models forget that.
    fn tail(&mut self, in_list: bool) -> bool {
        let begin = self.held.trim_start();
        let blanks = self.held.len() - begin.len();
        let end = match begin.as_bytes() {
            [] => return false,
            [b'}', ..] => Some(1),
            [b',', behind @ ..] => match behind.trim_ascii_start() {
                [] => return false,
                [b'"', ..] => match Span::within(1).end(begin) {
                    None => return false,
                    end => end,
                },
                _ => None,
            },
            _ => None,
        };
        self.held.drain(..end.map_or(0, |end| blanks + end));
        self.state = State::Between { in_list, drops_blanks: true };
        true
    }

    fn call(&mut self, (name, arguments): (String, String), in_list: bool, out: &mut Vec<Piece>) {
        self.opened.clear();
        out.extend([Piece::Call(name), Piece::Arguments(arguments)]);
        self.state = State::Between { in_list, drops_blanks: true };
    }

    fn knows(&self, name: &str) -> bool {
        self.functions.iter().any(|(known, _)| known == name)
    }

    /// It is no call, so it is text.
    fn release(&mut self, out: &mut Vec<Piece>) -> bool {
        let mut text = std::mem::take(&mut self.opened);
        // What it began with is not looked at again.
        let first = self.held.chars().next().map_or(0, char::len_utf8);
        text.extend(self.held.drain(..first));
        out.extend((!text.is_empty()).then_some(Piece::Text(text)));
        self.state = State::Text;
        true
    }

    fn finish(&mut self, out: &mut Vec<Piece>) {
        if let State::Head { is_marked: true, in_list: false } = self.state
            && self.takes_names
            && !self.held.starts_with(['{', '[', '<'])
        {
            self.named(true, out);
        }
        let held = std::mem::take(&mut self.held);
        let opened = std::mem::take(&mut self.opened);
        let rest = match self.state {
            State::Between { drops_blanks: true, .. } | State::Tail { .. } if held.trim().is_empty() => return,
            State::Start | State::Between { .. } | State::Text | State::Head { .. } | State::Tail { .. } => {
                Piece::Text(opened + &held)
            }
            State::Reasoning { .. } => Piece::Reasoning(held.trim_end().to_owned()),
            State::Arguments { .. } => Piece::Arguments(held),
        };
        let (Piece::Text(text) | Piece::Reasoning(text) | Piece::Arguments(text) | Piece::Call(text)) = &rest;
        out.extend((!text.is_empty()).then_some(rest));
    }
}

/// The function's name in what stands before its arguments: alone (Mistral, DeepSeek V3.1), or behind its kind (DeepSeek V3).
fn called(head: &str) -> Option<&str> {
    let head = head.split_once("```").map_or(head, |(head, _)| head);
    let parts = head.split(DEEPSEEK_SEPARATOR).flat_map(|part| part.split("[ARGS]"));
    let parts = parts.flat_map(|part| part.split("[CALL_ID]"));
    let mut parts = parts.map(str::trim).filter(|part| !part.is_empty());
    let first = parts.next()?;
    let name = if first == "function" { parts.next().unwrap_or(first) } else { first };
    name.chars().all(|c| c.is_alphanumeric() || "_-.:/".contains(c)).then_some(name)
}

/// Bytes at the end of `text` that begin `mark` and are not all of it.
pub(super) fn overlap(text: &str, mark: &str) -> usize {
    (1..mark.len()).rev().find(|n| mark.is_char_boundary(*n) && text.ends_with(&mark[..*n])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// The answer with neighbours of a kind joined, as `T:`, `R:`, `C:` and `A:`.
    fn read(syntax: AnswerSyntax, start: AnswerStart, tokens: &[&str]) -> Vec<String> {
        let functions = [("f", json!({"properties": {"n": {"type": "integer"}}})), ("g", json!({}))];
        let functions = functions.map(|(name, schema)| (name.to_owned(), schema)).to_vec();
        let mut reader = AnswerReader::new(syntax, start, functions).expect("a reader");
        let mut pieces: Vec<Piece> = tokens.iter().flat_map(|token| reader.push(token)).collect();
        pieces.extend(reader.finish());
        let mut joined: Vec<String> = Vec::new();
        for piece in pieces {
            let (kind, text) = match piece {
                Piece::Text(text) => ("T:", text),
                Piece::Reasoning(text) => ("R:", text),
                Piece::Call(name) => ("C:", name),
                Piece::Arguments(text) => ("A:", text),
            };
            match joined.last_mut().filter(|last| last.starts_with(kind) && kind != "C:") {
                Some(last) => last.push_str(&text),
                None => joined.push(format!("{kind}{text}")),
            }
        }
        joined
    }

    fn syntax(reasons: bool, calls: CallSyntax) -> AnswerSyntax {
        AnswerSyntax { reasoning: reasons.then_some(("<think>", "</think>")), calls }
    }

    /// Whole, by characters and in threes.
    fn all_ways(syntax: AnswerSyntax, start: AnswerStart, answer: &str) -> Vec<String> {
        let whole = read(syntax, start, &[answer]);
        let ends: Vec<usize> = answer.char_indices().map(|(at, _)| at).chain([answer.len()]).collect();
        for step in [1, 3] {
            let cuts: Vec<usize> = ends.iter().copied().step_by(step).chain([answer.len()]).collect();
            let tokens: Vec<&str> = cuts.windows(2).map(|cut| &answer[cut[0]..cut[1]]).collect();
            assert_eq!(read(syntax, start, &tokens), whole, "in {step}s: {answer}");
        }
        whole
    }

    #[test]
    fn calls_are_read_as_families_write_them() {
        use CallSyntax::{
            Bare, DeepSeek, DeepSeekPlain, Granite, Harmony, Llama, Mistral, MistralNamed, Phi, Tagged, TaggedXml,
        };
        let [begin, end] = super::super::DEEPSEEK_CALLS;
        let [open, close] = super::super::DEEPSEEK_CALL;
        let sep = DEEPSEEK_SEPARATOR;
        let deepseek = format!(
            "Wait.{begin}{open}function{sep}f\n```json\n{{\"n\": 1}}\n```{close}\n{open}function{sep}g\n```json\n{{}}\n```{close}{end}"
        );
        let plain = format!("{begin}{open}f{sep}{{\"n\": 1}}{close}{open}g{sep}{{}}{close}{end}");
        let one: &[&str] = &["C:f", "A:{\"n\": 1}"];
        let two: &[&str] = &["C:f", "A:{\"n\": 1}", "C:g", "A:{}"];
        let told: &[&str] = &["T:Wait.", "C:f", "A:{\"n\": 1}", "C:g", "A:{}"];
        for (calls, answer, wanted) in [
            (Tagged, "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"n\": 1}}\n</tool_call>", one),
            (
                Tagged,
                "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"n\": 1}}\n</tool_call>\n<tool_call>\n{\"name\": \"g\", \"arguments\": {}}\n</tool_call>\n",
                two,
            ),
            (
                Tagged,
                "Wait.<tool_call>[{\"name\": \"f\", \"arguments\": {\"n\": 1}}, {\"name\": \"g\", \"arguments\": {}}]</tool_call>",
                told,
            ),
            // Without an end, and as JSON alone.
            (Tagged, "<tool_call>{\"name\": \"f\", \"arguments\": {\"n\": 1}}", one),
            (Tagged, "{\"name\": \"f\", \"arguments\": {\"n\": 1}}\n", one),
            (
                TaggedXml,
                "<tool_call>\n<function=f>\n<parameter=n>\n1\n</parameter>\n</function>\n</tool_call>",
                &["C:f", "A:{\"n\":1}"],
            ),
            (TaggedXml, "<function=f>\n<parameter=n>\n1\n</parameter>\n</function>", &["C:f", "A:{\"n\":1}"]),
            (Llama, "<function=f>{\"n\": 1}</function>", one),
            (Llama, "{\"name\": \"f\", \"parameters\": {\"n\": 1}}", one),
            (
                Llama,
                "<|python_tag|>{\"name\": \"f\", \"parameters\": {\"n\": 1}}; {\"name\": \"g\", \"parameters\": {}}",
                two,
            ),
            (
                Mistral,
                "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {\"n\": 1}, \"id\": \"abc\"}, {\"name\": \"g\", \"arguments\": {}}]",
                two,
            ),
            (Mistral, "[{\"name\": \"f\", \"arguments\": {\"n\": 1}}, {\"name\": \"g\", \"arguments\": {}}]", two),
            (MistralNamed, "Wait.[TOOL_CALLS]f[ARGS]{\"n\": 1}[TOOL_CALLS]g[CALL_ID]123[ARGS]{}", told),
            (Phi, "<|tool_call|>[{\"name\": \"f\", \"arguments\": {\"n\": 1}}]<|/tool_call|>", one),
            (Phi, "functools[{\"name\": \"f\", \"arguments\": {\"n\": 1}},{\"name\": \"g\", \"arguments\": {}}]", two),
            (
                Granite,
                "<|tool_call|>[{\"name\": \"f\", \"arguments\": {\"n\": 1}}, {\"name\": \"g\", \"arguments\": {}}]",
                two,
            ),
            (Granite, "<tool_call>[{\"name\": \"f\", \"arguments\": {\"n\": 1}}]", one),
            (DeepSeek, &deepseek, told),
            (DeepSeekPlain, &plain, two),
            (
                Harmony,
                "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{\"n\": 1}<|call|>",
                &["R:Hm.", "C:f", "A:{\"n\": 1}"],
            ),
            (Harmony, "<|channel|>final<|message|>Yes.<|return|>", &["T:Yes."]),
            (
                Harmony,
                "<|channel|>commentary<|message|>Wait.<|end|><|start|>assistant to=functions.g<|channel|>commentary<|message|><|call|>",
                &["T:Wait.", "C:g", "A:{}"],
            ),
            (Harmony, "plain", &["T:plain"]),
            (Bare, "{\"name\": \"f\", \"arguments\": {\"n\": 1}}", one),
        ] {
            assert_eq!(
                all_ways(syntax(false, calls), AnswerStart::PastReasoning, answer),
                wanted,
                "{calls:?}: {answer}"
            );
        }
    }

    #[test]
    fn what_is_no_call_is_text() {
        let tagged = syntax(false, CallSyntax::Tagged);
        for answer in [
            "Just text.",
            "  a < b and <tool",
            "{\"name\": \"unknown\", \"arguments\": {}}",
            "{\"a\": 1}",
            "{\"name\": \"f\"}",
            "[1, 2]",
            "[TOOL_CALLS]f{}",
            "<tool_call>no JSON</tool_call>"[..20].trim_end_matches('J'),
            "\n\nhello\n",
            "{not json}",
            "```json\n{}\n```",
        ] {
            assert_eq!(all_ways(tagged, AnswerStart::PastReasoning, answer), [format!("T:{answer}")], "{answer}");
        }
        // One that is cut before its arguments.
        let cut = "<tool_call>\n{\"name\": \"f\", \"argu";
        assert_eq!(all_ways(tagged, AnswerStart::PastReasoning, cut), [format!("T:{cut}")]);
        // One whose object does not end, and one with more in it.
        let open = "<tool_call>{\"name\": \"f\", \"arguments\": {}\n</tool_call>\nSo.";
        assert_eq!(all_ways(tagged, AnswerStart::PastReasoning, open), ["C:f", "A:{}", "T:So."]);
        let more = "<tool_call>{\"name\": \"f\", \"arguments\": {}, \"id\": \"}\"}</tool_call>So.";
        assert_eq!(all_ways(tagged, AnswerStart::PastReasoning, more), ["C:f", "A:{}", "T:So."]);
        // Text behind a call, and one that is cut within them.
        let behind = "<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>\n, then";
        assert_eq!(all_ways(tagged, AnswerStart::PastReasoning, behind), ["C:f", "A:{}", "T:, then"]);
        let cut = "<tool_call>{\"name\": \"f\", \"arguments\": {\"n\": [1";
        assert_eq!(all_ways(tagged, AnswerStart::PastReasoning, cut), ["C:f", "A:{\"n\": [1"]);
        // A name that nobody knows is the client's to judge, where it stands as a call.
        let unknown = "<tool_call>{\"name\": \"h\", \"arguments\": {}}</tool_call>";
        assert_eq!(all_ways(tagged, AnswerStart::PastReasoning, unknown), ["C:h", "A:{}"]);
    }

    #[test]
    fn reasoning_is_told_from_the_answer() {
        let both = syntax(true, CallSyntax::Tagged);
        for (start, answer, wanted) in [
            (AnswerStart::Free, "<think>\nHm, <b>.\n</think>\n\nYes.\n", &["R:Hm, <b>.", "T:Yes.\n"][..]),
            (AnswerStart::Free, "Yes <think>.", &["T:Yes <think>."]),
            (AnswerStart::Free, "<think>Hm", &["R:Hm"]),
            (AnswerStart::Free, "<thin", &["T:<thin"]),
            (AnswerStart::InReasoning, "Hm.\n</think>Yes.", &["R:Hm.", "T:Yes."]),
            (AnswerStart::InReasoning, "\n<think>\nHm.\n\nSo.</think>\n", &["R:Hm.\n\nSo."]),
            (AnswerStart::InReasoning, "</think>\n\nYes.", &["T:Yes."]),
            (AnswerStart::InReasoning, "  ", &[]),
            (
                AnswerStart::InReasoning,
                "Call f.\n</think>\n\n<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>",
                &["R:Call f.", "C:f", "A:{}"],
            ),
            (AnswerStart::PastReasoning, "<think>x", &["T:<think>x"]),
        ] {
            assert_eq!(all_ways(both, start, answer), wanted, "{start:?}: {answer}");
        }
    }

    proptest! {
        /// However an answer is cut into tokens, it is the same; and nothing of it is lost but marks and blanks.
        #[test]
        fn cuts_make_no_difference(
            parts in prop::collection::vec(prop::sample::select(vec![
                "<tool_call>", "</tool_call>", "{\"name\": \"f\", \"arguments\": ", "{\"n\": [1, \"}\"]}", "}", "\n", " ", "text", "{", "[", "]", ",",
                "<think>", "</think>", "<function=f>", "<parameter=n>", "</parameter>", "</function>", "é", "<", "[TOOL_CALLS]", "[ARGS]", "f",
            ]), 0..14),
            reasons: bool,
            family in prop::sample::select(vec![CallSyntax::Tagged, CallSyntax::TaggedXml, CallSyntax::Llama, CallSyntax::Mistral, CallSyntax::MistralNamed]),
            start in prop::sample::select(vec![AnswerStart::Free, AnswerStart::InReasoning, AnswerStart::PastReasoning]),
        ) {
            let answer = parts.concat();
            let found = all_ways(syntax(reasons, family), start, &answer);
            let letters = |text: &str| text.matches("text").count();
            prop_assert_eq!(letters(&found.concat()), letters(&answer), "{:?} of {}", found, answer);
        }
    }
}
