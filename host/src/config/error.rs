//! What is wrong with a configuration: file, line, key, value, and what to do.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::domain::nearest;

/// A configuration that is not used, and everything that is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file, if one was found.
    pub file: Option<PathBuf>,
    /// At least one.
    pub problems: Vec<Problem>,
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
        Ok(())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(key) = &self.key {
            write!(f, "{key}: ")?;
        }
        if let Some(value) = &self.value {
            write!(f, "`{value}` ")?;
        }
        write!(f, "{}", self.message)?;
        if let Some(hint) = &self.hint {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

impl ConfigError {
    /// No models.yaml in any of the usual places.
    pub(super) fn none_found(candidates: &[PathBuf]) -> Self {
        let places = candidates.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ");
        let message = format!("there is no models.yaml (looked for {places})");
        let hint = "write one with `aihost init`, or name one with `--config FILE` or AIHOST_CONFIG".to_owned();
        Self { file: None, problems: vec![Problem { message, hint: Some(hint), ..Problem::default() }] }
    }

    pub(super) fn unreadable(file: &Path, error: &std::io::Error) -> Self {
        let hint = match error.kind() {
            std::io::ErrorKind::NotFound => Some("check the name, or write one with `aihost init`".to_owned()),
            _ => None,
        };
        let message = format!("cannot be read: {error}");
        Self { file: Some(file.to_owned()), problems: vec![Problem { message, hint, ..Problem::default() }] }
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
            None => {
                let tab = line.and_then(|n| text.lines().nth(n - 1)).is_some_and(|line| line.contains('\t'));
                let hint = tab.then(|| "YAML is indented with spaces; this line has a tab".to_owned());
                Problem { line, key, value: None, message: message.to_owned(), hint }
            }
        };
        Self { file: Some(file.to_owned()), problems: vec![problem] }
    }
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
