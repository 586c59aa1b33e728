//! What devices there are and how many bytes they have. Reads the operating system; decides nothing.

use crate::domain::DeviceId;

/// Share of the memory that is free at start which `devices: auto` takes as the CPU's budget, in percent. The rest is for
/// page cache, other programs and the host itself.
const CPU_BUDGET_PERCENT: u64 = 80;

/// The budget of a device that names none: bytes, or `None` if the device is not here.
pub fn measured_budget(device: &DeviceId) -> Option<u64> {
    (device.0 == "cpu").then(|| cpu_available().saturating_mul(CPU_BUDGET_PERCENT) / 100)
}

/// Bytes of memory that new work may take: the smaller of MemAvailable and what the cgroup leaves. 0 if neither can be read.
pub fn cpu_available() -> u64 {
    let system = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| mem_available(&text));
    let cgroup = cgroup_left();
    system.into_iter().chain(cgroup).min().unwrap_or(0)
}

/// Threads an engine may keep busy.
pub fn cpu_threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn mem_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find(|line| line.starts_with("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// What cgroup v2 leaves below its limit; `None` where there is no limit.
fn cgroup_left() -> Option<u64> {
    let read = |name: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?.trim().parse::<u64>().ok();
    Some(read("memory.max")?.saturating_sub(read("memory.current")?))
}

#[cfg(test)]
mod tests {
    #[test]
    fn meminfo_is_in_kib() {
        let text = "MemTotal:       24576000 kB\nMemFree:  1 kB\nMemAvailable:   20000 kB\n";
        assert_eq!(super::mem_available(text), Some(20_480_000));
        assert_eq!(super::mem_available("nonsense"), None);
    }
}
