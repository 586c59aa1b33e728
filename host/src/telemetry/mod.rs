//! Logs and metrics: how log lines look, what is measured under which name. It knows `domain` and no other room.

mod metrics;
mod recorder;

pub use metrics::{Form, Label, Metric, Spec};
pub use recorder::{Gauges, Metrics, Scrape};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::time::SystemTime;

/// What is logged where nobody says otherwise.
const DEFAULT_FILTER: &str = "info";

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Sends this process's log to stderr, in `format`, filtered by `filter` (`info`, `aihost=debug,warn`, ...).
///
/// # Errors
/// The filter is not one, in a sentence; or a log is set up already.
pub fn init(format: LogFormat, filter: Option<&str>) -> Result<(), String> {
    let filter = filter.unwrap_or(DEFAULT_FILTER);
    let parsed = EnvFilter::try_new(filter).map_err(|e| format!("the log filter `{filter}` is not one: {e}"))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(parsed)
        .with_timer(SystemTime)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    }
    .map_err(|e| format!("the log cannot be set up: {e}"))
}
