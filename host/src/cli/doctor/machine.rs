//! What the machine itself is like: clock, limits, memory, the graphics driver.

use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::process::{Resource, getrlimit};

use super::Finding;
use crate::device;
use crate::domain::{ByteSize, Device};

/// Open files that many connections and workers take.
const DESCRIPTORS: u64 = 4096;
/// A machine with less than this for models has none.
const MEMORY_LEAST: u64 = 1 << 30;
/// How much later than now a file may have been made.
const CLOCK_SLACK: Duration = Duration::from_secs(24 * 3600);
/// What the kernel's part of NVIDIA's driver says of itself.
const DRIVER: &str = "/proc/driver/nvidia/version";
/// Which cards the kernel sees, by the maker's number.
const NVIDIA: &str = "0x10de";

/// Whether time is roughly what it is: certificates and expiry go by it.
pub(super) fn clock(program: Option<&Path>) -> Finding {
    const CHECK: &str = "clock";
    let made = program.and_then(|program| program.metadata().ok()?.modified().ok());
    match made.and_then(|made| made.duration_since(SystemTime::now()).ok()) {
        Some(ahead) if ahead > CLOCK_SLACK => Finding::fail(
            CHECK,
            format!("it is {} days behind the day on which this program was put here", ahead.as_secs() / (24 * 3600)),
            "set it (timedatectl set-ntp true): with a wrong clock no certificate is valid",
        ),
        _ => Finding::pass(CHECK, httpdate::fmt_http_date(SystemTime::now())),
    }
}

/// What one process may have.
pub(super) fn limits() -> Vec<Finding> {
    const CHECK: &str = "limits";
    let most = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let files = match most {
        DESCRIPTORS.. => Finding::pass(CHECK, format!("a process may have {most} files open")),
        _ => Finding::warn(
            CHECK,
            format!("a process may have {most} files open, which bounds its connections"),
            format!("ulimit -Hn {DESCRIPTORS}, or LimitNOFILE= of its unit"),
        ),
    };
    vec![files]
}

pub(super) fn memory() -> Finding {
    const CHECK: &str = "memory";
    let Some(memory) = device::measured(Device::Cpu) else {
        return Finding::warn(
            CHECK,
            "neither /proc/meminfo nor the control group says how much there is",
            "mount /proc",
        );
    };
    let found = format!("{} of {} are free", ByteSize(memory.free), ByteSize(memory.total));
    match memory.free {
        MEMORY_LEAST.. => Finding::pass(CHECK, found),
        _ => Finding::warn(CHECK, found, "end what holds it: models are parked in memory, and small ones run there"),
    }
}

/// The graphics driver, where there is a card.
pub(super) fn driver() -> Vec<Finding> {
    const CHECK: &str = "driver";
    let cards = cards();
    let version = std::fs::read_to_string(DRIVER).ok().and_then(|text| Some(text.lines().next()?.to_owned()));
    let seen = device::present().into_iter().filter(|device| matches!(device, Device::Cuda(_))).count();
    let mut findings: Vec<Finding> = device::complaints()
        .into_iter()
        .map(|complaint| Finding::warn(CHECK, complaint, "nvidia-smi says what the driver finds"))
        .collect();
    findings.push(match (cards, version, seen) {
        (0, None, 0) => Finding::pass(CHECK, "there is no NVIDIA card: models run on the CPU"),
        (_, None, 0) => Finding::fail(
            CHECK,
            format!("{cards} NVIDIA cards are here, and no driver"),
            "install NVIDIA's driver, or start the container with its GPUs (--gpus all)",
        ),
        (_, Some(version), 0) => Finding::fail(
            CHECK,
            format!("the driver is loaded ({version}), and no card answers"),
            "nvidia-smi says why; CUDA_VISIBLE_DEVICES may hide them; a container needs libnvidia-ml.so.1 (--gpus all)",
        ),
        (_, version, seen) => Finding::pass(
            CHECK,
            format!("{seen} cards answer{}", version.map(|v| format!(" ({v})")).unwrap_or_default()),
        ),
    });
    findings
}

/// NVIDIA's display devices on the bus.
fn cards() -> usize {
    let Ok(devices) = std::fs::read_dir("/sys/bus/pci/devices") else { return 0 };
    let read = |folder: &Path, name: &str| std::fs::read_to_string(folder.join(name)).unwrap_or_default();
    let is_card = |folder: &Path| read(folder, "vendor").trim() == NVIDIA && read(folder, "class").starts_with("0x03");
    devices.filter_map(Result::ok).filter(|device| is_card(&device.path())).count()
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn a_clock_that_is_behind_its_own_program_is_wrong() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(clock(Some(file.path())).verdict, Verdict::Pass);
        let ahead = SystemTime::now() + Duration::from_secs(10 * 24 * 3600);
        file.as_file().set_modified(ahead).unwrap();
        let finding = clock(Some(file.path()));
        assert!(finding.verdict == Verdict::Fail && finding.found.contains("9 days behind"), "{finding:?}");
    }
}
