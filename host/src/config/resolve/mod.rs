//! From what was typed to what it means: every reference followed, every value checked, every wrong thing reported at once.

mod files;
mod keys;
mod location;
mod models;
mod policy;

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

pub(super) use policy::only_device;

use super::env::Env;
use super::error::{ConfigError, PROBLEMS_TOLD, Problem};
use super::locate::{KeyPath, lines};
use super::raw::{OneOrMany, RawConfig, RawDefaults, RawDevice, RawLimits, Text};
use super::resolved::{Config, DeviceConfig, Limits};
use super::units::{parse_duration, parse_size};
use super::{Selection, paths};
use crate::domain::{ByteSize, DeviceId};

/// The original's port.
const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9000);

/// Silence after which a worker counts as stalled, where nothing else is said.
const WORKER_SILENCE: Duration = Duration::from_secs(10);
/// The least of it.
const WORKER_SILENCE_MIN: Duration = Duration::from_secs(2);

/// What a configuration is read against.
pub(super) struct Context<'a> {
    pub(super) text: &'a str,
    pub(super) file: &'a Path,
    pub(super) selection: &'a Selection,
    pub(super) env: &'a Env,
}

/// Checks everything and reports all problems together.
pub(super) fn resolve(raw: RawConfig, context: Context<'_>) -> Result<Config, ConfigError> {
    let root = KeyPath::root();
    let base = context.file.parent().unwrap_or_else(|| Path::new("/"));
    let mut check = Checker::default();
    check.version(raw.version.as_ref());
    let typed = [raw.plugins_dir.as_deref(), raw.models_dir.as_deref(), raw.state_dir.as_deref()];
    let paths = paths::folders(typed, base, context.env);
    let api_keys = keys::resolve(&mut check, raw.api_keys.as_ref(), context.env);
    let devices = check.devices(raw.devices.as_ref(), context.env);
    let defaults = raw.defaults.unwrap_or_default();
    let limits = check.limits(&raw.limits.unwrap_or_default(), &defaults);
    let listen = check.listen(raw.listen.as_ref(), context.selection);
    let open = raw.allow_unauthenticated || !api_keys.is_empty() || raw.api_keys.is_some();
    if !listen.ip().is_loopback() && !open {
        check
            .fail(&root.key("listen"), Some(&listen.to_string()), "lets other machines in without an API key")
            .hint("set `api_keys:`, or listen on 127.0.0.1, or say `allow_unauthenticated: true`");
    }
    let models = match raw.models {
        Some(models) => {
            models::resolve(&mut check, models, &models::Surroundings::new(&defaults, &devices, &paths, base))
        }
        None => {
            check
                .fail(&root.key("models"), None, "is missing: there is nothing to serve")
                .hint("`aihost init` writes an example to start from");
            Default::default()
        }
    };
    match check.problems(context.text) {
        (problems, _) if problems.is_empty() => {
            Ok(Config { file: Some(context.file.to_owned()), listen, api_keys, devices, limits, paths, models })
        }
        (problems, more) => Err(ConfigError { file: Some(context.file.to_owned()), problems, more }),
    }
}

/// Collects problems, so that one run names many; how many more there are is counted.
#[derive(Default)]
pub(super) struct Checker {
    problems: Vec<(KeyPath, Problem)>,
    more: usize,
}

/// The problem just reported, to which a hint can be added.
pub(super) struct Reported<'a>(Option<&'a mut Problem>);

impl Reported<'_> {
    pub(super) fn hint(self, hint: impl Into<String>) {
        if let Some(problem) = self.0 {
            problem.hint = Some(hint.into());
        }
    }
}

impl Checker {
    pub(super) fn fail(&mut self, key: &KeyPath, value: Option<&str>, message: impl Into<String>) -> Reported<'_> {
        if self.problems.len() >= PROBLEMS_TOLD {
            self.more += 1;
            return Reported(None);
        }
        let problem = Problem {
            // Looked up for all of them together.
            line: None,
            key: Some(key.to_string()),
            value: value.map(str::to_owned),
            message: message.into(),
            hint: None,
        };
        self.problems.push((key.clone(), problem));
        Reported(self.problems.last_mut().map(|(_, problem)| problem))
    }

    /// What was found, in the order of its lines, and how much more was.
    fn problems(self, text: &str) -> (Vec<Problem>, usize) {
        let paths: Vec<&KeyPath> = self.problems.iter().map(|(key, _)| key).collect();
        let lines = if paths.is_empty() { Vec::new() } else { lines(text, &paths) };
        let mut problems: Vec<Problem> =
            self.problems.into_iter().zip(lines).map(|((_, problem), line)| Problem { line, ..problem }).collect();
        problems.sort_by_key(|problem| problem.line);
        (problems, self.more)
    }

    /// A number of bytes above zero.
    pub(super) fn size(&mut self, key: &KeyPath, typed: Option<&Text>) -> Option<ByteSize> {
        let typed = typed?;
        match parse_size(&typed.0) {
            Ok(ByteSize(0)) => {
                self.fail(key, Some(&typed.0), "leaves no room for anything").hint("leave the key out for the default");
                None
            }
            Ok(size) => Some(size),
            Err(wrong) => {
                self.fail(key, Some(&typed.0), wrong).hint("a size is written like 20GiB or 512MB");
                None
            }
        }
    }

    /// A duration; `forever` is `Some(None)`.
    pub(super) fn duration(&mut self, key: &KeyPath, typed: Option<&Text>) -> Option<Option<Duration>> {
        let typed = typed?;
        match parse_duration(&typed.0) {
            Ok(duration) => Some(duration),
            Err(wrong) => {
                self.fail(key, Some(&typed.0), wrong).hint("a duration is written like 60s, 5m or 1h");
                None
            }
        }
    }

    /// A duration that ends and is not zero.
    pub(super) fn finite(&mut self, key: &KeyPath, typed: Option<&Text>, default: Duration) -> Duration {
        match self.duration(key, typed) {
            None => default,
            Some(Some(duration)) if !duration.is_zero() => duration,
            Some(_) => {
                self.fail(key, typed.map(|text| text.0.as_str()), "must be longer than nothing and end some day");
                default
            }
        }
    }

    /// The time from one to the next, which is not zero; `None` if there is no next.
    pub(super) fn period(&mut self, key: &KeyPath, typed: Option<&Text>) -> Option<Duration> {
        let period = self.duration(key, typed).flatten()?;
        if period.is_zero() {
            self.fail(key, typed.map(|text| text.0.as_str()), "must be longer than nothing");
        }
        Some(period)
    }

    /// A whole number in a range.
    pub(super) fn number(
        &mut self,
        key: &KeyPath,
        typed: Option<&Text>,
        range: std::ops::RangeInclusive<i64>,
    ) -> Option<i64> {
        let typed = typed?;
        match typed.0.trim().parse::<i64>() {
            Ok(number) if range.contains(&number) => Some(number),
            _ => {
                let message = format!("is not a whole number from {} to {}", range.start(), range.end());
                self.fail(key, Some(&typed.0), message);
                None
            }
        }
    }

    /// How many of something; at least one.
    fn count(&mut self, key: &KeyPath, typed: Option<&Text>) -> Option<u32> {
        self.number(key, typed, 1..=1_000_000).and_then(|count| u32::try_from(count).ok())
    }

    fn version(&mut self, typed: Option<&Text>) {
        if let Some(Text(version)) = typed.filter(|version| !matches!(version.0.as_str(), "1" | "1.0")) {
            self.fail(&KeyPath::root().key("version"), Some(version), "is not a format this host knows")
                .hint("it reads version 1");
        }
    }

    fn listen(&mut self, typed: Option<&Text>, selection: &Selection) -> SocketAddr {
        let Some(typed) = selection.listen.as_ref().or(typed.map(|text| &text.0)) else { return DEFAULT_LISTEN };
        let text = typed.trim().replace("localhost:", "127.0.0.1:");
        let port_alone = text.parse().ok().map(|port| SocketAddr::new(DEFAULT_LISTEN.ip(), port));
        match port_alone.or_else(|| text.parse().ok()) {
            Some(address) => address,
            None => {
                self.fail(&KeyPath::root().key("listen"), Some(typed), "is not an address and a port")
                    .hint("write it like 127.0.0.1:9000, or 0.0.0.0:9000 for every interface");
                DEFAULT_LISTEN
            }
        }
    }

    fn devices(&mut self, typed: Option<&OneOrMany<RawDevice>>, env: &Env) -> Vec<DeviceConfig> {
        let here = |id| DeviceConfig { id, memory: None, max_loaded: None };
        let auto = || env.devices().into_iter().map(here).collect();
        let Some(typed) = typed else { return auto() };
        if let [RawDevice(only)] = typed.items.as_slice()
            && only.id.0 == "auto"
        {
            return auto();
        }
        let root = KeyPath::root().key("devices");
        if typed.items.is_empty() {
            self.fail(&root, None, "is an empty list").hint("write `devices: auto`, or list `cpu`, `cuda:0`, ...");
        }
        let mut devices: Vec<DeviceConfig> = Vec::new();
        let mut seen = HashSet::new();
        for (position, RawDevice(device)) in typed.items.iter().enumerate() {
            let key = if typed.list { root.index(position) } else { root.clone() };
            let id = DeviceId(device.id.0.clone());
            let usable = is_device(&id.0) && seen.insert(id.clone());
            if !is_device(&id.0) {
                self.fail(&key, Some(&id.0), "is not a device")
                    .hint("devices are called `cpu` and `cuda:0`, `cuda:1`, ...");
            } else if !usable {
                self.fail(&key, Some(&id.0), "is listed twice").hint("give each device one entry");
            }
            let memory = self.size(&key.key("memory"), device.memory.as_ref());
            let max_loaded = self.number(&key.key("max_loaded"), device.max_loaded.as_ref(), 1..=1024);
            if usable {
                devices.push(DeviceConfig { id, memory, max_loaded: max_loaded.and_then(|n| u32::try_from(n).ok()) });
            }
        }
        devices
    }

    /// What a worker may be silent for: not less than it needs to be heard twice.
    fn silence(&mut self, key: &KeyPath, typed: Option<&Text>) -> Duration {
        let silence = self.finite(key, typed, WORKER_SILENCE);
        if silence < WORKER_SILENCE_MIN {
            let least = WORKER_SILENCE_MIN.as_secs();
            self.fail(key, typed.map(|text| text.0.as_str()), format!("is less than {least} s"))
                .hint("a worker says that it is there once a second");
        }
        silence
    }

    fn limits(&mut self, typed: &RawLimits, defaults: &RawDefaults) -> Limits {
        let limits = KeyPath::root().key("limits");
        let common = KeyPath::root().key("defaults");
        let seconds = Duration::from_secs;
        let queue = self.number(&limits.key("queue"), typed.queue.as_ref(), 1..=100_000);
        let max_wait = self.finite(&common.key("max_wait"), defaults.max_wait.as_ref(), seconds(60));
        let quantum = self.finite(&common.key("quantum"), defaults.quantum.as_ref(), seconds(5).min(max_wait));
        let body_limit = self.size(&limits.key("body_limit"), typed.body_limit.as_ref());
        let usual_bodies = ByteSize(body_limit.map_or(0, |limit| limit.0.saturating_mul(2)).max(256 << 20));
        let limits = Limits {
            queue: queue.and_then(|n| u32::try_from(n).ok()).unwrap_or(128),
            max_wait,
            quantum,
            hold: self.finite(&limits.key("hold"), typed.hold.as_ref(), seconds(90)),
            request_timeout: self.finite(&limits.key("request_timeout"), typed.request_timeout.as_ref(), seconds(600)),
            first_output_timeout: self.finite(
                &limits.key("first_output_timeout"),
                typed.first_output_timeout.as_ref(),
                seconds(300),
            ),
            output_stall_timeout: self.finite(
                &limits.key("output_stall_timeout"),
                typed.output_stall_timeout.as_ref(),
                seconds(120),
            ),
            worker_silence: self.silence(&limits.key("worker_silence"), typed.worker_silence.as_ref()),
            stream_stall_timeout: self.finite(
                &limits.key("stream_stall_timeout"),
                typed.stream_stall_timeout.as_ref(),
                seconds(60),
            ),
            sse_ping: self.period(&limits.key("sse_ping"), typed.sse_ping.as_ref()),
            drain_timeout: self.finite(&limits.key("drain_timeout"), typed.drain_timeout.as_ref(), seconds(60)),
            body_limit,
            bodies: self.size(&limits.key("bodies"), typed.bodies.as_ref()).unwrap_or(usual_bodies),
            connections: self.count(&limits.key("connections"), typed.connections.as_ref()),
            connections_per_peer: self.count(&limits.key("connections_per_peer"), typed.connections_per_peer.as_ref()),
            artifact_ttl: self.finite(&limits.key("artifact_ttl"), typed.artifact_ttl.as_ref(), seconds(3600)),
            artifact_bytes: self
                .size(&limits.key("artifact_bytes"), typed.artifact_bytes.as_ref())
                .unwrap_or(ByteSize(1 << 30)),
        };
        policy::check_quantum(self, defaults.quantum.as_ref().map(|text| text.0.as_str()), &limits);
        policy::check_bodies(self, typed.bodies.as_ref().map(|text| text.0.as_str()), &limits);
        limits
    }
}

/// Whether this is a device's name.
pub(super) fn is_device(name: &str) -> bool {
    name == "cpu"
        || name
            .strip_prefix("cuda:")
            .is_some_and(|n| n.len() <= 3 && !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}
