//! What `/proc` says of the host and of its workers.

use std::fs;

/// What a worker's environment names its host by.
const PARENT_VARIABLE: &str = "AIHOST_WORKER_PARENT";

/// What a process holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Holdings {
    /// Resident memory.
    pub(crate) resident_kib: u64,
    /// Open descriptors.
    pub(crate) descriptors: u64,
    /// Threads.
    pub(crate) threads: u64,
    /// Children that have ended and are not waited for.
    pub(crate) zombies: u64,
}

/// What a process holds now; zeros if it is gone.
pub(crate) fn holdings(pid: u32) -> Holdings {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    Holdings {
        resident_kib: field(&status, "VmRSS:"),
        descriptors: fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |entries| entries.count() as u64),
        threads: field(&status, "Threads:"),
        zombies: pids().filter(|child| is_zombie_of(*child, pid)).count() as u64,
    }
}

/// Memory of a process that is no file's, in KiB; 0 if it is gone.
pub(crate) fn anonymous_kib(pid: u32) -> u64 {
    field(&fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default(), "RssAnon:")
}

/// A number of a `status` file.
pub(crate) fn field(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Processes, zombies aside, that this host started as workers, or that those started.
pub(crate) fn workers_of(host: u32) -> Vec<u32> {
    pids().filter(|pid| is_worker_of(*pid, host)).collect()
}

/// Whether this process is a worker of this host.
pub(crate) fn is_worker_of(pid: u32, host: u32) -> bool {
    let wanted = format!("{PARENT_VARIABLE}={host}");
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environment.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes())
}

fn is_zombie_of(pid: u32, parent: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name before it may hold anything but its last bracket.
    let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.next() == Some("Z") && fields.next() == Some(&parent.to_string())
}

fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::{Duration, Instant};

    use super::{holdings, workers_of};

    fn wait_for(what: &str, ready: impl Fn() -> bool) {
        let start = Instant::now();
        while !ready() {
            assert!(start.elapsed() < Duration::from_secs(20), "{what} did not happen");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_process_is_seen_with_its_zombies_and_workers() {
        let own = holdings(std::process::id());
        assert!(own.resident_kib > 1000 && own.descriptors > 2 && own.threads > 0, "{own:?}");
        let mut child = Command::new("true").spawn().unwrap();
        wait_for("a zombie", || holdings(std::process::id()).zombies > 0);
        child.wait().unwrap();
        // A number that no process has.
        let host = u32::MAX;
        let mut worker = Command::new("sleep").arg("60").env("AIHOST_WORKER_PARENT", host.to_string()).spawn().unwrap();
        wait_for("a worker", || workers_of(host) == [worker.id()]);
        worker.kill().and_then(|()| worker.wait()).unwrap();
        assert_eq!(workers_of(host), [0; 0]);
    }
}
