//! Another process, which stays the same one whatever becomes of its number.

use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::LOOK_EVERY;
use crate::cli::failure::CliError;
use crate::config::Contact;
use crate::runtime::{RunningHost, running_host};

/// A host's process, that is sure to be the one which held the state folder.
#[derive(Debug)]
pub(super) struct HostProcess {
    pub(super) pid: u32,
    descriptor: OwnedFd,
}

impl HostProcess {
    /// Nothing if it is gone by now.
    pub(super) fn of(contact: &Contact, host: &RunningHost) -> Result<Option<Self>, CliError> {
        let Some(pid) = i32::try_from(host.pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
        let descriptor = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(descriptor) => descriptor,
            Err(Errno::SRCH) => return Ok(None),
            Err(error) => return Err(CliError::failed(format!("process {} cannot be watched: {error}", host.pid))),
        };
        // The number may have become another's before it was held.
        if running_host(&contact.paths.state, contact.listen).is_none_or(|now| now.pid != host.pid) {
            return Ok(None);
        }
        Ok(Some(Self { pid: host.pid, descriptor }))
    }

    /// Sends it a signal. One that is gone needs none.
    pub(super) fn signal(&self, signal: Signal) -> Result<(), CliError> {
        match pidfd_send_signal(&self.descriptor, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(Errno::PERM) => Err(CliError::failed(format!("process {} is another user's", self.pid))
                .hint("type it as that user, or with sudo")),
            Err(error) => Err(CliError::failed(format!("process {} cannot be signalled: {error}", self.pid))),
        }
    }

    /// Resolves once it has ended.
    pub(super) async fn ended(&self) {
        // What cannot be watched any more counts as gone.
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        while poll(&mut [PollFd::new(&self.descriptor, PollFlags::IN)], Some(&at_once)) == Ok(0) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}
