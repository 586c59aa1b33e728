//! Watches the folders of plugins, so that a file that is added, replaced or removed there is what the next load finds. It only says
//! when to look: what is there, and what becomes of it, is the runtime's.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::signals::Signals;
use crate::runtime::Handle;

/// A file that is copied there changes many times; the folder is looked at once it has been quiet this long.
const QUIET: Duration = Duration::from_millis(300);
/// One that is never quiet is looked at this often.
const STORM: Duration = Duration::from_secs(3);
/// How often it is looked at without a word from the watch, which sees nothing of what others do on a network.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Watches until the host ends.
pub(super) async fn watch(folders: Vec<PathBuf>, mut hangups: Signals, handle: Handle) {
    let (changed, mut changes) = mpsc::channel(1);
    let mut watches = Watches { folders, changed, here: BTreeMap::new() };
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
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
            Some(()) = changes.recv() => {
                let quiet = async { while timeout(QUIET, changes.recv()).await.is_ok_and(|change| change.is_some()) {} };
                // A folder in which something is written for ever is looked at all the same.
                let _storm = timeout(STORM, quiet).await;
            }
            _ = ticks.tick() => {}
        }
        if handle.look_at_plugins().await.is_err() {
            return;
        }
    }
}

/// The folders, and which each was when it began to be watched.
struct Watches {
    folders: Vec<PathBuf>,
    changed: mpsc::Sender<()>,
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
            let watcher = watcher(folder, self.changed.clone()).inspect_err(|error| {
                tracing::info!(folder = %folder.display(), %error, "it cannot be watched, and is looked at every few seconds");
            });
            if self.here.insert(folder.clone(), (number, watcher.ok())).is_some() && self.changed.try_send(()).is_err()
            {
                // Full means that a change is noted already.
            }
        }
    }
}

/// Watches a folder, and the one in which it lies, as far as that can be seen.
fn watcher(folder: &Path, changed: mpsc::Sender<()>) -> notify::Result<RecommendedWatcher> {
    let own = folder.to_owned();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
        let meant = event.is_ok_and(|event| is_change(&event) && event.paths.iter().any(|path| is_of(path, &own)));
        // Full means that a change is noted already.
        if meant && changed.try_send(()).is_err() {}
    })?;
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
