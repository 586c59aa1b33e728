//! Where the parts of a model lie: named one by one, or in the folder that diffusers writes.

use std::path::{Path, PathBuf};

use aihost_plugin_api::{Error, ErrorKind, LoadRequest, Result};

/// A part's weights, and its `config.json` where there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// A file, an index of shards, or a folder of these.
    pub weights: PathBuf,
    /// Sizes that the shapes of tensors do not tell.
    pub config: Option<PathBuf>,
}

/// The parts of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The denoising transformer.
    pub transformer: Part,
    /// CLIP's text encoder.
    pub clip: Part,
    /// T5's text encoder.
    pub t5: Part,
    /// The variational autoencoder, of which the decoder is used.
    pub vae: Part,
    /// CLIP's tokenizer: a folder or a `tokenizer.json`.
    pub clip_tokenizer: PathBuf,
    /// T5's tokenizer: a folder or a `tokenizer.json`.
    pub t5_tokenizer: PathBuf,
    /// `scheduler_config.json`, where there is one.
    pub scheduler: Option<PathBuf>,
}

impl Files {
    /// Roles `transformer`, `clip`, `t5` and `vae` (or `ae`), each a file or a folder, and `tokenizers`, a folder with
    /// `tokenizer` and `tokenizer_2`. What has no role lies in the folder of role `model`, in diffusers' layout.
    ///
    /// # Errors
    /// [`ErrorKind::MissingFile`] if a part has neither.
    pub fn of(load: &LoadRequest) -> Result<Self> {
        let folder = load.files.get("model").filter(|path| path.is_dir());
        let find = |roles: &[&str], name: &str| -> Result<PathBuf> {
            let named = roles.iter().find_map(|role| load.files.get(*role)).cloned();
            let found = named.or_else(|| folder.map(|folder| folder.join(name)).filter(|path| path.exists()));
            found.ok_or_else(|| {
                let text = format!(
                    "the model has no file `{}`, nor a folder `model` with `{name}` in it; add it under `files:` in models.yaml",
                    roles[0]
                );
                Error::new(ErrorKind::MissingFile, text)
            })
        };
        let part = |roles: &[&str], name: &str| find(roles, name).map(Part::at);
        let tokenizer = |role: &str, name: &str| match load.files.get("tokenizers") {
            Some(folder) if !load.files.contains_key(role) => Ok(folder.join(name)),
            _ => find(&[role], name),
        };
        let scheduler = folder.map(|folder| folder.join("scheduler/scheduler_config.json"));
        Ok(Self {
            transformer: part(&["transformer"], "transformer")?,
            clip: part(&["clip"], "text_encoder")?,
            t5: part(&["t5"], "text_encoder_2")?,
            vae: part(&["vae", "ae"], "vae")?,
            clip_tokenizer: tokenizer("clip_tokenizer", "tokenizer")?,
            t5_tokenizer: tokenizer("t5_tokenizer", "tokenizer_2")?,
            scheduler: scheduler.filter(|path| path.is_file()),
        })
    }
}

impl Part {
    fn at(weights: PathBuf) -> Self {
        // Beside a single file, a `config.json` could be another part's.
        let config = Some(weights.join("config.json")).filter(|path| path.is_file());
        Self { weights, config }
    }

    /// The path of its `config.json`, if there is one.
    pub fn config(&self) -> Option<&Path> {
        self.config.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(files: &[(&str, &Path)]) -> LoadRequest {
        let files = files.iter().map(|(role, path)| ((*role).to_owned(), path.to_path_buf())).collect();
        LoadRequest::new("cpu", files)
    }

    #[test]
    fn a_role_goes_before_the_folder_and_what_is_missing_is_named() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["transformer", "text_encoder", "text_encoder_2", "vae", "tokenizer", "tokenizer_2"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        std::fs::write(folder.path().join("vae/config.json"), "{}").unwrap();
        let files = Files::of(&load(&[("model", folder.path()), ("transformer", Path::new("/x/t.gguf"))])).unwrap();
        assert_eq!(files.transformer, Part { weights: "/x/t.gguf".into(), config: None });
        assert_eq!(files.vae.config, Some(folder.path().join("vae/config.json")));
        assert_eq!(files.clip_tokenizer, folder.path().join("tokenizer"));
        std::fs::remove_dir(folder.path().join("text_encoder_2")).unwrap();
        let error = Files::of(&load(&[("model", folder.path())])).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::MissingFile);
        assert!(error.message().contains("`t5`"), "{error}");
    }
}
