//! `aihost models`: the entries of models.yaml, made and removed, their files, and loading them on a running server.

mod add;
mod control;
mod edit;
mod list;
mod prepare;
mod pull;
mod remove;
mod write;

use clap::Subcommand;

use super::CommandContext;
use super::client::{Listing, ServerTarget};
use super::failure::CliError;
use crate::config::{Config, ModelConfig};
use crate::domain::nearest;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the entries of models.yaml, whether their files are here, and their state if the server is up.
    List(Listing),
    /// Write an entry for a model into models.yaml: what serves it, and in which quantisation, is chosen by what fits. Nothing is fetched.
    Add(add::Arguments),
    /// Fetch a model's files, and have its plugin prepare what else it needs. What is here already is not fetched again.
    Pull(pull::Arguments),
    /// Remove the files that were fetched for a model, and its entry if that is asked for.
    Rm(remove::Removed),
    /// Remove the files that were fetched and that no entry of models.yaml names any more.
    Prune(remove::Pruned),
    /// Load a model on a running server.
    Load(Named),
    /// Park a model of a running server once its requests have ended: its device memory comes back, its worker stays.
    Park(Named),
    /// Unload a model of a running server once its requests have ended.
    Unload(Unloaded),
}

#[derive(Debug, clap::Args)]
struct Named {
    /// Model or alias.
    name: String,
    #[command(flatten)]
    target: ServerTarget,
}

#[derive(Debug, clap::Args)]
struct Unloaded {
    #[command(flatten)]
    named: Named,
    /// Cut requests that still run after this many seconds.
    #[arg(long, value_name = "SECONDS")]
    force_after: Option<f32>,
}

pub(super) async fn run(context: &CommandContext, arguments: Arguments) -> Result<(), CliError> {
    match arguments.command {
        Command::List(arguments) => list::run(context, arguments).await,
        Command::Add(arguments) => add::run(context, arguments).await,
        Command::Pull(arguments) => pull::run(context, arguments).await,
        Command::Rm(arguments) => remove::run(context, arguments).await,
        Command::Prune(arguments) => remove::prune(context, &arguments),
        Command::Load(named) => control::run(context, named, control::Action::Load).await,
        Command::Park(named) => control::run(context, named, control::Action::Park).await,
        Command::Unload(Unloaded { named, force_after }) => {
            control::run(context, named, control::Action::Unload { force_after }).await
        }
    }
}

/// The entry of this name or alias.
pub(super) fn known<'a>(config: &'a Config, name: &str) -> Result<&'a ModelConfig, CliError> {
    let found = config.models.values().find(|model| model.is_called(name));
    found.ok_or_else(|| {
        let names = config
            .models
            .values()
            .flat_map(|model| std::iter::once(model.id.as_str()).chain(model.aliases.iter().map(String::as_str)));
        let error = CliError::failed(format!("models.yaml has no model `{name}`"));
        match nearest(name, names) {
            Some(near) => error.hint(format!("did you mean `{near}`?")),
            None => error.hint("`aihost models list` shows them"),
        }
    })
}
