//! Watches models.yaml and puts a changed one in force. A bad file is refused whole: the host goes on with what it had.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use notify::event::AccessKind;
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::time::timeout;

use super::auto;
use super::changes::{ChangeNoted, changes, looks};
use super::failure::CliError;
use super::signals::Signals;
use super::vet::{self, Asking, Vet, Wrong};
use crate::config::{Choice, Config, ConfigError, Env, ModelConfig, Reloaded, Selection};
use crate::domain::{ModelId, some_names};
use crate::plugin::Registry;
use crate::runtime::Handle;

/// How long a file may take to be read and checked; some, on a network or of a driver, never are.
const READ_LIMIT: Duration = Duration::from_secs(30);
/// Reads that may still wait for such a file when another one is tried.
const READS_MAX: usize = 4;

/// Finds, reads and checks models.yaml, off the runtime's threads: a large one takes seconds.
pub(super) async fn read(selection: &Selection, env: &Env) -> Result<(Config, Known), CliError> {
    let (selection, env) = (selection.clone(), env.clone());
    let read = move || {
        let file = crate::config::find_file(selection.file.as_deref(), &env)?;
        // Looked at before it is read: what changes meanwhile is noticed.
        let seen = Seen::now(&file);
        let text = crate::config::read_file(&file)?;
        let known = Known { seen, content: Some(Sha256::digest(&text).into()) };
        let mut config = crate::config::parse(&text, &file, &selection, &env)?;
        auto::choose_all(&mut config, &env, &auto::Looks::default());
        Ok::<_, ConfigError>((config, known))
    };
    let read = tokio::task::spawn_blocking(read).await;
    Ok(read.map_err(|error| CliError::failed(format!("models.yaml cannot be read: {error}")))??)
}

/// What is known of the file as it was read last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    seen: Seen,
    /// SHA-256 of its text.
    content: Option<[u8; 32]>,
}

/// What tells whether a file may have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// No file, or one that cannot be looked at.
    Nothing,
    /// Neither file nor link to one: a pipe would be waited for as long as nobody writes into it.
    Irregular,
    /// A file: its device, number, length, and when it was last changed in content or in rights.
    File([i64; 6]),
}

impl Seen {
    fn now(file: &Path) -> Self {
        match std::fs::metadata(file) {
            Err(_) => Self::Nothing,
            Ok(found) if !found.is_file() => Self::Irregular,
            Ok(found) => Self::file(&found),
        }
    }

    fn file(found: &Metadata) -> Self {
        let (device, number) = (found.dev().cast_signed(), found.ino().cast_signed());
        let length = found.len().cast_signed();
        Self::File([device, number, length, found.mtime(), found.mtime_nsec(), found.ctime()])
    }
}

/// The file that is watched, and what is known of it.
pub(super) struct Watched {
    pub(super) selection: Selection,
    pub(super) env: Env,
    pub(super) file: Option<PathBuf>,
    pub(super) known: Known,
    pub(super) judged: Judged,
    /// The plugins that there are.
    pub(super) plugins: watch::Receiver<Arc<Registry>>,
}

/// What entries are judged by, and which were found wrong last.
pub(super) struct Judged {
    pub(super) vet: Vet,
    pub(super) wrong: Wrong,
}

/// Watches until the host ends, and reads the file again on SIGHUP. Without a file there is nothing to read; where files cannot
/// be watched, it is looked at now and then all the same.
pub(super) async fn watch(watched: Watched, mut hangups: Signals, handle: Handle) {
    let Watched { selection, env, file, known, judged, plugins } = watched;
    // A terminal that closes does not end a server, with a file or without.
    let Some(file) = file else { return };
    let mut others = plugins.clone();
    let mut reload =
        Reload { selection, env, file, handle, known, judged, plugins, looks: Arc::default(), waiting: Arc::default() };
    reload.describe().await;
    let file = reload.file.clone();
    let (noted, mut changes) = changes();
    // The folder is watched, not the file: editors replace files, and a watch on the old one would see nothing more.
    let _watcher = watcher(&file, &noted).inspect_err(
        |error| tracing::info!(file = %file.display(), %error, "it cannot be watched, and is looked at every few seconds"),
    );
    let mut looks = looks();
    loop {
        tokio::select! {
            () = hangups.next() => reload.apply(Asked::Told).await,
            Some(()) = changes.next() => {
                changes.quiet().await;
                reload.apply(Asked::Changed).await;
            }
            // What entries say may be right, or wrong, by another file of their plugin.
            Ok(()) = others.changed() => reload.apply(Asked::Plugins).await,
            // By its content: two edits within a tick of the kernel's clock look alike from outside.
            _ = looks.tick() => reload.apply(Asked::Changed).await,
        }
    }
}

/// Why the file is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    /// It may have changed; if it is what it was, nothing is to be done.
    Changed,
    /// Its plugins changed: what they take is judged again.
    Plugins,
    /// By a signal: whoever sends it wants to be told something.
    Told,
}

/// What a file that was read again brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    /// Something is in force that was not.
    Some,
    /// Nothing, and whoever asked is told so.
    None,
    /// Nothing: what is wrong in it was told of, and that is all.
    Untold,
}

/// The file in force, and what is known of it.
struct Reload {
    selection: Selection,
    env: Env,
    file: PathBuf,
    handle: Handle,
    known: Known,
    judged: Judged,
    plugins: watch::Receiver<Arc<Registry>>,
    /// What was seen in files of entries whose plugin the host chooses.
    looks: Arc<auto::Looks>,
    /// Reads that have not come back.
    waiting: Arc<AtomicUsize>,
}

impl Reload {
    /// Reads it, and puts it in force if it is another one and a good one.
    async fn apply(&mut self, asked: Asked) {
        let (file, selection, env, before) =
            (self.file.clone(), self.selection.clone(), self.env.clone(), self.known.content);
        let running = self.handle.config();
        // What was wrong, or open, may not be so by now: a file was fetched.
        let is_open = running.models.values().any(|model| matches!(model.choice, Some(Choice::Open(_))));
        let looks_again = asked != Asked::Changed || is_open || !self.judged.wrong.is_empty();
        let looks = Arc::clone(&self.looks);
        let read = move || {
            let seen = Seen::now(&file);
            if seen == Seen::Irregular {
                return (seen, None, None);
            }
            let text = match crate::config::read_again(&file) {
                Ok(text) => text,
                Err(error) => return (seen, None, Some((String::new(), Err(error)))),
            };
            let content: [u8; 32] = Sha256::digest(&text).into();
            let changed = before != Some(content) || looks_again;
            let config = changed.then(|| {
                let mut parsed = crate::config::parse_for(&running, &text, &file, &selection, &env);
                if let Ok(reloaded) = &mut parsed {
                    auto::choose_all(&mut reloaded.config, &env, &looks);
                }
                (text, parsed)
            });
            (seen, Some(content), config)
        };
        let Some((seen, content, config)) = self.within_limit(read).await else { return };
        let is_news = seen != self.known.seen || asked == Asked::Told;
        let is_other = asked == Asked::Told || content.is_some_and(|content| before != Some(content));
        self.known = Known { seen, content: content.or(before) };
        let file = self.file.display();
        match config {
            None if seen == Seen::Irregular && is_news => {
                tracing::warn!(file = %file, "no regular file, so it is not read again; the host goes on with what it had");
            }
            None => {}
            Some((text, Ok(reloaded))) => self.judge(reloaded, text, is_other.then_some(asked)).await,
            Some((_, Err(error))) if is_news || (content.is_some() && is_other) => {
                tracing::error!(file = %file, "not in force, the host goes on with what it had: {error}");
            }
            Some((_, Err(_))) => {}
        }
    }

    /// Asks plugins what options they take, and refuses entries that are wrong by that. Others serve meanwhile.
    async fn describe(&mut self) {
        let (vet, mut config) = (self.vet(), (*self.handle.config()).clone());
        let judge = move || (vet.refuse_wrong(&mut config, Asking::Plugins), config);
        let Ok(((wrong, silent), config)) = tokio::task::spawn_blocking(judge).await else { return };
        silent.iter().for_each(|why| tracing::warn!("{why}"));
        let before = std::mem::replace(&mut self.judged.wrong, wrong);
        if self.judged.wrong != before {
            vet::tell(&config, &self.judged.wrong, &before);
            // A host that has ended needs none.
            let _ended = self.handle.configure(Arc::new(config)).await.is_err();
        }
    }

    /// Puts what is right of a file in force. The same text, for which nobody asked, is judged again only for what was wrong
    /// in it.
    async fn judge(&mut self, Reloaded { mut config, waiting }: Reloaded, text: String, asked: Option<Asked>) {
        if asked.is_some() {
            // It may name a plugin that was put there just before. A host that has ended has none.
            let _ended = self.handle.look_at_plugins().await.is_err();
        }
        let (vet, running) = (self.vet(), self.handle.config());
        let judge = move || {
            let (wrong, _) = vet.on_reload(&mut config, &running, &text);
            let is_news = config.is_news_after(&running);
            let is_other =
                |model: &ModelConfig| running.models.get(&model.id).is_some_and(|before| before.choice != model.choice);
            let chooses = config.models.values().any(is_other);
            (wrong, config, is_news, chooses)
        };
        let Ok((wrong, config, is_news, chooses)) = tokio::task::spawn_blocking(judge).await else { return };
        if asked.is_some() || chooses || wrong != self.judged.wrong {
            let before = std::mem::replace(&mut self.judged.wrong, wrong);
            vet::tell(&config, &self.judged.wrong, &before);
            let news = match asked {
                _ if is_news => News::Some,
                Some(Asked::Told) => News::None,
                _ => News::Untold,
            };
            self.configure(Reloaded { config, waiting }, news).await;
        }
    }

    fn vet(&self) -> Vet {
        self.judged.vet.by(Arc::clone(&self.plugins.borrow()))
    }

    /// Puts it in force, and says what that came to.
    async fn configure(&self, Reloaded { config, waiting }: Reloaded, news: News) {
        if !waiting.is_empty() {
            let keys: Vec<String> = waiting.iter().map(|key| format!("`{key}:`")).collect();
            tracing::warn!(
                "{} of the changed file {} when the host is started anew; until then all of the old holds",
                keys.join(", "),
                if keys.len() == 1 { "takes effect" } else { "take effect" }
            );
        }
        config.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
        let file = self.file.display();
        match self.handle.configure(Arc::new(config)).await {
            Ok(_) if news == News::Untold => {}
            Ok(_) if news == News::None => tracing::info!(%file, "read again, and nothing of it is new"),
            Ok(changes) => {
                let named = |models: &[ModelId]| some_names(models.iter().map(ModelId::as_str));
                let (added, removed) = (named(&changes.added), named(&changes.removed));
                let changed = named(&changes.changed);
                tracing::info!(%file, added, removed, changed, "in force");
            }
            Err(why) => tracing::error!(%file, "not in force, the host goes on with what it had: {why}"),
        }
    }

    /// Does something with the file where it holds nobody up; nothing if it does not come to an end in time.
    async fn within_limit<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        if self.waiting.load(Ordering::Relaxed) >= READS_MAX {
            return None;
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let waiting = Arc::clone(&self.waiting);
        let work = move || {
            let done = work();
            waiting.fetch_sub(1, Ordering::Relaxed);
            done
        };
        match timeout(READ_LIMIT, tokio::task::spawn_blocking(work)).await {
            Ok(done) => done.ok(),
            Err(_) => {
                tracing::error!(file = %self.file.display(), "it is not read after {} s; the host goes on with what it had", READ_LIMIT.as_secs());
                None
            }
        }
    }
}

fn watcher(file: &Path, noted: &ChangeNoted) -> notify::Result<RecommendedWatcher> {
    let name = file.file_name().map(ToOwned::to_owned);
    let mut watcher = noted.watcher(move |event| {
        !matches!(event.kind, EventKind::Access(AccessKind::Open(_) | AccessKind::Read))
            && event.paths.iter().any(|path| path.file_name() == name.as_deref())
    })?;
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    watcher.watch(folder, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}
