//! What lies where the command is pointed at: found by looking at it, not by its name.

use std::fs;
use std::path::{Path, PathBuf};

use serde_yaml::{Mapping, Value};

use super::walk::{self, Found};
use super::{llama_swap, lm_studio, ollama};
use crate::cli::auto::gguf;
use crate::cli::failure::CliError;
use crate::config::{self, Env};

/// What is understood, for whoever pointed at something else.
const UNDERSTOOD: &str = "understood are llama-swap's YAML, Ollama's store (a folder with `manifests` and `blobs`), LM Studio's folder (PUBLISHER/REPO/FILE.gguf), and GGUF files or a folder of them";

/// Something that is understood.
#[derive(Debug)]
pub(super) enum Source {
    /// llama-swap's YAML, all files of it together, and the folder that it lies in.
    LlamaSwap {
        /// What it says.
        config: Value,
        /// Where relative paths are taken to begin.
        folder: PathBuf,
    },
    /// The folder of `manifests` and `blobs`.
    Ollama(PathBuf),
    /// LM Studio's folder of models.
    LmStudio {
        /// The folder of publishers.
        root: PathBuf,
        /// The files below it.
        found: Found,
    },
    /// GGUF files.
    Files(Found),
}

impl Source {
    /// What it is called.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::LlamaSwap { .. } => "a configuration of llama-swap",
            Self::Ollama(_) => "a store of Ollama",
            Self::LmStudio { .. } => "a folder of LM Studio's",
            Self::Files(_) => "files in GGUF",
        }
    }
}

/// Finds out what is there.
///
/// # Errors
/// There is nothing, or nothing that is understood.
pub(super) fn find(named: &Path, env: &Env) -> Result<Source, CliError> {
    let path = env.current_dir().join(named);
    if path.is_file() {
        return of_file(&path, named);
    }
    if path.is_dir() {
        return of_folder(&path, named);
    }
    let places = match named.to_str() {
        Some("ollama") => ollama::usual_places(env),
        Some("lmstudio" | "lm-studio") => env.lm_studio_folders(),
        _ => return Err(CliError::failed(format!("there is no {}", named.display())).hint(UNDERSTOOD)),
    };
    match places.iter().find(|place| place.is_dir()) {
        Some(place) => of_folder(place, place),
        None => {
            let looked: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
            let message = format!("there are no models of {} here (looked for {})", named.display(), looked.join(", "));
            Err(CliError::failed(message).hint("name the folder that they are in"))
        }
    }
}

fn of_file(path: &Path, named: &Path) -> Result<Source, CliError> {
    if gguf::is_one(path) {
        return Ok(Source::Files(Found { files: vec![path.to_path_buf()], ..Found::default() }));
    }
    if walk::is_gguf(path) {
        return Err(CliError::failed(format!("{} does not begin as a GGUF file does", named.display()))
            .hint("fetch it again, or name another file"));
    }
    let config = yaml(path, named)?;
    if llama_swap::is_one(&config) {
        let folder = path.parent().unwrap_or(Path::new("/")).to_path_buf();
        return Ok(Source::LlamaSwap { config, folder });
    }
    let ours = |model: &Value| model.get("type").is_some() || model.get("plugin").is_some();
    if config.get("models").and_then(Value::as_mapping).is_some_and(|models| models.values().any(ours)) {
        return Err(CliError::failed(format!("{} is a models.yaml of this host already", named.display()))
            .hint(format!("use it as it is: `aihost --config {} check`", named.display())));
    }
    Err(not_understood(named))
}

fn of_folder(path: &Path, named: &Path) -> Result<Source, CliError> {
    if let Some(store) = ollama::find(path) {
        return Ok(Source::Ollama(store));
    }
    if let Some(config) = merged(path)? {
        return Ok(Source::LlamaSwap { config, folder: path.to_path_buf() });
    }
    for root in [path.to_path_buf(), path.join("models")] {
        let found = walk::gguf_files(&root);
        if lm_studio::is_one(&root, &found) {
            return Ok(Source::LmStudio { root, found });
        }
    }
    let found = walk::gguf_files(path);
    if found.files.is_empty() && found.orphans.is_empty() {
        Err(not_understood(named))
    } else {
        Ok(Source::Files(found))
    }
}

fn not_understood(named: &Path) -> CliError {
    CliError::failed(format!("{} is nothing that can be migrated", named.display())).hint(UNDERSTOOD)
}

/// A file of YAML with its merge keys and aliases written out.
fn yaml(path: &Path, named: &Path) -> Result<Value, CliError> {
    let text = config::read_file(path).map_err(|error| CliError::failed(error.sentence()).hint(UNDERSTOOD))?;
    let read = serde_yaml::from_str::<Value>(text.trim_start_matches('\u{feff}')).and_then(|mut value| {
        value.apply_merge()?;
        Ok(value)
    });
    read.map_err(|error| {
        CliError::failed(format!("{} cannot be read as YAML: {error}", named.display()))
            .hint("mend that line, as llama-swap would ask for too")
    })
}

/// All files of llama-swap's in a folder together, as its `-config-dir` reads them: in the order of their names.
fn merged(folder: &Path) -> Result<Option<Value>, CliError> {
    let is_yaml = |path: &PathBuf| path.extension().is_some_and(|end| end == "yaml" || end == "yml");
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> = entries.filter(|path| is_yaml(path) && path.is_file()).collect();
    files.sort();
    let (mut all, mut unread) = (Mapping::new(), None);
    for file in &files {
        match yaml(file, file) {
            Ok(Value::Mapping(pairs)) => {
                if let Some(name) = twice(&all, &pairs) {
                    return Err(CliError::failed(format!(
                        "{} has the model {name}, and so has another file",
                        file.display()
                    ))
                    .hint("llama-swap refuses that too; name one of the files, or take one of the two out"));
                }
                merge(&mut all, pairs);
            }
            Ok(_) => {}
            Err(error) => unread = Some(error),
        }
    }
    let all = Value::Mapping(all);
    match (llama_swap::is_one(&all), unread) {
        (false, _) => Ok(None),
        // Another program's file does not matter; one of several of llama-swap's does.
        (true, Some(error)) => Err(error),
        (true, None) => Ok(Some(all)),
    }
}

/// A model that two files have.
fn twice(all: &Mapping, more: &Mapping) -> Option<String> {
    let there = all.get("models")?.as_mapping()?;
    let mut names = more.get("models")?.as_mapping()?.keys();
    names.find(|name| there.contains_key(*name)).map(super::yaml::plain_text)
}

fn merge(all: &mut Mapping, more: Mapping) {
    for (key, value) in more {
        match (all.get_mut(&key), value) {
            (Some(Value::Mapping(there)), Value::Mapping(pairs)) => merge(there, pairs),
            (Some(Value::Sequence(there)), Value::Sequence(items)) => there.extend(items),
            (_, value) => drop(all.insert(key, value)),
        }
    }
}
