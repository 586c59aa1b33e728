//! Starting a host in the background, and waiting until it answers.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::log::Log;
use super::{awaited, server};
use crate::cli::CommandContext;
use crate::cli::failure::CliError;
use crate::config::Contact;
use crate::runtime::{RunningHost, running_host};

/// Starts `aihost serve` and waits until it answers, for so long.
pub(super) async fn start(
    context: &CommandContext,
    listen: Option<&str>,
    limit: Duration,
) -> Result<RunningHost, CliError> {
    // What is wrong with models.yaml is said here, and not in a log.
    let config = context.load_listening(listen.map(str::to_owned))?;
    let contact = Contact::of(&config);
    let (log, file) = Log::open(&contact.paths.state)?;
    let copy = file.try_clone().map_err(|error| CliError::failed(format!("the log cannot be shared: {error}")))?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("aihost").args(["serve", "--log-format", "text"]);
    command.args(context.config.iter().flat_map(|file| ["--config".as_ref(), file.as_os_str()]));
    command.args(listen.into_iter().flat_map(|address| ["--listen", address]));
    // In a group of its own, so that the terminal's signals do not reach it.
    let child = command.stdin(Stdio::null()).stdout(file).stderr(copy).process_group(0).spawn();
    let mut child = child.map_err(|error| CliError::failed(format!("the host cannot be started: {error}")))?;
    let up = awaited(limit, async || answers(context, &contact, &mut child, &log).await).await?;
    up.ok_or_else(|| {
        CliError::failed(format!("process {} has not answered within {} s", child.id(), limit.as_secs())).hint(format!(
            "it goes on starting: `aihost status` tells when it is up; its log is {}",
            log.path.display()
        ))
    })
}

/// The host, once it answers.
async fn answers(
    context: &CommandContext,
    contact: &Contact,
    child: &mut Child,
    log: &Log,
) -> Result<Option<RunningHost>, CliError> {
    let ended = child.try_wait().map_err(|error| CliError::failed(format!("the host cannot be watched: {error}")))?;
    if let Some(status) = ended {
        let said = log.tail();
        let said = if said.is_empty() { String::new() } else { format!("; it said:\n{}", said.join("\n")) };
        return Err(CliError::failed(format!("the host ended at once ({status}){said}"))
            .hint(format!("its log is {}", log.path.display())));
    }
    let running = running_host(&contact.paths.state, contact.listen);
    let Some(host) = running.filter(|host| host.pid == child.id()) else { return Ok(None) };
    Ok(server(context, contact, &host)?.is_ready().await.then_some(host))
}
