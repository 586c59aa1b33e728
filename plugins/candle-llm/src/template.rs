//! Chat templates: Jinja with what models' templates expect of Python's transformers.

use std::convert::Infallible;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use aihost_plugin_api::{Error, ErrorKind, Message, Result};
use aihost_support::budget::{Budget, Overrun};
use aihost_support::panics::caught;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use minijinja::value::Kwargs;
use minijinja::{Environment, ErrorKind as JinjaKind, UndefinedBehavior, Value, context};
use serde::Serialize;

/// Template instructions per rendering: far above any conversation's need, and an end to a template that loops.
const FUEL: u64 = 50_000_000;
/// Most bytes of a template; the longest of known models have a tenth of it.
const SOURCE_BYTES: usize = 1 << 20;
/// Bytes that a rendering may take beside those of its conversation, and a compilation beside those of its source.
const RENDER_BYTES: usize = 16 << 20;
/// Times the bytes of its source that a compilation may take.
const COMPILE_COPIES: usize = 64;
/// Times the bytes of its conversation that a rendering may take.
const RENDER_COPIES: usize = 8;
/// How long a rendering may run: some of what a template can do is a single instruction.
const RENDER_TIME: Duration = Duration::from_secs(10);
const NAME: &str = "chat_template";
/// Stands behind a message that is to be gone on with, so that what its template writes behind it is told from what it says. Of
/// characters that Unicode gives no meaning; the last one of a text is ours.
const END_MARK: &str = "\u{f8ff}\u{f8fe}";

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    bos: String,
    eos: String,
    /// How long a rendering may run.
    time: Duration,
}

/// Where a prompt ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromptEnd {
    /// Where the assistant's turn begins.
    NewTurn,
    /// In the last message, which is the assistant's and is to be gone on with.
    LastMessage,
}

/// What a rendering came to.
enum Rendered {
    Whole(String),
    /// There was more than may be.
    TooLong,
    /// The template's own words.
    Refused(String),
}

impl ChatTemplate {
    /// Compiles `source`; `bos` and `eos` are the texts of the special tokens.
    ///
    /// # Errors
    /// A message for `InvalidOptions` or `Unsupported`, whichever fits where the template came from.
    pub fn compile(source: &str, bos: String, eos: String) -> Result<Self, String> {
        if source.len() > SOURCE_BYTES {
            return Err(format!("the chat template has {} bytes, of at most {SOURCE_BYTES}", source.len()));
        }
        // What is constant in it is computed here.
        let bytes = RENDER_BYTES + COMPILE_COPIES * source.len();
        let owned = source.to_owned();
        let compiled = Budget { bytes, time: RENDER_TIME }.run(move || caught(|| environment(owned)));
        let environment = compiled.map_err(|overrun| match overrun {
            Overrun::Memory => format!("the chat template takes more than {bytes} bytes to compile"),
            Overrun::Time => format!("the chat template takes more than {} s to compile", RENDER_TIME.as_secs()),
            Overrun::Ended => "the chat template cannot be compiled: its engine failed".to_owned(),
        })?;
        let environment = environment.map_err(|e| format!("the chat template does not parse: {e}"))?;
        Ok(Self { environment: Arc::new(environment), bos, eos, time: RENDER_TIME })
    }

    /// Whether it has a place for tools.
    pub fn takes_tools(&self) -> bool {
        let template = self.environment.get_template(NAME);
        template.is_ok_and(|template| template.undeclared_variables(false).contains("tools"))
    }

    /// The prompt of a conversation; nothing if it has more than `most_bytes`.
    ///
    /// # Errors
    /// `InvalidRequest` with the template's own words if it refuses the conversation, or if there is nothing to go on with.
    /// `Device`, which has the process given up, if it takes far more than a template needs.
    pub fn render(
        &self,
        messages: &[Message],
        tools: &[serde_json::Value],
        end: PromptEnd,
        most_bytes: usize,
    ) -> Result<Option<String>> {
        if end == PromptEnd::NewTurn {
            return self.render_all(messages, tools, end, most_bytes);
        }
        let last = messages.last().filter(|last| last.role == "assistant" && last.tool_calls.is_none());
        let Some(last) = last else {
            let message = "the last message is not a text of the assistant's, which is what can be gone on with";
            return Err(Error::invalid_request(message).at("messages"));
        };
        let marked = Message::new("assistant", format!("{}{END_MARK}", last.content));
        let messages = [&messages[..messages.len() - 1], &[marked]].concat();
        let Some(mut text) = self.render_all(&messages, tools, end, most_bytes)? else { return Ok(None) };
        let Some(at) = text.rfind(END_MARK) else {
            let message = "the model's chat template leaves the last message out, so it cannot be gone on with";
            return Err(Error::invalid_request(message).at("messages"));
        };
        text.truncate(at);
        Ok(Some(text))
    }

    fn render_all(
        &self,
        messages: &[Message],
        tools: &[serde_json::Value],
        end: PromptEnd,
        most_bytes: usize,
    ) -> Result<Option<String>> {
        if messages.is_empty() {
            return Err(Error::invalid_request("messages is empty and must have at least one message").at("messages"));
        }
        let messages = messages.iter().map(message_value).collect::<Result<Vec<_>>>()?;
        let size = messages.iter().chain(tools).map(size).fold(0, usize::saturating_add);
        let bytes = RENDER_BYTES.saturating_add(size.saturating_mul(RENDER_COPIES));
        let (environment, tools) = (Arc::clone(&self.environment), tools.to_vec());
        let (bos, eos) = (self.bos.clone(), self.eos.clone());
        let add_generation_prompt = end == PromptEnd::NewTurn;
        let render = move || {
            let tools = if tools.is_empty() { Value::from(()) } else { Value::from_serialize(tools) };
            let values = context! { messages, tools, bos_token => bos, eos_token => eos, add_generation_prompt };
            // Its engine panics over some of what it should refuse, the reverse of an empty text for one.
            caught(|| Ok::<_, Infallible>(render(&environment, values, most_bytes))).unwrap_or_else(Rendered::Refused)
        };
        match (Budget { bytes, time: self.time }).run(render) {
            Ok(Rendered::Whole(text)) => Ok(Some(text)),
            Ok(Rendered::TooLong) => Ok(None),
            Ok(Rendered::Refused(words)) => {
                Err(Error::invalid_request(format!("the model's chat template refused the messages: {words}"))
                    .at("messages"))
            }
            Err(overrun) => Err(self.overran(overrun, bytes)),
        }
    }

    /// The template is the model's, so no client is to blame; and its thread is still there, so the process must go.
    fn overran(&self, overrun: Overrun, bytes: usize) -> Error {
        let what = match overrun {
            Overrun::Memory => format!("takes more than {bytes} bytes of memory"),
            Overrun::Time => format!("runs for more than {} s", self.time.as_secs_f32()),
            Overrun::Ended => {
                return Error::internal("the model's chat template could not be rendered; send the request again");
            }
        };
        let message =
            format!("the model's chat template {what} for one conversation; set `chat_template` in its options");
        Error::new(ErrorKind::Device, message)
    }
}

fn environment(source: String) -> Result<Environment<'static>, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_fuel(Some(FUEL));
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment.add_filter("tojson", to_json);
    environment.add_template_owned(NAME, source)?;
    Ok(environment)
}

fn render(environment: &Environment<'_>, values: Value, most_bytes: usize) -> Rendered {
    let mut out = Capped { text: Vec::new(), most_bytes, is_full: false };
    let rendered = environment.get_template(NAME).and_then(|template| {
        template.render_captured_to(values, &mut out)?;
        Ok(())
    });
    match rendered {
        _ if out.is_full => Rendered::TooLong,
        Ok(()) => Rendered::Whole(String::from_utf8_lossy(&out.text).into_owned()),
        Err(e) => Rendered::Refused(e.detail().map_or_else(|| e.to_string(), str::to_owned)),
    }
}

/// What is rendered, up to a size.
struct Capped {
    text: Vec<u8>,
    most_bytes: usize,
    is_full: bool,
}

impl Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.most_bytes - self.text.len() {
            self.is_full = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Bytes of a JSON value's texts, and a little for each of its parts.
fn size(value: &serde_json::Value) -> usize {
    const PART_BYTES: usize = 64;
    let parts = match value {
        serde_json::Value::String(text) => text.len(),
        serde_json::Value::Array(items) => items.iter().map(size).fold(0, usize::saturating_add),
        serde_json::Value::Object(fields) => {
            fields.iter().map(|(name, value)| name.len() + size(value)).fold(0, usize::saturating_add)
        }
        _ => 0,
    };
    parts.saturating_add(PART_BYTES)
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

/// The time in UTC, as Python's `strftime` writes it.
fn strftime_now(format: &str) -> Result<String, minijinja::Error> {
    strftime(format, Timestamp::now())
}

fn strftime(format: &str, time: Timestamp) -> Result<String, minijinja::Error> {
    let failed = |e| minijinja::Error::new(JinjaKind::InvalidOperation, format!("strftime_now: {e}"));
    jiff::fmt::strtime::format(format, &time.to_zoned_datetime(TimeZone::UTC)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use aihost_plugin_api::{ErrorKind, Message};

    use jiff::Timestamp;

    use super::{ChatTemplate, PromptEnd, strftime};

    fn render(source: &str, tools: &[serde_json::Value]) -> Result<String, aihost_plugin_api::Error> {
        let messages = [Message::user("a < b")];
        let template = ChatTemplate::compile(source, "<s>".into(), "</s>".into()).expect("compiles");
        template.render(&messages, tools, PromptEnd::NewTurn, MOST).map(|text| text.expect("short"))
    }

    const MOST: usize = 1 << 20;

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
                template.render(&messages, &[], PromptEnd::NewTurn, most).expect("renders").as_deref(),
                wanted,
                "{source}"
            );
        }
        // A single instruction that has much to do.
        let mut slow =
            ChatTemplate::compile("{{ [0] * 1000000000000 }}", String::new(), String::new()).expect("compiles");
        slow.time = Duration::from_millis(200);
        let error = slow.render(&messages, &[], PromptEnd::NewTurn, 50_000).expect_err("too slow");
        assert!(error.kind() == ErrorKind::Device && error.message().contains("more than 0.2 s"), "{error}");
    }

    #[test]
    fn a_last_message_is_gone_on_with() {
        let plain = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
        let trimming = plain.replace("m.content", "m.content | trim");
        let go_on = |source: &str, last: Message| {
            let messages = [Message::user("The author"), last];
            let template = ChatTemplate::compile(source, String::new(), String::new()).expect("compiles");
            template.render(&messages, &[], PromptEnd::LastMessage, MOST).map(|text| text.expect("short"))
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
            (plain, assistant("x").tool_calls(serde_json::json!([]))),
            ("{{ messages[0].content }}", assistant("x")),
        ] {
            let error = go_on(source, last).expect_err("there is nothing to go on with");
            assert_eq!((error.kind(), error.details().field.as_deref()), (ErrorKind::InvalidRequest, Some("messages")));
        }
    }

    #[test]
    fn what_the_engine_panics_over_is_refused() {
        let error = render("{{ ''[::-1] }}", &[]).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{error}");
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
        let messages = [Message::new("assistant", "").tool_calls(call)];
        let template =
            ChatTemplate::compile("{{ messages[0].tool_calls[0].function.arguments.x }}", String::new(), String::new());
        let text = template.expect("compiles").render(&messages, &[], PromptEnd::NewTurn, MOST).expect("renders");
        assert_eq!(text.as_deref(), Some("1"));
    }

    #[test]
    fn dates() {
        let at = |format: &str, seconds| strftime(format, Timestamp::from_second(seconds).expect("a time"));
        assert_eq!(at("%d %b %Y %A %H:%M", 1_709_210_096).expect("known"), "29 Feb 2024 Thursday 12:34");
        assert_eq!(at("%Y-%m-%d %B %a %S %%", 0).expect("known"), "1970-01-01 January Thu 00 %");
        // What transformers' templates ask of Python's besides.
        assert_eq!(at("%-d %y %j %I:%M %p", 1_709_210_096).expect("known"), "29 24 060 12:34 PM");
        for unknown in ["%!", "%", "%d %"] {
            let error = at(unknown, 0).expect_err(unknown);
            assert!(error.to_string().contains("strftime_now"), "{error}");
        }
    }
}
