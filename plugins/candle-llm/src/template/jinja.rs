//! One template's text, compiled: minijinja with what templates expect of Python, of Jinja and of transformers.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::error::Error as _;
use std::fmt;
use std::io::{self, Write};

use aihost_support::panics::caught;
use minijinja::value::Rest;
use minijinja::{Environment, Error, ErrorKind, Output, State, UndefinedBehavior, Value};
use serde_json::Map;

use super::dialect::{self, ATTRIBUTE, MODULO, TEXT};
use super::filters;
use super::methods;
use super::percent::modulo;
use super::text::{text, text_value};
use super::time::strftime_now;

/// Template instructions per rendering: far above any conversation's need, and an end to a template that loops.
const FUEL: u64 = 50_000_000;
/// The same for a rendering that only asks what a template does with a conversation of a few words.
const PROBE_FUEL: u64 = 1_000_000;

/// A compiled template.
#[derive(Clone, Debug)]
pub(super) struct Jinja {
    environment: Environment<'static>,
    name: &'static str,
}

/// What a template sees.
#[derive(Clone, Debug, Default)]
pub(super) struct Scene {
    pub(super) messages: Vec<serde_json::Value>,
    /// None is what a template sees of no tools.
    pub(super) tools: Vec<serde_json::Value>,
    /// Names beside its own.
    pub(super) arguments: Map<String, serde_json::Value>,
    pub(super) bos: String,
    pub(super) eos: String,
    pub(super) add_generation_prompt: bool,
}

/// What a rendering came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Rendered {
    Whole(String),
    /// There was more than may be.
    TooLong,
    /// The template's own words, by which it refuses a conversation.
    Refused(String),
    /// The template is at fault: what and where.
    Failed(String),
}

/// The words of `raise_exception`, told from all other faults.
#[derive(Debug)]
struct Refusal(String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

impl Jinja {
    /// Compiles a template's text.
    ///
    /// # Errors
    /// What does not parse, with its line.
    pub(super) fn compile(name: &'static str, source: &str) -> Result<Self, String> {
        let compile = || {
            let mut environment = environment();
            environment.add_template_owned(name, dialect::translate(source))?;
            Ok::<_, Error>(environment)
        };
        let told = |result: Result<_, Error>| result.map_err(|error| described(&error, name));
        let environment = caught(|| Ok::<_, Infallible>(told(compile())))??;
        Ok(Self { environment, name })
    }

    /// The same, for renderings that are to be short.
    pub(super) fn for_probes(&self) -> Self {
        let mut probes = self.clone();
        probes.environment.set_fuel(Some(PROBE_FUEL));
        probes
    }

    /// Renders what it sees, up to a size.
    pub(super) fn render(&self, scene: Scene, most_bytes: usize) -> Rendered {
        // Its engine panics over some of what it should refuse, the reverse of an empty text for one.
        let rendered = caught(|| Ok::<_, Infallible>(self.rendered(scene, most_bytes)));
        rendered.unwrap_or_else(|words| Rendered::Failed(format!("`{}`: {words}", self.name)))
    }

    fn rendered(&self, scene: Scene, most_bytes: usize) -> Rendered {
        let mut out = Capped { text: Vec::new(), most_bytes, is_full: false };
        let rendered = self.environment.get_template(self.name).and_then(|template| {
            template.render_captured_to(Value::from(scene.names()), &mut out)?;
            Ok(())
        });
        match rendered {
            _ if out.is_full => Rendered::TooLong,
            Ok(()) => Rendered::Whole(String::from_utf8_lossy(&out.text).into_owned()),
            Err(error) => match refusal(&error) {
                Some(words) => Rendered::Refused(words.to_owned()),
                None => Rendered::Failed(described(&error, self.name)),
            },
        }
    }
}

impl Scene {
    /// The names that the template knows; none of them stands for its own.
    fn names(self) -> BTreeMap<String, Value> {
        let is_free = |name: &String| ![ATTRIBUTE, TEXT, MODULO].contains(&name.as_str());
        let arguments = self.arguments.into_iter().filter(|(name, _)| is_free(name));
        let mut names: BTreeMap<_, _> = arguments.map(|(name, value)| (name, Value::from_serialize(value))).collect();
        names.entry("documents".to_owned()).or_insert(Value::from(()));
        let tools = if self.tools.is_empty() { Value::from(()) } else { Value::from_serialize(self.tools) };
        let own = [
            ("messages", Value::from_serialize(self.messages)),
            ("tools", tools),
            ("bos_token", Value::from(self.bos)),
            ("eos_token", Value::from(self.eos)),
            ("add_generation_prompt", Value::from(self.add_generation_prompt)),
        ];
        names.extend(own.map(|(name, value)| (name.to_owned(), value)));
        names
    }
}

fn refusal(error: &Error) -> Option<&str> {
    let mut source = error.source();
    while let Some(inner) = source {
        if let Some(Refusal(words)) = inner.downcast_ref() {
            return Some(words);
        }
        source = inner.source();
    }
    None
}

/// What is wrong and in which line.
fn described(error: &Error, name: &str) -> String {
    let what = match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    match error.line() {
        Some(line) => format!("line {line} of `{name}`: {what}"),
        None => format!("`{name}`: {what}"),
    }
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_unknown_method_callback(methods::call);
    environment.set_formatter(write);
    environment.set_fuel(Some(FUEL));
    environment.add_function(TEXT, text_value);
    environment.add_function(ATTRIBUTE, methods::attribute);
    environment
        .add_function(MODULO, |left: &Value, right: &Value, is_tuple: Option<bool>| modulo(left, right, is_tuple));
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment.add_function("joiner", minijinja_contrib::globals::joiner);
    environment.add_function("cycler", |items: Rest<Value>| minijinja_contrib::globals::cycler(items.to_vec()));
    filters::add(&mut environment);
    environment
}

fn write(out: &mut Output<'_>, _: &State<'_, '_>, value: &Value) -> Result<(), Error> {
    let failed = |_| Error::new(ErrorKind::WriteFailure, "there is no more room");
    match value.as_str() {
        Some(text) => out.write_str(text).map_err(failed),
        None => out.write_str(&text(value)?).map_err(failed),
    }
}

fn raise_exception(message: &Value) -> Result<Value, Error> {
    let words = text(message)?;
    Err(Error::new(ErrorKind::InvalidOperation, words.clone()).with_source(Refusal(words)))
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
