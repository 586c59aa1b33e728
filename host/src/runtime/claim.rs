//! Which host has a state folder. What a host learns it writes whole, so that two on one folder would forget each other's
//! lessons: the second one is told who was first.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::config::Sharing;
use crate::domain::printable;

/// Its name in `state_dir`.
const FILE: &str = "host.lock";
/// Bytes that are read of what its holder wrote into it.
const HOLDER_BYTES_MAX: u64 = 4096;
/// What tells machines and containers apart, for people.
const HOST_NAME: &str = "/proc/sys/kernel/hostname";

/// A state folder that this host alone uses, until this is dropped: the kernel lets go of it with the process.
#[derive(Debug)]
pub struct StateClaim(#[cfg_attr(not(test), expect(dead_code, reason = "the open file is the lock"))] Option<File>);

/// Who has it.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Holder {
    pid: u32,
    machine: String,
    listen: String,
    since_unix_s: u64,
}

impl StateClaim {
    /// Claims the folder, which is made if it is not there, for the host that listens here.
    ///
    /// # Errors
    /// Another host has it, or other users may write it: a sentence that says who, and what to do.
    pub fn take(state: &Path, listen: SocketAddr, sharing: Sharing) -> Result<Self, String> {
        sharing.check(state)?;
        let opened = DirBuilder::new().recursive(true).mode(0o700).create(state).and_then(|()| open(&state.join(FILE)));
        let mut file = match opened {
            Ok(file) => file,
            Err(error) => return Ok(Self::without(state, &error)),
        };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(taken(state, &holder(&mut file), SystemTime::now())),
            Err(error) => return Ok(Self::without(state, &error.into())),
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let own =
            Holder { pid: std::process::id(), machine: machine(), listen: listen.to_string(), since_unix_s: since };
        // For people alone: on a full disk the lock holds all the same.
        let noted = serde_json::to_vec(&own).map_err(io::Error::from).and_then(|json| {
            file.set_len(0)?;
            file.write_all(&json)
        });
        if let Err(error) = noted {
            tracing::debug!("{} does not say who holds it: {error}", state.join(FILE).display());
        }
        Ok(Self(Some(file)))
    }

    fn without(state: &Path, error: &io::Error) -> Self {
        tracing::warn!(
            "{} cannot be claimed for this host alone ({error}): a second host on it would not be noticed",
            state.display()
        );
        Self(None)
    }
}

/// Where the host listens that uses this folder now, as far as that can be told from outside. Its models.yaml may say
/// something else by now.
pub fn running_address(state: &Path) -> Option<SocketAddr> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let mut file = OpenOptions::new().read(true).custom_flags(flags).open(state.join(FILE)).ok()?;
    let holder = holder(&mut file);
    // The lock itself is not tried: a host that starts just then would be told that another has it.
    let is_there = holder.machine == machine() && Path::new("/proc").join(holder.pid.to_string()).exists();
    is_there.then(|| holder.listen.parse().ok())?
}

/// Not emptied: it may be another's. A pipe in its place is not waited for, a link not followed.
fn open(file: &Path) -> io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags).open(file)
}

/// What its holder wrote; empty while it has not.
fn holder(file: &mut File) -> Holder {
    let mut json = Vec::new();
    let read = file.rewind().and_then(|()| file.take(HOLDER_BYTES_MAX).read_to_end(&mut json));
    read.ok().and_then(|_| serde_json::from_slice(&json).ok()).unwrap_or_default()
}

fn taken(state: &Path, holder: &Holder, now: SystemTime) -> String {
    let since = UNIX_EPOCH + Duration::from_secs(holder.since_unix_s);
    let minutes = now.duration_since(since).unwrap_or_default().as_secs() / 60;
    let who = match holder.pid {
        0 => "another aihost, which has just started".to_owned(),
        pid => {
            let elsewhere = if holder.machine == machine() { String::new() } else { format!(" on {}", holder.machine) };
            format!("another aihost: process {pid}{elsewhere}, listening on {}, for {minutes} min", holder.listen)
        }
    };
    printable(&format!(
        "{} is used by {who}; use that one, stop it, or give this one a `state_dir:` (or AIHOST_STATE_DIR) of its own",
        state.display()
    ))
    .into_owned()
}

fn machine() -> String {
    std::fs::read_to_string(HOST_NAME).unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn the_second_host_on_a_folder_is_told_who_was_first() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("deep/state");
        let first = StateClaim::take(&state, address(9123), Sharing::Refused).unwrap();
        let told = StateClaim::take(&state, address(9124), Sharing::Refused).unwrap_err();
        for part in [&format!("process {}", std::process::id()), "127.0.0.1:9123", "for 0 min", "state_dir:"] {
            assert!(told.contains(part), "{told}");
        }
        drop(first);
        let third = StateClaim::take(&state, address(9125), Sharing::Refused).unwrap();
        let told = StateClaim::take(&state, address(9124), Sharing::Refused).unwrap_err();
        assert!(told.contains("9125") && !told.contains("9123"), "{told}");
        drop(third);
    }

    #[test]
    fn a_running_host_is_found_whatever_its_file_says() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(running_address(folder.path()), None);
        let claim = StateClaim::take(folder.path(), address(9126), Sharing::Refused).unwrap();
        assert_eq!(running_address(folder.path()), Some(address(9126)));
        drop(claim);
        let gone = Holder { pid: u32::MAX, machine: machine(), listen: "127.0.0.1:9126".into(), since_unix_s: 0 };
        std::fs::write(folder.path().join(FILE), serde_json::to_vec(&gone).unwrap()).unwrap();
        assert_eq!(running_address(folder.path()), None);
    }

    #[test]
    fn what_lies_in_its_place_is_neither_waited_for_nor_followed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(FILE);
        std::os::unix::fs::symlink("/dev/null", &file).unwrap();
        assert!(StateClaim::take(folder.path(), address(1), Sharing::Refused).unwrap().0.is_none());
        std::fs::remove_file(&file).unwrap();
        std::fs::write(&file, "{\"pid\": \"\u{1b}\"").unwrap();
        assert!(StateClaim::take(folder.path(), address(1), Sharing::Refused).unwrap().0.is_some());
    }

    #[test]
    fn a_holder_elsewhere_is_named_with_its_machine() {
        let holder = Holder { pid: 7, machine: "pod-\u{1b}1".into(), listen: "0.0.0.0:80".into(), since_unix_s: 0 };
        let told = taken(Path::new("/s"), &holder, UNIX_EPOCH + Duration::from_secs(121));
        assert!(told.contains("process 7 on pod-") && told.contains("for 2 min") && !told.contains('\u{1b}'), "{told}");
    }
}
