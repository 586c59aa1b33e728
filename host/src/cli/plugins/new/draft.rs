//! A folder that is there as a whole or not at all: written under a name that nobody looks at, then renamed.

use std::borrow::Cow;
use std::fs;
use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

/// A file that is to be: its path within the folder, and its bytes.
pub(super) type NewFile = (String, Cow<'static, [u8]>);

/// Removed again unless it became what it was written for.
struct Draft(PathBuf);

impl Drop for Draft {
    fn drop(&mut self) {
        // Where it was renamed there is nothing. What cannot be removed is what the error that is on its way already tells of.
        fs::remove_dir_all(&self.0).unwrap_or_default();
    }
}

/// Makes a folder with these files, which was not there before.
///
/// # Errors
/// It is there already, or something cannot be written; then nothing is left behind.
pub(super) fn create(folder: &Path, files: &[NewFile]) -> Result<()> {
    if folder.symlink_metadata().is_ok() {
        return Err(ErrorKind::AlreadyExists.into());
    }
    let name = folder.file_name().ok_or(ErrorKind::InvalidInput)?.to_string_lossy();
    let draft = folder.with_file_name(format!(".{name}.{}", std::process::id()));
    fs::create_dir(&draft)?;
    let draft = Draft(draft);
    for (path, bytes) in files {
        let path = draft.0.join(path);
        let parent = path.parent().ok_or(ErrorKind::InvalidInput)?;
        fs::create_dir_all(parent)?;
        fs::write(path, bytes)?;
    }
    match renameat_with(CWD, &draft.0, CWD, folder, RenameFlags::NOREPLACE) {
        // Some file systems cannot promise it. Whoever made the folder meanwhile keeps it, unless it is empty.
        Err(rustix::io::Errno::INVAL) => fs::rename(&draft.0, folder),
        renamed => renamed.map_err(Error::from),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::{ErrorKind, NewFile, create};

    fn files(paths: &[&str]) -> Vec<NewFile> {
        paths.iter().map(|path| ((*path).to_owned(), b"x".as_slice().into())).collect()
    }

    #[test]
    fn a_folder_is_there_as_a_whole_or_not_at_all() {
        let here = tempfile::tempdir().unwrap();
        let names = || {
            let entries = std::fs::read_dir(here.path()).unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
        };
        // A file whose folder is a file cannot be written, after others were.
        create(&here.path().join("a"), &files(&["x/y", "z", "z/below"])).unwrap_err();
        assert_eq!(names(), Vec::<String>::new());
        create(&here.path().join("a"), &files(&["x/y", "z"])).unwrap();
        assert_eq!(names(), ["a"]);
        assert!(here.path().join("a/x/y").is_file());
        assert_eq!(create(&here.path().join("a"), &files(&["z"])).unwrap_err().kind(), ErrorKind::AlreadyExists);
        std::os::unix::fs::symlink("nowhere", here.path().join("b")).unwrap();
        assert_eq!(create(&here.path().join("b"), &files(&["z"])).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(create(&here.path().join("c/d"), &files(&["z"])).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(create(&PathBuf::from("/"), &files(&["z"])).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(names().len(), 2, "{:?}", names());
    }
}
