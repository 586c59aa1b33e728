//! Tools, calls and results as text, for templates that have no place for them: in the syntax of Hermes and Qwen, which most models
//! have seen and which answers are read by.

use serde_json::{Value, json};

use super::json::dumps;

/// How a model that its template does not tell of tools is told to call them: behind their list, in a system message. Its calls are
/// JSON objects with `name` and `arguments` in `<tool_call>`, and the results that it is given stand in `<tool_response>`.
pub const INJECTED: &str = "For each function call, return a JSON object with the function's name and arguments within <tool_call></tool_call> tags:\n<tool_call>\n{\"name\": <function-name>, \"arguments\": <arguments-object>}\n</tool_call>\nResults are given back within <tool_response></tool_response> tags.";

/// The system message's text that tells of these tools.
pub(super) fn described(tools: &[Value]) -> String {
    let mut text =
        "# Tools\n\nYou may call one or more functions to assist with the user's request. Their signatures, one per line, are within <tools></tools> tags:\n<tools>\n".to_owned();
    for tool in tools {
        text.push_str(&dumps(tool));
        text.push('\n');
    }
    text.push_str("</tools>\n\n");
    text.push_str(INJECTED);
    text
}

/// The tool with all that may be left out of one and that some templates do not do without: descriptions, and parameters.
pub(super) fn completed(tool: &Value) -> Value {
    let mut tool = tool.clone();
    if let Some(Value::Object(function)) = tool.get_mut("function") {
        function.entry("description").or_insert_with(|| "".into());
        let parameters = function.entry("parameters").or_insert_with(|| json!({"type": "object"}));
        if let Value::Object(parameters) = parameters
            && let Value::Object(properties) = parameters.entry("properties").or_insert_with(|| json!({}))
        {
            for property in properties.values_mut().filter_map(Value::as_object_mut) {
                property.entry("description").or_insert_with(|| "".into());
            }
        }
    }
    tool
}

/// A call as the model would write it. Arguments that are JSON stay as they were written.
pub(super) fn call(name: &str, arguments: &str) -> String {
    let is_json = serde_json::from_str::<serde::de::IgnoredAny>(arguments).is_ok();
    let name = Value::from(name);
    let arguments = if is_json { arguments.trim().to_owned() } else { Value::from(arguments).to_string() };
    format!("<tool_call>\n{{\"name\": {name}, \"arguments\": {arguments}}}\n</tool_call>")
}

/// The results of calls, which a user gives back.
pub(super) fn results<'a>(contents: impl IntoIterator<Item = &'a str>) -> String {
    let results: Vec<String> =
        contents.into_iter().map(|content| format!("<tool_response>\n{content}\n</tool_response>")).collect();
    results.join("\n")
}
