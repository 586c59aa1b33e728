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
    end(&contact, &host, arguments.now).await
}

/// Ends a host, and says for what it waits.
pub(super) async fn end(contact: &Contact, host: &RunningHost, now: bool) -> Result<(), CliError> {
    let Some(process) = HostProcess::of(contact, host)? else { return Ok(()) };
    let begun = Instant::now();
    process.signal(Signal::TERM)?;
    if now {
        // A second signal asks for the end at once.
        sleep(LOOK_EVERY).await;
        process.signal(Signal::TERM)?;
        if timeout(AT_ONCE_LIMIT, process.ended()).await.is_err() {
            return Err(CliError::failed(format!("process {} was told twice and has not ended", process.pid))
                .hint(format!("kill -9 {}", process.pid)));
        }
    } else {
        tokio::select! {
            () = process.ended() => {}
            () = tell(contact, process.pid) => {}
        }
    }
    out::line(&format!("process {} has ended after {:.1} s", process.pid, begun.elapsed().as_secs_f32()))
}

/// Says for what it waits, whenever that changes. Never resolves: it ends by itself, in `drain_timeout` and a little.
async fn tell(contact: &Contact, pid: u32) {
    let mut said = None;
    loop {
        let host = running_host(&contact.paths.state).filter(|host| host.pid == pid);
        if let Some(says) = host.and_then(|host| host.says)
            && said.as_ref() != Some(&says)
        {
            out::note(&printable(&says));
            said = Some(says);
        }
        sleep(LOOK_EVERY).await;
    }
}
