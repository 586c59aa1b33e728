//! Files that answers name by URL: written once under a name that nobody can guess, gone after a while.
//!
//! The folder is the whole state, so files outlive a restart: a file's age is its modification time, its type the ending
//! of its name. Nothing here knows what the bytes mean.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

use crate::domain::ByteSize;

/// Hexadecimal digits of a name: 128 random bits.
const NAME_DIGITS: usize = 32;
/// The ending of a file that is being written. No [`Media`] has it, so it is never served.
const UNFINISHED: &str = "part";

/// What a file is, which its name's ending says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Media {
    /// RIFF WAVE.
    Wav,
    /// Free Lossless Audio Codec.
    Flac,
    /// Portable Network Graphics.
    Png,
    /// JPEG.
    Jpeg,
    /// WebP.
    Webp,
}

impl Media {
    const ALL: [Self; 5] = [Self::Wav, Self::Flac, Self::Png, Self::Jpeg, Self::Webp];

    /// The ending of its files.
    pub fn ending(self) -> &'static str {
        match self {
            Self::Wav => "wav",
            Self::Flac => "flac",
            Self::Png => "png",
            Self::Jpeg => "jpg",
            Self::Webp => "webp",
        }
    }

    /// Its `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Wav => "audio/wav",
            Self::Flac => "audio/flac",
            Self::Png => "image/png",
            Self::Jpeg => "image/jpeg",
            Self::Webp => "image/webp",
        }
    }
}

/// How long files stay, and how much they may take together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArtifactLimits {
    /// From writing to removal (`artifact_ttl`).
    pub ttl: Duration,
    /// All files together; the oldest make room (`artifact_bytes`).
    pub bytes: ByteSize,
}

/// Why a file was not kept. It concerns the one request alone.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// Larger than the store may be.
    #[error("a file of {size} is larger than all of them may be together, {limit}; raise `limits: artifact_bytes:`")]
    TooLarge {
        /// Of the file.
        size: ByteSize,
        /// Of the store.
        limit: ByteSize,
    },
    /// The disk is full.
    #[error("the disk of {} is full", .0.display())]
    Full(PathBuf),
    /// Anything else.
    #[error("{} cannot be written", .0.display())]
    Io(PathBuf, #[source] io::Error),
}

/// The folder of such files.
#[derive(Debug)]
pub struct Artifacts {
    folder: PathBuf,
    /// One writer makes room at a time.
    writing: Mutex<()>,
}

/// A file as it lies there.
struct Entry {
    path: PathBuf,
    bytes: u64,
    written: SystemTime,
}

impl Artifacts {
    /// Files in this folder, which is made when the first one is kept.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder, writing: Mutex::new(()) }
    }

    /// Keeps a file and gives its name. The oldest ones go if there is no room. Blocks on the disk.
    ///
    /// # Errors
    /// If it is too large or the disk does not take it.
    pub fn put(&self, bytes: &[u8], media: Media, limits: ArtifactLimits) -> Result<String, ArtifactError> {
        let size = ByteSize(bytes.len() as u64);
        if size > limits.bytes {
            return Err(ArtifactError::TooLarge { size, limit: limits.bytes });
        }
        let _one = self.writing.lock();
        let failed = |error| failure(&self.folder, error);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder).map_err(failed)?;
        self.make_room(limits.bytes.0 - size.0, limits.ttl);
        let name = format!("{:032x}.{}", rand::random::<u128>(), media.ending());
        let path = self.folder.join(&name);
        let unfinished = path.with_extension(UNFINISHED);
        let written = write(&unfinished, bytes).and_then(|()| fs::rename(&unfinished, &path));
        if let Err(error) = written {
            let _ = fs::remove_file(&unfinished);
            return Err(failed(error));
        }
        Ok(name)
    }

    /// Where a file lies and what it is; nothing for a name that never was, or is too old. Blocks on the disk.
    pub fn find(&self, name: &str, ttl: Duration) -> Option<(PathBuf, Media)> {
        let media = media_of(name)?;
        let path = self.folder.join(name);
        let metadata = fs::metadata(&path).ok().filter(fs::Metadata::is_file)?;
        (age(metadata.modified().ok()?) < ttl).then_some((path, media))
    }

    /// Removes what is too old or too much, and what a crash left unfinished. Blocks on the disk.
    pub fn sweep(&self, limits: ArtifactLimits) {
        let _one = self.writing.lock();
        self.make_room(limits.bytes.0, limits.ttl);
    }

    /// Removes old and unfinished files, then the oldest until the rest is within `bytes`. Only the writer calls it, so an
    /// unfinished file is nobody's.
    fn make_room(&self, bytes: u64, ttl: Duration) {
        let mut entries = self.entries();
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.written));
        let mut kept = 0u64;
        for entry in entries {
            kept = kept.saturating_add(entry.bytes);
            let unfinished = entry.path.extension().is_some_and(|ending| ending == UNFINISHED);
            if (unfinished || kept > bytes || age(entry.written) >= ttl)
                && let Err(error) = fs::remove_file(&entry.path)
            {
                tracing::warn!(file = %entry.path.display(), %error, "an old answer's file cannot be removed");
            }
        }
    }

    /// The files that are ours, by their names.
    fn entries(&self) -> Vec<Entry> {
        let Ok(folder) = fs::read_dir(&self.folder) else { return Vec::new() };
        let entry = |found: io::Result<fs::DirEntry>| {
            let found = found.ok()?;
            let name = found.file_name();
            let name = name.to_str()?;
            let unfinished = name.strip_suffix(UNFINISHED).is_some_and(|rest| is_stem(rest.trim_end_matches('.')));
            if !unfinished && media_of(name).is_none() {
                return None;
            }
            let metadata = found.metadata().ok()?;
            Some(Entry { path: found.path(), bytes: metadata.len(), written: metadata.modified().ok()? })
        };
        folder.filter_map(entry).collect()
    }
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)
}

fn failure(folder: &Path, error: io::Error) -> ArtifactError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ArtifactError::Full(folder.to_owned()),
        _ => ArtifactError::Io(folder.to_owned(), error),
    }
}

/// The media of a name that this store may have given.
fn media_of(name: &str) -> Option<Media> {
    let (stem, ending) = name.split_once('.')?;
    is_stem(stem).then(|| Media::ALL.into_iter().find(|media| media.ending() == ending)).flatten()
}

fn is_stem(stem: &str) -> bool {
    stem.len() == NAME_DIGITS && stem.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// A file from the future is new.
fn age(written: SystemTime) -> Duration {
    SystemTime::now().duration_since(written).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn limits(bytes: u64) -> ArtifactLimits {
        ArtifactLimits { ttl: HOUR, bytes: ByteSize(bytes) }
    }

    fn store() -> (tempfile::TempDir, Artifacts) {
        let folder = tempfile::tempdir().unwrap();
        let artifacts = Artifacts::new(folder.path().join("artifacts"));
        (folder, artifacts)
    }

    fn make_older(path: &Path, by: Duration) {
        File::options().write(true).open(path).unwrap().set_modified(SystemTime::now() - by).unwrap();
    }

    #[test]
    fn a_file_is_found_by_its_name_until_it_is_too_old() {
        let (_folder, artifacts) = store();
        let name = artifacts.put(b"sound", Media::Wav, limits(100)).unwrap();
        let (path, media) = artifacts.find(&name, HOUR).unwrap();
        assert_eq!((fs::read(&path).unwrap().as_slice(), media), (b"sound".as_slice(), Media::Wav));
        assert_ne!(name, artifacts.put(b"sound", Media::Wav, limits(100)).unwrap());
        make_older(&path, HOUR);
        assert_eq!(artifacts.find(&name, HOUR), None);
        assert!(path.exists(), "looking removes nothing");
        artifacts.sweep(limits(100));
        assert!(!path.exists());
    }

    #[test]
    fn the_oldest_make_room() {
        let (_folder, artifacts) = store();
        let names: Vec<_> = (0..4u64)
            .map(|i| {
                let name = artifacts.put(&[0; 10], Media::Png, limits(30)).unwrap();
                make_older(&artifacts.find(&name, HOUR).unwrap().0, Duration::from_secs(60 - 10 * i));
                name
            })
            .collect();
        let left: Vec<_> = names.iter().map(|name| artifacts.find(name, HOUR).is_some()).collect();
        assert_eq!(left, [false, true, true, true]);
        artifacts.sweep(limits(15));
        let left: Vec<_> = names.iter().map(|name| artifacts.find(name, HOUR).is_some()).collect();
        assert_eq!(left, [false, false, false, true]);
        let error = artifacts.put(&[0; 31], Media::Png, limits(30)).unwrap_err();
        assert!(error.to_string().contains("artifact_bytes"), "{error}");
    }

    #[test]
    fn other_names_and_other_files_are_nobodys() {
        let (folder, artifacts) = store();
        let name = artifacts.put(b"x", Media::Flac, limits(10)).unwrap();
        let own = artifacts.find(&name, HOUR).unwrap().0;
        let (stranger, left) = (own.with_file_name("notes.txt"), own.with_extension(UNFINISHED));
        fs::write(&stranger, [0; 100]).unwrap();
        fs::write(&left, b"half").unwrap();
        fs::write(folder.path().join("secret.wav"), b"x").unwrap();
        for name in ["", ".", "../secret.wav", "notes.txt", left.file_name().unwrap().to_str().unwrap(), "a.wav"] {
            assert_eq!(artifacts.find(name, HOUR), None, "{name}");
        }
        artifacts.sweep(limits(10));
        assert!(stranger.exists() && own.exists() && !left.exists());
    }

    #[test]
    fn a_disk_that_takes_nothing_is_said() {
        assert!(matches!(
            failure(Path::new("x"), write(Path::new("/dev/full"), b"x").unwrap_err()),
            ArtifactError::Full(_)
        ));
        let folder = tempfile::tempdir().unwrap();
        let occupied = folder.path().join("artifacts");
        fs::write(&occupied, b"").unwrap();
        let error = Artifacts::new(occupied.clone()).put(b"x", Media::Wav, limits(10)).unwrap_err();
        assert!(error.to_string().contains(&occupied.display().to_string()), "{error}");
    }
}
