//! NVIDIA cards, as the management library (NVML) counts them. Without a driver there are none.

use std::sync::OnceLock;

use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::{Device, Nvml};

/// Bytes of a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Memory {
    pub(super) total: u64,
    pub(super) free: u64,
}

/// `CUDA_VISIBLE_DEVICES`.
static VISIBLE: OnceLock<Option<String>> = OnceLock::new();

/// Says which cards workers will see: numbers and beginnings of UUIDs, up to the first that names no card, or one twice.
pub(super) fn see(visible: Option<&str>) {
    VISIBLE.get_or_init(|| visible.map(str::to_owned));
}

/// How many cards workers will see; `cuda:0` is the first.
pub(super) fn count() -> usize {
    cards().len()
}

/// What a card has; `None` if there is no such card, or it does not answer.
pub(super) fn memory(ordinal: usize) -> Option<Memory> {
    let index = *cards().get(ordinal)?;
    let info = library()?.device_by_index(index).and_then(|card| card.memory_info()).ok()?;
    Some(Memory { total: info.total, free: info.free })
}

/// Where the kernel shows the namespace of process numbers.
const PID_NAMESPACE: &str = "/proc/self/ns/pid";
/// That of the whole machine, whose numbers a driver uses.
const WHOLE_MACHINE: &str = "pid:[4026531836]";

/// Bytes of a card that a process holds; `None` if the card does not know the process, or does not say. In a container a
/// number of this host's may be another process's to the driver, so nothing is read there.
pub(super) fn held_by(ordinal: usize, pid: u32) -> Option<u64> {
    static NUMBERS_MATCH: OnceLock<bool> = OnceLock::new();
    let namespace = || std::fs::read_link(PID_NAMESPACE).is_ok_and(|name| name.as_os_str() == WHOLE_MACHINE);
    if !NUMBERS_MATCH.get_or_init(namespace) {
        return None;
    }
    let index = *cards().get(ordinal)?;
    let processes = library()?.device_by_index(index).and_then(|card| card.running_compute_processes()).ok()?;
    let bytes = |memory| match memory {
        UsedGpuMemory::Used(bytes) => Some(bytes),
        UsedGpuMemory::Unavailable => None,
    };
    processes.into_iter().find(|process| process.pid == pid).and_then(|process| bytes(process.used_gpu_memory))
}

/// NVML's numbers of the cards. It orders them by their place on the bus; workers are told to do the same.
fn cards() -> &'static [u32] {
    static CARDS: OnceLock<Vec<u32>> = OnceLock::new();
    CARDS.get_or_init(|| {
        let Some(library) = library() else { return Vec::new() };
        let count = library.device_count().unwrap_or(0);
        let uuid = |index| library.device_by_index(index).and_then(|card: Device<'_>| card.uuid()).unwrap_or_default();
        let uuids: Vec<String> = (0..count).map(uuid).collect();
        select(&uuids, VISIBLE.get().and_then(Option::as_deref))
    })
}

fn library() -> Option<&'static Nvml> {
    static LIBRARY: OnceLock<Option<Nvml>> = OnceLock::new();
    LIBRARY.get_or_init(|| Nvml::init().inspect_err(|e| tracing::debug!("no NVIDIA driver: {e}")).ok()).as_ref()
}

fn select(uuids: &[String], visible: Option<&str>) -> Vec<u32> {
    let all = 0u32..;
    let Some(visible) = visible else { return all.take(uuids.len()).collect() };
    let named = |name: &str| {
        let at = name.parse().ok().filter(|at: &usize| *at < uuids.len());
        let at = at.or_else(|| uuids.iter().position(|uuid| name.starts_with("GPU-") && uuid.starts_with(name)));
        at.and_then(|at| u32::try_from(at).ok())
    };
    let mut chosen = Vec::new();
    for name in visible.split(',').map(str::trim) {
        match named(name) {
            Some(card) if !chosen.contains(&card) => chosen.push(card),
            _ => break,
        }
    }
    if chosen.is_empty() && visible.starts_with("MIG-") {
        tracing::warn!(
            "CUDA_VISIBLE_DEVICES names a part of a card (MIG); such parts are not managed, so no card is used"
        );
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::select;

    #[test]
    fn visible_cards_are_chosen_as_cuda_does() {
        let uuids = ["GPU-aa1", "GPU-ab2", "GPU-cc3"].map(str::to_owned);
        for (visible, chosen) in [
            (None, vec![0, 1, 2]),
            (Some("2,0"), vec![2, 0]),
            (Some(" 1 , 2"), vec![1, 2]),
            (Some("GPU-ab,GPU-cc3"), vec![1, 2]),
            (Some("1,7,0"), vec![1]),
            (Some("0,0"), vec![0]),
            (Some("-1"), vec![]),
            (Some("NoDevFiles"), vec![]),
        ] {
            assert_eq!(select(&uuids, visible), chosen, "{visible:?}");
        }
    }
}
