//! What is kept of a model while it is unloaded, in a folder of its own: what its engine compiled for it, and what the slots of
//! llama.cpp's server had read.

use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use aihost_plugin_api::LoadRequest;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::call::{self, Answer};

/// Where the folders are, in the plugin's own.
const ENGINES: &str = "engines";
/// The file in each that is locked while it is in use, and was written when it was used last.
const USED: &str = "used";
/// Models of which anything is kept, those that were used last.
const FOLDERS_MAX: usize = 8;
/// Most slots that are kept.
const SLOTS_MAX: u64 = 64;
/// How long an engine may take to say how many it has.
const COUNT_LIMIT: Duration = Duration::from_secs(2);
/// How long all of them may take to be kept: the host waits for 30 s in all.
const KEEP_LIMIT: Duration = Duration::from_secs(10);
/// How long all of them may take to be brought back.
const RESTORE_LIMIT: Duration = Duration::from_secs(30);

/// The folder of one model. It is not swept while this lives.
#[derive(Debug)]
pub(crate) struct Kept {
    folder: PathBuf,
    #[expect(dead_code, reason = "its lock is held")]
    used: File,
}

impl Kept {
    /// That of a model as an engine reads it with these words: of other files, or with others, what was kept is of no use.
    pub(crate) fn of(own: &Path, engine: &str, load: &LoadRequest, words: &[String]) -> io::Result<Self> {
        let mut hash = Sha256::new();
        hash.update(format!("{engine}\0{}\0{words:?}", load.device));
        for (role, path) in &load.files {
            let metadata = path.metadata()?;
            let modified = metadata.modified()?.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            hash.update(format!("\0{role}\0{} {modified:?}\0", metadata.len()));
            hash.update(path.as_os_str().as_encoded_bytes());
        }
        let all = own.join(ENGINES);
        let folder = all.join(&format!("{:x}", hash.finalize())[..32]);
        // Conversations are nobody else's.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        let used = File::create(folder.join(USED))?;
        used.lock_shared()?;
        // It is the one that was used last, also if it was there.
        used.set_modified(SystemTime::now())?;
        sweep(&all, &folder);
        Ok(Self { folder, used })
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    fn file(number: u64) -> String {
        format!("slot-{number}.bin")
    }

    /// Brings back what slots had read, and forgets what cannot be brought back.
    pub(crate) fn restore_slots(&self, address: SocketAddr) {
        let until = Instant::now() + RESTORE_LIMIT;
        let (mut restored, begun) = (0, Instant::now());
        let there = slots(address);
        for number in 0..SLOTS_MAX {
            let path = self.folder.join(Self::file(number));
            if !path.is_file() {
                continue;
            }
            if number >= there {
                let _ = fs::remove_file(path);
                continue;
            }
            match self.act(address, number, "restore", until) {
                (Answer::Good, _) => restored += 1,
                (bad, _) => {
                    tracing::info!("what slot {number} had read is not brought back: the engine {}", bad.told())
                }
            }
            // It is in memory now, or of no use; what is kept next may be less.
            let _ = fs::remove_file(path);
        }
        if restored > 0 {
            tracing::info!("what {restored} slots had read is back, in {} ms", begun.elapsed().as_millis());
        }
    }

    /// Has an engine that is about to end write what its slots have read.
    pub(crate) fn keep_slots(&self, address: SocketAddr) {
        let (until, begun) = (Instant::now() + KEEP_LIMIT, Instant::now());
        let mut kept = 0;
        for number in 0..slots(address) {
            match self.act(address, number, "save", until) {
                // It has read nothing.
                (Answer::Good, Some(said)) if said["n_saved"] == 0 => {
                    let _ = fs::remove_file(self.folder.join(Self::file(number)));
                }
                (Answer::Good, _) => kept += 1,
                // No time is left, or it does not want to; half a file is worse than none.
                _ => {
                    let _ = fs::remove_file(self.folder.join(Self::file(number)));
                    break;
                }
            }
        }
        tracing::info!("what {kept} slots have read is kept, in {} ms", begun.elapsed().as_millis());
    }

    fn act(&self, address: SocketAddr, number: u64, action: &str, until: Instant) -> (Answer, Option<Value>) {
        let body = serde_json::json!({"filename": Self::file(number)}).to_string();
        let left = until.saturating_duration_since(Instant::now());
        call::post_for_json(address, &format!("/slots/{number}?action={action}"), &body, left)
    }
}

/// How many slots an engine says that it has; one where it does not. It is not found by asking for one more: to llama.cpp's
/// server the number behind its last slot is its first one again, which it would write, and read, over and over.
fn slots(address: SocketAddr) -> u64 {
    let said = call::get_for_json(address, "/props", COUNT_LIMIT).1;
    said.and_then(|said| said["total_slots"].as_u64()).unwrap_or(1).min(SLOTS_MAX)
}

/// Removes the folders of those that were used longest ago and are not in use.
fn sweep(all: &Path, own: &Path) {
    let entries = fs::read_dir(all).into_iter().flatten().flatten().map(|entry| entry.path());
    let used = |folder: &Path| folder.join(USED).metadata().and_then(|file| file.modified()).ok();
    let mut others: Vec<_> = entries.filter(|folder| folder != own).map(|folder| (used(&folder), folder)).collect();
    others.sort();
    let over = (others.len() + 1).saturating_sub(FOLDERS_MAX);
    for (_, folder) in others.into_iter().take(over) {
        if File::open(folder.join(USED)).is_ok_and(|file| file.try_lock().is_err()) {
            continue;
        }
        if let Err(error) = fs::remove_dir_all(&folder) {
            tracing::warn!("{} cannot be removed: {error}", folder.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_folder_is_of_files_and_words_and_old_ones_go_that_nobody_uses() {
        let own = tempfile::tempdir().unwrap();
        let model = own.path().join("m.gguf");
        fs::write(&model, b"abc").unwrap();
        let load = LoadRequest::new("cpu", BTreeMap::from([("model".to_owned(), model.clone())]));
        let of = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(ToString::to_string).collect();
            Kept::of(own.path(), "llama-server", &load, &words).unwrap()
        };
        let first = of(&[]).folder;
        assert_eq!(first, of(&[]).folder);
        assert_ne!(first, of(&["-c", "1"]).folder);
        fs::write(&model, b"abcd").unwrap();
        let in_use = of(&[]);
        assert_ne!(first, in_use.folder);
        for number in 0..2 * FOLDERS_MAX {
            of(&["-c", &number.to_string()]);
        }
        assert!(fs::read_dir(own.path().join(ENGINES)).unwrap().count() <= FOLDERS_MAX + 1);
        assert!(!first.exists());
        assert!(in_use.folder.exists());
    }
}
