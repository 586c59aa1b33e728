//! Models that are on this machine already: a GGUF file, or a folder of one, of Hugging Face's form or of diffusers'.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Found, layout, of_weights, usual_name};
use crate::cli::auto::gguf;
use crate::cli::auto::weights::{self, Weights};
use crate::cli::failure::CliError;
use crate::cli::migrate::local::{Local, located};
use crate::cli::migrate::walk;
use crate::domain::some_names;

/// Bytes of a configuration of a folder that are read.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// The model that lies there.
pub(super) fn find(path: &Path) -> Result<Found, CliError> {
    let shown = path.display();
    if path.is_file() {
        return match gguf::is_one(path) {
            true => of_gguf(path, walk::stem(path)),
            false => Err(CliError::failed(format!("{shown} is no GGUF file"))
                .hint("name a GGUF file, or the folder that a model of another form lies in")),
        };
    }
    let unreadable = |error: std::io::Error| CliError::failed(format!("{shown} cannot be read: {error}"));
    let mut files: Vec<PathBuf> = fs::read_dir(path)
        .map_err(unreadable)?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    let folder = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let is_model = |file: &&PathBuf| {
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is_later_part = weights::part_of(name).is_some_and(|(_, number, _)| number > 1);
        walk::is_gguf(file) && !walk::is_projector(file) && !is_later_part
    };
    let models: Vec<&PathBuf> = files.iter().filter(is_model).collect();
    match models.as_slice() {
        [] => {}
        [only] => return of_gguf(only, folder),
        several => {
            let names: Vec<String> =
                several.iter().filter_map(|file| Some(file.file_name()?.to_string_lossy().into_owned())).collect();
            return Err(CliError::failed(format!(
                "{shown} has several GGUF models: {}",
                some_names(names.iter().map(String::as_str))
            ))
            .hint("name one of the files"));
        }
    }
    let read = |name: &str| {
        use std::io::Read;
        let mut text = Vec::new();
        fs::File::open(path.join(name))
            .and_then(|file| file.take(CONFIG_BYTES_MAX).read_to_end(&mut text))
            .map(|_| text)
            .ok()
    };
    let names: Vec<String> = files.iter().filter_map(|file| Some(file.file_name()?.to_str()?.to_owned())).collect();
    let sizes = files.iter().filter(|file| file.extension().is_some_and(|end| end == "safetensors"));
    let bytes = sizes.filter_map(|file| Some(fs::metadata(file).ok()?.len())).sum();
    let seen = layout::Seen {
        name: usual_name(&folder),
        from: shown.to_string(),
        names: names.iter().map(String::as_str).collect(),
        config: read("config.json"),
        pipeline: read("model_index.json"),
        bytes,
        // They lie where they are looked for.
        has_dense: false,
    };
    seen.of_folder(located(path))
}

fn of_gguf(path: &Path, name: String) -> Result<Found, CliError> {
    let weights = Weights::look(path);
    let parts = weights::parts(path);
    if let Some(lacking) = parts.iter().find(|part| !part.is_file()) {
        return Err(CliError::failed(format!(
            "{} is a part of a model, and {} is not beside it",
            path.display(),
            lacking.display()
        ))
        .hint("put all parts into one folder, and name the first"));
    }
    let name_of_file = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if weights::part_of(name_of_file).is_some_and(|(_, number, _)| number > 1) {
        return Err(CliError::failed(format!("{} is a later part of a model", path.display()))
            .hint("name its first part, -00001-of-"));
    }
    let local = Local { name: usual_name(&name), path: path.to_owned(), ..Local::default() };
    let mut found = of_weights(local, &weights, path.display().to_string())?;
    found.files = parts.len();
    Ok(found)
}
