//! A file out of a wheel, or out of a zip within a wheel: streamed, and never more than the archive declares.

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
    /// Path inside the wheel.
    pub(super) file: String,
    /// Path inside `file`, which is a zip then.
    pub(super) inside: Option<String>,
    /// Where such a zip is put meanwhile.
    pub(super) scratch: PathBuf,
    pub(super) part: PathBuf,
    /// Where in the part it begins; what lies behind that is dropped.
    pub(super) start: u64,
}

impl Extraction {
    /// Takes the file out. `report` is told bytes done and the total.
    pub(super) fn run(&self, report: &dyn Fn(u64, u64)) -> Result<Received, String> {
        match &self.inside {
            None => self.take("the wheel", &self.wheel, &self.file, report),
            Some(inside) => {
                let name = format!("`{}` in the wheel", self.file);
                let mut wheel = Archive::open("the wheel", &self.wheel)?;
                let mut zip = wheel.entry(&self.file)?;
                enough_space(&self.scratch, zip.size())?;
                let text = |e: io::Error| format!("{}: {e}", self.scratch.display());
                let mut scratch = File::create(&self.scratch).map_err(text)?;
                copy("the wheel", &mut zip, &mut scratch, report)?;
                let taken = self.take(&name, &self.scratch, inside, report);
                super::download::remove(&self.scratch);
                taken
            }
        }
    }

    fn take(&self, what: &str, archive: &Path, file: &str, report: &dyn Fn(u64, u64)) -> Result<Received, String> {
        let mut archive = Archive::open(what, archive)?;
        let mut entry = archive.entry(file)?;
        enough_space(&self.part, entry.size())?;
        // What a download noted about the part is untrue from here on.
        forget_origin(&self.part);
        let text = |e: io::Error| format!("{}: {e}", self.part.display());
        let mut part = OpenOptions::new().create(true).truncate(false).write(true).open(&self.part).map_err(text)?;
        part.set_len(self.start).map_err(text)?;
        part.seek(SeekFrom::Start(self.start)).map_err(text)?;
        let received = copy(what, &mut entry, &mut part, report)?;
        part.sync_all().map_err(text)?;
        Ok(received)
    }
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
    entry: &mut ZipFile<'_, File>,
    target: &mut File,
    report: &dyn Fn(u64, u64),
) -> Result<Received, String> {
    let declared = entry.size();
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
