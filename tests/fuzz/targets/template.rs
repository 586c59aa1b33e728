//! Chat templates: what they may take is theirs to be given up for, so what is looked for is panics and wrong ends.

use std::sync::atomic::{AtomicUsize, Ordering};

use aihost_plugin_api::{ErrorKind, Message};
use candle_llm::template::{ChatTemplate, Conversation, PromptEnd};

/// Most bytes of a prompt.
const PROMPT_BYTES: usize = 64 << 10;
/// What keeps an input from running long on purpose, which the reader's own tests see to: each run that is given up leaves its
/// thread behind.
const LOOPS_MAX: usize = 2;
const DIGITS_MAX: usize = 2;
/// Runs that were given up after which no more inputs are looked at: a worker would be replaced after the first.
const GIVEN_UP_MAX: usize = 24;

static GIVEN_UP: AtomicUsize = AtomicUsize::new(0);

/// Reads the input as a template, and renders a conversation.
pub(super) fn run(input: &[u8]) {
    let Ok(source) = std::str::from_utf8(input) else { return };
    if runs_long(source) || GIVEN_UP.load(Ordering::Relaxed) > GIVEN_UP_MAX {
        return;
    }
    let template = match ChatTemplate::compile(source, "<s>".to_owned(), "</s>".to_owned()) {
        Ok(template) => template,
        Err(words) => {
            assert!(!words.contains("its engine failed"), "a panic of the engine, within its own thread");
            // One that was given up is still there.
            GIVEN_UP.fetch_add(usize::from(words.contains("to compile")), Ordering::Relaxed);
            return;
        }
    };
    for (messages, tools) in [(plain(), Vec::new()), (with_tools(), vec![tool()])] {
        let arguments = serde_json::Map::new();
        let conversation =
            Conversation { messages: &messages, tools: &tools, arguments: &arguments, end: PromptEnd::NewTurn };
        match template.render(&conversation, PROMPT_BYTES) {
            Ok(prompt) => assert!(prompt.is_none_or(|prompt| prompt.len() <= 3 * PROMPT_BYTES)),
            Err(error) => {
                let kinds = [ErrorKind::InvalidRequest, ErrorKind::Unsupported, ErrorKind::Device];
                assert!(kinds.contains(&error.kind()), "{error}");
                GIVEN_UP.fetch_add(usize::from(error.kind() == ErrorKind::Device), Ordering::Relaxed);
            }
        }
    }
}

fn runs_long(source: &str) -> bool {
    let loops = source.matches("for").count() + source.matches("macro").count() + source.matches("loop(").count();
    let numbers = source.split(|c: char| !c.is_ascii_digit() && c != '_');
    loops > LOOPS_MAX || numbers.into_iter().any(|digits| digits.len() > DIGITS_MAX)
}

fn plain() -> Vec<Message> {
    let message = Message::new;
    vec![
        message("system", "Be brief."),
        message("user", "a < b & \"c\" é\n"),
        message("assistant", ""),
        message("user", "go"),
    ]
}

fn with_tools() -> Vec<Message> {
    let call = serde_json::json!({
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": [1, null]}"}}],
    });
    let mut messages = plain();
    messages.push(serde_json::from_value(call).expect("a message"));
    messages
}

fn tool() -> serde_json::Value {
    serde_json::json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {}}}}})
}
