//! What is in the cache, and what is on its way there.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::super::lock::Lock;
use super::copying::Begun;
use super::evict::Kept;
use super::index::{self, Index};
use super::lease::{CopyId, Uses};
use super::links;

/// One part in this many of the disk is left to others.
pub(super) const SPARE_PARTS: u64 = 20;

/// All of it, behind one lock.
#[derive(Debug, Default)]
pub(super) struct State {
    /// While the folder is this host's.
    pub(super) lock: Option<Lock>,
    /// Whether it was left to another host for good.
    pub(super) is_left: bool,
    pub(super) entries: BTreeMap<String, Index>,
    parts: BTreeMap<CopyId, Part>,
    pub(super) uses: Arc<Uses>,
    /// Files of which it was told that there is no copy.
    pub(super) told: HashSet<PathBuf>,
}

/// A copy that is not whole.
#[derive(Debug)]
struct Part {
    /// What it will have.
    bytes: u64,
    /// Where it was stopped; nothing while somebody copies.
    begun: Option<Begun>,
}

/// Whether a file may be copied now.
pub(super) enum Claim<'a> {
    /// By whoever asked.
    Mine(Claimed<'a>),
    /// Another load does it.
    Another,
    /// No: why.
    No(String),
}

/// The right to make a copy. Dropped, what there is of it is removed, unless it was stopped.
pub(super) struct Claimed<'a> {
    state: &'a Mutex<State>,
    folder: &'a Path,
    id: CopyId,
    begun: Option<Begun>,
}

impl State {
    /// Whether somebody copies it just now.
    pub(super) fn is_copied(&self, id: &CopyId) -> bool {
        self.parts.get(id).is_some_and(|part| part.begun.is_none())
    }

    /// A copy of so many bytes of a file in `original` is made from here on. What was stopped of it goes on.
    pub(super) fn reserve(&mut self, id: &CopyId, bytes: u64, original: &Path) -> Option<Begun> {
        self.entries.entry(id.entry().to_owned()).or_insert_with(|| Index::new(original));
        self.parts.insert(id.clone(), Part { bytes, begun: None })?.begun
    }

    /// Bytes that lie on the disk.
    pub(super) fn on_disk(&self, folder: &Path) -> u64 {
        let copies = self.entries.values().flat_map(|index| index.copies.values()).map(|note| note.bytes);
        let part = |id: &CopyId| index::part(&folder.join(id.entry()), id.name());
        let parts = self.parts.keys().map(|id| part(id).metadata().map_or(0, |found| found.len()));
        copies.chain(parts).fold(0, u64::saturating_add)
    }

    /// What takes room, when `instead` is to be copied anew. What was stopped goes before all copies.
    pub(super) fn kept(&self, instead: Option<&CopyId>) -> Vec<Kept> {
        let copies = self.entries.iter().flat_map(|(entry, index)| {
            index.copies.iter().map(|(name, note)| {
                let id = CopyId::new(entry, name);
                let is_in_use = self.uses.is_held(&id);
                // What is replaced goes first, if nobody has it open.
                let used_ms = if Some(&id) == instead { 0 } else { note.used_ms.max(self.uses.last_ms(&id)) };
                Kept { bytes: note.bytes, used_ms, is_in_use, id }
            })
        });
        let parts = self.parts.iter().filter(|(id, _)| Some(*id) != instead).map(|(id, part)| {
            let is_in_use = part.begun.is_none();
            Kept { id: id.clone(), bytes: part.bytes, used_ms: 0, is_in_use }
        });
        copies.chain(parts).collect()
    }

    /// Removes a copy, or what was stopped of one. A link to its original takes its place.
    pub(super) fn remove(&mut self, folder: &Path, id: &CopyId) -> io::Result<()> {
        let entry = folder.join(id.entry());
        if self.parts.remove(id).is_some() {
            return remove_file(&index::part(&entry, id.name()));
        }
        let Some(index) = self.entries.get_mut(id.entry()) else { return Ok(()) };
        index.copies.remove(id.name());
        tracing::info!("{} leaves `cache_dir`: it was used longest ago", index.original().join(id.name()).display());
        let is_copied = self.parts.keys().any(|part| part.entry() == id.entry());
        if index.copies.is_empty() && !is_copied {
            self.entries.remove(id.entry());
            return match fs::remove_dir_all(&entry) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        }
        index.write(&entry)?;
        links::link(&index.original().join(id.name()), &index.view(&entry).join(id.name()))
    }

    /// Writes down when copies were last used.
    pub(super) fn note_uses(&mut self, folder: &Path) {
        for (entry, index) in &mut self.entries {
            if index.used(&self.uses, entry)
                && let Err(error) = index.write(&folder.join(entry))
            {
                tracing::debug!(entry, %error, "when copies were used could not be noted");
            }
        }
    }
}

impl<'a> Claimed<'a> {
    pub(super) fn new(state: &'a Mutex<State>, folder: &'a Path, id: CopyId, begun: Option<Begun>) -> Self {
        Self { state, folder, id, begun }
    }

    /// Where it was stopped before.
    pub(super) fn begun(&mut self) -> Option<Begun> {
        self.begun.take()
    }

    /// It is stopped here, and may go on another time.
    pub(super) fn stops_at(mut self, begun: Begun) {
        self.begun = Some(begun);
    }
}

impl Drop for Claimed<'_> {
    fn drop(&mut self) {
        let mut state = self.state.lock();
        match (self.begun.take(), state.parts.get_mut(&self.id)) {
            (Some(begun), Some(part)) => part.begun = Some(begun),
            _ => {
                state.parts.remove(&self.id);
                // A whole copy is no part any more.
                let part = index::part(&self.folder.join(self.id.entry()), self.id.name());
                if let Err(error) = remove_file(&part) {
                    tracing::debug!(part = %part.display(), %error, "a part of a copy could not be removed");
                }
            }
        }
    }
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
