//! A host in the background: `aihost up`, `down`, `restart` and `status`. Which process it is, its state folder knows: the file
//! that it holds locked there names it, and a process that merely has its number is never taken for it.

mod down;
mod log;
mod process;
mod restart;
mod start;
mod status;
mod up;

use std::time::Duration;

use tokio::time::{Instant, sleep};

pub(super) use self::down::{Arguments as DownArguments, run as down};
pub(super) use self::restart::{Arguments as RestartArguments, run as restart};
pub(super) use self::status::{Arguments as StatusArguments, run as status};
pub(super) use self::up::{Arguments as UpArguments, run as up};
use super::CommandContext;
use super::client::Server;
use super::failure::CliError;
use crate::config::Contact;
use crate::runtime::{RunningHost, running_host};

/// Between two looks at what changes soon.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The host of models.yaml, if it runs.
fn running(context: &CommandContext) -> Result<(Contact, Option<RunningHost>), CliError> {
    let contact = context.contact()?;
    let running = running_host(&contact.paths.state, contact.listen);
    Ok((contact, running))
}

/// The server that a running host is.
fn server(context: &CommandContext, contact: &Contact, running: &RunningHost) -> Result<Server, CliError> {
    let key = context.env.api_key().map(str::to_owned);
    Server::of_keys(running.listen, contact.api_keys.clone(), key)
}

/// Waits until something is there, for so long.
async fn awaited<T>(
    limit: Duration,
    mut look: impl AsyncFnMut() -> Result<Option<T>, CliError>,
) -> Result<Option<T>, CliError> {
    let begun = Instant::now();
    loop {
        match look().await? {
            None if begun.elapsed() < limit => sleep(LOOK_EVERY).await,
            found => return Ok(found),
        }
    }
}
