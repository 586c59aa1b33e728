//! What instances were seen to hold at most, remembered across restarts: a plan is a plugin's promise, a peak is what came.

use std::collections::BTreeMap;
use std::path::Path;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::state_file::StateFile;
use crate::config::ModelConfig;
use crate::domain::Device;
use crate::plugin::{PluginFile, Registry};
use crate::store;

/// The file's name in `state_dir`.
const FILE_NAME: &str = "peaks.json";
/// Raised when the file's meaning changes; another version is not read.
const FORMAT_VERSION: u32 = 1;
/// Peaks kept; the one observed longest ago goes first.
const PEAKS_MAX: usize = 512;
/// One part in this many is added to a peak, for the next one may be a little higher: 5 %.
const MARGIN_PARTS: u64 = 20;
/// Growth by less than one part in this many is within the margin, and not worth a write: 1 %.
const NOTABLE_PARTS: u64 = 100;

/// What a peak belongs to: this plugin file, these weights, these options, this kind of device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    digest: String,
    /// For whoever reads the file.
    plugin: String,
}

impl Key {
    /// The key of a model on a device, or on whatever device. Looks at the files' sizes and times, reads none.
    pub(super) fn new(plugin: &PluginFile, model: &ModelConfig, device: Option<Device>) -> Self {
        let name = format!("{} {}", plugin.manifest.id, plugin.manifest.version);
        let files: BTreeMap<_, _> = model.files.iter().map(|(role, file)| (role, store::fingerprint(file))).collect();
        let mut options = model.options.clone();
        options.sort_all_objects();
        // Each card of one kind takes the same.
        let parts = serde_json::json!([name, plugin.copy.digest(), device.map_or("", Device::kind), files, options]);
        Self { digest: format!("{:x}", Sha256::digest(parts.to_string())), plugin: name }
    }

    /// What an instance of a model is made of, on whatever device; `None` if its plugin is not there.
    pub(super) fn of(model: &ModelConfig, registry: &Registry) -> Option<Self> {
        let plugin = registry.find(&model.plugin, model.plugin_version.as_ref()).ok()?;
        Some(Self::new(&plugin, model, None))
    }

    pub(super) fn digest(&self) -> &str {
        &self.digest
    }
}

/// The peaks of a host.
#[derive(Debug)]
pub(super) struct Peaks {
    file: StateFile,
    known: Mutex<PeaksFile>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct PeaksFile {
    peaks: BTreeMap<String, Peak>,
    /// The newest order of one that is not there any more.
    #[serde(default)]
    forgotten: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Peak {
    plugin: String,
    bytes: u64,
    /// Counts observations; the lowest is the oldest.
    order: u64,
}

impl Peaks {
    /// Reads `state_dir/peaks.json`, or begins with none.
    pub(super) fn open(state_dir: &Path) -> Self {
        let (file, known) = StateFile::open(state_dir, FILE_NAME, FORMAT_VERSION);
        Self { file, known: Mutex::new(known) }
    }

    /// Bytes to reserve: what is planned or, with a margin, what was seen, whichever is more. Less than the plan only where
    /// `memory_static` says that memory does not grow after load, so that what was seen is all there is.
    pub(super) fn need(&self, key: &Key, plan_bytes: u64, memory_static: bool) -> u64 {
        let seen = self.known.lock().peaks.get(&key.digest).map(|peak| with_margin(peak.bytes));
        match seen {
            Some(seen) if memory_static || seen > plan_bytes => seen,
            _ => plan_bytes,
        }
    }

    /// What is remembered, if anything is.
    pub(super) fn known(&self, key: &Key) -> Option<u64> {
        self.known.lock().peaks.get(&key.digest).map(|peak| peak.bytes)
    }

    /// Goes back to what was remembered before. Writes the file, so it may block for a moment.
    pub(super) fn forget(&self, key: &Key, before: Option<u64>) {
        let known = {
            let mut known = self.known.lock();
            let order = known.newest() + 1;
            match (known.peaks.get_mut(&key.digest), before) {
                (None, _) => return,
                (Some(peak), Some(bytes)) => (peak.bytes, peak.order) = (bytes, order),
                (Some(_), None) => {
                    known.peaks.remove(&key.digest);
                    known.forgotten = order;
                }
            }
            known.clone()
        };
        self.file.write(known.newest(), &known);
    }

    /// Remembers that an instance held this many bytes. Writes the file where that is news, so it may block for a moment.
    pub(super) fn observe(&self, key: &Key, bytes: u64) {
        let news = {
            let mut known = self.known.lock();
            known.observe(key, bytes).then(|| known.clone())
        };
        // Not under the lock that `need` takes.
        if let Some(known) = news {
            self.file.write(known.newest(), &known);
        }
    }
}

impl PeaksFile {
    /// Whether that is news.
    fn observe(&mut self, key: &Key, bytes: u64) -> bool {
        let before = self.peaks.get(&key.digest).map_or(0, |peak| peak.bytes);
        if bytes <= before.saturating_add(before / NOTABLE_PARTS) {
            return false;
        }
        let order = self.newest() + 1;
        self.peaks.insert(key.digest.clone(), Peak { plugin: key.plugin.clone(), bytes, order });
        while self.peaks.len() > PEAKS_MAX {
            let oldest = self.peaks.iter().min_by_key(|(_, peak)| peak.order).map(|(digest, _)| digest.clone());
            oldest.map(|digest| self.peaks.remove(&digest));
        }
        true
    }

    fn newest(&self) -> u64 {
        self.peaks.values().map(|peak| peak.order).max().unwrap_or(0).max(self.forgotten)
    }
}

fn with_margin(bytes: u64) -> u64 {
    bytes.saturating_add(bytes.div_ceil(MARGIN_PARTS))
}

#[cfg(test)]
mod tests {
    use super::super::state_file::FILE_BYTES_MAX;
    use super::*;
    use crate::config::{self, Env, Selection};
    use crate::plugin::PluginCopy;

    fn key(name: &str) -> Key {
        Key { digest: name.to_owned(), plugin: "test 1.0.0".to_owned() }
    }

    #[test]
    fn a_peak_counts_where_it_may() {
        let dir = tempfile::tempdir().unwrap();
        let peaks = Peaks::open(dir.path());
        assert_eq!(peaks.need(&key("a"), 1000, true), 1000, "nothing is known");
        peaks.observe(&key("a"), 2000);
        peaks.observe(&key("a"), 500);
        peaks.observe(&key("b"), 0);
        for (key, plan, memory_static, wanted) in [
            (key("a"), 1000, false, 2100),
            (key("a"), 1000, true, 2100),
            (key("a"), 9000, false, 9000),
            (key("a"), 9000, true, 2100),
            (key("b"), 9000, true, 9000),
        ] {
            assert_eq!(peaks.need(&key, plan, memory_static), wanted, "{key:?} {plan} {memory_static}");
        }
        peaks.forget(&key("a"), Some(1500));
        peaks.forget(&key("b"), None);
        peaks.forget(&key("c"), Some(7));
        assert_eq!((peaks.known(&key("a")), peaks.known(&key("c"))), (Some(1500), None));
        assert_eq!(peaks.need(&key("b"), 9000, true), 9000, "what is forgotten is no peak of nothing");
        peaks.observe(&key("b"), 3000);
        let again = Peaks::open(dir.path());
        assert_eq!((again.known(&key("a")), again.known(&key("b"))), (Some(1500), Some(3000)));
        peaks.observe(&key("huge"), u64::MAX);
        assert_eq!(peaks.need(&key("huge"), 1, false), u64::MAX);
    }

    #[test]
    fn peaks_outlive_the_host_and_small_growth_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let file = || std::fs::read(dir.path().join(FILE_NAME)).unwrap();
        Peaks::open(dir.path()).observe(&key("a"), 100_000);
        let peaks = Peaks::open(dir.path());
        assert_eq!(peaks.need(&key("a"), 1, false), 105_000);
        let before = file();
        peaks.observe(&key("a"), 100_900);
        assert_eq!(file(), before);
        peaks.observe(&key("a"), 102_000);
        assert_eq!(Peaks::open(dir.path()).need(&key("a"), 1, false), 107_100);
        let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, [FILE_NAME], "something was left behind");
    }

    #[test]
    fn small_steps_add_up() {
        let dir = tempfile::tempdir().unwrap();
        let peaks = Peaks::open(dir.path());
        (0..100).for_each(|step| peaks.observe(&key("a"), 100_000 + step * 500));
        assert!(peaks.need(&key("a"), 1, false) >= 149_500, "growth in small steps was lost");
    }

    #[test]
    fn what_cannot_be_read_is_empty_and_is_replaced() {
        let cut = br#"{"version":1,"peaks":{"a":{"plugin":"x","bytes"#.to_vec();
        let newer = br#"{"version":2,"peaks":{"a":{"plugin":"x","bytes":7,"order":1}}}"#.to_vec();
        let wrong = br#"{"version":1,"peaks":{"a":{"plugin":"x","bytes":-7,"order":1}}}"#.to_vec();
        let huge = vec![b' '; FILE_BYTES_MAX as usize + 1];
        for damaged in [Vec::new(), b"\xff\xfe".to_vec(), cut, newer, wrong, huge] {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join(FILE_NAME), &damaged).unwrap();
            let peaks = Peaks::open(dir.path());
            assert_eq!(peaks.need(&key("a"), 1, true), 1);
            peaks.observe(&key("a"), 1000);
            assert_eq!(Peaks::open(dir.path()).need(&key("a"), 1, true), 1050);
        }
    }

    #[test]
    fn a_pipe_in_its_place_is_not_waited_for() {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        let dir = tempfile::tempdir().unwrap();
        mknodat(CWD, dir.path().join(FILE_NAME), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let peaks = Peaks::open(dir.path());
        peaks.observe(&key("a"), 1000);
        assert_eq!(Peaks::open(dir.path()).need(&key("a"), 1, true), 1050);
    }

    #[test]
    fn a_folder_that_cannot_be_written_costs_the_file_alone() {
        let dir = tempfile::tempdir().unwrap();
        // Root may write anywhere, but nobody can make a file in a file.
        let no_folder = dir.path().join("file");
        std::fs::write(&no_folder, b"").unwrap();
        for state in [no_folder, dir.path().join("absent")] {
            let peaks = Peaks::open(&state);
            peaks.observe(&key("a"), 1000);
            assert_eq!(peaks.need(&key("a"), 1, false), 1050);
        }
    }

    #[test]
    fn the_oldest_make_room() {
        let dir = tempfile::tempdir().unwrap();
        let mut known = PeaksFile::default();
        (0..PEAKS_MAX).for_each(|n| assert!(known.observe(&key(&format!("{n:04}")), 1000)));
        let (file, _) = StateFile::open::<PeaksFile>(dir.path(), FILE_NAME, FORMAT_VERSION);
        file.write(1, &known);
        let peaks = Peaks::open(dir.path());
        peaks.observe(&key("0000"), 2000);
        peaks.observe(&key("new"), 1000);
        for (name, wanted) in [("0000", 2100), ("new", 1050), ("0001", 1), ("0002", 1050)] {
            assert_eq!(peaks.need(&key(name), 1, false), wanted, "{name}");
        }
        assert!(std::fs::metadata(dir.path().join(FILE_NAME)).unwrap().len() < FILE_BYTES_MAX);
    }

    #[test]
    fn a_key_follows_what_decides_memory() {
        let dir = tempfile::tempdir().unwrap();
        let weights = dir.path().join("w.gguf");
        std::fs::write(&weights, b"weights").unwrap();
        let key = |options: &str, sha256: &str, device: &str| {
            let yaml = format!(
                "models:\n  m:\n    type: text\n    plugin: p\n    source: {{path: {}}}\n    options: {options}\n",
                weights.display()
            );
            let env = Env::with("/", [("HOME", "/")]);
            let config = config::parse(&yaml, Path::new("/models.yaml"), &Selection::default(), &env).unwrap();
            let manifest = serde_json::json!({"id": "p", "version": "1.0.0", "kinds": ["text"], "devices": ["cpu"]});
            let manifest = serde_json::from_value(manifest).unwrap();
            let plugin = PluginFile {
                manifest,
                source: "a".into(),
                copy: PluginCopy::of_digest(sha256).into(),
                sha256: sha256.to_owned(),
                library_folders: Vec::new(),
            };
            let model = &config.models["m"];
            Key::new(&plugin, model, Some(device.parse().unwrap()))
        };
        let first = key("{a: 1, b: {c: 2, d: 3}}", "x", "cuda:0");
        assert_eq!(key("{b: {d: 3, c: 2}, a: 1}", "x", "cuda:1"), first, "order and card do not matter");
        assert_ne!(key("{a: 2, b: {c: 2, d: 3}}", "x", "cuda:0"), first, "options do");
        assert_ne!(key("{a: 1, b: {c: 2, d: 3}}", "y", "cuda:0"), first, "the plugin's bytes do");
        assert_ne!(key("{a: 1, b: {c: 2, d: 3}}", "x", "cpu"), first, "the kind of device does");
        std::fs::write(&weights, b"other weights").unwrap();
        assert_ne!(key("{a: 1, b: {c: 2, d: 3}}", "x", "cuda:0"), first, "the weights do");
    }
}
