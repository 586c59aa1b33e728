//! Templates held against Python's transformers, and against what was once wrong.

use std::path::Path;

use aihost_plugin_api::{ErrorKind, Message};
use serde_json::Value;

use super::jinja::{Jinja, Rendered, Scene};
use super::tests::{MOST, conversation};
use super::{ChatTemplate, Templates};

/// Data of tests/golden/templates, whose generate.py makes it.
pub(super) fn golden(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/templates").join(name);
    serde_json::from_slice(&std::fs::read(path).expect("golden data is in the repository")).expect("it is JSON")
}

fn messages_of(value: &Value) -> Vec<Message> {
    value
        .as_array()
        .expect("messages")
        .iter()
        .map(|one| serde_json::from_value(one.clone()).expect("a message"))
        .collect()
}

#[test]
fn expressions_come_to_what_python_makes_of_them() {
    let data = golden("expressions.json");
    let (messages, tools) = (messages_of(&data["messages"]), data["tools"].as_array().expect("tools").clone());
    let mut wrong = Vec::new();
    for case in data["cases"].as_array().expect("cases") {
        let source = case["template"].as_str().expect("a text");
        let found = Jinja::compile("t", source).map(|jinja| {
            let scene = Scene {
                messages: messages.iter().map(|one| serde_json::to_value(one).expect("JSON")).collect(),
                tools: tools.clone(),
                bos: "<s>".to_owned(),
                eos: "</s>".to_owned(),
                add_generation_prompt: true,
                ..Scene::default()
            };
            jinja.render(scene, MOST)
        });
        let is_right = match (&found, case["expected"].as_str()) {
            (Ok(Rendered::Whole(text)), Some(expected)) => text == expected,
            (found, None) => !matches!(found, Ok(Rendered::Whole(_))),
            _ => false,
        };
        if !is_right {
            wrong.push(format!("{source}\n  is {found:?}\n  not {:?}", case["expected"]));
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn prompts_are_those_of_transformers() {
    let (data, prompts) = (golden("conversations.json"), golden("prompts.json"));
    let tools = data["tools"].as_array().expect("tools");
    let mut wrong = Vec::new();
    for (name, of_template) in prompts.as_object().expect("templates") {
        let template = model(name);
        for (conversation_name, expected) in of_template.as_object().expect("conversations") {
            let messages = messages_of(&data["conversations"][conversation_name]);
            for (key, tools) in [("plain", &tools[..0]), ("tools", &tools[..])] {
                let found = template.render(&conversation(&messages, tools), MOST);
                let is_right = match (&found, expected[key].as_str()) {
                    (Ok(Some(text)), Some(expected)) => text == expected,
                    (Err(error), None) => error.kind() == ErrorKind::InvalidRequest,
                    _ => false,
                };
                if !is_right {
                    wrong.push(format!(
                        "{name}, {conversation_name}, {key}:\n{found:?}\nin place of\n{:?}\n",
                        expected[key]
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

/// The template of a model's shape, and the one for tools if there is one.
pub(super) fn model(name: &str) -> ChatTemplate {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/templates/models");
    let text = |name: String| std::fs::read_to_string(folder.join(name)).ok();
    let templates =
        Templates { default: text(format!("{name}.jinja")), tool_use: text(format!("{name}.tool_use.jinja")) };
    ChatTemplate::open(templates, "<s>".to_owned(), "</s>".to_owned())
}

/// Templates that were once rendered wrongly, or not at all (faults.json).
#[test]
fn what_was_once_wrong_is_right() {
    for case in golden("faults.json").as_array().expect("cases") {
        let source = case["template"].as_str().expect("a text");
        let expected = case["expected"].as_str().expect("a text");
        let messages: Vec<Message> = case["messages"]
            .as_array()
            .expect("messages")
            .iter()
            .map(|message| {
                let mut message = message.clone();
                // As the host has it.
                message["content"] = message["content"].as_str().unwrap_or_default().into();
                serde_json::from_value(message).expect("a message")
            })
            .collect();
        let template = ChatTemplate::compile(source, String::new(), String::new()).expect("compiles");
        let tools = case["tools"].as_array().expect("tools");
        let tools = if source.contains("tools") { &tools[..] } else { &[] };
        let text = template.render(&conversation(&messages, tools), MOST).expect("renders");
        assert_eq!(text.as_deref(), Some(expected), "{}", case["name"]);
    }
}

#[test]
fn no_call_and_no_result_is_lost() {
    let (data, prompts) = (golden("conversations.json"), golden("prompts.json"));
    let tools = data["tools"].as_array().expect("tools");
    for name in prompts.as_object().expect("templates").keys() {
        let template = model(name);
        for (conversation_name, messages) in data["conversations"].as_object().expect("conversations") {
            let messages = messages_of(messages);
            for tools in [&tools[..0], &tools[..]] {
                let Ok(text) = template.render(&conversation(&messages, tools), MOST) else {
                    assert_eq!(conversation_name, "stray_result", "{name}");
                    continue;
                };
                // In JSON, and in JSON that is a text.
                let text = text.expect("short").replace('\\', "");
                for needle in needles(&messages) {
                    assert!(text.contains(&needle), "{name}, {conversation_name}: {needle} is not in {text}");
                }
            }
        }
    }
}

/// What is to be found of a conversation's calls and results: names, texts and results.
fn needles(messages: &[Message]) -> Vec<String> {
    let mut needles = Vec::new();
    for message in messages {
        if message.role == "tool" {
            needles.push(message.content.clone());
        }
        for call in message.tool_calls.iter().flat_map(|calls| calls.as_array().expect("calls")) {
            needles.push(call["function"]["name"].as_str().expect("a name").to_owned());
            let arguments = call["function"]["arguments"].as_str().expect("a text");
            needles.extend(
                arguments.split(['"', '\\']).filter(|part| part.chars().all(char::is_alphanumeric)).map(str::to_owned),
            );
        }
    }
    needles
}
