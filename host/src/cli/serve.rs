//! `aihost serve`: the host in the foreground.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;

use clap::ValueEnum;
use tokio_util::task::AbortOnDropHandle;

use super::failure::CliError;
use super::handover::{Inheritance, Successor};
use super::hosting::{Hosted, greet};
use super::reload::{Judged, Watched};
use super::signals::{self, Signals};
use super::watchdog::Watchdog;
use super::{CommandContext, drain, out, plugin_watch, reload, supervisor};
use crate::config::{Env, Selection};
use crate::telemetry::{self, LogFormat};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Listen here instead of where models.yaml says.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// How log lines look. AIHOST_LOG or RUST_LOG choose what is logged.
    /// Default: text on a terminal, else json.
    #[arg(long, value_enum)]
    log_format: Option<LogFormatArgument>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum LogFormatArgument {
    /// A line for people to read.
    Text,
    /// One JSON object a line.
    Json,
}

/// What was asked for, else what fits whoever reads.
pub(super) fn log_format(asked: Option<LogFormatArgument>, no_colour: bool) -> LogFormat {
    let is_terminal = std::io::stderr().is_terminal();
    match asked {
        Some(LogFormatArgument::Json) => LogFormat::Json,
        None if !is_terminal => LogFormat::Json,
        _ if is_terminal && !no_colour => LogFormat::ColouredText,
        _ => LogFormat::Text,
    }
}

/// Says what is wrong with a command line. One that was to serve says it as it would have logged.
pub(super) fn refuse_arguments(error: &clap::Error) -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let serves = words.iter().any(|word| word == "serve");
    if !serves || !error.use_stderr() || log_format(asked_format(&words), true) != LogFormat::Json {
        error.exit();
    }
    // Without a log it is said as it is.
    let _log = telemetry::init(LogFormat::Json, None);
    out::error(error.to_string().trim_end());
    telemetry::flush();
    ExitCode::from(CliError::usage(String::new()).code())
}

/// The format that was asked for among arguments which are wrong in some other way.
fn asked_format(words: &[OsString]) -> Option<LogFormatArgument> {
    const FLAG: &str = "--log-format";
    let mut words = words.iter().filter_map(|word| word.to_str());
    let value = words.find_map(|word| Some(word.strip_prefix(FLAG)?.strip_prefix('=').unwrap_or_default()))?;
    let value = if value.is_empty() { words.next()? } else { value };
    LogFormatArgument::from_str(value, false).ok()
}

pub(super) async fn run(context: &CommandContext, arguments: Arguments) -> Result<(), CliError> {
    // Before anything that takes a while: a terminal may close while models.yaml or plugins are read.
    signals::outlive()?;
    let hangups = Signals::of_terminal()?;
    // What is wrong with models.yaml is a line of the log as well.
    telemetry::init(log_format(arguments.log_format, context.env.wants_no_colour()), context.env.log_filter())
        .map_err(CliError::usage)?;
    let selection = Selection { file: context.config.clone(), listen: arguments.listen };
    let (config, known) = reload::read(&selection, &context.env).await?;
    for complaint in crate::device::complaints() {
        tracing::warn!("{complaint}");
    }
    let mut ends = Signals::of_server()?;
    let file = config.file.clone();
    let handovers = Signals::of_handover()?;
    let inheritance = Inheritance::of_process(&context.env)?;
    let watchdog = Watchdog::start(Signals::of_server)?;
    let mut hosted = tokio::select! {
        hosted = Hosted::start_in_place(config, &context.env, inheritance) => hosted?,
        () = ends.next() => return Ok(()),
    };
    watchdog.hosts(hosted.handle());
    let judged = Judged { vet: hosted.vet.clone(), wrong: std::mem::take(&mut hosted.wrong) };
    let plugins = hosted.plugins();
    let folders = plugins.borrow().folders.clone();
    let watched = Watched { selection, env: context.env.clone(), file, known, judged, plugins };
    let _plugins =
        AbortOnDropHandle::new(tokio::spawn(plugin_watch::watch(folders, Signals::of_terminal()?, hosted.handle())));
    let _reload = AbortOnDropHandle::new(tokio::spawn(reload::watch(watched, hangups, hosted.handle())));
    telemetry::announce(hosted.start_block());
    greet(&hosted);
    supervisor::ready(&hosted.address.to_string());
    let _beats = AbortOnDropHandle::new(tokio::spawn(supervisor::keep_alive(hosted.handle())));
    attend_or_hand_over(hosted, (ends, handovers), &watchdog, &context.env).await
}

/// Serves until it is told to end, breaks, or another process has taken its place.
async fn attend_or_hand_over(
    mut hosted: Hosted,
    (mut ends, mut handovers): (Signals, Signals),
    watchdog: &Watchdog,
    env: &Env,
) -> Result<(), CliError> {
    loop {
        tokio::select! {
            () = ends.next() => break,
            error = hosted.broken() => {
                watchdog.host_broke();
                return Err(error);
            }
            () = handovers.next() => {}
        }
        hosted.claim().say(None);
        out::note("another process is started to take this one's place");
        let successor = tokio::select! {
            successor = Successor::start(env, hosted.sockets()) => successor,
            () = ends.next() => break,
        };
        let why = match successor {
            Ok(successor) => {
                let pid = successor.pid();
                hosted.release().await;
                match successor.go().await {
                    Ok(()) => {
                        out::note(&format!("process {pid} takes this one's place"));
                        tokio::select! {
                            () = hosted.leave() => {}
                            () = ends.next() => {}
                        }
                        return end(hosted, ends).await;
                    }
                    Err(error) => format!("process {pid} has ended before it took its place: {error}"),
                }
            }
            Err(why) => why,
        };
        out::error(&format!("error: {why}"));
        hosted.claim().say(Some(why));
    }
    supervisor::stopping();
    end(hosted, ends).await
}

/// Serves until it is told to end, or breaks.
pub(super) async fn attend(mut hosted: Hosted, mut ends: Signals, watchdog: &Watchdog) -> Result<(), CliError> {
    tokio::select! {
        () = ends.next() => {}
        error = hosted.broken() => {
            watchdog.host_broke();
            return Err(error);
        }
    }
    end(hosted, ends).await
}

/// Lets running requests end.
async fn end(hosted: Hosted, mut ends: Signals) -> Result<(), CliError> {
    out::note("stopping: running requests may end; a second signal stops at once");
    let _told = AbortOnDropHandle::new(tokio::spawn(drain::tell(hosted.handle(), Arc::clone(hosted.claim()))));
    tokio::select! {
        () = hosted.shutdown() => Ok(()),
        () = ends.next() => Err(CliError::Interrupted),
    }
}
