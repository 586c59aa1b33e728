//! `aihost serve`: the host in the foreground.

use clap::ValueEnum;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::task::AbortOnDropHandle;

use super::failure::CliError;
use super::hosting::{Hosted, greet};
use super::{Session, out, reload};
use crate::config::Selection;
use crate::telemetry::{self, LogFormat};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Listen here instead of where models.yaml says.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// How log lines look. AIHOST_LOG or RUST_LOG choose what is logged.
    #[arg(long, value_enum, default_value = "text")]
    log_format: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

pub(super) async fn run(session: &Session, arguments: Arguments) -> Result<(), CliError> {
    let selection = Selection { file: session.config.clone(), listen: arguments.listen };
    let config = crate::config::load(&selection, &session.env)?;
    let format = match arguments.log_format {
        Format::Text => LogFormat::Text,
        Format::Json => LogFormat::Json,
    };
    telemetry::init(format, session.env.log_filter()).map_err(CliError::usage)?;
    let mut signals = Signals::new()?;
    let file = config.file.clone();
    let mut hosted = Hosted::start(config).await?;
    let _reload =
        AbortOnDropHandle::new(tokio::spawn(reload::watch(selection, session.env.clone(), file, hosted.handle())));
    greet(hosted.address, &hosted.first_step);
    tokio::select! {
        () = signals.next() => {}
        error = hosted.broken() => return Err(error),
    }
    out::note("stopping: running requests may end; a second signal stops at once");
    tokio::select! {
        () = hosted.shutdown() => Ok(()),
        () = signals.next() => Err(CliError::Interrupted),
    }
}

/// The signals that ask for an end.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Self, CliError> {
        let listen = |kind| signal(kind).map_err(|e| CliError::failed(format!("signals cannot be received: {e}")));
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
