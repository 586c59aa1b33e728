//! Which host has a state folder. What a host learns it writes whole, so that two on one folder would forget each other's
//! lessons: the second one is told who was first. Who has it stands in the file that is locked, so that commands find the process.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use rustix::fs::{FlockOperation, OFlags, flock, major, minor};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::config::Sharing;
use crate::domain::printable;
use crate::worker::is_alive;

/// Its name in `state_dir`.
const FILE: &str = "host.lock";
/// Bytes that are read of what its holder wrote into it.
const HOLDER_BYTES_MAX: u64 = 4096;
/// What tells machines and containers apart, for people.
const HOST_NAME: &str = "/proc/sys/kernel/hostname";

/// How long a lock is waited for that nobody has any more who would use it.
const LEFT_LIMIT: Duration = Duration::from_secs(2);
/// Between two looks at it.
const LEFT_LOOK: Duration = Duration::from_millis(5);
/// Which locks there are, and whose.
const LOCKS: &str = "/proc/locks";

/// A state folder that this host alone uses, until this is dropped: the kernel lets go of it with the process.
#[derive(Debug)]
pub struct StateClaim {
    /// The open file is the lock. Nothing where the folder cannot be locked, or another host has it by now.
    file: Mutex<Option<File>>,
    own: Holder,
}

/// Who has it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Holder {
    pid: u32,
    machine: String,
    listen: String,
    since_unix_s: u64,
    /// What else it wants to be known of itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    says: Option<String>,
}

/// A host that runs on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunningHost {
    /// Its process.
    pub pid: u32,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Since when.
    pub since: SystemTime,
    /// What it waits for before it ends, or why it did not do what it was told.
    pub says: Option<String>,
}

impl StateClaim {
    /// Claims the folder, which is made if it is not there, for the host that listens here. `before`: the process that leaves it to
    /// this one. What a process leaves that has just ended is waited for: one that it was starting has its lock for a moment.
    /// Blocks.
    ///
    /// # Errors
    /// Another host has it, or other users may write it: a sentence that says who, and what to do.
    pub fn take(state: &Path, listen: SocketAddr, sharing: Sharing, before: Option<u32>) -> Result<Self, String> {
        sharing.check(state)?;
        let opened = DirBuilder::new().recursive(true).mode(0o700).create(state).and_then(|()| open(&state.join(FILE)));
        let mut file = match opened {
            Ok(file) => file,
            Err(error) => return Ok(Self::without(state, &error)),
        };
        let begun = Instant::now();
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) => {}
                Err(error) => return Ok(Self::without(state, &error.into())),
            }
            let holder = holder(&mut file);
            let is_left = holder.machine == machine() && (Some(holder.pid) == before || !is_alive(holder.pid));
            if !is_left || begun.elapsed() > LEFT_LIMIT {
                return Err(taken(state, &holder, SystemTime::now()));
            }
            thread::sleep(LEFT_LOOK);
        }
        let since_unix_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let (pid, listen) = (std::process::id(), listen.to_string());
        let own = Holder { pid, machine: machine(), listen, since_unix_s, says: None };
        let claim = Self { file: Mutex::new(Some(file)), own };
        claim.say(None);
        Ok(claim)
    }

    /// Has commands know this of the host, or nothing any more.
    pub fn say(&self, says: Option<String>) {
        let mut file = self.file.lock();
        let Some(file) = file.as_mut() else { return };
        // For people alone: on a full disk the lock holds all the same.
        let noted =
            serde_json::to_vec(&Holder { says, ..self.own.clone() }).map_err(io::Error::from).and_then(|json| {
                file.rewind()?;
                file.set_len(0)?;
                file.write_all(&json)
            });
        if let Err(error) = noted {
            tracing::debug!("{FILE} does not say who holds it: {error}");
        }
    }

    /// Leaves the folder to another host.
    pub fn release(&self) {
        *self.file.lock() = None;
    }

    fn without(state: &Path, error: &io::Error) -> Self {
        tracing::warn!(
            "{} cannot be claimed for this host alone ({error}): a second host on it would not be noticed",
            state.display()
        );
        Self { file: Mutex::new(None), own: Holder::default() }
    }
}

/// The host that uses this folder now, if it is one of this machine: whoever holds the lock has written who it is. One that could
/// not, on a full disk, is known by its lock, and thought to listen where its models.yaml says.
pub fn running_host(state: &Path, listen: SocketAddr) -> Option<RunningHost> {
    let mut file = open_to_read(state)?;
    let (holder, found) = (holder(&mut file), file.metadata().ok()?);
    if holder.pid == 0 {
        let own = Place { inode: found.ino(), device: Some(found.dev()) };
        let pid = holders(own).into_iter().flatten().find(|pid| is_alive(*pid))?;
        return Some(RunningHost { pid, listen, since: found.modified().ok()?, says: None });
    }
    let holds = match holders(Place { inode: found.ino(), device: None }) {
        Some(holders) => holders.contains(&holder.pid),
        None => is_alive(holder.pid),
    };
    let Holder { pid, listen, since_unix_s, says, machine: of } = holder;
    let since = UNIX_EPOCH + Duration::from_secs(since_unix_s);
    (of == machine() && holds).then(|| Some(RunningHost { pid, listen: listen.parse().ok()?, since, says }))?
}

/// Whether another process than this one has written that the folder is its own: what this one knows is no longer the newest.
pub(super) fn is_anothers(state: &Path) -> bool {
    let holder = open_to_read(state).map(|mut file| holder(&mut file)).unwrap_or_default();
    holder.pid != 0 && (holder.pid != std::process::id() || holder.machine != machine())
}

/// A file as the kernel's list of locks tells it. Some file systems have another device there than their files say.
#[derive(Clone, Copy)]
struct Place {
    inode: u64,
    device: Option<u64>,
}

/// The processes that have locked a file, as the kernel tells it, if it does. The lock itself is not tried: a host that starts just
/// then would be told that another has it.
fn holders(place: Place) -> Option<Vec<u32>> {
    let locks = std::fs::read_to_string(LOCKS).ok()?;
    let device = place.device.map(|device| format!("{:02x}:{:02x}:", major(device), minor(device)));
    let holder = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, _, holder, locked, ..] = words.as_slice() else { return None };
        let is_it = locked.rsplit(':').next()?.parse() == Ok(place.inode)
            && device.as_ref().is_none_or(|device| locked.starts_with(device));
        holder.parse().ok().filter(|_| is_it)
    };
    Some(locks.lines().filter_map(holder).collect())
}

fn open_to_read(state: &Path) -> Option<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    OpenOptions::new().read(true).custom_flags(flags).open(state.join(FILE)).ok()
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
        let first = StateClaim::take(&state, address(9123), Sharing::Refused, None).unwrap();
        let told = StateClaim::take(&state, address(9124), Sharing::Refused, None).unwrap_err();
        for part in [&format!("process {}", std::process::id()), "127.0.0.1:9123", "for 0 min", "state_dir:"] {
            assert!(told.contains(part), "{told}");
        }
        drop(first);
        let third = StateClaim::take(&state, address(9125), Sharing::Refused, None).unwrap();
        let told = StateClaim::take(&state, address(9124), Sharing::Refused, None).unwrap_err();
        assert!(told.contains("9125") && !told.contains("9123"), "{told}");
        drop(third);
    }

    #[test]
    fn a_running_host_is_found_whatever_its_file_says() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(running_host(folder.path(), address(1)), None);
        let claim = StateClaim::take(folder.path(), address(9126), Sharing::Refused, None).unwrap();
        let found = running_host(folder.path(), address(1)).unwrap();
        assert_eq!((found.pid, found.listen, found.says), (std::process::id(), address(9126), None));
        for says in [Some("a long sentence of many words".to_owned()), Some("a short one".to_owned()), None] {
            claim.say(says.clone());
            assert_eq!(running_host(folder.path(), address(1)).unwrap().says, says);
        }
        assert!(!is_anothers(folder.path()));
        claim.release();
        assert_eq!(running_host(folder.path(), address(1)), None);
        let next = StateClaim::take(folder.path(), address(9127), Sharing::Refused, None).unwrap();
        claim.say(Some("of what is no longer its own".to_owned()));
        assert_eq!(running_host(folder.path(), address(1)).unwrap().listen, address(9127));
        drop(next);
    }

    #[test]
    fn a_host_that_could_not_write_who_it_is_is_found_by_its_lock() {
        let folder = tempfile::tempdir().unwrap();
        let claim = StateClaim::take(folder.path(), address(9126), Sharing::Refused, None).unwrap();
        OpenOptions::new().write(true).open(folder.path().join(FILE)).unwrap().set_len(0).unwrap();
        let found = running_host(folder.path(), address(9127)).unwrap();
        assert_eq!((found.pid, found.listen), (std::process::id(), address(9127)));
        claim.release();
        assert_eq!(running_host(folder.path(), address(9127)), None);
    }

    #[test]
    fn what_a_process_leaves_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let first = StateClaim::take(folder.path(), address(9126), Sharing::Refused, None).unwrap();
        let pid = std::process::id();
        thread::scope(|scope| {
            let next =
                scope.spawn(|| StateClaim::take(folder.path(), address(9127), Sharing::Refused, Some(pid)).unwrap());
            // Its second claim is refused at once; the third waits.
            assert!(StateClaim::take(folder.path(), address(9128), Sharing::Refused, None).is_err());
            first.release();
            drop(next.join().unwrap());
        });
        // A lock that outlives who made it: that of a process which was killed while it started another.
        let file = folder.path().join(FILE);
        let held = OpenOptions::new().read(true).write(true).open(&file).unwrap();
        flock(&held, FlockOperation::NonBlockingLockExclusive).unwrap();
        let gone = Holder { pid: u32::MAX, machine: machine(), ..Holder::default() };
        std::fs::write(&file, serde_json::to_vec(&gone).unwrap()).unwrap();
        thread::scope(|scope| {
            let next = scope.spawn(|| StateClaim::take(folder.path(), address(9127), Sharing::Refused, None));
            drop(held);
            next.join().unwrap().unwrap();
        });
    }

    #[test]
    fn a_process_that_has_the_number_of_one_that_is_gone_is_no_host() {
        let folder = tempfile::tempdir().unwrap();
        for pid in [u32::MAX, std::process::id(), 1] {
            let gone = Holder { pid, machine: machine(), listen: "127.0.0.1:9126".into(), ..Holder::default() };
            std::fs::write(folder.path().join(FILE), serde_json::to_vec(&gone).unwrap()).unwrap();
            assert_eq!(running_host(folder.path(), address(1)), None);
            assert_eq!(is_anothers(folder.path()), pid != std::process::id());
        }
    }

    #[test]
    fn what_lies_in_its_place_is_neither_waited_for_nor_followed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(FILE);
        std::os::unix::fs::symlink("/dev/null", &file).unwrap();
        assert!(StateClaim::take(folder.path(), address(1), Sharing::Refused, None).unwrap().file.lock().is_none());
        std::fs::remove_file(&file).unwrap();
        std::fs::write(&file, "{\"pid\": \"\u{1b}\"").unwrap();
        assert!(StateClaim::take(folder.path(), address(1), Sharing::Refused, None).unwrap().file.lock().is_some());
    }

    #[test]
    fn a_holder_elsewhere_is_named_with_its_machine() {
        let holder = Holder { pid: 7, machine: "pod-\u{1b}1".into(), listen: "0.0.0.0:80".into(), ..Holder::default() };
        let told = taken(Path::new("/s"), &holder, UNIX_EPOCH + Duration::from_secs(121));
        assert!(told.contains("process 7 on pod-") && told.contains("for 2 min") && !told.contains('\u{1b}'), "{told}");
    }
}
