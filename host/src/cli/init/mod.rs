//! `aihost init`: a first models.yaml that fits this machine, and what to type next.

mod starter;

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use self::starter::{FIRST_MODEL, FIRST_PLUGIN, Machine};
use super::failure::CliError;
use super::{CommandContext, out};
use crate::config::{self, Paths};
use crate::device;
use crate::domain::ByteSize;
use crate::plugin::Registry;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Where to write it; `-` is stdout. Default: --config, else ./models.yaml.
    file: Option<PathBuf>,
}

pub(super) fn run(context: &CommandContext, arguments: &Arguments) -> Result<(), CliError> {
    let paths = config::default_folders(&context.env);
    let registry = Registry::scan(&paths.plugin_folders(), &paths.state, paths.sharing).unwrap_or_else(|error| {
        out::note(&format!("note: {error}"));
        Registry::default()
    });
    let machine = Machine {
        devices: device::present()
            .into_iter()
            .map(|id| (device::measured_budget(id).map(ByteSize), id))
            .map(|(budget, id)| (id, budget))
            .collect(),
        plugins: registry.plugins.iter().map(AsRef::as_ref).collect(),
    };
    let text = machine.models_yaml();
    let named = arguments.file.as_ref().or(context.config.as_ref());
    if named.is_some_and(|file| file.as_os_str() == "-") {
        return out::text(&text);
    }
    let file = named.cloned().unwrap_or_else(|| config::default_file(&context.env));
    write(&file, &text)?;
    out::line(&file.display().to_string())?;
    let option = option_for(context, &file);
    next_steps(&machine, &paths, &option).iter().enumerate().for_each(|(at, step)| {
        out::note(&format!("{} {}. {step}", if at == 0 { "next:" } else { "     " }, at + 1));
    });
    Ok(())
}

fn write(file: &Path, text: &str) -> Result<(), CliError> {
    let shown = file.display();
    let failed = |error: std::io::Error| match error.kind() {
        ErrorKind::AlreadyExists => CliError::failed(format!("{shown} is there already and is left as it is"))
            .hint("edit it, or name another file: `aihost init FILE`"),
        ErrorKind::NotFound => CliError::failed(format!("{shown} cannot be written: there is no such folder"))
            .hint("make the folder first, or name another file: `aihost init FILE`"),
        _ => CliError::failed(format!("{shown} cannot be written: {error}"))
            .hint("name a file in a folder that you may write: `aihost init FILE`"),
    };
    let mut created = OpenOptions::new().write(true).create_new(true).open(file).map_err(failed)?;
    created.write_all(text.as_bytes()).map_err(failed)
}

/// `--config FILE ` where commands would not find the file by themselves.
fn option_for(context: &CommandContext, file: &Path) -> String {
    let found = config::find_file(None, &context.env);
    let same = found.is_ok_and(|found| found.canonicalize().ok() == file.canonicalize().ok());
    if same { String::new() } else { format!("--config {} ", file.display()) }
}

/// What to do until it serves, in order.
fn next_steps(machine: &Machine<'_>, paths: &Paths, option: &str) -> Vec<String> {
    let mut steps = Vec::new();
    if machine.plugins.is_empty() {
        steps.push(format!(
            "put the plugin files of a release into {}: {FIRST_PLUGIN}.so serves `{FIRST_MODEL}`",
            paths.plugins.display()
        ));
    }
    if machine.starts_with_first_model() {
        steps.push(format!("aihost {option}models pull {FIRST_MODEL}"));
    } else {
        steps.push("describe a model of yours in it; `aihost check` says whether it is right".to_owned());
    }
    steps.push(format!("aihost {option}up"));
    steps
}
