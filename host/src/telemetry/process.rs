//! What the system says of this process: memory, processor time, descriptors, threads. It reads /proc, and knows no other
//! process than this one. What cannot be read is left out.

use std::fs::{read_dir, read_to_string};

use super::{Gauges, Metric};

/// Ticks of a second in /proc, on every Linux that this host is built for.
const TICKS_PER_SECOND: f64 = 100.0;

/// Adds what there is to say of this process.
pub fn look_at_process(gauges: &mut Gauges) {
    let read = |name: &str| read_to_string(format!("/proc/{name}")).unwrap_or_default();
    let status = read("self/status");
    for (metric, name) in [(Metric::ResidentMemory, "VmRSS:"), (Metric::VirtualMemory, "VmSize:")] {
        if let Some(kib) = number(&status, name) {
            gauges.add(metric, &[], kib.saturating_mul(1024));
        }
    }
    if let Some(threads) = number(&status, "Threads:") {
        gauges.add(Metric::Threads, &[], threads);
    }
    if let Ok(descriptors) = read_dir("/proc/self/fd") {
        gauges.add(Metric::OpenDescriptors, &[], descriptors.count() as u64);
    }
    if let Some(most) = number(&read("self/limits"), "Max open files") {
        gauges.add(Metric::MostDescriptors, &[], most);
    }
    let stat = read("self/stat");
    if let Some(Times { used, started }) = Times::read(&stat) {
        gauges.set_seconds(Metric::CpuSeconds, used);
        if let Some(booted) = number(&read("stat"), "btime") {
            gauges.set_seconds(Metric::StartTime, booted as f64 + started);
        }
    }
}

/// In seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Times {
    /// Of processors, by the process and by the system for it.
    used: f64,
    /// Since the machine came up.
    started: f64,
}

impl Times {
    /// From /proc/PID/stat. What stands before the last bracket is the program's name, in which anything may be.
    fn read(stat: &str) -> Option<Self> {
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let seconds = |at: usize| Some(fields.get(at)?.parse::<u64>().ok()? as f64 / TICKS_PER_SECOND);
        Some(Self { used: seconds(11)? + seconds(12)?, started: seconds(19)? })
    }
}

/// The first number of the line that begins so.
fn number(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_is_read_whatever_a_program_is_called() {
        let stat = "7 (a) b) 1) S 1 7 7 0 -1 4194560 9 0 0 0 150 25 9 9 20 0 3 0 4200 1 2";
        assert_eq!(Times::read(stat), Some(Times { used: 1.75, started: 42.0 }));
        assert_eq!(Times::read("nonsense"), None);
        let limits = "Limit   Soft Limit  Hard Limit  Units\nMax open files            1024     4096    files\n";
        assert_eq!(number(limits, "Max open files"), Some(1024));
        assert_eq!(number("Max open files  unlimited\n", "Max open files"), None);
    }

    #[test]
    fn of_this_process_everything_is_known() {
        let mut gauges = Gauges::default();
        look_at_process(&mut gauges);
        let text = super::super::Scrape::new(Default::default(), gauges).render(Default::default()).expect("a text");
        for name in [
            "resident_memory_bytes",
            "virtual_memory_bytes",
            "open_fds",
            "max_fds",
            "threads",
            "start_time_seconds",
            "cpu_seconds_total",
        ] {
            let name = format!("process_{name} ");
            let value = text.lines().find_map(|line| line.strip_prefix(&name)?.parse::<f64>().ok());
            assert!(value.is_some_and(|value| value >= 0.0), "{name} in\n{text}");
        }
    }
}
