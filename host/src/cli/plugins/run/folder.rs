//! A folder for the state of a host that leaves nothing behind.

use std::fs::{self, DirBuilder};
use std::io::{ErrorKind, Result};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// Names that are tried before the folder for temporary files counts as full of ours.
const NAMES_MAX: u32 = 100;

/// How long it is tried to remove a folder in which somebody may write still.
const REMOVAL: Duration = Duration::from_secs(2);
/// How long it is waited between two tries.
const REMOVAL_PAUSE: Duration = Duration::from_millis(10);

/// A folder of this user alone, gone with all that is in it when it is dropped.
#[derive(Debug)]
pub(super) struct TemporaryFolder(PathBuf);

impl TemporaryFolder {
    /// A new one in this folder.
    ///
    /// # Errors
    /// It cannot be made.
    pub(super) fn within(folder: &Path) -> Result<Self> {
        let process = std::process::id();
        let names = (0..NAMES_MAX).map(|number| folder.join(format!("aihost-run-{process}-{number}")));
        for path in names {
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self(path)),
                // Of a process that had this number and was killed.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(ErrorKind::AlreadyExists.into())
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        let last = Instant::now() + REMOVAL;
        while let Err(error) = fs::remove_dir_all(&self.0) {
            // What a thread writes while its host ends is there a moment later. The command ends, and there is nothing to do
            // about what cannot be removed at all.
            if error.kind() == ErrorKind::NotFound || Instant::now() >= last {
                break;
            }
            thread::sleep(REMOVAL_PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::{TemporaryFolder, fs};

    #[test]
    fn it_is_this_users_alone_and_gone_when_it_is_dropped() {
        let here = tempfile::tempdir().unwrap();
        let folders = [TemporaryFolder::within(here.path()).unwrap(), TemporaryFolder::within(here.path()).unwrap()];
        assert_ne!(folders[0].path(), folders[1].path());
        assert_eq!(fs::metadata(folders[0].path()).unwrap().permissions().mode() & 0o777, 0o700);
        fs::write(folders[1].path().join("x"), "x").unwrap();
        drop(folders);
        assert_eq!(fs::read_dir(here.path()).unwrap().count(), 0);
        TemporaryFolder::within(&here.path().join("absent")).unwrap_err();
    }

    #[test]
    fn it_is_gone_though_somebody_writes_while_it_goes() {
        let here = tempfile::tempdir().unwrap();
        let folder = TemporaryFolder::within(here.path()).unwrap();
        let path = folder.path().to_owned();
        let (begun, has_begun) = std::sync::mpsc::channel();
        let writer = std::thread::spawn(move || {
            let wrote = (0..5000).take_while(|number| fs::write(path.join(number.to_string()), "x").is_ok());
            for number in wrote {
                if number == 50 {
                    begun.send(()).unwrap();
                }
            }
        });
        has_begun.recv().unwrap();
        drop(folder);
        writer.join().unwrap();
        assert_eq!(fs::read_dir(here.path()).unwrap().count(), 0);
    }
}
