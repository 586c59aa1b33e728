//! A host within this process: plugins, runtime and HTTP put together. For `serve`, and for `run` where no server is up.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::failure::CliError;
use super::out;
use crate::config::{Config, ModelConfig};
use crate::domain::Kind;
use crate::plugin::{Registry, sweep_copies};
use crate::runtime::{self, Runtime};
use crate::worker::WorkerPlacement;

/// How long connections may stay open once every request has its answer.
const CONNECTIONS_LIMIT: Duration = Duration::from_secs(2);

/// A host that serves until it is stopped.
pub(super) struct Hosted {
    /// Where it really listens.
    pub(super) address: SocketAddr,
    /// What its user may do first.
    pub(super) first_step: FirstStep,
    runtime: Runtime,
    http: JoinHandle<()>,
    stop: oneshot::Sender<()>,
    drain: Duration,
}

impl Hosted {
    /// Binds, finds plugins, and starts serving.
    pub(super) async fn start(config: Config) -> Result<Self, CliError> {
        let listener = bind(config.listen).await?;
        let address = listener.local_addr().map_err(|e| CliError::failed(format!("{}: {e}", config.listen)))?;
        let registry = scan(&config).await?;
        for rejected in &registry.rejected {
            tracing::warn!(file = %rejected.file.display(), "{}", rejected.reason);
        }
        for model in config.models.values() {
            if let Err(error) = registry.find(&model.plugin, model.plugin_version.as_ref()) {
                tracing::warn!(model = %model.id, "{error}");
            }
        }
        let first_step = first_step(&config, &registry);
        config.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
        let drain = config.limits.drain_timeout;
        let placement = Arc::new(WorkerPlacement { executable: PathBuf::from("/proc/self/exe") });
        let runtime = runtime::start(Arc::new(config), Arc::new(registry), placement);
        let (stop, stopped) = oneshot::channel();
        let wait = async move { drop(stopped.await) };
        let http = tokio::spawn(crate::http::serve(listener, runtime.handle(), wait));
        Ok(Self { address, first_step, runtime, http, stop, drain })
    }

    /// The way into its runtime.
    pub(super) fn handle(&self) -> crate::runtime::Handle {
        self.runtime.handle()
    }

    /// Resolves when the HTTP side ends by itself, which it should not.
    pub(super) async fn broken(&mut self) -> CliError {
        match (&mut self.http).await {
            Ok(()) => CliError::failed("the HTTP server ended by itself"),
            Err(error) => CliError::failed(format!("the HTTP server failed: {error}")),
        }
    }

    /// Accepts no more, lets running requests end, and stops the workers.
    pub(super) async fn shutdown(self) {
        // If nobody waits for it, the server has ended already.
        self.stop.send(()).unwrap_or_default();
        self.runtime.shutdown(self.drain).await;
        if timeout(CONNECTIONS_LIMIT, self.http).await.is_err() {
            tracing::warn!("connections were cut whose clients had not sent all of a request, or did not read");
        }
    }
}

/// What somebody who has just started a server can do with it.
#[derive(Debug)]
pub(super) enum FirstStep {
    /// Ask this text model: its plugin and its files are here.
    Ask(String),
    /// Fetch this model, whose plugin is here.
    Pull(String),
    /// Neither.
    Nothing,
}

/// The model that answers where none is named comes before the others.
fn first_step(config: &Config, registry: &Registry) -> FirstStep {
    let with_plugin = |model: &&ModelConfig| registry.find(&model.plugin, model.plugin_version.as_ref()).is_ok();
    let mut models: Vec<&ModelConfig> = config.models.values().filter(with_plugin).collect();
    models.sort_by_key(|model| !model.default);
    let here = |model: &&&ModelConfig| crate::store::locate(model).is_ok();
    let id = |model: &ModelConfig| model.id.0.clone();
    match models.iter().filter(|model| model.kind == Kind::Text).find(here) {
        Some(text) => FirstStep::Ask(id(text)),
        None => models.iter().find(|model| !here(model)).map_or(FirstStep::Nothing, |model| FirstStep::Pull(id(model))),
    }
}

/// Describes the plugins, off the runtime's threads: files are hashed.
async fn scan(config: &Config) -> Result<Registry, CliError> {
    let (plugins, state) = (config.paths.plugin_folders(), config.paths.state.clone());
    let scanned = tokio::task::spawn_blocking(move || {
        let registry = Registry::scan(&plugins, &state);
        sweep_copies(&state);
        registry
    })
    .await;
    match scanned {
        Ok(Ok(registry)) => Ok(registry),
        Ok(Err(error)) => Err(CliError::failed(error.to_string())),
        Err(error) => Err(CliError::failed(format!("the plugins cannot be read: {error}"))),
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, CliError> {
    TcpListener::bind(address).await.map_err(|error| match error.kind() {
        ErrorKind::AddrInUse => {
            CliError::failed(format!("port {} of {} is taken by another program", address.port(), address.ip()))
                .hint("stop that one (is an aihost running? `aihost ps`), or change `listen:` or use `--listen`")
        }
        ErrorKind::PermissionDenied => CliError::failed(format!("this user may not open port {}", address.port()))
            .hint("use a port above 1023 in `listen:` or `--listen`"),
        ErrorKind::AddrNotAvailable => CliError::failed(format!("this machine has no address {}", address.ip()))
            .hint("correct `listen:`; 0.0.0.0 is every IPv4 interface"),
        _ => CliError::failed(format!("{address} cannot be opened: {error}")),
    })
}

/// Says once how the server is used.
pub(super) fn greet(address: SocketAddr, first: &FirstStep) {
    out::note(&format!("listening on http://{address}"));
    match first {
        FirstStep::Ask(model) => out::note(&format!(
            "try: curl http://{address}/v1/chat/completions -H 'content-type: application/json' \
             -d '{{\"model\": \"{model}\", \"max_tokens\": 40, \"messages\": [{{\"role\": \"user\", \"content\": \"Hi\"}}]}}'"
        )),
        FirstStep::Pull(model) => out::note(&format!("next: aihost models pull {model}")),
        FirstStep::Nothing => {}
    }
}
