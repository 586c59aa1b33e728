//! Chat templates: Jinja with what models' templates expect of Python's transformers.

use std::time::{SystemTime, UNIX_EPOCH};

use aihost_plugin_api::{Error, ErrorKind, Message, Result};
use minijinja::value::Kwargs;
use minijinja::{Environment, ErrorKind as JinjaKind, UndefinedBehavior, Value, context};
use serde::Serialize;

/// Template instructions per rendering: far above any conversation's need, and an end to a template that loops.
const FUEL: u64 = 50_000_000;
const NAME: &str = "chat_template";

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// Compiles `source`; `bos` and `eos` are the texts of the special tokens.
    ///
    /// # Errors
    /// A message for `InvalidOptions` or `Unsupported`, whichever fits where the template came from.
    pub fn compile(source: &str, bos: String, eos: String) -> Result<Self, String> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_fuel(Some(FUEL));
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", to_json);
        environment
            .add_template_owned(NAME, source.to_owned())
            .map_err(|e| format!("the chat template does not parse: {e}"))?;
        Ok(Self { environment, bos, eos })
    }

    /// The prompt of a conversation, up to where the assistant's turn begins.
    ///
    /// # Errors
    /// `InvalidRequest` with the template's own words if it refuses the conversation.
    pub fn render(&self, messages: &[Message], tools: &[serde_json::Value]) -> Result<String> {
        if messages.is_empty() {
            return Err(Error::invalid_request("messages is empty and must have at least one message"));
        }
        let messages = messages.iter().map(message_value).collect::<Result<Vec<_>>>()?;
        let tools = if tools.is_empty() { Value::from(()) } else { Value::from_serialize(tools) };
        let refused = |e: minijinja::Error| {
            let words = e.detail().map_or_else(|| e.to_string(), str::to_owned);
            Error::invalid_request(format!("the model's chat template refused the messages: {words}"))
        };
        let template =
            self.environment.get_template(NAME).map_err(|e| Error::new(ErrorKind::Internal, e.to_string()))?;
        let values =
            context! { messages, tools, bos_token => self.bos, eos_token => self.eos, add_generation_prompt => true };
        template.render(values).map_err(refused)
    }
}

/// A message as templates know it: tool calls' arguments are objects, not JSON text as in OpenAI's form.
fn message_value(message: &Message) -> Result<serde_json::Value> {
    let mut value = serde_json::to_value(message).map_err(Error::internal)?;
    for call in value.get_mut("tool_calls").and_then(serde_json::Value::as_array_mut).into_iter().flatten() {
        if let Some(arguments) = call.pointer_mut("/function/arguments")
            && let Some(parsed) =
                arguments.as_str().and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok())
        {
            *arguments = parsed;
        }
    }
    Ok(value)
}

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(JinjaKind::InvalidOperation, message))
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=indent)`, which transformers has in place of Jinja's HTML-safe filter.
fn to_json(value: &Value, kwargs: Kwargs) -> Result<Value, minijinja::Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let failed = |e: serde_json::Error| minijinja::Error::new(JinjaKind::BadSerialization, e.to_string());
    let value = serde_json::to_value(value).map_err(failed)?;
    let mut out = Vec::new();
    match indent {
        Some(width) => {
            let spaces = " ".repeat(width.min(16));
            let formatter = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter)).map_err(failed)?;
        }
        None => {
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, PythonFormatter)).map_err(failed)?
        }
    }
    Ok(Value::from_safe_string(String::from_utf8_lossy(&out).into_owned()))
}

/// Spaces after commas and colons, as Python writes them.
struct PythonFormatter;

impl serde_json::ser::Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

/// The time in UTC; the directives that templates use.
fn strftime_now(format: &str) -> Result<String, minijinja::Error> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    strftime(format, seconds)
}

fn strftime(format: &str, seconds: u64) -> Result<String, minijinja::Error> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let days = seconds / 86_400;
    let (year, month, day) = civil(days);
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[(days % 7) as usize]);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('Y') => out += &year.to_string(),
            Some('m') => out += &format!("{month:02}"),
            Some('d') => out += &format!("{day:02}"),
            Some('B') => out += month_name,
            Some('b') => out += &month_name[..3],
            Some('A') => out += day_name,
            Some('a') => out += &day_name[..3],
            Some('H') => out += &format!("{hour:02}"),
            Some('M') => out += &format!("{minute:02}"),
            Some('S') => out += &format!("{second:02}"),
            Some('%') => out.push('%'),
            other => {
                let directive = other.map(String::from).unwrap_or_default();
                return Err(minijinja::Error::new(
                    JinjaKind::InvalidOperation,
                    format!("strftime_now does not know %{directive}"),
                ));
            }
        }
    }
    Ok(out)
}

/// Year, month (1 to 12) and day (1 to 31) of a count of days since 1970-01-01.
fn civil(days: u64) -> (u64, u64, u64) {
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let (mut year, mut rest) = (1970, days);
    while rest >= 365 + u64::from(leap(year)) {
        rest -= 365 + u64::from(leap(year));
        year += 1;
    }
    let mut month = 1;
    for length in [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if rest < length {
            break;
        }
        rest -= length;
        month += 1;
    }
    (year, month, rest + 1)
}

#[cfg(test)]
mod tests {
    use aihost_plugin_api::{ErrorKind, Message};

    use super::{ChatTemplate, strftime};

    fn render(source: &str, tools: &[serde_json::Value]) -> Result<String, aihost_plugin_api::Error> {
        let messages = [Message { role: "user".into(), content: "a < b".into(), ..Message::default() }];
        ChatTemplate::compile(source, "<s>".into(), "</s>".into()).expect("compiles").render(&messages, tools)
    }

    #[test]
    fn renders_as_transformers_does() {
        let source = "{{ bos_token }}{% for m in messages %}\n    {% if m['role'].startswith('us') %}\n[{{ m.content.strip() }}]{% endif %}\n{% endfor %}\n{{ eos_token }}{% if add_generation_prompt %}go{% endif %}";
        assert_eq!(render(source, &[]).expect("renders"), "<s>[a < b]</s>go");
    }

    #[test]
    fn json_is_pythons() {
        let tools = [serde_json::json!({"b": [1, "<é>"], "a": null})];
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
        let call = serde_json::json!([{"function": {"name": "f", "arguments": "{\"x\": 1}"}}]);
        let messages = [Message { role: "assistant".into(), tool_calls: Some(call), ..Message::default() }];
        let template =
            ChatTemplate::compile("{{ messages[0].tool_calls[0].function.arguments.x }}", String::new(), String::new());
        assert_eq!(template.expect("compiles").render(&messages, &[]).expect("renders"), "1");
    }

    #[test]
    fn dates() {
        assert_eq!(strftime("%d %b %Y %A %H:%M", 1_709_210_096).expect("known"), "29 Feb 2024 Thursday 12:34");
        assert_eq!(strftime("%Y-%m-%d", 0).expect("known"), "1970-01-01");
        assert!(strftime("%Q", 0).is_err());
    }
}
