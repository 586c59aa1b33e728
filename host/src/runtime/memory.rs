//! What instances are given and what they really hold: the numbers that the loop brings to the scheduler.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use aihost_plugin_api::MemoryPlan;

use super::peaks::Key;
use super::release::ReleaseCheck;
use super::residents::Planned;
use super::run::Loop;
use super::survey::moves_memory;
use super::workspace::Workspace;
use crate::domain::{ByteSize, Device, InstanceId, Kind, ModelId, ModelState};
use crate::scheduler::{self, Event, Mapped};
use crate::store::{self, CacheLease};
use crate::worker::Allowance;

impl Loop {
    /// Bytes that an instance is given at least: what its entry says, else what its plugin plans or, if that was more,
    /// what it was seen to hold. A peak beyond the budget asks for all of it: it ran there before.
    pub(super) fn need(&mut self, id: InstanceId, plan: MemoryPlan) -> u64 {
        let mut planned = plan.required.saturating_add(plan.workspace_max);
        let key = self.peak_key(id);
        let is_unknown = || key.as_ref().is_none_or(|(key, ..)| self.devices.peaks.known(key).is_none());
        if planned == 0 && self.is_program(id) && is_unknown() {
            // Nobody knows what it takes: it is alone on its device until that is seen.
            let device = self.state.instances().get(&id).map(|known| known.device);
            planned = device.map_or(0, |device| self.state.budget(device));
        }
        let needed = key.as_ref().map_or(planned, |(key, device, memory_static)| {
            let seen = self.devices.peaks.need(key, planned, *memory_static);
            seen.min(planned.max(self.state.budget(*device)))
        });
        let key = key.map(|(key, ..)| (key.clone(), self.devices.peaks.known(&key)));
        self.residents.has_planned(id, Planned { plan, key, held: 0, workspace: None });
        self.fixed_memory(id).unwrap_or(needed)
    }

    /// Where peaks are measured: in the host's own memory. Elsewhere a process's share of a device cannot be told.
    fn peak_key(&self, id: InstanceId) -> Option<(Key, Device, bool)> {
        let known = self.state.instances().get(&id).filter(|known| known.device.is_host_memory())?;
        let (model, plugin) = (self.config.models.get(&known.model)?, self.residents.plugin(id)?);
        let (key, memory_static) = (Key::new(plugin, model, Some(known.device)), plugin.manifest.memory_static);
        Some((key, known.device, memory_static))
    }

    /// What those that serve hold now. What ends a worker is no lesson: else a request that makes one hoard would be
    /// remembered, and the model never fit again.
    pub(super) fn observe_peaks(&self) {
        for id in self.requests.serving() {
            let (Some(instance), Some(Planned { plan, key: Some((key, _)), .. }), Some(known)) =
                (self.residents.handle(id), self.residents.planned(id), self.state.instances().get(&id))
            else {
                continue;
            };
            let held = instance.usage().map(|usage| usage.saturating_add(plan.mapped.min(plan.required)));
            if let Some(bytes) = held.filter(|bytes| *bytes <= self.allowance(id, known.granted).most()) {
                let (peaks, key) = (Arc::clone(&self.devices.peaks), key.clone());
                tokio::task::spawn_blocking(move || peaks.observe(&key, bytes));
            }
        }
    }

    /// It was ended for what it held: nothing of what it held on the way there counts.
    pub(super) fn unlearn(&self, id: InstanceId) {
        if let Some((key, before)) = self.residents.planned(id).and_then(|planned| planned.key.clone()) {
            let peaks = Arc::clone(&self.devices.peaks);
            tokio::task::spawn_blocking(move || peaks.forget(&key, before));
        }
    }

    /// The bytes that every instance of the same weights shares: only the host's own memory shares, and only of files that
    /// the entry names can it be told that they are the same.
    pub(super) fn mapped(&self, id: InstanceId, bytes: u64) -> Mapped {
        let known = self.state.instances().get(&id).filter(|known| known.device.is_host_memory());
        let entry = known.and_then(|known| self.config.models.get(&known.model));
        let Some(entry) = entry.filter(|entry| !entry.files.is_empty()) else { return Mapped::default() };
        let mut hasher = DefaultHasher::new();
        for file in entry.files.values() {
            (&file.path, store::fingerprint(file)).hash(&mut hasher);
        }
        // One opens copies and another the originals: these are other pages.
        self.residents.copies(id).map_or(0, CacheLease::fingerprint).hash(&mut hasher);
        Mapped { files: hasher.finish(), bytes }
    }

    /// Whether it is a program of which its plugin plans nothing, so that what it takes is learned.
    fn is_program(&self, id: InstanceId) -> bool {
        self.residents.plugin(id).is_some_and(|plugin| plugin.runs_programs())
    }

    /// What an instance may hold that was given so many bytes.
    pub(super) fn allowance(&self, id: InstanceId, granted: u64) -> Allowance {
        let plan = self.residents.planned(id).map(|planned| planned.plan.clone()).unwrap_or_default();
        let planned = plan.preferred.max(plan.required).saturating_add(plan.workspace_max);
        let known = self.state.instances().get(&id);
        if let Some(known) = known.filter(|_| self.is_program(id) && self.fixed_memory(id).is_none()) {
            // What was seen of it is no limit that anybody set.
            let budget = self.state.budget(known.device).max(granted);
            return Allowance { planned: budget, granted: budget, mapped: 0 };
        }
        // What `memory:` of the entry says is its plan.
        let planned = self.fixed_memory(id).unwrap_or(planned).min(granted);
        Allowance { planned, granted, mapped: plan.mapped.min(granted) }
    }

    /// What a parked instance may hold that held so much of the host's memory when it was. It has given back what it was
    /// granted on its device.
    pub(super) fn allowance_parked(&self, id: InstanceId, held: u64) -> Option<Allowance> {
        let known = self.state.instances().get(&id)?;
        let bytes = if known.device.is_host_memory() { held } else { 0 };
        Some(Allowance { planned: bytes, granted: bytes, mapped: 0 })
    }

    /// An instance begins to take memory on its device, or to give it back for good.
    pub(super) fn moves_memory(&mut self, id: InstanceId) {
        if let Some(known) = self.state.instances().get(&id) {
            self.devices.memory_moves(known.device);
        }
    }

    /// Bytes on its device that an instance holds by its plugin's own account, once it was loaded.
    pub(super) fn held(&self, id: InstanceId) -> Option<u64> {
        self.residents.planned(id).map(|planned| planned.held).filter(|bytes| *bytes > 0)
    }

    /// Bytes that a request may take on top of the loaded model. A text request's need is part of the plan, and it is
    /// not worth a question before each.
    pub(super) fn workspace(&mut self, id: InstanceId, model: &ModelId) -> Option<Workspace> {
        let kind = self.config.models.get(model)?.kind;
        let reserved = self.state.instances().get(&id)?.reserved;
        let Planned { plan, workspace, .. } = self.residents.planned_mut(id)?;
        // What was granted beyond the least may hold more of the model instead.
        let bytes = reserved.saturating_sub(plan.required).min(plan.workspace_max);
        (kind != Kind::Text).then(|| workspace.get_or_insert_with(|| Workspace::new(bytes)).clone())
    }

    /// A look at an instance's device before it parks.
    pub(super) fn release_check(&mut self, id: InstanceId) -> Option<ReleaseCheck> {
        let known = self.state.instances().get(&id)?;
        let others = self.state.instances().iter().filter(|(other, _)| **other != id);
        let quiet =
            !others.filter(|(_, other)| other.device == known.device).any(|(_, other)| moves_memory(other.state));
        let planned = self.residents.planned(id).map_or(0, |planned| planned.plan.required);
        let held = self.held(id).unwrap_or(planned).min(known.reserved);
        let moves = self.devices.moves(known.device);
        Some(ReleaseCheck::new(&*self.backends.placement, known, held, quiet, moves))
    }

    /// `memory:` of the entry, which overrides the plugin's plan.
    pub(super) fn fixed_memory(&self, id: InstanceId) -> Option<u64> {
        let model = &self.state.instances().get(&id)?.model;
        self.config.models.get(model)?.memory.map(|size| size.0)
    }

    /// How much memory there really is, others' use of the devices included, for models that wait for some.
    pub(super) fn measure_for_waiters(&mut self) {
        let waits = |known: &&scheduler::Instance| {
            matches!(known.state, ModelState::Waiting | ModelState::Parked) && self.state.queued(&known.model) > 0
        };
        let models: HashSet<ModelId> =
            self.state.instances().values().filter(waits).map(|known| known.model.clone()).collect();
        models.iter().for_each(|model| self.measure(model));
    }

    /// The same on the devices that a model may use.
    pub(super) fn measure(&mut self, model: &ModelId) {
        let devices = self.state.policy().models.get(model).map(|policy| policy.devices.clone()).unwrap_or_default();
        devices.into_iter().for_each(|device| self.measure_device(device));
    }

    /// The same on one device. What is pinned of the host's memory beside cards is there for nobody else.
    pub(super) fn measure_device(&mut self, device: Device) {
        let budget = self.state.budget(device);
        let most = if device.is_host_memory() { budget.saturating_sub(self.pinned()) } else { budget };
        let before = self.state.measured(device);
        let bytes = match (self.backends.placement.capacity(device), self.held_on(device)) {
            (Some(free), Some(held)) if most < budget => free.saturating_add(held).min(most),
            (Some(free), Some(held)) => free.saturating_add(held),
            _ if most < budget || before.is_some() && device.is_host_memory() => most,
            _ => return,
        };
        if bytes < most && before.is_none_or(|before| before >= most) {
            let (bytes, most) = (ByteSize(bytes), ByteSize(most));
            tracing::warn!(%device, "only {bytes} of its budget of {most} can be had: others hold the rest");
        }
        self.step(Event::Measured(device, bytes));
    }

    /// Bytes that this host's instances hold on a device; `None` while that cannot be told.
    pub(super) fn held_on(&self, device: Device) -> Option<u64> {
        let here = || self.state.instances().iter().filter(|(_, known)| known.device == device);
        if device.is_host_memory() {
            return Some(here().map(|(id, known)| self.residents.usage(*id).unwrap_or(known.reserved)).sum());
        }
        // A process's share of another device cannot be told: it counts as what its plugin says. Of one that is taking or
        // giving memory just now nobody knows which of it is free, so what was measured last stands.
        let held = |id, known: &scheduler::Instance| self.held(id).unwrap_or(known.reserved).min(known.reserved);
        let still = !here().any(|(_, known)| moves_memory(known.state));
        still.then(|| here().map(|(id, known)| held(*id, known)).fold(0, u64::saturating_add))
    }
}
