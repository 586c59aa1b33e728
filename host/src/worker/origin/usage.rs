//! Reads, while an answer passes, how many tokens its server says it took: OpenAI's and Anthropic's words for it, in one piece
//! or in server-sent events. Nothing of the answer is kept but the place where that may stand.

use bytes::Bytes;
use hyper::HeaderMap;
use serde::{Deserialize, Serialize};

/// What stands before it.
const KEY: &[u8] = b"\"usage\"";
/// Most bytes of what stands behind it.
const VALUE_BYTES: usize = 4 << 10;

/// Tokens that a server says it took.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Tokens {
    prompt_tokens: u64,
    completion_tokens: u64,
    cached_tokens: u64,
}

/// What was seen of one answer.
#[derive(Debug)]
pub(super) enum UsageReader {
    /// It is of a form that says nothing of tokens.
    Blind,
    /// The end of what passed that may be the beginning of what is looked for, and what was found.
    Reading(Vec<u8>, Option<Tokens>),
}

/// Under the names of every API.
#[derive(Deserialize)]
struct Counted {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    prompt_tokens_details: Option<Details>,
    input_tokens_details: Option<Details>,
}

#[derive(Deserialize)]
struct Details {
    cached_tokens: Option<u64>,
}

impl UsageReader {
    /// For an answer with these headers.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let is_packed = headers.contains_key(hyper::header::CONTENT_ENCODING);
        match super::answer::media(headers) {
            "application/json" | "text/event-stream" if !is_packed => Self::Reading(Vec::new(), None),
            _ => Self::Blind,
        }
    }

    /// More of it passes.
    pub(super) fn see(&mut self, data: &Bytes) {
        let Self::Reading(rest, found) = self else { return };
        rest.extend_from_slice(data);
        let mut from = 0;
        while let Some(at) = memchr::memmem::find(&rest[from..], KEY) {
            let value = from + at + KEY.len();
            match read(&rest[value..]) {
                Value::Counted(usage) => {
                    let before = found.take().unwrap_or_default();
                    *found = Some(merged(before, &usage));
                    from = value;
                }
                Value::Other => from = value,
                // The rest of it has not come yet.
                Value::Cut if rest.len() - value < VALUE_BYTES => {
                    rest.drain(..from + at);
                    return;
                }
                Value::Cut => from = value,
            }
        }
        let keep = rest.len().saturating_sub(KEY.len() - 1).max(from);
        rest.drain(..keep);
    }

    /// What it came to.
    pub(super) fn found(self) -> Option<Tokens> {
        match self {
            Self::Blind => None,
            Self::Reading(_, found) => found,
        }
    }
}

/// What stands behind the key.
enum Value {
    Counted(Box<Counted>),
    Other,
    Cut,
}

fn read(behind: &[u8]) -> Value {
    let Some(value) = behind.trim_ascii_start().strip_prefix(b":") else {
        return if behind.trim_ascii_start().is_empty() { Value::Cut } else { Value::Other };
    };
    match serde_json::Deserializer::from_slice(value).into_iter::<Counted>().next() {
        Some(Ok(counted)) => Value::Counted(Box::new(counted)),
        Some(Err(error)) if error.is_eof() => Value::Cut,
        None => Value::Cut,
        Some(Err(_)) => Value::Other,
    }
}

/// The later word counts, where there is one: some say the prompt first and the answer last.
fn merged(mut usage: Tokens, counted: &Counted) -> Tokens {
    let details = counted.prompt_tokens_details.as_ref().or(counted.input_tokens_details.as_ref());
    for (field, said) in [
        (&mut usage.prompt_tokens, counted.prompt_tokens.or(counted.input_tokens)),
        (&mut usage.completion_tokens, counted.completion_tokens.or(counted.output_tokens)),
        (&mut usage.cached_tokens, details.and_then(|details| details.cached_tokens)),
    ] {
        if let Some(said) = said {
            *field = said;
        }
    }
    usage
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is read of an answer that comes in pieces of so many bytes.
    fn in_pieces(answer: &str, bytes: usize) -> Option<(u64, u64, u64)> {
        let mut reader = UsageReader::Reading(Vec::new(), None);
        for piece in answer.as_bytes().chunks(bytes) {
            reader.see(&Bytes::copy_from_slice(piece));
            let UsageReader::Reading(rest, _) = &reader else { panic!("it reads") };
            assert!(rest.len() < VALUE_BYTES + KEY.len(), "{} bytes are kept", rest.len());
        }
        reader.found().map(|usage| (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens))
    }

    #[test]
    fn tokens_are_counted_however_an_answer_is_cut_and_whoever_made_it() {
        let openai = r#"{"choices":[{"message":{"content":"say \"usage\": {\"prompt_tokens\": 9}"}}],"usage" : {"prompt_tokens":7,"completion_tokens":5,"prompt_tokens_details":{"cached_tokens":3}}}"#;
        let stream = "data: {\"choices\":[{}],\"usage\":null}\n\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":5}}\n\ndata: [DONE]\n\n";
        let messages = "event: message_start\ndata: {\"message\":{\"usage\":{\"input_tokens\":7,\"output_tokens\":1}}}\n\nevent: message_delta\ndata: {\"usage\":{\"output_tokens\":5}}\n\n";
        let long =
            format!("{}{stream}", "data: {\"choices\":[{\"delta\":{\"content\":\"\\\"usage\\\"\"}}]}\n\n".repeat(500));
        for bytes in [1, 2, 3, 7, 64, 1 << 20] {
            assert_eq!(in_pieces(openai, bytes), Some((7, 5, 3)), "{bytes}");
            assert_eq!(in_pieces(stream, bytes), Some((7, 5, 0)), "{bytes}");
            assert_eq!(in_pieces(messages, bytes), Some((7, 5, 0)), "{bytes}");
            assert_eq!(in_pieces(&long, bytes), Some((7, 5, 0)), "{bytes}");
            assert_eq!(in_pieces("{\"usage\":\"none\"}", bytes), None);
            assert_eq!(in_pieces(&format!("{{\"usage\":{{\"a\":\"{}", "x".repeat(9000)), bytes), None);
        }
    }
}
