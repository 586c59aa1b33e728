//! A folder of GGUF files, or one of them: a model each, named as its file is.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::local::{self, Local};
use super::plan::Plan;
use super::walk::{self, Found};

/// The models of these files. A projector is of the models in its folder.
pub(super) fn read(found: &Found) -> Plan {
    let mut plan = Plan::default();
    let (projectors, models): (Vec<&PathBuf>, Vec<&PathBuf>) =
        found.files.iter().partition(|path| walk::is_projector(path));
    let by_folder = by_folder(&projectors);
    for path in &models {
        let projector = projector_of(path, &by_folder, &mut plan);
        let local = Local { name: walk::stem(path), path: (*path).clone(), projector, ..Local::default() };
        local.add_to(&mut plan);
    }
    let folders: BTreeSet<Option<&Path>> = models.iter().map(|model| model.parent()).collect();
    for projector in projectors {
        if !folders.contains(&projector.parent()) {
            plan.notes.push(format!("{} is left out: it is a projector, with no model beside it", projector.display()));
        }
    }
    note_rest(found, &mut plan);
    plan
}

/// Projectors by their folders.
pub(super) type Projectors<'a> = BTreeMap<&'a Path, Vec<&'a PathBuf>>;

/// Projectors by their folders.
pub(super) fn by_folder<'a>(projectors: &[&'a PathBuf]) -> Projectors<'a> {
    let mut all = Projectors::new();
    for path in projectors {
        all.entry(path.parent().unwrap_or(path)).or_default().push(path);
    }
    all
}

/// The projector in a model's folder; the first of several, of which one may be for it.
pub(super) fn projector_of(model: &Path, projectors: &Projectors<'_>, plan: &mut Plan) -> Option<PathBuf> {
    let beside = projectors.get(model.parent()?)?;
    if let [first, _, ..] = beside.as_slice() {
        plan.notes.push(format!(
            "{} has several projectors beside it, and gets {}",
            model.display(),
            first.file_name().unwrap_or_default().display()
        ));
    }
    beside.first().map(|path| (*path).clone())
}

/// Says what there is beside the models, and whose they are.
pub(super) fn note_rest(found: &Found, plan: &mut Plan) {
    for path in &found.orphans {
        plan.notes.push(format!("{} is left out: the first part of its model is not beside it", path.display()));
    }
    if found.is_cut {
        plan.notes.push("there is more in the folder than is looked at; name a folder within".to_owned());
    }
    if let Some(first) = found.files.first() {
        local::note_owner(plan, first);
    }
}
