//! The loop that owns the state: it feeds events to the scheduler and carries out its effects.
//!
//! Everything that takes time runs in a task of its own and comes back as an `Internal` event. There is no lock: what the
//! loop owns, only the loop touches. It knows neither HTTP nor how a worker is made ([`Placement`] does).

mod access;
mod api;
mod budget;
mod changes;
mod claim;
mod clock;
mod clocks;
mod departure;
mod devices;
mod effects;
mod explain;
mod facts;
mod files;
mod health;
mod held;
mod internal;
mod memory;
mod meter;
mod observe;
mod overview;
mod peaks;
mod plans;
mod plugin_looks;
mod plugins;
mod policy;
mod prepared;
mod quarantine;
mod reconfigure;
mod records;
mod relay;
mod release;
mod replay;
mod requests;
mod residents;
mod run;
mod state_file;
mod status;
mod survey;
mod swap_log;
mod swaps;
mod telling;
#[cfg(test)]
mod tests;
mod told;
mod watched;
mod workspace;

pub use crate::domain::Class;
pub use crate::scheduler::{Explanation, Leaving, Outcome, Staying};
pub use access::{AccessEntry, AccessFacts};
pub use api::{Answer, Changes, Command, Handle, KeepAlive, ModelStatus, OutputMode, Overview, Submission, Submitted};
pub use budget::{Budget, BudgetShare};
pub use claim::{RunningHost, StateClaim, running_host};
pub use clocks::{LeaseTerms, OutputLimits};
pub use files::locate_for;
pub use relay::{Lease, LeaseEnd, carry};
pub use survey::DeviceStatus;
pub use watched::{Pin, Swap, SwapKind, SwapOutcome, SwapStep, WaitingRequest};

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::config::Config;
use crate::domain::Device;
use crate::plugin::Registry;
use crate::store::Cache;
use crate::worker::Placement;
use crate::worker::awake::timeout;

/// Commands that may wait for the loop.
const COMMANDS_MAX: usize = 1024;

/// A running loop.
#[derive(Debug)]
pub struct Runtime {
    handle: Handle,
    /// What its devices could hold when it started.
    budgets: Vec<(Device, u64)>,
    plugins: watch::Receiver<Arc<Registry>>,
    cache: Option<Arc<Cache>>,
    shutdown: watch::Sender<Ending>,
    task: JoinHandle<()>,
}

/// How far a shutdown has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    No,
    Drain,
    Abort,
}

/// Starts the loop. Models with `preload: true` begin to load.
///
/// Must be called inside a tokio runtime.
pub fn start(config: Arc<Config>, registry: Arc<Registry>, placement: Arc<dyn Placement>) -> Runtime {
    let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
    let (shutdown, ending) = watch::channel(Ending::No);
    let (in_force, watched) = watch::channel(config);
    let (plugins, registered) = watch::channel(registry);
    let (owner, internal) = run::Loop::new(in_force, plugins, placement);
    let handle = Handle::new(commands, watched, registered.clone()).with_facts(Arc::clone(&owner.devices.facts));
    let (budgets, cache) = (owner.budgets(), owner.backends.files.cache());
    let task = tokio::spawn(owner.run(internal, inbox, ending));
    Runtime { handle, budgets, plugins: registered, cache, shutdown, task }
}

impl Runtime {
    /// The way in.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// The plugins in force: others as soon as their folders are seen to have changed.
    pub fn plugins(&self) -> watch::Receiver<Arc<Registry>> {
        self.plugins.clone()
    }

    /// Its devices, and the bytes that each could hold when it started.
    pub fn budgets(&self) -> &[(Device, u64)] {
        &self.budgets
    }

    /// Leaves the folder of copies to another host. Blocks for a moment.
    pub fn leave_cache(&self) {
        if let Some(cache) = &self.cache {
            cache.leave();
        }
    }

    /// Resolves when the loop ends by itself, which it should not, with why. Not to be awaited again after that.
    pub async fn ended(&mut self) -> String {
        match (&mut self.task).await {
            Ok(()) => "it returned".to_owned(),
            Err(error) => error.to_string(),
        }
    }

    /// Ends the loop where it stands: everyone who asks it is told that the host is shutting down.
    pub fn abort(&self) {
        self.task.abort();
    }

    /// Takes no new work, lets leases end for at most `drain`, then cuts them; returns when every worker is gone but those
    /// that have not said yet what they need, which end with their host.
    pub async fn shutdown(mut self, drain: Duration) {
        self.shutdown.send_replace(Ending::Drain);
        if timeout(drain, &mut self.task).await.is_none() {
            self.shutdown.send_replace(Ending::Abort);
            // The loop ends once the killed workers are reaped; a panic in it was logged by its own task.
            let _ended = self.task.await;
        }
    }
}
