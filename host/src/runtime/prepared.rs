//! A configuration as it is handed to the loop: whatever takes longer the more models there are is done.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::{OwnedMutexGuard, oneshot};

use super::api::Changes;
use super::peaks::Key;
use super::policy::FoundBudgets;
use super::watched::Pin;
use crate::config::Config;
use crate::domain::ModelId;
use crate::plugin::{News, Registry};
use crate::scheduler::Policy;

/// Everything that the loop needs to put a configuration in force.
pub(super) struct Prepared {
    pub(super) config: Arc<Config>,
    pub(super) policy: Arc<Policy>,
    pub(super) changes: Arc<Changes>,
    /// Models that are gone or made of something else.
    pub(super) anew: Arc<BTreeSet<ModelId>>,
    /// The plugins that it was prepared by, what is new of them, and the models whose next load uses another file than the last.
    pub(super) registry: Arc<Registry>,
    pub(super) news: Vec<News>,
    pub(super) renewed: Arc<BTreeSet<ModelId>>,
    /// Models that are scheduled by the files that their instances are made of.
    pub(super) behind: BTreeSet<ModelId>,
    /// All there are.
    pub(super) models: Arc<BTreeSet<ModelId>>,
    pub(super) preload: Vec<ModelId>,
    /// Models that were not there before and may be quarantined, with what they are made of.
    pub(super) recalled: Vec<(ModelId, Key)>,
}

/// Who waits for the configuration, and its turn.
pub(super) struct Configuring {
    pub(super) reply: oneshot::Sender<Arc<Changes>>,
    pub(super) turn: OwnedMutexGuard<FoundBudgets>,
}

/// What is to be in force.
#[derive(Debug)]
pub(super) enum Wanted {
    /// What is by then: plugins may be others.
    Same,
    /// Another configuration.
    Other(Arc<Config>),
    /// What is by then, with a model that is never evicted, or that may be.
    Pinned(Pin),
}

impl Wanted {
    /// The whole of it, where `old` is in force.
    pub(super) fn over(self, old: &Arc<Config>) -> Arc<Config> {
        match self {
            Self::Same => Arc::clone(old),
            Self::Other(config) => config,
            Self::Pinned(Pin { model, pinned }) => {
                let mut config = Config::clone(old);
                if let Some(entry) = config.models.get_mut(&model) {
                    entry.pin = pinned;
                }
                Arc::new(config)
            }
        }
    }
}
