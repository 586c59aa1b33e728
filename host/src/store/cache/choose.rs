//! Which files of a model are copied: those that its entry names, the other parts of a file in parts, and of a folder that a
//! plugin reads as a whole its weights. Whatever else lies beside them is linked to, for it is small or not wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Bytes of an index of shards that is read.
const INDEX_BYTES_MAX: u64 = 64 << 20;
/// Folders below one that is read as a whole that are looked into.
const DEPTH_MAX: usize = 8;
/// Files of one folder that are looked at.
pub(super) const FILES_MAX: usize = 4096;
/// Parts of a file.
const PARTS_MAX: u32 = 999;

/// A folder of model files, and what of it is wanted for one model.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chosen {
    pub(super) folder: PathBuf,
    /// By their paths in the folder.
    pub(super) files: BTreeMap<String, Wanted>,
    /// What of it each role names; nothing for the folder itself.
    pub(super) roles: BTreeMap<String, Option<PathBuf>>,
}

/// A file that is to be copied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The digest that models.yaml wants of it.
    pub(super) sha256: Option<String>,
    /// The role that names it.
    pub(super) role: Option<String>,
}

/// The folders of a model's files. `digests`: what models.yaml wants of roles.
pub(super) fn choose(files: &BTreeMap<String, PathBuf>, digests: &BTreeMap<String, String>) -> Vec<Chosen> {
    let mut chosen: BTreeMap<PathBuf, Chosen> = BTreeMap::new();
    for (role, path) in files {
        if path.is_dir() {
            let Ok(folder) = path.canonicalize() else { continue };
            let entry = of(&mut chosen, folder);
            entry.roles.insert(role.clone(), None);
            for name in weights(&entry.folder) {
                entry.files.entry(name).or_default();
            }
            continue;
        }
        // The name stays as it is: a link of a hub's cache leads to a file that is called by its digest.
        let (Some(folder), Some(name)) =
            (path.parent().and_then(|folder| folder.canonicalize().ok()), path.file_name())
        else {
            continue;
        };
        let entry = of(&mut chosen, folder);
        entry.roles.insert(role.clone(), Some(PathBuf::from(name)));
        let Some(name) = name.to_str() else { continue };
        for part in parts(&entry.folder, name) {
            entry.files.entry(part).or_default();
        }
        let sha256 = digests.get(role).cloned();
        entry.files.insert(name.to_owned(), Wanted { sha256, role: Some(role.clone()) });
    }
    chosen.into_values().collect()
}

fn of(chosen: &mut BTreeMap<PathBuf, Chosen>, folder: PathBuf) -> &mut Chosen {
    let empty = || Chosen { folder: folder.clone(), files: BTreeMap::new(), roles: BTreeMap::new() };
    chosen.entry(folder.clone()).or_insert_with(empty)
}

/// The other parts of a file, as far as they are there: `x-00001-of-00003.gguf`, or what an index of shards names.
fn parts(folder: &Path, name: &str) -> Vec<String> {
    let mut names = if name.ends_with(".index.json") { shards(&folder.join(name)) } else { numbered(name) };
    names.retain(|part| part != name && folder.join(part).is_file());
    names
}

/// A name with a folder in it could lead anywhere.
fn shards(index: &Path) -> Vec<String> {
    let mut text = Vec::new();
    let read = File::open(index).and_then(|file| file.take(INDEX_BYTES_MAX).read_to_end(&mut text));
    let index: serde_json::Value =
        read.ok().and_then(|_| serde_json::from_slice(&text).ok()).unwrap_or(serde_json::Value::Null);
    let map = index["weight_map"].as_object();
    let names: BTreeSet<&str> = map.into_iter().flat_map(|map| map.values()).filter_map(|name| name.as_str()).collect();
    names.into_iter().filter(|name| !name.contains(['/', '\\'])).map(str::to_owned).collect()
}

fn numbered(name: &str) -> Vec<String> {
    let read = || {
        let (before, rest) = name.split_once("-of-")?;
        let (stem, number) = before.rsplit_once('-')?;
        let (count, extension) = rest.split_once('.')?;
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let total: u32 = count.parse().ok().filter(|total| (1..=PARTS_MAX).contains(total))?;
        let (width, total_width) = (number.len(), count.len());
        let part = |at: u32| format!("{stem}-{at:0width$}-of-{total:0total_width$}.{extension}");
        (is_number(number) && is_number(count)).then(|| (1..=total).map(part).collect())
    };
    read().unwrap_or_default()
}

/// The weights in a folder and in those below it: where there are safetensors, these alone, for then what else has weights
/// has the same ones.
fn weights(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    walk(folder, "", 0, &mut found);
    let has = |name: &str, extensions: &[&str]| {
        Path::new(name).extension().and_then(|extension| extension.to_str()).is_some_and(|it| extensions.contains(&it))
    };
    let tensors: Vec<String> = found.iter().filter(|name| has(name, &["safetensors"])).cloned().collect();
    match tensors.is_empty() {
        false => tensors,
        true => found.into_iter().filter(|name| has(name, &["gguf", "bin", "pt", "pth"])).collect(),
    }
}

fn walk(folder: &Path, below: &str, depth: usize, found: &mut Vec<String>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten().take(FILES_MAX) {
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else { continue };
        let (path, inside) = (entry.path(), format!("{below}{name}"));
        // A link to a folder may lead back.
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_folder && depth < DEPTH_MAX {
            walk(&path, &format!("{inside}/"), depth + 1, found);
        } else if !is_folder && path.is_file() && found.len() < FILES_MAX {
            found.push(inside);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(names: &[&str]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        for name in names {
            let path = root.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        (folder, root)
    }

    /// What is chosen of `names` for one role that names `of`.
    fn chosen(names: &[&str], of: &str) -> Vec<String> {
        let (_folder, root) = folder(names);
        let files = [("model".to_owned(), root.join(of))].into();
        choose(&files, &BTreeMap::new()).into_iter().flat_map(|chosen| chosen.files.into_keys()).collect()
    }

    #[test]
    fn what_belongs_to_a_file_is_copied_with_it_and_nothing_else() {
        let split = ["m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "other.gguf", "config.json"];
        assert_eq!(chosen(&split, "m-00002-of-00003.gguf"), split[..2]);
        assert_eq!(chosen(&split, "other.gguf"), ["other.gguf"]);
        assert_eq!(chosen(&["m-of-x.gguf", "m-1-of-99999.gguf"], "m-of-x.gguf"), ["m-of-x.gguf"]);
        assert_eq!(chosen(&["m-1-of-99999.gguf"], "m-1-of-99999.gguf"), ["m-1-of-99999.gguf"]);
    }

    #[test]
    fn an_index_leads_to_its_shards() {
        let (_folder, root) = folder(&["a.safetensors", "b.safetensors", "c.safetensors"]);
        let map = serde_json::json!({"weight_map": {"x": "a.safetensors", "y": "b.safetensors", "z": "../up", "w": 1}});
        std::fs::write(root.join("model.safetensors.index.json"), map.to_string()).unwrap();
        let files = [("model".to_owned(), root.join("model.safetensors.index.json"))].into();
        let digests = [("model".to_owned(), "abc".to_owned())].into();
        let chosen = choose(&files, &digests).remove(0);
        assert_eq!(
            chosen.files.keys().collect::<Vec<_>>(),
            ["a.safetensors", "b.safetensors", "model.safetensors.index.json"]
        );
        let named = &chosen.files["model.safetensors.index.json"];
        assert_eq!((named.sha256.as_deref(), named.role.as_deref()), (Some("abc"), Some("model")));
        assert_eq!(chosen.files["a.safetensors"], Wanted::default());
    }

    #[test]
    fn of_a_folder_its_weights_are_copied_once() {
        let pipeline =
            ["unet/d.safetensors", "unet/d.bin", "config.json", "tokenizer.json", ".cache/x.safetensors", "vae/v.bin"];
        assert_eq!(chosen(&pipeline, ""), ["unet/d.safetensors"]);
        assert_eq!(chosen(&["a.bin", "b/c.pth", "d.json"], ""), ["a.bin", "b/c.pth"]);
    }

    #[test]
    fn roles_of_one_folder_are_chosen_together() {
        let (_folder, root) = folder(&["a/x.gguf", "a/t.json", "b/y.gguf"]);
        let files = [("model", "a/x.gguf"), ("tokenizer", "a/t.json"), ("draft", "b/y.gguf"), ("gone", "c/z.gguf")];
        let files = files.map(|(role, path)| (role.to_owned(), root.join(path))).into();
        let chosen = choose(&files, &BTreeMap::new());
        let shown: Vec<_> = chosen
            .iter()
            .map(|chosen| {
                (chosen.folder.strip_prefix(&root).unwrap().to_owned(), chosen.roles.keys().collect::<Vec<_>>())
            })
            .collect();
        assert_eq!(format!("{shown:?}"), r#"[("a", ["model", "tokenizer"]), ("b", ["draft"])]"#);
    }
}
