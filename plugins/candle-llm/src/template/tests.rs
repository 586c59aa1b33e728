//! What templates come to: their limits, what they refuse and fail at, and what becomes of tools.

use std::sync::LazyLock;
use std::time::Duration;

use aihost_plugin_api::{ErrorKind, Message};
use serde_json::{Map, Value, json};

use super::goldens::{golden, model};
use super::{ChatTemplate, Conversation, INJECTED, PromptEnd, Templates};

fn render(source: &str, tools: &[Value]) -> Result<String, aihost_plugin_api::Error> {
    let messages = [Message::user("a < b")];
    let template = ChatTemplate::compile(source, "<s>".into(), "</s>".into()).expect("compiles");
    template.render(&conversation(&messages, tools), MOST).map(|text| text.expect("short"))
}

/// One that the assistant is to answer.
pub(super) fn conversation<'a>(messages: &'a [Message], tools: &'a [Value]) -> Conversation<'a> {
    static NONE: LazyLock<Map<String, Value>> = LazyLock::new(Map::new);
    Conversation { messages, tools, arguments: &NONE, end: PromptEnd::NewTurn }
}

pub(super) const MOST: usize = 1 << 20;

#[test]
fn no_template_takes_more_than_it_may() {
    let doubling = |step: &str| {
        format!(
            "{{% set ns = namespace(s='xxxxxxxx') %}}{{% for i in range(60) %}}{step}{{% endfor %}}{{{{ ns.s|length }}}}"
        )
    };
    for source in [
        doubling("{% set ns.s = ns.s ~ ns.s %}"),
        doubling("{% set ns.s = ns.s + ns.s %}"),
        doubling("{% set ns.s = ns.s.replace('x', 'xx') %}"),
        doubling("{% set ns.s = ns.s|replace('x', 'xx') %}"),
        doubling("{% set ns.s = [ns.s, ns.s]|join %}"),
        doubling("{% set ns.s = [ns.s, ns.s]|string %}"),
        doubling("{% set s %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = s %}"),
        doubling("{% macro m() %}{{ ns.s }}{{ ns.s }}{% endmacro %}{% set ns.s = m() %}"),
        "{{ '{:>1000000000}'.format(1)|length }}".to_owned(),
        "{{ 'x'|indent(1000000000, first=true)|length }}".to_owned(),
        "{{ ['a']|batch(1000000000, 'x')|list|length }}".to_owned(),
        "{{ ([0] * 1000000000)|list|length }}".to_owned(),
        "{{ ','.join([0] * 1000000000)|length }}".to_owned(),
        "{{ ([0] * 1000000000)|sort|length }}".to_owned(),
        "{{ (messages[0].content * 20000000)|length }}".to_owned(),
    ] {
        let error = render(&source, &[]).expect_err(&source);
        // What the engine itself refuses is as good.
        let is_told = error.kind() == ErrorKind::Device && error.message().contains("bytes of memory")
            || error.kind() == ErrorKind::InvalidRequest;
        assert!(is_told, "{source}: {error}");
    }
    // They harm no other.
    assert_eq!(render("{{ messages[0].content }}", &[]).expect("renders"), "a < b");
}

#[test]
fn what_is_longer_than_a_context_is_not_rendered_to_its_end() {
    let messages = [Message::user("0123456789")];
    let endless = "{% for i in range(9999) %}{{ messages[0].content }}{% endfor %}";
    for (source, most, wanted) in [
        ("{{ messages[0].content }}", 10, Some("0123456789")),
        ("{{ messages[0].content }}", 9, None),
        (endless, 50_000, None),
    ] {
        let template = ChatTemplate::compile(source, String::new(), String::new()).expect("compiles");
        assert_eq!(
            template.render(&conversation(&messages, &[]), most).expect("renders").as_deref(),
            wanted,
            "{source}"
        );
    }
    // A single instruction that has much to do.
    let mut slow = ChatTemplate::compile("{{ [0] * 1000000000000 }}", String::new(), String::new()).expect("compiles");
    slow.time = Duration::from_millis(200);
    let error = slow.render(&conversation(&messages, &[]), 50_000).expect_err("too slow");
    assert!(error.kind() == ErrorKind::Device && error.message().contains("more than 0.2 s"), "{error}");
}

#[test]
fn a_last_message_is_gone_on_with() {
    let plain = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
    let trimming = plain.replace("m.content", "m.content | trim");
    let go_on = |source: &str, last: Message| {
        let messages = [Message::user("The author"), last];
        let template = ChatTemplate::compile(source, String::new(), String::new()).expect("compiles");
        template
            .render(&Conversation { end: PromptEnd::LastMessage, ..conversation(&messages, &[]) }, MOST)
            .map(|text| text.expect("short"))
    };
    let assistant = |content| Message::new("assistant", content);
    for (source, last, wanted) in [
        (plain, "The author is", "<user>The author</><assistant>The author is"),
        (plain, "The author is ", "<user>The author</><assistant>The author is "),
        (&trimming, " The author is ", "<user>The author</><assistant>The author is "),
        (plain, "", "<user>The author</><assistant>"),
        // Its end is told by where it is, not by what it looks like.
        (plain, "</>", "<user>The author</><assistant></>"),
        (plain, "\u{f8ff}\u{f8fe}!", "<user>The author</><assistant>\u{f8ff}\u{f8fe}!"),
    ] {
        assert_eq!(go_on(source, assistant(last)).expect("goes on"), wanted, "{last:?}");
    }
    for (source, last) in [
        (plain, Message::user("hi")),
        (plain, assistant("x").tool_calls(json!([]))),
        ("{{ messages[0].content }}", assistant("x")),
    ] {
        let error = go_on(source, last).expect_err("there is nothing to go on with");
        assert_eq!((error.kind(), error.details().field.as_deref()), (ErrorKind::InvalidRequest, Some("messages")));
    }
}

#[test]
fn what_the_engine_panics_over_is_the_templates_fault() {
    let error = render("{{ ''[::-1] }}", &[]).expect_err("it fails");
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
}

#[test]
fn what_is_constant_in_a_template_is_bounded_too() {
    for source in ["x".repeat((1 << 20) + 1), "{{ ('x' * 90000000)|length }}".repeat(100)] {
        let error = ChatTemplate::compile(&source, String::new(), String::new()).expect_err("too much");
        assert!(error.contains("bytes"), "{error}");
    }
}

#[test]
fn renders_as_transformers_does() {
    let source = "{{ bos_token }}{% for m in messages %}\n    {% if m['role'].startswith('us') %}\n[{{ m.content.strip() }}]{% endif %}\n{% endfor %}\n{{ eos_token }}{% if add_generation_prompt %}go{% endif %}";
    assert_eq!(render(source, &[]).expect("renders"), "<s>[a < b]</s>go");
}

#[test]
fn json_is_pythons() {
    let tools = [json!({"b": [1, "<é>"], "a": null})];
    assert_eq!(render("{{ tools[0] | tojson }}", &tools).expect("renders"), r#"{"b": [1, "<é>"], "a": null}"#);
    assert_eq!(render("{{ {'a': 1} | tojson(indent=2) }}", &[]).expect("renders"), "{\n  \"a\": 1\n}");
    assert_eq!(render("{% if tools is none %}none{% endif %}", &[]).expect("renders"), "none");
}

#[test]
fn refusals_are_the_clients() {
    let error = render("{{ raise_exception('roles must alternate') }}", &[]).expect_err("raises");
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    assert!(error.message().contains("roles must alternate"));
    assert!(render("{% for a in range(10000) %}{% for b in range(10000) %}{% endfor %}{% endfor %}", &[]).is_err());
    assert!(ChatTemplate::compile("{% if %}", String::new(), String::new()).is_err());
}

#[test]
fn tool_call_arguments_are_objects() {
    let call = json!([{"function": {"name": "f", "arguments": "{\"x\": 1}"}}]);
    let messages = [Message::new("assistant", "").tool_calls(call)];
    let template =
        ChatTemplate::compile("{{ messages[0].tool_calls[0].function.arguments.x }}", String::new(), String::new());
    let text = template.expect("compiles").render(&conversation(&messages, &[]), MOST).expect("renders");
    assert_eq!(text.as_deref(), Some("1"));
}

#[test]
fn tools_that_a_template_has_no_place_for_stand_in_a_system_message() {
    let (data, chatml) = (golden("conversations.json"), model("chatml"));
    let tools = data["tools"].as_array().expect("tools");
    assert!(!chatml.writes_tools() && model("qwen3").writes_tools() && model("phi4-mini").writes_tools());
    let messages = [Message::new("system", "Be brief."), Message::user("Hi")];
    let text = chatml.render(&conversation(&messages, tools), MOST).expect("renders").expect("short");
    assert!(text.starts_with("<|im_start|>system\nBe brief.\n\n# Tools\n") && text.contains(INJECTED), "{text}");
    for tool in tools {
        assert!(text.contains(&super::json::dumps(tool)), "{text}");
    }
    // One of its own for tools is used for them.
    let hermes = model("hermes");
    assert!(hermes.writes_tools() && hermes.source_for(true).contains("<tool_call>"));
    assert!(!hermes.source_for(false).contains("<tool_call>"));
}

#[test]
fn tools_may_leave_out_what_templates_do_without() {
    let source = "{% for t in tools %}{{ t.function.name + ': ' + t.function.description + t.function.parameters.properties.x.description }}{% endfor %}";
    let parameters = json!({"type": "object", "properties": {"x": {"type": "string"}}});
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": parameters}});
    // It was asked with a tool of other parameters, and lists none of those.
    let template = ChatTemplate::compile(source, String::new(), String::new()).expect("compiles");
    assert!(!template.writes_tools());
    let source =
        source.replace("properties.x.description", "properties.values() | map(attribute='description') | first");
    let found = render(&source, &[tool]).expect("renders");
    assert_eq!(found, "f: ");
}

#[test]
fn a_client_adds_names_and_replaces_none() {
    let arguments = json!({
        "enable_thinking": false, "messages": [], "tools": 1, "bos_token": "x", "add_generation_prompt": false, "__text__": 1,
    });
    let source = "{{ bos_token ~ messages[0].content ~ enable_thinking ~ tools ~ add_generation_prompt ~ (nothing is defined) }}";
    let template = ChatTemplate::compile(source, "<s>".to_owned(), String::new()).expect("compiles");
    let messages = [Message::user("hi")];
    let conversation =
        Conversation { arguments: arguments.as_object().expect("names"), ..conversation(&messages, &[]) };
    assert_eq!(template.render(&conversation, MOST).expect("renders").as_deref(), Some("<s>hiFalseNoneTrueFalse"));
}

#[test]
fn a_template_that_does_not_parse_is_told_of_by_conversations() {
    let open = |default: Option<&str>, tool_use: Option<&str>| {
        let [default, tool_use] = [default, tool_use].map(|text| text.map(str::to_owned));
        ChatTemplate::open(Templates { default, tool_use }, String::new(), String::new())
    };
    let (broken, right) = ("a\n{% if %}", "{{ messages[0].content }}{{ tools }}");
    let messages = [Message::user("hi")];
    let template = open(Some(broken), None);
    let error = template.render(&conversation(&messages, &[]), MOST).expect_err("it does not parse");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    for part in ["line 2", "`chat_template`", "set another `chat_template` in its options"] {
        assert!(error.message().contains(part), "{error}");
    }
    assert!(template.fault().is_some_and(|fault| fault.contains("line 2")) && template.source_for(true) == broken);
    // The other one stands for it.
    for template in [open(Some(broken), Some(right)), open(Some(right), Some(broken)), open(None, Some(right))] {
        let found = template.render(&conversation(&messages, &[]), MOST).expect("renders");
        assert_eq!(found.as_deref(), Some("hiNone"), "{template:?}");
        assert_eq!(template.source_for(true), right);
    }
    assert!(open(None, Some(right)).fault().is_none());
}

#[test]
fn only_what_it_raises_is_the_clients_fault() {
    for (source, kind, part) in [
        ("{{ raise_exception('no ' ~ [none]) }}", ErrorKind::InvalidRequest, "no [None]"),
        ("{% macro m() %}{{ raise_exception('deep') }}{% endmacro %}{{ m() }}", ErrorKind::InvalidRequest, "deep"),
        ("a\n{{ messages.append(1) }}", ErrorKind::Unsupported, "line 2 of `chat_template`"),
        ("{{ strftime_now('%!') }}", ErrorKind::Unsupported, "strftime_now"),
        ("{{ '%d' % 'x' }}", ErrorKind::Unsupported, "%d needs a number"),
        ("{{ 'a' | nosuch }}", ErrorKind::Unsupported, "nosuch"),
        (
            "{% for a in range(10000) %}{% for b in range(10000) %}{% endfor %}{% endfor %}",
            ErrorKind::Unsupported,
            "fuel",
        ),
    ] {
        let error = render(source, &[]).expect_err(source);
        assert_eq!(error.kind(), kind, "{source}: {error}");
        assert!(error.message().contains(part), "{source}: {error}");
    }
}

#[test]
fn an_id_of_nine_characters_is_always_the_same() {
    let template = model("mistral");
    let call = |id: &str| json!([{"id": id, "type": "function", "function": {"name": "f", "arguments": "{}"}}]);
    let prompt = |id: &str| {
        let result = Message::new("tool", "ok").tool_call_id(id.to_owned());
        let messages = [Message::user("a"), Message::new("assistant", "").tool_calls(call(id)), result];
        template.render(&conversation(&messages, &[]), MOST).expect("renders").expect("short")
    };
    assert!(prompt("Ab3456789").contains("\"call_id\": \"Ab3456789\""));
    let text = prompt("call_abcdefghijkl");
    let id = text.split("\"call_id\": \"").nth(1).and_then(|rest| rest.get(..9)).expect("an id");
    assert!(id.chars().all(|c| c.is_ascii_alphanumeric()) && text.matches(id).count() == 2, "{text}");
    assert!(text == prompt("call_abcdefghijkl") && text != prompt("call_abcdefghijkm"));
}
