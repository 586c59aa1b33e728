//! Chat templates in the model's file: the one for tools, and one that cannot be used.

use aihost_plugin_api::{ErrorKind, Message, TextInput, TextRequest, ToolChoice};
use serde_json::json;

use super::{gguf, host, request};

/// The tiny model with these texts in its metadata.
fn with_texts(texts: &[(&str, &str)]) -> Vec<u8> {
    const COUNT_AT: usize = 16;
    let mut more = Vec::new();
    for (name, value) in texts {
        super::key(&mut more, name, 8);
        super::text(&mut more, value);
    }
    // Weights begin at a multiple of 32 bytes.
    super::key(&mut more, "padding", 8);
    let padding = (more.len() + 8).next_multiple_of(32) - more.len() - 8;
    super::text(&mut more, &" ".repeat(padding));
    let mut file = gguf();
    let count = u64::from_le_bytes(file[COUNT_AT..COUNT_AT + 8].try_into().expect("eight")) + texts.len() as u64 + 1;
    file[COUNT_AT..COUNT_AT + 8].copy_from_slice(&count.to_le_bytes());
    file.splice(COUNT_AT + 8..COUNT_AT + 8, more);
    file
}

fn prompt_tokens(host: &aihost_plugin_api::testing::MockHost, input: TextInput) -> u32 {
    host.generate(&TextRequest::new(input).tokenize(true)).expect("it is counted").finish.usage.prompt_tokens
}

#[test]
fn the_template_for_tools_is_used_when_there_are_tools() {
    let file = with_texts(&[
        ("tokenizer.chat_template", "{{ messages[0].content }}"),
        (
            "tokenizer.chat_template.tool_use",
            "{{ messages[0].content }}{% for t in tools %}{{ t.function.name }}{% endfor %}",
        ),
    ]);
    let (_folder, host) = host(&file, json!({}));
    let host = host.expect("loads");
    let messages = || vec![Message::user("xyz")];
    assert_eq!(prompt_tokens(&host, TextInput::chat(messages())), 3);
    let tool = json!({"type": "function", "function": {"name": "call"}});
    assert_eq!(prompt_tokens(&host, TextInput::with_tools(messages(), vec![tool], ToolChoice::Auto)), 7);
}

#[test]
fn a_template_that_does_not_parse_leaves_completions_to_be_served() {
    let file = with_texts(&[("tokenizer.chat_template", "{{ messages[0].content }}\n{% nosuch %}")]);
    let (_folder, own) = host(&file, json!({}));
    let own = own.expect("loads");
    own.generate(&request("xyz", 2)).expect("completions need no template");
    let error = own.generate(&TextRequest::ask("xyz").max_tokens(1)).expect_err("a chat does");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(
        error.message().contains("line 2") && error.message().contains("`chat_template` in its options"),
        "{error}"
    );
    // Another one stands in for it; and one that is asked for is to be right.
    let (_folder, right) = host(&file, json!({"chat_template": "{{ messages[0].content }}"}));
    right.expect("loads").generate(&TextRequest::ask("xyz").max_tokens(1)).expect("answers");
    let (_folder, wrong) = host(&file, json!({"chat_template": "{% nosuch %}"}));
    let error = wrong.expect_err("it does not parse");
    assert!(error.kind() == ErrorKind::InvalidOptions && error.message().contains("options.chat_template"), "{error}");
}

#[test]
fn marks_of_what_is_trained_on_are_nothing() {
    let template = "{% for m in messages %}{%- generation -%}{{ m.content }}{%- endgeneration -%}{% endfor %}";
    let (_folder, host) = host(&with_texts(&[("tokenizer.chat_template", template)]), json!({}));
    assert_eq!(prompt_tokens(&host.expect("loads"), TextInput::chat(vec![Message::user("xyz")])), 3);
}
