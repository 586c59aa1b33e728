//! One file into its copy: read from its beginning to its end, hashed on the way where its digest is wanted.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::num::NonZeroU64;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{Advice, fadvise};
use sha2::{Digest, Sha256};

use super::super::digest::hex;
use super::super::verify::Verification;
use super::index::identity;

/// Bytes read at once, after which it is seen whether to go on.
const BLOCK_BYTES: usize = 4 << 20;
/// Bytes that the system is asked to read ahead of that.
const AHEAD_BYTES: u64 = 32 << 20;
/// Bytes after which the disk is waited for: what has not reached it takes memory.
const SYNC_BYTES: u64 = 256 << 20;

/// How far a copy is that was stopped.
pub(super) struct Begun {
    identity: String,
    done: u64,
    hasher: Option<Sha256>,
}

impl std::fmt::Debug for Begun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Begun").field("done", &self.done).finish_non_exhaustive()
    }
}

/// A copy that is whole, under the name of its part.
#[derive(Debug)]
pub(super) struct Copied {
    /// The original as it was before and after.
    pub(super) identity: String,
    pub(super) sha256: Option<String>,
}

/// Why there is no copy.
#[derive(Debug)]
pub(super) enum CopyError {
    /// It was stopped here.
    Stopped(Box<Begun>),
    /// The original cannot be read.
    Original(io::Error),
    /// The copy cannot be written.
    Disk(io::Error),
    /// The original was changed meanwhile.
    Changed,
}

/// Copies `from` to `part`, going on where it was stopped if it is the same file still. `is_hashed`: whether its digest is wanted.
pub(super) fn copy(
    from: &Path,
    part: &Path,
    begun: Option<Begun>,
    is_hashed: bool,
    check: &Verification,
) -> Result<Copied, CopyError> {
    let mut original = File::open(from).map_err(CopyError::Original)?;
    let before = identity(&original.metadata().map_err(CopyError::Original)?);
    let begun = begun.filter(|begun| begun.identity == before && (begun.hasher.is_some() || !is_hashed));
    let (done, hasher) = begun.map_or((0, None), |begun| (begun.done, begun.hasher));
    let hasher = hasher.or_else(|| is_hashed.then(Sha256::new));
    original.seek(SeekFrom::Start(done)).map_err(CopyError::Original)?;
    let mut options = OpenOptions::new();
    let mut copy = options.write(true).create(true).truncate(false).mode(0o600).open(part).map_err(CopyError::Disk)?;
    copy.set_len(done).and_then(|()| copy.seek(SeekFrom::Start(done))).map_err(CopyError::Disk)?;
    check.read(done);
    let mut stream = Stream { original, copy, begun: Begun { identity: before, done, hasher } };
    match stream.run(check) {
        Ok(true) => stream.end(),
        Ok(false) => Err(CopyError::Stopped(Box::new(stream.begun))),
        Err(error) => Err(error),
    }
}

struct Stream {
    original: File,
    copy: File,
    begun: Begun,
}

impl Stream {
    /// Whether the end was reached.
    fn run(&mut self, check: &Verification) -> Result<bool, CopyError> {
        // Advice: where it is not taken, it is slower.
        let _ = fadvise(&self.original, 0, None, Advice::Sequential);
        let mut block = vec![0; BLOCK_BYTES];
        let mut unwritten = 0;
        loop {
            if check.is_stopped() {
                return Ok(false);
            }
            let begun = &mut self.begun;
            let _ = fadvise(&self.original, begun.done, NonZeroU64::new(AHEAD_BYTES), Advice::WillNeed);
            let read = match self.original.read(&mut block) {
                Ok(0) => return Ok(true),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(CopyError::Original(error)),
            };
            self.copy.write_all(&block[..read]).map_err(CopyError::Disk)?;
            if let Some(hasher) = &mut begun.hasher {
                hasher.update(&block[..read]);
            }
            // The copy is what will be read: the original's pages would only take memory.
            let _ = fadvise(&self.original, begun.done, NonZeroU64::new(read as u64), Advice::DontNeed);
            begun.done += read as u64;
            check.read(read as u64);
            unwritten += read as u64;
            if unwritten >= SYNC_BYTES {
                self.copy.sync_data().map_err(CopyError::Disk)?;
                unwritten = 0;
            }
        }
    }

    /// All of it is there.
    fn end(self) -> Result<Copied, CopyError> {
        let after = identity(&self.original.metadata().map_err(CopyError::Original)?);
        if after != self.begun.identity {
            return Err(CopyError::Changed);
        }
        // Nobody is to change it by mistake.
        let kept = self.copy.set_permissions(Permissions::from_mode(0o400)).and_then(|()| self.copy.sync_all());
        kept.map_err(CopyError::Disk)?;
        let sha256 = self.begun.hasher.map(|hasher| hex(&hasher.finalize()));
        Ok(Copied { identity: after, sha256 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_that_was_stopped_goes_on_unless_its_original_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let (from, part) = (folder.path().join("from"), folder.path().join("part"));
        std::fs::write(&from, "weights").unwrap();
        let stopped = || {
            let check = Verification::default();
            check.stop();
            match copy(&from, &part, None, true, &check) {
                Err(CopyError::Stopped(begun)) => *begun,
                other => panic!("{other:?}"),
            }
        };
        // As if three bytes had been copied: they are not read again.
        let mut hasher = Sha256::new();
        hasher.update(b"WEI");
        std::fs::write(&part, "WEI").unwrap();
        let begun = Begun { done: 3, hasher: Some(hasher), ..stopped() };
        std::fs::write(&part, "WEIgarbage").unwrap();
        let copied = copy(&from, &part, Some(begun), true, &Verification::default()).unwrap();
        assert_eq!(std::fs::read_to_string(&part).unwrap(), "WEIghts");
        assert_eq!(copied.sha256.unwrap(), hex(&Sha256::digest(b"WEIghts")));

        std::fs::remove_file(&part).unwrap();
        let begun = Begun { done: 3, hasher: None, ..stopped() };
        let copied = copy(&from, &part, Some(begun), true, &Verification::default()).unwrap();
        assert_eq!(copied.sha256.unwrap(), hex(&Sha256::digest(b"weights")), "what was not hashed is read again");

        std::fs::remove_file(&part).unwrap();
        let begun = Begun { done: 3, ..stopped() };
        std::fs::write(&from, "other").unwrap();
        let copied = copy(&from, &part, Some(begun), false, &Verification::default()).unwrap();
        assert_eq!(std::fs::read_to_string(&part).unwrap(), "other");
        assert_eq!(copied.sha256, None);
        assert_eq!(std::fs::metadata(&part).unwrap().permissions().mode() & 0o777, 0o400);
    }

    #[test]
    fn which_of_the_two_failed_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let (from, part) = (folder.path().join("from"), folder.path().join("part"));
        let check = Verification::default();
        assert!(matches!(copy(&from, &part, None, false, &check), Err(CopyError::Original(_))));
        std::fs::write(&from, "weights").unwrap();
        assert!(matches!(copy(&from, &folder.path().join("no/part"), None, false, &check), Err(CopyError::Disk(_))));
        let full = Path::new("/dev/full");
        if full.exists() {
            // It takes no length either, which is as good a failure.
            assert!(matches!(copy(&from, full, None, false, &check), Err(CopyError::Disk(_))));
        }
    }
}
