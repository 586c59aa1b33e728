//! Which copies are in use, and by whom: counted in memory alone, so that nobody who lets one go waits for a disk.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::telemetry::unix_ms;

/// A copy: the folder that it is of, and its path in there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct CopyId {
    entry: String,
    name: String,
}

impl CopyId {
    pub(super) fn new(entry: &str, name: &str) -> Self {
        Self { entry: entry.to_owned(), name: name.to_owned() }
    }

    pub(super) fn entry(&self) -> &str {
        &self.entry
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

/// How often each copy is in use, and when it last was.
#[derive(Debug, Default)]
pub(super) struct Uses(Mutex<BTreeMap<CopyId, Use>>);

#[derive(Debug, Default)]
struct Use {
    holders: u32,
    last_ms: u64,
}

impl Uses {
    pub(super) fn is_held(&self, id: &CopyId) -> bool {
        self.0.lock().get(id).is_some_and(|known| known.holders > 0)
    }

    /// When it was last used since this host started, in milliseconds of the wall clock; 0 if it was not.
    pub(super) fn last_ms(&self, id: &CopyId) -> u64 {
        self.0.lock().get(id).map_or(0, |known| known.last_ms)
    }

    fn hold(&self, id: &CopyId) {
        let mut uses = self.0.lock();
        let known = uses.entry(id.clone()).or_default();
        (known.holders, known.last_ms) = (known.holders + 1, unix_ms());
    }

    fn release(&self, ids: &[CopyId]) {
        let (mut uses, now) = (self.0.lock(), unix_ms());
        for id in ids {
            if let Some(known) = uses.get_mut(id) {
                (known.holders, known.last_ms) = (known.holders.saturating_sub(1), now);
            }
        }
    }
}

/// The copies that an instance may open: they stay for as long as this, or a clone of it, is held.
#[derive(Clone, Debug, Default)]
pub struct CacheLease(Arc<Mutex<Leased>>);

#[derive(Debug, Default)]
struct Leased {
    uses: Option<Arc<Uses>>,
    /// Each with the number of its file.
    copies: BTreeMap<CopyId, u64>,
    notes: Vec<String>,
}

impl CacheLease {
    /// What tells the files that are opened from others of the same content; 0 where all lie where models.yaml says.
    pub fn fingerprint(&self) -> u64 {
        let leased = self.0.lock();
        if leased.copies.is_empty() {
            return 0;
        }
        let mut hasher = DefaultHasher::new();
        leased.copies.hash(&mut hasher);
        hasher.finish()
    }

    /// Why a file is not opened from a copy, if one is not.
    pub fn note(&self) -> Option<String> {
        let leased = self.0.lock();
        let first = leased.notes.first()?;
        Some(match leased.notes.len() {
            1 => first.clone(),
            several => format!("{first}; and {} files more", several - 1),
        })
    }

    pub(super) fn holds(&self, uses: &Arc<Uses>, id: &CopyId, inode: u64) {
        let mut leased = self.0.lock();
        if leased.copies.insert(id.clone(), inode).is_none() {
            uses.hold(id);
        }
        leased.uses = Some(Arc::clone(uses));
    }

    pub(super) fn has(&self, id: &CopyId) -> bool {
        self.0.lock().copies.contains_key(id)
    }

    pub(super) fn says(&self, note: String) {
        self.0.lock().notes.push(note);
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        if let Some(uses) = &self.uses {
            uses.release(&self.copies.keys().cloned().collect::<Vec<_>>());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_in_use_until_the_last_who_may_open_it_is_gone() {
        let (uses, id) = (Arc::new(Uses::default()), CopyId::new("e", "x"));
        let (one, other) = (CacheLease::default(), CacheLease::default());
        assert_eq!(one.fingerprint(), 0);
        for _ in 0..2 {
            one.holds(&uses, &id, 7);
        }
        other.holds(&uses, &id, 7);
        assert!(one.fingerprint() != 0 && one.fingerprint() == other.fingerprint());
        let clone = one.clone();
        drop((one, other));
        assert!(uses.is_held(&id));
        drop(clone);
        assert!(!uses.is_held(&id) && uses.last_ms(&id) > 0);
    }
}
