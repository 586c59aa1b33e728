//! When the loop has the folders of plugins looked at: when it is asked to, and before each start. What is found is put in force as a
//! configuration is, and is what the next load of a model uses; instances that run go on with the file that they were made of.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::api::Changes;
use super::internal::{Internal, post};
use super::plugins::Running;
use super::prepared::Wanted;
use super::run::{Loop, send};
use crate::config::ModelConfig;
use crate::domain::{InstanceId, ModelId};

impl Loop {
    /// Looks at the folders, and answers when what lies there is in force.
    pub(super) fn look_at_plugins(&self, reply: oneshot::Sender<Arc<Changes>>) {
        let (folders, events) = (self.plugins.folders(), self.senders.events.clone());
        tokio::spawn(async move {
            folders.look().await;
            post(&events, Internal::Looked(reply)).await;
        });
    }

    /// The folders were looked at.
    pub(super) fn looked(&self, reply: oneshot::Sender<Arc<Changes>>) {
        match Arc::ptr_eq(&self.plugins.registry(), &self.plugins.folders().newest()) {
            true => send(reply, Arc::default()),
            false => self.prepare(Wanted::Same, None, reply),
        }
    }

    /// A start waits for a look at its plugin.
    pub(super) fn look_before_start(&self, id: InstanceId, model: &ModelId) -> bool {
        let folders = self.plugins.folders();
        if !folders.are_there() {
            return false;
        }
        let entry = self.config.models.get(model);
        let registry = self.plugins.registry();
        let plugin = entry.and_then(|entry| registry.find(&entry.plugin, entry.plugin_version.as_ref()).ok());
        let events = self.senders.events.clone();
        tokio::spawn(async move {
            folders.look_for(plugin).await;
            post(&events, Internal::LookedToStart(id)).await;
        });
        true
    }

    /// What it is to be made of is known. It may still have to be put in force.
    pub(super) fn looked_to_start(&mut self, id: InstanceId) {
        let model = self.state.instances().get(&id).map(|known| known.model.clone());
        if model.as_ref().is_none_or(|model| self.plugins.is_ready_for(model)) {
            return self.bring_up(id);
        }
        let (reply, in_force) = oneshot::channel();
        self.prepare(Wanted::Same, model, reply);
        let events = self.senders.events.clone();
        tokio::spawn(async move {
            // Where it could not be, the start goes on with what there is.
            let _put = in_force.await;
            post(&events, Internal::BringUp(id)).await;
        });
    }

    /// Which file each model's instances were made of, the newest of them.
    pub(super) fn running(&self) -> Running {
        let made_of = |(id, known): (&InstanceId, &crate::scheduler::Instance)| {
            Some((known.model.clone(), Arc::clone(self.residents.plugin(*id)?)))
        };
        self.state.instances().iter().filter_map(made_of).collect()
    }

    /// What is to be said of the file that a model runs on, or would be loaded from.
    pub(super) fn said_of_plugin(&self, model: &ModelConfig) -> Option<String> {
        if let Some((id, _)) = self.state.instance_of(&model.id) {
            return self.plugin_note(model, id);
        }
        let registry = self.plugins.registry();
        let plugin = registry.find(&model.plugin, model.plugin_version.as_ref()).ok()?;
        let said = format!("plugin `{}` {} in {}", model.plugin, plugin.build(), plugin.source.display());
        match registry.refusal_of(&plugin.source) {
            Some(why) => Some(format!("{said}, as it was before: {why}")),
            None => Some(said),
        }
    }

    /// What is to be said of the file that an instance is made of: another one waits, or it is not there any more.
    pub(super) fn plugin_note(&self, model: &ModelConfig, id: InstanceId) -> Option<String> {
        let (runs, registry) = (self.residents.plugin(id)?, self.plugins.registry());
        let (build, id) = (runs.build(), &runs.manifest.id);
        match registry.find(&model.plugin, model.plugin_version.as_ref()) {
            Ok(next) if next.is_same(runs) => {
                let why = registry.refusal_of(&next.source)?;
                Some(format!("it runs on plugin `{id}` {build} as that was before: {why}"))
            }
            Ok(next) => {
                let (waits, file) = (next.build(), next.source.display());
                Some(format!(
                    "it runs on plugin `{id}` {build}; a newer copy waits: {waits} in {file} is used at the next load"
                ))
            }
            Err(why) => Some(format!(
                "it runs on plugin `{id}` {build}, which is there no more, and cannot be loaded again: {why}"
            )),
        }
    }
}
