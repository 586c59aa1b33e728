//! Renders conversations by chat templates: `{"templates": {NAME: TEXT}, "cases": {NAME: {"messages": [], "tools": [], "arguments": {}}}}`
//! on the standard input, and on the standard output what each comes to, by template and case: a text, or null where it is refused.
//! tests/golden/templates/measure.py holds that against Python's jinja2.

use std::collections::BTreeMap;
use std::io::{Read, Write, stdin, stdout};

use aihost_plugin_api::Message;
use candle_llm::template::{ChatTemplate, Conversation, PromptEnd, Templates};
use serde::Deserialize;
use serde_json::{Map, Value};

/// Most bytes of a prompt.
const PROMPT_BYTES: usize = 1 << 20;

#[derive(Deserialize)]
struct Input {
    templates: BTreeMap<String, String>,
    cases: BTreeMap<String, Case>,
}

#[derive(Deserialize)]
struct Case {
    messages: Vec<Message>,
    tools: Vec<Value>,
    arguments: Map<String, Value>,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut text = String::new();
    stdin().read_to_string(&mut text)?;
    let Input { templates, cases } = serde_json::from_str(&text)?;
    let render = |source: String| {
        let templates = Templates { default: Some(source), tool_use: None };
        let template = ChatTemplate::open(templates, "<s>".to_owned(), "</s>".to_owned());
        let one = |case: &Case| {
            let Case { messages, tools, arguments } = case;
            let conversation = Conversation { messages, tools, arguments, end: PromptEnd::NewTurn };
            template.render(&conversation, PROMPT_BYTES).ok().flatten()
        };
        cases.iter().map(|(name, case)| (name.clone(), one(case))).collect::<BTreeMap<_, _>>()
    };
    let all: BTreeMap<_, _> = templates.into_iter().map(|(name, source)| (name, render(source))).collect();
    stdout().write_all(serde_json::to_string(&all)?.as_bytes())?;
    Ok(())
}
