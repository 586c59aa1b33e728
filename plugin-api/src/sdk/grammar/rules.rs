//! From what a request asks for to the text of a grammar, in llguidance's dialect of Lark.

use std::collections::HashMap;
use std::fmt::Write;

use serde_json::{Value, json};

use super::super::answer::{AnswerStart, AnswerSyntax, CallSyntax, DEEPSEEK_CALL, DEEPSEEK_CALLS, DEEPSEEK_SEPARATOR};
use super::super::{Error, Result};
use crate::task::{TextFormat, TextInput, TextRequest, ToolChoice};

/// Blanks between the parts of JSON: one, or a line's end and an indentation. A model that may write as many as it likes may never
/// end.
const BLANKS: &str = r"( |\n {0,40}|\n\t{0,20})?";

/// A request's grammar.
pub(super) struct Rules {
    pub(super) text: String,
    /// The field that asked for it.
    pub(super) field: &'static str,
}

/// The grammar of what `request` asks for; `None` if its answer may be anything.
pub(super) fn of(
    request: &TextRequest,
    syntax: AnswerSyntax,
    start: AnswerStart,
    special: &HashMap<String, u32>,
) -> Result<Option<Rules>> {
    let mut rules = Writer { special, rules: String::new(), schemas: 0 };
    let (body, field) = match (&request.input, &request.format) {
        (TextInput::Chat { tools, tool_choice, parallel_tool_calls, .. }, format) if !tools.is_empty() => {
            let calls = match tool_choice {
                ToolChoice::Named { name } => tools.iter().filter(|tool| tool["function"]["name"] == **name).collect(),
                _ => tools.iter().collect::<Vec<_>>(),
            };
            match (tool_choice, format) {
                (ToolChoice::Auto, None) => match rules.free_calls(syntax, &calls)? {
                    Some(body) => (body, "tools"),
                    None => return Ok(None),
                },
                // Calls or an answer of this form.
                (ToolChoice::Auto, Some(format)) => {
                    let answer = rules.format(format)?;
                    let calls = rules.calls(syntax, &calls, *parallel_tool_calls)?;
                    (format!("({answer} | {calls})"), "format")
                }
                (ToolChoice::Required | ToolChoice::Named { .. }, _) => {
                    let many = *parallel_tool_calls && *tool_choice == ToolChoice::Required;
                    (rules.calls(syntax, &calls, many)?, "tools")
                }
            }
        }
        (_, Some(format)) => (rules.format(format)?, "format"),
        (_, None) => return Ok(None),
    };
    let is_chat = matches!(request.input, TextInput::Chat { .. });
    let start = if is_chat { rules.reasoning(syntax, start, &body, field) } else { body };
    Ok(Some(Rules { text: format!("start: {start}\n{}", rules.rules), field }))
}

/// What is told of a form that cannot be kept, in the words of what refused it.
pub(super) fn refused(field: &'static str, words: &str) -> Error {
    // What refuses an expression draws it, and says why in the end.
    let why = words.lines().rev().find_map(|line| line.trim().strip_prefix("error: "));
    let words = why.or(words.lines().next()).unwrap_or_default().trim();
    let words = match words.split_once("Unimplemented keys: ") {
        Some((_, keys)) => {
            let keys = keys.trim_matches(['[', ']']).replace('"', "`");
            format!(
                "it uses {keys}, which cannot be kept to while a text is made; leave that out and check it in the answer"
            )
        }
        None if words.starts_with("NoExtension") => "it allows no answer".to_owned(),
        None => words.trim_end_matches("<non-verbose/>").to_owned(),
    };
    let what = if field == "tools" { "the parameters of a tool" } else { "the form of the answer" };
    Error::invalid_request(format!("{what} cannot be enforced: {words}")).at(field)
}

struct Writer<'a> {
    special: &'a HashMap<String, u32>,
    rules: String,
    schemas: usize,
}

impl Writer<'_> {
    fn rule(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing into a string cannot fail.
        let _ = writeln!(self.rules, "{line}");
    }

    /// A mark of the model's: its own token, or its text.
    fn mark(&self, text: &str) -> String {
        self.special.get(text).map_or_else(|| literal(text), |id| format!("<[{id}]>"))
    }

    /// JSON that a schema allows.
    fn schema(&mut self, schema: &Value) -> Result<String> {
        let mut schema = match schema {
            Value::Null | Value::Bool(true) => json!({}),
            Value::Bool(false) => {
                return Err(Error::invalid_request("the schema `false` allows no answer").at("format"));
            }
            Value::Object(_) => schema.clone(),
            _ => return Err(Error::invalid_request("a schema is an object or a boolean").at("format")),
        };
        schema["x-guidance"] = json!({ "whitespace_flexible": true, "whitespace_pattern": BLANKS });
        let name = format!("json_{}", self.schemas);
        self.schemas += 1;
        self.rule(format_args!("{name}: %json {schema}"));
        Ok(name)
    }

    fn format(&mut self, format: &TextFormat) -> Result<String> {
        match format {
            TextFormat::JsonObject => self.schema(&json!({"type": "object"})),
            TextFormat::JsonSchema { schema } => self.schema(schema),
            TextFormat::Regex { pattern } => {
                self.rule(format_args!("MATCH: /{}/", escaped(pattern)));
                Ok("MATCH".to_owned())
            }
            TextFormat::Lark { grammar } => {
                self.rule(format_args!("own: %lark {{\n{grammar}\n}}"));
                Ok("own".to_owned())
            }
        }
    }

    /// The arguments of a tool.
    fn arguments(&mut self, tool: &Value) -> Result<String> {
        let mut schema = match &tool["function"]["parameters"] {
            Value::Object(fields) => Value::Object(fields.clone()),
            _ => json!({"additionalProperties": false}),
        };
        if schema.get("type").is_none() {
            schema["type"] = json!("object");
        }
        self.schema(&schema)
    }

    /// A call of one of these tools, at the least.
    fn calls(&mut self, syntax: AnswerSyntax, tools: &[&Value], many: bool) -> Result<String> {
        let mut each = Vec::new();
        for (i, tool) in tools.iter().enumerate() {
            let name = tool["function"]["name"].as_str().unwrap_or_default();
            let arguments = self.arguments(tool)?;
            let rule = format!("call_{i}");
            let call = self.call(syntax.calls, name, &arguments);
            self.rule(format_args!("{rule}: {call}"));
            each.push(rule);
        }
        self.rule(format_args!("call: {}", each.join(" | ")));
        let [begin, end] = DEEPSEEK_CALLS.map(|mark| self.mark(mark));
        Ok(match syntax.calls {
            CallSyntax::Tagged | CallSyntax::TaggedXml if many => r#"call ("\n" call)*"#.to_owned(),
            CallSyntax::Mistral | CallSyntax::Phi | CallSyntax::Granite => {
                let mark =
                    self.mark(if syntax.calls == CallSyntax::Mistral { "[TOOL_CALLS]" } else { "<|tool_call|>" });
                let close = if syntax.calls == CallSyntax::Phi { self.mark("<|/tool_call|>") } else { String::new() };
                let more = if many { r#"(", " call)*"# } else { "" };
                format!(r#"{mark} "[" call {more} "]" {close}"#)
            }
            CallSyntax::MistralNamed if many => "call+".to_owned(),
            CallSyntax::DeepSeek if many => format!(r#"{begin} call ("\n" call)* {end}"#),
            CallSyntax::DeepSeekPlain if many => format!("{begin} call+ {end}"),
            CallSyntax::DeepSeek | CallSyntax::DeepSeekPlain => format!("{begin} call {end}"),
            _ => "call".to_owned(),
        })
    }

    fn call(&self, syntax: CallSyntax, name: &str, arguments: &str) -> String {
        let key = if syntax == CallSyntax::Llama { "parameters" } else { "arguments" };
        let object =
            format!("{} {arguments} \"}}\"", literal(&format!("{{\"name\": {}, \"{key}\": ", Value::from(name))));
        let [open, close] = DEEPSEEK_CALL.map(|mark| self.mark(mark));
        let separator = self.mark(DEEPSEEK_SEPARATOR);
        match syntax {
            // In tags no value is held to its schema; JSON is read there too.
            CallSyntax::Tagged | CallSyntax::TaggedXml => {
                format!(r#"{} "\n" {object} "\n" {}"#, self.mark("<tool_call>"), self.mark("</tool_call>"))
            }
            CallSyntax::Llama | CallSyntax::Bare | CallSyntax::Mistral | CallSyntax::Phi | CallSyntax::Granite => {
                object
            }
            CallSyntax::MistralNamed => {
                format!("{} {} {} {arguments}", self.mark("[TOOL_CALLS]"), literal(name), self.mark("[ARGS]"))
            }
            CallSyntax::DeepSeek => {
                let fenced = literal(&format!("{name}\n```json\n"));
                format!(r#"{open} "function" {separator} {fenced} {arguments} "\n```" {close}"#)
            }
            CallSyntax::DeepSeekPlain => format!("{open} {} {separator} {arguments} {close}", literal(name)),
            CallSyntax::Harmony => format!(
                r#"{} {} {} "json" {} {arguments}"#,
                self.mark("<|channel|>"),
                literal(&format!("commentary to=functions.{name} ")),
                self.mark("<|constrain|>"),
                self.mark("<|message|>"),
            ),
        }
    }

    /// Text in which calls may stand, whose arguments are as their schemas say; `None` if no tool is strict about them.
    fn free_calls(&mut self, syntax: AnswerSyntax, tools: &[&Value]) -> Result<Option<String>> {
        let is_strict = |tool: &&Value| tool["function"]["strict"] == true;
        if !tools.iter().any(is_strict) {
            return Ok(None);
        }
        let tools: Vec<Value> = tools
            .iter()
            .map(|tool| {
                let mut tool = (*tool).clone();
                if !is_strict(&&tool) {
                    tool["function"]["parameters"] = json!({"type": "object"});
                }
                tool
            })
            .collect();
        let calls = self.calls(syntax, &tools.iter().collect::<Vec<_>>(), true)?;
        self.rule(format_args!("TEXT: /(.|\\n)*/"));
        let mark = match syntax.calls {
            CallSyntax::Tagged | CallSyntax::TaggedXml => "<tool_call>",
            CallSyntax::Mistral | CallSyntax::MistralNamed => "[TOOL_CALLS]",
            CallSyntax::Phi | CallSyntax::Granite => "<|tool_call|>",
            CallSyntax::DeepSeek | CallSyntax::DeepSeekPlain => DEEPSEEK_CALLS[0],
            CallSyntax::Harmony => {
                let [channel, message] = ["<|channel|>", "<|message|>"].map(|mark| self.mark(mark));
                return Ok(Some(format!(r#"({calls} | {channel} "final" {message} TEXT | TEXT)"#)));
            }
            CallSyntax::Llama | CallSyntax::Bare => {
                self.rule(format_args!("WORDS: /([^{{\\[ \\n](.|\\n)*)?/"));
                return Ok(Some(format!("({calls} | WORDS)")));
            }
        };
        if self.special.contains_key(mark) {
            return Ok(Some(format!("TEXT ({calls} TEXT)*")));
        }
        // The mark is text: nothing else than a call may begin with it, and a text of calls alone has nothing before it.
        let mark = literal(mark);
        self.rule(format_args!("WORDS: TEXT & ~(TEXT {mark} TEXT)"));
        Ok(Some(format!("WORDS ({calls} WORDS)*")))
    }

    /// The same behind the reasoning that a model may write, or has begun.
    fn reasoning(&mut self, syntax: AnswerSyntax, start: AnswerStart, body: &str, field: &'static str) -> String {
        if syntax.calls == CallSyntax::Harmony {
            let [begin, channel, message, end] =
                ["<|start|>", "<|channel|>", "<|message|>", "<|end|>"].map(|mark| self.mark(mark));
            let thought = if start == AnswerStart::PastReasoning {
                String::new()
            } else {
                self.rule(format_args!("THOUGHT: /(.|\\n)*/"));
                format!(r#"({channel} "analysis" {message} THOUGHT {end} {begin} "assistant")?"#)
            };
            return match field {
                "tools" => format!("{thought} {body}"),
                _ => format!(r#"{thought} {channel} "final" {message} {body}"#),
            };
        }
        let Some((open, close)) = syntax.reasoning.filter(|_| start != AnswerStart::PastReasoning) else {
            return body.to_owned();
        };
        self.rule(format_args!("ANYTHING: /(.|\\n)*/"));
        if self.special.contains_key(close) {
            let close = self.mark(close);
            self.rule(format_args!("thought: ANYTHING {close} BLANKS"));
        } else {
            let close = literal(close);
            self.rule(format_args!("thought_end[lazy]: ANYTHING {close}"));
            self.rule(format_args!("thought: thought_end BLANKS"));
        }
        self.rule(format_args!("BLANKS: /\\n{{0,2}}/"));
        match start {
            AnswerStart::InReasoning => format!("thought {body}"),
            _ => format!("({} thought)? {body}", self.mark(open)),
        }
    }
}

/// A text in quotes.
fn literal(text: &str) -> String {
    Value::from(text).to_string()
}

/// An expression between slashes.
fn escaped(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len());
    let mut is_escaped = false;
    for c in pattern.chars() {
        match c {
            '/' if !is_escaped => out.push_str("\\/"),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
        is_escaped = c == '\\' && !is_escaped;
    }
    out
}
