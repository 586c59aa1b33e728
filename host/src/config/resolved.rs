//! What models.yaml means, checked: every default filled in, every size a number, every reference followed.
//!
//! Nothing here touches the network or a plugin; `raw` is what was typed.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::api_key::ApiKey;
use super::http::HttpConfig;
use super::origin::Cors;
use super::ownership::Sharing;
use super::source::Source;
use crate::domain::{ByteSize, Device, Kind, ModelId};

/// A checked configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where it was read; `None` for one built in code.
    pub file: Option<PathBuf>,
    /// Where HTTP listens, and where commands on this machine ask.
    pub listen: SocketAddr,
    /// Where it listens too.
    pub listen_also: Vec<SocketAddr>,
    /// Accepted API keys; empty means none is asked for.
    pub api_keys: Vec<Arc<ApiKey>>,
    /// Pages and apps of other origins that may use it.
    pub cors: Cors,
    /// Devices with their budgets, in order of preference.
    pub devices: Vec<DeviceConfig>,
    /// Host-wide limits.
    pub limits: Limits,
    /// Folders.
    pub paths: Paths,
    /// Entries by name.
    pub models: BTreeMap<ModelId, ModelConfig>,
}

/// A device and what the host may use of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceConfig {
    /// `cpu`, `cuda:N`.
    pub id: Device,
    /// Bytes that instances may hold together; `None` means what is measured at start.
    pub memory: Option<ByteSize>,
    /// Most instances at once.
    pub max_loaded: Option<u32>,
}

/// Limits that hold for the whole host. Each is a key of `limits:` or `defaults:` of the same name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Waiting requests per model (`queue`).
    pub queue: u32,
    /// How long a waiter of another model may wait before the hot model's gate closes (`max_wait`).
    pub max_wait: Duration,
    /// The least time a hot model with its own queue serves before it yields (`quantum`).
    pub quantum: Duration,
    /// How long a request waits for a load (`hold`).
    pub hold: Duration,
    /// From grant to the end of `generate`, and how long a request waits for a slot of a loaded model (`request_timeout`).
    pub request_timeout: Duration,
    /// How long a granted request may go without a first event or progress report (`first_output_timeout`).
    pub first_output_timeout: Duration,
    /// How long it may then go without another (`output_stall_timeout`).
    pub output_stall_timeout: Duration,
    /// How long a worker may be silent (`worker_silence`).
    pub worker_silence: Duration,
    /// How long a stream may stay paused because its client does not read (`stream_stall_timeout`).
    pub stream_stall_timeout: Duration,
    /// How often a silent stream says that it is there (`sse_ping`); `None` means never.
    pub sse_ping: Option<Duration>,
    /// The longest `keep_alive` of a request (`keep_alive`); `None` means without end.
    pub keep_alive: Option<Duration>,
    /// The shortest (`keep_alive_min`).
    pub keep_alive_min: Duration,
    /// How long a graceful shutdown waits for leases (`drain_timeout`).
    pub drain_timeout: Duration,
    /// Largest request body (`body_limit`); `None` means what is usual for its endpoint.
    pub body_limit: Option<ByteSize>,
    /// Bytes of request bodies that are held together (`bodies`).
    pub bodies: ByteSize,
    /// Connections at once (`connections`); `None` means what the system allows, within reason.
    pub connections: Option<u32>,
    /// Connections at once from one address (`connections_per_peer`); `None` means half of all.
    pub connections_per_peer: Option<u32>,
    /// How long a file that an answer named by URL is kept (`artifact_ttl`).
    pub artifact_ttl: Duration,
    /// Bytes that such files may take together (`artifact_bytes`).
    pub artifact_bytes: ByteSize,
    /// Jobs that may wait or run (`jobs`).
    pub jobs: u32,
    /// Jobs that run at once (`jobs_at_once`).
    pub jobs_at_once: u32,
    /// How long the answer of a job is kept, and how long it waits (`job_ttl`).
    pub job_ttl: Duration,
    /// Bytes that requests and answers of jobs may take together (`job_bytes`).
    pub job_bytes: ByteSize,
}

/// Largest body of a text, bytes, unless `body_limit` says otherwise.
pub const TEXT_BODY_BYTES: u64 = 4 << 20;

/// Folders, all absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// `.so` files; where one more is put.
    pub plugins: PathBuf,
    /// `.so` files that were installed with this program; `None` where nothing was, or where `plugins` was chosen.
    pub installed_plugins: Option<PathBuf>,
    /// Weights.
    pub models: PathBuf,
    /// Shadow copies, learned peaks, logs.
    pub state: PathBuf,
    /// Local copies of weights, where they are wanted.
    pub cache: Option<CacheConfig>,
    /// Whether others may own or write them (`allow_shared_folders`).
    pub sharing: Sharing,
}

/// Where copies of weights are kept that lie on a slow disk (`cache_dir`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheConfig {
    /// The folder, absolute.
    pub folder: PathBuf,
    /// Bytes that copies may take together (`cache_size`); `None` means what the disk has room for.
    pub size: Option<ByteSize>,
}

impl Paths {
    /// Every folder in which plugins are looked for.
    pub fn plugin_folders(&self) -> Vec<PathBuf> {
        [&self.plugins].into_iter().chain(&self.installed_plugins).cloned().collect()
    }

    /// The folder in which a plugin may do as it likes.
    pub fn plugin_folder(&self, plugin: &str) -> PathBuf {
        self.state.join("plugin-data").join(plugin.replace('/', "_"))
    }
}

/// One entry of `models:`.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Its name.
    pub id: ModelId,
    /// `type:`
    pub kind: Kind,
    /// Plugin id.
    pub plugin: String,
    /// After `@` in `plugin:`.
    pub plugin_version: Option<semver::VersionReq>,
    /// The endpoint it answers when a request names no model.
    pub endpoint: Option<String>,
    /// Whether it is preferred among models of one endpoint.
    pub default: bool,
    /// The load deadline (`startup_time`).
    pub load_timeout: Duration,
    /// Files by role; one role `model` for `source:`.
    pub files: BTreeMap<String, FileConfig>,
    /// The plugin's own options.
    pub options: serde_json::Value,
    /// How it is asked, if it answers HTTP itself.
    pub http: HttpConfig,
    /// Other names.
    pub aliases: Vec<String>,
    /// Idle time after which it is unloaded; `None` means never.
    pub keep_alive: Option<Duration>,
    /// Most tokens of an answer to a request that does not say how many.
    pub default_max_tokens: u32,
    /// Never evicted.
    pub pin: bool,
    /// Higher is evicted later.
    pub priority: i32,
    /// Most instances at once.
    pub replicas: u32,
    /// Whether it may park, if its plugin can.
    pub park: bool,
    /// Loaded at start.
    pub preload: bool,
    /// Bytes it may take; overrides the plugin's plan.
    pub memory: Option<ByteSize>,
    /// Devices it may use; empty means any that its plugin supports.
    pub devices: Vec<Device>,
    /// How far the host is with choosing its plugin, where that is left to it (`plugin: auto`).
    pub choice: Option<Choice>,
    /// Why it is not what its text says; `None` as it is read.
    pub refusal: Option<Refusal>,
}

/// How far the host is with choosing what serves a model. Each has the sentence that says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// There is nothing yet to choose by: what is missing.
    Open(String),
    /// It cannot be made: which key of the entry is to be changed, and why.
    Failed {
        /// The key.
        key: &'static str,
        /// Why, and what to do.
        why: String,
    },
    /// What was chosen, and why; plugin, options and memory say the same.
    Made(String),
}

/// What is done about an entry that is wrong by what its plugin says. Each has the sentence that says what is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is nothing else: it is not loaded.
    Entry(String),
    /// What its instances were made of before serves on.
    Change(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Entry(why) => f.write_str(why),
            Self::Change(why) => write!(f, "its changed entry is refused, and the one before serves on: {why}"),
        }
    }
}

impl Config {
    /// Every address that HTTP listens on.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        std::iter::once(self.listen).chain(self.listen_also.iter().copied())
    }

    /// Whether this brings anything that was not in force before: it says something else than what it said, refused changes
    /// left out, or no longer refuses what it did.
    pub fn is_news_after(&self, before: &Self) -> bool {
        let without_refusals = |config: &Self| {
            let mut config = config.clone();
            config.models.values_mut().for_each(|model| model.refusal = None);
            config
        };
        let is_mended = |model: &ModelConfig| {
            let refused = before.models.get(&model.id).is_some_and(|before| before.refusal.is_some());
            refused && model.refusal.is_none()
        };
        self.models.values().any(is_mended) || without_refusals(self) != without_refusals(before)
    }
}

impl ModelConfig {
    /// Whether this is its name, or an alias of it.
    pub fn is_called(&self, name: &str) -> bool {
        self.id.as_str() == name || self.aliases.iter().any(|alias| alias == name)
    }

    /// Why nothing is chosen that serves it, where that is the host's to choose.
    pub fn unchosen(&self) -> Option<&str> {
        match self.choice.as_ref()? {
            Choice::Open(why) | Choice::Failed { why, .. } => Some(why),
            Choice::Made(_) => None,
        }
    }

    /// The name by which its engine knows it, if that answers HTTP itself.
    pub fn engine_name(&self) -> &str {
        self.http.engine_model.as_deref().unwrap_or(self.id.as_str())
    }

    /// Whether instances of both are the same. Names, limits and policy take effect without a reload.
    pub fn is_made_like(&self, other: &Self) -> bool {
        self.kind == other.kind
            && (&self.plugin, &self.plugin_version) == (&other.plugin, &other.plugin_version)
            && (&self.files, &self.options) == (&other.files, &other.options)
            && (&self.memory, &self.devices) == (&other.memory, &other.devices)
            && (&self.http.remote, &self.http.busy) == (&other.http.remote, &other.http.busy)
    }

    /// Refuses what is new of this entry: instances are made as by the one before, all else is as it says.
    pub fn keep(&mut self, before: &Self, why: String) {
        let before = before.clone();
        if self.kind != before.kind {
            (self.endpoint, self.default) = (before.endpoint, before.default);
        }
        (self.kind, self.plugin, self.plugin_version) = (before.kind, before.plugin, before.plugin_version);
        (self.files, self.options) = (before.files, before.options);
        (self.memory, self.devices, self.http) = (before.memory, before.devices, before.http);
        self.choice = before.choice;
        self.refusal = Some(Refusal::Change(why));
    }
}

/// One file of a model: where it comes from and where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileConfig {
    /// Mirrors of the same bytes, tried in order; empty when it is a local `path`.
    pub sources: Vec<Source>,
    /// Expected digest, lower-case hex.
    pub sha256: Option<String>,
    /// Where the host looks for it, absolute.
    pub path: PathBuf,
}
