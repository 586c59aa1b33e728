//! What the loop keeps of each instance: its handle, what it planned, and whether a step of its life is under way.

use std::collections::HashMap;
use std::sync::Arc;

use aihost_plugin_api::MemoryPlan;

use super::peaks::Key;
use super::workspace::Workspace;
use crate::domain::InstanceId;
use crate::plugin::PluginFile;
use crate::store::{CacheLease, Verification};
use crate::worker::{Exit, InstanceHandle};

/// The instances that have a worker, or one that comes up.
#[derive(Default)]
pub(super) struct Residents(HashMap<InstanceId, Resident>);

#[derive(Default)]
struct Resident {
    /// `None` while its worker comes up.
    handle: Option<Arc<dyn InstanceHandle>>,
    /// What it is made of; `None` until that is known.
    plugin: Option<Arc<PluginFile>>,
    /// `None` until it has said what it needs.
    planned: Option<Planned>,
    /// Whether a start, load, park or wake is under way.
    busy: bool,
    /// The check of its files, while that is under way.
    check: Option<Arc<Verification>>,
    /// The copies of files that it may open.
    copies: CacheLease,
    /// Whether it is being asked how it is.
    is_asked_health: bool,
    /// Its exit, if that came while it was busy: the start or load knows the cause better, and is heard first.
    early_exit: Option<Exit>,
}

/// What is known of an instance's memory once it has said what it needs.
pub(super) struct Planned {
    pub(super) plan: MemoryPlan,
    /// Under which its peaks are remembered, and what was remembered before it came up.
    pub(super) key: Option<(Key, Option<u64>)>,
    /// Bytes on its device that its plugin says it holds; 0 until it is loaded, or if its plugin does not say.
    pub(super) held: u64,
    /// What requests take beside it; from the first that costs something on.
    pub(super) workspace: Option<Workspace>,
}

impl Residents {
    pub(super) fn handle(&self, id: InstanceId) -> Option<&Arc<dyn InstanceHandle>> {
        self.0.get(&id)?.handle.as_ref()
    }

    /// The plugin file that it is made of, whatever lies in its place by now.
    pub(super) fn plugin(&self, id: InstanceId) -> Option<&Arc<PluginFile>> {
        self.0.get(&id)?.plugin.as_ref()
    }

    /// This is what it is made of.
    pub(super) fn is_made_of(&mut self, id: InstanceId, plugin: Arc<PluginFile>) {
        self.0.entry(id).or_default().plugin = Some(plugin);
    }

    /// Of every worker that is up.
    pub(super) fn handles(&self) -> impl Iterator<Item = &Arc<dyn InstanceHandle>> {
        self.0.values().filter_map(|resident| resident.handle.as_ref())
    }

    /// Bytes of host memory charged to its worker.
    pub(super) fn usage(&self, id: InstanceId) -> Option<u64> {
        self.handle(id)?.usage()
    }

    pub(super) fn planned(&self, id: InstanceId) -> Option<&Planned> {
        self.0.get(&id)?.planned.as_ref()
    }

    pub(super) fn planned_mut(&mut self, id: InstanceId) -> Option<&mut Planned> {
        self.0.get_mut(&id)?.planned.as_mut()
    }

    /// A start, load, park or wake begins.
    pub(super) fn begin_step(&mut self, id: InstanceId) {
        self.0.entry(id).or_default().busy = true;
    }

    /// It is over.
    pub(super) fn end_step(&mut self, id: InstanceId) {
        if let Some(resident) = self.0.get_mut(&id) {
            resident.busy = false;
            resident.check = None;
        }
    }

    /// The one to ask how it is, unless it is being asked or has no worker.
    pub(super) fn begin_health(&mut self, id: InstanceId) -> Option<&Arc<dyn InstanceHandle>> {
        let resident = self.0.get_mut(&id)?;
        if resident.handle.is_none() || std::mem::replace(&mut resident.is_asked_health, true) {
            return None;
        }
        resident.handle.as_ref()
    }

    /// It has answered.
    pub(super) fn end_health(&mut self, id: InstanceId) {
        if let Some(resident) = self.0.get_mut(&id) {
            resident.is_asked_health = false;
        }
    }

    /// Its files are checked.
    pub(super) fn is_checked(&mut self, id: InstanceId, check: Arc<Verification>) {
        self.0.entry(id).or_default().check = Some(check);
    }

    /// The check of its files that is to be made.
    pub(super) fn check_of(&self, id: InstanceId) -> Arc<Verification> {
        self.0.get(&id).and_then(|resident| resident.check.clone()).unwrap_or_default()
    }

    /// The check of its files that is under way.
    pub(super) fn check(&self, id: InstanceId) -> Option<&Verification> {
        self.0.get(&id)?.check.as_deref()
    }

    /// It may open these copies, which stay until it is gone.
    pub(super) fn holds(&mut self, id: InstanceId, copies: CacheLease) {
        self.0.entry(id).or_default().copies = copies;
    }

    /// The copies that it may open.
    pub(super) fn copies(&self, id: InstanceId) -> Option<&CacheLease> {
        Some(&self.0.get(&id)?.copies)
    }

    /// Its worker is up.
    pub(super) fn is_up(&mut self, id: InstanceId, handle: Arc<dyn InstanceHandle>) {
        self.0.entry(id).or_default().handle = Some(handle);
    }

    pub(super) fn has_planned(&mut self, id: InstanceId, planned: Planned) {
        self.0.entry(id).or_default().planned = Some(planned);
    }

    /// An exit, unless it has to wait until the step that is under way has been heard.
    pub(super) fn exit_to_hear(&mut self, exit: Exit) -> Option<Exit> {
        match self.0.get_mut(&exit.instance) {
            Some(resident) if resident.busy => {
                resident.early_exit = Some(exit);
                None
            }
            _ => Some(exit),
        }
    }

    /// The exit that waited for the end of the step that has just been heard. One whose start failed leaves nothing behind.
    pub(super) fn exit_that_waited(&mut self, id: InstanceId) -> Option<Exit> {
        let resident = self.0.get_mut(&id)?;
        let exit = resident.early_exit.take();
        if exit.is_none() && resident.handle.is_none() && !resident.busy {
            self.0.remove(&id);
        }
        exit
    }

    pub(super) fn remove(&mut self, id: InstanceId) {
        self.0.remove(&id);
    }
}
