//! LM Studio's folder of models: PUBLISHER/REPO/FILE.gguf. A model is named as LM Studio's server lists it: its repository's name
//! in small letters without `-gguf`, and the quantisation behind an `@` where the repository has several files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::folder;
use super::local::Local;
use super::plan::Plan;
use super::walk::{self, Found};

/// The end of a repository's name that says of what format it is.
const FORMAT: &str = "-gguf";

/// Whether all files lie as LM Studio puts them.
pub(super) fn is_one(root: &Path, found: &Found) -> bool {
    // Publisher, repository, file.
    let levels = |path: &PathBuf| path.strip_prefix(root).map_or(0, |below| below.components().count());
    !found.files.is_empty() && found.files.iter().all(|path| levels(path) == 3)
}

/// The models of these files, which lie as [`is_one`] has it.
pub(super) fn read(root: &Path, found: &Found) -> Plan {
    let mut plan = Plan::default();
    let mut repositories: BTreeMap<(String, String), Vec<&PathBuf>> = BTreeMap::new();
    for path in &found.files {
        let mut names = path.strip_prefix(root).unwrap_or(path).iter().map(|name| name.to_string_lossy().into_owned());
        if let (Some(publisher), Some(repository)) = (names.next(), names.next()) {
            repositories.entry((publisher, repository)).or_default().push(path);
        }
    }
    let mut owners: BTreeMap<String, usize> = BTreeMap::new();
    for (_, repository) in repositories.keys() {
        *owners.entry(short(repository)).or_default() += 1;
    }
    for ((publisher, repository), files) in &repositories {
        let (projectors, models): (Vec<&PathBuf>, Vec<&PathBuf>) =
            files.iter().partition(|path| walk::is_projector(path));
        let projectors = folder::by_folder(&projectors);
        let base = short(repository);
        // Two publishers may have the same: then it is told by both names.
        let base = if owners.get(&base) == Some(&1) { base } else { format!("{}/{base}", publisher.to_lowercase()) };
        for (position, path) in models.iter().enumerate() {
            let stem = walk::stem(path);
            let name = match models.len() {
                1 => base.clone(),
                _ => format!("{base}@{}", quantisation(&stem, repository)),
            };
            let mut aliases = vec![stem];
            if position == 0 {
                aliases.push(format!("{publisher}/{repository}"));
            }
            if models.len() > 1 && position == 0 {
                aliases.push(base.clone());
            }
            aliases.retain(|alias| *alias != name);
            let projector = folder::projector_of(path, &projectors, &mut plan);
            Local { name, aliases, path: (*path).clone(), projector, ..Local::default() }.add_to(&mut plan);
        }
    }
    plan.notes.push(
        "what LM Studio keeps of a model beside its file (presets, context length, offload) is not carried over: see `options:`"
            .to_owned(),
    );
    folder::note_rest(found, &mut plan);
    plan
}

/// A repository's name as LM Studio shows it.
fn short(repository: &str) -> String {
    let lower = repository.to_lowercase();
    lower.strip_suffix(FORMAT).unwrap_or(&lower).to_owned()
}

/// What tells a file from the others of its repository: mostly its quantisation.
fn quantisation(stem: &str, repository: &str) -> String {
    let (stem, base) = (stem.to_lowercase(), short(repository));
    let rest = stem.strip_prefix(&base).map(|rest| rest.trim_start_matches(['-', '.', '_']));
    match rest.filter(|rest| !rest.is_empty()) {
        Some(rest) => rest.to_owned(),
        None => stem.rsplit(['-', '.']).next().unwrap_or(&stem).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_told_apart_by_their_quantisation() {
        for (stem, repository, told) in [
            ("Qwen2.5-7B-Instruct-Q4_K_M", "Qwen2.5-7B-Instruct-GGUF", "q4_k_m"),
            ("qwen2.5-7b-instruct.Q8_0", "Qwen2.5-7B-Instruct-GGUF", "q8_0"),
            ("other-name-Q6_K", "Repo-GGUF", "q6_k"),
            ("repo", "repo", "repo"),
        ] {
            assert_eq!(quantisation(stem, repository), told);
        }
    }
}
