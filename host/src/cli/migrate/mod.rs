//! `aihost migrate`: a models.yaml from what another host was told, with the same names, and with everything said that is not
//! carried over. It reads what is there and starts nothing; the file that it writes passes the host's own reader.

mod folder;
mod kind;
mod llama_server;
mod llama_swap;
mod lm_studio;
pub(super) mod local;
mod ollama;
pub(super) mod plan;
mod source;
pub(super) mod walk;
pub(super) mod yaml;

#[cfg(test)]
mod tests;

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use self::plan::Plan;
use self::source::Source;
use super::failure::CliError;
use super::{CommandContext, out};
use crate::config;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// llama-swap's YAML file or folder of such, Ollama's store, LM Studio's folder of models, or a GGUF file or folder of them. `ollama`
    /// and `lmstudio` stand for where these keep their models.
    #[arg(value_name = "FILE|DIR")]
    from: PathBuf,
    /// Where to write it; `-` is stdout. Default: --config, else ./models.yaml. A file that is there is never overwritten.
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Print what would be written, and write nothing.
    #[arg(long)]
    dry_run: bool,
}

/// What a run says and where.
#[derive(Debug, Default)]
struct Told {
    /// For stdout.
    text: String,
    /// For stderr, a line each.
    notes: Vec<String>,
}

pub(super) fn run(context: &CommandContext, arguments: &Arguments) -> Result<(), CliError> {
    let told = migrate(context, arguments)?;
    out::text(&told.text)?;
    told.notes.iter().for_each(|note| out::note(note));
    Ok(())
}

fn migrate(context: &CommandContext, arguments: &Arguments) -> Result<Told, CliError> {
    let named = arguments.output.as_ref().or(context.config.as_ref());
    let is_printed = arguments.dry_run || named.is_some_and(|file| file.as_os_str() == "-");
    let file = named.cloned().unwrap_or_else(|| config::default_file(&context.env));
    if !is_printed && file.exists() {
        return Err(is_there(&file));
    }
    let source = source::find(&arguments.from, &context.env)?;
    let plan = plan(&source, &arguments.from, context)?;
    let text = plan.text();
    let mut told = Told { notes: notes(&plan, context), ..Told::default() };
    if is_printed {
        told.text = text;
        return Ok(told);
    }
    write(&file, &text)?;
    told.text = format!("{}\n", file.display());
    told.notes.push(format!("next: aihost --config {} check", file.display()));
    Ok(told)
}

/// What the source says, checked by the host's own reader.
fn plan(source: &Source, from: &Path, context: &CommandContext) -> Result<Plan, CliError> {
    let mut plan = match source {
        Source::LlamaSwap { config, folder } => {
            llama_swap::read(config.clone(), folder, &context.env).map_err(|name| {
                CliError::failed(format!("{} names the variable {name}, which is not set", from.display()))
                    .hint(format!("export {name}=... as it is where llama-swap runs, and try again"))
            })?
        }
        Source::Ollama(store) => ollama::read(store),
        Source::LmStudio { root, found } => lm_studio::read(root, found),
        Source::Files(found) => folder::read(found),
    };
    plan.origin = format!("{}, {}", from.display(), source.name());
    let file = Path::new("/models.yaml");
    plan.settle(file);
    if plan.entries.is_empty() {
        let told = plan.told().into_iter().next().map(|note| format!(": {note}")).unwrap_or_default();
        return Err(CliError::failed(format!("there is no model in {}{told}", from.display()))
            .hint("name the file or folder that has the models"));
    }
    plan.check(file).map_err(|error| {
        CliError::failed(format!("what was made of {} is no models.yaml: {}", from.display(), error.sentence()))
            .hint("this is a fault of `aihost migrate`; take what it names out of the file, and try again")
    })?;
    Ok(plan)
}

/// Everything that is to be said on stderr.
fn notes(plan: &Plan, context: &CommandContext) -> Vec<String> {
    let mut notes: Vec<String> = plan.told().into_iter().map(|note| format!("note: {note}")).collect();
    for name in plan.variables.iter().filter(|name| context.env.named(name).is_none()) {
        notes.push(format!(
            "note: the key in the variable {name} is asked for when the host starts; it is not set here"
        ));
    }
    notes.push(format!("models: {}; what is not carried over is also said in the file", plan.models()));
    notes
}

fn is_there(file: &Path) -> CliError {
    CliError::failed(format!("{} is there already and is left as it is", file.display()))
        .hint("name another file with `--output FILE`, or look with `--dry-run`")
}

fn write(file: &Path, text: &str) -> Result<(), CliError> {
    let shown = file.display();
    let failed = |error: std::io::Error| match error.kind() {
        ErrorKind::AlreadyExists => is_there(file),
        ErrorKind::NotFound => CliError::failed(format!("{shown} cannot be written: there is no such folder"))
            .hint("make the folder first, or name another file with `--output FILE`"),
        _ => CliError::failed(format!("{shown} cannot be written: {error}"))
            .hint("name a file in a folder that you may write with `--output FILE`"),
    };
    let mut created = OpenOptions::new().write(true).create_new(true).open(file).map_err(failed)?;
    created.write_all(text.as_bytes()).map_err(failed)
}
