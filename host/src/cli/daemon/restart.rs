//! `aihost restart`: another process takes the host's place and its sockets, so that no connection is refused.

use std::time::Duration;

use rustix::process::Signal;

use super::process::HostProcess;
use super::{awaited, down, running, server, start, status};
use crate::cli::CommandContext;
use crate::cli::failure::CliError;
use crate::config::Contact;
use crate::domain::printable;
use crate::runtime::{RunningHost, running_host};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Arguments {
    /// End it first, and start it anew then: requests are refused meanwhile. For what cannot be there twice, and for hosts that
    /// were started by a supervisor which does not follow them.
    #[arg(long)]
    stop_first: bool,
    /// How long to wait until it answers.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    wait: u64,
}

pub(in crate::cli) async fn run(context: &CommandContext, arguments: Arguments) -> Result<(), CliError> {
    let (contact, running) = running(context)?;
    let limit = Duration::from_secs(arguments.wait);
    let host = match running {
        None => start::start(context, None, limit).await?,
        Some(host) if arguments.stop_first => {
            down::end(context, &contact, &host, false).await?;
            start::start(context, None, limit).await?
        }
        Some(host) => {
            // A file that is wrong would keep the new one from starting.
            context.load_listening(None)?;
            replaced(context, &contact, &host, limit).await?
        }
    };
    status::tell(context, &contact, &host).await
}

/// The process that took this one's place.
async fn replaced(
    context: &CommandContext,
    contact: &Contact,
    host: &RunningHost,
    limit: Duration,
) -> Result<RunningHost, CliError> {
    let ended = || CliError::failed(format!("process {} ended by itself", host.pid)).hint("aihost up");
    let Some(process) = HostProcess::of(contact, host)? else { return Err(ended()) };
    process.signal(Signal::USR2)?;
    let found = awaited(limit, async || match running_host(&contact.paths.state, contact.listen) {
        Some(now) if now.pid != host.pid => Ok(server(context, contact, &now)?.is_ready().await.then_some(now)),
        Some(RunningHost { says: Some(says), .. }) if host.says.as_ref() != Some(&says) => {
            Err(CliError::failed(format!("process {} goes on: {}", host.pid, printable(&says))))
        }
        _ => Ok(None),
    });
    found.await?.ok_or_else(|| {
        CliError::failed(format!("no process has taken the place of {} within {} s", host.pid, limit.as_secs()))
            .hint("aihost restart --stop-first")
    })
}
