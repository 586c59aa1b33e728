//! Gives up what this process does not need, before any code of its plugin runs: privileges, descriptors, and by Landlock the
//! files and connections that are not its model's. What it starts is bound as it is.

use std::path::{Path, PathBuf};

use caps::CapSet;
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, Scope,
};

use super::super::confinement::Confinement;
use crate::plugin::Permission;

/// The newest rules that are asked for. A kernel that knows fewer keeps those that it knows.
const RULES: ABI = ABI::V6;
/// What programs and libraries read: installed files, settings of the loader, what the kernel tells of the machine.
const SYSTEM: [&str; 24] = [
    "/usr",
    "/lib",
    "/lib32",
    "/lib64",
    "/bin",
    "/opt",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/nvidia",
    "/sys",
    "/proc/cpuinfo",
    "/proc/devices",
    "/proc/driver",
    "/proc/filesystems",
    "/proc/meminfo",
    "/proc/modules",
    "/proc/stat",
    "/proc/sys",
    "/proc/version",
    "/dev/urandom",
];
/// What a program needs beside it that goes out to other machines.
const NETWORK: [&str; 4] = ["/etc/hosts", "/etc/resolv.conf", "/etc/ssl", "/run/systemd/resolve"];
/// What is written without harm to anyone: itself, nothing, memory that is shared.
const WRITABLE: [&str; 5] = ["/proc/self", "/dev/null", "/dev/zero", "/dev/full", "/dev/shm"];
/// Beginnings of the names of a graphics card's files.
const CARDS: [&str; 3] = ["nvidia", "dri", "kfd"];

/// Gives up every privilege, for this thread and all it starts. Called before there is another one. A process that has none
/// may not give one up, which is as good.
pub(super) fn drop_privileges() {
    for set in [CapSet::Ambient, CapSet::Bounding, CapSet::Inheritable, CapSet::Permitted, CapSet::Effective] {
        let _ = caps::clear(None, set);
    }
}

/// From now on this thread, and all it starts, touches only what its plugin needs. Called before there is another one.
///
/// # Errors
/// When the kernel knows such rules and does not take these. A kernel without them is no error.
pub(super) fn confine(to: &Confinement) -> Result<(), String> {
    let (files, network) = (!to.has(Permission::Files), !to.has(Permission::Network));
    if !(files || network) {
        return Ok(());
    }
    let restrict = || {
        let mut rules = Ruleset::default().set_compatibility(CompatLevel::BestEffort);
        if files {
            rules = rules.handle_access(AccessFs::from_all(RULES))?;
        }
        if network {
            rules = rules.handle_access(AccessNet::from_all(RULES))?.scope(Scope::from_all(RULES))?;
        }
        let allowed = if files { paths(to) } else { Vec::new() };
        let rules = allowed.iter().try_fold(rules.create()?, |rules, (path, access)| allow(rules, path, *access))?;
        rules.restrict_self()
    };
    restrict().map(drop).map_err(|e: RulesetError| format!("cannot be confined to its model's files: {e}"))
}

/// What may be done where.
fn paths(to: &Confinement) -> Vec<(PathBuf, BitFlags<AccessFs>)> {
    let mut read = AccessFs::from_read(RULES);
    if !to.has(Permission::Subprocess) {
        read.remove(AccessFs::Execute);
    }
    let mut write = AccessFs::from_all(RULES);
    write.remove(AccessFs::Execute);
    let libraries = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let libraries = std::env::split_paths(&libraries).filter(|folder| folder.is_absolute()).collect::<Vec<_>>();
    let network = if to.has(Permission::Network) { &NETWORK[..] } else { &[] };
    let programs = if to.has(Permission::Subprocess) { &["/proc", "/etc/alternatives", "/sbin"][..] } else { &[] };
    let system = SYSTEM.iter().chain(network).chain(programs).map(PathBuf::from);
    let readable = system.chain(libraries).chain(to.readable.iter().cloned()).map(|path| (path, read));
    let writable = WRITABLE.iter().map(PathBuf::from).chain(cards()).chain(to.own.clone());
    readable.chain(writable.map(|path| (path, write))).collect()
}

/// The files through which the driver of a graphics card is spoken to.
fn cards() -> Vec<PathBuf> {
    let Ok(devices) = std::fs::read_dir("/dev") else { return Vec::new() };
    let names = devices.filter_map(Result::ok).map(|device| device.file_name());
    let cards = names.filter(|name| CARDS.iter().any(|card| name.to_string_lossy().starts_with(card)));
    cards.map(|name| Path::new("/dev").join(name)).collect()
}

/// What is not there needs no rule.
fn allow(rules: RulesetCreated, path: &Path, access: BitFlags<AccessFs>) -> Result<RulesetCreated, RulesetError> {
    let Ok(opened) = PathFd::new(path) else { return Ok(rules) };
    let access = if path.is_dir() { access } else { access & AccessFs::from_file(RULES) };
    rules.add_rule(PathBeneath::new(opened, access))
}
