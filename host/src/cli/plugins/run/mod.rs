//! `aihost plugins run`: one plugin file, served alone until it is told to end. What `serve` does with a models.yaml, with one
//! that is made up; its state is in a temporary folder.

mod folder;
mod rebuilt;
mod trial;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};
use tokio_util::task::AbortOnDropHandle;

use self::folder::TemporaryFolder;
use self::trial::Trial;
use crate::cli::failure::CliError;
use crate::cli::hosting::Hosted;
use crate::cli::serve::{self, LogFormatArgument};
use crate::cli::signals::{self, Signals};
use crate::cli::vet::{Asking, Vet};
use crate::cli::watchdog::Watchdog;
use crate::cli::{CommandContext, out, plugin_watch};
use crate::config::{Config, Env};
use crate::domain::{Device, Failure, FailureKind, ModelId};
use crate::plugin::{self, DescribeError, Described, Registry};
use crate::runtime::AccessEntry;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Arguments {
    /// The plugin's file, such as target/release/libparrot.so.
    file: PathBuf,
    /// What an entry of models.yaml would have under `options:`, as JSON.
    #[arg(long, value_name = "JSON", default_value = "{}", hide_default_value = true)]
    options: String,
    /// A file of the model by its role: the only one of a model is `model`. Again for each further one.
    #[arg(long = "file", value_name = "ROLE=PATH")]
    files: Vec<String>,
    /// The port to listen on; 0 is one that is free.
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    port: u16,
    /// Where it runs: `cpu`, `cuda:N`. Default: wherever it can.
    #[arg(long)]
    device: Option<String>,
}

pub(in crate::cli) async fn run(context: &CommandContext, arguments: &Arguments) -> Result<(), CliError> {
    signals::outlive()?;
    let format = serve::log_format(Some(LogFormatArgument::Text), context.env.wants_no_colour());
    crate::telemetry::init(format, context.env.log_filter()).map_err(CliError::usage)?;
    let described = describe(&arguments.file)?;
    plugin::caution(&described).iter().for_each(|why| out::note(&format!("warning: {why}")));
    let here = context.env.current_dir();
    let trial = Trial {
        file: &here.join(&arguments.file),
        described: &described,
        options: options(&arguments.options)?,
        files: arguments.files.iter().map(|typed| file(&here, typed)).collect::<Result<BTreeMap<_, _>, _>>()?,
        port: arguments.port,
        device: arguments.device.as_deref().map(device).transpose()?,
    };
    let temporary = context.env.temporary_folder();
    let folder = TemporaryFolder::within(&temporary).map_err(|error| {
        CliError::failed(format!("no folder can be made in {}: {error}", temporary.display()))
            .hint("name one that you may write by TMPDIR")
    })?;
    let config = trial.config(folder.path(), &context.env)?;
    let mut ends = Signals::of_server_or_terminal()?;
    let watchdog = Watchdog::start(Signals::of_server_or_terminal)?;
    let mut hosted = tokio::select! {
        hosted = host(&trial, config, &context.env) => hosted?,
        () = ends.next() => return Err(CliError::Interrupted),
    };
    watchdog.hosts(hosted.handle());
    let handle = hosted.handle();
    let model = ModelId::new(trial.model())
        .ok_or_else(|| CliError::failed(format!("`{}` cannot be the name of a model", trial.model())))?;
    let plugins = hosted.plugins();
    let folders = plugins.borrow().folders.clone();
    let watch = plugin_watch::watch(folders, Signals::of_terminal()?, hosted.handle());
    let _watch = AbortOnDropHandle::new(tokio::spawn(watch));
    let follow = rebuilt::follow(described.manifest.id.clone(), plugins, model.clone(), hosted.handle());
    let _follow = AbortOnDropHandle::new(tokio::spawn(follow));
    let begun = tokio::select! {
        loaded = handle.load(model.clone(), AccessEntry::default()) => loaded.map_err(|failure| unloaded(&failure)),
        () = ends.next() => Err(CliError::Interrupted),
        error = hosted.broken() => Err(error),
    };
    if let Err(error) = begun {
        hosted.shutdown().await;
        return Err(error);
    }
    out::note(&format!(
        "{} {} serves on http://{}, alone; Ctrl-C ends it, and a new build is seen. Ask it:",
        described.manifest.id, described.manifest.version, hosted.address
    ));
    out::line(&trial.curl(trial.kind()?, &model, hosted.address))?;
    serve::attend(hosted, ends, &watchdog).await
}

/// What the file says of itself.
fn describe(file: &Path) -> Result<Described, CliError> {
    plugin::describe(file).map_err(|error| match &error {
        DescribeError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            CliError::failed(format!("there is no {}", file.display()))
                .hint("`cargo build --release` writes it to target/release/")
        }
        _ => CliError::failed(error.to_string()),
    })
}

/// A host for it, once nothing is wrong that can be told without loading it.
async fn host(trial: &Trial<'_>, config: Config, env: &Env) -> Result<Hosted, CliError> {
    let checked = config.clone();
    let vetted = tokio::task::spawn_blocking(move || {
        let paths = &checked.paths;
        let registry = Registry::scan(&paths.plugin_folders(), &paths.state, paths.sharing)
            .map_err(|error| CliError::failed(error.to_string()))?;
        if let Some(rejected) = registry.rejected.first() {
            return Err(CliError::failed(rejected.reason.clone()));
        }
        let (faults, silent) = Vet::new(Arc::new(registry), &checked).options(&checked, Asking::Plugins);
        silent.iter().for_each(|why| tracing::warn!("{why}"));
        Ok(faults.placed("", Path::new("models.yaml")))
    });
    let wrong = vetted.await.map_err(|error| CliError::failed(format!("it cannot be looked at: {error}")))??;
    if let Some(error) = wrong.into_values().next() {
        return Err(trial.refused(&error));
    }
    Hosted::start(config, env).await
}

fn options(typed: &str) -> Result<Map<String, Value>, CliError> {
    let wrong = |why: String| CliError::usage(why).hint(r#"write an object in single quotes: '{"greeting": "Hello"}'"#);
    match serde_json::from_str(typed) {
        Ok(Value::Object(options)) => Ok(options),
        Ok(_) => Err(wrong("--options is JSON, but no object".to_owned())),
        Err(error) => Err(wrong(format!("--options is not JSON: {error}"))),
    }
}

/// A role and the file that was named for it.
fn file(here: &Path, typed: &str) -> Result<(String, PathBuf), CliError> {
    let Some((role, path)) = typed.split_once('=').filter(|(role, path)| !role.is_empty() && !path.is_empty()) else {
        return Err(CliError::usage(format!("--file {typed} has no role"))
            .hint(format!("write ROLE=PATH; a model of one file: `--file model={typed}`")));
    };
    let path = here.join(path);
    match path.exists() {
        true => Ok((role.to_owned(), path)),
        false => Err(CliError::usage(format!("--file {role}: there is no {}", path.display()))),
    }
}

fn device(typed: &str) -> Result<Device, CliError> {
    typed.parse().map_err(|error| CliError::usage(format!("--device {typed}: {error}")))
}

fn unloaded(failure: &Failure) -> CliError {
    let error = CliError::failed(format!("it cannot be loaded: {failure}"));
    match failure.kind {
        FailureKind::NotUsable => error
            .hint("what models.yaml has under `files:` and `options:` is here `--file ROLE=PATH` and `--options JSON`"),
        _ => error,
    }
}
