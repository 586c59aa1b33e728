//! A new configuration on its way into force. Whatever takes longer the more models there are is done beside the loop: before,
//! what differs is found and the scheduler's tables are built; afterwards, what was in force is taken apart. The loop itself
//! only exchanges the one for the other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

use super::access::AccessEntry;
use super::api::{Changes, Command};
use super::changes::changes;
use super::internal::{Internal, post};
use super::plugins::{Running, tell_news};
use super::policy::{FoundBudgets, policy};
use super::prepared::{Configuring, Prepared, Wanted};
use super::quarantine::QuarantineFile;
use super::run::{Loop, send};
use super::watched::Pin;
use crate::config::{Config, ModelConfig};
use crate::domain::{Failure, InstanceId, ModelId, ModelState, some_names};
use crate::plugin::{Registry, sweep_copies};
use crate::scheduler::{Event, Policy};
use crate::telemetry::Metrics;

/// Between two looks whether a request still reads a configuration that is no longer in force.
const RETIRED_LOOK_EVERY: Duration = Duration::from_secs(1);
/// Models with `preload: true` that wait to be loaded at a time; the others come after them.
const PRELOADS_MAX: usize = 8;

/// What was in force, or is of no more use.
struct Retired {
    config: Arc<Config>,
    /// Read by the loop alone, and by it no more.
    _tables: (Arc<Policy>, Arc<Changes>, Arc<BTreeSet<ModelId>>),
    registry: Option<Arc<Registry>>,
}

/// What a configuration is prepared by.
struct Basis<'a> {
    old: &'a Config,
    /// The plugins in force, and those that are to be.
    old_registry: &'a Registry,
    registry: &'a Arc<Registry>,
    /// What instances are made of that are up.
    running: &'a Running,
    /// Who was quarantined and was in no configuration yet.
    foreign: &'a QuarantineFile,
}

impl Prepared {
    /// Takes seconds for a hundred thousand models.
    fn by(basis: &Basis<'_>, config: Arc<Config>, found: &mut FoundBudgets) -> Self {
        // Of one and the same nothing differs.
        let is_other = !std::ptr::eq(basis.old, &*config);
        let changes = if is_other { changes(basis.old, &config) } else { Changes::default() };
        let registry = basis.registry;
        let is_other_registry = !std::ptr::eq(basis.old_registry, &**registry);
        let file =
            |registry: &Registry, model: &ModelConfig| registry.find(&model.plugin, model.plugin_version.as_ref()).ok();
        let is_renewed = |model: &&ModelConfig| match (file(basis.old_registry, model), file(registry, model)) {
            (Some(was), Some(is)) => !was.is_same(&is),
            (was, is) => was.is_some() != is.is_some(),
        };
        let renewed =
            config.models.values().filter(|_| is_other_registry).filter(is_renewed).map(|model| model.id.clone());
        let is_behind = |model: &&ModelId| {
            let next = config.models.get(*model).and_then(|model| file(registry, model));
            next.is_none_or(|next| basis.running.get(*model).is_some_and(|runs| !runs.is_same(&next)))
        };
        let anew = changes.anew();
        // Of an entry that is only preloaded from now on nothing else changes.
        let is_news = |id: &ModelId| anew.contains(id) || basis.old.models.get(id).is_none_or(|was| !was.preload);
        let preloaded = config.models.values().filter(|entry| entry.preload && is_news(&entry.id));
        let preload = preloaded.map(|entry| entry.id.clone()).collect();
        Self {
            policy: Arc::new(policy(&config, registry, basis.running, found)),
            news: if is_other_registry { registry.news(basis.old_registry) } else { Vec::new() },
            renewed: Arc::new(renewed.collect()),
            behind: basis.running.keys().filter(is_behind).cloned().collect(),
            registry: Arc::clone(registry),
            anew: Arc::new(anew),
            models: Arc::new(config.models.keys().cloned().collect()),
            preload,
            recalled: basis.foreign.found(&config, registry),
            changes: Arc::new(changes),
            config,
        }
    }
}

impl Loop {
    /// Prepares a configuration, or the one in force with the plugins that were seen last, beside the loop; it comes back as
    /// [`Internal::Prepared`]. `starting`: a model that is to be scheduled as its next load wants it.
    pub(super) fn prepare(&self, wanted: Wanted, starting: Option<ModelId>, reply: oneshot::Sender<Arc<Changes>>) {
        let (turns, events) = (Arc::clone(&self.devices.found_budgets), self.senders.events.clone());
        let (in_force, plugins) = (self.senders.in_force.subscribe(), self.plugins.in_force());
        let (folders, mut running) = (self.plugins.folders(), self.running());
        running.retain(|model, _| starting.as_ref() != Some(model));
        let foreign = self.quarantine.foreign();
        tokio::spawn(async move {
            let mut turn = turns.lock_owned().await;
            let prepared = spawn_blocking(move || {
                let old = Arc::clone(&in_force.borrow());
                let (old_registry, registry) = (Arc::clone(&plugins.borrow()), folders.newest());
                let (old_registry, registry) = (&*old_registry, &registry);
                let basis = Basis { old: &old, old_registry, registry, running: &running, foreign: &foreign };
                let config = wanted.over(&old);
                let prepared = Prepared::by(&basis, config, &mut turn);
                (prepared, Configuring { reply, turn })
            });
            match prepared.await {
                Ok((prepared, configuring)) => {
                    post(&events, Internal::Prepared(Box::new(prepared), configuring)).await;
                }
                // Whoever waits for it learns that by its reply being gone; the panic says why.
                Err(error) => tracing::debug!(%error, "a configuration could not be prepared"),
            }
        });
    }

    /// Pins a model or lets it be evicted again: everything else stays as it is.
    pub(super) fn pin(&self, pin: Pin, reply: oneshot::Sender<Arc<Changes>>) {
        self.prepare(Wanted::Pinned(pin), None, reply);
    }

    /// Puts it in force. Takes as long as what is loaded and waited for, however many models there are.
    pub(super) fn put_in_force(&mut self, prepared: Prepared, configuring: Configuring) {
        let Prepared { config, policy, changes, anew, registry, news, renewed, behind, models, preload, recalled } =
            prepared;
        let Configuring { reply, turn } = configuring;
        let old = std::mem::replace(&mut self.config, Arc::clone(&config));
        self.senders.in_force.send_replace(config);
        let models_before = self.observer.put_in_force(Arc::clone(&models));
        self.records.removed(&changes.removed);
        let old_policy = Arc::clone(self.state.policy());
        self.refuse_wrong_kinds();
        let leaving_before = self.leaving();
        tell_news(&news);
        let old_registry = self.plugins.put_in_force(registry, behind);
        self.step(Event::Configure { policy, anew: Arc::clone(&anew) });
        self.renew(renewed);
        self.tell_who_leaves(&leaving_before, &anew);
        self.recall(recalled);
        self.preload(preload);
        send(reply, Arc::clone(&changes));
        let registry = (!news.is_empty()).then_some(old_registry);
        let retired = Retired { config: old, _tables: (old_policy, changes, anew), registry };
        let metrics = self.observer.metrics();
        tokio::spawn(async move {
            settle(metrics, models_before, models).await;
            drop(turn);
            retire(retired).await;
        });
    }

    /// The next load of these models uses another plugin file: what the one before did is forgotten.
    fn renew(&mut self, models: Arc<BTreeSet<ModelId>>) {
        if !models.is_empty() {
            self.requests.suspects.forget(&models);
            self.step(Event::Renew(models));
        }
    }

    /// Instances on their way off their device.
    fn leaving(&self) -> BTreeMap<InstanceId, ModelId> {
        let leaves = |state| matches!(state, ModelState::Draining | ModelState::Parking | ModelState::Stopping);
        let leaving = self.state.instances().iter().filter(|(_, known)| leaves(known.state));
        leaving.map(|(id, known)| (*id, known.model.clone())).collect()
    }

    /// Names those for whom there is no room any more, though their entries are as they were.
    fn tell_who_leaves(&self, before: &BTreeMap<InstanceId, ModelId>, anew: &BTreeSet<ModelId>) {
        let after = self.leaving();
        let told = after.iter().filter(|(id, model)| !before.contains_key(id) && !anew.contains(*model));
        let told: Vec<&str> = told.map(|(_, model)| model.as_str()).collect();
        if !told.is_empty() {
            tracing::info!(leaving = some_names(told.iter().copied()), "their devices have no room for them any more");
        }
    }

    /// Asks for models with `preload: true`, a few at a time.
    pub(super) fn preload(&self, models: Vec<ModelId>) {
        let events = self.senders.events.clone();
        let load = move |model| {
            let events = events.clone();
            async move {
                let (reply, loaded) = oneshot::channel();
                post(&events, Internal::Preload(model, reply)).await;
                // Why it failed was logged where that was decided.
                let _over = loaded.await;
            }
        };
        tokio::spawn(futures_util::stream::iter(models).for_each_concurrent(PRELOADS_MAX, load));
    }

    /// It is its turn, unless it is another model by now.
    pub(super) fn preload_one(&mut self, model: ModelId, reply: oneshot::Sender<Result<(), Failure>>) {
        let is_wanted = self.config.models.get(&model).is_some_and(|entry| entry.preload);
        if is_wanted && !self.state.is_quarantined(&model) {
            self.command(Command::Load(model, AccessEntry::default(), reply));
        }
    }
}

/// The series of the models that are gone go, those of the new ones begin.
async fn settle(metrics: Arc<Metrics>, before: Arc<BTreeSet<ModelId>>, now: Arc<BTreeSet<ModelId>>) {
    // A panic is logged where it happens, and leaves a series too many.
    let _settled = spawn_blocking(move || metrics.settle(&before, &now)).await;
}

/// Takes apart what nobody looks at any more. Not before: the last of the requests would do it, on a thread that others need.
async fn retire(retired: Retired) {
    // Where only plugins are others, the configuration is in force still.
    while retired.registry.is_none() && Arc::strong_count(&retired.config) > 1 {
        tokio::time::sleep(RETIRED_LOOK_EVERY).await;
    }
    let paths = retired.registry.is_some().then(|| retired.config.paths.clone());
    let retire = move || {
        drop(retired);
        // Copies of what is gone, that nothing runs on, may be too many by now.
        if let Some(paths) = paths {
            sweep_copies(&paths.state, paths.sharing);
        }
    };
    let _dropped = spawn_blocking(retire).await;
}
