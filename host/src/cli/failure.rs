//! How commands fail: one text for people, one exit code for scripts.

use std::process::ExitCode;

use super::out;
use crate::config::ConfigError;

/// A failed command.
#[derive(Debug, thiserror::Error)]
pub(super) enum CliError {
    /// It did what was asked, and that did not succeed.
    #[error("{message}")]
    Failed { message: String, hint: Option<String> },
    /// It was asked for what cannot be.
    #[error("{message}")]
    Usage { message: String, hint: Option<String> },
    /// models.yaml is missing or wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No server answers.
    #[error("no server answers at {url}: {reason}")]
    Unreachable { url: String, reason: String },
    /// What the address leads to is no server.
    #[error("{message}")]
    NoServer { message: String, hint: String },
    /// One is there, and does not answer.
    #[error("the server at {url} takes connections, but has not answered for {seconds} s")]
    Unanswered { url: String, seconds: u64 },
    /// The user ended it.
    #[error("interrupted")]
    Interrupted,
    /// Whoever read stdout left: nothing is wrong.
    #[error("nobody reads the output")]
    OutputClosed,
}

impl CliError {
    pub(super) fn failed(message: impl Into<String>) -> Self {
        Self::Failed { message: message.into(), hint: None }
    }

    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self::Usage { message: message.into(), hint: None }
    }

    pub(super) fn hint(self, text: impl Into<String>) -> Self {
        let hint = Some(text.into());
        match self {
            Self::Failed { message, .. } => Self::Failed { message, hint },
            Self::Usage { message, .. } => Self::Usage { message, hint },
            other => other,
        }
    }

    pub(super) fn code(&self) -> u8 {
        match self {
            Self::Failed { .. } => 1,
            Self::Usage { .. } => 2,
            Self::Config(_) => 3,
            Self::Unreachable { .. } | Self::NoServer { .. } | Self::Unanswered { .. } => 4,
            Self::Interrupted => 130,
            Self::OutputClosed => 0,
        }
    }
}

/// Tells the user on stderr, and the shell by the exit code.
pub(super) fn report(error: &CliError) -> ExitCode {
    match error {
        CliError::OutputClosed | CliError::Interrupted => {}
        CliError::Config(error) => {
            for problem in &error.problems {
                let one = ConfigError { file: error.file.clone(), problems: vec![problem.clone()], more: 0 };
                out::error(&format!("error: {one}"));
            }
            if error.more > 0 {
                out::error(&format!("error: and {} more problems", error.more));
            }
        }
        other => {
            out::error(&format!("error: {other}"));
            let hint = match other {
                CliError::Failed { hint, .. } | CliError::Usage { hint, .. } => hint.clone(),
                CliError::NoServer { hint, .. } => Some(hint.clone()),
                CliError::Unreachable { .. } => {
                    Some("start it with `aihost serve`, or name another with `--url`".to_owned())
                }
                CliError::Unanswered { .. } => Some(
                    "it is stopped, hangs or has too much to do: look at its process and its log, or start it anew"
                        .to_owned(),
                ),
                _ => None,
            };
            if let Some(hint) = hint {
                out::note(&format!("hint: {hint}"));
            }
        }
    }
    ExitCode::from(error.code())
}
