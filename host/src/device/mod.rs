//! What devices there are and how many bytes they have. Reads the operating system; decides nothing.

mod cgroup;
mod gpu;
mod processor;

pub use self::processor::{compute, serve, work_long};
use crate::domain::Device;
use parking_lot::Mutex;

/// Share of the memory that is free at start which `devices: auto` takes as the CPU's budget, in percent. The rest is for
/// page cache, other programs and the host itself.
const CPU_BUDGET_PERCENT: u64 = 80;
/// Share of a graphics card's memory that is its budget if it names none, in percent. The rest is for what every process on
/// it takes before it has a model.
const GPU_BUDGET_PERCENT: u64 = 95;

/// Bytes of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// All there are: of a card, of the machine, or of the control group that leaves least.
    pub total: u64,
    /// Those that new work may take.
    pub free: u64,
}

/// Which graphics cards count, by `CUDA_VISIBLE_DEVICES`; all if nobody says. Said once, before anyone asks for a device.
pub fn see_gpus(visible: Option<&str>) {
    gpu::see(visible);
}

/// What was found wrong while devices were looked for, in sentences for the operator.
static COMPLAINTS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Keeps a sentence until someone asks: devices are looked for before there is a log.
fn complain(sentence: String) {
    COMPLAINTS.lock().push(sentence);
}

/// What was found wrong while devices were looked for and was not told yet.
pub fn complaints() -> Vec<String> {
    std::mem::take(&mut COMPLAINTS.lock())
}

/// The devices that are here, those first that are good for most.
pub fn present() -> Vec<Device> {
    let answers = |device: &Device| {
        let answers = measured(*device).is_some();
        if !answers {
            complain(format!("{device} does not say what memory it has, so it is not used"));
        }
        answers
    };
    let gpus = (0..u16::try_from(gpu::count()).unwrap_or(u16::MAX)).map(Device::Cuda).filter(answers);
    gpus.chain([Device::Cpu]).collect()
}

/// The budget of a device that names none: bytes, or `None` if the device is not here.
pub fn measured_budget(device: Device) -> Option<u64> {
    let percent = |bytes: u64, percent| bytes.saturating_mul(percent) / 100;
    match device {
        Device::Cuda(gpu) => gpu::memory(gpu.into()).map(|memory| percent(memory.total, GPU_BUDGET_PERCENT)),
        Device::Cpu => Some(percent(cpu_available(), CPU_BUDGET_PERCENT)),
        Device::Remote => None,
    }
}

/// Bytes of memory that new work may take: the smaller of MemAvailable and what the cgroup leaves. 0 if neither can be read.
pub fn cpu_available() -> u64 {
    cpu_memory().map_or(0, |memory| memory.free)
}

/// That of the machine, or of the control group if that leaves less.
fn cpu_memory() -> Option<Memory> {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let system =
        kib(&text, "MemAvailable:").map(|free| Memory { total: kib(&text, "MemTotal:").unwrap_or(free), free });
    system.into_iter().chain(cgroup::memory()).min_by_key(|memory| memory.free)
}

/// What a device has and what is free of it now; `None` where that cannot be measured. A card that does not answer is waited
/// for half a second, once.
pub fn measured(device: Device) -> Option<Memory> {
    match device {
        Device::Cuda(gpu) => gpu::memory(gpu.into()),
        Device::Cpu => cpu_memory().filter(|memory| memory.free > 0),
        Device::Remote => None,
    }
}

/// Bytes of a device that are free now; `None` where that cannot be measured.
pub fn measured_free(device: Device) -> Option<u64> {
    measured(device).map(|memory| memory.free)
}

/// Bytes of a device that a process holds; `None` where that cannot be told: a driver may not say, or know the process by
/// another number, as from outside a container.
pub fn held_by(device: Device, pid: u32) -> Option<u64> {
    match device {
        Device::Cuda(gpu) => gpu::held_by(gpu.into(), pid),
        Device::Cpu => charged_to(pid),
        Device::Remote => None,
    }
}

/// Bytes of memory that are charged to a process: its anonymous and shared pages, those that were written to swap and the
/// huge ones among them. Mapped files are not, since the system can drop them and several processes share them.
pub fn charged_to(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    charged(&status)
}

/// Bytes of memory of a process, pages that it shares with others counted in part: what a fork did not write to yet is
/// counted once among all who have it. Slow for a large process.
pub fn share_of(pid: u32) -> Option<u64> {
    share(&std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?)
}

fn share(rollup: &str) -> Option<u64> {
    let [anonymous, shared, swapped] = ["Pss_Anon:", "Pss_Shmem:", "SwapPss:"].map(|name| kib(rollup, name));
    Some(anonymous?.saturating_add(shared?).saturating_add(swapped.unwrap_or(0)))
}

fn charged(status: &str) -> Option<u64> {
    // A kernel thread or a zombie has none of them, an old kernel lacks the later ones.
    let resident = kib(status, "RssAnon:")?.saturating_add(kib(status, "RssShmem:")?);
    let more = ["VmSwap:", "HugetlbPages:"].map(|name| kib(status, name).unwrap_or(0));
    Some(more.into_iter().fold(resident, u64::saturating_add))
}

/// Threads an engine may keep busy.
pub fn cpu_threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Bytes of a line such as `MemAvailable:  20 kB`.
fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    #[test]
    fn meminfo_is_in_kib() {
        let text = "MemTotal:       24576000 kB\nMemFree:  1 kB\nMemAvailable:   20000 kB\n";
        assert_eq!(super::kib(text, "MemAvailable:"), Some(20_480_000));
        assert_eq!(super::kib("nonsense", "MemAvailable:"), None);
    }

    #[test]
    fn what_a_process_swapped_out_is_its_own_and_what_it_mapped_is_not() {
        let text = "VmRSS:\t  900 kB\nRssAnon:\t  100 kB\nRssFile:\t  700 kB\nRssShmem:\t  20 kB\n";
        assert_eq!(super::charged(text), Some(120 << 10));
        let more = format!("{text}VmSwap:\t  3 kB\nHugetlbPages:\t  2048 kB\n");
        assert_eq!(super::charged(&more), Some(2171 << 10));
        let rollup = "Pss:  90 kB\nPss_Anon:  10 kB\nPss_File:  50 kB\nPss_Shmem:  2 kB\nSwapPss:  1 kB\n";
        assert_eq!((super::share(rollup), super::share("Pss: 5 kB\n")), (Some(13 << 10), None));
        assert_eq!(super::charged("Name:\tkthreadd\nState:\tZ (zombie)\n"), None);
    }
}
