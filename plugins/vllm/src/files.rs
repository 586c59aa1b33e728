//! A model's files as an engine wants them: one file, or one folder with all of them.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use aihost_plugin_api::LoadRequest;

/// The role of a model of one file, or of one folder.
const MODEL: &str = "model";
/// The folder of links, in what is kept of the model.
const LINKS: &str = "files";

/// The file of role `model`, or a folder that has the files of all roles under their own names: the one in which they lie, or one
/// of links within `kept`.
///
/// # Errors
/// Why there is none.
pub(crate) fn path(load: &LoadRequest, kept: Option<&Path>) -> Result<PathBuf, String> {
    if load.files.contains_key(MODEL) || load.files.is_empty() {
        return load.file(MODEL).map(Path::to_path_buf).map_err(|e| e.message().to_owned());
    }
    let mut folders = load.files.values().map(|file| file.parent());
    let first = folders.next().flatten();
    if let Some(folder) = first.filter(|folder| folders.all(|other| other == Some(folder))) {
        return Ok(folder.to_path_buf());
    }
    let links =
        kept.ok_or("the model has several files in several folders, and there is nowhere to bring them together")?;
    let links = links.join(LINKS);
    link(load, &links)
        .map_err(|e| format!("{} cannot have the model's files brought together: {e}", links.display()))?;
    Ok(links)
}

/// Links to the files, and to nothing else.
fn link(load: &LoadRequest, folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => fs::create_dir_all(folder)?,
    }
    for file in load.files.values() {
        if let Some(name) = file.file_name() {
            symlink(file, folder.join(name))?;
        }
    }
    Ok(())
}

/// Bytes of all of them; a folder counts what lies in it.
pub(crate) fn bytes(load: &LoadRequest) -> u64 {
    load.files.values().map(|file| bytes_of(file)).sum()
}

fn bytes_of(path: &Path) -> u64 {
    let Ok(metadata) = path.metadata() else { return 0 };
    if !metadata.is_dir() {
        return metadata.len();
    }
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.path().metadata().ok()).filter(fs::Metadata::is_file).map(|file| file.len()).sum()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn files_of_several_roles_are_one_folder() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            path
        };
        let load = |files: &[(&str, &PathBuf)]| {
            let files = files.iter().map(|(role, path)| ((*role).to_owned(), (*path).clone()));
            LoadRequest::new("cpu", files.collect::<BTreeMap<_, _>>())
        };
        let (config, weights) = (file("a/config.json", "{}"), file("a/model.safetensors", "123"));
        let together = load(&[("config", &config), ("weights", &weights)]);
        assert_eq!(path(&together, None), Ok(folder.path().join("a")));
        assert_eq!(bytes(&together), 5);

        let elsewhere = file("b/tokenizer.json", "1234");
        let apart = load(&[("config", &config), ("weights", &weights), ("tokenizer", &elsewhere)]);
        path(&apart, None).expect_err("there is nowhere for links");
        let kept = folder.path().join("kept");
        for _ in 0..2 {
            let links = path(&apart, Some(&kept)).unwrap();
            let mut names: Vec<_> = fs::read_dir(&links).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            assert_eq!(names, ["config.json", "model.safetensors", "tokenizer.json"]);
            assert_eq!(fs::read_to_string(links.join("tokenizer.json")).unwrap(), "1234");
        }
        let one = load(&[("model", &folder.path().join("a"))]);
        assert_eq!((path(&one, None), bytes(&one)), (Ok(folder.path().join("a")), 5));
        assert!(path(&load(&[]), None).unwrap_err().contains("no file `model`"));
    }
}
