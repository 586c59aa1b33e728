//! The processes that come of one, as /proc shows them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};

/// A process as it was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Living {
    pub(crate) pid: Pid,
    parent: i32,
    pub(crate) group: i32,
    /// Ticks from the machine's start to its own.
    pub(crate) begun: u64,
    /// Whether it has ended, and waits for its parent. Processes are seen one after the other, and one that was its child then
    /// may have been adopted by the time that it is looked at.
    is_zombie: bool,
}

impl Living {
    /// From a /proc/PID/stat line: `pid (name) state parent group ... starttime ...`.
    fn of(stat: &str) -> Option<Self> {
        let pid = Pid::from_raw(stat.split(' ').next()?.parse().ok()?)?;
        // The name may hold anything, brackets included; the last one ends it.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let is_zombie = matches!(*fields.first()?, "Z" | "X");
        let number = |at: usize| fields.get(at)?.parse().ok();
        Some(Self { pid, parent: number(1)?, group: number(2)?, begun: fields.get(19)?.parse().ok()?, is_zombie })
    }
}

/// Everything that comes of a process, but for those named and what comes of them.
///
/// The system lists processes first and tells of each later: one that has ended by then may have started another that is not on
/// the list. So nothing counts as left only once those that have ended had ended when the list was made.
pub(crate) fn descendants(of: Pid, but: &[Pid]) -> Vec<Living> {
    let mut ended = BTreeSet::new();
    loop {
        let (dead, found): (Vec<_>, Vec<_>) = below(of, listed(but)).into_iter().partition(|process| process.is_zombie);
        let before = std::mem::replace(&mut ended, dead.iter().map(|process| process.pid.as_raw_pid()).collect());
        if !found.is_empty() || ended.is_subset(&before) {
            return found;
        }
    }
}

fn listed(but: &[Pid]) -> Vec<Living> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let stats = entries.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    stats.filter_map(|stat| Living::of(&stat)).filter(|process| !but.contains(&process.pid)).collect()
}

fn below(of: Pid, mut others: Vec<Living>) -> Vec<Living> {
    let (mut known, mut found) = (BTreeSet::from([of.as_raw_pid()]), Vec::new());
    loop {
        let more: Vec<Living> = others.extract_if(.., |process| known.contains(&process.parent)).collect();
        if more.is_empty() {
            return found;
        }
        known.extend(more.iter().map(|process| process.pid.as_raw_pid()));
        found.extend(more);
    }
}

/// Sends a signal to each that is still there.
pub(crate) fn signal(all: &[Living], signal: Signal) {
    for process in all {
        // It may be gone by now.
        let _ = kill_process(process.pid, signal);
    }
}

/// The inodes of the sockets that a process has open; nothing if it may not be looked into.
pub(crate) fn sockets(pid: &str) -> Option<BTreeSet<String>> {
    let links = fs::read_dir(Path::new("/proc").join(pid).join("fd")).ok()?;
    let targets =
        links.flatten().filter_map(|link| fs::read_link(link.path()).ok()?.into_os_string().into_string().ok());
    Some(targets.filter_map(|to| Some(to.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())).collect())
}

/// What a process is called, and its number.
pub(crate) fn named(pid: &str) -> String {
    let name = fs::read_to_string(Path::new("/proc").join(pid).join("comm")).unwrap_or_default();
    format!("`{}` (process {pid})", name.trim().escape_debug())
}

/// The numbers of all processes.
pub(crate) fn everyone() -> Vec<String> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pid(number: i32) -> Pid {
        Pid::from_raw(number).unwrap()
    }

    #[test]
    fn names_may_hold_anything_and_the_dead_are_told_apart() {
        let rest = "0 -1 4194560 1 2 3 4 5 6 7 8 9 10 11 0 777 1 2";
        let found = Living::of(&format!("71 (a) ) b) S 1 70 70 {rest}")).unwrap();
        assert_eq!((found.pid, found.parent, found.group, found.begun), (pid(71), 1, 70, 777));
        assert!(!found.is_zombie && Living::of(&format!("71 (dead) Z 1 70 70 {rest}")).unwrap().is_zombie);
        for stat in ["71 (cut) S 1 70", ""] {
            assert_eq!(Living::of(stat), None, "{stat}");
        }
    }

    #[test]
    fn what_comes_of_a_process_is_found_in_any_order() {
        let process =
            |number: i32, parent: i32| Living { pid: pid(number), parent, group: 1, begun: 0, is_zombie: false };
        let all = vec![process(5, 4), process(4, 2), process(9, 1), process(3, 2), process(2, 1)];
        let found: BTreeSet<i32> = below(pid(2), all).iter().map(|process| process.pid.as_raw_pid()).collect();
        assert_eq!(found, BTreeSet::from([3, 4, 5]));
    }
}
