//! `aihost init`: an example models.yaml to start from.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;

use super::failure::CliError;
use super::{Session, out};
use crate::config;

/// The example that the repository itself runs on.
const EXAMPLE: &str = include_str!("../../../models.yaml");

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Where to write it. Default: --config, else ./models.yaml.
    file: Option<PathBuf>,
}

pub(super) fn run(session: &Session, arguments: &Arguments) -> Result<(), CliError> {
    let named = arguments.file.as_ref().or(session.config.as_ref());
    let file = named.cloned().unwrap_or_else(|| config::default_file(&session.env));
    let shown = file.display();
    let mut created =
        OpenOptions::new().write(true).create_new(true).open(&file).map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => CliError::failed(format!("{shown} is there already and is left as it is"))
                .hint("edit it, or name another file: `aihost init FILE`"),
            _ => CliError::failed(format!("{shown} cannot be written: {error}")),
        })?;
    created.write_all(EXAMPLE.as_bytes()).map_err(|e| CliError::failed(format!("{shown} cannot be written: {e}")))?;
    out::line(&shown.to_string())?;
    out::note("next: `aihost models pull --all`, then `aihost serve`");
    Ok(())
}
