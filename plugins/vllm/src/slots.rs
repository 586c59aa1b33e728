//! What an engine has read of its conversations, kept in files while it is away: llama.cpp's slots.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use sha2::{Digest, Sha256};

use super::health::{self, Health};

/// Slots that are asked for; an engine says by an error that it has fewer.
const SLOTS_MAX: usize = 64;
/// How long all of them may take to be kept: the host waits for 30 s in all.
const KEEP_LIMIT: Duration = Duration::from_secs(10);
/// How long all of them may take to be brought back.
const RESTORE_LIMIT: Duration = Duration::from_secs(30);
/// Models whose slots are kept, those that were used last.
const FOLDERS_MAX: usize = 8;

/// The files of one model's slots.
#[derive(Debug)]
pub(crate) struct Slots {
    folder: PathBuf,
}

impl Slots {
    /// Those of a model as an engine reads it with these arguments: of another file, or with others, what it had read is of no use.
    pub(crate) fn of(own: &Path, program: &Path, model: &Path, args: &[String]) -> io::Result<Self> {
        let metadata = model.metadata()?;
        let modified = metadata.modified()?.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mut hash = Sha256::new();
        for part in [program.as_os_str(), model.as_os_str()] {
            hash.update(part.as_encoded_bytes());
            hash.update([0]);
        }
        hash.update(format!("{} {modified:?} {args:?}", metadata.len()));
        let all = own.join("slots");
        let folder = all.join(&format!("{:x}", hash.finalize())[..32]);
        // Conversations are nobody else's.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        let slots = Self { folder };
        slots.used()?;
        sweep(&all, &slots.folder);
        Ok(slots)
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// This is the one that was used last.
    fn used(&self) -> io::Result<()> {
        fs::write(self.folder.join("used"), b"")
    }

    fn file(number: usize) -> String {
        format!("slot-{number}.bin")
    }

    /// Brings back what was kept, and forgets what cannot be.
    pub(crate) fn restore(&self, address: SocketAddr) {
        let until = Instant::now() + RESTORE_LIMIT;
        let (mut restored, begun) = (0, Instant::now());
        for number in 0..SLOTS_MAX {
            let path = self.folder.join(Self::file(number));
            if !path.is_file() {
                continue;
            }
            match self.act(address, number, "restore", until) {
                Health::Good => restored += 1,
                bad => tracing::info!("what slot {number} had read is not brought back: the engine {}", bad.told()),
            }
            // It is in memory now, or of no use; what is kept next may be less.
            let _ = fs::remove_file(path);
        }
        if restored > 0 {
            tracing::info!("what {restored} slots had read is back, in {} ms", begun.elapsed().as_millis());
        }
    }

    /// Has an engine that is about to end write what it has read.
    pub(crate) fn keep(&self, address: SocketAddr) {
        let (until, begun) = (Instant::now() + KEEP_LIMIT, Instant::now());
        let mut kept = 0;
        for number in 0..SLOTS_MAX {
            match self.act(address, number, "save", until) {
                Health::Good => kept += 1,
                // There is none of this number, or no time is left; half a file is worse than none.
                _ => {
                    let _ = fs::remove_file(self.folder.join(Self::file(number)));
                    break;
                }
            }
        }
        tracing::info!("what {kept} slots have read is kept, in {} ms", begun.elapsed().as_millis());
    }

    fn act(&self, address: SocketAddr, number: usize, action: &str, until: Instant) -> Health {
        let body = serde_json::json!({"filename": Self::file(number)}).to_string();
        let left = until.saturating_duration_since(Instant::now());
        health::post(address, &format!("/slots/{number}?action={action}"), &body, left)
    }
}

/// Removes the folders of those that were used longest ago.
fn sweep(all: &Path, own: &Path) {
    let entries = fs::read_dir(all).into_iter().flatten().flatten().map(|entry| entry.path());
    let used = |folder: &Path| folder.join("used").metadata().and_then(|file| file.modified()).ok();
    let mut others: Vec<_> = entries.filter(|folder| folder != own).map(|folder| (used(&folder), folder)).collect();
    others.sort();
    let over = (others.len() + 1).saturating_sub(FOLDERS_MAX);
    for (_, folder) in others.into_iter().take(over) {
        if let Err(error) = fs::remove_dir_all(&folder) {
            tracing::warn!("{} cannot be removed: {error}", folder.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_of_a_file_and_its_arguments_and_old_ones_go() {
        let own = tempfile::tempdir().unwrap();
        let model = own.path().join("m.gguf");
        fs::write(&model, b"abc").unwrap();
        let of = |args: &[&str]| {
            let args: Vec<String> = args.iter().map(ToString::to_string).collect();
            Slots::of(own.path(), Path::new("/bin/llama-server"), &model, &args).unwrap().folder
        };
        let first = of(&[]);
        assert_eq!(first, of(&[]));
        assert_ne!(first, of(&["-c", "1"]));
        fs::write(&model, b"abcd").unwrap();
        assert_ne!(first, of(&[]));
        for number in 0..2 * FOLDERS_MAX {
            of(&["-c", &number.to_string()]);
        }
        assert_eq!(fs::read_dir(own.path().join("slots")).unwrap().count(), FOLDERS_MAX);
        assert!(!first.exists());
    }
}
