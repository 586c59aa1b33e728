//! Who beside the host's user could change a file or a folder that the host relies on.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::Mode;
use rustix::process::geteuid;

/// What else may be done, where permissions are not kept or others are trusted.
const OTHERWISE: &str = " (where its volume keeps no permissions: `allow_shared_folders: true` in models.yaml)";

/// What is done about files and folders that other users may change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sharing {
    /// They are not used.
    #[default]
    Refused,
    /// They are used all the same (`allow_shared_folders`).
    Allowed,
}

impl Sharing {
    /// Why what lies here is not to be relied on, and the command that mends it. What is not there is no complaint.
    ///
    /// # Errors
    /// Another user owns it, or may write it.
    pub fn check(self, path: &Path) -> Result<(), String> {
        match std::fs::metadata(path) {
            Ok(found) if self == Self::Refused => judge(path, &found, geteuid().as_raw()),
            _ => Ok(()),
        }
    }

    /// The same of a file, of the folder where it lies, and of what both are links to.
    ///
    /// # Errors
    /// Another user owns one of them, or may write it.
    pub fn check_file(self, file: &Path) -> Result<(), String> {
        if self == Self::Allowed {
            return Ok(());
        }
        let folder_of = |path: &Path| path.parent().map(Path::to_owned).into_iter();
        let target = file.canonicalize().unwrap_or_else(|_| file.to_owned());
        let folders = folder_of(file).chain(folder_of(&target));
        folders.chain([target.clone()]).try_for_each(|path| self.check(&path))
    }
}

/// By the numbers of user and group alone: names are for people, and a container may know none.
fn judge(path: &Path, found: &Metadata, user: u32) -> Result<(), String> {
    let shown = path.display();
    if ![0, user].contains(&found.uid()) {
        let owner = found.uid();
        return Err(format!(
            "{shown} belongs to user {owner}, who can put something else in its place; `chown {user} {shown}` mends it{OTHERWISE}"
        ));
    }
    let (who, mend) = match Mode::from_raw_mode(found.mode()) {
        // In a sticky folder nobody removes or renames what is not theirs.
        mode if found.is_dir() && mode.contains(Mode::SVTX) => return Ok(()),
        mode if mode.contains(Mode::WOTH) => ("any user may write".to_owned(), "go-w"),
        // A group with its user's own number is that user's alone, and that of root is root's.
        mode if mode.contains(Mode::WGRP) && ![0, user].contains(&found.gid()) => {
            (format!("members of group {} may write", found.gid()), "g-w")
        }
        _ => return Ok(()),
    };
    Err(format!("{who} {shown}, and put something else in its place; `chmod {mend} {shown}` mends it{OTHERWISE}"))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    #[test]
    fn what_others_may_change_is_told_with_the_command_that_mends_it() {
        let folder = tempfile::tempdir().unwrap();
        let (file, user) = (folder.path().join("a.so"), geteuid().as_raw());
        fs::write(&file, "x").unwrap();
        let own_group = fs::metadata(&file).unwrap().gid();
        let shown = file.display();
        for (mode, wanted) in [
            (0o644, None),
            (0o500, None),
            (0o666, Some(format!("`chmod go-w {shown}`"))),
            (0o602, Some(format!("`chmod go-w {shown}`"))),
            (0o664, (![0, user].contains(&own_group)).then(|| format!("`chmod g-w {shown}`"))),
        ] {
            fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
            let found = Sharing::Refused.check_file(&file).err();
            match (&found, &wanted) {
                (Some(found), Some(wanted)) => assert!(found.contains(wanted), "{mode:o}: {found}"),
                _ => assert_eq!(found, wanted, "{mode:o}"),
            }
            assert_eq!(Sharing::Allowed.check_file(&file), Ok(()));
        }
        // Of another user, to whom this one is a stranger.
        fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
        let found = fs::metadata(&file).unwrap();
        let told = judge(&file, &found, user + 1);
        assert_eq!(told.is_ok(), user == 0, "root's files are everyone's to rely on: {told:?}");
        if user == 0 {
            chown(&file, Some(4242), Some(4242)).unwrap();
            let told = Sharing::Refused.check_file(&file).unwrap_err();
            assert!(told.contains("user 4242") && told.contains(&format!("`chown 0 {shown}`")), "{told}");
            chown(&file, Some(0), Some(4242)).unwrap();
            fs::set_permissions(&file, Permissions::from_mode(0o664)).unwrap();
            let told = Sharing::Refused.check_file(&file).unwrap_err();
            assert!(told.contains("group 4242") && told.contains(&format!("`chmod g-w {shown}`")), "{told}");
        }
    }

    #[test]
    fn the_folder_of_a_file_counts_and_what_a_link_leads_to() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("open")).unwrap();
        fs::create_dir(at("own")).unwrap();
        fs::write(at("open/x"), "x").unwrap();
        symlink(at("open/x"), at("own/x")).unwrap();
        for (mode, refused) in [(0o755, false), (0o777, true), (0o1777, false)] {
            fs::set_permissions(at("open"), Permissions::from_mode(mode)).unwrap();
            for file in ["open/x", "own/x"] {
                assert_eq!(Sharing::Refused.check_file(&at(file)).is_err(), refused, "{file} {mode:o}");
            }
        }
        assert_eq!(Sharing::Refused.check(&at("absent")), Ok(()));
    }
}
