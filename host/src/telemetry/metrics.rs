//! Every metric by name: one enum, and one table row for each. What is not here is not measured; docs/METRICS.md is
//! written from it. It knows no values ([`super::Metrics`] keeps them) and nothing of who counts.

use crate::domain::{EvictionCause, FailureKind, ModelState, named};

/// A metric of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Metric {
    /// Requests that ended.
    Requests,
    /// From arrival to grant.
    QueueWait,
    /// From arrival to the first output.
    FirstOutput,
    /// From arrival to the end.
    RequestDuration,
    /// Tokens read and generated.
    Tokens,
    /// Requests tried again after their worker died.
    Replays,
    /// Requests whose answer a worker took with it.
    Lost,
    /// Changes of what is loaded.
    Swaps,
    /// How long each part of a swap took.
    SwapPhase,
    /// Loaded models that were made to leave.
    Evictions,
    /// Loads that failed.
    LoadFailures,
    /// Workers that ended.
    WorkerExits,
    /// Instances by state.
    Instances,
    /// Requests that hold a lease.
    Leases,
    /// Requests that wait.
    Queue,
    /// What instances plan to need.
    MemoryPlanned,
    /// What is set aside for instances.
    MemoryReserved,
    /// What workers hold.
    MemoryMeasured,
    /// What a device may hold.
    DeviceBudget,
    /// Lines of the log that were not written.
    LogLinesLost,
    /// Models by state.
    Models,
    /// What is set aside on a device.
    DeviceReserved,
    /// What a device has.
    DeviceTotal,
    /// What is taken of it.
    DeviceUsed,
    /// What is free of it.
    DeviceFree,
    /// What other processes hold of it.
    DeviceOthers,
    /// Connections of clients.
    Connections,
    /// Requests that were refused, by status.
    Refusals,
    /// Which build it is.
    BuildInfo,
    /// Processor time of the host.
    CpuSeconds,
    /// Memory of the host.
    ResidentMemory,
    /// Addresses of the host.
    VirtualMemory,
    /// Descriptors of the host.
    OpenDescriptors,
    /// Descriptors that it may have.
    MostDescriptors,
    /// Threads of the host.
    Threads,
    /// When the host started.
    StartTime,
}

/// What a metric is, for the scraper and for people.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// As scraped; a counter ends in `_total`, a unit comes before that.
    pub name: &'static str,
    /// What kind of number it is.
    pub form: Form,
    /// `seconds`, `bytes`, or what is counted.
    pub unit: &'static str,
    /// Its labels.
    pub labels: &'static [Label],
    /// One sentence, without its full stop.
    pub help: &'static str,
}

/// What kind of number a metric is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Form {
    /// Only grows.
    Counter,
    /// Goes up and down; read from the state at each scrape.
    Gauge,
    /// A distribution, with these upper bounds.
    Histogram(&'static [f64]),
}

/// A label and what it may say.
#[derive(Clone, Copy, Debug)]
pub struct Label {
    /// Its name.
    pub name: &'static str,
    /// The closed list of its values; empty for what models.yaml names.
    pub values: &'static [&'static str],
}

/// A model of models.yaml, never an alias and never what a client made up.
const MODEL: Label = Label { name: "model", values: &[] };
/// A device of models.yaml.
const DEVICE: Label = Label { name: "device", values: &[] };

/// How requests end: well, or by a failure.
const OUTCOME: Label = Label { name: "outcome", values: &OUTCOMES };
const OUTCOMES: [&str; 1 + FailureKind::NAMES.len()] = {
    let mut all = [OK; 1 + FailureKind::NAMES.len()];
    let mut at = 0;
    while at < FailureKind::NAMES.len() {
        all[1 + at] = FailureKind::NAMES[at];
        at += 1;
    }
    all
};
const DIRECTION: Label = Label { name: "direction", values: Direction::NAMES };
const SWAP: Label = Label { name: "kind", values: Swap::NAMES };
const PHASE: Label = Label { name: "phase", values: SwapPhase::NAMES };
const EVICTION: Label = Label { name: "reason", values: EvictionCause::NAMES };
const EXIT: Label = Label { name: "reason", values: WorkerExit::NAMES };
const STATE: Label = Label { name: "state", values: ModelState::NAMES };
const MODEL_STATE: Label = Label { name: "state", values: &MODEL_STATES };
/// Those of a model, and that an operator has to mend it.
const MODEL_STATES: [&str; 1 + ModelState::NAMES.len()] = {
    let mut all = [QUARANTINED; 1 + ModelState::NAMES.len()];
    let mut at = 0;
    while at < ModelState::NAMES.len() {
        all[1 + at] = ModelState::NAMES[at];
        at += 1;
    }
    all
};
const STATUS: Label = Label { name: "status", values: &[] };
const VERSION: Label = Label { name: "version", values: &[] };

/// The state of a model that nobody may have until an operator says so.
pub const QUARANTINED: &str = "quarantined";
/// Statuses of refusals that are told from the start, so that their first one shows as an increase.
pub const REFUSALS: [&str; 5] = ["400", "401", "403", "429", "503"];

/// The outcome of a request that was answered.
pub const OK: &str = "ok";

named! {
    /// Whose tokens are counted.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Direction {
        /// A prompt's.
        In = "in",
        /// An answer's.
        Out = "out",
    }
}

named! {
    /// What a swap did with an instance.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Swap {
        /// Its weights were read.
        ColdLoad = "cold_load",
        /// It took its device memory again.
        Wake = "wake",
        /// It gave its device memory back.
        Park = "park",
        /// Its worker ended.
        Stop = "stop",
    }
}

named! {
    /// A part of a swap.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum SwapPhase {
        /// The worker comes up and plans.
        Start = "start",
        /// Others leave the device.
        Memory = "memory",
        /// Weights are read.
        Load = "load",
        /// The last requests end.
        Drain = "drain",
        /// Device memory is given back.
        Park = "park",
        /// Device memory is taken again.
        Unpark = "unpark",
        /// The worker ends.
        Stop = "stop",
    }
}

named! {
    /// How a worker ended.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum WorkerExit {
        /// As it was told.
        Asked = "asked",
        /// By itself.
        Exited = "exited",
        /// It called `abort`.
        Aborted = "aborted",
        /// By a fault of memory or an instruction.
        Crashed = "crashed",
        /// The kernel had no memory for it.
        OutOfMemory = "out_of_memory",
        /// It held more than it was granted.
        BeyondGrant = "beyond_grant",
        /// By a signal of others.
        Killed = "killed",
        /// It was silent for too long.
        Stalled = "stalled",
        /// Its plugin panicked.
        Panicked = "panicked",
        /// It broke the protocol.
        Misbehaved = "misbehaved",
    }
}

/// From a token of a small model to the longest request.
const SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];

impl Metric {
    /// All of them, in the order of the documentation.
    pub const ALL: [Self; 36] = [
        Self::Requests,
        Self::QueueWait,
        Self::FirstOutput,
        Self::RequestDuration,
        Self::Tokens,
        Self::Replays,
        Self::Lost,
        Self::Swaps,
        Self::SwapPhase,
        Self::Evictions,
        Self::LoadFailures,
        Self::WorkerExits,
        Self::Instances,
        Self::Leases,
        Self::Queue,
        Self::MemoryPlanned,
        Self::MemoryReserved,
        Self::MemoryMeasured,
        Self::DeviceBudget,
        Self::LogLinesLost,
        Self::Models,
        Self::DeviceReserved,
        Self::DeviceTotal,
        Self::DeviceUsed,
        Self::DeviceFree,
        Self::DeviceOthers,
        Self::Connections,
        Self::Refusals,
        Self::BuildInfo,
        Self::CpuSeconds,
        Self::ResidentMemory,
        Self::VirtualMemory,
        Self::OpenDescriptors,
        Self::MostDescriptors,
        Self::Threads,
        Self::StartTime,
    ];

    /// Its row of the table.
    pub fn spec(self) -> Spec {
        self.spec_of_models().unwrap_or_else(|| self.spec_of_host())
    }

    fn spec_of_models(self) -> Option<Spec> {
        let counter = |name, unit, labels, help| Spec { name, form: Form::Counter, unit, labels, help };
        let gauge = |name, unit, labels, help| Spec { name, form: Form::Gauge, unit, labels, help };
        let seconds = |name, labels, help| Spec { name, form: Form::Histogram(SECONDS), unit: "seconds", labels, help };
        Some(match self {
            Self::Requests => counter(
                "aihost_requests_total",
                "requests",
                &[MODEL, OUTCOME],
                "Requests that ended, by how; one that was tried again counts once",
            ),
            Self::QueueWait => seconds(
                "aihost_request_queue_seconds",
                &[MODEL],
                "Time from a request's arrival to its grant, the loading of its model included",
            ),
            Self::FirstOutput => seconds(
                "aihost_request_first_output_seconds",
                &[MODEL],
                "Time from a request's arrival to its first output (for text, the first token)",
            ),
            Self::RequestDuration => seconds(
                "aihost_request_duration_seconds",
                &[MODEL],
                "Time from a granted request's arrival to the end of its lease",
            ),
            Self::Tokens => counter(
                "aihost_tokens_total",
                "tokens",
                &[MODEL, DIRECTION],
                "Tokens of prompts (in) and of answers (out), where the model counts them",
            ),
            Self::Replays => counter(
                "aihost_replays_total",
                "requests",
                &[MODEL],
                "Requests that were tried again because their worker died before it had sent anything",
            ),
            Self::Lost => counter(
                "aihost_requests_lost_total",
                "requests",
                &[MODEL],
                "Granted requests that got no whole answer because their worker died; 0 is the promise",
            ),
            Self::Swaps => counter(
                "aihost_swaps_total",
                "instances",
                &[MODEL, SWAP],
                "Instances that became hot from cold or from parked, were parked, or were stopped",
            ),
            Self::SwapPhase => seconds(
                "aihost_swap_phase_seconds",
                &[MODEL, PHASE],
                "Time that each part of a swap took: the worker's start and plan, the wait for room, load, drain, park, unpark, stop",
            ),
            Self::Evictions => counter(
                "aihost_evictions_total",
                "instances",
                &[MODEL, EVICTION],
                "Loaded instances that were made to leave the device, by why",
            ),
            Self::LoadFailures => {
                counter("aihost_load_failures_total", "instances", &[MODEL], "Instances that did not come up")
            }
            Self::WorkerExits => {
                counter("aihost_worker_exits_total", "processes", &[MODEL, EXIT], "Worker processes that ended, by why")
            }
            Self::Instances => gauge("aihost_instances", "instances", &[MODEL, STATE], "Instances there are, by state"),
            Self::Leases => gauge("aihost_leases", "requests", &[MODEL], "Requests that hold a lease"),
            Self::Queue => gauge("aihost_queue_length", "requests", &[MODEL], "Requests that wait for a grant"),
            Self::MemoryPlanned => gauge(
                "aihost_memory_planned_bytes",
                "bytes",
                &[MODEL, DEVICE],
                "Bytes that instances said they cannot do without",
            ),
            Self::MemoryReserved => gauge(
                "aihost_memory_reserved_bytes",
                "bytes",
                &[MODEL, DEVICE],
                "Bytes of the device's budget that are set aside for instances",
            ),
            Self::MemoryMeasured => gauge(
                "aihost_memory_measured_bytes",
                "bytes",
                &[MODEL, DEVICE],
                "Bytes of host memory that the system counts for workers, mapped files left out",
            ),
            _ => return None,
        })
    }

    fn spec_of_host(self) -> Spec {
        let counter = |name, unit, labels, help| Spec { name, form: Form::Counter, unit, labels, help };
        let gauge = |name, unit, labels, help| Spec { name, form: Form::Gauge, unit, labels, help };
        let of_device = |name, help| gauge(name, "bytes", &[DEVICE], help);
        match self {
            Self::DeviceBudget => {
                of_device("aihost_device_budget_bytes", "Bytes that instances may hold together on a device")
            }
            Self::DeviceReserved => of_device(
                "aihost_device_reserved_bytes",
                "Bytes of a device that are set aside for instances by their plans",
            ),
            Self::DeviceTotal => of_device(
                "aihost_device_total_bytes",
                "Bytes that a device has; of cpu, those of the machine or of the tightest control group",
            ),
            Self::DeviceUsed => of_device(
                "aihost_device_used_bytes",
                "Bytes of a device that are taken by whomever, as measured; absent where that cannot be measured",
            ),
            Self::DeviceFree => of_device(
                "aihost_device_free_bytes",
                "Bytes of a device that are free, as measured; absent where that cannot be measured",
            ),
            Self::DeviceOthers => of_device(
                "aihost_device_others_bytes",
                "Bytes of a device that processes hold which are not this host's; absent where that cannot be told",
            ),
            Self::Connections => {
                gauge("aihost_http_connections", "connections", &[], "Connections of clients that are open")
            }
            Self::Refusals => counter(
                "aihost_http_refusals_total",
                "requests",
                &[STATUS],
                "Requests and connections that were answered with a status of 400 or above",
            ),
            Self::BuildInfo => gauge("aihost_build_info", "1", &[VERSION], "The build of this host; always 1"),
            Self::CpuSeconds => counter(
                "process_cpu_seconds_total",
                "seconds",
                &[],
                "Processor time of the host's own process, that of its workers left out",
            ),
            Self::ResidentMemory => gauge(
                "process_resident_memory_bytes",
                "bytes",
                &[],
                "Bytes of memory that the host's own process holds",
            ),
            Self::VirtualMemory => gauge(
                "process_virtual_memory_bytes",
                "bytes",
                &[],
                "Bytes of addresses that the host's own process has",
            ),
            Self::OpenDescriptors => {
                gauge("process_open_fds", "descriptors", &[], "Descriptors that the host has open")
            }
            Self::MostDescriptors => {
                gauge("process_max_fds", "descriptors", &[], "Descriptors that the host may have open")
            }
            Self::Threads => gauge("process_threads", "threads", &[], "Threads of the host's own process"),
            Self::StartTime => {
                gauge("process_start_time_seconds", "seconds", &[], "When the host started, in seconds since 1970")
            }
            Self::Models => gauge(
                "aihost_models",
                "models",
                &[MODEL_STATE],
                "Models of models.yaml by the state of what is furthest on its way; quarantined are those that an operator has to mend",
            ),
            // The table of models has all others; a test goes through them.
            _ => counter(
                "aihost_log_lines_lost_total",
                "lines",
                &[],
                "Lines of the host's log that were not written because stderr failed or did not take them fast enough",
            ),
        }
    }

    /// Whether its counts are kept for each model, rather than read or counted elsewhere.
    pub(super) fn is_kept(self) -> bool {
        let spec = self.spec();
        spec.form != Form::Gauge && spec.labels.iter().any(|label| label.name == MODEL.name)
    }
}

impl Form {
    /// Its name in the documentation.
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{Form, Metric};

    /// Units that are not a metric's base unit, as words of its name.
    const NOT_BASE: [&str; 22] = [
        "milliseconds",
        "microseconds",
        "nanoseconds",
        "minutes",
        "hours",
        "days",
        "kilobytes",
        "megabytes",
        "gigabytes",
        "kibibytes",
        "mebibytes",
        "gibibytes",
        "bits",
        "percent",
        "ms",
        "us",
        "ns",
        "s",
        "kb",
        "mb",
        "gb",
        "b",
    ];
    /// Words that say again what `# TYPE` says, or end what Prometheus adds.
    const RESERVED: [&str; 8] = ["gauge", "counter", "histogram", "summary", "bucket", "count", "sum", "created"];

    /// What `promtool check metrics` looks at, and a little more.
    #[test]
    fn names_follow_the_conventions() {
        let mut names = BTreeSet::new();
        let is_snake = |name: &str| {
            let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
            name.bytes().all(plain) && name.starts_with(|first: char| first.is_ascii_lowercase())
        };
        for (position, metric) in Metric::ALL.into_iter().enumerate() {
            let spec = metric.spec();
            assert_eq!(metric as usize, position, "{metric:?} is out of order in ALL");
            assert!(names.insert(spec.name), "{} is there twice", spec.name);
            assert!(spec.name.starts_with("aihost_") || spec.name.starts_with("process_"), "{}", spec.name);
            assert!(is_snake(spec.name), "{}", spec.name);
            assert_eq!(spec.name.ends_with("_total"), spec.form == Form::Counter, "{}", spec.name);
            for word in spec.name.split('_') {
                assert!(!NOT_BASE.contains(&word) && !RESERVED.contains(&word), "{}: {word}", spec.name);
            }
            if matches!(spec.unit, "seconds" | "bytes") {
                let unit = format!("_{}", spec.unit);
                assert!(spec.name.strip_suffix("_total").unwrap_or(spec.name).ends_with(&unit), "{}", spec.name);
            }
            assert!(!spec.help.is_empty() && !spec.help.ends_with('.'), "{}", spec.name);
            assert!(
                !spec.help.contains(['\\', '"', '\n']),
                "{}: what each format would escape in its own way",
                spec.name
            );
            for label in spec.labels {
                assert!(
                    is_snake(label.name) && !matches!(label.name, "le" | "quantile"),
                    "{}: {}",
                    spec.name,
                    label.name
                );
            }
            if let Form::Histogram(bounds) = spec.form {
                assert!(bounds.is_sorted(), "{}", spec.name);
            }
        }
    }
}
