//! What a worker may still touch once it knows its plugin. Told by the host, kept by the worker itself, before any code of the
//! plugin runs.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use landlock::{AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use serde::{Deserialize, Serialize};

use super::placement::StartSpec;
use crate::plugin::{Permission, permissions};

/// Files beside a model's file that may belong to it: shards, tokenizers, their settings.
const MODEL_EXTENSIONS: [&str; 8] = ["safetensors", "gguf", "bin", "json", "model", "txt", "pt", "jinja"];
/// The most of them that are looked at.
const BESIDE_MAX: usize = 4096;

/// What a worker and all that it starts may do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Confinement {
    /// What its plugin's manifest asks for.
    pub(crate) permissions: Vec<Permission>,
    /// Files and folders that it may read beside what the system has installed.
    pub(crate) readable: BTreeSet<PathBuf>,
    /// A folder of its own, in which it may do anything.
    pub(crate) own: Option<PathBuf>,
}

impl Confinement {
    pub(super) fn has(&self, permission: Permission) -> bool {
        self.permissions.contains(&permission)
    }
}

/// Keeps this process's memory and environment, with the keys in them, from other processes of its user, workers among them.
/// Debuggers and core dumps of it need privileges from now on.
pub fn protect_host() {
    // Linux has had it for as long as it has had what the host cannot do without.
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    if !is_confinement_available() {
        tracing::warn!(
            "this kernel has no Landlock, or does not let the host use it: plugins can read and write whatever its user may, and open connections"
        );
    }
}

/// Whether this kernel can confine a worker to its files.
pub fn is_confinement_available() -> bool {
    let rules = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    rules.handle_access(AccessFs::Execute).and_then(Ruleset::create).is_ok()
}

/// What a worker may touch for this. Looks at files; the caller sees to it that this holds nobody up.
pub(super) fn of(spec: &StartSpec) -> Confinement {
    let plugin = &spec.plugin;
    let mut readable = model_files(spec.load.files.values().chain(&spec.copied_from));
    readable.insert(plugin.copy.readable().to_owned());
    // Libraries that it brings along.
    readable.extend(plugin.library_folders.iter().cloned());
    let own = spec.own_folder.clone().filter(|folder| match make_private(folder) {
        Ok(()) => true,
        Err(e) => {
            tracing::warn!(target: "worker", model = %spec.model, "its plugin has no folder of its own: {}: {e}", folder.display());
            false
        }
    });
    // A registered plugin asks for nothing that is unknown.
    Confinement { permissions: permissions(&plugin.manifest).unwrap_or_default(), readable, own }
}

fn make_private(folder: &Path) -> std::io::Result<()> {
    fs::create_dir_all(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))
}

/// The files of a model, and those beside them that may belong to it: an index names its shards, a checkpoint has its
/// tokenizer. A file that is a link is where the link leads.
fn model_files<'a>(named: impl Iterator<Item = &'a PathBuf> + Clone) -> BTreeSet<PathBuf> {
    let files: Vec<PathBuf> = named.clone().filter_map(|file| fs::canonicalize(file).ok()).collect();
    let folders: BTreeSet<&Path> = named.filter_map(|file| file.parent()).collect();
    let beside = folders.into_iter().flat_map(belonging).filter_map(|file| fs::canonicalize(file).ok());
    files.iter().cloned().chain(beside).collect()
}

fn belonging(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.take(BESIDE_MAX).filter_map(Result::ok).map(|entry| entry.path());
    let of_a_model = |path: &PathBuf| {
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        MODEL_EXTENSIONS.contains(&extension) && path.is_file()
    };
    paths.filter(of_a_model).collect()
}

#[cfg(test)]
mod tests {
    use aihost_plugin_api::LoadRequest;

    use super::*;

    #[test]
    fn a_models_files_are_those_named_and_those_that_belong_to_them() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        let (blobs, model) = (folder.join("blobs"), folder.join("model"));
        for made in [&blobs, &model] {
            fs::create_dir(made).unwrap();
        }
        fs::write(blobs.join("0123"), "weights").unwrap();
        std::os::unix::fs::symlink("../blobs/0123", model.join("a.safetensors")).unwrap();
        for name in ["index.json", "models.yaml", ".env", "tokenizer.model"] {
            fs::write(model.join(name), "x").unwrap();
        }
        let mut load = LoadRequest::default();
        load.files.insert("index".into(), model.join("index.json"));
        let found = model_files(load.files.values());
        let wanted = [blobs.join("0123"), model.join("index.json"), model.join("tokenizer.model")];
        assert_eq!(found, wanted.into_iter().collect());
    }
}
