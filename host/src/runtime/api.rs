//! What the rest of the host may ask of the runtime. All of it goes through the one loop.

use std::sync::Arc;
use std::time::Duration;

use aihost_plugin_api::ModelFacts;
use tokio::sync::{mpsc, oneshot, watch};

use super::access::AccessEntry;
use super::facts::Facts;
use super::survey::DeviceStatus;
use super::watched::{Pin, Swap, WaitingRequest};
use crate::config::{Config, Limits, ModelConfig};
use crate::domain::{Class, Failure, FailureKind, Kind, ModelId, ModelState, RequestId};
use crate::plugin::{PluginFile, Registry};
use crate::scheduler::Explanation;
use crate::telemetry::Scrape;
use crate::worker::{Ask, Followed, Output};

/// A request that is to be served.
#[derive(Clone, Debug)]
pub struct Submission {
    /// The model, resolved from name, alias or endpoint.
    pub model: ModelId,
    /// The kind of the task.
    pub kind: Kind,
    /// What is asked, of this kind.
    pub ask: Ask,
    /// Whether other work goes first.
    pub class: Class,
    /// How long its model stays afterwards, if the request says so; within what the operator allows once it is submitted.
    pub keep_alive: Option<KeepAlive>,
    /// When its outputs are passed on.
    pub delivery: OutputMode,
    /// What the log says of it.
    pub access: AccessEntry,
}

/// When the outputs of a request are passed on to whoever asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutputMode {
    /// As they come.
    #[default]
    Streamed,
    /// Together, once all are there. A worker that dies before that has told nobody anything, so the request is tried again.
    Gathered,
    /// As they come, and asked of one worker only: what was done by one that died must not be done twice.
    Once,
}

/// How long a model stays loaded once it is idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepAlive {
    /// This long; nothing at all is: until its last lease ends.
    For(Duration),
    /// Until its memory is needed.
    Forever,
}

impl KeepAlive {
    /// The same, no shorter and no longer than requests may ask for.
    fn within(self, limits: &Limits) -> Self {
        match (self, limits.keep_alive) {
            (Self::For(duration), most) => {
                let least = duration.max(limits.keep_alive_min);
                Self::For(most.map_or(least, |most| least.min(most)))
            }
            (Self::Forever, Some(most)) => Self::For(most),
            (Self::Forever, None) => Self::Forever,
        }
    }
}

/// A granted request. Dropping it cancels.
#[derive(Debug)]
pub struct Answer {
    /// The number under which it was granted.
    pub request: RequestId,
    /// Events; the last is [`Output::Done`].
    pub output: mpsc::Receiver<Output>,
}

/// A model as `ps`, `GET /models` and `/v1/models` show it.
#[derive(Clone, Debug)]
pub struct ModelStatus {
    /// Name of its entry in models.yaml.
    pub id: ModelId,
    /// The kind of task that it serves.
    pub kind: Kind,
    /// Id of the plugin that serves it.
    pub plugin: String,
    /// Where it stands.
    pub state: ModelState,
    /// Device it is on.
    pub device: Option<String>,
    /// Bytes planned for it: reserved on its device, and held in host memory while parked.
    pub memory: u64,
    /// Bytes its workers hold as the system counts them, mapped files left out.
    pub measured: Option<u64>,
    /// Instances it has.
    pub replicas: u32,
    /// Requests holding a lease.
    pub active: u32,
    /// Requests that wait for a lease.
    pub queued: u32,
    /// Progress of the load, or of what comes before it, in thousandths.
    pub progress: Option<u32>,
    /// What it does before it loads, if that takes time.
    pub step: Option<&'static str>,
    /// Times it was loaded since the host started.
    pub loads: u64,
    /// Times it was woken from being parked.
    pub wakes: u64,
    /// Milliseconds that it needs yet until it is hot, if it is on its way and has been hot before.
    pub left_ms: Option<u64>,
    /// Milliseconds since it came into its state, if it has an instance.
    pub since_ms: Option<u64>,
    /// Milliseconds that whoever came first of those who wait has waited.
    pub waits_ms: Option<u64>,
    /// Whether it is never evicted for others.
    pub pinned: bool,
    /// Whether its workers kept dying, and nobody may have it until it is loaded by hand or changes.
    pub quarantined: bool,
    /// Milliseconds since the last request ended, while idle and hot.
    pub idle_ms: Option<u64>,
    /// The worker's process.
    pub pid: Option<u32>,
    /// Why the last load failed, or its entry is not what is in force.
    pub error: Option<String>,
    /// Why it cannot be had, as clients read it.
    pub client_error: Option<String>,
    /// What is to be said of its plugin's file, if it is loaded and another file waits, or none is there.
    pub note: Option<String>,
    /// Other names that clients may use.
    pub aliases: Vec<String>,
}

/// A host at one moment.
#[derive(Clone, Debug, Default)]
pub struct Overview {
    /// Every model's status, in name order.
    pub models: Vec<ModelStatus>,
    /// Who waits, whoever came first before.
    pub waiting: Vec<WaitingRequest>,
    /// What came and left, the newest last.
    pub swaps: Vec<Arc<Swap>>,
}

/// What to submit, or why not: the result of asking for a model.
pub type Submitted = Result<Answer, Failure>;

/// What a new configuration changed, by model name and in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Entries that were not there before.
    pub added: Vec<ModelId>,
    /// Entries that are gone; their instances drain.
    pub removed: Vec<ModelId>,
    /// Entries that load differently; their instances drain.
    pub changed: Vec<ModelId>,
}

/// Everything the loop can be asked.
#[derive(Debug)]
pub enum Command {
    /// Serve a request. The reply comes when it is granted or refused; a dropped reply is a cancel.
    Submit(Submission, oneshot::Sender<Submitted>),
    /// Load a model without a request; the reply comes when it is hot.
    Load(ModelId, AccessEntry, oneshot::Sender<Result<(), Failure>>),
    /// Unload once its leases have ended, or are cut after this long; the reply comes when it is cold.
    Unload(ModelId, Option<Duration>, AccessEntry, oneshot::Sender<Result<(), Failure>>),
    /// Park once its leases have ended; the reply comes when its device memory is back.
    Park(ModelId, AccessEntry, oneshot::Sender<Result<(), Failure>>),
    /// What a request for this model would meet.
    Explain(ModelId, oneshot::Sender<Result<Explanation, Failure>>),
    /// Whether the loop still answers.
    Ping(oneshot::Sender<()>),
    /// One model's status, if there is such a model.
    Status(ModelId, oneshot::Sender<Option<ModelStatus>>),
    /// Every model's status, who waits, and what came and left.
    Overview(oneshot::Sender<Overview>),
    /// Never evict a model, or evict it again.
    Pin(Pin, oneshot::Sender<Arc<Changes>>),
    /// Every model's status, in name order.
    Models(oneshot::Sender<Vec<ModelStatus>>),
    /// What there is to say of every device.
    Devices(oneshot::Sender<Vec<DeviceStatus>>),
    /// Everything that is measured.
    Metrics(oneshot::Sender<Scrape>),
    /// A new configuration, already checked.
    Configure(Arc<Config>, oneshot::Sender<Arc<Changes>>),
    /// Look at the folders of plugins; the reply comes when what lies there is in force.
    LookAtPlugins(oneshot::Sender<Arc<Changes>>),
    /// The last log lines of a model's worker.
    Logs(ModelId, oneshot::Sender<Followed>),
}

/// The way into the loop. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    config: watch::Receiver<Arc<Config>>,
    plugins: watch::Receiver<Arc<Registry>>,
    facts: Arc<Facts>,
}

impl Handle {
    /// A handle on a loop that receives `commands`.
    pub fn new(
        commands: mpsc::Sender<Command>,
        config: watch::Receiver<Arc<Config>>,
        plugins: watch::Receiver<Arc<Registry>>,
    ) -> Self {
        Self { commands, config, plugins, facts: Arc::default() }
    }

    /// The same, which knows what plugins said of models.
    pub(super) fn with_facts(self, facts: Arc<Facts>) -> Self {
        Self { facts, ..self }
    }

    /// What is known of a model: what its plugin said when it last planned a load of this entry.
    pub fn facts(&self, model: &ModelConfig) -> ModelFacts {
        self.facts.of(model)
    }

    /// Whether the engine of any model may answer HTTP itself. It is asked for each request, and looks at names alone.
    pub fn may_speak_http(&self, config: &Config) -> bool {
        let registry = self.plugins.borrow();
        let named = |id: &str| registry.plugins.iter().any(|plugin| plugin.manifest.id == id && plugin.answers_http());
        config.models.values().any(|model| model.http.remote.is_some() || named(&model.plugin))
    }

    /// Whether the engine of a model answers HTTP itself.
    pub fn speaks_http(&self, model: &ModelConfig) -> bool {
        let registry = self.plugins.borrow();
        let plugin = || registry.find(&model.plugin, model.plugin_version.as_ref());
        model.http.remote.is_some() || plugin().is_ok_and(|plugin| plugin.answers_http())
    }

    /// The plugin of a model, if there is one that can be used.
    pub fn plugin(&self, model: &ModelConfig) -> Option<Arc<PluginFile>> {
        self.plugins.borrow().find(&model.plugin, model.plugin_version.as_ref()).ok()
    }

    /// Whether the plugin of a model tells the tokens of a prompt.
    pub fn tells_tokens(&self, model: &ModelConfig) -> bool {
        self.has_feature(model, "tokens") == Some(true)
    }

    /// Whether the plugin of a model keeps an answer to a form: to a schema, say, or to a call of a tool. Nothing while there is no
    /// such plugin.
    pub fn keeps_grammar(&self, model: &ModelConfig) -> Option<bool> {
        self.has_feature(model, "grammar")
    }

    fn has_feature(&self, model: &ModelConfig, wanted: &str) -> Option<bool> {
        let registry = self.plugins.borrow();
        let plugin = registry.find(&model.plugin, model.plugin_version.as_ref()).ok()?;
        Some(plugin.manifest.features.iter().any(|feature| feature == wanted))
    }

    /// The configuration in force. Take it once per request: it may be another the next time.
    pub fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config.borrow())
    }

    /// Puts a new configuration in force, once those before are. Models that did not change keep running; changed ones drain
    /// and load anew on their next request. Waiting requests whose model is of another kind by now are refused.
    ///
    /// # Errors
    /// The host is shutting down.
    pub async fn configure(&self, config: Arc<Config>) -> Result<Arc<Changes>, Failure> {
        self.ask(|reply| Command::Configure(config, reply)).await
    }

    /// Looks at the folders of plugins, and waits until what lies there is in force: the next load of each model uses it.
    ///
    /// # Errors
    /// The host is shutting down.
    pub async fn look_at_plugins(&self) -> Result<(), Failure> {
        self.ask(Command::LookAtPlugins).await.map(drop)
    }

    /// Waits until the request is granted: at most `hold` for a load, at most `request_timeout` for a slot of a loaded
    /// model. Dropping the future cancels.
    ///
    /// # Errors
    /// Why it is not served: queue full, still loading, busy, load failed, does not fit, shutting down.
    pub async fn submit(&self, mut submission: Submission) -> Submitted {
        submission.keep_alive = submission.keep_alive.map(|asked| asked.within(&self.config().limits));
        self.ask(|reply| Command::Submit(submission, reply)).await?
    }

    /// Loads a model and waits until it is hot.
    ///
    /// # Errors
    /// Why it could not be loaded.
    pub async fn load(&self, model: ModelId, access: AccessEntry) -> Result<(), Failure> {
        self.ask(|reply| Command::Load(model, access, reply)).await?
    }

    /// Unloads a model once its leases have ended. Those that still run after `cut_after` are cut, if it is given.
    ///
    /// # Errors
    /// Unknown model, or the host is shutting down.
    pub async fn unload(
        &self,
        model: ModelId,
        cut_after: Option<Duration>,
        access: AccessEntry,
    ) -> Result<(), Failure> {
        self.ask(|reply| Command::Unload(model, cut_after, access, reply)).await?
    }

    /// Parks a model once its leases have ended, and returns when its device memory is back.
    ///
    /// # Errors
    /// Unknown or not loaded; it cannot park or did not give its memory back; the host is shutting down.
    pub async fn park(&self, model: ModelId, access: AccessEntry) -> Result<(), Failure> {
        self.ask(|reply| Command::Park(model, access, reply)).await?
    }

    /// What a request for this model would meet now. Changes nothing.
    ///
    /// # Errors
    /// Unknown model, or the host is shutting down.
    pub async fn explain(&self, model: ModelId) -> Result<Explanation, Failure> {
        self.ask(|reply| Command::Explain(model, reply)).await?
    }

    /// Whether the loop has ended: nobody is served any more.
    pub fn is_over(&self) -> bool {
        self.commands.is_closed()
    }

    /// Waits until the loop has seen this.
    ///
    /// # Errors
    /// It has ended.
    pub async fn ping(&self) -> Result<(), Failure> {
        self.ask(Command::Ping).await
    }

    /// One model's status, if there is such a model. Loads and wakes nothing.
    ///
    /// # Errors
    /// The host is shutting down.
    pub async fn status(&self, model: ModelId) -> Result<Option<ModelStatus>, Failure> {
        self.ask(|reply| Command::Status(model, reply)).await
    }

    /// Every model's status, in name order. Loads and wakes nothing.
    ///
    /// # Errors
    /// The host is shutting down.
    pub async fn models(&self) -> Result<Vec<ModelStatus>, Failure> {
        self.ask(Command::Models).await
    }

    /// A host at this moment: every model's status, who waits, and what came and left. Loads and wakes nothing.
    ///
    /// # Errors
    /// The host is shutting down.
    pub async fn overview(&self) -> Result<Overview, Failure> {
        self.ask(Command::Overview).await
    }

    /// Never evicts a model for others, or does again, until models.yaml is read anew.
    ///
    /// # Errors
    /// The host is shutting down.
    pub async fn pin(&self, model: ModelId, pinned: bool) -> Result<(), Failure> {
        self.ask(|reply| Command::Pin(Pin { model, pinned }, reply)).await.map(drop)
    }

    /// What there is to say of every device of the configuration, in order. Loads and wakes nothing.
    ///
    /// # Errors
    /// The host is shutting down.
    pub async fn devices(&self) -> Result<Vec<DeviceStatus>, Failure> {
        self.ask(Command::Devices).await
    }

    /// Everything that is measured. Loads and wakes nothing.
    ///
    /// # Errors
    /// The host is shutting down.
    pub async fn metrics(&self) -> Result<Scrape, Failure> {
        self.ask(Command::Metrics).await
    }

    /// What a model's workers logged, and what they log from now on.
    ///
    /// # Errors
    /// The host is shutting down.
    pub async fn logs(&self, model: ModelId) -> Result<Followed, Failure> {
        self.ask(|reply| Command::Logs(model, reply)).await
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Failure> {
        let (reply, answer) = oneshot::channel();
        let gone = |()| Failure::new(FailureKind::ShuttingDown, "the host is shutting down");
        self.commands.send(command(reply)).await.map_err(|_| gone(()))?;
        answer.await.map_err(|_| gone(()))
    }
}
