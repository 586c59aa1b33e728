//! The second half of `aihost models pull`: a plugin makes what its model needs beside files, such as an environment of
//! another language's packages. It does so in a worker, whose lines are shown as they come.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aihost_plugin_api::LoadRequest;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};

use crate::cli::failure::CliError;
use crate::cli::out;
use crate::config::{Config, Env, ModelConfig};
use crate::device;
use crate::domain::{Device, Failure, InstanceId};
use crate::plugin::{PluginFile, Registry};
use crate::runtime::locate_for;
use crate::worker::{ModelLog, Placement, StartSpec, WorkerPlacement};

/// How long a worker may take from spawn to plan.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long it may take to leave once it is asked to.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// Exits that may wait to be heard of: there is one worker.
const EXITS: usize = 1;

/// Has the plugin of a model prepare it, if it is one that prepares and is there.
pub(super) async fn prepare(config: &Config, env: &Env, model: &ModelConfig) -> Result<(), CliError> {
    let paths = &config.paths;
    let registry = Registry::scan(&paths.plugin_folders(), &paths.state, paths.sharing)
        .map_err(|error| CliError::failed(error.to_string()))?;
    // Files can be fetched before there is a plugin to read them.
    let Ok(plugin) = registry.find(&model.plugin, model.plugin_version.as_ref()) else { return Ok(()) };
    if !plugin.manifest.prepares {
        return Ok(());
    }
    let log = Arc::<ModelLog>::default();
    let lines = log.follow().news;
    let spec = spec(config, model, plugin, log).map_err(|failure| failed(&failure))?;
    out::note(&format!("{}: its plugin prepares what it needs", model.id));
    let shown = tokio::spawn(show(model.id.to_string(), lines));
    let prepared = tokio::select! {
        prepared = run(spec, env) => prepared.map_err(|failure| failed(&failure)),
        _ = tokio::signal::ctrl_c() => Err(CliError::Interrupted),
    };
    // It ends with the log, which the worker's tasks hold for a moment longer.
    let _ = tokio::time::timeout(STOP_GRACE, shown).await;
    prepared
}

async fn run(spec: StartSpec, env: &Env) -> Result<(), Failure> {
    let placement = WorkerPlacement { executable: PathBuf::from("/proc/self/exe") };
    let (exits, _heard) = mpsc::channel(EXITS);
    let (instance, _plan) = placement.start(spec, exits).await?;
    let prepared = instance.prepare(env.fetching()).await;
    instance.stop(STOP_GRACE).await;
    prepared
}

fn spec(
    config: &Config,
    model: &ModelConfig,
    plugin: Arc<PluginFile>,
    log: Arc<ModelLog>,
) -> Result<StartSpec, Failure> {
    let files = locate_for(&plugin, model, &config.paths.state)?;
    let devices = model.devices.iter().copied().chain(config.devices.iter().map(|device| device.id));
    let device = devices.into_iter().find(|device| plugin.runs_on(device.kind())).unwrap_or(Device::Cpu);
    Ok(StartSpec {
        busy: None,
        instance: InstanceId(1),
        model: model.id.clone(),
        plugin,
        options: model.options.clone(),
        load: LoadRequest::new(device.to_string(), files).threads(device::cpu_threads()),
        own_folder: Some(config.paths.plugin_folder(&model.plugin)),
        start_timeout: START_TIMEOUT,
        silence: config.limits.worker_silence,
        copied_from: Vec::new(),
        log,
    })
}

/// Shows what a worker, its plugin and what that starts say, until nobody can say more.
async fn show(model: String, mut lines: broadcast::Receiver<String>) {
    loop {
        match lines.recv().await {
            Ok(line) => {
                // Which process it was matters to nobody here, and what the host says of its worker neither.
                let (_, said) = line.split_once("] ").unwrap_or(("", &line));
                if !said.starts_with("the worker ") {
                    out::note(&format!("{model}: {said}"));
                }
            }
            Err(RecvError::Lagged(missed)) => out::note(&format!("{model}: {missed} lines were not shown")),
            Err(RecvError::Closed) => return,
        }
    }
}

fn failed(failure: &Failure) -> CliError {
    CliError::failed(failure.message.clone())
}
