//! What a request for a model would meet: a rehearsal on a copy of the state, with a fresh look at the devices and at the
//! model's files. All of that takes its time, so it is done beside the loop; nothing of it changes anything.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

use super::files::locate_for;
use super::run::{Loop, send};
use crate::config::{Choice, ModelConfig};
use crate::domain::{Device, Failure, FailureKind, Millis, ModelId};
use crate::plugin::PluginFile;
use crate::scheduler::{Explanation, Outcome, State};
use crate::worker::Placement;

/// What the loop knows of a model at one moment.
struct Rehearsal {
    world: State,
    now: Millis,
    entry: ModelConfig,
    /// Thousandths of its weights that are there.
    loaded: Option<u32>,
    /// What is done with its files first, and thousandths of that.
    prepared: Option<(&'static str, u32)>,
    /// What would start it, if it is not run by others, or why nothing can.
    plugin: Result<Option<Arc<PluginFile>>, Failure>,
    /// What is to be said of its plugin's file, and of those that it has open.
    notes: [Option<String>; 2],
    /// Its devices, and what instances of this host hold there.
    held: Vec<(Device, u64)>,
    placement: Arc<dyn Placement>,
    state_dir: PathBuf,
}

impl Loop {
    /// Tells what a request for this model would meet.
    pub(super) fn tell_plan(&self, model: &ModelId, reply: oneshot::Sender<Result<Explanation, Failure>>) {
        let Some(entry) = self.config.models.get(model) else {
            let failure = Failure::new(FailureKind::UnknownModel, format!("there is no model `{model}`"));
            return send(reply, Err(failure));
        };
        let devices = self.state.policy().models.get(model).map(|policy| policy.devices.clone()).unwrap_or_default();
        let files_note = self.state.instance_of(model).and_then(|(id, _)| self.files_note(id));
        let rehearsal = Rehearsal {
            now: self.clock.now(),
            loaded: self.loading_progress(model),
            prepared: self.files_progress(model),
            plugin: self.usable_plugin(entry),
            notes: [self.said_of_plugin(entry), files_note],
            held: devices.into_iter().filter_map(|device| Some((device, self.held_on(device)?))).collect(),
            placement: Arc::clone(&self.backends.placement),
            state_dir: self.config.paths.state.clone(),
            world: self.state.clone(),
            entry: entry.clone(),
        };
        spawn_blocking(move || send(reply, Ok(rehearsal.plan())));
    }
}

impl Rehearsal {
    fn plan(mut self) -> Explanation {
        for (device, held) in std::mem::take(&mut self.held) {
            if let Some(free) = self.placement.capacity(device) {
                self.world.measure(device, free.saturating_add(held));
            }
        }
        let model = &self.entry.id;
        let stated = self.entry.memory.map(|size| size.0);
        let mut plan = self.world.explain(self.now, model, stated, self.loaded);
        if let Some((step, progress)) = self.prepared {
            plan = plan.behind_step(step, progress);
        }
        // Whoever is refused anyway is told why by those who refuse.
        let is_started = self.world.instance_of(model).is_none() && plan.outcome != Outcome::Refused;
        let obstacle = || match &self.plugin {
            Ok(Some(plugin)) => locate_for(plugin, &self.entry, &self.state_dir).err(),
            Ok(None) => None,
            Err(why) => Some(why.clone()),
        };
        if let Some(why) = is_started.then(obstacle).flatten() {
            plan.outcome = Outcome::Refused;
            plan.message = format!("`{}` cannot be loaded: {why}", self.entry.id);
            return plan;
        }
        for note in self.notes.iter().flatten() {
            plan.message += &format!("; {note}");
        }
        if let Some(Choice::Made(why)) = &self.entry.choice {
            plan.message += &format!("; {why}");
        }
        if let Some(refusal) = &self.entry.refusal {
            plan.message += &format!("; {refusal}");
        }
        plan
    }
}
