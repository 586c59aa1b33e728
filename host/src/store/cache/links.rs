//! What a plugin sees of a folder: the copies, and beside them links to all else that the original has, so that whatever is
//! looked for beside a file is found.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::choose::FILES_MAX;

/// What a link is called until it is in its place.
const FRESH: &str = ".link";

/// Brings the links of `view` up to date with what lies in `original`. `copies`: what is a file there, by its path.
pub(super) fn refresh(original: &Path, view: &Path, copies: &BTreeSet<&str>) -> io::Result<()> {
    folder(original, view, "", copies)
}

/// One folder, and those below it that have copies.
fn folder(original: &Path, view: &Path, below: &str, copies: &BTreeSet<&str>) -> io::Result<()> {
    let mut there = BTreeSet::new();
    for entry in fs::read_dir(original)?.take(FILES_MAX) {
        let entry = entry?;
        let name = entry.file_name();
        let inside = name.to_str().map(|name| format!("{below}{name}"));
        let (from, to) = (entry.path(), view.join(&name));
        there.insert(name);
        let has_copies = |inside: &String| {
            let beneath = format!("{inside}/");
            copies.range(beneath.as_str()..).next().is_some_and(|copy| copy.starts_with(&beneath))
        };
        match inside {
            Some(inside) if copies.contains(inside.as_str()) => {}
            Some(inside) if has_copies(&inside) => folder(&from, &to, &format!("{inside}/"), copies)?,
            _ if fs::read_link(&to).is_ok_and(|leads| leads == from) => {}
            _ => link(&from, &to)?,
        }
    }
    for entry in fs::read_dir(view)? {
        let entry = entry?;
        if !there.contains(&entry.file_name()) && entry.file_type()?.is_symlink() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Makes `to` a link to `from`, whatever it is now: whoever looks finds the one or the other.
pub(super) fn link(from: &Path, to: &Path) -> io::Result<()> {
    if to.symlink_metadata().is_ok_and(|found| found.is_dir()) {
        fs::remove_dir_all(to)?;
    }
    let mut fresh = to.as_os_str().to_owned();
    fresh.push(FRESH);
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(from, &fresh)?;
    fs::rename(&fresh, to)
}

/// Makes the folders above a copy: where a link to the original's folder was, there is a folder from now on.
pub(super) fn make_way(view: &Path, name: &str) -> io::Result<()> {
    fs::create_dir_all(view)?;
    let mut folder = view.to_owned();
    let above = Path::new(name).parent().into_iter().flat_map(Path::components);
    for part in above {
        folder.push(part);
        if fs::symlink_metadata(&folder).is_ok_and(|found| !found.is_dir()) {
            fs::remove_file(&folder)?;
        }
        if !folder.exists() {
            fs::create_dir(&folder)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_lies_beside_a_file_is_found_beside_its_copy() {
        let home = tempfile::tempdir().unwrap();
        let (original, view) = (home.path().join("original"), home.path().join("view"));
        for name in ["a.gguf", "config.json", "unet/d.safetensors", "unet/config.json", "vae/v.safetensors"] {
            let path = original.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "original").unwrap();
        }
        fs::create_dir(&view).unwrap();
        refresh(&original, &view, &BTreeSet::new()).unwrap();
        let read = |name: &str| fs::read_to_string(view.join(name)).ok();
        assert_eq!(read("unet/config.json").as_deref(), Some("original"));
        assert!(view.join("unet").is_symlink());

        let copies: BTreeSet<&str> = ["a.gguf", "unet/d.safetensors"].into();
        for copy in &copies {
            make_way(&view, copy).unwrap();
            fs::write(view.join("fresh"), "copy").unwrap();
            fs::rename(view.join("fresh"), view.join(copy)).unwrap();
        }
        fs::remove_file(original.join("config.json")).unwrap();
        fs::write(original.join("new.json"), "original").unwrap();
        refresh(&original, &view, &copies).unwrap();
        for (name, content) in [
            ("a.gguf", Some("copy")),
            ("unet/d.safetensors", Some("copy")),
            ("unet/config.json", Some("original")),
            ("vae/v.safetensors", Some("original")),
            ("new.json", Some("original")),
            ("config.json", None),
        ] {
            assert_eq!(read(name).as_deref(), content, "{name}");
        }
        assert_eq!(fs::read_to_string(original.join("unet/d.safetensors")).unwrap(), "original");

        // Both copies leave again: one by a link in its place, one with its folder.
        link(&original.join("a.gguf"), &view.join("a.gguf")).unwrap();
        refresh(&original, &view, &BTreeSet::new()).unwrap();
        assert_eq!(read("a.gguf").as_deref(), Some("original"));
        assert!(view.join("unet").is_symlink());
        assert_eq!(read("unet/d.safetensors").as_deref(), Some("original"));
    }
}
