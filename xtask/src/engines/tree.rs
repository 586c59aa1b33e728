//! The processes of a host's engine, as `/proc` shows them.

use std::fs;
use std::path::PathBuf;

use crate::soak::process::{field, workers_of};

/// The bit of SIGTERM among those that wait for a process.
const TERM_BIT: u64 = 1 << 14;

/// The engine's first process: a worker's child that runs another program.
pub(super) fn engine(host: u32) -> Option<u32> {
    let own = exe(host)?;
    engines(host).into_iter().find(|pid| parent(*pid).and_then(exe).as_ref() == Some(&own))
}

/// All processes of the host's engines.
pub(super) fn engines(host: u32) -> Vec<u32> {
    let own = exe(host);
    let of_engine = |pid: &u32| exe(*pid).is_some_and(|program| Some(program) != own);
    workers_of(host).into_iter().filter(of_engine).collect()
}

/// The largest child of the engine's first process, where it computes in another one than it answers in.
pub(super) fn inner(host: u32) -> Option<u32> {
    let first = engine(host)?;
    engines(host).into_iter().filter(|pid| parent(*pid) == Some(first)).max_by_key(|pid| field(&status(*pid), "VmRSS:"))
}

/// Resident memory of the host and all that came of it, MiB.
pub(super) fn resident_mib(host: u32) -> u64 {
    let all = std::iter::once(host).chain(workers_of(host));
    all.map(|pid| field(&status(pid), "VmRSS:")).sum::<u64>() / 1024
}

/// Whether somebody has asked this process, which is stopped, to end.
pub(super) fn is_told_to_end(pid: u32) -> bool {
    let status = status(pid);
    let waits = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).is_some_and(|bits| bits & TERM_BIT != 0)
    };
    waits("ShdPnd:") || waits("SigPnd:")
}

fn status(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default()
}

fn parent(pid: u32) -> Option<u32> {
    u32::try_from(field(&status(pid), "PPid:")).ok().filter(|pid| *pid > 0)
}

fn exe(pid: u32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/exe")).ok()
}
