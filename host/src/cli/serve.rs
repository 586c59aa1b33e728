//! `aihost serve`: the host in the foreground.

use std::io::IsTerminal;

use clap::ValueEnum;
use tokio_util::task::AbortOnDropHandle;

use super::failure::CliError;
use super::hosting::{Hosted, greet};
use super::reload::{Judged, Watched};
use super::signals::{self, Signals};
use super::watchdog::Watchdog;
use super::{CommandContext, drain, out, reload};
use crate::config::Selection;
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
enum LogFormatArgument {
    /// A line for people to read.
    Text,
    /// One JSON object a line.
    Json,
}

fn log_format(asked: Option<LogFormatArgument>, no_colour: bool) -> LogFormat {
    let is_terminal = std::io::stderr().is_terminal();
    match asked {
        Some(LogFormatArgument::Json) => LogFormat::Json,
        None if !is_terminal => LogFormat::Json,
        _ if is_terminal && !no_colour => LogFormat::ColouredText,
        _ => LogFormat::Text,
    }
}

pub(super) async fn run(context: &CommandContext, arguments: Arguments) -> Result<(), CliError> {
    // Before anything that takes a while: a terminal may close while models.yaml or plugins are read.
    signals::outlive()?;
    let hangups = Signals::of_terminal()?;
    let selection = Selection { file: context.config.clone(), listen: arguments.listen };
    let (config, known) = reload::read(&selection, &context.env).await?;
    telemetry::init(log_format(arguments.log_format, context.env.wants_no_colour()), context.env.log_filter())
        .map_err(CliError::usage)?;
    for complaint in crate::device::complaints() {
        tracing::warn!("{complaint}");
    }
    let mut ends = Signals::of_server()?;
    let file = config.file.clone();
    let watchdog = Watchdog::start(Signals::of_server)?;
    let mut hosted = tokio::select! {
        hosted = Hosted::start(config) => hosted?,
        () = ends.next() => return Ok(()),
    };
    watchdog.hosts(hosted.handle());
    let judged = Judged { vet: hosted.vet.clone(), wrong: std::mem::take(&mut hosted.wrong) };
    let watched = Watched { selection, env: context.env.clone(), file, known, judged };
    let _reload = AbortOnDropHandle::new(tokio::spawn(reload::watch(watched, hangups, hosted.handle())));
    greet(&hosted);
    tokio::select! {
        () = ends.next() => {}
        error = hosted.broken() => {
            watchdog.host_broke();
            return Err(error);
        }
    }
    out::note("stopping: running requests may end; a second signal stops at once");
    let _told = AbortOnDropHandle::new(tokio::spawn(drain::tell(hosted.handle())));
    tokio::select! {
        () = hosted.shutdown() => Ok(()),
        () = ends.next() => Err(CliError::Interrupted),
    }
}
