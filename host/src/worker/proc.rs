//! Processes as /proc shows them.

use std::fs;

use rustix::process::Pid;

/// A process that has not ended; a zombie is its parent's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Living {
    pub(super) pid: Pid,
    pub(super) parent: Option<Pid>,
    pub(super) group: Option<Pid>,
}

impl Living {
    /// From a /proc/PID/stat line: `pid (name) state parent group`.
    pub(super) fn of(stat: &str) -> Option<Self> {
        let number = |text: Option<&str>| text?.parse().ok().and_then(Pid::from_raw);
        // The name may hold anything, brackets included; the last one ends it.
        let mut rest = stat.rsplit_once(')')?.1.split_whitespace();
        let alive = !matches!(rest.next()?, "Z" | "X");
        let pid = number(stat.split(' ').next())?;
        alive.then(|| Self { pid, parent: number(rest.next()), group: number(rest.next()) })
    }
}

/// Whether there is a process of this number that has not ended.
pub fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| Living::of(&stat).is_some())
}

/// All that are there now.
pub(super) fn living() -> impl Iterator<Item = Living> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.filter_map(|process| Living::of(&fs::read_to_string(process.path().join("stat")).ok()?))
}

/// The first variable of a process that begins so. Processes of other users cannot be looked into.
pub(super) fn variable(pid: Pid, beginning: &[u8]) -> Option<Vec<u8>> {
    let variables = fs::read(format!("/proc/{}/environ", pid.as_raw_pid())).ok()?;
    variables.split(|byte| *byte == 0).find(|variable| variable.starts_with(beginning)).map(<[u8]>::to_vec)
}

/// Whether a process has a variable that begins so.
pub(super) fn carries(pid: Pid, beginning: &[u8]) -> bool {
    variable(pid, beginning).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_hold_anything_and_the_dead_are_left_out() {
        let pid = |number| Pid::from_raw(number).unwrap();
        let living = Living { pid: pid(71), parent: Some(pid(1)), group: Some(pid(70)) };
        assert_eq!(Living::of("71 (a) ) b) S 1 70 70 0"), Some(living));
        assert_eq!(Living::of("71 (of init) R 0 70 70 0"), Some(Living { parent: None, ..living }));
        for stat in ["71 (dead) Z 1 70 70 0", "71 (gone) X 1 70 70 0", "71 (cut", ""] {
            assert_eq!(Living::of(stat), None, "{stat}");
        }
    }
}
