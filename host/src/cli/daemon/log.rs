//! The log of a host in the background: a file of its state folder, and the one before it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::cli::failure::CliError;

const FILE: &str = "serve.log";
/// From this size on a start begins a new file.
const FULL_BYTES: u64 = 64 << 20;
/// Lines that are shown of a host that did not come up.
const SHOWN_LINES: usize = 20;
/// Bytes that are looked at for them.
const SHOWN_BYTES: u64 = 16 << 10;

/// A log that a host writes on.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) path: PathBuf,
    /// Where this host's lines begin.
    begins: u64,
}

impl Log {
    /// Opens the log of this state folder to be written on.
    pub(super) fn open(state: &Path) -> Result<(Self, File), CliError> {
        let path = state.join(FILE);
        let failed = |error: io::Error| {
            CliError::failed(format!("{} cannot be written: {error}", path.display()))
                .hint("make the folder writable for this user, or name another: `state_dir:` of models.yaml, AIHOST_STATE_DIR")
        };
        std::fs::DirBuilder::new().recursive(true).create(state).map_err(failed)?;
        if path.metadata().is_ok_and(|found| found.len() > FULL_BYTES) {
            std::fs::rename(&path, path.with_extension("log.1")).map_err(failed)?;
        }
        let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path).map_err(failed)?;
        let begins = file.seek(SeekFrom::End(0)).map_err(failed)?;
        Ok((Self { path: path.clone(), begins }, file))
    }

    /// The last lines of this host.
    pub(super) fn tail(&self) -> Vec<String> {
        let text = || {
            let mut file = File::open(&self.path)?;
            let end = file.seek(SeekFrom::End(0))?;
            file.seek(SeekFrom::Start(self.begins.max(end.saturating_sub(SHOWN_BYTES))))?;
            let mut bytes = Vec::new();
            file.take(SHOWN_BYTES).read_to_end(&mut bytes)?;
            Ok::<_, io::Error>(String::from_utf8_lossy(&bytes).into_owned())
        };
        let text = text().unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(SHOWN_LINES)..].iter().map(|line| (*line).to_owned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn lines_of_a_host_before_are_not_shown_and_a_full_log_is_kept_beside() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("deep/state");
        let (_, mut file) = Log::open(&state).unwrap();
        writeln!(file, "of before").unwrap();
        let (log, mut file) = Log::open(&state).unwrap();
        assert!(log.tail().is_empty());
        for number in 0..30 {
            writeln!(file, "line {number}").unwrap();
        }
        assert_eq!(log.tail(), (10..30).map(|number| format!("line {number}")).collect::<Vec<_>>());
        file.set_len(FULL_BYTES + 1).unwrap();
        let (log, _) = Log::open(&state).unwrap();
        assert_eq!((log.begins, state.join("serve.log.1").metadata().unwrap().len()), (0, FULL_BYTES + 1));
        let error = Log::open(Path::new("/dev/null/state")).unwrap_err();
        assert!(error.to_string().contains("/dev/null/state/serve.log"), "{error}");
    }
}
