//! Watches models.yaml and puts a changed one in force. A bad file is refused whole: the host goes on with what it had.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::failure::CliError;
use crate::config::{Config, Env, Selection};
use crate::runtime::Handle;

/// Editors write in several steps; the file is read once it has been quiet this long.
const QUIET: Duration = Duration::from_millis(300);
/// One that is never quiet is read this often.
const STORM: Duration = Duration::from_secs(3);

/// Finds, reads and checks models.yaml, off the runtime's threads: a large one takes seconds.
pub(super) async fn read(selection: &Selection, env: &Env) -> Result<Config, CliError> {
    let (selection, env) = (selection.clone(), env.clone());
    let read = tokio::task::spawn_blocking(move || crate::config::load(&selection, &env)).await;
    Ok(read.map_err(|error| CliError::failed(format!("models.yaml cannot be read: {error}")))??)
}

/// Watches until the host ends. Without a file, or where files cannot be watched, it says so and rests.
pub(super) async fn watch(selection: Selection, env: Env, file: Option<PathBuf>, handle: Handle) {
    let Some(file) = file else { return };
    let (changed, mut changes) = mpsc::channel(1);
    // The folder is watched, not the file: editors replace files, and a watch on the old one would see nothing more.
    let _watcher = match watcher(&file, changed) {
        Ok(watcher) => watcher,
        Err(error) => {
            tracing::warn!(file = %file.display(), %error, "changes to it will not be noticed before the next start");
            return;
        }
    };
    let mut before = digest(&file).await;
    while changes.recv().await.is_some() {
        let quiet = async { while timeout(QUIET, changes.recv()).await.is_ok_and(|change| change.is_some()) {} };
        // A file that is touched for ever is read all the same.
        let _storm = timeout(STORM, quiet).await;
        let now = digest(&file).await;
        if now.is_none() || now == before {
            continue;
        }
        before = now;
        apply(&selection, &env, &file, &handle).await;
    }
}

/// What tells one content of the file from another; nothing if it cannot be read. A pipe would be waited for as long as nobody
/// writes into it, so it is read at the start alone.
async fn digest(file: &Path) -> Option<[u8; 32]> {
    let file = file.to_owned();
    let digest = move || {
        if file.exists() && !file.is_file() {
            tracing::warn!(file = %file.display(), "no regular file, so it is not read again; the host goes on with what it had");
            return None;
        }
        Some(Sha256::digest(crate::config::read_file(&file).ok()?).into())
    };
    tokio::task::spawn_blocking(digest).await.ok().flatten()
}

async fn apply(selection: &Selection, env: &Env, file: &Path, handle: &Handle) {
    match read(selection, env).await {
        Ok(config) => {
            let before = handle.config();
            if before.listen != config.listen || before.paths != config.paths {
                tracing::warn!("`listen:` and folders take effect when the host is started anew");
            }
            config.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
            let config = Config { listen: before.listen, paths: before.paths.clone(), ..config };
            if handle.configure(Arc::new(config)).await.is_ok() {
                tracing::info!(file = %file.display(), "in force");
            }
        }
        Err(error) => {
            tracing::error!(file = %file.display(), "not in force, the host goes on with what it had: {error}")
        }
    }
}

fn watcher(file: &Path, changed: mpsc::Sender<()>) -> notify::Result<RecommendedWatcher> {
    let name = file.file_name().map(ToOwned::to_owned);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
        let meant = event.is_ok_and(|event| {
            !matches!(
                event.kind,
                EventKind::Access(notify::event::AccessKind::Open(_) | notify::event::AccessKind::Read)
            ) && event.paths.iter().any(|path| path.file_name() == name.as_deref())
        });
        // Full means a change is noted already.
        if meant && changed.try_send(()).is_err() {}
    })?;
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    watcher.watch(folder, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}
