//! How far a file of several parts is, noted beside it as `NAME.part.parts`: which parts are whole, and where each ends.

use std::path::{Path, PathBuf};

use super::digest::beside;
use super::download::{discard, forget_origin, length, remove};

/// The parts of a file that are here, one behind the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Assembly {
    /// Which list of parts they are of.
    key: String,
    ends: Vec<u64>,
}

impl Assembly {
    /// What is here of this list of parts. Looking changes nothing.
    pub(super) fn of(part: &Path, key: &str) -> Self {
        let none = Self { key: key.to_owned(), ends: Vec::new() };
        let Ok(text) = std::fs::read_to_string(note_of(part)) else { return none };
        let mut lines = text.lines();
        if lines.next() != Some(key) {
            return none;
        }
        let ends: Option<Vec<u64>> = lines.map(|line| line.parse().ok()).collect();
        match ends {
            Some(ends) if ends.last().is_some_and(|end| *end <= length(part)) => Self { ends, ..none },
            _ => none,
        }
    }

    /// The same, about to go on: what another list of parts left is forgotten.
    pub(super) fn resume(part: &Path, key: &str) -> Self {
        let found = Self::of(part, key);
        if found.ends.is_empty() && note_of(part).exists() {
            forget(part);
            discard(part);
        }
        found
    }

    /// How many parts are whole.
    pub(super) fn finished(&self) -> usize {
        self.ends.len()
    }

    /// Where the next one begins.
    pub(super) fn end(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Notes that the next part is whole.
    pub(super) fn add(&mut self, part: &Path, bytes: u64) -> Result<(), String> {
        self.ends.push(self.end() + bytes);
        forget_origin(part);
        let lines: Vec<String> = self.ends.iter().map(u64::to_string).collect();
        let note = note_of(part);
        let fresh = beside(&note, ".part");
        std::fs::write(&fresh, format!("{}\n{}\n", self.key, lines.join("\n")))
            .and_then(|()| std::fs::rename(&fresh, &note))
            .map_err(|e| format!("{}: {e}", note.display()))
    }
}

/// Forgets what is known of a file's parts.
pub(super) fn forget(part: &Path) {
    remove(&note_of(part));
}

fn note_of(part: &Path) -> PathBuf {
    beside(part, ".parts")
}

#[cfg(test)]
mod tests {
    use super::Assembly;

    #[test]
    fn finished_parts_are_remembered_for_their_list_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let part = folder.path().join("x.part");
        std::fs::write(&part, b"0123456789").expect("written");
        let mut assembly = Assembly::of(&part, "a");
        assert_eq!((assembly.finished(), assembly.end()), (0, 0));
        assembly.add(&part, 4).expect("noted");
        assembly.add(&part, 5).expect("noted");
        let again = Assembly::of(&part, "a");
        assert_eq!((again.finished(), again.end()), (2, 9));
        assert_eq!(Assembly::of(&part, "b").finished(), 0);
        assert_eq!(Assembly::resume(&part, "a"), again);
        std::fs::write(&part, b"short").expect("written");
        assert_eq!(Assembly::of(&part, "a").finished(), 0, "bytes are missing");
        std::fs::write(&part, b"0123456789").expect("written");
        assert_eq!(Assembly::resume(&part, "b").finished(), 0);
        assert!(!part.exists(), "what another list left is no beginning of this one");
    }
}
