//! What is wrong with a configuration: file, line, key, value, and what to do.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::domain::{ByteSize, nearest, printable};

/// Problems that one run tells of; who mends twenty runs it again.
pub(super) const PROBLEMS_TOLD: usize = 20;
/// Bytes shown of a name or a value that somebody typed.
const TYPED_SHOWN_BYTES: usize = 200;
/// Bytes shown of a sentence, the parser's own among them, which repeat what was typed.
const SENTENCE_SHOWN_BYTES: usize = 1_000;

/// A configuration that is not used, and everything that is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file, if one was found.
    pub file: Option<PathBuf>,
    /// At least one, at most `PROBLEMS_TOLD`.
    pub problems: Vec<Problem>,
    /// How many more there are.
    pub more: usize,
}

/// One wrong thing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problem {
    /// Counted from 1.
    pub line: Option<usize>,
    /// From the document's root: `models.smollm2.memory`.
    pub key: Option<String>,
    /// What was typed.
    pub value: Option<String>,
    /// What is wrong with it.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, problem) in self.problems.iter().enumerate() {
            if position > 0 {
                writeln!(f)?;
            }
            if let Some(file) = &self.file {
                write!(f, "{}:", file.display())?;
                if let Some(line) = problem.line {
                    write!(f, "{line}:")?;
                }
                write!(f, " ")?;
            }
            write!(f, "{problem}")?;
        }
        match self.more {
            0 => Ok(()),
            more => write!(f, "\nand {more} more problems"),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(key) = &self.key {
            write!(f, "{}: ", Shown(key, TYPED_SHOWN_BYTES))?;
        }
        if let Some(value) = &self.value {
            write!(f, "`{}` ", Shown(value, TYPED_SHOWN_BYTES))?;
        }
        write!(f, "{}", Shown(&self.message, SENTENCE_SHOWN_BYTES))?;
        if let Some(hint) = &self.hint {
            write!(f, "\nhint: {}", Shown(hint, SENTENCE_SHOWN_BYTES))?;
        }
        Ok(())
    }
}

/// The beginning of a text that may be of any length, as it may be printed.
struct Shown<'a>(&'a str, usize);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(text, most) = *self;
        let (shown, rest) = text.split_at(text.floor_char_boundary(most));
        f.write_str(&printable(shown))?;
        match rest.len() {
            0 => Ok(()),
            bytes => write!(f, "... ({bytes} bytes more)"),
        }
    }
}

impl std::error::Error for ConfigError {}

impl ConfigError {
    /// Each problem as a line.
    pub fn lines(&self) -> Vec<String> {
        let one = |problem: &Problem| Self { file: self.file.clone(), problems: vec![problem.clone()], more: 0 };
        self.problems.iter().map(|problem| one(problem).to_string().replace("\nhint: ", "; ")).collect()
    }

    /// The first problem, and how many more there are, as a part of a sentence.
    pub fn sentence(&self) -> String {
        let text = self.lines().into_iter().next().unwrap_or_default();
        match self.problems.len().saturating_sub(1) + self.more {
            0 => text,
            more => format!("{text} (and {more} more problems)"),
        }
    }

    pub(super) fn one(file: Option<&Path>, problem: Problem) -> Self {
        Self { file: file.map(Path::to_owned), problems: vec![problem], more: 0 }
    }

    /// No models.yaml in any of the usual places.
    pub(super) fn none_found(candidates: &[PathBuf]) -> Self {
        let places = candidates.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ");
        let message = format!("there is no models.yaml (looked for {places})");
        let hint = "write one with `aihost init`, or name one with `--config FILE` or AIHOST_CONFIG".to_owned();
        Self::one(None, Problem { message, hint: Some(hint), ..Problem::default() })
    }

    pub(super) fn unreadable(file: &Path, error: &std::io::Error) -> Self {
        let hint = match error.kind() {
            std::io::ErrorKind::NotFound => Some("check the name, or write one with `aihost init`".to_owned()),
            _ => None,
        };
        let message = format!("cannot be read: {error}");
        Self::one(Some(file), Problem { message, hint, ..Problem::default() })
    }

    pub(super) fn too_large(file: &Path, most: ByteSize) -> Self {
        let hint = Some("it is not a models.yaml, or it has far too many entries; check the name".to_owned());
        Self::one(Some(file), Problem { message: format!("is larger than {most}"), hint, ..Problem::default() })
    }

    pub(super) fn opens(file: &Path, line: usize) -> Self {
        let message = "opens brackets or lists inside one another by the hundred and does not close them".to_owned();
        let hint = Some("close what is opened; a text with brackets goes into quotes".to_owned());
        Self::one(Some(file), Problem { line: Some(line), message, hint, ..Problem::default() })
    }

    pub(super) fn repeats(file: &Path) -> Self {
        let message = "repeats itself by its aliases (`*name`) into far more than it says".to_owned();
        let hint = Some("write out what is repeated, or say it once in `defaults:`".to_owned());
        Self::one(Some(file), Problem { message, hint, ..Problem::default() })
    }

    /// A text that is not YAML, or not of the shape of a models.yaml.
    pub(super) fn from_yaml(file: &Path, text: &str, error: &serde_yaml::Error) -> Self {
        let line = error.location().map(|location| location.line());
        let full = error.to_string();
        let full = full.rsplit_once(" at line ").map_or(full.as_str(), |(message, _)| message);
        let (key, message) = match full.split_once(": ") {
            Some((path, rest)) if is_path(path) => (Some(path.to_owned()), rest),
            _ => (None, full),
        };
        let problem = match unknown_field(message) {
            Some((field, known)) => Problem {
                line,
                key: Some(key.map_or_else(|| field.to_owned(), |key| format!("{key}.{field}"))),
                value: None,
                message: "is not a key of this section".to_owned(),
                hint: Some(unknown_hint(field, &known)),
            },
            None if message.contains("more than one document") => Problem {
                line: second_document(text),
                message: "is a second document: a models.yaml is one".to_owned(),
                hint: Some("remove the `---` between them, and what belongs to another file".to_owned()),
                ..Problem::default()
            },
            None => {
                let tab = line.and_then(|n| text.lines().nth(n - 1)).is_some_and(|line| line.contains('\t'));
                let hint = match () {
                    () if tab => Some("YAML is indented with spaces; this line has a tab".to_owned()),
                    () if message.contains("expected a boolean") => Some("write `true` or `false`".to_owned()),
                    () => None,
                };
                Problem { line, key, value: None, message: message.to_owned(), hint }
            }
        };
        Self::one(Some(file), problem)
    }
}

/// The line that begins another document, counted from 1.
fn second_document(text: &str) -> Option<usize> {
    let begins = |line: &str| line == "---" || line.starts_with("--- ");
    let mut lines = text.lines().enumerate().skip_while(|(_, line)| {
        let line = line.trim();
        line.is_empty() || line.starts_with('#') || line.starts_with('%') || begins(line)
    });
    lines.find(|(_, line)| begins(line.trim_end())).map(|(number, _)| number + 1)
}

/// Whether this is the parser's `models.a.port` and not the start of a sentence.
fn is_path(text: &str) -> bool {
    !text.is_empty() && !text.contains(' ')
}

/// The field and the known ones, from serde's sentence ("unknown field `x`, expected one of `a`, `b`").
fn unknown_field(message: &str) -> Option<(&str, Vec<&str>)> {
    let mut quoted = message.strip_prefix("unknown field ")?.split('`').skip(1).step_by(2);
    Some((quoted.next()?, quoted.collect()))
}

fn unknown_hint(field: &str, known: &[&str]) -> String {
    match nearest(field, known.iter().copied()) {
        Some(name) => format!("did you mean `{name}`?"),
        None => format!("known keys: {}", known.join(", ")),
    }
}
