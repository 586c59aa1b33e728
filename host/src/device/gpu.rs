//! NVIDIA cards, as the management library (NVML) counts them. Without a driver there are none.
//!
//! A card that has fallen off the bus may answer never. So each is asked on a thread of its own, for which nobody waits long;
//! one that owes an answer is not asked again until it has given it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

use super::{Memory, complain};

/// How long a card may take to answer before it is asked no more. One that is well takes some milliseconds.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);
/// How long the driver may take to say, at the start, which cards there are. It wakes them for that.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// Questions that may wait for a card.
const MAX_WAITING_QUESTIONS: usize = 64;
/// How the name of a slice of a card begins (Multi-Instance GPU).
const SLICE: &str = "MIG-";

/// What the driver knows a card by.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Name {
    /// Its number. NVML orders cards by their place on the bus; workers are told to do the same.
    Number(u32),
    /// Its UUID: a slice of a card has no number.
    Uuid(String),
}

/// A card, and the thread that asks it.
#[derive(Debug)]
struct Card {
    questions: SyncSender<Question>,
    /// Whether it owes an answer that nobody waits for any more.
    silent: Arc<AtomicBool>,
}

/// What is asked of a card; it sends the answer itself.
type Question = Box<dyn FnOnce(Result<Device<'static>, NvmlError>) + Send>;

/// `CUDA_VISIBLE_DEVICES`.
static VISIBLE: OnceLock<Option<String>> = OnceLock::new();

/// Says which cards workers will see: numbers, beginnings of UUIDs and UUIDs of slices, up to the first that names no card, or
/// one twice.
pub(super) fn see(visible: Option<&str>) {
    VISIBLE.get_or_init(|| visible.map(str::to_owned));
}

/// How many cards workers will see; `cuda:0` is the first.
pub(super) fn count() -> usize {
    cards().len()
}

/// What a card has; `None` if there is no such card, or it does not answer.
pub(super) fn memory(ordinal: usize) -> Option<Memory> {
    let info = ask(ordinal, |card| card.memory_info())?;
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
    let processes = ask(ordinal, |card| card.running_compute_processes())?;
    let bytes = |memory| match memory {
        UsedGpuMemory::Used(bytes) => Some(bytes),
        UsedGpuMemory::Unavailable => None,
    };
    processes.into_iter().find(|process| process.pid == pid).and_then(|process| bytes(process.used_gpu_memory))
}

/// Asks a card; `None` if there is no such card, it fails, or it does not answer in time.
fn ask<T: Send + 'static>(
    ordinal: usize,
    question: impl FnOnce(&Device<'static>) -> Result<T, NvmlError> + Send + 'static,
) -> Option<T> {
    cards().get(ordinal)?.ask(ordinal, question)
}

impl Card {
    /// A thread for a card; `None` if the system has none to spare.
    fn new(library: &'static Nvml, name: Name) -> Option<Self> {
        let (questions, queue) = sync_channel(MAX_WAITING_QUESTIONS);
        let silent = Arc::new(AtomicBool::new(false));
        let owes = Arc::clone(&silent);
        let serve = move || serve(library, &name, &queue, &owes);
        std::thread::Builder::new().name("nvml".into()).spawn(serve).ok()?;
        Some(Self { questions, silent })
    }

    fn ask<T: Send + 'static>(
        &self,
        ordinal: usize,
        question: impl FnOnce(&Device<'static>) -> Result<T, NvmlError> + Send + 'static,
    ) -> Option<T> {
        if self.silent.load(Ordering::Relaxed) {
            return None;
        }
        let (answer, heard) = sync_channel(1);
        let asked = self.questions.try_send(Box::new(move |card| {
            let answered = card.and_then(|card| question(&card));
            // Nobody may wait any more.
            let _ = answer.send(answered);
        }));
        asked.ok()?;
        match heard.recv_timeout(ANSWER_TIMEOUT) {
            Ok(answered) => answered.inspect_err(|e| tracing::debug!("cuda:{ordinal} does not say: {e}")).ok(),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => {
                if !self.silent.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        "cuda:{ordinal} has not answered for {} ms; until it does, nothing is known of its memory (`nvidia-smi` and `dmesg` may say why)",
                        ANSWER_TIMEOUT.as_millis()
                    );
                }
                None
            }
        }
    }
}

fn serve(library: &'static Nvml, name: &Name, queue: &Receiver<Question>, silent: &AtomicBool) {
    for question in queue {
        question(match name {
            Name::Number(number) => library.device_by_index(*number),
            Name::Uuid(uuid) => library.device_by_uuid(uuid.as_str()),
        });
        if silent.swap(false, Ordering::Relaxed) {
            tracing::info!("a card answers again");
        }
    }
}

/// The cards that workers see, in their order.
fn cards() -> &'static [Card] {
    static CARDS: OnceLock<Vec<Card>> = OnceLock::new();
    CARDS.get_or_init(|| {
        let (found, heard) = sync_channel(1);
        let look = move || {
            // Nobody may wait any more.
            let _ = found.send(find());
        };
        if let Err(e) = std::thread::Builder::new().name("nvml-start".into()).spawn(look) {
            complain(format!("no card is used: there is no thread to ask for them ({e})"));
            return Vec::new();
        }
        heard.recv_timeout(START_TIMEOUT).unwrap_or_else(|_| {
            complain(format!(
                "the NVIDIA driver has not said for {} s which cards there are, so none is used (`nvidia-smi` and `dmesg` may say why)",
                START_TIMEOUT.as_secs()
            ));
            Vec::new()
        })
    })
}

fn find() -> Vec<Card> {
    static LIBRARY: OnceLock<Option<Nvml>> = OnceLock::new();
    let library = LIBRARY.get_or_init(|| Nvml::init().inspect_err(|e| tracing::debug!("no NVIDIA driver: {e}")).ok());
    let Some(library) = library else { return Vec::new() };
    let count = library.device_count().unwrap_or(0);
    let uuid = |index| library.device_by_index(index).and_then(|card: Device<'_>| card.uuid()).unwrap_or_default();
    let uuids: Vec<String> = (0..count).map(uuid).collect();
    let is_slice = |uuid: &str| library.device_by_uuid(uuid).is_ok();
    let visible = VISIBLE.get().and_then(Option::as_deref);
    let names = select(&uuids, is_slice, visible);
    if let (true, true, Some(visible)) = (names.is_empty(), count > 0, visible) {
        complain(format!(
            "CUDA_VISIBLE_DEVICES is `{visible}`, which names none of this machine's {count} cards, so models run on the CPU; name some by number or UUID (`nvidia-smi -L`), or unset it"
        ));
    }
    names.into_iter().filter_map(|name| Card::new(library, name)).collect()
}

/// CUDA's own rules. Of slices of cards it serves a process one, the first.
fn select(uuids: &[String], is_slice: impl Fn(&str) -> bool, visible: Option<&str>) -> Vec<Name> {
    let all = 0u32..;
    let Some(visible) = visible else { return all.take(uuids.len()).map(Name::Number).collect() };
    let named = |name: &str| {
        let at = name.parse().ok().filter(|at: &usize| *at < uuids.len());
        let at = at.or_else(|| uuids.iter().position(|uuid| name.starts_with("GPU-") && uuid.starts_with(name)));
        at.and_then(|at| u32::try_from(at).ok()).map(Name::Number)
    };
    let mut chosen = Vec::new();
    for name in visible.split(',').map(str::trim) {
        if chosen.is_empty() && name.starts_with(SLICE) {
            return if is_slice(name) { vec![Name::Uuid(name.to_owned())] } else { Vec::new() };
        }
        match named(name) {
            Some(card) if !chosen.contains(&card) => chosen.push(card),
            _ => break,
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::{Name, select};

    #[test]
    fn visible_cards_are_chosen_as_cuda_does() {
        let uuids = ["GPU-aa1", "GPU-ab2", "GPU-cc3"].map(str::to_owned);
        let chosen = |visible| select(&uuids, |slice| slice == "MIG-x", visible);
        for (visible, numbers) in [
            (None, vec![0, 1, 2]),
            (Some("2,0"), vec![2, 0]),
            (Some(" 1 , 2"), vec![1, 2]),
            (Some("GPU-ab,GPU-cc3"), vec![1, 2]),
            (Some("1,7,0"), vec![1]),
            (Some("0,0"), vec![0]),
            (Some("0,MIG-x"), vec![0]),
            (Some("-1"), vec![]),
            (Some(""), vec![]),
            (Some("NoDevFiles"), vec![]),
            (Some("MIG-y"), vec![]),
        ] {
            let numbers: Vec<Name> = numbers.into_iter().map(Name::Number).collect();
            assert_eq!(chosen(visible), numbers, "{visible:?}");
        }
        for visible in ["MIG-x", "MIG-x,MIG-y", " MIG-x ,0"] {
            assert_eq!(chosen(Some(visible)), [Name::Uuid("MIG-x".to_owned())], "{visible}");
        }
    }
}
