//! A host within this process: plugins, runtime and HTTP put together. For `serve`, and for `run` where no server is up.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::client::reachable;
use super::failure::CliError;
use super::handover::Inheritance;
use super::out;
use super::vet::{self, Asking, Vet, Wrong};
use crate::config::{Choice, Config, Env, ModelConfig};
use crate::domain::{ByteSize, Device, Kind, ModelId, some_names};
use crate::http::Leaving;
use crate::jobs::{EmbeddedStore, Jobs};
use crate::plugin::{Registry, sweep_copies};
use crate::runtime::{self, Runtime, StateClaim};
use crate::store::{Cache, Digests, Trust};
use crate::worker::{HostPlacement, WorkerPlacement, protect_host};

/// How long connections may stay open once every request has its answer.
const CONNECTIONS_LIMIT: Duration = Duration::from_secs(2);
/// A host that serves until it is stopped.
pub(super) struct Hosted {
    /// Where it really listens.
    pub(super) address: SocketAddr,
    /// The same, and where else.
    addresses: Vec<SocketAddr>,
    /// What its user may do first.
    pub(super) first_step: FirstStep,
    /// What it serves with, by name.
    start_block: Vec<(&'static str, String)>,
    /// By what a changed models.yaml is judged.
    pub(super) vet: Vet,
    /// Entries that were found wrong at the start.
    pub(super) wrong: Wrong,
    runtime: Runtime,
    http: JoinHandle<()>,
    leaving: Leaving,
    stop: oneshot::Sender<()>,
    /// What it listens on, for a process that takes its place.
    sockets: Vec<OwnedFd>,
    /// Work that nobody waits for.
    jobs: Jobs,
    /// Until it has ended.
    claim: Arc<StateClaim>,
}

impl Hosted {
    /// Binds, finds plugins, and starts serving.
    pub(super) async fn start(config: Config, env: &Env) -> Result<Self, CliError> {
        Self::start_in_place(config, env, Inheritance::default()).await
    }

    /// The same in another process's place.
    pub(super) async fn start_in_place(
        mut config: Config,
        env: &Env,
        mut inheritance: Inheritance,
    ) -> Result<Self, CliError> {
        crate::http::raise_descriptors();
        protect_host();
        let (mut listeners, mut sockets) = (Vec::new(), Vec::new());
        for address in config.addresses() {
            let failed = |error: io::Error| CliError::failed(format!("{address}: {error}"));
            let listener = match inheritance.listener(address) {
                Some(listener) => {
                    listener.set_nonblocking(true).and_then(|()| TcpListener::from_std(listener)).map_err(failed)?
                }
                None => bind(address).await?,
            };
            sockets.push(listener.as_fd().try_clone_to_owned().map_err(failed)?);
            listeners.push(listener);
        }
        let addresses: Vec<SocketAddr> = listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect();
        let address = addresses.first().copied().unwrap_or(config.listen);
        let registry = Arc::new(scan(&config).await?);
        inheritance.ready().await?;
        let claim = Arc::new(claim(&config, address, env.takes_place_of()).await?);
        for rejected in registry.rejected.iter().chain(&registry.doubts) {
            tracing::warn!(file = %rejected.file.display(), "{}", rejected.reason);
        }
        for model in config.models.values().filter(|model| model.http.remote.is_none() && model.unchosen().is_none()) {
            if let Err(error) = registry.find(&model.plugin, model.plugin_version.as_ref()) {
                tracing::warn!(model = %model.id, "{error}");
            }
        }
        let jobs = jobs(&config).await;
        let first_step = first_step(&config, &registry);
        config.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
        let vet = Vet::new(Arc::clone(&registry), &config);
        let (wrong, _) = vet.refuse_wrong(&mut config, Asking::Nobody);
        vet::tell(&config, &wrong, &Wrong::new());
        let workers = WorkerPlacement { executable: PathBuf::from("/proc/self/exe") };
        let env = env.clone();
        let tls = Arc::new(move || Trust::from_env(&env).map(|trust| trust.config));
        let placement = Arc::new(HostPlacement { workers, tls });
        let config = Arc::new(config);
        let runtime = runtime::start(Arc::clone(&config), Arc::clone(&registry), placement);
        let start_block = start_block(&config, &registry, &addresses, runtime.budgets());
        let (stop, stopped) = oneshot::channel();
        let leaving = Leaving::default();
        let wait = async move { drop(stopped.await) };
        let http = tokio::spawn(crate::http::serve(listeners, runtime.handle(), leaving.clone(), jobs.clone(), wait));
        Ok(Self {
            address,
            addresses,
            first_step,
            vet,
            wrong,
            start_block,
            runtime,
            http,
            leaving,
            stop,
            sockets,
            jobs,
            claim,
        })
    }

    /// What it serves with, by name.
    pub(super) fn start_block(&self) -> &[(&'static str, String)] {
        &self.start_block
    }

    /// The plugins that it has.
    pub(super) fn plugins(&self) -> watch::Receiver<Arc<Registry>> {
        self.runtime.plugins()
    }

    /// The way into its runtime.
    pub(super) fn handle(&self) -> crate::runtime::Handle {
        self.runtime.handle()
    }

    /// Resolves when the runtime or the HTTP side ends by itself, which neither should. Nothing looks healthy from then on.
    pub(super) async fn broken(&mut self) -> CliError {
        tokio::select! {
            why = self.runtime.ended() => CliError::failed(format!("the runtime ended by itself: {why}; start the host anew")),
            ended = &mut self.http => {
                // Connections that are open go on being answered, and must not say that all is well.
                self.runtime.abort();
                let why = ended.map_or_else(|error| error.to_string(), |()| "it returned".to_owned());
                CliError::failed(format!("the HTTP server ended by itself: {why}; start the host anew"))
            }
        }
    }

    /// What it listens on.
    pub(super) fn sockets(&self) -> &[OwnedFd] {
        &self.sockets
    }

    /// Leaves the state folder, with the jobs in it, and the copies of weights to another process.
    pub(super) async fn release(&self) {
        self.jobs.leave().await;
        // Before the state folder, for which the other waits.
        self.runtime.leave_cache();
        self.claim.release();
    }

    /// What commands find it by.
    pub(super) fn claim(&self) -> &Arc<StateClaim> {
        &self.claim
    }

    /// Accepts no more, and lets clients that are connected ask once more: another process has the sockets.
    pub(super) async fn leave(&self) {
        self.leaving.leave().await;
    }

    /// Accepts no more, lets running requests end, and stops the workers.
    pub(super) async fn shutdown(self) {
        // As long as one is open somewhere the kernel takes connections in.
        drop(self.sockets);
        // If nobody waits for it, the server has ended already.
        let drain = self.runtime.handle().config().limits.drain_timeout;
        self.stop.send(()).unwrap_or_default();
        self.runtime.shutdown(drain).await;
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
    /// No model is near enough to name a step.
    Nothing,
}

/// The model that answers where none is named comes before the others.
fn first_step(config: &Config, registry: &Registry) -> FirstStep {
    let with_plugin = |model: &&ModelConfig| {
        let plugin = || registry.find(&model.plugin, model.plugin_version.as_ref());
        model.http.remote.is_some() || matches!(model.choice, Some(Choice::Open(_))) || plugin().is_ok()
    };
    let mut models: Vec<&ModelConfig> = config.models.values().filter(with_plugin).collect();
    models.sort_by_key(|model| !model.default);
    let digests = Digests::of(&config.paths.state);
    let here = |model: &&&ModelConfig| crate::store::locate(model, &digests).is_ok();
    let id = |model: &ModelConfig| model.id.to_string();
    match models.iter().filter(|model| model.kind == Kind::Text).find(here) {
        Some(text) => FirstStep::Ask(id(text)),
        None => models.iter().find(|model| !here(model)).map_or(FirstStep::Nothing, |model| FirstStep::Pull(id(model))),
    }
}

/// What an operator wants to know of a host that starts.
fn start_block(
    config: &Config,
    registry: &Registry,
    addresses: &[SocketAddr],
    budgets: &[(Device, u64)],
) -> Vec<(&'static str, String)> {
    let of_model = |device: &Device| config.devices.iter().any(|known| known.id == *device);
    let budgets = budgets.iter().filter(|(device, _)| of_model(device));
    let devices: Vec<String> = budgets.map(|(device, bytes)| format!("{device} {}", ByteSize(*bytes))).collect();
    let plugins: Vec<String> =
        registry.plugins.iter().map(|plugin| format!("{} {}", plugin.manifest.id, plugin.manifest.version)).collect();
    let models = some_names(config.models.keys().map(ModelId::as_str));
    vec![
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("config", config.file.as_ref().map_or("none".to_owned(), |file| file.display().to_string())),
        (
            "address",
            some_names(addresses.iter().map(ToString::to_string).collect::<Vec<_>>().iter().map(String::as_str)),
        ),
        ("devices", devices.join(", ")),
        ("plugins", some_names(plugins.iter().map(String::as_str))),
        ("models", models),
    ]
}

/// Claims the state folder, where no folder of copies is others', off the runtime's threads: it may lie on a network.
async fn claim(config: &Config, address: SocketAddr, before: Option<u32>) -> Result<StateClaim, CliError> {
    let (state, sharing) = (config.paths.state.clone(), config.paths.sharing);
    let paths = config.paths.clone();
    let claimed = tokio::task::spawn_blocking(move || {
        Cache::check_owner(&paths)?;
        StateClaim::take(&state, address, sharing, before)
    });
    let claimed = claimed.await;
    claimed
        .map_err(|error| CliError::failed(format!("the state folder cannot be claimed: {error}")))?
        .map_err(CliError::failed)
}

/// The jobs of the state folder. A host that cannot keep any serves all else.
async fn jobs(config: &Config) -> Jobs {
    let folder = config.paths.state.join("jobs");
    let opened = {
        let folder = folder.clone();
        tokio::task::spawn_blocking(move || Jobs::over(Arc::new(EmbeddedStore::open(&folder)?))).await
    };
    let why = match opened {
        Ok(Ok(jobs)) => return jobs,
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    tracing::warn!("no jobs are kept: {why}; mend or move {} away and start the host anew", folder.display());
    Jobs::unavailable(why)
}

/// Describes the plugins, off the runtime's threads: files are hashed.
async fn scan(config: &Config) -> Result<Registry, CliError> {
    let (plugins, state, sharing) = (config.paths.plugin_folders(), config.paths.state.clone(), config.paths.sharing);
    let scanned = tokio::task::spawn_blocking(move || {
        let registry = Registry::scan(&plugins, &state, sharing);
        sweep_copies(&state, sharing);
        registry
    })
    .await;
    match scanned {
        Ok(Ok(registry)) => Ok(registry),
        Ok(Err(error)) => Err(CliError::failed(error.to_string())),
        Err(error) => Err(CliError::failed(format!("the plugins cannot be read: {error}"))),
    }
}

/// Connections that the kernel keeps ready while the host does something else. For one beyond them its client waits a second
/// and tries again.
const BACKLOG_MAX: i32 = 4096;

async fn bind(address: SocketAddr) -> Result<TcpListener, CliError> {
    let bound = TcpListener::bind(address).await.and_then(|listener| {
        // A socket that listens already takes another length.
        rustix::net::listen(&listener, BACKLOG_MAX)?;
        Ok(listener)
    });
    bound.map_err(|error| match error.kind() {
        ErrorKind::AddrInUse => {
            CliError::failed(format!("port {} of {} is taken by another program", address.port(), address.ip()))
                .hint("stop that one (is an aihost running? `aihost ps`), or take another: `listen:` of models.yaml, `--listen`, or `--port` of `plugins run`")
        }
        ErrorKind::PermissionDenied => CliError::failed(format!("this user may not open port {}", address.port()))
            .hint("use a port above 1023: `listen:` of models.yaml, `--listen`, or `--port` of `plugins run`"),
        ErrorKind::AddrNotAvailable => CliError::failed(format!("this machine has no address {}", address.ip()))
            .hint("correct `listen:`; 0.0.0.0 is every IPv4 interface"),
        _ => CliError::failed(format!("{address} cannot be opened: {error}")),
    })
}

/// Says once how the server is used.
pub(super) fn greet(hosted: &Hosted) {
    let address = hosted.address;
    for address in &hosted.addresses {
        out::note(&format!("listening on http://{address}"));
    }
    // What is typed is typed on this machine, by somebody who has a key.
    let (here, key) = (
        reachable(address),
        match hosted.handle().config().api_keys.is_empty() {
            true => "",
            false => "-H \"authorization: Bearer $AIHOST_API_KEY\" ",
        },
    );
    match &hosted.first_step {
        FirstStep::Ask(model) => out::note(&format!(
            "try: curl http://{here}/v1/chat/completions {key}-H 'content-type: application/json' \
             -d '{{\"model\": \"{model}\", \"max_tokens\": 40, \"messages\": [{{\"role\": \"user\", \"content\": \"Hi\"}}]}}'"
        )),
        FirstStep::Pull(model) => out::note(&format!("next: aihost models pull {model}")),
        FirstStep::Nothing => {}
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Env, Selection, parse};

    async fn host(folder: &Path) -> Hosted {
        let here = folder.display();
        let text = format!(
            "listen: 127.0.0.1:0\nplugins_dir: {here}\nmodels_dir: {here}\nstate_dir: {here}/state\nmodels: {{}}\n"
        );
        let config = parse(&text, &folder.join("models.yaml"), &Selection::default(), &Env::default()).unwrap();
        Hosted::start(config, &Env::default()).await.unwrap_or_else(|error| panic!("{error}"))
    }

    /// What each probe answers on connections that may be open already; nothing where none can be made.
    async fn probes(client: &reqwest::Client, address: SocketAddr) -> Vec<Option<u16>> {
        let mut answers = Vec::new();
        for path in ["livez", "health", "readyz", "ping"] {
            let answer = client.get(format!("http://{address}/{path}")).send().await;
            answers.push(answer.ok().map(|answer| answer.status().as_u16()));
        }
        answers
    }

    #[tokio::test]
    async fn a_host_that_lost_its_loop_or_its_listener_is_broken_and_looks_so() {
        for lost in ["runtime", "HTTP server"] {
            let folder = tempfile::tempdir().unwrap();
            let mut hosted = host(folder.path()).await;
            let client = reqwest::Client::builder().no_proxy().build().unwrap();
            assert_eq!(probes(&client, hosted.address).await, [Some(200); 4]);
            match lost {
                "runtime" => hosted.runtime.abort(),
                _ => hosted.http.abort(),
            }
            let error = hosted.broken().await;
            assert!(error.to_string().contains(&format!("the {lost} ended by itself")), "{error}");
            assert_ne!(error.code(), 0);
            let handle = hosted.handle();
            while !handle.is_over() {
                tokio::task::yield_now().await;
            }
            let answers = probes(&client, hosted.address).await;
            assert!(answers.iter().all(|answer| answer.is_none_or(|status| status == 503)), "{lost}: {answers:?}");
        }
    }
}
