//! `aihost up`: the host in the background.

use std::time::Duration;

use super::{running, start, status};
use crate::cli::failure::CliError;
use crate::cli::{CommandContext, out};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Arguments {
    /// Listen here instead of where models.yaml says.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// How long to wait until it answers.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    wait: u64,
}

pub(in crate::cli) async fn run(context: &CommandContext, arguments: Arguments) -> Result<(), CliError> {
    let (contact, running) = running(context)?;
    if let Some(host) = running {
        out::note("it was up before; `aihost restart` starts it anew");
        return status::tell(context, &contact, &host).await;
    }
    let limit = Duration::from_secs(arguments.wait);
    let host = start::start(context, arguments.listen.as_deref(), limit).await?;
    status::tell(context, &contact, &host).await
}
