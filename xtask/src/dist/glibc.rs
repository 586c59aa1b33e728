//! Which glibc a file needs: the highest version among the symbols that it takes from it.

use std::path::Path;
use std::process::Command;

use crate::error::{Doing, Error, Result};
use crate::shell;

/// That no program and no library of a folder needs a newer glibc than this.
pub(super) fn check(folder: &Path, most: &str) -> Result {
    let bound = version(most).ok_or_else(|| Error(format!("`{most}` is no version")))?;
    let mut looked_at = 0;
    for file in std::iter::once(folder.join("bin/aihost")).chain(libraries(&folder.join(super::PLUGINS))?) {
        let symbols = shell::output(Command::new("readelf").args(["--wide", "--version-info"]).arg(&file))?;
        let needed = newest(&symbols);
        eprintln!("{}: glibc {}.{}", file.display(), needed.0, needed.1);
        if needed > bound {
            return Err(Error(format!("{} needs glibc {}.{}, newer than {most}", file.display(), needed.0, needed.1)));
        }
        looked_at += 1;
    }
    if looked_at < 2 { Err(Error::new("there is no plugin to check")) } else { Ok(()) }
}

fn libraries(folder: &Path) -> Result<Vec<std::path::PathBuf>> {
    let entries = std::fs::read_dir(folder).doing(format_args!("read {}", folder.display()))?;
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    Ok(files)
}

/// The newest of the versions in what `readelf --version-info` says.
fn newest(symbols: &str) -> (u32, u32) {
    let names = symbols.split("GLIBC_").skip(1);
    names
        .filter_map(|rest| version(rest.split(|c: char| !c.is_ascii_digit() && c != '.').next()?))
        .max()
        .unwrap_or((0, 0))
}

fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_counts_by_number() {
        let symbols = "  0x0010:   Name: GLIBC_2.9  Flags: none\n  Name: GLIBC_2.28  Flags\n Name: GLIBC_2.3.4 Flags\n Name: GLIBC_PRIVATE\n";
        assert_eq!(newest(symbols), (2, 28));
        assert_eq!(newest("no symbols"), (0, 0));
    }
}
