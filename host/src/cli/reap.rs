//! The first process of a container: everything that loses its parent becomes its child, so it must wait for all of them.
//!
//! It starts the host as a child of its own, passes signals on, and ends as the host ended. A host that is not the first
//! process needs none of this.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, getpid, kill_process, set_child_subreaper, wait};
use tokio::signal::unix::{SignalKind, signal};

use super::failure::CliError;
use crate::config::REAPED;

/// What is passed on to the host. Other signals are ignored, as a first process does.
const PASSED_ON: [(SignalKind, Signal); 2] =
    [(SignalKind::terminate(), Signal::TERM), (SignalKind::interrupt(), Signal::INT)];

/// Whether this is the first process.
pub(super) fn is_first() -> bool {
    getpid() == Pid::INIT
}

/// Runs `aihost` with these arguments, and says how it ended.
pub(super) async fn run(arguments: impl Iterator<Item = OsString>) -> Result<ExitCode, CliError> {
    let failed = |e| CliError::failed(format!("the host cannot be started: {e}"));
    // The first process adopts by itself; any other has to say so.
    set_child_subreaper(Some(getpid())).map_err(|e| failed(e.into()))?;
    let mut children = signal(SignalKind::child()).map_err(failed)?;
    // Before the host is there: what comes meanwhile waits.
    let received = PASSED_ON.map(|(kind, passed_on)| signal(kind).map(|received| (received, passed_on)));
    // In a group of its own: a terminal's signals would reach it twice.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("aihost").args(arguments).env(REAPED, "1").stdin(Stdio::null()).process_group(0);
    let host = command.spawn().map_err(failed)?.id();
    let host = Pid::from_raw(host.cast_signed()).unwrap_or(Pid::INIT);
    for received in received {
        let (mut received, passed_on) = received.map_err(failed)?;
        tokio::spawn(async move {
            while received.recv().await.is_some() {
                // It may be ending already.
                let _ = kill_process(host, passed_on);
            }
        });
    }
    loop {
        while let Ok(Some((child, status))) = wait(WaitOptions::NOHANG) {
            if child == host {
                return Ok(exit_code(status));
            }
        }
        children.recv().await;
    }
}

/// As shells say it: 128 and the signal for who was killed.
fn exit_code(status: WaitStatus) -> ExitCode {
    let code = status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}
