//! `aihost down`: ends the host of models.yaml once its requests have ended.

use std::time::Duration;

use rustix::process::Signal;
use tokio::time::{Instant, sleep, timeout};

use super::process::HostProcess;
use super::{LOOK_EVERY, running};
use crate::cli::failure::CliError;
use crate::cli::{CommandContext, out};
use crate::config::Contact;
use crate::domain::printable;
use crate::runtime::{RunningHost, running_host};

/// What requests may take to end where models.yaml does not say.
const DRAIN_USUAL: Duration = Duration::from_secs(60);
/// What a host may take beyond that; its own watchdog leaves it less.
const END_MARGIN: Duration = Duration::from_secs(15);
/// What a host that is told twice may take until it is gone.
const AT_ONCE_LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Arguments {
    /// Cut what still runs.
    #[arg(long)]
    now: bool,
}

pub(in crate::cli) async fn run(context: &CommandContext, arguments: Arguments) -> Result<(), CliError> {
    let (contact, running) = running(context)?;
    let Some(host) = running else {
        out::note(&format!("nothing to end: no aihost of this machine uses {}", contact.paths.state.display()));
        return Ok(());
    };
    end(context, &contact, &host, arguments.now).await
}

/// Ends a host, and says for what it waits.
pub(super) async fn end(
    context: &CommandContext,
    contact: &Contact,
    host: &RunningHost,
    now: bool,
) -> Result<(), CliError> {
    let Some(process) = HostProcess::of(contact, host)? else { return Ok(()) };
    let begun = Instant::now();
    process.signal(Signal::TERM)?;
    if now {
        // A second signal asks for the end at once.
        sleep(LOOK_EVERY).await;
        process.signal(Signal::TERM)?;
        timeout(AT_ONCE_LIMIT, process.ended()).await.map_err(|_| stuck(process.pid, AT_ONCE_LIMIT))?;
    } else {
        // One that hangs ends by itself in this time.
        let drain = context.load_listening(None).map_or(DRAIN_USUAL, |config| config.limits.drain_timeout);
        let limit = drain.saturating_add(END_MARGIN);
        tokio::select! {
            ended = timeout(limit, process.ended()) => ended.map_err(|_| stuck(process.pid, limit))?,
            () = tell(contact, process.pid) => {}
        }
    }
    out::line(&format!("process {} has ended after {:.1} s", process.pid, begun.elapsed().as_secs_f32()))
}

fn stuck(pid: u32, limit: Duration) -> CliError {
    CliError::failed(format!(
        "process {pid} was told to end and has not within {} s: it is stopped, or hangs",
        limit.as_secs()
    ))
    .hint(format!("kill -9 {pid}; its workers end with it"))
}

/// Says for what it waits, whenever that changes. Never resolves: it ends by itself, in `drain_timeout` and a little.
async fn tell(contact: &Contact, pid: u32) {
    let mut said = None;
    loop {
        let host = running_host(&contact.paths.state, contact.listen).filter(|host| host.pid == pid);
        if let Some(says) = host.and_then(|host| host.says)
            && said.as_ref() != Some(&says)
        {
            out::note(&printable(&says));
            said = Some(says);
        }
        sleep(LOOK_EVERY).await;
    }
}
