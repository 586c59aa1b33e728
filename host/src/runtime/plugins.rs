//! The plugins in force, and looking whether other files lie in their folders by now. A look takes its time: it is made beside the
//! loop, of which nothing is known here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Mutex as Turn, watch};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::config::{Config, Sharing};
use crate::domain::ModelId;
use crate::plugin::{News, PluginFile, Registry};

/// How long a load waits for a look at files that changed: they are copied and hashed. A folder on a network that is gone may
/// take for ever.
const LOOK_LIMIT: Duration = Duration::from_secs(30);
/// Changes of one look that are told one by one.
const NEWS_TOLD_MAX: usize = 50;

/// Which file each model's instance was made of.
pub(super) type Running = BTreeMap<ModelId, Arc<PluginFile>>;

/// The plugins in force.
pub(super) struct Plugins {
    in_force: watch::Sender<Arc<Registry>>,
    folders: Arc<Folders>,
    /// Models that are scheduled as the files want it of which their instances are made, which are not those of the next load.
    behind: BTreeSet<ModelId>,
}

impl Plugins {
    pub(super) fn new(in_force: watch::Sender<Arc<Registry>>, config: &Config) -> Self {
        let registry = Arc::clone(&in_force.borrow());
        let folders = Folders {
            seen: Mutex::new(Seen { newest: Arc::clone(&registry), last: registry }),
            state: config.paths.state.clone(),
            sharing: config.paths.sharing,
            turn: Arc::default(),
            begun: Mutex::default(),
            complaint: Mutex::default(),
        };
        Self { in_force, folders: Arc::new(folders), behind: BTreeSet::new() }
    }

    /// What the next load uses.
    pub(super) fn registry(&self) -> Arc<Registry> {
        Arc::clone(&self.in_force.borrow())
    }

    /// For those who prepare others.
    pub(super) fn in_force(&self) -> watch::Receiver<Arc<Registry>> {
        self.in_force.subscribe()
    }

    pub(super) fn folders(&self) -> Arc<Folders> {
        Arc::clone(&self.folders)
    }

    /// From now on these are in force, and these models are behind. What was in force before.
    pub(super) fn put_in_force(&mut self, registry: Arc<Registry>, behind: BTreeSet<ModelId>) -> Arc<Registry> {
        self.behind = behind;
        self.in_force.send_replace(registry)
    }

    /// Whether a model is scheduled as the next load wants it.
    pub(super) fn is_ready_for(&self, model: &ModelId) -> bool {
        Arc::ptr_eq(&self.in_force.borrow(), &self.folders.newest()) && !self.behind.contains(model)
    }
}

/// What lies in the folders, as it was seen last.
pub(super) struct Folders {
    seen: Mutex<Seen>,
    state: PathBuf,
    sharing: Sharing,
    /// One look at a time.
    turn: Arc<Turn<()>>,
    /// When the look that is under way began.
    begun: Mutex<Option<Instant>>,
    /// Why the folders could not be looked at, as it was told last.
    complaint: Mutex<Option<String>>,
}

/// What looks found.
struct Seen {
    /// For those who use it: the last that was another one.
    newest: Arc<Registry>,
    /// For the next look: the last.
    last: Arc<Registry>,
}

impl Folders {
    pub(super) fn newest(&self) -> Arc<Registry> {
        Arc::clone(&self.seen.lock().newest)
    }

    fn last(&self) -> Arc<Registry> {
        Arc::clone(&self.seen.lock().last)
    }

    /// Whether there are any.
    pub(super) fn are_there(&self) -> bool {
        !self.seen.lock().last.folders.is_empty()
    }

    /// Looks what lies there, and returns when that is known, or after a while.
    pub(super) async fn look(self: Arc<Self>) {
        // One that does not come back is waited for by one.
        if !self.are_there() || self.begun.lock().is_some_and(|begun| begun.elapsed() > LOOK_LIMIT) {
            return;
        }
        let look = async move {
            let turn = Arc::clone(&self.turn).lock_owned().await;
            let looked = spawn_blocking(move || {
                *self.begun.lock() = Some(Instant::now());
                self.look_now();
                *self.begun.lock() = None;
                drop(turn);
            });
            // A panic is logged where it happens.
            let _looked = looked.await;
        };
        if timeout(LOOK_LIMIT, look).await.is_err() {
            tracing::warn!("the folders of plugins are not looked through after {} s", LOOK_LIMIT.as_secs());
        }
    }

    /// The same for a load of this plugin. Files of other plugins that changed hold it up for nobody: they are looked at meanwhile.
    pub(super) async fn look_for(self: Arc<Self>, plugin: Option<Arc<PluginFile>>) {
        let asked = Arc::clone(&self);
        let is_concerned = spawn_blocking(move || asked.concern(plugin.as_deref()));
        match timeout(LOOK_LIMIT, is_concerned).await {
            Ok(Ok(Concern::This)) => self.look().await,
            Ok(Ok(Concern::Others)) => drop(tokio::spawn(self.look())),
            _ => {}
        }
    }

    fn concern(&self, plugin: Option<&PluginFile>) -> Concern {
        let newest = self.last();
        let changed = newest.changed();
        let Some(plugin) = plugin else { return Concern::This };
        let is_others = |file: &PathBuf| {
            newest.plugins.iter().any(|other| other.source == *file && other.manifest.id != plugin.manifest.id)
        };
        match () {
            // Changed libraries are found by a look alone.
            () if plugin.copy.libraries().next().is_some() || !changed.iter().all(is_others) => Concern::This,
            () if changed.is_empty() => Concern::Nobody,
            () => Concern::Others,
        }
    }

    fn look_now(&self) {
        let before = self.last();
        match before.look_again(&self.state, self.sharing) {
            Ok((now, settled)) => {
                let lost = now.lost().next().map(|plugin| {
                    let folder = plugin.source.parent().unwrap_or(&plugin.source).display();
                    format!("the folder {folder} is not there any more")
                });
                self.complain(lost);
                if !settled {
                    tracing::debug!("a file in the folders of plugins is being written, and is looked at again later");
                }
                let mut seen = self.seen.lock();
                seen.last = Arc::new(now);
                if !seen.last.is_same(&seen.newest) {
                    seen.newest = Arc::clone(&seen.last);
                }
            }
            Err(error) => self.complain(Some(error.to_string())),
        }
    }

    /// Says what is wrong with the folders, once.
    fn complain(&self, now: Option<String>) {
        let before = std::mem::replace(&mut *self.complaint.lock(), now.clone());
        if let Some(why) = now.filter(|now| before.as_ref() != Some(now)) {
            tracing::error!("the host goes on with the plugins that it has: {why}");
        }
    }
}

/// Whom changed files concern.
enum Concern {
    /// The plugin in question, as far as can be told.
    This,
    Others,
    Nobody,
}

/// Tells what a look found, a line for each file.
pub(super) fn tell_news(news: &[News]) {
    for one in news.iter().take(NEWS_TOLD_MAX) {
        match one {
            News::Added(plugin) => {
                let (version, file) = (&plugin.manifest.version, plugin.source.display());
                tracing::info!(plugin = plugin.manifest.id, version, %file, sha256 = plugin.short_digest(), "plugin added");
            }
            News::Replaced(plugin, was) => {
                let (version, file, before) = (&plugin.manifest.version, plugin.source.display(), was.build());
                let id = &plugin.manifest.id;
                tracing::info!(plugin = id, version, %file, sha256 = plugin.short_digest(), before, "plugin replaced: the next load uses it");
            }
            News::Removed(was) => {
                let (version, file) = (&was.manifest.version, was.source.display());
                tracing::info!(plugin = was.manifest.id, version, %file, sha256 = was.short_digest(), "plugin removed");
            }
            News::Refused(file, why, None) => tracing::warn!(file = %file.display(), "plugin refused: {why}"),
            News::Refused(file, why, Some(kept)) => {
                let (id, build) = (&kept.manifest.id, kept.build());
                tracing::warn!(file = %file.display(), plugin = id, "plugin refused, {build} as it was before is used on: {why}");
            }
            News::Doubted(file, why) => tracing::warn!(file = %file.display(), "{why}"),
        }
    }
    if let Some(more) = news.len().checked_sub(NEWS_TOLD_MAX).filter(|more| *more > 0) {
        tracing::info!("and {more} more plugin files changed");
    }
}
