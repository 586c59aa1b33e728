//! What a message tells the model to do, line by line, so that a client's test has every event that it needs from a model
//! without weights. It knows nothing of how events leave.

use aihost_plugin_api::{Message, TextInput};
use serde_json::{Map, Value};

/// One thing that the model does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// `say: TEXT`
    Say(String),
    /// `think: TEXT`
    Think(String),
    /// `refuse: TEXT`
    Refuse(String),
    /// `call: NAME {"its": "arguments"}`
    Call { name: String, arguments: String },
}

/// What the last message says: its lines that begin as above; else a call of a given tool that it spells out, such as
/// `add(1, 2)`; else the message is said back. The result of a tool is said back too.
pub(crate) fn acts(input: &TextInput, last_message: &str) -> Vec<Act> {
    let (last, tools) = match input {
        TextInput::Chat { messages, tools, .. } => (messages.last(), tools.as_slice()),
        _ => (None, &[][..]),
    };
    if let Some(Message { content, .. }) = last.filter(|message| message.role == "tool") {
        return vec![Act::Say(content.clone())];
    }
    let acts: Vec<Act> = last_message.lines().filter_map(act).collect();
    if !acts.is_empty() {
        return acts;
    }
    let call = tools.iter().find_map(|tool| spelled(tool, last_message));
    vec![call.unwrap_or_else(|| Act::Say(last_message.to_owned()))]
}

fn act(line: &str) -> Option<Act> {
    let (verb, rest) = line.split_once(": ")?;
    Some(match verb {
        "say" => Act::Say(rest.to_owned()),
        "think" => Act::Think(rest.to_owned()),
        "refuse" => Act::Refuse(rest.to_owned()),
        "call" => {
            let (name, arguments) = rest.split_once(' ').unwrap_or((rest, "{}"));
            Act::Call { name: name.to_owned(), arguments: arguments.to_owned() }
        }
        _ => return None,
    })
}

/// A call of this tool as the text spells it: arguments by their place, as the tool's schema requires or lists them.
fn spelled(tool: &Value, text: &str) -> Option<Act> {
    let function = &tool["function"];
    let name = function["name"].as_str()?;
    let (_, rest) = text.split_once(&format!("{name}("))?;
    let values: Vec<Value> = serde_json::from_str(&format!("[{}]", rest.split_once(')')?.0)).ok()?;
    let parameters = &function["parameters"];
    let names: Vec<&str> = match parameters["required"].as_array() {
        Some(required) => required.iter().filter_map(Value::as_str).collect(),
        None => parameters["properties"].as_object().into_iter().flat_map(Map::keys).map(String::as_str).collect(),
    };
    let arguments: Map<String, Value> = names.into_iter().map(ToOwned::to_owned).zip(values).collect();
    Some(Act::Call { name: name.to_owned(), arguments: Value::Object(arguments).to_string() })
}

#[cfg(test)]
mod tests {
    use aihost_plugin_api::{Message, TextInput};
    use serde_json::{Value, json};

    use super::{Act, acts};

    fn of(text: &str, tools: &[Value]) -> Vec<Act> {
        let input = json!({"type": "chat", "messages": [{"role": "user", "content": text}], "tools": tools});
        acts(&serde_json::from_value(input).unwrap(), text)
    }

    #[test]
    fn lines_are_acted_out_in_order() {
        let text = "think: why\nignored\nsay: a b\ncall: f {\"x\":1}\ncall: g\nrefuse: no";
        let call = |name: &str, arguments: &str| Act::Call { name: name.to_owned(), arguments: arguments.to_owned() };
        let wanted = [
            Act::Think("why".to_owned()),
            Act::Say("a b".to_owned()),
            call("f", "{\"x\":1}"),
            call("g", "{}"),
            Act::Refuse("no".to_owned()),
        ];
        assert_eq!(of(text, &[]), wanted);
        assert_eq!(of("just: this", &[]), [Act::Say("just: this".to_owned())]);
    }

    #[test]
    fn a_call_that_is_spelled_out_is_made() {
        let schema = json!({"properties": {"b": {}, "a": {}}, "required": ["b", "a"]});
        let tools = [json!({"function": {"name": "add", "parameters": schema}})];
        let called = of("What is add(3, \"x\")?", &tools);
        let [Act::Call { name, arguments }] = called.as_slice() else { panic!("{called:?}") };
        // In whichever order objects have their members here.
        let arguments: Value = serde_json::from_str(arguments).unwrap();
        assert_eq!((name.as_str(), arguments), ("add", json!({"a": "x", "b": 3})));
        assert_eq!(of("add(what", &tools), [Act::Say("add(what".to_owned())]);
    }

    #[test]
    fn a_result_is_said_back() {
        let messages = vec![Message::user("call: f"), Message::new("tool", "21 degrees")];
        assert_eq!(acts(&TextInput::chat(messages), "call: f"), [Act::Say("21 degrees".to_owned())]);
    }
}
