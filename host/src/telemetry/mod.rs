//! Logs and metrics: how log lines look and how they reach stderr, what is measured under which name. It knows `domain`
//! and no other room.

mod lines;
mod metrics;
mod plugins;
mod process;
mod recorder;

pub use metrics::{Direction, Form, Label, Metric, OK, QUARANTINED, REFUSALS, Spec, Swap, SwapPhase, WorkerExit};
pub use plugins::PluginSeries;
pub use process::look_at_process;
pub use recorder::{Gauges, Metrics, Scrape, TextFormat};

use std::sync::OnceLock;
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

use self::lines::Lines;
use crate::domain::{named, printable};

/// What is logged where nobody says otherwise.
const DEFAULT_FILTER: &str = "info";
/// Longest that the end of the process waits for the last lines.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

/// Milliseconds since 1970, as what is noted of a host has them.
pub fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The process's way to stderr, once it has one that waits for nobody.
static OUTPUT: OnceLock<LogOutput> = OnceLock::new();

/// Where lines go, and how they look.
#[derive(Debug)]
struct LogOutput {
    lines: Lines,
    format: LogFormat,
}

named! {
    /// How bad what a line says is.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Severity {
        /// All is well.
        Info = "INFO",
        /// Something was not done.
        Error = "ERROR",
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For people at a terminal that shows colours.
    ColouredText,
    /// One JSON object a line.
    Json,
}

/// Sends this process's log to stderr, in `format`, filtered by `filter` (`info`, `aihost=debug,warn`, ...). From now on
/// nothing that is logged, noted or said by a panic waits for stderr or fails with it.
///
/// # Errors
/// The filter is not one, in a sentence; or a log is set up already.
pub fn init(format: LogFormat, filter: Option<&str>) -> Result<(), String> {
    let filter = filter.unwrap_or(DEFAULT_FILTER);
    let parsed = EnvFilter::try_new(filter).map_err(|e| format!("the log filter `{filter}` is not one: {e}"))?;
    let lines = open(format)?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(parsed)
        .with_timer(SystemTime)
        .with_writer(lines.clone())
        // What it would report by is the very stderr that failed, and it panics where that fails too.
        .log_internal_errors(false)
        .with_ansi(format == LogFormat::ColouredText);
    match format {
        LogFormat::Text | LogFormat::ColouredText => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    }
    .map_err(|e| format!("the log cannot be set up: {e}"))
}

/// Notes of this process do not wait for stderr from now on; what it logs goes nowhere. For a process that must not stop.
///
/// # Errors
/// No thread can be started.
pub fn init_notes() -> Result<(), String> {
    open(LogFormat::Text).map(drop)
}

/// Puts a line for people among those of the log, in its form. False if this process has no log: then stderr is the caller's.
pub fn note(severity: Severity, line: &str) -> bool {
    OUTPUT.get().is_some_and(|LogOutput { lines, format }| {
        let line = match format {
            LogFormat::Json => json_line(severity, line),
            LogFormat::Text | LogFormat::ColouredText => format!("{line}\n"),
        };
        lines.push(line.as_bytes());
        true
    })
}

/// Puts what a host starts with among the lines of the log: a block for people, one object for programs. Without a log it
/// says nothing.
pub fn announce(facts: &[(&'static str, String)]) {
    if let Some(LogOutput { lines, format }) = OUTPUT.get() {
        lines.push(announcement(*format, facts).as_bytes());
    }
}

fn announcement(format: LogFormat, facts: &[(&'static str, String)]) -> String {
    const MESSAGE: &str = "aihost starts";
    match format {
        LogFormat::Json => {
            let head = [("timestamp", now()), ("level", Severity::Info.name().to_owned())];
            let head = head.into_iter().chain([("message", MESSAGE.to_owned()), ("target", "aihost".to_owned())]);
            let all = head.chain(facts.iter().cloned()).map(|(name, value)| (name.to_owned(), value.into()));
            format!("{}\n", serde_json::Value::Object(all.collect()))
        }
        LogFormat::Text | LogFormat::ColouredText => {
            let fact = |(name, value): &(&str, String)| format!("  {name:<8} {}\n", printable(value));
            facts.iter().fold(format!("{MESSAGE}\n"), |block, known| block + &fact(known))
        }
    }
}

/// Waits until what was logged and noted is written, a second at most.
pub fn flush() {
    if let Some(LogOutput { lines, .. }) = OUTPUT.get() {
        lines.flush(FLUSH_LIMIT);
    }
}

/// Lines that could not be written, since the start.
pub fn lines_lost() -> u64 {
    OUTPUT.get().map_or(0, |output| output.lines.lost())
}

fn open(format: LogFormat) -> Result<&'static Lines, String> {
    let notice = match format {
        LogFormat::Text | LogFormat::ColouredText => text_notice,
        LogFormat::Json => json_notice,
    };
    let lines = Lines::to_stderr(notice).map_err(|e| format!("the log's thread cannot be started: {e}"))?;
    // The usual hook writes to stderr itself, where it may wait for ever under a lock.
    std::panic::set_hook(Box::new(tell_panic));
    Ok(&OUTPUT.get_or_init(|| LogOutput { lines, format }).lines)
}

fn tell_panic(info: &std::panic::PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let mut text = format!("thread {} {info}", thread.name().unwrap_or("without a name"));
    let backtrace = std::backtrace::Backtrace::capture();
    if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
        text += &format!("\n{backtrace}");
    }
    if tracing::dispatcher::has_been_set() {
        tracing::error!("{text}");
    } else {
        note(Severity::Error, &text);
    }
}

fn lost_sentence(lost: u64) -> String {
    format!("{lost} lines of this log are missing here: stderr could not be written, or not fast enough")
}

fn now() -> String {
    let mut text = String::new();
    // A clock that cannot be told leaves the line without its time.
    if SystemTime.format_time(&mut Writer::new(&mut text)).is_err() {
        text.clear();
    }
    text
}

fn text_notice(lost: u64) -> String {
    format!("{}  WARN aihost::telemetry: {}\n", now(), lost_sentence(lost))
}

fn json_notice(lost: u64) -> String {
    let line = serde_json::json!({"timestamp": now(), "level": "WARN", "message": lost_sentence(lost), "lost": lost, "target": "aihost::telemetry"});
    format!("{line}\n")
}

fn json_line(severity: Severity, message: &str) -> String {
    let line =
        serde_json::json!({"timestamp": now(), "level": severity.name(), "message": message, "target": "aihost"});
    format!("{line}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_is_a_block_for_people_and_an_object_for_programs() {
        let facts = [("config", "/a\n/b \"c\"".to_owned()), ("models", "a, b".to_owned())];
        let text = announcement(LogFormat::Text, &facts);
        assert_eq!(text, "aihost starts\n  config   /a\\n/b \"c\"\n  models   a, b\n");
        let json: serde_json::Value = serde_json::from_str(&announcement(LogFormat::Json, &facts)).unwrap();
        assert_eq!((&json["config"], &json["level"]), (&"/a\n/b \"c\"".into(), &"INFO".into()));
    }

    #[test]
    fn a_loss_is_told_in_the_logs_own_form() {
        let text = text_notice(7);
        assert!(text.contains(" WARN ") && text.contains("7 lines") && text.ends_with('\n'), "{text}");
        let json: serde_json::Value = serde_json::from_str(&json_notice(7)).unwrap();
        assert_eq!((&json["level"], &json["lost"]), (&"WARN".into(), &7.into()));
        assert!(json["timestamp"].as_str().is_some_and(|time| time.ends_with('Z')), "{json}");
    }
}
