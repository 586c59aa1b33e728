//! Watches the folders of plugins, so that a file that is added, replaced or removed there is what the next load finds. It only says
//! when to look: what is there, and what becomes of it, is the runtime's.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};

use super::changes::{ChangeNoted, changes, looks};
use super::signals::Signals;
use crate::runtime::Handle;

/// Watches until the host ends.
pub(super) async fn watch(folders: Vec<PathBuf>, mut hangups: Signals, handle: Handle) {
    let (noted, mut changes) = changes();
    let mut watches = Watches { folders, noted, here: BTreeMap::new() };
    let mut looks = looks();
    loop {
        // Off the runtime's threads: a folder on a network may take its time.
        let renewed = tokio::task::spawn_blocking(move || {
            watches.renew();
            watches
        });
        let Ok(renewed) = renewed.await else { return };
        watches = renewed;
        tokio::select! {
            () = hangups.next() => {}
            Some(()) = changes.next() => changes.quiet().await,
            _ = looks.tick() => {}
        }
        if handle.look_at_plugins().await.is_err() {
            return;
        }
    }
}

/// The folders, and which each was when it began to be watched.
struct Watches {
    folders: Vec<PathBuf>,
    noted: ChangeNoted,
    here: BTreeMap<PathBuf, (FolderNumber, Option<RecommendedWatcher>)>,
}

/// Device and number of a folder, where its path leads to now.
type FolderNumber = Option<(u64, u64)>;

impl Watches {
    /// Watches those that are others than they were: a folder may be made anew, and be a link that leads elsewhere by now.
    fn renew(&mut self) {
        for folder in &self.folders {
            let number = std::fs::metadata(folder).ok().map(|found| (found.dev(), found.ino()));
            if self.here.get(folder).is_some_and(|(was, _)| *was == number) {
                continue;
            }
            let watcher = watcher(folder, &self.noted).inspect_err(|error| {
                tracing::info!(folder = %folder.display(), %error, "it cannot be watched, and is looked at every few seconds");
            });
            if self.here.insert(folder.clone(), (number, watcher.ok())).is_some() {
                self.noted.note();
            }
        }
    }
}

/// Watches a folder, and the one in which it lies, as far as that can be seen.
fn watcher(folder: &Path, noted: &ChangeNoted) -> notify::Result<RecommendedWatcher> {
    let own = folder.to_owned();
    let mut watcher =
        noted.watcher(move |event| is_change(event) && event.paths.iter().any(|path| is_of(path, &own)))?;
    let above = folder.parent().filter(|above| !above.as_os_str().is_empty());
    let watched = above.map(|above| watcher.watch(above, RecursiveMode::NonRecursive));
    match watcher.watch(folder, RecursiveMode::NonRecursive) {
        // A folder that is not there yet is seen to be made.
        Err(error) if !matches!(watched, Some(Ok(()))) => Err(error),
        _ => Ok(watcher),
    }
}

/// Looking changes nothing.
fn is_change(event: &Event) -> bool {
    !matches!(event.kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write))
}

/// Whether it is the folder, or a file in it that counts.
fn is_of(path: &Path, folder: &Path) -> bool {
    let is_hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    path == folder || (path.parent() == Some(folder) && !is_hidden)
}
