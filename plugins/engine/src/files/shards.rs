//! Which files a checkpoint of the Hugging Face hub's layout is made of.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use aihost_plugin_api::{Error, ErrorKind, Result};

/// The files a folder may hold, most wanted first.
const NAMES: [&str; 6] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];

/// The file of `path` that leads to the others: of a folder, the one that a checkpoint begins with.
///
/// # Errors
/// [`ErrorKind::MissingFile`] if a folder holds none.
pub fn checkpoint(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    NAMES.iter().map(|name| path.join(name)).find(|file| file.is_file()).ok_or_else(|| {
        let text = format!("{} holds no checkpoint; one of these is needed: {}", path.display(), NAMES.join(", "));
        Error::new(ErrorKind::MissingFile, text)
    })
}

/// All files of a checkpoint that begins with `file`, which is an index of shards, the first of them, or all there is.
///
/// # Errors
/// [`ErrorKind::CorruptFile`] for an index that cannot be read.
pub fn shards(file: &Path) -> Result<Vec<PathBuf>> {
    let folder = file.parent().unwrap_or(Path::new(""));
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if name.ends_with(".index.json") {
        let corrupt = |why: &dyn std::fmt::Display| {
            Error::new(ErrorKind::CorruptFile, format!("{} cannot be read: {why}; fetch it again", file.display()))
        };
        let text = std::fs::read_to_string(file).map_err(|error| corrupt(&error))?;
        let index: serde_json::Value = serde_json::from_str(&text).map_err(|error| corrupt(&error))?;
        let map = index["weight_map"].as_object().ok_or_else(|| corrupt(&"it has no `weight_map`"))?;
        // A name with a folder in it could lead anywhere.
        let names: BTreeSet<&str> = map.values().filter_map(|name| name.as_str()).collect();
        if names.iter().any(|name| name.contains(['/', '\\'])) {
            return Err(corrupt(&"it names a shard in another folder"));
        }
        return Ok(names.into_iter().map(|name| folder.join(name)).collect());
    }
    Ok(shard_names(name).map_or_else(|| vec![file.to_owned()], |names| names.map(|name| folder.join(name)).collect()))
}

/// `x-00001-of-00003.ext` is the first of three; other names are single files.
fn shard_names(name: &str) -> Option<impl Iterator<Item = String>> {
    let (stem, rest) = name.split_once("-00001-of-")?;
    let (count, extension) = rest.split_once('.')?;
    let (stem, extension, width) = (stem.to_owned(), extension.to_owned(), count.len());
    let count: u32 = count.parse().ok().filter(|count| (1..=999).contains(count))?;
    Some((1..=count).map(move |i| format!("{stem}-{i:05}-of-{count:0width$}.{extension}")))
}

#[cfg(test)]
mod tests {
    use super::shard_names;

    #[test]
    fn shards_follow_from_the_first_name() {
        let names = |name| shard_names(name).map(Iterator::collect::<Vec<_>>);
        assert_eq!(names("model.safetensors"), None);
        let wanted = ["m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors"].map(str::to_owned);
        assert_eq!(names("m-00001-of-00002.safetensors"), Some(wanted.to_vec()));
        assert_eq!(names("m-00001-of-99999.bin"), None);
    }
}
