//! Model files that other programs of this machine keep: the hub's cache (`models--ORG--REPO/snapshots/COMMIT/FILE`, links to
//! `blobs/`) and LM Studio's folder (`PUBLISHER/REPO/FILE`). They are read and linked to, never written and never removed.

use std::path::{Path, PathBuf};

use crate::config::{Env, FileConfig, Location, Source};

/// Bytes of a note of the hub's cache that says which commit a branch is; it has forty.
const COMMIT_BYTES: usize = 40;

/// Where others keep model files.
#[derive(Clone, Debug, Default)]
pub(super) struct Caches {
    hub: Option<PathBuf>,
    lm_studio: Vec<PathBuf>,
}

/// A file that may be the one that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) path: PathBuf,
    /// Whether where it lies says which file it is, so that it needs no digest.
    pub(super) is_told_by_place: bool,
}

impl Caches {
    /// Those that the environment names.
    pub(super) fn of(env: &Env) -> Self {
        Self { hub: env.hub_cache(), lm_studio: env.lm_studio_folders() }
    }

    /// Files here that may be this one, each but once. They are not read.
    pub(super) fn candidates(&self, file: &FileConfig) -> Vec<Kept> {
        let mut found: Vec<Kept> = Vec::new();
        for source in &file.sources {
            let Source::Whole(Location::HuggingFace { repo, file: inside, revision }) = source else { continue };
            let hub = self.hub.iter().flat_map(|root| in_hub(root, repo, inside, revision, file.sha256.as_deref()));
            let lm_studio = self.lm_studio.iter().flat_map(|root| in_lm_studio(root, repo, inside));
            for kept in hub.chain(lm_studio) {
                let is_useful = kept.is_told_by_place || file.sha256.is_some();
                let is_file = std::fs::metadata(&kept.path).is_ok_and(|found| found.is_file() && found.len() > 0);
                if is_useful && is_file && found.iter().all(|other| other.path != kept.path) {
                    found.push(kept);
                }
            }
        }
        found
    }
}

fn in_hub(root: &Path, repo: &str, file: &str, revision: &str, sha256: Option<&str>) -> Vec<Kept> {
    let folder = root.join(format!("models--{}", repo.replace('/', "--")));
    let is_commit = |text: &str| text.len() == COMMIT_BYTES && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let commit = match is_commit(revision) {
        true => Some(revision.to_owned()),
        false => std::fs::read_to_string(folder.join("refs").join(revision)).ok().map(|text| text.trim().to_owned()),
    };
    let snapshot = commit
        .filter(|commit| is_commit(commit))
        .map(|commit| Kept { path: folder.join("snapshots").join(commit).join(file), is_told_by_place: true });
    // A blob is called as its bytes hash to, whatever revision it was fetched with.
    let blob = sha256.map(|sha256| Kept { path: folder.join("blobs").join(sha256), is_told_by_place: false });
    snapshot.into_iter().chain(blob).collect()
}

fn in_lm_studio(root: &Path, repo: &str, file: &str) -> Vec<Kept> {
    let folder = root.join(repo);
    let name = file.rsplit('/').next().unwrap_or(file);
    [file, name].map(|name| Kept { path: folder.join(name), is_told_by_place: false }).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(revision: &str, sha256: Option<&str>) -> FileConfig {
        let hub = Location::HuggingFace { repo: "org/repo".into(), file: "a/x.gguf".into(), revision: revision.into() };
        FileConfig { sources: vec![Source::Whole(hub)], sha256: sha256.map(str::to_owned), path: "/m/x.gguf".into() }
    }

    #[test]
    fn files_are_found_by_commit_branch_digest_and_name() {
        let home = tempfile::tempdir().unwrap();
        let (commit, digest) = ("c".repeat(40), "d".repeat(64));
        let lay = |path: &str, text: &str| {
            let path = home.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            path
        };
        let hub = ".cache/huggingface/hub/models--org--repo";
        let snapshot = lay(&format!("{hub}/snapshots/{commit}/a/x.gguf"), "GGUF");
        let env = Env::with("/", [("HOME", home.path().to_str().unwrap())]);
        let found = |revision: &str, sha256: Option<&str>| -> Vec<PathBuf> {
            Caches::of(&env).candidates(&wanted(revision, sha256)).into_iter().map(|kept| kept.path).collect()
        };
        assert_eq!(found(&commit, None), std::slice::from_ref(&snapshot));
        assert!(found("main", None).is_empty(), "nobody says what `main` is");
        lay(&format!("{hub}/refs/main"), &commit);
        assert_eq!(found("main", None), std::slice::from_ref(&snapshot));
        let blob = lay(&format!("{hub}/blobs/{digest}"), "GGUF");
        let beside = lay(".lmstudio/models/org/repo/x.gguf", "GGUF");
        assert_eq!(found("v2", Some(&digest)), [blob.clone(), beside.clone()]);
        assert!(found("v2", None).is_empty(), "LM Studio does not say which revision it has");
        lay(&format!("{hub}/blobs/{digest}"), "");
        assert_eq!(found("main", Some(&digest)), [snapshot, beside]);
    }
}
